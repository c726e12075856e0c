"""The authority's process, without a broker: what it answers, and what one node's requests cost the others."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from pathlib import Path

import pytest
from ca_parts import enrolled

from vedette_broker import ca, ca_authority, ca_revocation
from vedette_broker.ca_service import LAST_CHANCE_S, WINDOW_REQUESTS, WINDOW_S, AuthorityService, RequestWindow
from vedette_broker.ca_settings import AuthoritySettings
from vedette_core.crypto.certificate_chain import der
from vedette_core.runtime.bundle_requests import renewal_request
from vedette_core.runtime.identity import NodeIdentity
from vedette_core.runtime.mqtt import MqttMessage
from vedette_schemas import codec
from vedette_schemas.enrolment import CertificateReply
from vedette_schemas.errors import PeerError, TransientError
from vedette_schemas.topics import Topics

TOPICS = Topics("lab")


def asks(node: NodeIdentity, sealed: bytes) -> MqttMessage:
    return MqttMessage(TOPICS.renewal_request(node.id), sealed, 1, False)


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    ca.init(tmp_path / "ca", "lab", now=time.time())
    return tmp_path / "ca"


def test_one_node_s_flood_keeps_no_other_from_renewing(
    authority: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy, quiet = (enrolled(authority, tmp_path / name, now=time.time(), holder=name) for name in ("gw-01", "gw-02"))
    service = AuthorityService(AuthoritySettings(authority=authority))
    said: list[tuple[str, CertificateReply]] = []

    async def publish(topic: str, payload: bytes, **_: object) -> None:
        said.append((topic, codec.unpack(CertificateReply, payload)))

    monkeypatch.setattr(service._link, "publish", publish)
    flood, genuine = renewal_request(noisy), renewal_request(quiet)

    async def scenario() -> None:
        for _ in range(WINDOW_REQUESTS + 1):
            await service._take(asks(noisy, flood))
        await service._take(asks(quiet, genuine))

    asyncio.run(scenario())
    topic, reply = said[-1]
    assert topic == TOPICS.renewal_reply("gw-02")
    assert reply.outcome == "issued", reply.reason
    assert len(said) < 50, "nor is each of them answered"


def test_the_window_counts_each_and_all_and_forgets() -> None:
    window = RequestWindow(all_max=5, each_max=2)
    for _ in range(2):
        window.take("a", 100.0)
    with pytest.raises(PeerError) as each:
        window.take("a", 100.0)
    assert each.value.reason == "limit"
    for who in ("b", "b", "c"):
        window.take(who, 101.0)
    with pytest.raises(TransientError, match="5 requests"):
        window.take("d", 101.0)
    for _ in range(2):
        window.take("a", 100.5 + WINDOW_S)
    with pytest.raises(PeerError):
        window.take("a", 100.5 + WINDOW_S)


# -- another authority issues


def the_service(authority: Path, monkeypatch: pytest.MonkeyPatch) -> AuthorityService:
    service = AuthorityService(AuthoritySettings(authority=authority))
    monkeypatch.setattr(service._link, "reconnect", lambda _: None)
    return service


def test_its_own_certificate_follows_once_the_broker_knows_who_issues(
    authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = the_service(authority, monkeypatch)
    before = service._node.serials
    ca_authority.renew(authority, now=time.time())
    service._renew_self()
    assert service._node.serials == before, "a broker that was not told would refuse it"
    service._told = ca_revocation.newest_list(authority).authorities
    service._renew_self()
    assert service._node.intermediate == der(ca_authority.issues(authority))
    after = service._node.serials
    service._renew_self()
    assert service._node.serials == after != before


def test_a_day_before_its_end_it_renews_whoever_knows(authority: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = the_service(authority, monkeypatch)
    ca_authority.renew(authority, now=time.time())
    service._node = dataclasses.replace(service._node, tls_not_after=time.time() + LAST_CHANCE_S - 60)
    service._renew_self()
    assert service._node.intermediate == der(ca_authority.issues(authority))


def test_the_end_of_the_authority_is_in_its_metrics_and_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ca.init(tmp_path / "ca", "lab", now=time.time() - 340 * 86_400)
    service = the_service(tmp_path / "ca", monkeypatch)
    for _ in range(2):
        service._look_at_end()
    ends = service._metrics.registry.get_sample_value("vedette_authority_expiry_timestamp_seconds")
    assert ends == ca_authority.ends_at(tmp_path / "ca")
    said = [r.message for r in caplog.records if "vedette ca intermediate renew" in r.message]
    assert len(said) == 1, "once a day"
    ca_authority.renew(tmp_path / "ca", now=time.time())
    service._look_at_end()
    later = service._metrics.registry.get_sample_value("vedette_authority_expiry_timestamp_seconds")
    assert later is not None
    assert later > ends + 300 * 86_400
