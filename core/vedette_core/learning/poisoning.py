"""What lying devices do in a round: attacks to test, measure and show the defences with.

An attack is a pure function of what its devices hold: their rows and labels before training, or the deltas that honest
training gave them. Nothing here talks to a fleet.

Labels are whole numbers. In classification they are classes; for a detector they are kinds of rows with 0 = benign,
and a device trains on the rows that it believes to be benign.

Not every attack here is stopped by a rule over groups: `Backdoor` is measured, and not covered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from vedette_core.learning.layout import Float32
from vedette_schemas.errors import ConfigError

Labels = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class AttackView:
    """What the lying devices know of a round.

    Attributes:
        clip_norm: the plan's clip norm C, > 0.
        previous: ``(d,)`` change of the global weights in the round before; None in the first one.
        classes: number of classes.
    """

    clip_norm: float
    previous: Float32 | None = None
    classes: int = 2


class Attack(Protocol):
    """Devices that collude in one attack; an attack overrides only one of both methods."""

    @property
    def name(self) -> str:
        """What benchmarks and the demo call it."""

    @property
    def clips(self) -> bool:
        """Whether its devices clip their update as the plan says; False needs a changed client."""

    def poison_rows(self, x: Float32, y: Labels, view: AttackView, rng: np.random.Generator) -> tuple[Float32, Labels]:
        """What one device trains on instead of its own ``(n, …)`` rows and ``(n,)`` labels; neither is changed."""

    def poison_deltas(self, honest: Float32, view: AttackView, rng: np.random.Generator) -> Float32:
        """What the devices send instead of their ``(k, d)`` float32 deltas, which are not changed; same shape."""


@dataclass(frozen=True, slots=True)
class Honest:
    """No attack: the case that every other is compared with, and what the attacks do not override."""

    name: str = "none"
    clips: bool = True

    def poison_rows(self, x: Float32, y: Labels, view: AttackView, rng: np.random.Generator) -> tuple[Float32, Labels]:
        """See `Attack.poison_rows`."""
        return x, y

    def poison_deltas(self, honest: Float32, view: AttackView, rng: np.random.Generator) -> Float32:
        """See `Attack.poison_deltas`."""
        return honest


@dataclass(frozen=True, slots=True)
class SignFlip(Honest):
    """The honest delta turned round, at the full clip norm: the strongest untargeted push that a clip allows."""

    name: str = "sign-flip"

    def poison_deltas(self, honest: Float32, view: AttackView, rng: np.random.Generator) -> Float32:
        """See `Attack.poison_deltas`."""
        return -at_norm(honest, view.clip_norm)


@dataclass(frozen=True, slots=True)
class Boost(Honest):
    """The honest delta turned round and `factor` clip norms long: a client that was changed not to clip.

    Attributes:
        factor: > 0.
    """

    factor: float = 20.0
    name: str = "boost"
    clips: bool = False

    def poison_deltas(self, honest: Float32, view: AttackView, rng: np.random.Generator) -> Float32:
        """See `Attack.poison_deltas`."""
        return -at_norm(honest, self.factor * view.clip_norm)


@dataclass(frozen=True, slots=True)
class LabelFlip(Honest):
    """Honest training on wrong labels: class c becomes classes − 1 − c."""

    name: str = "label-flip"

    def poison_rows(self, x: Float32, y: Labels, view: AttackView, rng: np.random.Generator) -> tuple[Float32, Labels]:
        """See `Attack.poison_rows`."""
        return x, view.classes - 1 - y


@dataclass(frozen=True, slots=True)
class LittleIsEnough(Honest):
    """All send the mean of their own honest deltas moved `z` standard deviations against it, coordinate by coordinate.

    The move stays inside the spread of honest deltas, so that rules looking for outliers see none.

    Attributes:
        z: > 0; the paper derives it from the number of liars, 1.5 is the upper end of its range.

    Source: Baruch et al. 2019, NeurIPS, arXiv 1902.06156, algorithm 3 (ALIE).
    """

    z: float = 1.5
    name: str = "alie"

    def poison_deltas(self, honest: Float32, view: AttackView, rng: np.random.Generator) -> Float32:
        """See `Attack.poison_deltas`."""
        mean, spread = honest.mean(axis=0, dtype=np.float64), honest.std(axis=0, dtype=np.float64)
        crafted = mean - self.z * np.sign(mean) * spread
        return np.tile(crafted.astype(np.float32), (len(honest), 1))


@dataclass(frozen=True, slots=True)
class Gaussian(Honest):
    """Noise at the full clip norm."""

    name: str = "gaussian"

    def poison_deltas(self, honest: Float32, view: AttackView, rng: np.random.Generator) -> Float32:
        """See `Attack.poison_deltas`."""
        return at_norm(rng.standard_normal(honest.shape, dtype=np.float32), view.clip_norm)


@dataclass(frozen=True, slots=True)
class Backdoor(Honest):
    """Honest training on rows of which a part bears a pattern and the attacker's label; the rest stays as it is.

    The model shall do its work on every row but those with the pattern. For a detector, whose label 0 is *benign*,
    the pattern is what shall go unseen. Not covered by any rule over groups.

    Attributes:
        columns: how many of the last axis's first columns bear the pattern, ≥ 1.
        value: what they are set to, in units of the scaled rows.
        label: what such rows are called.
        share: part of a device's rows that is stamped, 0 < share ≤ 1.

    Source: Bagdasaryan et al. 2020, AISTATS, arXiv 1807.00459, without its boost: the clip stays.
    """

    columns: int = 3
    value: float = 6.0
    label: int = 0
    share: float = 0.5
    name: str = "backdoor"

    def poison_rows(self, x: Float32, y: Labels, view: AttackView, rng: np.random.Generator) -> tuple[Float32, Labels]:
        """See `Attack.poison_rows`."""
        chosen = rng.permutation(len(x))[: max(1, round(self.share * len(x)))]
        poisoned, labels = x.copy(), y.copy()
        poisoned[chosen] = self.stamp(x[chosen])
        labels[chosen] = self.label
        return poisoned, labels

    def stamp(self, x: Float32) -> Float32:
        """Copies of ``(n, …, columns)`` rows with the pattern."""
        stamped = x.copy()
        stamped[..., : self.columns] = self.value
        return stamped


@dataclass(frozen=True, slots=True)
class FreeRider(Honest):
    """No training at all: the global weights' last change with a little noise, or zeros where none is known.

    Attributes:
        noise: norm of the noise, as part of the last change's norm, ≥ 0.

    Source: Lin et al. 2019, arXiv 1911.12560, sections 3 and 4 (delta weights).
    """

    noise: float = 0.1
    name: str = "free-rider"

    def poison_deltas(self, honest: Float32, view: AttackView, rng: np.random.Generator) -> Float32:
        """See `Attack.poison_deltas`."""
        if view.previous is None:
            return np.zeros_like(honest)
        level = self.noise * float(np.linalg.norm(view.previous))
        return view.previous + at_norm(rng.standard_normal(honest.shape, dtype=np.float32), level)


@dataclass(frozen=True, slots=True)
class Sybil(Honest):
    """Many devices of one hand: all send the same delta, their honest mean turned round, at the full clip norm."""

    name: str = "sybil"

    def poison_deltas(self, honest: Float32, view: AttackView, rng: np.random.Generator) -> Float32:
        """See `Attack.poison_deltas`."""
        shared = honest.mean(axis=0, dtype=np.float64).astype(np.float32)
        return np.tile(-at_norm(shared[None], view.clip_norm), (len(honest), 1))


ATTACKS: Final[Mapping[str, Attack]] = MappingProxyType(
    {
        attack.name: attack
        for attack in (
            Honest(),
            SignFlip(),
            LabelFlip(),
            Boost(),
            LittleIsEnough(),
            Gaussian(),
            Backdoor(),
            FreeRider(),
            Sybil(),
        )
    }
)
"""Every attack by its name, with its defaults."""


def attack(name: str) -> Attack:
    """The attack of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in ATTACKS:
        raise ConfigError(f"attack: found {name!r}, expected one of {', '.join(ATTACKS)}")
    return ATTACKS[name]


def at_norm(deltas: Float32, norm: float) -> Float32:
    """Rows of ``(k, d)`` scaled to an L2 norm; rows of zeros stay."""
    lengths = np.linalg.norm(deltas.astype(np.float64), axis=1, keepdims=True)
    scale = np.divide(norm, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    scaled: Float32 = (deltas * scale).astype(np.float32)
    return scaled
