"""Signing and certificates: bytes in, verdicts out; no clock, no file, no socket."""
