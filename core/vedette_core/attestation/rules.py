"""The rules by which evidence and results are refused: every refusal has one of these names."""

from __future__ import annotations

from typing import Final

from vedette_schemas.errors import RefusedError

EVIDENCE_RULES: Final = (
    "nonce-unknown",  # no challenge had it
    "nonce-reused",  # it was answered before
    "nonce-device",  # it was for another device
    "stale",  # it came too late
    "identity",  # the claims are about another identity key than the one that sealed them
    "device",  # … or about another device
    "proof",  # the parts do not fit the tier
    "malformed",  # the claims cannot be read
    "debug",
    "boot-count",  # it went back
    "unknown-software",
    "denied-software",
    "missing-software",
    "old-software",
    "not-enrolled",
    "not-activated",  # the TPM never showed that the attestation key is its own
    "boot-chain",  # a layer's signature does not hold
    "binding",  # quote or boot key signed other claims
    "signature",
    "truncated",
    "trailing",
    "magic",  # not made by a TPM about its own state
    "type",  # not a quote
    "key-kind",  # a TPM key that anybody can make sign anything
    "pcr-selection",
    "wrong-pcr",
    "clock",
)
PASSPORT_RULES: Final = (
    "passport-missing",
    "passport-signature",
    "passport-device",
    "passport-key",
    "passport-expired",
    "passport-policy",  # made under an older policy
    "passport-tier",
    "passport-withdrawn",  # newer evidence of the device was refused
)
RULES: Final = frozenset(EVIDENCE_RULES) | frozenset(PASSPORT_RULES)


def refusal(rule: str, whose: str, found: object, expected: object) -> RefusedError:
    """An error of a rule."""
    assert rule in RULES, rule
    return RefusedError(f"{whose}: {rule}: found {found}, expected {expected}", rule=rule)
