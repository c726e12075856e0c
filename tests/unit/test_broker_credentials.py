"""The revocation list in TLS: which one is believed, and who is cut off by it."""

from __future__ import annotations

import asyncio
import errno
import logging
import ssl
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from vedette.broker_files import issued_to
from vedette_broker import ca, hub
from vedette_broker.ca_revocation import revoke
from vedette_broker.ca_store import load_issuer
from vedette_broker.credentials import Credentials
from vedette_broker.embedded import EmbeddedBroker, EmbeddedConfig
from vedette_core.crypto.certificate_chain import load_certificates
from vedette_core.crypto.certificates import CertificateRole
from vedette_core.crypto.revocation import Revocation, RevocationReason, make_list
from vedette_core.runtime import identity
from vedette_core.runtime.durable import replace_file
from vedette_core.runtime.identity import Bundle, client_context, read_file
from vedette_core.runtime.mqtt import AuthenticationError, LinkConfig, MqttLink, MqttMessage
from vedette_schemas.errors import ConfigError, PeerError
from vedette_schemas.topics import Topics

WAIT_S = 60.0


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    directory = tmp_path / "ca"
    ca.init(directory, "lab", now=time.time())
    ca.issue(directory, "broker", CertificateRole.BROKER, now=time.time())
    for device in ("dev-a", "dev-b"):
        ca.issue(directory, device, CertificateRole.DEVICE, now=time.time())
    return directory


def bundle(authority: Path, who: str = "broker") -> Bundle:
    return Bundle(authority / "bundles" / who)


def serial(authority: Path, who: str) -> int:
    return load_certificates(bundle(authority, who).tls_certificate.read_bytes())[0].serial_number


def write_list(
    authority: Path, number: int, serials: list[int], *, age_days: float = 0, signer: Path | None = None
) -> None:
    issuer, _ = load_issuer(signer or authority, time.time())
    made = time.time() - age_days * 86_400
    data = make_list(issuer, number, [Revocation(each, made) for each in serials], now=made)
    replace_file(bundle(authority).crl, x509.load_der_x509_crl(data).public_bytes(Encoding.PEM), 0o644)


@pytest.fixture
def fast_watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(hub, "WATCH_S", 0.05)
    return


def test_a_key_that_is_gone_between_two_looks_changes_nothing(authority: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[str] = Counter()
    credentials = Credentials(bundle(authority), counts)
    key = bundle(authority).tls_key

    def swapped_away(path: Path, *arguments: int) -> bytes:
        data = read_file(path, *arguments)
        if path == key:
            key.rename(key.with_suffix(".old"))
        return data

    write_list(authority, 105, [serial(authority, "dev-a")])
    with monkeypatch.context() as patched:
        patched.setattr(identity, "read_file", swapped_away)
        assert not credentials.refresh(), "the watch goes on: it would never cut anybody again"
    assert counts["revocations_refused"] == 1
    with pytest.raises(PeerError, match="revoked"):
        credentials.check(serial(authority, "dev-a"), "dev-a", time.time())
    write_list(authority, 106, [])
    assert credentials.take(bundle(authority).crl.read_bytes()), "in force, and so to be passed on, without a key, too"
    counted = counts.copy()
    assert not credentials.refresh()
    assert not credentials.refresh()
    key.with_suffix(".old").rename(key)
    before = credentials.context
    assert credentials.refresh(), "it is as it was before: only a look that did not succeed is due again"
    assert credentials.context is not before
    assert not credentials.refresh()
    assert counts["revocations_refused"] == counted["revocations_refused"] + 1, "said once, not every two seconds"


def test_a_list_gets_into_tls_once_there_is_room_for_it(authority: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    credentials = Credentials(bundle(authority), Counter())
    before = credentials.context

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_list(authority, 105, [serial(authority, "dev-a")])
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "NamedTemporaryFile", full)
        assert not credentials.refresh()
        assert not credentials.refresh()
    assert credentials.context is before
    assert credentials.refresh()
    assert credentials.context is not before
    assert not credentials.refresh()


def test_a_list_is_taken_up_and_an_older_one_is_not(authority: Path, caplog: pytest.LogCaptureFixture) -> None:
    counts: Counter[str] = Counter()
    bundle(authority).crl.unlink()
    credentials = Credentials(bundle(authority), counts)
    assert credentials.revoked is None
    assert not credentials.refresh()
    write_list(authority, 105, [serial(authority, "dev-a")])
    assert credentials.refresh()
    assert credentials.is_revoked(serial(authority, "dev-a"))
    assert not credentials.is_revoked(serial(authority, "dev-b"))
    write_list(authority, 104, [])
    assert not credentials.refresh()
    bundle(authority).crl.write_text("rubbish")
    assert not credentials.refresh()
    bundle(authority).crl.unlink()
    assert not credentials.refresh()
    assert credentials.is_revoked(serial(authority, "dev-a")), "what was revoked stays revoked"
    assert counts == {"revocations_loaded": 1, "revocations_refused": 3}
    said = [r.message for r in caplog.records if r.levelno == logging.ERROR]
    assert credentials.context.verify_flags & ssl.VERIFY_CRL_CHECK_LEAF
    for text, line in zip(("found number 104, expected 105", "cannot be read", "not found"), said, strict=True):
        assert text in line
        assert "what was in force stays in force" in line


def test_a_second_list_of_one_number_is_not_believed_wherever_it_comes_from(authority: Path) -> None:
    write_list(authority, 105, [serial(authority, "dev-a")])
    credentials = Credentials(bundle(authority), Counter())
    assert credentials.revoked is not None
    assert credentials.take(credentials.revoked.der), "the same again"
    write_list(authority, 105, [])
    assert not credentials.refresh()
    assert not credentials.take(x509.load_pem_x509_crl(bundle(authority).crl.read_bytes()).public_bytes(Encoding.DER))
    assert credentials.is_revoked(serial(authority, "dev-a"))


def test_a_list_of_another_authority_is_not_believed(authority: Path, tmp_path: Path) -> None:
    ca.init(tmp_path / "foreign", "lab", now=time.time())
    write_list(authority, 109, [], signer=tmp_path / "foreign")
    with pytest.raises(ConfigError, match=r"crl\.pem"):
        Credentials(bundle(authority), Counter())


@pytest.mark.parametrize(
    "content", [b"", b"rubbish", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", bytes(600_000)]
)
def test_what_is_no_list_is_told_at_the_start(authority: Path, content: bytes) -> None:
    bundle(authority).crl.write_bytes(content)
    with pytest.raises(ConfigError, match=r"crl\.pem"):
        Credentials(bundle(authority), Counter())


async def ignore(_: MqttMessage) -> None: ...


def link(authority: Path, port: int, who: str) -> MqttLink:
    return MqttLink(LinkConfig("127.0.0.1", port, who, client_context(bundle(authority, who))), ignore)


def test_an_open_session_of_a_certificate_that_is_revoked_is_cut_and_does_not_come_back(
    authority: Path, fast_watch: None
) -> None:
    write_list(authority, 101, [])

    async def scenario() -> None:
        async with EmbeddedBroker(EmbeddedConfig(bundle(authority).directory, port=0)) as broker:
            async with link(authority, broker.port, "dev-a") as stolen, link(authority, broker.port, "dev-b") as other:
                await stolen.wait_connected(WAIT_S)
                await other.wait_connected(WAIT_S)
                write_list(authority, 102, [serial(authority, "dev-a")])
                async with asyncio.timeout(WAIT_S):
                    while stolen.connected:
                        await asyncio.sleep(0.02)
                with pytest.raises(AuthenticationError):
                    await stolen.wait_connected(WAIT_S)
                assert other.connected
                assert other.counters.disconnects == 0
            assert broker.counts["revoked_cut"] == 1
            with pytest.raises(AuthenticationError):
                async with link(authority, broker.port, "dev-a") as again:
                    await again.wait_connected(WAIT_S)
            async with link(authority, broker.port, "dev-b") as fine:
                await fine.wait_connected(WAIT_S)

    asyncio.run(scenario())


def test_who_is_cut_off_is_counted_once_however_long_the_end_takes(
    authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "WATCH_S", 0.0)  # it looks again while the connection ends
    write_list(authority, 101, [])

    async def scenario() -> None:
        async with EmbeddedBroker(EmbeddedConfig(bundle(authority).directory, port=0)) as broker:
            async with link(authority, broker.port, "dev-a") as stolen:
                await stolen.wait_connected(WAIT_S)
                write_list(authority, 102, [serial(authority, "dev-a")])
                async with asyncio.timeout(WAIT_S):
                    while stolen.connected or broker.hub is None or broker.hub.connections:
                        await asyncio.sleep(0.02)
            assert broker.counts["revoked_cut"] == 1

    asyncio.run(scenario())


def test_a_list_that_nobody_renewed_lets_nobody_in(authority: Path) -> None:
    """As with Mosquitto's crlfile: who can stop lists from being renewed must not gain time by it."""
    write_list(authority, 101, [], age_days=9)

    async def scenario() -> None:
        async with EmbeddedBroker(EmbeddedConfig(bundle(authority).directory, port=0)) as broker:
            with pytest.raises(AuthenticationError):
                async with link(authority, broker.port, "dev-b") as device:
                    await device.wait_connected(WAIT_S)

    asyncio.run(scenario())


def test_the_broker_s_own_new_certificate_is_shown_without_a_restart(authority: Path, fast_watch: None) -> None:
    async def scenario() -> tuple[bytes, bytes]:
        async with EmbeddedBroker(EmbeddedConfig(bundle(authority).directory, port=0)) as broker:

            async def shown() -> bytes:
                context = client_context(bundle(authority, "dev-a"))
                _, writer = await asyncio.open_connection("127.0.0.1", broker.port, ssl=context)
                tls = writer.get_extra_info("ssl_object")
                assert isinstance(tls, ssl.SSLObject)
                assert tls.version() == "TLSv1.3"
                found = tls.getpeercert(binary_form=True)
                writer.close()
                assert found is not None
                return found

            first = await shown()
            ca.issue(authority, "broker", CertificateRole.BROKER, now=time.time(), replace=True)
            async with asyncio.timeout(WAIT_S):
                while (second := await shown()) == first:
                    await asyncio.sleep(0.05)
            return first, second

    first, second = asyncio.run(scenario())
    assert first != second


def test_an_open_session_ends_with_its_certificate(
    authority: Path, fast_watch: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> Counter[str]:
        async with EmbeddedBroker(EmbeddedConfig(bundle(authority).directory, port=0)) as broker:
            async with link(authority, broker.port, "dev-a") as device:
                await device.wait_connected(WAIT_S)
                monkeypatch.setattr(hub.time, "time", lambda: 4e9)
                async with asyncio.timeout(WAIT_S):
                    while not broker.counts["expired_cut"]:
                        await asyncio.sleep(0.02)
                monkeypatch.undo()
            return broker.counts

    assert asyncio.run(scenario())["expired_cut"] >= 1


def test_a_revoked_id_is_left_out_of_the_users_of_nats(authority: Path) -> None:
    revoke(authority, "dev-a", RevocationReason.KEY_COMPROMISE, now=time.time())
    assert [holder for holder, _ in issued_to(authority, time.time())] == ["broker", "dev-b"]
    assert issued_to(authority, time.time() + 30 * 86_400) == []


def test_a_list_that_is_published_is_in_force_at_once_and_after_a_restart(
    authority: Path, fast_watch: None, tmp_path: Path
) -> None:
    """The authority may be on another machine: its list is believed by its signature, whoever publishes it."""
    config = EmbeddedConfig(bundle(authority).directory, port=0, state_dir=tmp_path / "state")
    issuer, _ = load_issuer(authority, time.time())
    der = make_list(issuer, 200, [Revocation(serial(authority, "dev-a"), time.time())], now=time.time())
    ca.issue(authority, "aggregator", CertificateRole.AGGREGATOR, now=time.time())

    async def publish_it() -> None:
        async with EmbeddedBroker(config) as broker, link(authority, broker.port, "dev-a") as stolen:
            await stolen.wait_connected(WAIT_S)
            async with link(authority, broker.port, "aggregator") as aggregator:
                await aggregator.wait_connected(WAIT_S)
                await aggregator.publish(Topics("lab").revoked, b"a list of nobody's", retain=True)
                await aggregator.publish(Topics("lab").revoked, der, retain=True)
            async with asyncio.timeout(WAIT_S):
                while stolen.connected:
                    await asyncio.sleep(0.02)
            assert (broker.counts["revocations_loaded"], broker.counts["revocations_refused"]) == (1, 1)

    async def come_back() -> None:
        async with EmbeddedBroker(config) as broker:
            with pytest.raises(AuthenticationError):
                async with link(authority, broker.port, "dev-a") as again:
                    await again.wait_connected(WAIT_S)
            async with link(authority, broker.port, "dev-b") as fine:
                await fine.wait_connected(WAIT_S)

    asyncio.run(publish_it())
    asyncio.run(come_back())


def test_nothing_takes_the_newest_list_s_place_over_a_restart(authority: Path, tmp_path: Path) -> None:
    """The broker's bundle is far from the authority: all that it has of the newest list is what was published."""
    write_list(authority, 150, [])
    config = EmbeddedConfig(bundle(authority).directory, port=0, state_dir=tmp_path / "state")
    issuer, _ = load_issuer(authority, time.time())
    ca.issue(authority, "aggregator", CertificateRole.AGGREGATOR, now=time.time())
    write_list(authority, 150, [])
    revoked = [Revocation(serial(authority, "dev-a"), time.time())]
    newest, older = (make_list(issuer, n, each, now=time.time()) for n, each in ((200, revoked), (199, [])))
    heard: list[bytes] = []

    async def take(message: MqttMessage) -> None:
        heard.append(message.payload)

    async def publish_it() -> None:
        async with EmbeddedBroker(config) as broker, link(authority, broker.port, "aggregator") as aggregator:
            await aggregator.wait_connected(WAIT_S)
            for payload in (newest, older, b"a list of nobody's", b""):
                await aggregator.publish(Topics("lab").revoked, payload, qos=1, retain=True)
            assert broker.counts["publish_denied"] == 3

    async def come_back() -> None:
        async with EmbeddedBroker(config) as broker:
            assert broker.hub is not None
            assert broker.hub.revocation_list_number == 200
            with pytest.raises(AuthenticationError):
                async with link(authority, broker.port, "dev-a") as again:
                    await again.wait_connected(WAIT_S)
            tls = client_context(bundle(authority, "dev-b"))
            async with MqttLink(LinkConfig("127.0.0.1", broker.port, "dev-b", tls), take) as fine:
                await fine.subscribe(Topics("lab").revoked, 1)
                async with asyncio.timeout(WAIT_S):
                    while not heard:
                        await asyncio.sleep(0.02)

    asyncio.run(publish_it())
    asyncio.run(come_back())
    assert heard == [newest]
