"""Cold start over a real broker: a node that has calibrated nothing yet detects with what the others' windows score."""

from __future__ import annotations

import asyncio
import tomllib
from pathlib import Path

import pytest
import test_whole_loop
from test_whole_loop import make_site, until

from vedette import toml_writer
from vedette.demo.fleet import Fleet, free_port
from vedette.observer import Observer

LATE = "gw-6"


@pytest.mark.timeout(300)
def test_a_node_that_comes_late_scores_before_its_own_calibration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, early = free_port(), test_whole_loop.DEVICES
    monkeypatch.setattr(test_whole_loop, "DEVICES", (*early, LATE))
    # The early ones are busy behind their calibration for 96 s: their sketches are there all the while.
    site = make_site(tmp_path / "loop", port, speed=250.0)
    config = site.device_configs[LATE]
    tables = tomllib.loads(config.read_text())
    # At this pace it learns for 20 s and calibrates for 12 s, with a report every half a second.
    tables["sensor"]["replay"] = {"speed": 750.0}
    config.write_text(toml_writer.dumps(tables))
    logs = tmp_path / "logs"

    def said(device: str, text: str) -> int:
        path = logs / f"{device}.log"
        return path.read_text(errors="replace").count(text) if path.exists() else 0

    def scored(observer: Observer, *phases: str) -> bool:
        """Whether the late node's newest report is of one of these phases, with windows that it has scored."""
        report = observer.reports.get(LATE)
        return report is not None and any(d.phase in phases and d.windows for d in report.detectors)

    async def scenario() -> None:
        with Fleet(logs) as fleet:
            fleet.start("broker", "broker", "run", "-c", str(site.broker_config))
            fleet.wait_for_port(port)
            async with Observer(site.analytics_bundle, "127.0.0.1", port) as observer:
                fleet.start("aggregator", "aggregator", "run", "-c", str(site.aggregator_config))
                for name in early:
                    fleet.start(name, "device", "run", "-c", str(site.device_configs[name]), ends=True)
                await until(fleet, "released", lambda: len(observer.activated) == len(early))
                fleet.start(LATE, "device", "run", "-c", str(config), ends=True)
                cold = "sensor: scores release 1 with the fleet's scores until it has its own"
                await until(fleet, "a cold start", lambda: said(LATE, cold) > 0)
                await until(fleet, "scores", lambda: scored(observer, "calibrating", "armed"))
                assert scored(observer, "calibrating"), "with the fleet's scores, before it had its own"
                await until(fleet, "its own calibration", lambda: scored(observer, "armed"))
            assert said(LATE, "no cold start") == 0
            for name in early:
                assert said(name, "with the fleet's scores") == 0, "whoever has a calibration needs none"

    asyncio.run(scenario())
