"""Enrolment, renewal and revocation over real MQTT: a broker, the authority's process, and nodes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from vedette import toml_writer
from vedette.demo.fleet import Fleet, free_port
from vedette.site import Site, create
from vedette_broker import ca, ca_revocation, ca_tokens
from vedette_broker.ca_store import read_index
from vedette_core.crypto.certificates import CertificateRole
from vedette_core.crypto.revocation import RevocationReason
from vedette_core.machine import Event, Publish
from vedette_core.runtime.bundle_requests import read_ticket
from vedette_core.runtime.enrolment import enrol_over_mqtt
from vedette_core.runtime.identity import Bundle, NodeIdentity, client_context, load_node
from vedette_core.runtime.mqtt import LinkConfig, MqttLink, MqttMessage
from vedette_core.runtime.sections import BrokerSection
from vedette_core.runtime.storage import Database, Outbox
from vedette_device.round_session import RoundSession, SessionParts
from vedette_device.settings import SpoolSection
from vedette_device.verified_release import VerifiedRelease
from vedette_schemas.errors import RefusedError, TransientError
from vedette_schemas.topics import Topics

LIMIT_S = 60.0
DAY_S = 86_400.0
SITE = "plant-1"
TOPICS = Topics(SITE)


@dataclass
class Place:
    """A site whose broker runs, and the authority's process if it was started."""

    site: Site
    port: int
    fleet: Fleet
    base: Path

    @property
    def authority(self) -> Path:
        return self.site.directory / "ca"

    @property
    def broker(self) -> BrokerSection:
        return BrokerSection(host="127.0.0.1", port=self.port)

    def start_authority(self, **tables: Any) -> None:
        config = self.base / "ca.toml"
        config.write_text(toml_writer.dumps({"authority": self.authority, "broker": {"port": self.port}, **tables}))
        self.fleet.start("authority", "ca", "serve", "-c", str(config))

    def log(self, name: str) -> str:
        return (self.fleet.logs / f"{name}.log").read_text(errors="replace")

    async def until(self, what: str, condition: Callable[[], bool]) -> None:
        limit = time.monotonic() + LIMIT_S
        while not condition():
            self.fleet.check()
            assert time.monotonic() < limit, f"{what}: not within {LIMIT_S:.0f} s"
            await asyncio.sleep(0.05)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        port = free_port()
        site = create(tmp_path / "site", SITE, ["gw-01"], port=port)
        fleet = stack.enter_context(Fleet(tmp_path / "logs"))
        fleet.start("broker", "broker", "run", "-c", str(site.broker_config))
        fleet.wait_for_port(port)
        yield Place(site, port, fleet, tmp_path)


@asynccontextmanager
async def party(place: Place, bundle: Bundle, name: str) -> AsyncIterator[tuple[MqttLink, list[MqttMessage]]]:
    heard: list[MqttMessage] = []

    async def take(message: MqttMessage) -> None:
        heard.append(message)

    async with MqttLink(LinkConfig("127.0.0.1", place.port, name, client_context(bundle)), take) as link:
        await link.wait_connected(LIMIT_S)
        yield link, heard


def vedette(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-m", "vedette.main", *arguments],
        capture_output=True,
        text=True,
        timeout=2 * LIMIT_S,  # a command that waits for an answer gives up by itself, and says why
        check=False,
        env={**os.environ, **environment},
    )


def test_a_node_enrols_over_the_broker_and_speaks(place: Place) -> None:
    place.start_authority()
    made = vedette("ca", "token", "-d", str(place.authority), "--id", "gw-09", "--json")
    assert made.returncode == 0, made.stderr
    facts = json.loads(made.stdout)
    bundle = place.base / "node"
    arguments = ("device", "enrol", "--bundle", str(bundle), "--ticket", facts["ticket"], "--port", str(place.port))
    done = vedette(*arguments, VEDETTE_TOKEN=facts["token"])
    assert done.returncode == 0, done.stderr
    assert "gw-09 (device)" in done.stdout
    assert load_node(bundle, time.time()).id == "gw-09"
    for text in (done.stdout, done.stderr, place.log("authority"), place.log("broker")):
        assert facts["token"] not in text
    again = vedette(*arguments, VEDETTE_TOKEN=facts["token"])
    assert again.returncode != 0
    assert "found a bundle there" in again.stderr

    async def speak() -> None:
        aggregator = Bundle(place.authority / "bundles" / "aggregator")
        async with (
            party(place, aggregator, "aggregator") as (link, heard),
            party(place, Bundle(bundle), "gw-09") as (
                node,
                _,
            ),
        ):
            await link.subscribe(f"{TOPICS.root}/device/+/up/#", 1)
            await link.wait_subscribed(LIMIT_S)
            await node.publish(TOPICS.alert("gw-09"), b"hello")
            await place.until("alert", lambda: any(m.payload == b"hello" for m in heard))

    asyncio.run(speak())


def test_a_token_s_holder_can_use_its_two_topics_and_nothing_else(place: Place) -> None:
    one, two = (ca_tokens.make_token(place.authority, now=time.time()) for _ in range(2))

    async def try_all() -> None:
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        bootstrap = Bundle(place.base / "bootstrap")
        bootstrap.directory.mkdir()
        bootstrap.tls_certificate.write_bytes(one.ticket.read_bytes())
        bootstrap.tls_key.touch(0o600)
        key = one.token.tls_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        bootstrap.tls_key.write_bytes(key)
        bootstrap.ca.write_bytes((place.authority / "online" / "ca.crt").read_bytes())
        aggregator = Bundle(place.authority / "bundles" / "aggregator")
        ca.issue(place.authority, "authority", CertificateRole.AUTHORITY, now=time.time())
        authority = Bundle(place.authority / "bundles" / "authority")
        async with (
            party(place, aggregator, "aggregator") as (all_devices, heard),
            party(place, authority, "authority") as (office, asked),
            party(place, bootstrap, one.token.id) as (node, _),
        ):
            await all_devices.subscribe(f"{TOPICS.root}/device/+/up/#", 1)
            await all_devices.subscribe(f"{TOPICS.root}/public/#", 1)
            await office.subscribe(TOPICS.enrolment_request("+"), 1)
            await all_devices.wait_subscribed(LIMIT_S)
            await office.wait_subscribed(LIMIT_S)
            denied = (
                TOPICS.enrolment_reply("+"),
                TOPICS.enrolment_reply(two.token.id),
                TOPICS.enrolment_request(two.token.id),
                TOPICS.round("network"),
                f"{TOPICS.root}/public/#",
                f"{TOPICS.root}/#",
                "#",
            )
            for topic_filter in denied:
                await node.subscribe(topic_filter)
            await node.subscribe(TOPICS.enrolment_reply(one.token.id))
            await place.until("answers", lambda: node.counters.subscriptions_refused >= len(denied))
            forbidden = (
                TOPICS.enrolment_request(two.token.id),
                TOPICS.enrolment_reply(one.token.id),
                TOPICS.alert(one.token.id),
                TOPICS.alert("gw-01"),
                TOPICS.revoked,
                TOPICS.renewal_request("gw-01"),
            )
            for topic in forbidden:
                with contextlib.suppress(TransientError, TimeoutError):
                    async with asyncio.timeout(0.5):
                        await node.publish(topic, b"no")
            # What it may say comes after everything that it may not: nothing overtakes it on one connection.
            async with asyncio.timeout(LIMIT_S):
                await node.publish(TOPICS.enrolment_request(one.token.id), b"yes")
            await place.until("request", lambda: any(m.payload == b"yes" for m in asked))
            assert [m.topic for m in (*heard, *asked) if m.payload == b"no"] == []

    asyncio.run(try_all())


def test_the_authority_s_no_reaches_the_node(place: Place) -> None:
    (place.base / "allowed").write_text("gw-02\n")
    place.start_authority(allow={"file": place.base / "allowed"})
    now = time.time()
    invitations = {name: ca_tokens.make_token(place.authority, now=now, holder=name) for name in ("gw-02", "gw-03")}

    async def enrol(name: str) -> str:
        made = invitations[name]
        ticket = made.ticket.read_bytes()
        return (await enrol_over_mqtt(place.base / name, made.token, ticket, place.broker, timeout_s=LIMIT_S)).id

    assert asyncio.run(enrol("gw-02")) == "gw-02"
    with pytest.raises(RefusedError, match="allow-list"):
        asyncio.run(enrol("gw-03"))
    assert not Bundle(place.base / "gw-03").tls_certificate.exists()
    assert "gw-03" not in read_index(place.authority).issued


def test_without_a_network_files_are_carried(place: Place) -> None:
    made = ca_tokens.make_token(place.authority, now=time.time(), holder="gw-05")
    secret, base = place.base / "token", place.base
    secret.touch(0o600)
    secret.write_text(made.token.text + "\n")
    node = (
        "device",
        "enrol",
        "--bundle",
        str(base / "node"),
        "--ticket",
        str(made.ticket),
        "--token-file",
        str(secret),
    )
    first = vedette(*node, "--request", str(base / "request"))
    assert first.returncode == 0, first.stderr
    answered = vedette("ca", "enrol", str(base / "request"), "-o", str(base / "reply"), "-d", str(place.authority))
    assert answered.returncode == 0, answered.stderr
    assert vedette(*node, "--reply", str(base / "reply")).returncode == 0
    assert load_node(base / "node", time.time()).id == "gw-05"
    secret.chmod(0o644)
    careless = vedette(*node, "--reply", str(base / "reply"))
    assert "0600" in careless.stderr


# -- a running node


@dataclass
class Member:
    """Takes part in nothing; remembers what it was told."""

    renewals: list[NodeIdentity] = field(default_factory=list)

    async def start(self) -> None: ...

    async def handle(self, task: str, event: Event) -> None: ...

    async def take_release(self, release: VerifiedRelease) -> None: ...

    def next_deadline(self, task: str) -> float | None:
        return None

    def renewed(self, node: NodeIdentity) -> None:
        self.renewals.append(node)


def session_of(place: Place, node: NodeIdentity) -> RoundSession:
    parts = SessionParts(
        broker=place.broker,
        spool=SpoolSection(),
        trust_root=place.site.directory / "root.json",
        database=place.base / "state" / "node.db",
        trust_dir=place.base / "state" / "trust",
        tasks=("network",),
    )
    return RoundSession(node, parts)


@asynccontextmanager
async def running(session: RoundSession, member: Member) -> AsyncIterator[None]:
    stop = asyncio.Event()
    job = asyncio.create_task(session.run(member, stop, drain_s=0.0))
    try:
        yield
    finally:
        stop.set()
        await job


def test_a_node_past_half_of_its_certificate_s_life_renews_itself_and_loses_nothing(place: Place) -> None:
    ca.issue(place.authority, "gw-02", CertificateRole.DEVICE, now=time.time() - 4 * DAY_S)
    old = load_node(place.authority / "bundles" / "gw-02", time.time())
    place.start_authority()

    async def renew() -> None:
        # A request that nobody hears is repeated half a minute later.
        await place.until("authority", lambda: "connected as authority" in place.log("authority"))
        member, session = Member(), session_of(place, old)
        aggregator = Bundle(place.authority / "bundles" / "aggregator")
        async with party(place, aggregator, "aggregator") as (link, heard):
            await link.subscribe(f"{TOPICS.root}/device/+/up/alert", 1)
            await link.wait_subscribed(LIMIT_S)
            session.shell.publish(Publish(TOPICS.alert("gw-02"), b"kept", receipt_id="a-1.0"))
            async with running(session, member):
                await place.until("renewal", lambda: bool(member.renewals))
                link_of = session.credentials._link
                connects = link_of.counters.connects
                await place.until("new connection", lambda: link_of.counters.connects > connects or connects > 1)
                await place.until("session", lambda: link_of.connected)
                count = sum(m.payload == b"kept" for m in heard)
                session.shell.flush()
                await place.until("sent again", lambda: sum(m.payload == b"kept" for m in heard) > count)
        (new,) = member.renewals
        assert new.tls_not_after > time.time() + 6.9 * DAY_S
        assert new.signer.public_key == old.signer.public_key
        assert not new.serials & old.serials
        assert load_node(old.bundle.directory, time.time()).serials == new.serials

    asyncio.run(renew())
    database = Database(place.base / "state" / "node.db")
    assert Outbox(database, messages_max=10, bytes_max=10**6).messages == 1, "no receipt came: it is still there"
    database.close()
    line = read_index(place.authority).issued["gw-02"]
    assert len(line.earlier) == 2, "the old ones can still be revoked"


def test_a_revocation_reaches_nodes_in_one_list_and_older_lists_do_not_undo_it(place: Place) -> None:
    place.start_authority()
    node = load_node(place.authority / "bundles" / "gw-01", time.time())
    first = ca_revocation.newest_list(place.authority)
    ca.issue(place.authority, "gw-02", CertificateRole.DEVICE, now=time.time())
    gone = load_node(place.authority / "bundles" / "gw-02", time.time())

    async def revoke() -> None:
        session = session_of(place, node)
        ring = session.peers
        ring.learn(gone.certificate, time.time(), intermediate=gone.intermediate)
        aggregator = Bundle(place.authority / "bundles" / "aggregator")
        async with running(session, Member()), party(place, aggregator, "aggregator") as (hostile, _):
            await place.until("session", lambda: session.credentials._link.connected)
            made = ca_revocation.revoke(place.authority, "gw-02", RevocationReason.KEY_COMPROMISE, now=time.time())
            await place.until("list", lambda: ring.revocations.number == made.number)
            assert ring.revoked() == {"gw-02"}
            wrong = (first.der, b"nonsense", made.der[:-1] + bytes([made.der[-1] ^ 1]))
            for each in wrong:
                await hostile.publish(TOPICS.revoked, each, retain=True)
            await hostile.publish(TOPICS.revoked, made.der, retain=True)
            assert not _refusals(session), "our own broker passes nothing on but the list in force"
            for each in wrong:  # as another one would
                await session._take(MqttMessage(TOPICS.revoked, each, 1, retain=False))
            assert ring.revocations.number == made.number
        assert set(_refusals(session)) == {"old-list", "list", "signature"}
        again = session_of(place, node)
        assert again.peers.revocations.number == made.number, "a restart forgets nothing"
        again._database.close()

    asyncio.run(revoke())


def _refusals(session: RoundSession) -> dict[str, float]:
    """Lists that the session refused, by reason, as its metrics say."""
    found = {}
    for family in session.metrics.registry.collect():
        for sample in family.samples:
            if sample.name == "vedette_messages_total" and sample.labels["kind"] == "revoked":
                found[sample.labels["outcome"]] = sample.value
    found.pop("accepted", None)
    return found


def test_the_ticket_of_the_running_site_leads_to_its_root(place: Place) -> None:
    made = ca_tokens.make_token(place.authority, now=time.time())
    anchors, leaf = read_ticket(made.ticket.read_bytes(), made.token)
    assert anchors.root.subject.rfc4514_string() == f"CN=vedette root of {SITE}"
    assert leaf.not_valid_after_utc.timestamp() <= time.time() + DAY_S + 1
