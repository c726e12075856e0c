"""A detector at work on a growing log, and the command beside it: alarm, acceptance, restart, quiet, attack, undo."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vedette.exit_codes import ExitCode
from vedette_core.learning.local_training import train
from vedette_core.learning.network import build_network
from vedette_core.learning.spec import dense_spec
from vedette_core.machine import Effect, Persist, Publish
from vedette_core.runtime.config import load
from vedette_core.runtime.metrics import DEVICE_METRICS, Metrics
from vedette_core.runtime.storage import Database, StateStore
from vedette_device.evidence_store import TABLES, EvidenceStore
from vedette_device.inference import NumpyBackend
from vedette_device.pipeline import Pipeline
from vedette_device.settings import DeviceSettings
from vedette_schemas.alert import Alert, AlertModel, AlertState, decode

START_S, WINDOW_S = 1_700_000_040, 60
OLD, NEW = ("192.168.1.5", "192.168.1.6"), "192.168.1.9"
TRAINING, CALIBRATION, STRETCH = 300, 200, 240
BEFORE = (TRAINING + CALIBRATION) // len(OLD) + 20
CONFIG = """
site = "s"
device = "gw-1"
state_dir = "{folder}/state"
[identity]
bundle = "{folder}"
trust_root = "{folder}/root.json"
[network]
source = "zeek"
path = "{folder}/conn.log"
local_networks = ["192.168.1.0/24"]
training_windows = 300
calibration_windows = 200
accept_windows = 240
"""


def flows(host: str, window: int, *, attacks: bool) -> list[dict[str, Any]]:
    """What a host does in a window: the old ones ask a few servers, the new one sends a lot, an attack scans."""
    rng = np.random.default_rng([window, int(host.rpartition(".")[2])])
    count, size, port = (12, 40_000, 8883) if host == NEW else (3, 600, 443)
    found = [
        {
            "id.resp_h": f"203.0.113.{1 + int(rng.integers(4))}",
            "id.resp_p": port,
            "conn_state": "SF",
            "orig_pkts": int(size / 300 * rng.uniform(0.7, 1.3)),
            "orig_ip_bytes": int(size * rng.uniform(0.7, 1.3)),
        }
        for _ in range(count + int(rng.integers(2)))
    ]
    scan = [
        {"id.resp_h": f"10.7.0.{i}", "id.resp_p": 1 + i, "conn_state": "S0", "orig_pkts": 1, "orig_ip_bytes": 40}
        for i in range(1, 250)
    ]
    return found + (scan if attacks else [])


def log(first: int, count: int, hosts: Sequence[str], *, attacks: bool = False) -> str:
    lines = []
    for window in range(first, first + count):
        every = [(host, flow) for host in hosts for flow in flows(host, window, attacks=attacks and host == NEW)]
        for i, (host, flow) in enumerate(every):
            at = START_S + WINDOW_S * window + 50 * i / len(every)
            lines.append(json.dumps({"ts": at, "id.orig_h": host, "id.orig_p": 40_000, "proto": "tcp", **flow}) + "\n")
    return "".join(lines)


class Gateway:
    """A device's network detector in its folder; the log grows by `grow`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.config, self.log = folder, folder / "device.toml", folder / "conn.log"
        self.config.write_text(CONFIG.format(folder=folder))
        self.settings = load(DeviceSettings, self.config)
        self.settings.state_dir.mkdir()
        self.log.write_text("")
        self.window = 0
        self.alerts: list[Alert] = []
        self.backend: NumpyBackend | None = None
        self.pipeline: Pipeline

    def grow(self, count: int, *hosts: str, attacks: bool = False) -> None:
        with self.log.open("a") as file:
            file.write(log(self.window, count, hosts, attacks=attacks))
        self.window += count

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        section = self.settings.network
        assert section is not None
        database = Database(self.settings.state_dir / "device.db", TABLES)
        store = StateStore(database)
        kept = EvidenceStore(database, self.settings.evidence)
        self.pipeline = Pipeline(self.settings, section, store, Metrics(DEVICE_METRICS), kept)

        async def carry_out(effects: Sequence[Effect]) -> None:
            for effect in effects:
                if isinstance(effect, Persist):
                    store.put(effect.key, effect.value)
                elif isinstance(effect, Publish):
                    self.alerts.append(decode(effect.payload))

        if self.backend is not None:
            self.install()
        job = asyncio.create_task(self.pipeline.run(carry_out))
        try:
            yield
        finally:
            job.cancel()
            await asyncio.gather(job, return_exceptions=True)
            database.close()

    def install(self) -> None:
        detector = self.pipeline.detector
        if self.backend is None:
            network = build_network(dense_spec(*detector.schema.input_shape))
            start = network.initial_weights(np.random.default_rng(1))
            rows, rng = detector.training_matrix(network), np.random.default_rng(2)
            learnt = train(network, start, rows, epochs=20, batch_size=32, learning_rate=3e-3, prox_mu=0.0, rng=rng)
            self.backend = NumpyBackend(network, start + learnt.delta)
        detector.install(self.backend, AlertModel(task="network", version=1, digest="a" * 16))

    async def until(self, holds: Callable[[], bool], what: str) -> None:
        for _ in range(2400):
            if holds():
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"{what}: not in two minutes; {[(a.entity, a.state.value) for a in self.alerts[-5:]]}")

    async def read(self) -> None:
        """Wait until all windows that are complete were fed."""
        end_s = START_S + WINDOW_S * (self.window - 2)
        history = self.pipeline.detector._history
        await self.until(lambda: any(w.end_s >= end_s for w in history.windows()), "the log's end")

    async def command(self, *arguments: str, fails: ExitCode = ExitCode.OK) -> str:
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "vedette.main", "device", "accept", "-c", str(self.config), *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == fails, done.stderr
        return done.stdout + done.stderr

    async def stage(self) -> str:
        (row,) = json.loads(await self.command("--list", "--json"))
        assert (row["task"], row["entity"], row["reason"]) == ("network", NEW, "the new printer")
        return str(row["stage"])

    def is_open(self) -> bool:
        return NEW in self.pipeline.machine.open_entities


@pytest.mark.timeout(300)
def test_a_false_alarm_is_accepted_while_the_node_runs_and_taken_back_while_it_is_stopped(tmp_path: Path) -> None:
    async def scenario() -> None:
        gateway = Gateway(tmp_path)
        async with gateway.running():
            gateway.grow(BEFORE, *OLD)
            await gateway.until(lambda: gateway.pipeline.detector.is_calibratable, "the calibration stretch")
            gateway.install()
            gateway.grow(30, *OLD, NEW)
            await gateway.until(gateway.is_open, "the alert of a newcomer")
            await gateway.read()
            alert = next(a for a in gateway.alerts if a.entity == NEW).id
            refused = await gateway.command("gw-1-network-none", fails=ExitCode.CONFIGURATION)
            assert "neither open nor" in refused
            assert "nothing is accepted" in await gateway.command("--list")

            said = await gateway.command(alert, "--reason", "the new printer")
            assert f"network {NEW}: accepted" in said
            await gateway.until(lambda: not gateway.is_open(), "the end of the alert")
            last = [a for a in gateway.alerts if a.id == alert][-1]
            assert (last.state, last.summary) == (
                AlertState.CLOSED,
                f"{NEW}: accepted by a person: the new printer",
            )
            held_out = gateway.pipeline.detector.to_state()["held_out"]
            gateway.grow(100, *OLD, NEW)
            await gateway.read()
            assert gateway.pipeline.detector.to_state()["held_out"] != held_out, "the calibration goes on"
            assert await gateway.stage() == "learning"
        count = len(gateway.alerts)
        async with gateway.running():  # a restart in the middle of the stretch
            gateway.grow(STRETCH - 80, *OLD, NEW)
            await gateway.read()
            assert not gateway.pipeline.detector.accepted.is_learning(NEW)
            for _ in range(50):
                if await gateway.stage() == "learnt":
                    break
            assert await gateway.stage() == "learnt"
            gateway.grow(60, *OLD, NEW)
            await gateway.read()
            assert [a.summary for a in gateway.alerts[count:] if a.entity == NEW] == []
            gateway.grow(8, *OLD, NEW, attacks=True)
            await gateway.until(gateway.is_open, "the alert of an attack")
            gateway.grow(40, *OLD, NEW)
            await gateway.until(lambda: not gateway.is_open(), "the end of the attack's alert")
            await gateway.read()
            assert not gateway.is_open()
        undone = await gateway.command("--undo", alert)
        assert "taken back" in undone
        async with gateway.running():
            gateway.grow(40, *OLD, NEW)
            await gateway.read()
            assert gateway.pipeline.detector.accepted.known() == {}
            assert gateway.is_open(), "a newcomer again"

    asyncio.run(scenario())
