"""Sets to evaluate, as windows with labels: the public ones of the developer pack, of which nothing is part of this
project, and the recordings that are shipped (`lab_sets`).

Columns that are never features: addresses, ports, TTL, times, counters of rows, and whatever was written by those who
labelled. Where a set has no time, that is said and nothing is reported that needs one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from vedette_device.features.windows import Window
from vedette_schemas.errors import ConfigError
from vedette_schemas.features import FeatureSchema

Suite = Literal["network", "sensor", "behaviour"]


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """One device of a set.

    Attributes:
        device: its name in the pack.
        windows: in the order of time.
        labels: ``(n,) int8`` 1 anomalous, 0 benign, −1 neither (silence within an attack capture).
        truth: columns that were tampered with, a set a window; empty where nobody knows.
        breaks: times, rising, at which another capture begins that was joined to the one before. In between a gateway
            would have seen other devices, by whose windows alerts close.
    """

    device: str
    windows: tuple[Window, ...]
    labels: npt.NDArray[np.int8]
    truth: tuple[frozenset[str], ...] = ()
    breaks: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.windows) != len(self.labels):
            raise ValueError(f"{self.device}: found {len(self.labels)} labels of {len(self.windows)} windows")


@dataclass(frozen=True, slots=True, eq=False)
class Fleet:
    """Devices of one schema: what can learn together.

    Attributes:
        name: of the set, or of the part of it that has these columns.
        schema: of every window.
        recordings: a device each.
    """

    name: str
    schema: FeatureSchema
    recordings: tuple[Recording, ...]


@dataclass(frozen=True, slots=True, eq=False)
class DataSet:
    """A set of the pack.

    Attributes:
        name: as in the pack.
        suite: use case.
        fleets: one, or several where devices measure different things.
        timed: whether rows have an order in time; otherwise there are no events, delays and days.
        notes: what a reader of its figures must know.
        constructed: whether what is anomalous was put together of recordings that were made apart.
    """

    name: str
    suite: Suite
    fleets: tuple[Fleet, ...]
    timed: bool = True
    notes: tuple[str, ...] = field(default=())
    constructed: bool = False


Loader = Callable[[Path], DataSet]


def loaders(suite: Suite) -> Mapping[str, Loader]:
    """The sets of a suite, by name, in the order in which they are reported."""
    from vedette.evaluation import behaviour_sets, lab_sets, network_sets, packet_sets, sensor_sets

    found: dict[Suite, Mapping[str, Loader]] = {
        "sensor": {**sensor_sets.LOADERS, **lab_sets.SENSOR},
        "network": {**network_sets.LOADERS, **packet_sets.LOADERS, **lab_sets.NETWORK},
        "behaviour": behaviour_sets.LOADERS,
    }
    return found[suite]


def find(folder: Path, pattern: str) -> list[Path]:
    """Files of the pack by a pattern, in the order of their names.

    Raises:
        ConfigError: none.
    """
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise ConfigError(f"{folder}: found no {pattern}, expected the developer pack's layout; see --data")
    return paths


PERIOD_ROWS: Final = 1.0
"""Seconds between rows of a set that tells no time: a number, so that there is an order."""
