"""What a lying light node does with its update: everything that a changed client can do, and the protocol lets pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from vedette_core.crypto.agreement import KeyPair
from vedette_core.learning.encoding import Encoding, encode
from vedette_core.learning.layout import Float32
from vedette_core.learning.local_training import TrainingResult
from vedette_core.learning.poisoning import Attack, AttackView, Honest, attack
from vedette_core.learning.round_vector import encoding_of, layout_of, ring_of
from vedette_core.learning.statistics_slots import LocalStatistics
from vedette_core.learning.update_vector import pack_vector
from vedette_core.secagg.participant import mask_update
from vedette_device.training import Contribution
from vedette_schemas.errors import ConfigError
from vedette_schemas.round import Plan, Roster

REACH: Final = 64.0
"""Longest update that `unclipped_levels` tells from a longer one, in clip norms: past it every coordinate is at its
end anyway."""


def attack_on_deltas(name: str) -> Attack:
    """An attack by its name, of those that change what a node sends; light nodes have no labels that could be flipped.

    Raises:
        ConfigError: no such attack, or one that needs labelled rows.
    """
    found = attack(name)
    if name != "none" and type(found).poison_deltas is Honest.poison_deltas:
        raise ConfigError(f"attack: found {name!r}, which changes labelled rows; light nodes have none")
    return found


def poisoned(result: TrainingResult, lie: Attack, clip_norm: float, rng: np.random.Generator) -> TrainingResult:
    """What training made, with the update that the node sends instead; everything it says about it stays honest."""
    return replace(result, delta=lie.poison_deltas(result.delta[None], AttackView(clip_norm), rng)[0])


def unclipped_levels(delta: Float32, encoding: Encoding, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """The levels ``(padded,)`` of a client that does not clip: each coordinate ends where a level does, at ±4.5 C/√d.

    Larger numbers would fit into the ring, but the sum of the group has to stay in its range: a coordinate past its
    own end is one that gives the group away.
    """
    wide = Encoding(encoding.dimension, REACH * encoding.clip_norm, encoding.seed, bits=16)  # rotated alike, and finer
    values = encode(delta, wide, rng).levels * wide.step - wide.limit
    levels: npt.NDArray[np.float64] = np.rint((values + encoding.limit) / encoding.step)
    return np.asarray(np.clip(levels, 0, encoding.level_max), np.uint8)


def contribute_unclipped(
    plan: Plan,
    roster: Roster,
    device: str,
    keys: KeyPair,
    result: TrainingResult,
    *,
    rng: np.random.Generator,
    entropy: Callable[[int], bytes],
) -> Contribution:
    """As `vedette_device.training.contribute`, of a client that does not clip, and says that it did not have to.

    Args:
        plan: the roster's; of 8 bits.
        roster: the group's.
        device: own id.
        keys: those of the own entry in the roster.
        result: what is to be sent.
        rng: for the rounding.
        entropy: for the masks.
    """
    member = roster.member(device)
    assert member is not None, "whoever trains is in the roster"
    encoding = encoding_of(plan, roster)
    levels = unclipped_levels(result.delta, encoding, rng)
    said = LocalStatistics(
        False, plan.update.clip_norm, result.loss_before, result.loss_after, dict(result.activation_ranges)
    )
    vector = pack_vector(levels, member.weight, said, layout_of(plan), encoding, ring_of(plan))
    figures = (result.num_examples, False, result.loss_before, result.loss_after)
    if not plan.masked:
        return Contribution(vector.tobytes(), (), (), *figures)
    masked = mask_update(vector, roster, plan, device, keys, entropy)
    return Contribution(masked.vector, masked.boxes, masked.commitments, *figures)
