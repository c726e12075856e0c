"""A device node as a process with a policy: an alert that it publishes is answered, once, and people can ask it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_device_sources import DEVICE, NETWORK_TASK, PCAP_HEADER, following, free_port

from vedette.demo.fleet import Fleet
from vedette.site import create
from vedette_core.machine import Persist
from vedette_core.runtime.storage import Database, StateStore
from vedette_device.alert_record import ScoredWindow
from vedette_device.audit_log import verify_audit
from vedette_device.detection_machine import DetectionMachine, DetectionSettings, WindowScored
from vedette_schemas.alert import AlertModel

HOST = "192.168.1.5"
RULES = """
[[rule]]
name = "cut"
action = "quarantine"
seconds = 600
[[rule]]
name = "say"
action = "exec"
command = ["/bin/true"]
"""
LIMIT_S = 60.0


def open_alert(state_dir: Path) -> None:
    """What a node leaves that ended with an open alert: it publishes it again when it starts."""
    machine = DetectionMachine("test-site", DEVICE, "network", "network", DetectionSettings())
    model = AlertModel(task="network", version=1, digest="0" * 16)
    window = ScoredWindow(HOST, 1.7e9, 1.7e9 + 5, 9.0, 1e-9, 1.0, 1.1, 1.5, 900, (), model)
    database = Database(state_dir / "device.db")
    for effect in machine.handle(WindowScored(window), 0.0):
        if isinstance(effect, Persist):
            StateStore(database).put(effect.key, effect.value)
    database.close()


def until(fleet: Fleet, condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + LIMIT_S
    while not condition():
        fleet.check()
        assert time.monotonic() < limit, f"not within {LIMIT_S:.0f} s"
        time.sleep(0.05)


def vedette(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "vedette.main", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(180)
def test_an_alert_is_answered_once_also_over_a_restart(tmp_path: Path) -> None:
    (tmp_path / "growing.pcap").write_bytes(PCAP_HEADER)
    (tmp_path / "rules.toml").write_text(RULES)
    device = {
        "network": following(tmp_path / "growing.pcap"),
        "policy": {"enabled": True, "rules": tmp_path / "rules.toml"},
    }
    site = create(
        tmp_path / "site",
        "test-site",
        (DEVICE,),
        port=free_port(),
        tasks=[NETWORK_TASK],
        device_tables={DEVICE: device},
    )
    config, state_dir = str(site.device_configs[DEVICE]), site.directory / "state" / DEVICE
    open_alert(state_dir)
    audit = state_dir / "policy" / "audit.jsonl"

    def told() -> list[tuple[str, str, bool]]:
        lines = audit.read_text().splitlines() if audit.exists() else []
        return [(e["event"], e["outcome"], e["dry_run"]) for e in map(json.loads, lines)]

    with Fleet(tmp_path / "logs") as fleet:
        fleet.start(DEVICE, "device", "run", "-c", config, ends=True)
        until(fleet, lambda: len(told()) == 2)
        found = json.loads(vedette("policy", "status", "-c", config, "--json"))
        assert [(m["entity"], m["measure"], m["mode"]) for m in found["measures"]] == [(HOST, "quarantine", "dry")]
        fleet.stop()
    with Fleet(tmp_path / "logs-again") as fleet:
        fleet.start(DEVICE, "device", "run", "-c", config, ends=True)
        logs = tmp_path / "logs-again"
        until(fleet, lambda: any("policy: 2 rules" in path.read_text() for path in logs.iterdir()))
        assert "released by the running node" in vedette("policy", "release", "-c", config, HOST)
        until(fleet, lambda: len(told()) == 3)
        fleet.stop()
    assert told() == [("quarantine", "begun", True), ("exec", "asked", True), ("quarantine", "released", True)]
    assert vedette("policy", "audit", "verify", str(audit)).startswith("ok: 3 lines, 1 to 3, from the beginning")
    assert verify_audit([audit]).lines == 3
