"""Who a message is of, by the certificate in it: read before its signature holds, believed only if its chain does."""

from __future__ import annotations

from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from vedette_core.crypto.certificates import Identity
from vedette_core.crypto.signing import KeyRing
from vedette_schemas import codec
from vedette_schemas.attestation import AttestationRequest, EnrolmentRequest, Evidence
from vedette_schemas.envelope import Envelope, unseal
from vedette_schemas.errors import PeerError

Claiming = TypeVar("Claiming", AttestationRequest, EnrolmentRequest, Evidence)
"""Bodies that bring their sender's certificate along."""


def unseal_claimed(
    cls: type[Claiming], payload: bytes, kind: str, keys: KeyRing, now: float, *, device: str | None = None
) -> tuple[Claiming, bytes]:
    """A sealed body whose sender is known by nothing but the certificate in it.

    It is read before its signature holds, but only for that certificate, which must hold for this very device.

    Args:
        cls: the body's class.
        payload: as it came.
        kind: type of the envelope.
        keys: that hold certificates; it learns nothing here.
        now: epoch seconds.
        device: who must have said it; the sender that the envelope names without it.

    Returns:
        The body and the sender's raw signing key.

    Raises:
        PeerError: it cannot be read, or certificate or signature do not hold.
    """
    envelope = codec.unpack(Envelope, payload)
    claimed = codec.unpack(cls, envelope.body)
    ring, sender = keys.fork(), envelope.sender if device is None else device
    key = raw_key(learn(ring, sender, claimed.certificate, claimed.intermediate, now))
    body, _ = unseal(cls, payload, kind, ring, sender=sender)
    return body, key


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
