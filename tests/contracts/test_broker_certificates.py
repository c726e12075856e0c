"""Seven certificates, one answer on every engine: what counts is whether anything that the holder says is delivered."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from broker_parties import (
    ENGINES,
    WAIT_S,
    Authority,
    BrokerUnderTest,
    Mosquitto,
    Nats,
    make_authority,
    make_broker,
    party,
    path,
    write_revocations,
)

from vedette_broker import ca, hub
from vedette_core.crypto.certificates import CertificateRole
from vedette_core.runtime.identity import Bundle
from vedette_core.runtime.mqtt import AuthenticationError, UnreachableError
from vedette_schemas.errors import TransientError

DAY_S = 86_400
SPEAK_S = 3.0
"""How long somebody who must not be heard tries to speak; the fence comes afterwards."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = make_authority(tmp_path_factory.mktemp("matrix") / "ca", ["dev-a", "dev-b", "dev-c", "dev-d"])
    old = ca.issue(made.directory, "dev-old", CertificateRole.DEVICE, now=time.time() - 8 * DAY_S)
    made.bundles["dev-old"] = old
    write_revocations(made, 101, ["dev-b"])
    return made


@pytest.fixture(scope="module", params=ENGINES)
def engine(
    request: pytest.FixtureRequest, site: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BrokerUnderTest]:
    running = make_broker(request.param, site, tmp_path_factory.mktemp(request.param) / "broker")
    running.start()
    if isinstance(running, Nats):
        running.reload(without=["dev-b"])  # no lists there: a revoked id is left out
    yield running
    running.stop()


def presenting(site: Authority, bundle: Path | None) -> ssl.SSLContext:
    """A client that trusts this site's broker and shows some certificate, or none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(Bundle(site.bundles["dev-a"]).ca)
    if bundle is not None:
        context.load_cert_chain(Bundle(bundle).tls_certificate, Bundle(bundle).tls_key)
    return context


def elsewhere(directory: Path, name: str) -> Path:
    """A device's bundle of another authority, for a site of this name."""
    now = time.time()
    ca.init(directory, name, now=now)
    return ca.issue(directory, "dev-a", CertificateRole.DEVICE, now=now)


CASES: dict[str, tuple[str, bool]] = {
    "valid": ("dev-a", True),
    "another site's": ("dev-a", False),
    "expired": ("dev-old", False),
    "revoked": ("dev-b", False),
    "foreign root": ("dev-a", False),
    "none": ("dev-a", False),
    "right, with another's client id": ("dev-c", False),
}
"""Who is claimed to speak, and whether it is heard."""


@pytest.mark.parametrize("case", CASES)
def test_who_is_heard_is_who_holds_a_certificate_that_counts(
    engine: BrokerUnderTest, site: Authority, tmp_path: Path, case: str
) -> None:
    who, heard = CASES[case]
    certificate: Callable[[], Path | None] = {
        "valid": lambda: site.bundles["dev-a"],
        "another site's": lambda: elsewhere(tmp_path / "ca", "elsewhere"),
        "expired": lambda: site.bundles["dev-old"],
        "revoked": lambda: site.bundles["dev-b"],
        "foreign root": lambda: elsewhere(tmp_path / "ca", "lab"),
        "none": lambda: None,
        "right, with another's client id": lambda: site.bundles["dev-d"],
    }[case]
    tls, mark = presenting(site, certificate()), case.encode()

    async def scenario() -> list[bytes]:
        async with (
            party(engine, site, "aggregator", ["device/+/up/#"]) as aggregator,
            party(engine, site, who, [f"device/{who}/down/#"], wait=False, tls=tls) as speaker,
        ):
            try:
                async with asyncio.timeout(WAIT_S if heard else SPEAK_S):
                    await speaker.link.wait_connected(WAIT_S)
                    await speaker.link.publish(path(f"device/{who}/up/alert"), mark)
            except (AuthenticationError, UnreachableError, TransientError, TimeoutError):
                assert not heard
            await aggregator.link.publish(path(f"device/{who}/down/command"), b"secret")
            await speaker.link.stop(drain_s=0)
            async with party(engine, site, "dev-a") as fence:
                await fence.link.publish(path("device/dev-a/up/alert"), b"fence")
                await aggregator.until_payload(b"fence")
            assert heard or speaker.payloads == [], "it hears what is not meant for it"
            return aggregator.payloads

    assert asyncio.run(scenario()) == ([mark, b"fence"] if heard else [b"fence"])


def test_a_session_that_is_open_when_its_certificate_is_revoked(
    engine: BrokerUnderTest, site: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedded broker and NATS end it; Mosquitto does not, and refuses the next connection."""
    monkeypatch.setattr(hub, "WATCH_S", 0.1)  # for a broker that is started from here on

    async def scenario() -> None:
        async with (
            party(engine, site, "dev-c") as stolen,
            party(engine, site, "aggregator", ["device/+/up/#"]) as aggregator,
        ):
            await stolen.link.publish(path("device/dev-c/up/alert"), b"before")
            await aggregator.until_payload(b"before")
            write_revocations(site, 102, ["dev-b", "dev-c"])
            if isinstance(engine, Nats):
                await asyncio.to_thread(engine.reload, ["dev-b", "dev-c"])
            elif isinstance(engine, Mosquitto):
                await asyncio.to_thread(engine.stop)
                await asyncio.to_thread(engine.start)  # it reads a list when it starts
            restarted = isinstance(engine, Mosquitto)
            async with asyncio.timeout(WAIT_S):
                while stolen.link.connected or (restarted and not aggregator.link.counters.disconnects):
                    await asyncio.sleep(0.05)
            trying = asyncio.create_task(stolen.link.publish(path("device/dev-c/up/alert"), b"after"))
            with pytest.raises((AuthenticationError, UnreachableError)):
                await stolen.link.wait_connected(SPEAK_S)
            await aggregator.link.wait_connected(WAIT_S)
            async with party(engine, site, "dev-a") as fence:
                await fence.link.publish(path("device/dev-a/up/alert"), b"fence")
                await aggregator.until_payload(b"fence")
            assert not trying.done()
            trying.cancel()
            assert b"after" not in aggregator.payloads

    asyncio.run(scenario())
    write_revocations(site, 103, ["dev-b"])
