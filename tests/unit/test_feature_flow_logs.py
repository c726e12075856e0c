"""Flow windows: what each column counts, by hand; late flows, silence, limits and steps of the clock."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from vedette_device.features.flow_logs import (
    COUNTERS,
    IDLE_WINDOWS_DEFAULT,
    NEW_AFTER_WINDOWS,
    PEER_MEMORY_WINDOWS,
    STALE_S,
    STEP_FLOWS,
    STRANGERS_WINDOW_MAX,
    FlowLogWindower,
)
from vedette_device.features.scaling import RobustScaler
from vedette_device.features.windows import Window
from vedette_device.sources.flow_record import FlowRecord, FlowState, address_number
from vedette_schemas.errors import ConfigError
from vedette_schemas.features import FLOW_LOGS, NETWORK_FLOWS

T0 = 1_700_000_040.0
"""A whole multiple of 60 s."""
DEVICE, OTHER, CLOUD, CLOUD_2 = "192.168.1.5", "192.168.1.6", "203.0.113.7", "203.0.113.8"


def flow(
    end_s: float = 0.0,
    origin: str = DEVICE,
    answer: str = CLOUD,
    *,
    duration_s: float = 0.0,
    port: int = 443,
    protocol: int = 6,
    sent: tuple[int, int] = (100, 2),
    back: tuple[int, int] = (50, 1),
    state: FlowState = FlowState.ESTABLISHED,
) -> FlowRecord:
    return FlowRecord(
        start_s=T0 + end_s - duration_s,
        duration_s=duration_s,
        originator=address_number(origin),
        responder=address_number(answer),
        originator_port=50_000,
        responder_port=port,
        protocol=protocol,
        originator_bytes=sent[0],
        responder_bytes=back[0],
        originator_packets=sent[1],
        responder_packets=back[1],
        state=state,
    )


def columns(window: Window) -> dict[str, float]:
    return {n: v for n, v in zip(FLOW_LOGS.columns, window.values.tolist(), strict=True) if v}


def only(windows: list[Window], entity: str = DEVICE) -> Window:
    (window,) = [w for w in windows if w.entity == entity]
    return window


def test_the_schema_is_fixed() -> None:
    assert FLOW_LOGS.digest == "93e03383386822072e48c990a859d36149fd3409276eb4fa1478908d5c03b18e"
    assert FLOW_LOGS.input_shape == (16, 24)
    assert FLOW_LOGS.digest != NETWORK_FLOWS.digest
    forbidden = ("address", "ttl", "time", "hour", "mac")
    assert not [name for name in FLOW_LOGS.columns if any(word in name for word in forbidden)]


def test_every_column_by_hand() -> None:
    windower = FlowLogWindower(["192.168.1.0/24"])
    windows = (
        windower.push(
            [
                flow(1, duration_s=4.0, port=1883, sent=(1000, 10), back=(500, 5)),
                flow(2, port=53, protocol=17, answer=OTHER, sent=(60, 1), back=(0, 0), state=FlowState.OTHER),
                flow(3, answer=CLOUD_2, sent=(40, 1), back=(0, 0), state=FlowState.ATTEMPT),
                flow(4, OTHER, DEVICE, port=22, sent=(40, 1), back=(40, 1), state=FlowState.REJECTED),
                flow(5, CLOUD, DEVICE, protocol=1, port=0, sent=(84, 1), back=(84, 1), state=FlowState.OTHER),
                flow(6, duration_s=1.0, state=FlowState.RESET),
            ]
        )
        + windower.flush()
    )
    assert {w.entity for w in windows} == {DEVICE, OTHER}
    window = only(windows)
    assert (window.start_s, window.end_s) == (T0, T0 + 60.0)
    assert columns(window) == pytest.approx(
        {
            "flows_out": 4,
            "flows_in": 2,
            "bytes_out": 1000 + 60 + 40 + 40 + 84 + 100,
            "bytes_in": 500 + 40 + 84 + 50,
            "packets_out": 10 + 1 + 1 + 1 + 1 + 2,
            "packets_in": 5 + 1 + 1 + 1,
            "flow_max_bytes": 1500,
            "packet_mean_bytes": 1998 / 24,
            "duration_mean_s": 5 / 6,
            "duration_max_s": 4,
            "tcp_share": 4 / 6,
            "udp_share": 1 / 6,
            "failed_out": 1,
            "failed_in": 1,
            "failed_share": 2 / 6,
            "resets": 1,
            "unanswered_share": 2 / 6,
            "peers_distinct": 3,
            "service_ports_distinct": 4,
            "service_port_entropy_bits": 2 / 5 * math.log2(5 / 2) + 3 / 5 * math.log2(5),
            "internal_share": 2 / 6,
            "dns_flows": 1,
            "mqtt_flows": 1,
        },
        rel=1e-6,
    )


def test_a_flow_counts_where_it_ends_and_a_late_one_in_the_oldest_open_window() -> None:
    windower = FlowLogWindower(tolerance_s=75.0)
    assert windower.push([flow(10, duration_s=1_000.0), flow(134.9)]) == []
    first = windower.push([flow(135)])  # 75 s behind the end of the first window
    assert [(w.start_s, columns(w)["flows_out"]) for w in first] == [(T0, 1)]
    windower.push([flow(20), flow(60)])
    rest = windower.flush()
    assert [(w.start_s - T0, columns(w).get("flows_out", 0)) for w in rest] == [(60, 2), (120, 2)]
    assert windower.counters()["late"] == 1


def test_batches_change_nothing() -> None:
    rng = np.random.default_rng(3)
    flows = [
        flow(float(t), f"192.168.1.{d}", f"203.0.113.{p}", port=int(p) + 1)
        for t, d, p in zip(
            np.cumsum(rng.exponential(9.0, 400)) - rng.exponential(30.0, 400),
            rng.integers(1, 6, 400),
            rng.integers(1, 90, 400),
            strict=True,
        )
    ]
    whole = FlowLogWindower()
    expected = whole.push(flows) + whole.flush()
    assert len(expected) > 100
    for size in (1, 7, 64):
        windower = FlowLogWindower()
        found = [w for at in range(0, len(flows), size) for w in windower.push(flows[at : at + size])]
        found += windower.flush()
        assert [(w.entity, w.start_s, w.values.tolist()) for w in found] == [
            (w.entity, w.start_s, w.values.tolist()) for w in expected
        ]
        assert windower.counters() == whole.counters()


def test_a_peer_is_new_once_a_day_and_never_in_a_devices_first_hour() -> None:
    windower = FlowLogWindower(idle_windows=10_000)
    minutes = [0, 1, NEW_AFTER_WINDOWS - 1, NEW_AFTER_WINDOWS, NEW_AFTER_WINDOWS + 1]
    peers = [CLOUD, CLOUD_2, "198.51.100.1", "198.51.100.2", "198.51.100.2"]
    again = NEW_AFTER_WINDOWS + PEER_MEMORY_WINDOWS + 3
    windows = windower.push([flow(60.0 * m, answer=p) for m, p in zip(minutes, peers, strict=True)])
    windows += windower.push([flow(60.0 * (NEW_AFTER_WINDOWS + 2)), flow(60.0 * again, answer="198.51.100.2")])
    windows += windower.flush()
    new = {round((w.start_s - T0) / 60): columns(w)["peers_new"] for w in windows if "peers_new" in columns(w)}
    assert new == {NEW_AFTER_WINDOWS: 1, again: 1}


def test_silence_gives_rows_of_zeros_until_the_device_is_forgotten() -> None:
    windower = FlowLogWindower()
    far = 60.0 * (IDLE_WINDOWS_DEFAULT + 40)
    windows = windower.push([flow(0), flow(far, OTHER)]) + windower.flush()
    mine = [w for w in windows if w.entity == DEVICE]
    assert len(mine) == 1 + IDLE_WINDOWS_DEFAULT
    assert not np.concatenate([w.values for w in mine[1:]]).any()
    assert [w.start_s for w in mine] == [T0 + 60.0 * k for k in range(len(mine))]
    assert windower.entities == (OTHER,)


def test_time_can_pass_without_flows() -> None:
    windower = FlowLogWindower()
    windower.push([flow(0)])
    assert windower.advance(T0 + 134.9) == []
    assert [w.start_s for w in windower.advance(T0 + 196.0)] == [T0, T0 + 60]
    assert windower.advance(T0) == []
    assert windower.advance(math.nan) == []


def test_an_address_that_never_answers_is_no_device() -> None:
    windower = FlowLogWindower()
    scan = [flow(k * 0.1, DEVICE, f"192.168.2.{k}", back=(0, 0), state=FlowState.ATTEMPT) for k in range(1, 101)]
    windows = windower.push(scan) + windower.flush()
    assert [w.entity for w in windows] == [DEVICE]
    assert columns(windows[0])["failed_out"] == 100
    assert windower.counters()["silent_target"] == 100


def test_limits_are_counted() -> None:
    windower = FlowLogWindower(entities_max=2, flows_window_max=5)
    windows = windower.push([flow(0, f"192.168.1.{k}") for k in range(1, 9)]) + windower.flush()
    assert len(windows) == 2
    counters = windower.counters()
    assert (counters["entity_limit"], counters["window_full"]) == (3, 3)
    many = FlowLogWindower()
    many.push([flow(0, f"10.1.{k // 250}.{k % 250 + 1}") for k in range(STRANGERS_WINDOW_MAX + 10)])
    assert many.counters()["entity_limit"] == 10


def test_flows_from_elsewhere_and_stale_ones_are_left_out() -> None:
    windower = FlowLogWindower()
    windower.push([flow(0, "198.51.100.1", CLOUD), flow(0), flow(-STALE_S - 1)])
    counters = windower.counters()
    assert (counters["not_local"], counters["stale"], counters["flows"]) == (1, 1, 3)
    assert set(counters) == set(COUNTERS)


def test_a_clock_that_was_set_back_starts_anew() -> None:
    windower = FlowLogWindower()
    windows = windower.push([flow(0)] + [flow(-86_400.0 + k) for k in range(STEP_FLOWS)]) + windower.flush()
    assert windower.counters()["clock_steps"] == 1
    assert [(w.start_s - T0, columns(w)["flows_out"]) for w in windows] == [(0, 1), (-86_400, 1)]


def test_a_flow_of_a_device_with_itself_counts_once_and_ipv6_is_named() -> None:
    windower = FlowLogWindower(["fd00::/8"])
    windows = windower.push([flow(0, "fd00::1", "fd00::1"), flow(0, "fd00::1", "fd00::2")]) + windower.flush()
    assert columns(only(windows, "fd00::1"))["flows_out"] == 2
    assert columns(only(windows, "fd00::2"))["flows_in"] == 1


def test_the_largest_numbers_stay_finite_and_can_be_scaled() -> None:
    huge = replace(flow(0), originator_bytes=1 << 62, responder_bytes=1 << 62, originator_packets=1 << 62)
    windower = FlowLogWindower()
    windows = windower.push([huge] * 100) + windower.flush()
    assert np.isfinite(windows[0].values).all()
    rows = np.stack([windows[0].values] * 8 + [np.zeros(24, np.float32)])
    assert np.isfinite(RobustScaler.fit(FLOW_LOGS, rows).scale_rows(rows)).all()


@pytest.mark.parametrize(
    "wrong", [{"tolerance_s": -1.0}, {"tolerance_s": STALE_S}, {"idle_windows": -1}, {"entities_max": 0}]
)
def test_numbers_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        FlowLogWindower(**wrong)  # type: ignore[arg-type]
