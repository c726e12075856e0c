"""Another issuing authority, or another ca.crt, while the broker runs."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from ca_parts import replace_authority
from cryptography import x509

from vedette_broker import ca, hub
from vedette_broker.ca_revocation import refresh, revoke
from vedette_broker.ca_store import load_chain, pem, replace_file
from vedette_broker.credentials import Credentials
from vedette_broker.embedded import EmbeddedBroker, EmbeddedConfig
from vedette_core.crypto.certificates import CertificateRole
from vedette_core.crypto.revocation import RevocationReason
from vedette_core.runtime.identity import Bundle, client_context
from vedette_core.runtime.mqtt import AuthenticationError, LinkConfig, MqttLink, MqttMessage
from vedette_schemas.errors import ConfigError, PeerError

WAIT_S = 60.0


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    directory = tmp_path / "ca"
    ca.init(directory, "lab", now=time.time())
    ca.issue(directory, "broker", CertificateRole.BROKER, now=time.time())
    ca.issue(directory, "dev-old", CertificateRole.DEVICE, now=time.time())
    return directory


@pytest.fixture
def broker_bundle(authority: Path, tmp_path: Path) -> Bundle:
    """The broker's bundle on another machine: nothing reaches it by itself."""
    return Bundle(shutil.copytree(authority / "bundles" / "broker", tmp_path / "broker"))


@pytest.fixture
def fast_watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(hub, "WATCH_S", 0.05)
    return


def tell(bundle: Bundle, authority: Path, *intermediates: x509.Certificate) -> None:
    replace_file(bundle.ca, pem(load_chain(authority)[0], *intermediates), 0o644)


async def ignore(_: MqttMessage) -> None: ...


def link(authority: Path, port: int, who: str) -> MqttLink:
    tls = client_context(Bundle(authority / "bundles" / who))
    return MqttLink(LinkConfig("127.0.0.1", port, who, tls), ignore)


async def until_let_in(authority: Path, port: int, who: str) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                async with link(authority, port, who) as client:
                    await client.wait_connected(WAIT_S)
                    return
            except AuthenticationError:
                await asyncio.sleep(0.05)


async def is_kept_out(authority: Path, port: int, who: str) -> None:
    with pytest.raises(AuthenticationError):
        async with link(authority, port, who) as client:
            await client.wait_connected(WAIT_S)


def test_a_new_authority_is_taken_by_a_broker_that_runs(
    authority: Path, broker_bundle: Bundle, fast_watch: None
) -> None:
    async def scenario() -> None:
        async with EmbeddedBroker(EmbeddedConfig(broker_bundle.directory, port=0)) as broker:
            async with link(authority, broker.port, "dev-old") as old:
                await old.wait_connected(WAIT_S)
                before, fresh = replace_authority(authority, time.time())
                for device in ("dev-new", "dev-stolen"):
                    ca.issue(authority, device, CertificateRole.DEVICE, now=time.time())
                await is_kept_out(authority, broker.port, "dev-new")
                tell(broker_bundle, authority, before, fresh)
                await until_let_in(authority, broker.port, "dev-new")
                assert old.connected
                assert old.counters.disconnects == 0, "nobody is cut off by it"
            await until_let_in(authority, broker.port, "dev-old")
            # Its first list says what it has revoked; leaves of the authority before hold until they end.
            made = revoke(authority, "dev-stolen", RevocationReason.KEY_COMPROMISE, now=time.time())
            replace_file(broker_bundle.crl, made.pem, 0o644)
            async with asyncio.timeout(WAIT_S):
                while broker.hub is None or broker.hub.revocation_list_number != made.number:
                    await asyncio.sleep(0.02)
            await is_kept_out(authority, broker.port, "dev-stolen")
            await until_let_in(authority, broker.port, "dev-new")
            await until_let_in(authority, broker.port, "dev-old")
            tell(broker_bundle, authority, fresh)
            async with asyncio.timeout(WAIT_S):
                while broker.hub._credentials.intermediates != (fresh,):
                    await asyncio.sleep(0.02)
            await is_kept_out(authority, broker.port, "dev-old")
            await until_let_in(authority, broker.port, "dev-new")

    asyncio.run(scenario())


def test_who_is_connected_does_not_outlast_an_authority_that_was_taken_out(
    authority: Path, broker_bundle: Bundle, fast_watch: None
) -> None:
    before, fresh = replace_authority(authority, time.time())
    ca.issue(authority, "dev-new", CertificateRole.DEVICE, now=time.time())
    tell(broker_bundle, authority, before, fresh)
    broker_bundle.crl.unlink(
        missing_ok=True
    )  # the authority that made the newest list counts until another list says otherwise

    async def scenario() -> None:
        async with EmbeddedBroker(EmbeddedConfig(broker_bundle.directory, port=0)) as broker:
            async with link(authority, broker.port, "dev-new") as new, link(authority, broker.port, "dev-old") as old:
                await new.wait_connected(WAIT_S)
                await old.wait_connected(WAIT_S)
                tell(broker_bundle, authority, fresh)
                async with asyncio.timeout(WAIT_S):
                    while old.connected or not broker.counts["authority_cut"]:
                        await asyncio.sleep(0.02)
                assert new.connected
                assert new.counters.disconnects == 0
            assert broker.counts["authority_cut"] == 1

    asyncio.run(scenario())


def test_while_there_are_two_authorities_an_overdue_list_lets_nobody_in(authority: Path, broker_bundle: Bundle) -> None:
    before, fresh = replace_authority(authority, time.time())
    made = refresh(authority, now=time.time() - 9 * 86_400)
    ca.issue(authority, "dev-new", CertificateRole.DEVICE, now=time.time())
    tell(broker_bundle, authority, before, fresh)
    replace_file(broker_bundle.crl, made.pem, 0o644)

    async def scenario() -> None:
        async with EmbeddedBroker(EmbeddedConfig(broker_bundle.directory, port=0)) as broker:
            await is_kept_out(authority, broker.port, "dev-new")
            await is_kept_out(authority, broker.port, "dev-old")

    asyncio.run(scenario())


def test_a_list_that_came_before_its_authority_counts_with_it(authority: Path, broker_bundle: Bundle) -> None:
    counts: Counter[str] = Counter()
    credentials = Credentials(broker_bundle, counts)
    before, fresh = replace_authority(authority, time.time())
    serial = int(ca.list_issued(authority)[1].serials[0], 16)
    made = revoke(authority, "dev-old", RevocationReason.UNSPECIFIED, now=time.time())
    replace_file(broker_bundle.crl, made.pem, 0o644)
    assert not credentials.refresh()
    assert not credentials.is_revoked(serial)
    assert credentials.context.verify_flags & ssl.VERIFY_CRL_CHECK_LEAF
    tell(broker_bundle, authority, before, fresh)
    assert credentials.refresh()
    with pytest.raises(PeerError, match="revoked"):
        credentials.check(serial, "dev-old", time.time())
    assert not credentials.context.verify_flags & ssl.VERIFY_CRL_CHECK_LEAF, "TLS would want a list of each of the two"
    tell(broker_bundle, authority, fresh)
    assert credentials.refresh()
    assert credentials.context.verify_flags & ssl.VERIFY_CRL_CHECK_LEAF
    assert counts == {"revocations_loaded": 1, "revocations_refused": 1}


def test_a_broker_without_a_list_takes_an_authority_as_well(authority: Path, broker_bundle: Bundle) -> None:
    broker_bundle.crl.unlink()
    counts: Counter[str] = Counter()
    credentials = Credentials(broker_bundle, counts)
    both = replace_authority(authority, time.time())
    tell(broker_bundle, authority, *both)
    assert credentials.refresh()
    assert not credentials.refresh()
    assert set(credentials.intermediates) == set(both)
    assert (credentials.revoked, counts) == (None, Counter())


@pytest.mark.parametrize("content", [b"", b"nonsense", None, "another site's"])
def test_a_ca_crt_that_is_not_the_site_s_changes_nothing_and_keeps_nothing_else_out(
    authority: Path, broker_bundle: Bundle, tmp_path: Path, content: bytes | str | None
) -> None:
    counts: Counter[str] = Counter()
    credentials = Credentials(broker_bundle, counts)
    known, context = (credentials.root, credentials.intermediates), credentials.context
    if content is None:
        broker_bundle.ca.unlink()
    elif isinstance(content, bytes):
        broker_bundle.ca.write_bytes(content)
    else:
        ca.init(tmp_path / "other", "lab", now=time.time())
        broker_bundle.ca.write_bytes((tmp_path / "other" / "online" / "ca.crt").read_bytes())
    assert not credentials.refresh()
    assert counts["revocations_refused"] >= 1
    ca.issue(authority, "broker", CertificateRole.BROKER, now=time.time(), replace=True)
    made = revoke(authority, "dev-old", RevocationReason.UNSPECIFIED, now=time.time())
    for name in ("tls.crt", "tls.key"):
        shutil.copy(authority / "bundles" / "broker" / name, broker_bundle.directory / name)
    replace_file(broker_bundle.crl, made.pem, 0o644)
    assert credentials.refresh()
    assert (credentials.root, credentials.intermediates) == known
    assert credentials.context is not context
    assert credentials.revoked is not None
    assert credentials.revoked.number == made.number
    if content is not None:
        with pytest.raises(ConfigError):
            Credentials(broker_bundle, counts)
