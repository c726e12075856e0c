"""The embedded broker's own rules: where it listens, as whom, and what it keeps of a client."""

from __future__ import annotations

import asyncio
import re
import socket
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from amqtt.contexts import Action as BrokerAction

from vedette_broker import ca, figures, session, version
from vedette_broker.access import IDENTITY, GrammarAccess, Holder
from vedette_broker.embedded import EmbeddedBroker, EmbeddedConfig, check_address
from vedette_broker.limits import INFLIGHT_MAX
from vedette_broker.session import ClientSession, Outbound
from vedette_core.crypto.certificates import CertificateRole
from vedette_core.runtime.metrics import BROKER_METRICS, Metrics
from vedette_schemas.errors import ConfigError, RefusedError
from vedette_schemas.topics import ACCESS, Role, Topics

DAY_S = 86_400


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("site") / "ca"
    ca.init(directory, "lab", now=time.time())
    return directory


@pytest.fixture(scope="module")
def bundle(authority: Path) -> Path:
    return ca.issue(authority, "broker", CertificateRole.BROKER, now=time.time())


def start(config: EmbeddedConfig) -> int:
    async def scenario() -> int:
        async with EmbeddedBroker(config) as broker:
            return broker.port

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.8.9.10", "::1", "localhost", "10.1.2.3", "192.168.0.9", "172.16.0.1", "fd00::1"]
)
def test_an_address_that_is_not_public_is_accepted(host: str) -> None:
    assert check_address(host) in (host, "127.0.0.1")


@pytest.mark.parametrize(
    "host",
    [
        "0.0.0.0",
        "::",
        "8.8.8.8",
        "2600::1",
        "224.0.0.1",
        "ff02::1",
        "broker.example",
        "",
        "localhost.example",
        "127.0.0.1 ",
    ],
)
def test_a_public_address_or_none_is_refused_with_the_reason(bundle: Path, host: str) -> None:
    with pytest.raises(RefusedError, match="expected one address of this machine that is not public") as said:
        start(EmbeddedConfig(bundle, host=host, port=0))
    assert said.value.rule == "no-public-address"
    assert "mosquitto" in str(said.value)


@pytest.mark.parametrize(
    ("found", "text"), [("0.12.2", "found release 0.12.2, expected exactly 0.12.1"), (None, "not installed")]
)
def test_another_amqtt_is_refused_before_anything_of_it_runs(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, found: str | None, text: str
) -> None:
    def installed(name: str) -> str:
        assert name == "amqtt"
        if found is None:
            raise version.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(version, "version", installed)
    with pytest.raises(ConfigError, match=text):
        start(EmbeddedConfig(bundle, port=0))


def test_the_pin_is_the_one_that_is_checked() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["optional-dependencies"]["broker"] == [f"amqtt=={version.AMQTT_VERSION}"]


def test_it_listens_where_it_says(bundle: Path) -> None:
    assert start(EmbeddedConfig(bundle, port=0)) > 0


def test_a_taken_port_is_named(bundle: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"cannot listen on 127\.0\.0\.1 port {port} \(Address already in use\)"):
            start(EmbeddedConfig(bundle, port=port))


def test_a_port_that_is_none_is_told(bundle: Path) -> None:
    with pytest.raises(ConfigError, match="port 99999"):
        start(EmbeddedConfig(bundle, port=99999))


def test_it_needs_the_broker_s_bundle(authority: Path, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not found"):
        start(EmbeddedConfig(tmp_path, port=0))
    device = ca.issue(authority, "dev-1", CertificateRole.DEVICE, now=time.time())
    with pytest.raises(ConfigError, match="extended key usage"):
        start(EmbeddedConfig(device, port=0))
    with pytest.raises(ConfigError, match="found a bundle of site 'lab', expected 'plant'"):
        start(EmbeddedConfig(bundle, port=0, site="plant"))


def test_an_expired_bundle_is_told(tmp_path: Path) -> None:
    then = time.time() - 8 * DAY_S
    ca.init(tmp_path / "ca", "lab", now=then)
    old = ca.issue(tmp_path / "ca", "broker", CertificateRole.BROKER, now=then)
    with pytest.raises(ConfigError, match="one that ended at"):
        start(EmbeddedConfig(old, port=0))


# --- the access plugin


def access() -> GrammarAccess:
    return GrammarAccess(SimpleNamespace(config=GrammarAccess.Config(site="lab"), logger=None))


def holding(role: Role, holder: str) -> Any:
    identity = Holder(holder, role)
    return SimpleNamespace(client_id=holder, username="aggregator", attributes={IDENTITY: identity})


def asked(who: Any, topic: str | None, action: BrokerAction | None) -> bool:
    return asyncio.run(access().topic_filtering(session=who, topic=topic, action=action))


@pytest.mark.parametrize("rule", ACCESS)
def test_the_plugin_says_what_the_grammar_says(rule: Any) -> None:
    topics, role = Topics("lab"), rule.role
    holder = "dev-1" if rule.role is Role.DEVICE else rule.role.value
    asking = f"{topics.root}/{rule.pattern.replace('%u', holder)}"
    topic = asking.replace("+", "dev-9").replace("#", "x")
    who = holding(role, holder)
    assert asked(who, topic, BrokerAction.PUBLISH) == topics.may_publish(rule.role, holder, topic)
    assert asked(who, topic, BrokerAction.RECEIVE) == topics.may_receive(rule.role, holder, topic)
    assert asked(who, asking, BrokerAction.SUBSCRIBE) == topics.may_subscribe(rule.role, holder, asking)
    assert not asked(who, "#", BrokerAction.SUBSCRIBE)


def test_what_is_not_known_is_denied() -> None:
    topic = "vedette/1/lab/public/intel"
    for action in BrokerAction:
        assert not asked(None, topic, action)
        assert not asked(SimpleNamespace(client_id="aggregator", username="aggregator", attributes={}), topic, action)
        assert not asked(holding(Role.DEVICE, "dev-1"), None, action)
    assert not asked(holding(Role.DEVICE, "dev-1"), topic, None)


# --- a client's queue


def message(qos: int = 1, payload: bytes = b"x") -> Outbound:
    return Outbound("t", payload, qos, retain=False)


def connected(clean: bool = True) -> ClientSession:
    state = ClientSession(SimpleNamespace(client_id="dev-1"), clean)
    state.connection = object()  # type: ignore[assignment]
    return state


def test_the_window_holds_back_until_it_is_acknowledged() -> None:
    async def scenario() -> None:
        state = connected()
        for _ in range(INFLIGHT_MAX + 1):
            assert await state.offer(message(), wait=False)
        ids = [(await state.next())[0] for _ in range(INFLIGHT_MAX)]
        assert len(set(ids)) == INFLIGHT_MAX
        waiting = asyncio.create_task(state.next())
        await asyncio.sleep(0)
        assert not waiting.done()
        state.acknowledged(60_000)
        await asyncio.sleep(0)
        assert not waiting.done()
        assert ids[0] is not None
        state.acknowledged(ids[0])
        packet_id, _ = await waiting
        assert packet_id not in (None, *ids)

    asyncio.run(scenario())


def test_a_full_queue_drops_qos_0_and_holds_a_publisher_of_qos_1_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "QUEUE_MESSAGES_MAX", 1)

    async def scenario() -> None:
        state = connected()
        assert await state.offer(message(), wait=True)
        assert not await state.offer(message(qos=0), wait=True)
        assert not await state.offer(message(), wait=False)
        waiting = asyncio.create_task(state.offer(message(payload=b"second"), wait=True))
        await asyncio.sleep(0)
        assert not waiting.done()
        await state.next()
        assert await waiting
        assert (await state.next())[1].payload == b"second"

    asyncio.run(scenario())


def test_a_publisher_is_not_held_back_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "QUEUE_BYTES_MAX", 3)
    monkeypatch.setattr(session, "STALL_S", 0.01)

    async def scenario() -> tuple[bool, bool]:
        state = connected()
        assert await state.offer(message(payload=b"123"), wait=True)
        in_vain = await state.offer(message(), wait=True)
        waiting = asyncio.create_task(state.offer(message(), wait=True))
        await asyncio.sleep(0)
        state.disconnected()
        return in_vain, await waiting

    assert asyncio.run(scenario()) == (False, False)


def test_what_a_client_without_a_session_misses_is_gone() -> None:
    async def scenario() -> None:
        clean, kept = (
            ClientSession(SimpleNamespace(client_id="a"), True),
            ClientSession(SimpleNamespace(client_id="b"), False),
        )
        assert not await clean.offer(message(), wait=True)
        assert not await kept.offer(message(qos=0), wait=True)
        assert await kept.offer(message(), wait=True)

    asyncio.run(scenario())


def test_a_lost_connection_keeps_qos_1_and_drops_qos_0() -> None:
    async def scenario() -> None:
        state = connected(clean=False)
        for qos, payload in ((0, b"a"), (1, b"b"), (0, b"c"), (1, b"d")):
            await state.offer(message(qos, payload), wait=True)
        state.disconnected()
        assert [(await state.next())[1].payload for _ in range(2)] == [b"b", b"d"]

    asyncio.run(scenario())


def test_everything_that_is_counted_becomes_a_metric(bundle: Path, tmp_path: Path) -> None:
    sources = (Path(__file__).parents[2] / "broker" / "vedette_broker").glob("*.py")
    counted = {name for path in sources for name in re.findall(r'counts\["([a-z_]+)"\]', path.read_text())}
    conditional = {"connect_accepted", "connect_refused"}
    assert counted | conditional == set(figures.EVENTS)
    metrics = Metrics(BROKER_METRICS)

    async def scenario() -> None:
        async with EmbeddedBroker(EmbeddedConfig(bundle, port=0, state_dir=tmp_path / "state")) as broker:
            broker.counts["publish_accepted"] = 7
            following = asyncio.create_task(figures.follow(broker, metrics))
            await asyncio.sleep(0)
            following.cancel()

    asyncio.run(scenario())
    assert metrics.registry.get_sample_value("vedette_broker_events_total", {"kind": "publish_accepted"}) == 7
    assert metrics.registry.get_sample_value("vedette_broker_connections") == 0
    assert metrics.registry.get_sample_value("vedette_revocation_list_number") == 1
