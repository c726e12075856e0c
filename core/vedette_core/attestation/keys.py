"""Raw Ed25519 public keys as a `Verifier`: for senders that have a key of their own and no certificate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from vedette_schemas.errors import PeerError


class RawKeys:
    """Knows some senders' keys; a sender may have several, while one is being replaced.

    Args:
        keys: raw public keys, 32 bytes each, by sender.
    """

    def __init__(self, keys: Mapping[str, Sequence[bytes]]) -> None:
        self._keys = {sender: tuple(found) for sender, found in keys.items()}

    def verify(self, sender: str, signature: bytes, data: bytes) -> None:
        """Check a signature; raises `PeerError` if none of the sender's keys made it."""
        for key in self._keys.get(sender, ()):
            try:
                Ed25519PublicKey.from_public_bytes(key).verify(signature, data)
            except (InvalidSignature, ValueError):
                continue
            return
        raise PeerError(f"{sender[:80]!r}: found a signature that none of its keys made", reason="signature")
