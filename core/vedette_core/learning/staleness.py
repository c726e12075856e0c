"""Late updates: whose training came too late for its round keeps the delta and gives it, discounted, to a later one.

What it has of FedBuff: nobody is waited for, what was trained on an older model is not thrown away, and it counts
1/√(1 + τ) of a fresh update, τ being the releases that it is behind. What differs: in FedBuff the server holds the
buffer, knows each update's τ, and discounts. Here the aggregator only sees sums, so that **the device** keeps the delta
and discounts it before it is encoded and masked. The later round's own masks, weights, roster and transcript then apply
as to any other update, and cancel; no mask has to survive a round. The buffer that is flushed is a round, at its
deadline, instead of K updates whenever they are there. As there, the mean is over the weights before the discount.

The aggregator cannot check the discount. A device that leaves it out has the influence of a fresh update, which the
clip norm and the roster's weight bound as ever.

Source: Nguyen et al. 2022, arXiv 2106.06639 (FedBuff; the discount is that of its experiments); Xie et al. 2019,
arXiv 1903.03934, section 5.2 (polynomial discount, here with exponent ½).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import msgpack
import numpy as np

from vedette_core.learning.layout import Float32
from vedette_core.learning.spec import WEIGHTS_MAX
from vedette_schemas.errors import ConfigError, RefusedError

FORMAT: Final = 1
_KEYS: Final = {"format", "network", "model_version", "delta", "num_examples", "loss_before", "loss_after", "ranges"}
RANGES_MAX: Final = 256
"""Tensors of the forward pass whose ranges are kept; networks here have fewer than twenty."""


@dataclass(frozen=True, slots=True)
class BufferedDelta:
    """The result of a training that no round has had yet. It never leaves the device in this form.

    Attributes:
        network: digest of the network's specification, hex.
        model_version: release that it was trained from, ≥ 0.
        delta: ``(weights,)`` float32, finite; trained − received, neither clipped nor discounted.
        num_examples: rows it was trained on, ≥ 1.
        loss_before: mean squared reconstruction error of that release on these rows.
        loss_after: the same after training.
        ranges: (name, low, high) of every tensor of the forward pass, sorted, for the quantiser.

    Raises:
        RefusedError: a delta, loss or range that is not finite: there is nothing to keep.
    """

    network: str
    model_version: int
    delta: Float32 = field(repr=False)
    num_examples: int
    loss_before: float
    loss_after: float
    ranges: tuple[tuple[str, float, float], ...] = ()

    def __post_init__(self) -> None:
        numbers = [self.loss_before, self.loss_after, *(edge for _, *edges in self.ranges for edge in edges)]
        if not (np.isfinite(self.delta).all() and np.isfinite(numbers).all()):
            raise RefusedError("late update: found values that are not finite, expected a finite one", rule="finite")

    @property
    def norm(self) -> float:
        """L2 norm, before clipping."""
        return float(np.linalg.norm(self.delta.astype(np.float64)))

    def to_bytes(self) -> bytes:
        """msgpack, the delta as raw little-endian float32."""
        return bytes(
            msgpack.packb(
                {
                    "format": FORMAT,
                    "network": self.network,
                    "model_version": self.model_version,
                    "delta": self.delta.astype("<f4").tobytes(),
                    "num_examples": self.num_examples,
                    "loss_before": self.loss_before,
                    "loss_after": self.loss_after,
                    "ranges": self.ranges,
                }
            )
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> BufferedDelta:
        """Read `to_bytes`'s form back.

        Raises:
            ConfigError: the store holds something else.
        """
        try:
            plain = msgpack.unpackb(
                data, max_bin_len=4 * WEIGHTS_MAX, max_str_len=64, max_map_len=len(_KEYS), max_array_len=RANGES_MAX
            )
            if set(plain) != _KEYS or plain["format"] != FORMAT:
                raise ValueError("another set of fields or format")
            version, examples = plain["model_version"], plain["num_examples"]
            if type(version) is not int or version < 0 or type(examples) is not int or examples < 1:
                raise ValueError(f"model version {version!r} and {examples!r} examples")
            if type(plain["network"]) is not str or type(plain["delta"]) is not bytes:
                raise ValueError("fields of another type")
            return cls(
                plain["network"],
                version,
                np.frombuffer(plain["delta"], "<f4").astype(np.float32),
                examples,
                float(plain["loss_before"]),
                float(plain["loss_after"]),
                tuple((str(name), float(low), float(high)) for name, low, high in plain["ranges"]),
            )
        except (msgpack.UnpackException, ValueError, TypeError, RefusedError) as fault:
            raise ConfigError(
                f"stored late update: found {fault}, expected format {FORMAT}; delete it: the device trains anew"
            ) from fault


def discount(staleness: int) -> float:
    """What a late update counts of a fresh one: 1/√(1 + τ), in (0, 1].

    Args:
        staleness: τ ≥ 0, releases that it is behind.

    Raises:
        ValueError: a negative τ.
    """
    if staleness < 0:
        raise ValueError(f"discount: found a staleness of {staleness}, expected 0 or more")
    return float((1.0 + staleness) ** -0.5)


def usable(buffered: BufferedDelta, model_version: int, staleness_max: int) -> bool:
    """Whether a round may have it: trained from its model or one at most `staleness_max` releases older.

    After a step back to an older release it is not: it was trained from what was taken back. With a `staleness_max` of
    0 no round has late updates, not even one that starts from the same model.

    Args:
        buffered: the late update.
        model_version: release that the round starts from.
        staleness_max: of the round's plan.
    """
    return staleness_max > 0 and 0 <= model_version - buffered.model_version <= staleness_max


def discounted(
    buffered: BufferedDelta, *, network: str, model_version: int, staleness_max: int, clip_norm: float
) -> Float32:
    """The delta as a later round encodes it: clipped, and then scaled by `discount`.

    In this order: scaled first, an update above the clip norm would be clipped to the same length as a fresh one, and
    its age would cost it nothing.

    Args:
        buffered: the late update.
        network: digest of the network in the round's plan.
        model_version: release that the round starts from.
        staleness_max: of the round's plan.
        clip_norm: of the round's plan, > 0.

    Returns:
        ``(weights,)`` float32 with a norm of at most ``clip_norm · discount(τ)``.

    Raises:
        RefusedError: for another network, too old, or from a release that was taken back: throw it away.
    """
    if buffered.network != network:
        raise RefusedError(
            f"late update: found network {buffered.network[:12]}, expected {network[:12]} of the plan", rule="model"
        )
    if not usable(buffered, model_version, staleness_max):
        raise RefusedError(
            f"late update: found one trained from release {buffered.model_version}, expected at most {staleness_max} "
            f"releases before {model_version}",
            rule="stale",
        )
    norm = buffered.norm
    scale = discount(model_version - buffered.model_version) * (clip_norm / norm if norm > clip_norm else 1.0)
    return (buffered.delta.astype(np.float64) * scale).astype(np.float32)
