"""From packets to feature windows of local devices.

A *local device* (the entity) is an address inside the configured networks that has sent something. An address that is
only spoken to is none: else one scan of an empty network would fill the table with devices that do not exist.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vedette_device.features.addresses import PRIVATE_NETWORKS, LocalNetworks, address_keys, address_text, is_ipv4
from vedette_device.features.flows import FlowTable
from vedette_device.features.network_columns import Groups, aggregate, answer_keys
from vedette_device.features.network_packets import (
    SOURCE_LOCAL,
    TARGET_LOCAL,
    OpenPackets,
    condense,
    locate,
)
from vedette_device.features.windows import ENTITIES_MAX_DEFAULT, Window
from vedette_device.sources.packets import PacketBatch
from vedette_schemas.errors import ConfigError
from vedette_schemas.features import NETWORK_FLOWS

TOLERANCE_S_DEFAULT = 0.5
"""How long a window stays open behind its end: packets of several queues or of a merged capture arrive out of order by
some milliseconds, and a SYN at the window's edge gets its answer within a round trip."""

IDLE_WINDOWS_DEFAULT = 120
"""Silent windows (10 min at 5 s) for which a known device still gets a row of zeros: longer than the pauses of devices
that report every five minutes, so that their past stays whole, and short enough that a device that left is forgotten
and its place is free. Silence is itself worth scoring: a device that was cut off or crashed looks like that."""

PACKETS_WINDOW_MAX = 1 << 18
"""Most packets of one window: 52,000 a second at 5 s. Behind that they are counted, not kept. Working off a full window
takes some 85 MB, which a gateway can spare; and a window with a quarter of a million packets is anomalous whatever
came after."""

IPV6_SENDERS_MAX = 16_384
"""Local IPv6 senders remembered while a window is open; more can only be forged ones."""

STEP_BACK_S = 60.0
STEP_PACKETS = 32
"""So many packets in succession, all this far before the newest time, mean that the clock was set back (or that another
capture follows): the windower then starts anew, instead of calling everything late for ever."""

_NS = 1_000_000_000
_NEVER = -(1 << 62)

COUNTERS = (
    "packets",
    "windows",
    "zero_windows",
    "not_local",
    "late",
    "window_full",
    "entity_limit",
    "silent_target",
    "clock_steps",
)
"""What ``NetworkWindower.counters`` holds; from ``not_local`` on, packets that entered no window
(``clock_steps`` counts events)."""


@dataclass(slots=True)
class _Device:
    name: str
    last_window: int


class NetworkWindower:
    """Cuts traffic into tumbling windows, one row of ``NETWORK_FLOWS`` a local device and window.

    Windows are aligned to whole multiples of their length in event time; only the packets' own time counts, and how
    they were cut into batches changes nothing. The rows of one window come together, in the order in which the devices
    first sent something.

    Args:
        local_networks: networks in CIDR form whose devices are watched.
        tolerance_s: how far packets may arrive out of order; at most one window.
        idle_windows: silent windows of a known device that give a row of zeros.
        entities_max: most devices; packets of further ones are counted as ``entity_limit``.
        packets_window_max: most packets of one window that are kept.

    Raises:
        ConfigError: a network or a number that cannot be.
    """

    def __init__(
        self,
        local_networks: Sequence[str] = PRIVATE_NETWORKS,
        *,
        tolerance_s: float = TOLERANCE_S_DEFAULT,
        idle_windows: int = IDLE_WINDOWS_DEFAULT,
        entities_max: int = ENTITIES_MAX_DEFAULT,
        packets_window_max: int = PACKETS_WINDOW_MAX,
    ) -> None:
        self.schema = NETWORK_FLOWS
        if not 0 <= tolerance_s <= self.schema.window_s:
            raise ConfigError(f"reordering tolerance is {tolerance_s} s, expected 0 to {self.schema.window_s}")
        if idle_windows < 0 or entities_max < 1 or packets_window_max < 1:
            raise ConfigError(
                f"idle_windows {idle_windows}, entities_max {entities_max}, packets_window_max {packets_window_max}: "
                "expected at least 0, 1 and 1"
            )
        self._networks = LocalNetworks(local_networks)
        self._window_ns = round(self.schema.window_s * _NS)
        self._tolerance_ns = round(tolerance_s * _NS)
        self._idle_windows, self._entities_max = idle_windows, entities_max
        self._packets_window_max = packets_window_max
        self._counters: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
        self._zeros = np.zeros(len(self.schema.columns), dtype=np.float32)
        self._zeros.flags.writeable = False
        self._forget()

    def _forget(self) -> None:
        self._newest_ns = _NEVER
        self._boundary = _NEVER
        """Index of the first window that is not closed."""
        self._next_window: int | None = None
        self._open: list[OpenPackets] = []
        self._window_packets: Counter[int] = Counter()
        self._devices: dict[int, _Device] = {}
        self._ipv6_halves: dict[int, tuple[int, int]] = {}
        self._flows = FlowTable()
        self._far_run = 0

    def push(self, batch: PacketBatch) -> list[Window]:
        """Take packets in the order of arrival; return the windows that became complete."""
        windows: list[Window] = []
        while len(batch):
            step = self._step_back_at(batch.time_ns)
            if step is None:
                return windows + self._take(batch)
            windows += self._take(batch.take(slice(0, step)))
            windows += self.flush()
            self._counters["clock_steps"] += 1
            self._forget()
            batch = batch.take(slice(step, None))
        return windows

    def advance(self, now_s: float) -> list[Window]:
        """Let time pass without packets: close the windows that ended ``tolerance_s`` before ``now_s``.

        Args:
            now_s: seconds since the epoch, on the clock that stamps the packets.
        """
        if self._newest_ns == _NEVER or not math.isfinite(now_s):
            return []
        self._newest_ns = max(self._newest_ns, round(now_s * _NS))
        return self._close_until((self._newest_ns - self._tolerance_ns) // self._window_ns)

    def flush(self) -> list[Window]:
        """Close all windows that have packets, at the end of a stream. The last one may be shorter than the others."""
        if self._newest_ns == _NEVER:
            return []
        last = max((int(part.time_ns.max()) // self._window_ns for part in self._open), default=self._boundary - 1)
        return self._close_until(last + 1)

    def counters(self) -> Mapping[str, int]:
        """Counts by the names in ``COUNTERS``."""
        return dict(self._counters)

    @property
    def entities(self) -> tuple[str, ...]:
        """Devices known at present."""
        return tuple(device.name for device in self._devices.values())

    def _step_back_at(self, time_ns: NDArray[np.int64]) -> int | None:
        """Index of the packet with which a step of the clock counts as proved."""
        newest = np.maximum(np.maximum.accumulate(time_ns), self._newest_ns)
        far = time_ns < newest - round(STEP_BACK_S * _NS)
        if not far.any():
            self._far_run = 0
            return None
        index = np.arange(len(far))
        last_near = np.maximum.accumulate(np.where(far, -1 - self._far_run, index))
        proved = np.flatnonzero(far & (index - last_near >= STEP_PACKETS))
        if len(proved):
            return int(proved[0])
        self._far_run = int(index[-1] - last_near[-1])
        return None

    def _take(self, batch: PacketBatch) -> list[Window]:
        if not len(batch):
            return []
        time_ns = batch.time_ns
        newest = np.maximum(np.maximum.accumulate(time_ns), self._newest_ns)
        newest_before = np.append(self._newest_ns, newest[:-1])
        window = time_ns // self._window_ns
        # Late is what belongs to a window that the packets before it have closed.
        late = (window < (newest_before - self._tolerance_ns) // self._window_ns) | (window < self._boundary)
        flags = locate(batch, self._networks)
        local = (flags & (SOURCE_LOCAL | TARGET_LOCAL)) != 0
        self._counters["packets"] += len(batch)
        self._counters["late"] += int(late.sum())
        self._counters["not_local"] += int((~local & ~late).sum())
        keep = local & ~late
        self._leave_out_overfull(window, keep)
        if keep.any():
            start_ns = window * self._window_ns
            # The window before is still open, so an answer that comes now can still count there.
            early = (time_ns - start_ns < self._tolerance_ns) & (newest_before < start_ns + self._tolerance_ns)
            chosen = slice(None) if keep.all() else np.flatnonzero(keep)
            kept = batch.take(chosen)
            self._open.append(condense(kept, flags[chosen], early[chosen]))
            self._note_ipv6_senders(kept, flags[chosen])
        self._newest_ns = int(newest[-1])
        return self._close_until((self._newest_ns - self._tolerance_ns) // self._window_ns)

    def _leave_out_overfull(self, window: NDArray[np.int64], keep: NDArray[np.bool_]) -> None:
        """Take packets out of ``keep`` (in place) that would make a window too large."""
        indices, counts = np.unique(window[keep], return_counts=True)
        for index, count in zip(indices.tolist(), counts.tolist(), strict=True):
            room = self._packets_window_max - self._window_packets[index]
            if count > room:
                surplus = np.flatnonzero(keep & (window == index))[room:]
                keep[surplus] = False
                self._counters["window_full"] += len(surplus)
            self._window_packets[index] += min(count, room)

    def _note_ipv6_senders(self, batch: PacketBatch, flags: NDArray[np.int32]) -> None:
        """Remember how local IPv6 senders are written: their keys do not tell."""
        senders = np.flatnonzero(((flags & SOURCE_LOCAL) != 0) & ~is_ipv4(batch.source_hi, batch.source_lo))
        if len(senders):
            hi, lo = batch.source_hi[senders], batch.source_lo[senders]
            keys, index = np.unique(address_keys(hi, lo), return_index=True)
            for key, at in zip(keys.tolist(), index.tolist(), strict=True):
                if len(self._ipv6_halves) < IPV6_SENDERS_MAX:
                    self._ipv6_halves[key] = (int(hi[at]), int(lo[at]))

    def _close_until(self, boundary: int) -> list[Window]:
        if boundary <= self._boundary:
            return []
        self._boundary = boundary
        groups = self._closed_groups(boundary)
        windows: list[Window] = []
        starts = np.flatnonzero(np.append(True, np.diff(groups.window) != 0)).tolist() if groups is not None else []
        ends = [*starts[1:], len(groups.window)] if groups is not None else []
        for start, end in zip(starts, ends, strict=True):
            assert groups is not None
            index = int(groups.window[start])
            self._emit_silence(index, windows)
            self._emit_window(index, groups, start, end, windows)
        self._emit_silence(boundary, windows)
        self._counters["windows"] += len(windows)
        if self._ipv6_halves:
            senders = np.unique(np.concatenate([part.source for part in self._open])).tolist() if self._open else []
            self._ipv6_halves = {key: self._ipv6_halves[key] for key in senders if key in self._ipv6_halves}
        return windows

    def _closed_groups(self, boundary: int) -> Groups | None:
        if not self._open:
            return None
        packets = OpenPackets.concatenate(self._open)
        self._open = [packets]
        window = packets.time_ns // self._window_ns
        closed = window < boundary
        if not closed.any():
            return None
        rest, next_window = packets.take(~closed), window[~closed]
        if len(rest):
            packets, window = packets.take(closed), window[closed]
        self._open = [rest] if len(rest) else []
        early = answer_keys(rest.take(next_window == boundary), next_window[next_window == boundary], before=True)
        for index in [index for index in self._window_packets if index < boundary]:
            del self._window_packets[index]
        return aggregate(
            packets,
            window,
            window_ns=self._window_ns,
            early_answers=early,
            flows=self._flows,
        )

    def _emit_silence(self, until: int, windows: list[Window]) -> None:
        """Rows of zeros for all known devices in the windows before ``until`` that had no packet at all."""
        while self._next_window is not None and self._next_window < until:
            self._drop_idle(self._next_window)
            if not self._devices:
                self._next_window = None  # the next window with packets starts anew
                return
            self._emit(self._next_window, {}, windows)

    def _emit_window(self, index: int, groups: Groups, start: int, end: int, windows: list[Window]) -> None:
        self._drop_idle(index)
        rows: dict[int, NDArray[np.float32]] = {}
        for at in self._admitted(groups, start, end):
            key = int(groups.entity[at])
            if key not in self._devices:
                halves = self._ipv6_halves[key] if key >> 63 else (0, key)
                self._devices[key] = _Device(address_text(*halves), index)
            self._devices[key].last_window = index
            rows[key] = groups.values[at].copy()
        self._emit(index, rows, windows)

    def _admitted(self, groups: Groups, start: int, end: int) -> list[int]:
        """Groups of known devices, and of as many new ones as there is room for, in the order of their first packet."""
        entity, sent = groups.entity[start:end], groups.sent[start:end]
        packets = sent + groups.received[start:end]
        known = np.isin(entity, np.fromiter(self._devices, dtype=np.uint64, count=len(self._devices)))
        silent = ~known & (sent == 0)
        self._counters["silent_target"] += int(packets[silent].sum())
        newcomers = np.flatnonzero(~known & ~silent)
        newcomers = newcomers[np.argsort(groups.first[start:end][newcomers])]
        room = self._entities_max - len(self._devices)
        named = [at for at in newcomers.tolist() if not int(entity[at]) >> 63 or int(entity[at]) in self._ipv6_halves]
        admitted = named[:room]
        self._counters["entity_limit"] += int(packets[newcomers].sum() - packets[admitted].sum())
        return [start + at for at in [*np.flatnonzero(known).tolist(), *admitted]]

    def _drop_idle(self, index: int) -> None:
        gone = [key for key, device in self._devices.items() if index - device.last_window > self._idle_windows]
        for key in gone:
            del self._devices[key]

    def _emit(self, index: int, rows: Mapping[int, NDArray[np.float32]], windows: list[Window]) -> None:
        start_s, end_s = index * self.schema.window_s, (index + 1) * self.schema.window_s
        self._counters["zero_windows"] += len(self._devices) - len(rows)
        windows.extend(
            Window(device.name, start_s, end_s, rows.get(key, self._zeros)) for key, device in self._devices.items()
        )
        self._next_window = index + 1
