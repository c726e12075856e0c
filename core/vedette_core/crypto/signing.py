"""Ed25519 for envelopes: a signer that hides its key, and a key ring that only learns from verified certificates.

Source: RFC 8032 (Ed25519).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from vedette_core.crypto.certificate_chain import (
    CERTIFICATE_BYTES_MAX,
    CHAIN_LENGTH_MAX,
    damaged_is_refused,
    load_certificates,
    verify_chain,
)
from vedette_core.crypto.certificates import CertificateRole, Identity, Purpose
from vedette_core.crypto.revocation import Revocations
from vedette_schemas.errors import PeerError

SENDERS_MAX: Final = 100_000
"""Keys a ring holds, over all roles; a site has fewer nodes, and memory stays bounded (about 1 KB each)."""


class Ed25519Signer:
    """Signs bytes with a node's Ed25519 key and shows nothing of it.

    Args:
        key: the private key.
    """

    __slots__ = ("_key",)

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def from_seed(cls, seed: bytes) -> Ed25519Signer:
        """A signer from the 32-byte seed of RFC 8032."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @property
    def public_key(self) -> Ed25519PublicKey:
        """The key that verifies what this signs."""
        return self._key.public_key()

    def sign(self, data: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature of `data`."""
        return self._key.sign(data)

    def __repr__(self) -> str:
        return "Ed25519Signer(<redacted>)"

    def __reduce__(self) -> str:
        raise TypeError("a signer is not pickled: its key stays where it is")


@dataclass(frozen=True, slots=True)
class _Known:
    identity: Identity
    key: Ed25519PublicKey


VERIFIED_MAX: Final = 4096
"""Certificates of which a ring remembers that their chain held: a few rosters' worth, about 1 KB each."""


class KeyRing:
    """The public keys of the senders of one site, each learnt from a verified certificate chain.

    Args:
        root: the site's root certificate, the only trust anchor.
        site: the site's id; certificates of other sites are refused.
        intermediates: authorities that are known beforehand, for example from ``ca.crt``; without a list of one's own.
        revocations: the newest revocation list and the authorities in force; without, a ring begins with no list.

    Attributes:
        revocations: the newest revocation list: whoever is on it is neither learnt nor believed.
    """

    def __init__(
        self,
        root: x509.Certificate,
        site: str,
        intermediates: Sequence[x509.Certificate] = (),
        revocations: Revocations | None = None,
    ) -> None:
        self._root = root
        self._site = site
        self._known: dict[str, _Known] = {}
        self._verified: dict[bytes, Identity] = {}
        self.revocations = revocations if revocations is not None else Revocations(root, intermediates)

    def fork(self) -> KeyRing:
        """An empty ring with the same anchors: for the members of one roster, whose keys are those that stand in it.

        It shares what is known of certificates whose chain held, so that a roster costs no chain twice, and the newest
        revocation list.
        """
        ring = KeyRing(self._root, self._site, revocations=self.revocations)
        ring._verified = self._verified
        return ring

    def learn_authorities(self, intermediates: Sequence[x509.Certificate]) -> None:
        """From now on, for this ring and its later forks, these authorities count as well: the online one was replaced.

        Each must still lead to the root.
        """
        known = dict.fromkeys((*intermediates, *self.revocations.intermediates))
        self.revocations.learn_authorities(tuple(known)[:CHAIN_LENGTH_MAX])

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, sender: str) -> bool:
        return sender in self._known

    def learn(
        self,
        certificate: bytes,
        now: float,
        *,
        intermediate: bytes = b"",
        sender: str | None = None,
        role: CertificateRole | None = None,
    ) -> Identity:
        """Verify a signing certificate and add its key; a newer certificate of the same sender replaces the older.

        Of a newer authority it is newer, however long an earlier one's lasts: that one's key may be in wrong hands.

        Args:
            certificate: DER of the leaf, or PEM of the leaf followed by its issuers.
            now: epoch seconds.
            intermediate: DER or PEM of the issuer, where it travels apart.
            sender: the only id accepted, where it is known.
            role: the only role accepted, where it is known.

        Raises:
            PeerError: the chain does not hold, it is revoked, it is somebody else's, or the ring is full.
        """
        identity = self._verify(certificate, intermediate, now)
        if sender is not None and identity.id != sender:
            raise PeerError(f"certificate: found that of {identity.id!r}, expected {sender!r}", reason="sender")
        if role is not None and identity.role is not role:
            raise PeerError(f"certificate of {identity.id}: found role {identity.role}, expected {role}", reason="role")
        self.revocations.check(identity.serial, identity.id, identity.issuer)
        if identity.id not in self._known and len(self._known) >= SENDERS_MAX and not self.forget_expired(now):
            raise PeerError(f"{identity.id}: found a full ring of {SENDERS_MAX} senders", reason="limit")
        assert isinstance(identity.public_key, Ed25519PublicKey)
        if self._takes_place(identity):
            self._known[identity.id] = _Known(identity, identity.public_key)
        return identity

    def _takes_place(self, identity: Identity) -> bool:
        """Tell whether a certificate takes the place of the one that is known of the same sender."""
        if identity.id not in self._known:
            return True
        before, newest = self._known[identity.id].identity, self.revocations.newest
        if newest is not None and not newest.entries.keys().isdisjoint((before.serial, before.issuer)):
            return True
        return (before.issuer_begins, before.not_after) <= (identity.issuer_begins, identity.not_after)

    def _verify(self, certificate: bytes, intermediate: bytes, now: float) -> Identity:
        """Who a certificate's holder is, by a chain that holds now."""
        known = self._verified.get(certificate)
        if known is not None and known.not_after >= now:
            return known
        if not certificate.lstrip().startswith(b"-----") and len(certificate) > CERTIFICATE_BYTES_MAX:
            raise PeerError(
                f"certificate: found {len(certificate)} bytes, expected at most {CERTIFICATE_BYTES_MAX}",
                reason="limit",
            )
        leaf, *rest = load_certificates(certificate)
        if intermediate:
            rest.extend(load_certificates(intermediate, "intermediate"))
        # Only what could have issued it: a chain file also carries the root, and duplicates of what is known.
        with damaged_is_refused("certificate"):
            issuers = dict.fromkeys(c for c in (*rest, *self.revocations.intermediates) if c.subject == leaf.issuer)
        identity = verify_chain(leaf, issuers, self._root, now, purpose=Purpose.SIGNING, site=self._site)
        while len(self._verified) >= VERIFIED_MAX:
            self._verified.pop(next(iter(self._verified)))
        self._verified[certificate] = identity
        return identity

    def identity(self, sender: str) -> Identity:
        """Who a sender is.

        Raises:
            PeerError: nobody that this ring has learnt.
        """
        return self._find(sender).identity

    def verify(self, sender: str, signature: bytes, data: bytes) -> None:
        """Check a signature.

        Raises:
            PeerError: unknown sender, the signature is not the sender's over these bytes, or its certificate is
                revoked by now.
        """
        known = self._find(sender)
        try:
            known.key.verify(signature, data)
        except InvalidSignature:
            raise PeerError(
                f"{sender}: found a signature over {len(data)} bytes that its key did not make", reason="signature"
            ) from None
        self.revocations.check(known.identity.serial, sender)

    def revoked(self) -> frozenset[str]:
        """Ids of those known whose certificate is on the newest list."""
        newest = self.revocations.newest
        if newest is None:
            return frozenset()
        return frozenset(s for s, known in self._known.items() if known.identity.serial in newest.entries)

    def forget(self, sender: str) -> None:
        """Remove a sender, if it is known."""
        self._known.pop(sender, None)

    def forget_expired(self, now: float) -> tuple[str, ...]:
        """Remove every sender whose certificate has ended; return their ids.

        A ring does so itself for room, and not before: who renews keeps its key, and is believed by it until the ring
        learns the newer certificate.
        """
        expired = tuple(s for s, known in self._known.items() if known.identity.not_after < now)
        for sender in expired:
            del self._known[sender]
        return expired

    def _find(self, sender: str) -> _Known:
        known = self._known.get(sender)
        if known is None:
            raise PeerError(
                f"{sender[:80]!r}: found no certificate of this sender, expected one of site {self._site}",
                reason="unknown-sender",
            )
        return known
