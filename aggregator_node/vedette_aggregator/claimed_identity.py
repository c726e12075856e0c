"""Who a message is of, by the certificate in it: read before its signature holds, believed only if its chain does."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from vedette_core.crypto.certificates import Identity
from vedette_core.crypto.signing import KeyRing
from vedette_schemas.errors import PeerError


def learn(ring: KeyRing, device: str, certificate: bytes, intermediate: bytes, now: float) -> Identity:
    """Who a certificate is of.

    Raises:
        PeerError: its chain does not hold, or it is another's, or it cannot be read.
    """
    try:
        return ring.learn(certificate, now, intermediate=intermediate, sender=device)
    except PeerError:
        raise
    except Exception as fault:
        # The library fails in more ways than it documents on what an attacker wrote; none may end the aggregator.
        found = f"certificate of {device}: found one that cannot be read ({fault}), expected the site's"
        raise PeerError(found, reason="certificate") from fault


def raw_key(identity: Identity) -> bytes:
    """The raw signing key of an identity."""
    assert isinstance(identity.public_key, Ed25519PublicKey), "a ring learns signing certificates only"
    return identity.public_key.public_bytes_raw()
