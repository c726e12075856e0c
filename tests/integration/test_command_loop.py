"""A command over a real broker: the node recalibrates once, however often the same command comes."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from test_whole_loop import DEVICES, make_site, until

from vedette.demo.fleet import Fleet, free_port
from vedette.observer import Observer
from vedette_core.runtime.identity import client_context, load_node
from vedette_core.runtime.mqtt import LinkConfig, MqttLink, MqttMessage
from vedette_schemas.command import COMMAND_TYPE, Command
from vedette_schemas.envelope import seal
from vedette_schemas.topics import Topics


@pytest.mark.timeout(240)
def test_a_node_recalibrates_when_it_is_asked_and_once(tmp_path: Path) -> None:
    port = free_port()
    # At this pace the 800 rows behind the calibration stretch take four minutes, and the attack, during which nobody
    # recalibrates, comes after two: the node is armed and busy all the while.
    site = make_site(tmp_path / "loop", port, speed=100.0)
    device, topics = DEVICES[0], Topics("test-site")
    logs = tmp_path / "logs"

    def said(text: str) -> int:
        return (logs / f"{device}.log").read_text(errors="replace").count(text)

    async def scenario() -> None:
        with Fleet(logs) as rest, Fleet(logs) as first:
            rest.start("broker", "broker", "run", "-c", str(site.broker_config))
            rest.wait_for_port(port)
            async with Observer(site.analytics_bundle, "127.0.0.1", port) as observer:
                first.start("aggregator", "aggregator", "run", "-c", str(site.aggregator_config))
                for name, config in site.device_configs.items():
                    rest.start(name, "device", "run", "-c", str(config), ends=True)
                await until(rest, "released", lambda: len(observer.activated) == len(DEVICES))
                await until(rest, "armed", lambda: said("release 1 is active") == 1)
            first.kill()  # its name on the broker is free now

            node = load_node(site.directory / "ca" / "bundles" / "aggregator", time.time())

            async def nothing(_: MqttMessage) -> None:
                """It only speaks."""

            link = MqttLink(LinkConfig("127.0.0.1", port, node.id, client_context(node.bundle)), nothing)
            await link.start()
            now = time.time()
            for seq in (7, 7, 6, 8):
                command = Command(
                    device=device,
                    seq=seq,
                    issued_s=now,
                    expires_s=now + 600.0,
                    action="recalibrate",
                    task="sensor",
                    reason="a test",
                )
                sealed = seal(command, COMMAND_TYPE, node.id, node.signer)
                await link.publish(topics.command(device), sealed)
            await until(rest, "done", lambda: said("command 8 (recalibrate sensor): too soon") == 1)
            await link.stop()
            assert said("sensor: recalibrated on 300 windows (a test)") == 1
            assert said("(recalibrate sensor): repeated") == 2
            assert said("not recalibrated") == 0

    asyncio.run(scenario())
