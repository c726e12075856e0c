"""Which windows a detector may learn from, which fix its threshold, and which it is judged by.

Everything goes by the order of time, and attacks are in the test stretch alone:

============  =========================================================  ============================================
kind          when                                                       train / calibrate / test
============  =========================================================  ============================================
quarters      three quarters of the benign windows lie before the first  the first half / a quarter / the rest
              attack
prefix        fewer do, but at least `PREFIX_MIN`                        two thirds / one third of those before the
                                                                         first attack / everything behind them
interleaved   hardly any do: the device was attacked from the start      half / a quarter of the *benign* windows; the
                                                                         rest, and every attack, is test
============  =========================================================  ============================================

Benign windows whose input still looks back on an attack are neither learnt from nor counted (label −1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from vedette_schemas.errors import ConfigError

Kind = Literal["quarters", "prefix", "interleaved"]
Labels = npt.NDArray[np.int8]
Places = npt.NDArray[np.intp]

BENIGN, ANOMALOUS, UNJUDGED = 0, 1, -1
PREFIX_MIN: Final = 96
"""Benign windows before the first attack with which a device can start: 64 to learn from, 32 for the threshold."""
BENIGN_MIN: Final = 64
"""Fewest benign windows of a device in all: 32 to learn from, 16 … are too few for any threshold below that."""
CALIBRATION_MIN: Final = 20
"""As `vedette_core.learning.calibration.SCORES_MIN`."""


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Places of windows in their recording, each rising.

    Attributes:
        kind: see the module's text.
        train: benign.
        calibrate: benign.
        test: everything that is judged by, and what lies in between.
    """

    kind: Kind
    train: Places
    calibrate: Places
    test: Places


def guard(
    labels: npt.ArrayLike, entities: Sequence[str], bounds: Sequence[tuple[float, float]], history_s: float
) -> Labels:
    """Labels with −1 for benign windows whose input reaches back into an attack on the same entity.

    Args:
        labels: −1, 0 or 1 a window.
        entities: whose window each is.
        bounds: (start, end) of each, in the order of time.
        history_s: seconds that one input covers.
    """
    guarded = np.array(labels, np.int8)
    until: dict[str, float] = {}
    for i, (entity, (start_s, end_s)) in enumerate(zip(entities, bounds, strict=True)):
        if guarded[i] == ANOMALOUS:
            until[entity] = end_s
        elif guarded[i] == BENIGN and 0.0 <= start_s - until.get(entity, -np.inf) < history_s - (end_s - start_s):
            guarded[i] = UNJUDGED
    return guarded


def split(labels: Labels, *, device: str = "") -> Split:
    """Split a recording by its guarded labels; the values of its windows are not looked at.

    Raises:
        ConfigError: too few benign windows.
    """
    benign = np.flatnonzero(labels == BENIGN)
    attacks = np.flatnonzero(labels == ANOMALOUS)
    if len(benign) < BENIGN_MIN:
        raise ConfigError(f"{device}: found {len(benign)} benign windows, expected at least {BENIGN_MIN}")
    before = int(np.searchsorted(benign, attacks[0])) if len(attacks) else len(benign)
    half, three_quarters = len(benign) // 2, len(benign) * 3 // 4
    if before >= three_quarters or before < PREFIX_MIN:
        kind: Kind = "quarters" if before >= three_quarters else "interleaved"
        train, calibrate = benign[:half], benign[half:three_quarters]
    else:
        kind = "prefix"
        train, calibrate = benign[: before * 2 // 3], benign[before * 2 // 3 : before]
    if len(calibrate) < CALIBRATION_MIN:  # of 64 benign windows it may be 16: take them from what is learnt from
        moved = CALIBRATION_MIN - len(calibrate)
        train, calibrate = train[:-moved], np.concatenate([train[-moved:], calibrate])
    taken = np.zeros(len(labels), bool)
    taken[train], taken[calibrate] = True, True
    rest = np.flatnonzero(~taken)
    # What was neither benign nor an attack, before the last calibration window, is nobody's.
    test = rest[(rest > calibrate[-1]) | (labels[rest] == ANOMALOUS)]
    return Split(kind, train, calibrate, test)


def left_out(devices: int, most: int) -> tuple[int, ...]:
    """Places of at most ``most`` devices, evenly spread, that a model is asked about without having seen them."""
    if devices < 3 or most < 1:
        return ()
    return tuple(sorted({int(i) for i in np.linspace(0, devices - 1, min(most, devices)).round()}))
