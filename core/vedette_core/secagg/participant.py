"""A participant's only message: one masked vector, its secrets' shares boxed for the committee, and commitments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vedette_core.crypto.agreement import NONCE_BYTES, KeyPair, seal_box
from vedette_core.crypto.masks import MaskExpander
from vedette_core.crypto.shamir import split
from vedette_core.learning.round_vector import ring_of
from vedette_core.secagg.membership import committee_of
from vedette_core.secagg.parameters import shares_needed
from vedette_core.secagg.secrets import box_context, box_key, commitment, pair_secret
from vedette_schemas.round import Plan, Roster, transcript_hash
from vedette_schemas.secagg import SECRET_BYTES

Entropy = Callable[[int], bytes]
"""So many fresh random bytes, known to nobody else."""


@dataclass(frozen=True, slots=True)
class MaskedUpload:
    """What leaves the device; fields as in `vedette_schemas.round.Upload`."""

    vector: bytes = field(repr=False)
    boxes: tuple[bytes, ...] = field(repr=False)
    commitments: tuple[bytes, ...] = field(repr=False)


def mask_update(
    vector: npt.NDArray[np.unsignedinteger[Any]],
    roster: Roster,
    plan: Plan,
    device: str,
    keys: KeyPair,
    entropy: Entropy,
) -> MaskedUpload:
    """Mask one vector for one roster.

    Must happen once for a transcript: two vectors under one mask would show their difference. Whoever calls writes the
    result down before any of it leaves, and sends the same bytes ever after.

    Args:
        vector: ``(n,)`` little-endian elements of the plan's ring; it is changed in place and must not be used again.
        roster: checked (`vedette_core.secagg.membership`).
        plan: the roster's, verified; masked.
        device: own id, a member of the roster.
        keys: those of the own entry in the roster.
        entropy: the device's own randomness.

    Raises:
        PeerError: another member's key is no point that a secret can be shared with.
        ValueError: the vector is of another ring, or the keys are not those of the own entry.
    """
    entry = roster.member(device)
    if entry is None or entry.epk != keys.public:
        raise ValueError(f"round {roster.round}.{roster.attempt}: {device} is not in the roster with this key")
    transcript = transcript_hash(roster)
    expander = MaskExpander(len(vector), ring_of(plan))
    own = entropy(SECRET_BYTES)
    secrets = [own]
    expander.add(vector, own, transcript)
    for member in roster.members:
        if member.device == device:
            continue
        secret = pair_secret(keys, member.epk, transcript)
        secrets.append(secret)
        # The two of a pair see the same order of their keys, so that one adds what the other subtracts.
        (expander.add if keys.public < member.epk else expander.subtract)(vector, secret, transcript)
    committee = committee_of(roster, plan)
    shares = split(b"".join(secrets), shares_needed(plan.groups, len(committee)), len(committee), entropy)
    boxes = tuple(
        seal_box(
            box_key(keys, member.epk, transcript, sealing=True),
            share,
            box_context(transcript, device, number),
            entropy(NONCE_BYTES),
        )
        for number, (member, share) in enumerate(zip(committee, shares, strict=True), start=1)
    )
    commitments = tuple(commitment(transcript, device, index, secret) for index, secret in enumerate(secrets))
    return MaskedUpload(vector.tobytes(), boxes, commitments)
