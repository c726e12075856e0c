"""Counts of names in, a federated model back, alerts that say the names: with real processes, as one site."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_whole_loop import until

from vedette.demo.fleet import Fleet, free_port
from vedette.observer import Observer
from vedette.site import Site, create
from vedette_aggregator.registry import Registry
from vedette_core.learning.hashing import FeatureHasher
from vedette_schemas.alert import AlertState

DEVICES = ("gw-1", "gw-2", "gw-3", "gw-4", "gw-5")
"""As many as the smallest group that may ever be opened."""
STRANGER = "gw-6"
"""A device with another hashing key."""
KEY, OTHER_KEY = bytes(range(1, 33)), bytes(range(32))
"""Under the first one no two of the names here meet in a column."""
COLUMNS = 64
START_S = 1_700_000_040
TRAINING, CALIBRATION, MINUTES = 400, 300, 900
ATTACK = range(800, 815)
RATES = {
    "processes_new": 30.0,
    "topic.plant/tank": 120.0,
    "topic.plant/valve": 12.0,
    "packets_in": 900.0,
    "packets_out": 700.0,
    "tcp_established": 9.0,
    "log_lines": 14.0,
    "log_kind_017": 4.0,
    "process.mosquitto": 0.0,
}


def write_counts(path: Path, seed: int) -> None:
    """A gateway's minutes, busier by day; from `ATTACK` on a program runs that never ran, and connects a lot."""
    rng = np.random.default_rng(seed)
    with path.open("w") as file:
        for minute in range(MINUTES):
            load = 1.0 + 0.4 * np.sin(minute / 60 + seed)
            counts = {name: int(rng.poisson(rate * load)) for name, rate in RATES.items()}
            counts["process.mosquitto"] = 1
            if minute in ATTACK:
                counts |= {"process.xmrig": 6, "tcp_syn_sent": 250}
            for name, count in counts.items():
                file.write(json.dumps({"time_s": START_S + 60 * minute + 30, "name": name, "count": count}) + "\n")


def make_site(directory: Path, port: int) -> Site:
    directory.mkdir()
    tables: dict[str, dict[str, Any]] = {}
    for i, device in enumerate((*DEVICES, STRANGER)):
        counts, key_file = directory / f"{device}.jsonl", directory / f"{device}.key"
        write_counts(counts, i)
        key_file.write_text((OTHER_KEY if device == STRANGER else KEY).hex() + "\n")
        tables[device] = {
            "telemetry_s": 0.5,
            "spool": {"resend_s": 1.0},
            "behaviour": {
                "source": "counts",
                "counts": counts,
                "follow": device == STRANGER,
                "key_file": key_file,
                "hash_columns": COLUMNS,
                "entity": f"host-{device}",
                "training_windows": TRAINING,
                "calibration_windows": CALIBRATION,
                "replay": {"speed": 0, "wait_for_release": 1},
            },
        }
    task = {
        "task": "behaviour",
        "use_case": "behaviour",
        "hash_columns": COLUMNS,
        "hash_mark": FeatureHasher(COLUMNS, KEY).mark,
        "training": {"local_epochs": 5, "batch_size": 32, "learning_rate": 0.005, "examples_min": 64},
        "round": {
            "checkin_s": 0.5,
            "collect_s": 20.0,
            "interval_s": 0.2,
            "rounds_max": 1,
            "quorum": 5,
            "group_size": 5,
        },
    }
    devices = (*DEVICES, STRANGER)
    return create(directory / "site", "test-site", devices, port=port, tasks=[task], device_tables=tables)


def stopped(observer: Observer) -> set[str]:
    return {device for device, state in observer.states.items() if state.status == "stopped"}


@pytest.mark.timeout(240)
def test_counts_in_alerts_with_names_out_and_another_key_is_refused(tmp_path: Path) -> None:
    port = free_port()
    site = make_site(tmp_path / "loop", port)

    async def scenario() -> None:
        with Fleet(tmp_path / "logs") as fleet:
            fleet.start("broker", "broker", "run", "-c", str(site.broker_config))
            fleet.wait_for_port(port)
            async with Observer(site.analytics_bundle, "127.0.0.1", port) as observer:
                fleet.start("aggregator", "aggregator", "run", "-c", str(site.aggregator_config))
                for device, config in site.device_configs.items():
                    fleet.start(device, "device", "run", "-c", str(config), ends=device != STRANGER)
                await until(fleet, "devices end", fleet.finished)
                stranger = tmp_path / "logs" / f"{STRANGER}.log"
                await until(fleet, "a refusal", lambda: "found feature schema" in stranger.read_text(errors="replace"))
                # Farewells come behind everything else that a device says; the observer has yet to read them.
                await until(fleet, "farewells", lambda: stopped(observer) == set(DEVICES))
                await until(fleet, "the round's end", lambda: bool(observer.completed | observer.failed))

                assert observer.completed == {("behaviour", 1)}
                assert Registry(site.directory / "trust").active("behaviour") == 1
                assert {device for device, _, version in observer.activated if version == 1} == set(DEVICES)

                attack_s = range(START_S + 60 * ATTACK.start, START_S + 60 * (ATTACK.stop + 1))
                opened = [a for a in observer.alerts if a.state is AlertState.OPEN and a.count == 1]
                hits = [s for s in observer.sightings() if int(s.end_s) in attack_s]
                assert {s.gateway for s in hits} == set(DEVICES)
                assert {a.detector for a in observer.alerts} == {"behaviour"}
                assert {a.entity for a in opened} == {f"host-{device}" for device in DEVICES}
                in_attack = [a for a in opened if "tcp syn sent" in a.summary]
                assert {a.device for a in in_attack} == set(DEVICES), [a.summary for a in opened]
                for alert in in_attack:
                    reasons = {r.name: (r.value, r.usual) for r in alert.features}
                    assert reasons["tcp_syn_sent"] == (250.0, (0.0, 0.0))
                    assert reasons["process.xmrig"] == (6.0, (0.0, 0.0))
                assert observer.rejected == 0

    asyncio.run(scenario())
