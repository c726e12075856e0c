"""Alerts from a real broker to real readers: the commands of docs/alert-formats.md as they are written there."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
sys.path.insert(0, str(Path(__file__).parents[1] / "contracts"))

from broker_parties import MOSQUITTO, SITE, Authority, BrokerUnderTest, answers, free_port, make_authority, make_broker
from export_parts import an_alert
from export_validators import check_ocsf, read_cef, read_syslog
from syslog_receiver import WAIT_S, StreamReceiver
from syslog_receiver import make_authority as make_receivers_authority

from vedette import __version__
from vedette.alert_sources import LiveAlerts
from vedette_core.export import cef, home_assistant
from vedette_core.runtime.identity import Bundle, client_context
from vedette_core.runtime.mqtt import LinkConfig, MqttLink, MqttMessage
from vedette_schemas import alert as alerts
from vedette_schemas.alert import Alert, AlertState, Severity
from vedette_schemas.errors import ConfigError
from vedette_schemas.topics import Topics, is_filter, matches

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "alert-formats.md").read_text()
FLOW = json.loads((ROOT / "docs" / "alert-formats.node-red.json").read_text())
TOPICS = Topics(SITE)
CONFIG_TOPIC = f"homeassistant/device/vedette_{SITE}_gw-01/config"
SUBSCRIBER = shutil.which("mosquitto_sub")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("site") / "ca", ["gw-01", "gw-02"])


@pytest.fixture(scope="module", params=["embedded", "mosquitto"])
def broker(
    request: pytest.FixtureRequest, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BrokerUnderTest]:
    running = make_broker(request.param, authority, tmp_path_factory.mktemp(request.param))
    running.start()
    yield running
    running.stop()


def of_the_site(**changes: Any) -> Alert:
    return an_alert(site=SITE, **changes)


async def nobody(_message: MqttMessage) -> None:
    pass


@asynccontextmanager
async def gateway(broker: BrokerUnderTest, authority: Authority, device: str = "gw-01") -> AsyncIterator[MqttLink]:
    context = client_context(Bundle(authority.bundles[device]))
    async with MqttLink(LinkConfig("127.0.0.1", broker.port, device, context), nobody) as link:
        await link.wait_connected(WAIT_S)
        yield link


async def publish(link: MqttLink, alert: Alert, on: str = "") -> None:
    await link.publish(TOPICS.alert(on or alert.device), alerts.encode(alert))


async def until(attempt: Callable[[], Awaitable[None]], condition: Callable[[], bool]) -> None:
    """Repeat what may come before anybody listens, until it had its effect."""
    async with asyncio.timeout(3 * WAIT_S):
        while not condition():
            await attempt()
            await asyncio.sleep(0.1)


def export_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "vedette.main", "alerts", *arguments]


@asynccontextmanager
async def running(*command: str, cwd: Path | None = None) -> AsyncIterator[asyncio.subprocess.Process]:
    """A child process, ended by this test and no other."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=cwd, env={**os.environ, "NO_COLOR": "1"}
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


# --- the source ---


def test_each_alert_comes_once_and_only_from_its_own_device(broker: BrokerUnderTest, authority: Authority) -> None:
    async def test() -> None:
        live = LiveAlerts(authority.bundles["analytics"], "127.0.0.1", broker.port)
        async with live, gateway(broker, authority) as first, gateway(broker, authority, "gw-02") as second:
            await publish(first, of_the_site(seq=0))
            await publish(first, of_the_site(seq=0))
            await publish(second, of_the_site(seq=7), on="gw-02")  # says that it is gw-01
            await second.publish(TOPICS.alert("gw-02"), b"{}")
            await publish(first, of_the_site(seq=1))
            await publish(second, of_the_site(seq=2, device="gw-02"))
            found = []
            async with asyncio.timeout(WAIT_S):
                async for alert in live:
                    found.append((alert.device, alert.seq))
                    if len(found) == 3:
                        break
        assert sorted(found) == [("gw-01", 0), ("gw-01", 1), ("gw-02", 2)]
        assert live.refused == 2
        assert live.site == SITE

    asyncio.run(test())


def test_a_bundle_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        LiveAlerts(tmp_path, "127.0.0.1", 1)


# --- the commands ---


def test_alerts_travel_from_a_gateway_to_a_siem(broker: BrokerUnderTest, authority: Authority, tmp_path: Path) -> None:
    """Gateway → broker → `vedette alerts export` → syslog over TLS."""
    receivers = make_receivers_authority(tmp_path / "siem")

    async def test() -> None:
        receiver = StreamReceiver(receivers.server(mutual=True))
        await receiver.start()
        certificate, key = receivers.certificates["client"]
        command = export_command(
            "export", "--format", "cef", "--bundle", str(authority.bundles["analytics"]), "--port", str(broker.port),
            "--to", f"syslog+tls://localhost:{receiver.port}",
            "--ca", str(receivers.ca), "--cert", str(certificate), "--key", str(key),
        )  # fmt: skip
        async with running(*command), gateway(broker, authority) as link:
            await until(lambda: publish(link, of_the_site()), lambda: bool(receiver.messages))
            closing = of_the_site(seq=1, state=AlertState.CLOSED, count=3)
            await publish(link, closing)
            await receiver.until(lambda: len(receiver.messages) == 2)
        read = [read_syslog(m) for m in receiver.messages]
        assert [r.msg for r in read] == [cef.line(a, __version__) for a in (of_the_site(), closing)]
        assert [r.severity.name for r in read] == ["err", "info"]
        assert read_cef(read[1].msg)["act"] == "closed"
        await receiver.stop()

    asyncio.run(test())


@pytest.mark.parametrize("as_json", [True, False])
def test_tail_prints_alerts_and_never_steers_the_terminal(
    broker: BrokerUnderTest, authority: Authority, as_json: bool
) -> None:
    alert = of_the_site(summary="ärger \x1b[2J \x9b2J")

    async def test() -> None:
        bundle = str(authority.bundles["analytics"])
        command = export_command(
            "tail", "--bundle", bundle, "--port", str(broker.port), *(["--json"] if as_json else [])
        )
        async with running(*command) as process, gateway(broker, authority) as link:
            assert process.stdout is not None
            line = asyncio.ensure_future(process.stdout.readline())
            await until(lambda: publish(link, alert), line.done)
            printed = line.result().decode()
            assert "ärger" in printed
            assert not set(printed.strip("\n")) & {"\x1b", "\x9b"}
            if as_json:
                assert alerts.decode(printed.strip().encode()) == alert

    asyncio.run(test())


@pytest.mark.skipif(SUBSCRIBER is None, reason="mosquitto_sub is not installed (Debian package mosquitto-clients)")
def test_the_one_liner_of_the_page_reads_alerts(broker: BrokerUnderTest, authority: Authority) -> None:
    (line,) = re.findall(r"^\$ (mosquitto_sub .*)$", PAGE, re.MULTILINE)
    command = shlex.split(line.replace("plant-1", SITE))
    command[command.index("-p") + 1] = str(broker.port)
    assert is_filter(command[-1])
    assert matches(command[-1], TOPICS.alert("gw-01"))

    async def test() -> None:
        async with (
            running(*command, "-C", "1", "-W", "60", cwd=authority.bundles["analytics"]) as process,
            gateway(broker, authority) as link,
        ):
            ended = asyncio.ensure_future(process.communicate())
            await until(lambda: publish(link, of_the_site()), ended.done)
            out, said = ended.result()
            assert process.returncode == 0, said
            assert alerts.decode(out.strip()) == of_the_site()
            converted = subprocess.run(
                export_command("export", "--format", "ocsf", "--from", "-"), input=out, capture_output=True, check=True
            )
            check_ocsf(json.loads(converted.stdout))

    asyncio.run(test())


# --- Home Assistant's broker ---


@pytest.fixture
def home(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A plain Mosquitto with a password, as Home Assistant uses it: its port, and the file with the password."""
    passwords = shutil.which("mosquitto_passwd")
    if MOSQUITTO is None or passwords is None:
        pytest.skip("mosquitto is not installed (Debian package mosquitto)")
    folder, port = tmp_path / "home", free_port()
    folder.mkdir()
    subprocess.run([passwords, "-c", "-b", str(folder / "users"), "ha", "s3cret"], check=True, capture_output=True)
    settings = [f"listener {port} 127.0.0.1", "allow_anonymous false", f"password_file {folder / 'users'}"]
    if os.geteuid() == 0:
        settings.append("user root")
    (folder / "mosquitto.conf").write_text("\n".join(settings) + "\n")
    secret = folder / "password"
    secret.write_text("s3cret\n")
    secret.chmod(0o600)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([MOSQUITTO, "-c", str(folder / "mosquitto.conf")], stdout=log, stderr=log)
    try:
        for _ in range(500):
            if answers(port):
                break
            assert process.poll() is None, (folder / "log").read_text()
            subprocess.run(["sleep", "0.02"], check=True)
        yield port, secret
    finally:
        process.terminate()
        process.wait(WAIT_S)


@asynccontextmanager
async def assistant(port: int, name: str = "home-assistant") -> AsyncIterator[dict[str, list[MqttMessage]]]:
    """What Home Assistant would hear, by topic."""
    heard: dict[str, list[MqttMessage]] = {}

    async def take(message: MqttMessage) -> None:
        heard.setdefault(message.topic, []).append(message)

    link = MqttLink(LinkConfig("127.0.0.1", port, name, None, login=("ha", "s3cret")), take)
    for topic in (f"{home_assistant.DISCOVERY_PREFIX}/#", f"{home_assistant.BASE}/#"):
        await link.subscribe(topic, 1)
    async with link:
        await link.wait_subscribed(WAIT_S)
        yield heard


async def heard_of(heard: dict[str, list[MqttMessage]], topic: str, condition: Callable[[bytes], bool]) -> None:
    async def wait() -> None:
        return None

    await until(wait, lambda: topic in heard and condition(heard[topic][-1].payload))


def test_home_assistant_hears_of_a_gateway_and_sees_it_go(
    authority: Authority, home: tuple[int, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    port, secret = home
    site = make_broker("embedded", authority, tmp_path_factory.mktemp("embedded"))
    site.start()
    status, root = f"vedette-alerts/{SITE}/status", f"vedette-alerts/{SITE}/gw-01"

    async def test() -> None:
        command = export_command(
            "export", "--format", "homeassistant", "--bundle", str(authority.bundles["analytics"]),
            "--port", str(site.port), "--to", f"mqtt://ha@127.0.0.1:{port}", "--password-file", str(secret),
        )  # fmt: skip
        async with assistant(port) as heard, running(*command) as process, gateway(site, authority) as link:
            await heard_of(heard, status, lambda p: p == b"online")
            await until(lambda: publish(link, of_the_site()), lambda: f"{root}/event" in heard)
            await heard_of(heard, CONFIG_TOPIC, bool)
            config = heard[CONFIG_TOPIC][0]
            components = json.loads(config.payload)["components"].values()
            assert {c["state_topic"] for c in components} == {f"{root}/state", f"{root}/event"}
            assert json.loads(config.payload)["availability_topic"] == status
            await heard_of(heard, f"{root}/state", lambda p: json.loads(p)["problem"] == "ON")
            await publish(link, of_the_site(seq=1, state=AlertState.CLOSED))
            await heard_of(heard, f"{root}/state", lambda p: json.loads(p)["problem"] == "OFF")
            process.kill()
            await heard_of(heard, status, lambda p: p == b"offline")
        async with assistant(port, "later") as later:  # what a restart of Home Assistant finds
            await heard_of(later, f"{root}/state", lambda p: json.loads(p)["open"] == 0)
            await heard_of(later, config.topic, lambda p: p == config.payload)
            assert f"{root}/event" not in later
            assert all(m.retain for several in later.values() for m in several)

    try:
        asyncio.run(test())
    finally:
        site.stop()


def test_a_file_can_be_published_to_home_assistant(home: tuple[int, Path], tmp_path: Path) -> None:
    port, secret = home
    path = tmp_path / "alerts.jsonl"
    path.write_bytes(alerts.encode(of_the_site(severity=Severity.CRITICAL)) + b"\n")
    target = ("--from", str(path), "--to", f"mqtt://ha@127.0.0.1:{port}", "--password-file")
    command = export_command("export", "--format", "homeassistant", *target)
    subprocess.run([*command, str(secret)], check=True, timeout=120)

    async def test() -> None:
        async with assistant(port) as heard:
            await heard_of(heard, f"vedette-alerts/{SITE}/gw-01/state", lambda p: b"critical" in p)
            await heard_of(heard, CONFIG_TOPIC, bool)
            config = heard[CONFIG_TOPIC][0]
            assert "availability_topic" not in json.loads(config.payload)

    asyncio.run(test())
    secret.write_text("wrong\n")
    refused = subprocess.run([*command, str(secret)], check=False, capture_output=True, timeout=120)
    assert refused.returncode == 5
    assert b"s3cret" not in refused.stderr
    assert b"Traceback" not in refused.stderr


# --- Node-RED ---


def test_the_flow_is_whole() -> None:
    nodes = {node["id"]: node for node in FLOW}
    assert len(nodes) == len(FLOW)
    for node in FLOW:
        assert all(aim in nodes for wires in node.get("wires", []) for aim in wires)
        assert all(
            node[key] in nodes for key in ("z", "broker", "tls") if key in node and node["type"] != "mqtt-broker"
        )
    kinds = [node["type"] for node in FLOW]
    assert {"tab", "tls-config", "mqtt-broker", "mqtt in", "json", "switch", "debug"} == set(kinds)
    (broker,) = (n for n in FLOW if n["type"] == "mqtt-broker")
    assert nodes[broker["tls"]]["verifyservercert"] is True
    assert broker["clientid"] == "analytics"


def test_the_flow_reads_the_topic_and_the_severities_that_there_are() -> None:
    (source,) = (n for n in FLOW if n["type"] == "mqtt in")
    assert matches(source["topic"], Topics("plant-1").alert("gw-01"))
    (switch,) = (n for n in FLOW if n["type"] == "switch")
    assert switch["property"] == "payload.severity"
    assert {r["v"] for r in switch["rules"] if r["t"] == "eq"} <= {s.value for s in Severity}
    assert len(switch["wires"]) == switch["outputs"] == len(switch["rules"])
