"""From logged flows to feature windows of local devices.

A flow is counted in the window in which it *ended*, for each of its ends that is a local device. It is not spread over
the windows that it lasted: those are long closed, and scored, when the log tells of it. An exporter logs a flow when
it ends or when a timer gives it up, so the records come roughly in the order of their ends; one that comes later than
the tolerance is counted in the oldest window that is still open, rather than lost.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vedette_device.features.addresses import PRIVATE_NETWORKS, LocalNetworks, address_keys, address_text, mix
from vedette_device.features.flow_log_columns import FlowSums
from vedette_device.features.flows import FlowTable
from vedette_device.features.windows import ENTITIES_MAX_DEFAULT, Window
from vedette_device.sources.flow_record import FlowRecord
from vedette_schemas.errors import ConfigError
from vedette_schemas.features import FLOW_LOGS

TOLERANCE_S_DEFAULT: Final = 75.0
"""How long a window stays open behind its end: Zeek gives up a silent UDP flow after a minute
(``udp_inactivity_timeout``), and its timers run every few seconds. What an exporter holds longer comes late."""

IDLE_WINDOWS_DEFAULT: Final = 60
"""Silent windows (an hour) for which a known device still gets a row of zeros; then it is forgotten."""

FLOWS_WINDOW_MAX: Final = 1 << 17
"""Most flows of one window, 2,180 a second: past it they are counted, not kept. Some 40 MB where each has its own peer
and port; and such a window is anomalous whatever came after."""

STRANGERS_WINDOW_MAX: Final = 4_096
"""Most addresses of one window that are not known as devices yet: a scan names thousands that do not exist."""

PEER_MEMORY_WINDOWS: Final = 1_440
"""A peer is new again after a day without a flow: devices ask for time and updates daily."""

PEERS_MAX: Final = 65_536
"""Pairs of device and peer that are remembered; those seen longest ago are forgotten first. 1 MB."""

NEW_AFTER_WINDOWS: Final = 60
"""Windows (an hour) for which a device is watched before a peer of it counts as new."""

STALE_S: Final = 3_600.0
"""A flow that ended this long before the newest one is left out: longer than any exporter's timer."""

STEP_FLOWS: Final = 32
"""So many stale flows in succession mean that the clock was set back, or another log follows: all starts anew."""

COUNTERS: Final = (
    "flows",
    "windows",
    "zero_windows",
    "late",
    "not_local",
    "stale",
    "window_full",
    "entity_limit",
    "silent_target",
    "clock_steps",
)
"""What ``FlowLogWindower.counters`` holds. ``late`` flows are counted in a later window than their own; those from
``not_local`` on entered none (``clock_steps`` counts events)."""

_NEVER: Final = -math.inf


@dataclass(slots=True)
class _Device:
    name: str
    first_window: int
    last_window: int


class FlowLogWindower:
    """Cuts logged flows into tumbling windows, one row of ``FLOW_LOGS`` a local device and window.

    Windows are aligned to whole multiples of their length; only the flows' own times count, and how they were cut into
    batches changes nothing. The rows of one window come together, in the order in which the devices were first seen.

    Args:
        local_networks: networks in CIDR form whose devices are watched.
        tolerance_s: how far flows may come out of the order of their ends.
        idle_windows: silent windows of a known device that give a row of zeros.
        entities_max: most devices; flows of further ones are counted as ``entity_limit``.
        flows_window_max: most flows of one window that are kept.

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
        flows_window_max: int = FLOWS_WINDOW_MAX,
    ) -> None:
        self.schema = FLOW_LOGS
        if not 0 <= tolerance_s < STALE_S or idle_windows < 0 or entities_max < 1 or flows_window_max < 1:
            raise ConfigError(
                f"tolerance_s {tolerance_s}, idle_windows {idle_windows}, entities_max {entities_max}, "
                f"flows_window_max {flows_window_max}: expected 0 to {STALE_S}, at least 0, 1 and 1"
            )
        self._networks = LocalNetworks(local_networks)
        self._tolerance_s = tolerance_s
        self._idle_windows, self._entities_max = idle_windows, entities_max
        self._flows_window_max = flows_window_max
        self._counters: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
        self._zeros = np.zeros(len(self.schema.columns), dtype=np.float32)
        self._zeros.flags.writeable = False
        self._forget()

    def _forget(self) -> None:
        self.newest_s = _NEVER
        """End of the newest flow, seconds since the epoch; minus infinity before the first."""
        self._boundary: int | None = None
        """Index of the first window that is not closed."""
        self._next_window: int | None = None
        self._open: dict[int, dict[int, FlowSums]] = {}
        self._window_flows: Counter[int] = Counter()
        self._devices: dict[int, _Device] = {}
        self._peers = FlowTable(idle_windows=PEER_MEMORY_WINDOWS, flows_max=PEERS_MAX)
        self._stale_run = 0

    def push(self, flows: Sequence[FlowRecord]) -> list[Window]:
        """Take flows in the order of the log; return the windows that became complete."""
        windows: list[Window] = []
        if not flows:
            return windows
        origin, answer = _halves([f.originator for f in flows]), _halves([f.responder for f in flows])
        places = zip(
            self._networks.local(*origin).tolist(),
            self._networks.local(*answer).tolist(),
            self._networks.internal(*origin).tolist(),
            self._networks.internal(*answer).tolist(),
            strict=True,
        )
        self._counters["flows"] += len(flows)
        for flow, place in zip(flows, places, strict=True):
            self._take(flow, place, windows)
        return windows

    def _take(self, flow: FlowRecord, place: tuple[bool, bool, bool, bool], windows: list[Window]) -> None:
        end_s = flow.end_s
        if end_s < self.newest_s - STALE_S:
            self._stale_run += 1
            if self._stale_run < STEP_FLOWS:
                self._counters["stale"] += 1
                return
            self._counters["clock_steps"] += 1
            windows += self.flush()
            self._forget()
        self._stale_run = 0
        if end_s > self.newest_s:
            self.newest_s = end_s
            windows += self._close_until(self._window_of(end_s - self._tolerance_s))
        own, oldest = self._window_of(end_s), self._boundary
        assert oldest is not None
        self._counters["late"] += own < oldest
        index = max(own, oldest)
        origin_local, answer_local, origin_internal, answer_internal = place
        if not (origin_local or answer_local):
            self._counters["not_local"] += 1
            return
        if self._window_flows[index] >= self._flows_window_max:
            self._counters["window_full"] += 1
            return
        self._window_flows[index] += 1
        devices = self._open.setdefault(index, {})
        if origin_local and (sums := self._sums(devices, flow.originator)):
            sums.add(flow, outgoing=True, internal=answer_internal)
        if answer_local and flow.responder != flow.originator and (sums := self._sums(devices, flow.responder)):
            sums.add(flow, outgoing=False, internal=origin_internal)

    def _sums(self, devices: dict[int, FlowSums], address: int) -> FlowSums | None:
        """What the device's flows of a window are added to; None where it holds too many strangers already."""
        sums = devices.get(address)
        if sums is None:
            if address not in self._devices and len(devices) >= len(self._devices) + STRANGERS_WINDOW_MAX:
                self._counters["entity_limit"] += 1
                return None
            sums = devices[address] = FlowSums()
        return sums

    def advance(self, now_s: float) -> list[Window]:
        """Let time pass without flows: close the windows that ended ``tolerance_s`` before ``now_s``.

        Args:
            now_s: seconds since the epoch, on the clock that stamps the flows.
        """
        if self.newest_s == _NEVER or not math.isfinite(now_s) or now_s <= self.newest_s:
            return []
        self.newest_s = now_s
        return self._close_until(self._window_of(now_s - self._tolerance_s))

    def flush(self) -> list[Window]:
        """Close all windows that have flows, at the end of a log."""
        return self._close_until(max(self._open) + 1) if self._open else []

    def counters(self) -> Mapping[str, int]:
        """Counts by the names in ``COUNTERS``."""
        return dict(self._counters)

    @property
    def entities(self) -> tuple[str, ...]:
        """Devices known at present."""
        return tuple(device.name for device in self._devices.values())

    def _window_of(self, time_s: float) -> int:
        return math.floor(time_s / self.schema.window_s)

    def _close_until(self, boundary: int) -> list[Window]:
        windows: list[Window] = []
        if self._boundary is not None and boundary <= self._boundary:
            return windows
        self._boundary = boundary
        for index in sorted(index for index in self._open if index < boundary):
            self._emit_silence(index, windows)
            self._emit_window(index, self._open.pop(index), windows)
        for index in [index for index in self._window_flows if index < boundary]:
            del self._window_flows[index]
        self._emit_silence(boundary, windows)
        self._counters["windows"] += len(windows)
        return windows

    def _emit_silence(self, until: int, windows: list[Window]) -> None:
        """Rows of zeros for all known devices in the windows before ``until`` that had no flow at all."""
        while self._next_window is not None and self._next_window < until:
            self._drop_idle(self._next_window)
            if not self._devices:
                self._next_window = None  # the next window with flows starts anew
                return
            self._emit(self._next_window, {}, windows)

    def _emit_window(self, index: int, sums: Mapping[int, FlowSums], windows: list[Window]) -> None:
        self._drop_idle(index)
        admitted: dict[int, FlowSums] = {}
        for address, own in sums.items():
            if address not in self._devices:
                if not own.sent:
                    self._counters["silent_target"] += own.flows_in
                    continue
                if len(self._devices) >= self._entities_max:
                    self._counters["entity_limit"] += own.flows_in + own.flows_out
                    continue
                self._devices[address] = _Device(address_text(*divmod(address, 1 << 64)), index, index)
            self._devices[address].last_window = index
            admitted[address] = own
        new = self._new_peers(index, admitted)
        rows = {}
        for address, own in admitted.items():
            watched = index - self._devices[address].first_window
            rows[address] = own.row(new[address] if watched >= NEW_AFTER_WINDOWS else 0)
        self._emit(index, rows, windows)

    def _new_peers(self, index: int, sums: Mapping[int, FlowSums]) -> dict[int, int]:
        """How many of each device's peers are new; remembers all of them."""
        owners = [address for address, own in sums.items() for _ in own.peers]
        peers = [peer for own in sums.values() for peer in own.peers]
        pairs = mix(address_keys(*_halves(owners)) ^ mix(address_keys(*_halves(peers))))
        keys, place = np.unique(pairs, return_inverse=True)
        new = self._peers.mark(keys, np.full(len(keys), index, dtype=np.int64))[place]
        counts = dict.fromkeys(sums, 0)
        for address, is_new in zip(owners, new.tolist(), strict=True):
            counts[address] += is_new
        return counts

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


def _halves(addresses: Sequence[int]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    low = (1 << 64) - 1
    return (
        np.array([address >> 64 for address in addresses], dtype=np.uint64),
        np.array([address & low for address in addresses], dtype=np.uint64),
    )
