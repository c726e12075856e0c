"""A task of flow logs: a device that reads a log takes its model, and one that reads packets says what differs."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from second_release import sign_two_releases
from test_device_behaviour import stopped
from test_device_flow_log import log as zeek_log
from test_device_sources import PCAP_HEADER
from test_whole_loop import until

from vedette.demo.fleet import Fleet, free_port
from vedette.observer import Observer
from vedette.site import create
from vedette_aggregator.artifacts import assumed_ranges
from vedette_aggregator.registry import Registry
from vedette_device.inference import open_model
from vedette_schemas.features import FLOW_LOGS
from vedette_schemas.model import Variant

READER, STRANGER = "gw-1", "gw-2"
TASK: dict[str, Any] = {"task": "flow-logs", "use_case": "network", "source_schema": "flow-logs"}


def release(trust: Path) -> None:
    """Sign the first two releases of the task, as rounds would have: weights that have learnt nothing."""
    sign_two_releases(trust, TASK, lambda model, start: (start, assumed_ranges(model.network, start), 0.25))


@pytest.mark.timeout(180)
def test_a_log_reader_takes_the_model_and_a_packet_reader_says_what_differs(tmp_path: Path) -> None:
    port = free_port()
    conn, capture = tmp_path / "conn.log", tmp_path / "growing.pcap"
    conn.write_text(zeek_log(0, 120) + "#close\n")
    capture.write_bytes(PCAP_HEADER)
    networks = {"task": "flow-logs", "local_networks": ["192.168.1.0/24"]}
    replay = {"speed": 0, "wait_for_release": 1}
    log_reader = {"source": "zeek", "path": conn, "follow": False, "training_windows": 40, "calibration_windows": 40}
    tables = {
        READER: {"telemetry_s": 0.5, "network": {**networks, **log_reader, "replay": replay}},
        STRANGER: {"telemetry_s": 0.5, "network": {**networks, "source": "follow", "path": capture}},
    }
    site = create(tmp_path / "site", "test-site", (READER, STRANGER), port=port, tasks=[TASK], device_tables=tables)
    release(site.directory / "trust")
    target, data = Registry(site.directory / "trust").target("flow-logs", 1, Variant.INT8)
    released = open_model(data, sha256=hashlib.sha256(data).hexdigest())
    assert released.schema == FLOW_LOGS
    assert target.feature_schema == FLOW_LOGS.digest
    assert np.prod(released.backend.network.input_shape) == FLOW_LOGS.history * len(FLOW_LOGS.columns)

    async def scenario() -> None:
        with Fleet(tmp_path / "logs") as fleet:
            fleet.start("broker", "broker", "run", "-c", str(site.broker_config))
            fleet.wait_for_port(port)
            async with Observer(site.analytics_bundle, "127.0.0.1", port) as observer:
                fleet.start("aggregator", "aggregator", "run", "-c", str(site.aggregator_config))
                fleet.start(READER, "device", "run", "-c", str(site.device_configs[READER]), ends=True)
                fleet.start(STRANGER, "device", "run", "-c", str(site.device_configs[STRANGER]))
                await until(fleet, "the recording ends", fleet.finished)
                refusal = tmp_path / "logs" / f"{STRANGER}.log"
                await until(fleet, "a refusal", lambda: "refused release 1" in refusal.read_text(errors="replace"))
                # The reader has ended; its farewell, which comes behind its last report, has yet to reach the observer.
                await until(fleet, "a farewell", lambda: stopped(observer) == {READER})
                assert {(d, t, v) for d, t, v in observer.activated} == {(READER, "flow-logs", 1)}
                said = next(line for line in refusal.read_text().splitlines() if "refused release 1" in line)
                assert "(flow-logs), expected" in said
                assert "(packets);" in said
                (report,) = observer.reports[READER].detectors
                assert (report.model_version, report.phase, report.windows) == (1, "armed", 40)

    asyncio.run(scenario())
