"""The secrets behind masks: how they are derived, committed to, and boxed for committee members."""

from __future__ import annotations

from typing import Final

from vedette_core.crypto.agreement import KeyPair, derive, shared_secret
from vedette_schemas.round import DIGEST_BYTES, Roster, hash_parts
from vedette_schemas.secagg import SECRET_BYTES

_PAIR: Final = b"vedette pair 1"
_BOX: Final = b"vedette box 1"


def pair_secret(own: KeyPair, peer: bytes, transcript: bytes) -> bytes:
    """The 16 bytes that two members share: the same from either side, unrelated for every other transcript.

    Raises:
        PeerError: the peer's key is no point that a secret can be shared with.
    """
    low, high = sorted((own.public, peer))
    return derive(shared_secret(own.private, peer), transcript, _PAIR + low + high, SECRET_BYTES)


def box_key(own: KeyPair, peer: bytes, transcript: bytes, *, sealing: bool) -> bytes:
    """The key of the box that a device seals to a committee member.

    Args:
        own: this side's keys.
        peer: the other side's public key.
        transcript: of the group.
        sealing: whether this side is the device; else it is the member.

    Raises:
        PeerError: see `pair_secret`.
    """
    device, member = (own.public, peer) if sealing else (peer, own.public)
    return derive(shared_secret(own.private, peer), transcript, _BOX + device + member)


def box_context(transcript: bytes, device: str, number: int) -> bytes:
    """What a box is bound to: group, device, and the committee member's number from 1."""
    return hash_parts(b"vedette-box-context-1", transcript, device.encode(), str(number).encode())


def commitment(transcript: bytes, device: str, index: int, secret: bytes) -> bytes:
    """Commitment to a secret; index 0 is a device's own mask, 1… its pairs with the other members by id.

    The secrets are uniform 128-bit values, so that a hash hides them.
    """
    whole = hash_parts(b"vedette-commitment-1", transcript, device.encode(), str(index).encode(), secret)
    return whole[:DIGEST_BYTES]


def others(roster: Roster, device: str) -> tuple[str, ...]:
    """The other members, by id: the order of a device's pair secrets."""
    return tuple(m.device for m in roster.members if m.device != device)
