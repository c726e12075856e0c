"""Appraisal of devices' evidence: pure, with `cryptography` alone; no TPM library on the verifier's side.

Everything that is refused raises `RefusedError` with the name of the rule (`vedette_core.attestation.rules`).
"""
