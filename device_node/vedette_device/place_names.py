"""Which names stand behind a hashed column, so that an alert can say them.

A column of hashed counts has no meaning that a person knows. The names and counts of a window are kept until it has
been judged; how often each name usually occurs is remembered from the windows that were unremarkable. All of it stays
on the device.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from vedette_core.learning.hashing import FeatureHasher
from vedette_device.alert_record import ScoredWindow
from vedette_device.features.windows import Window
from vedette_schemas.alert import FeatureReason
from vedette_schemas.errors import PeerError

NAMES_KEPT_MAX: Final = 1_024
"""Names whose usual counts are remembered; the one that was absent for longest gives way."""
WINDOWS_KEPT: Final = 128
"""Windows behind a usual count, two hours: half a megabyte with all names."""
WINDOWS_MIN: Final = 8
"""Before so many windows nothing is said to be usual."""
WAITING_MAX: Final = 2_048
"""Windows that wait to be judged; one read of a source brings no more."""
UNREMARKABLE_P: Final = 0.05
"""A window with a smaller p-value is not remembered, or what an alert is about would be usual after two hours."""
USUAL_QUANTILES: Final = (0.05, 0.5, 0.95)
NAME_SHOWN_MAX: Final = 60
"""Characters of a name in an alert, which has 1 kB."""


class PlaceNames:
    """Names of the recent windows of one detector, and their usual counts.

    Args:
        hasher: puts names into columns.
    """

    def __init__(self, hasher: FeatureHasher) -> None:
        self._hasher = hasher
        self._place = {column: index for index, column in enumerate(hasher.columns)}
        self._waiting: OrderedDict[float, Mapping[str, int]] = OrderedDict()
        # Row of each name in the table, the name seen longest ago first.
        self._slots: OrderedDict[str, int] = OrderedDict()
        self._table = np.zeros((NAMES_KEPT_MAX, WINDOWS_KEPT), np.float32)
        self._windows = 0

    def __len__(self) -> int:
        return len(self._slots)

    def hold(self, end_s: float, counts: Mapping[str, int]) -> None:
        """Keep a window's counts until it has been judged."""
        self._waiting[end_s] = counts
        if len(self._waiting) > WAITING_MAX:
            self._waiting.popitem(last=False)

    def take(self, windows: Sequence[Window], scored: Sequence[ScoredWindow], *, is_armed: bool) -> list[ScoredWindow]:
        """Name the reasons of what was scored, and remember what was unremarkable.

        Args:
            windows: those that the detector was fed.
            scored: what it made of them, perhaps of none.
            is_armed: whether it scores by now: what it then left out it had seen already, and perhaps half of it.

        Returns:
            The same scores, with names in place of columns where they are known.
        """
        counts = {window.end_s: self._waiting.pop(window.end_s, {}) for window in windows}
        named = [self._named(each, counts.get(each.end_s, {})) for each in scored]
        unremarkable = {each.end_s for each in scored if each.p_value > UNREMARKABLE_P} if is_armed else counts.keys()
        for end_s, of_window in counts.items():
            if of_window and end_s in unremarkable:
                self._remember(of_window)
        return named

    def _named(self, window: ScoredWindow, counts: Mapping[str, int]) -> ScoredWindow:
        if not counts or self._windows < WINDOWS_MIN or not window.features:
            return window
        by_place: dict[int, list[str]] = {}
        for name in (*self._slots, *(name for name in counts if name not in self._slots)):
            by_place.setdefault(self._hasher.place(name)[0], []).append(name)
        features = tuple(
            self._reason(reason, by_place.get(self._place.get(reason.name, -1), []), counts)
            for reason in window.features
        )
        return replace(window, features=features)

    def _reason(self, reason: FeatureReason, names: Sequence[str], counts: Mapping[str, int]) -> FeatureReason:
        """The reason with the name whose count is furthest from its usual one, in logarithms, as it was scored."""
        best: tuple[float, FeatureReason] | None = None
        for name in names:
            value = float(counts.get(name, 0))
            low, middle, high = self._usual(name)
            distance = abs(np.log1p(value) - np.log1p(middle))
            if best is None or distance > best[0]:
                usual = (_rounded(low), _rounded(high))
                named = FeatureReason(name=_shown(name), value=_rounded(value), usual=usual, share=reason.share)
                best = (distance, named)
        return best[1] if best is not None else reason

    def _usual(self, name: str) -> tuple[float, float, float]:
        slot = self._slots.get(name)
        if slot is None:
            return 0.0, 0.0, 0.0
        low, middle, high = np.quantile(self._table[slot, : self._windows], USUAL_QUANTILES).tolist()
        return low, middle, high

    def _remember(self, counts: Mapping[str, int]) -> None:
        at = self._windows % WINDOWS_KEPT
        self._table[:, at] = 0.0
        for name, count in counts.items():
            slot = self._slots.get(name)
            if slot is None:
                slot = self._slots.popitem(last=False)[1] if len(self._slots) >= NAMES_KEPT_MAX else len(self._slots)
                self._table[slot] = 0.0
                self._slots[name] = slot
            self._slots.move_to_end(name)
            self._table[slot, at] = count
        self._windows += 1

    def to_state(self) -> dict[str, Any]:
        """What is remembered, as plain data for msgpack; windows that wait are not in it."""
        rows = self._table[list(self._slots.values())]
        return {"names": list(self._slots), "windows": self._windows, "table": rows.astype("<f4").tobytes()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `to_state`'s form.

        Raises:
            PeerError: another form; what was remembered stays.
        """
        try:
            known = [str(name) for name in state["names"]]
            table = np.frombuffer(state["table"], "<f4").reshape(len(known), WINDOWS_KEPT)
            windows = int(state["windows"])
            if len(set(known)) != len(known) or len(known) > NAMES_KEPT_MAX or windows < 0:
                raise ValueError(f"{len(known)} names of {windows} windows")
            if not np.isfinite(table).all() or (table < 0).any():
                raise ValueError("counts that are negative or not finite")
        except (KeyError, TypeError, ValueError) as fault:
            raise PeerError(f"names of places: found {fault!r}, expected what `to_state` gives") from fault
        self._slots = OrderedDict((name, slot) for slot, name in enumerate(known))
        self._table[:] = 0.0
        self._table[: len(known)] = table
        self._windows = windows


def _shown(name: str) -> str:
    """A name as an alert may carry it: programs call themselves as they like."""
    return "".join(c if c.isprintable() else "?" for c in name[:NAME_SHOWN_MAX])


def _rounded(value: float) -> float:
    """Four significant digits, as of all reasons."""
    return float(f"{value:.4g}")
