"""The embedded broker on an address that is no loopback: in a network namespace of the test's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vedette_broker import ca
from vedette_core.crypto.certificates import CertificateRole

ADDRESS = "10.23.45.6"
INSIDE = """
import asyncio, logging, subprocess, sys
from pathlib import Path
from vedette_broker.embedded import EmbeddedBroker, EmbeddedConfig
from vedette_core.runtime.identity import Bundle, client_context
from vedette_core.runtime.mqtt import LinkConfig, MqttLink
logging.basicConfig(level=logging.WARNING, stream=sys.stdout)
bundles, address = Path(sys.argv[1]), sys.argv[2]
for command in (["link", "set", "lo", "up"], ["address", "add", f"{address}/32", "dev", "lo"]):
    subprocess.run(["ip", *command], check=True)
async def scenario():
    heard = asyncio.Event()
    async def take(message):
        heard.set()
    def link(who):
        return MqttLink(LinkConfig(address, broker.port, who, client_context(Bundle(bundles / who))), take)
    async with EmbeddedBroker(EmbeddedConfig(bundles / "broker", host=address, port=0)) as broker:
        async with link("aggregator") as aggregator, link("dev-a") as device:
            await aggregator.subscribe("vedette/1/lab/device/+/up/#", 1)
            await aggregator.wait_connected(60)
            await device.wait_connected(60)
            await device.publish("vedette/1/lab/device/dev-a/up/alert", b"x")
            await asyncio.wait_for(heard.wait(), 60)
            print("delivered")
asyncio.run(scenario())
"""


def test_it_serves_a_network_address_and_says_what_is_advised(tmp_path: Path) -> None:
    for program in ("unshare", "ip"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (Debian packages util-linux, iproute2)")
    apart = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
    if subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody make a network namespace")
    authority, now = tmp_path / "ca", time.time()
    ca.init(authority, "lab", now=now)
    ca.issue(authority, "broker", CertificateRole.BROKER, now=now, hosts=[ADDRESS])
    ca.issue(authority, "aggregator", CertificateRole.AGGREGATOR, now=now)
    ca.issue(authority, "dev-a", CertificateRole.DEVICE, now=now)
    done = subprocess.run(
        [*apart, sys.executable, "-c", INSIDE, str(authority / "bundles"), ADDRESS],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "delivered" in done.stdout
    assert f"listening on {ADDRESS}" in done.stdout
    assert "run Mosquitto or NATS" in done.stdout
