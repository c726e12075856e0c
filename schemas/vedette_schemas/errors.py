"""Errors, branched by who must act.

Every message says what was found, what was expected, and whose it is; where a person reads it, also what to do.
"""

from __future__ import annotations


class VedetteError(Exception):
    """Root of every error that Vedette raises on purpose."""


class ConfigError(VedetteError):
    """The operator must act: a setting, a path, a port, a missing file."""


class PeerError(VedetteError):
    """The other side broke the protocol: count it, drop the message, carry on.

    Attributes:
        reason: a short stable word for the metrics, from a bounded set (``signature``, ``schema``, ``limit`` …).
    """

    def __init__(self, message: str, *, reason: str = "malformed") -> None:
        super().__init__(message)
        self.reason = reason


class RefusedError(VedetteError):
    """Policy said no: a budget, a rollback, a quorum, an attestation.

    Attributes:
        rule: the rule that refused, as a short stable word.
    """

    def __init__(self, message: str, *, rule: str = "policy") -> None:
        super().__init__(message)
        self.rule = rule


class TransientError(VedetteError):
    """Nobody must act yet: retry later (a broker that is away, a disk that is full)."""
