"""What the same fleet would have learnt without a defence: the plain mean of the same encoded updates, round by round.

No protocol is run for it: nodes, rows, lies, plan and encoding are the scenario's; groups do not matter to a mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from vedette.demo.lies import attack_on_deltas, poisoned, unclipped_levels
from vedette_core.learning.encoding import Encoding, aggregate, encode
from vedette_core.learning.layout import Float32
from vedette_core.learning.network import Network
from vedette_device.training import train_locally
from vedette_schemas.round import Plan

SEED: Final = 7


def plain_mean(
    plan: Plan, network: Network, weights: Float32, rows: Sequence[Float32], attacks: Sequence[str], rounds: int
) -> Float32:
    """The weights after some rounds of federated averaging, every node in every round and each counting the same.

    Args:
        plan: the scenario's.
        network: the scenario's.
        weights: ``(dimension,)`` float32 that the first round starts from.
        rows: of each node.
        attacks: of each node, by name.
        rounds: how many.
    """
    rng = np.random.default_rng(SEED)
    lies = [attack_on_deltas(name) for name in attacks]
    for number in range(rounds):
        encoding = Encoding(plan.dimension, plan.update.clip_norm, f"plain mean {number}".encode(), plan.update.bits)
        levels: list[npt.NDArray[np.uint8]] = []
        for x, lie in zip(rows, lies, strict=True):
            result = train_locally(plan, network, weights, x, rng)
            if lie.name != "none":
                result = poisoned(result, lie, plan.update.clip_norm, rng)
            if lie.clips:
                levels.append(np.asarray(encode(result.delta, encoding, rng).levels, np.uint8))
            else:
                levels.append(unclipped_levels(result.delta, encoding, rng))
        weights = weights + aggregate(np.stack(levels), np.ones(len(levels), np.int64), encoding)
    return weights
