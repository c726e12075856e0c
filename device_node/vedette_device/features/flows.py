"""Which flows are new: a bounded memory of the flows that were seen lately."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FLOW_IDLE_WINDOWS = 24
"""A flow that was silent for this many windows (2 min at 5 s) counts as new again: UDP bindings of home routers last
30 to 120 s, and MQTT keep-alives, mostly 60 s, must not look like new connections."""

FLOWS_MAX = 65_536
"""Flows remembered; behind that, those seen longest ago are forgotten first. 1 MB."""

_LONG_AGO = -(1 << 40)


class FlowTable:
    """Remembers in which window each flow was last seen.

    Args:
        idle_windows: windows of silence after which a flow is new again.
        flows_max: most flows kept.
    """

    def __init__(self, *, idle_windows: int = FLOW_IDLE_WINDOWS, flows_max: int = FLOWS_MAX) -> None:
        self._idle_windows, self._flows_max = idle_windows, flows_max
        self._keys = np.zeros(0, dtype=np.uint64)
        self._last = np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._keys)

    def mark(self, flows: NDArray[np.uint64], windows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Note flows as seen, and tell which of them are new.

        Args:
            flows: ``(n,) uint64``, keys of flows.
            windows: ``(n,) int64``, index of the window in which each was seen; no pair comes twice, and no window lies
                before one of an earlier call.

        Returns:
            ``(n,) bool``, in the order of the arguments.
        """
        if not len(flows):
            return np.zeros(0, dtype=np.bool_)
        order = np.lexsort((windows, flows))
        keys, seen = flows[order], windows[order]
        first = np.ones(len(keys), dtype=np.bool_)
        first[1:] = keys[1:] != keys[:-1]
        before = np.empty_like(seen)
        before[1:] = seen[:-1]
        before[first] = self._last_seen(keys[first])
        new_in_order = seen - before > self._idle_windows
        last = np.append(first[1:], True)
        self._remember(keys[last], seen[last])
        new = np.empty(len(keys), dtype=np.bool_)
        new[order] = new_in_order
        return new

    def _last_seen(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        if not len(self._keys):
            return np.full(len(keys), _LONG_AGO, dtype=np.int64)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[at] == keys, self._last[at], _LONG_AGO)

    def _remember(self, keys: NDArray[np.uint64], seen: NDArray[np.int64]) -> None:
        """Merge sorted, distinct keys into the table."""
        kept = ~np.isin(self._keys, keys, assume_unique=True)
        kept &= seen.max() - self._last <= self._idle_windows
        all_keys = np.concatenate([self._keys[kept], keys])
        all_last = np.concatenate([self._last[kept], seen])
        if len(all_keys) > self._flows_max:
            newest = np.argsort(all_last, kind="stable")[-self._flows_max :]
            all_keys, all_last = all_keys[newest], all_last[newest]
        order = np.argsort(all_keys)
        self._keys, self._last = all_keys[order], all_last[order]
