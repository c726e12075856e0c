"""Passports: a verifier's results, which devices show with their check-ins."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from vedette_core.attestation.keys import RawKeys
from vedette_core.attestation.rules import refusal
from vedette_schemas.attestation import PASSPORT_TYPE, VERIFIER_ID, AttestationPolicy, Passport
from vedette_schemas.envelope import Signer, seal, unseal
from vedette_schemas.errors import PeerError

SKEW_S = 300.0
"""A passport may be issued this far ahead of the reader's clock."""


def key_fingerprint(key: bytes) -> bytes:
    """SHA-256 of a raw identity key, as passports name it."""
    return hashlib.sha256(key).digest()


def issue_passport(
    policy: AttestationPolicy, device: str, key: bytes, tier: int, bootcount: int, signer: Signer, now: float
) -> bytes:
    """A sealed passport for evidence that held.

    Args:
        policy: that it was appraised under.
        device: whose.
        key: its raw identity key.
        tier: of the evidence.
        bootcount: of the evidence.
        signer: holder of the verifier's key.
        now: epoch seconds.
    """
    passport = Passport(
        device=device,
        key=key_fingerprint(key),
        tier=tier,
        policy=policy.version,
        bootcount=bootcount,
        iat=float(now),
        exp=float(now) + policy.result_s,
    )
    return seal(passport, PASSPORT_TYPE, VERIFIER_ID, signer)


@dataclass(frozen=True, slots=True)
class PassportCheck:
    """Holds passports to a policy.

    Attributes:
        policy: the one in force.
    """

    policy: AttestationPolicy
    _keys: RawKeys = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_keys", RawKeys({VERIFIER_ID: self.policy.verifiers}))

    def check(self, sealed: bytes, device: str, key: bytes, role: str, now: float) -> Passport:
        """Check what a device shows.

        Args:
            sealed: the passport, as the verifier made it.
            device: who shows it.
            key: its raw identity key, as its certificate has it.
            role: ``contribute`` or ``unmask``.
            now: epoch seconds.

        Raises:
            RefusedError: one of `vedette_core.attestation.rules.PASSPORT_RULES`.
        """
        if not sealed:
            raise refusal("passport-missing", device, "no attestation result", "one of the site's verifier")
        try:
            passport, _ = unseal(Passport, sealed, PASSPORT_TYPE, self._keys, sender=VERIFIER_ID)
        except PeerError as fault:
            raise refusal(
                "passport-signature", device, f"a result that does not hold ({fault})", "a verifier's"
            ) from fault
        if passport.device != device:
            raise refusal("passport-device", device, f"the result of {passport.device}", "its own")
        if passport.key != key_fingerprint(key):
            raise refusal("passport-key", device, "a result about another identity key", "one about its own")
        if not passport.iat - SKEW_S <= now < passport.exp:
            raise refusal(
                "passport-expired", device, f"a result until {passport.exp:.0f}", f"one that holds at {now:.0f}"
            )
        if passport.policy < self.policy.version:
            raise refusal(
                "passport-policy",
                device,
                f"a result under policy {passport.policy}",
                f"policy {self.policy.version} or newer",
            )
        wanted = self.policy.tier_unmask if role == "unmask" else self.policy.tier_contribute
        if passport.tier < wanted:
            raise refusal("passport-tier", device, f"tier {passport.tier}", f"tier {wanted} to {role}")
        return passport
