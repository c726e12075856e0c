"""The aggregator's intake: what comes out can be believed; everything else is a `PeerError` with its reason."""

from __future__ import annotations

from typing import Any

import pytest
from participant_parts import Gateway
from round_effects import rosters
from round_fleet import SIX, recording
from round_parts import AGGREGATOR, NOW, SITE, TASK, TOPICS, Stage, checkin, sealed, upload

from vedette_aggregator.intake import AlertReceived, Intake, StateReceived, TelemetryReceived
from vedette_aggregator.round_events import CheckInReceived, SharesReceived, UploadReceived, VoteReceived
from vedette_core.crypto.certificate_chain import der
from vedette_core.crypto.certificates import CertificateRole, Purpose, make_leaf
from vedette_core.crypto.signing import Ed25519Signer, KeyRing
from vedette_core.machine import Publish
from vedette_schemas import codec
from vedette_schemas.envelope import pre_authentication_encoding, seal
from vedette_schemas.errors import PeerError
from vedette_schemas.round import CHECKIN_TYPE, OFFER_TYPE, UPLOAD_TYPE, CheckIn, Upload, offer_statement
from vedette_schemas.secagg import SHARES_TYPE, VOTE_TYPE, Shares, Vote
from vedette_schemas.telemetry import DeviceState, Telemetry
from vedette_schemas.topics import FlStep

CHECKIN_TOPIC = TOPICS.fl("gw-00", TASK, FlStep.CHECKIN)
UPLOAD_TOPIC = TOPICS.fl("gw-00", TASK, FlStep.UPLOAD)
VOTE_TOPIC = TOPICS.fl("gw-00", TASK, FlStep.VOTE)
SHARES_TOPIC = TOPICS.fl("gw-00", TASK, FlStep.SHARES)
HELPER_TOPIC = TOPICS.fl("helper-0", TASK, FlStep.CHECKIN)
VOTE = recording().votes["gw-00"]
SHARES = recording().shares["gw-00"]


def intake(ring: KeyRing | None = None) -> Intake:
    return Intake(TOPICS, ring or SITE.ring(), [TASK])


def knowing_gw00() -> Intake:
    found = intake()
    found.take(CHECKIN_TOPIC, sealed_checkin(checkin("gw-00")), NOW)
    return found


def sealed_checkin(
    body: CheckIn, signer: str | None = None, sender: str | None = None, kind: str = CHECKIN_TYPE
) -> bytes:
    return seal(body, kind, sender or body.device, SITE.node(signer or body.device).signer)


def an_upload(device: str = "gw-00", **changes: Any) -> Upload:
    stage = Stage()
    stage.to_collect()
    return upload(rosters(stage.effects)[0], device, **changes)


def refused(topic: str, payload: bytes, found: Intake | None = None, now: float = NOW) -> str:
    """The reason of the refusal."""
    with pytest.raises(PeerError) as caught:
        (found or intake()).take(topic, payload, now)
    return caught.value.reason


def test_a_checkin_is_believed_by_its_own_certificate() -> None:
    body = checkin("gw-00")
    assert intake().take(CHECKIN_TOPIC, sealed_checkin(body), NOW) == CheckInReceived(body)


def test_a_checkin_shows_the_certificate_of_the_key_that_signed_it() -> None:
    """After a renewal two of a device hold: members would know the shown one only, and refuse the whole roster."""
    renewed = Ed25519Signer.from_seed(b"n" * 32)
    leaf = der(
        make_leaf(
            SITE._issuer,
            renewed.public_key,
            holder="gw-00",
            role=CertificateRole.DEVICE,
            site="plant-1",
            purpose=Purpose.SIGNING,
            now=NOW,
            serial=2**64 + 77,
        )
    )
    found = intake()
    for number, certificate in ((1, leaf), (2, SITE.node("gw-00").certificate)):
        body = checkin("gw-00", number)
        statement = offer_statement(TASK, "gw-00", number, body.epk, body.role)
        offer = renewed.sign(pre_authentication_encoding(OFFER_TYPE, "gw-00", statement))
        body = body.model_copy(update={"certificate": certificate, "offer": offer})
        payload = seal(body, CHECKIN_TYPE, "gw-00", renewed)
        if certificate is leaf:
            found.take(CHECKIN_TOPIC, payload, NOW)
        else:
            assert refused(CHECKIN_TOPIC, payload, found) == "signature"


def test_what_a_device_really_sends_is_believed() -> None:
    gateway = Gateway()
    gateway.to_uploaded()
    found = intake()
    sent = [e for e in gateway.effects if isinstance(e, Publish)]
    events = [found.take(e.topic, e.payload, NOW) for e in sent]
    assert [type(e) for e in events] == [CheckInReceived, UploadReceived]


def test_an_upload_is_believed_of_a_device_that_checked_in() -> None:
    body = an_upload()
    event = knowing_gw00().take(UPLOAD_TOPIC, sealed(body), NOW)
    assert event == UploadReceived(body, sealed(body))
    assert refused(UPLOAD_TOPIC, sealed(body)) == "unknown-sender"


def test_after_a_restart_devices_are_remembered_by_their_certificates() -> None:
    found = intake()
    node = SITE.node("gw-00")
    helper = SITE.node("helper-0")
    certificates = [
        ("gw-00", "contribute", node.certificate, SITE.intermediate),
        ("gw-01", "contribute", node.certificate, SITE.intermediate),
        ("helper-0", "unmask", helper.certificate, SITE.intermediate),
        ("gw-02", "unmask", SITE.node("gw-02").certificate, SITE.intermediate),
    ]
    assert found.remember(certificates, NOW) == ("gw-01", "gw-02")
    found.take(UPLOAD_TOPIC, sealed(an_upload()), NOW)
    assert intake().remember(certificates[:1], NOW + 30 * 86_400) == ("gw-00",), "its certificate has ended"


@pytest.mark.parametrize(
    ("topic", "payload", "reason"),
    [
        (TOPICS.fl("gw-01", TASK, FlStep.CHECKIN), sealed_checkin(checkin("gw-00")), "sender"),
        (CHECKIN_TOPIC, sealed_checkin(checkin("gw-00"), signer="gw-01"), "signature"),
        (CHECKIN_TOPIC, sealed_checkin(checkin("gw-00"), sender="gw-01"), "sender"),
        (CHECKIN_TOPIC, sealed_checkin(checkin("gw-00"), kind=UPLOAD_TYPE), "type"),
        (CHECKIN_TOPIC, sealed_checkin(checkin("gw-01"), signer="gw-00", sender="gw-00"), "sender"),
        (
            CHECKIN_TOPIC,
            sealed_checkin(checkin("gw-00").model_copy(update={"device": "gw-01"}), signer="gw-00", sender="gw-00"),
            "device",
        ),
        (CHECKIN_TOPIC, sealed_checkin(checkin("gw-00", offer=bytes(64))), "signature"),
        (CHECKIN_TOPIC, sealed_checkin(checkin("gw-00", seq=2)), "signature"),
        (CHECKIN_TOPIC, sealed_checkin(checkin("gw-00", offer=checkin("gw-00", 2).offer)), "signature"),
        (CHECKIN_TOPIC, sealed_checkin(checkin("gw-00", offer=checkin("gw-01").offer)), "signature"),
        (CHECKIN_TOPIC, sealed_checkin(checkin("gw-00", role="unmask")), "role"),
        (HELPER_TOPIC, sealed_checkin(checkin("helper-0", role="contribute")), "role"),
        (CHECKIN_TOPIC, sealed_checkin(checkin("gw-00", task="sensor")), "task"),
        (TOPICS.fl("gw-00", "sensor", FlStep.CHECKIN), sealed_checkin(checkin("gw-00", task="sensor")), "task"),
        (CHECKIN_TOPIC, sealed_checkin(checkin("gw-00", certificate=b"no certificate")), "certificate"),
        (CHECKIN_TOPIC, sealed_checkin(checkin("gw-00", certificate=SITE.node("gw-01").certificate)), "sender"),
        (CHECKIN_TOPIC, sealed_checkin(checkin("gw-00", certificate=SITE.node(AGGREGATOR).certificate)), "sender"),
        (HELPER_TOPIC, sealed_checkin(checkin("helper-0", certificate=SITE.node("gw-00").certificate)), "sender"),
        (CHECKIN_TOPIC, sealed_checkin(checkin("gw-00")) + b"\x00", "encoding"),
        (CHECKIN_TOPIC, b"", "encoding"),
        (UPLOAD_TOPIC, sealed_checkin(checkin("gw-00")), "type"),
        (VOTE_TOPIC, b"", "encoding"),
        (SHARES_TOPIC, b"", "encoding"),
        (VOTE_TOPIC, VOTE.sealed, "unknown-sender"),
        (SHARES_TOPIC, SHARES.sealed, "unknown-sender"),
        (TOPICS.fl("gw-00", "sensor", FlStep.VOTE), VOTE.sealed, "task"),
        (TOPICS.committee("gw-00"), b"", "topic"),
        (TOPICS.round(TASK), b"", "topic"),
        (TOPICS.receipt("gw-00"), b"", "topic"),
        ("vedette/1/plant-2/device/gw-00/up/alert", b"", "topic"),
        ("other/topic", b"", "topic"),
        (TOPICS.alert("gw-00"), b"not json", "encoding"),
        (TOPICS.state("gw-00"), b"{}", "schema"),
        (TOPICS.telemetry("gw-00"), b"\xc0", "schema"),
    ],
)
def test_what_cannot_be_believed_is_refused(topic: str, payload: bytes, reason: str) -> None:
    assert refused(topic, payload) == reason


def test_an_expired_certificate_is_refused() -> None:
    assert refused(CHECKIN_TOPIC, sealed_checkin(checkin("gw-00")), now=NOW + 30 * 86_400) == "expired"


@pytest.mark.parametrize(
    ("topic", "body", "reason"),
    [
        (TOPICS.fl("gw-01", TASK, FlStep.UPLOAD), sealed(an_upload()), "sender"),
        (UPLOAD_TOPIC, seal(an_upload(), UPLOAD_TYPE, "gw-00", SITE.node("gw-01").signer), "signature"),
        (UPLOAD_TOPIC, seal(an_upload("gw-01"), UPLOAD_TYPE, "gw-00", SITE.node("gw-00").signer), "device"),
        (UPLOAD_TOPIC, sealed(an_upload(task="sensor")), "task"),
        (UPLOAD_TOPIC, sealed(an_upload(header=bytes(64))), "signature"),
        (UPLOAD_TOPIC, sealed(an_upload(header=an_upload("gw-01").header)), "signature"),
        (UPLOAD_TOPIC, sealed(an_upload().model_copy(update={"transcript": bytes(32)})), "signature"),
        (UPLOAD_TOPIC, sealed(an_upload().model_copy(update={"boxes": (b"another box",)})), "signature"),
    ],
)
def test_an_upload_of_somebody_else_is_refused(topic: str, body: bytes, reason: str) -> None:
    assert refused(topic, body, knowing_gw00()) == reason


def test_a_helper_is_believed_by_a_certificate_of_its_own_kind() -> None:
    body = checkin("helper-0")
    assert body.role == "unmask"
    assert intake().take(HELPER_TOPIC, sealed_checkin(body), NOW) == CheckInReceived(body)


def test_votes_and_shares_are_believed_of_whoever_checked_in() -> None:
    found = knowing_gw00()
    assert found.take(VOTE_TOPIC, VOTE.sealed, NOW) == VoteReceived(VOTE.body, VOTE.sealed)
    assert found.take(SHARES_TOPIC, SHARES.sealed, NOW) == SharesReceived(SHARES.body, SHARES.sealed)


def as_vote(signer: str = "gw-00", sender: str = "gw-00", kind: str = VOTE_TYPE, **changes: Any) -> bytes:
    body: Vote = VOTE.body.model_copy(update=changes)
    return seal(body, kind, sender, SITE.node(signer).signer)


def as_shares(signer: str = "gw-00", sender: str = "gw-00", kind: str = SHARES_TYPE, **changes: Any) -> bytes:
    body: Shares = SHARES.body.model_copy(update=changes)
    return seal(body, kind, sender, SITE.node(signer).signer)


@pytest.mark.parametrize(
    ("topic", "payload", "reason"),
    [
        (VOTE_TOPIC, as_vote(signer="gw-01"), "signature"),
        (VOTE_TOPIC, as_vote(sender="gw-01", signer="gw-01"), "sender"),
        (VOTE_TOPIC, as_vote(kind=SHARES_TYPE), "type"),
        (VOTE_TOPIC, as_vote(member="gw-01"), "member"),
        (VOTE_TOPIC, as_vote(task="sensor"), "task"),
        (VOTE_TOPIC, recording().votes[SIX[1]].sealed, "sender"),
        (SHARES_TOPIC, as_shares(signer="gw-01"), "signature"),
        (SHARES_TOPIC, as_shares(sender="gw-01", signer="gw-01"), "sender"),
        (SHARES_TOPIC, as_shares(kind=VOTE_TYPE), "type"),
        (SHARES_TOPIC, as_shares(member="gw-01"), "member"),
        (SHARES_TOPIC, as_shares(task="sensor"), "task"),
        (SHARES_TOPIC, VOTE.sealed, "type"),
    ],
)
def test_votes_and_shares_of_somebody_else_are_refused(topic: str, payload: bytes, reason: str) -> None:
    assert refused(topic, payload, knowing_gw00()) == reason


def test_every_byte_of_a_certificate_may_be_wrong() -> None:
    original = SITE.node("gw-00").certificate
    found = intake()
    for place in range(0, len(original), 3):
        broken = original[:place] + bytes([original[place] ^ 0x10]) + original[place + 1 :]
        with pytest.raises(PeerError):
            found.take(CHECKIN_TOPIC, sealed_checkin(checkin("gw-00", certificate=broken)), NOW)


def test_state_and_reports_are_of_the_device_whose_topic_they_come_on() -> None:
    state = DeviceState(
        device="gw-00", status="online", session="0" * 16, seq=1, time="2030-03-17T17:46:40Z", software="0.1.0"
    )
    report = Telemetry(
        device="gw-00",
        session="0" * 16,
        seq=1,
        time_s=NOW,
        uptime_s=1.0,
        rss_bytes=1,
        cpu_s=0.1,
        spool_messages=0,
        spool_bytes=0,
        spool_dropped=0,
        bytes_up=0,
        detectors=(),
    )
    assert intake().take(TOPICS.state("gw-00"), codec.pack_json(state), NOW) == StateReceived(state)
    assert intake().take(TOPICS.telemetry("gw-00"), codec.pack(report), NOW) == TelemetryReceived(report)
    assert refused(TOPICS.state("gw-01"), codec.pack_json(state)) == "device"
    assert refused(TOPICS.telemetry("gw-01"), codec.pack(report)) == "device"


def test_alerts_are_of_the_device_and_site_whose_topic_they_come_on() -> None:
    body = _alert()
    assert isinstance(intake().take(TOPICS.alert("gw-00"), body, NOW), AlertReceived)
    assert refused(TOPICS.alert("gw-01"), body) == "device"
    assert refused(TOPICS.alert("gw-00"), body.replace(b'"site":"plant-1"', b'"site":"plant-2"')) == "site"


@pytest.mark.parametrize(
    ("found", "instead"),
    [
        (b'"seq":0', b'"seq":99999999999999999999'),
        (b'"window_end":"2030-03-17', b'"window_end":"2030-99-17'),
        (b'"window_start":"2030-03-17', b'"window_start":"0000-03-17'),
    ],
)
def test_an_alert_that_nobody_could_store_or_date_is_refused(found: bytes, instead: bytes) -> None:
    assert refused(TOPICS.alert("gw-00"), _alert().replace(found, instead)) == "schema"


def test_an_upload_is_refused_once_the_certificate_that_it_was_learnt_from_has_ended() -> None:
    ended = SITE.ring().learn(SITE.node("gw-00").certificate, NOW, intermediate=SITE.intermediate).not_after
    found, body = knowing_gw00(), sealed(an_upload())
    assert isinstance(found.take(UPLOAD_TOPIC, body, ended), UploadReceived)
    assert refused(UPLOAD_TOPIC, body, found, now=ended + 1) == "expired"
    assert refused(VOTE_TOPIC, VOTE.sealed, found, now=ended + 1) == "expired"
    assert refused(SHARES_TOPIC, SHARES.sealed, found, now=ended + 1) == "expired"


FORGED = seal(an_upload(), UPLOAD_TYPE, "gw-00", SITE.node("gw-01").signer)


@pytest.mark.parametrize(
    ("topic", "payload", "late", "answer"),
    [
        (CHECKIN_TOPIC, sealed_checkin(checkin("gw-00")), 30 * 86_400, ("gw-00", checkin("gw-00").id)),
        (UPLOAD_TOPIC, sealed(an_upload()), 30 * 86_400, ("gw-00", an_upload().id)),
        (
            UPLOAD_TOPIC,
            seal(an_upload(), UPLOAD_TYPE, "gw-00", SITE.node("gw-01").signer),
            0,
            ("gw-00", an_upload().id),
        ),
        (CHECKIN_TOPIC, sealed_checkin(checkin("gw-00"), kind=UPLOAD_TYPE), 0, None),
        (CHECKIN_TOPIC, b"", 0, None),
        (VOTE_TOPIC, VOTE.sealed, 30 * 86_400, ("gw-00", VOTE.body.id)),
        (SHARES_TOPIC, as_shares(signer="gw-01"), 0, ("gw-00", SHARES.body.id)),
        (SHARES_TOPIC, as_shares(sender="gw-01", signer="gw-01"), 0, None),
        (TOPICS.fl("gw-01", TASK, FlStep.UPLOAD), sealed(an_upload()), 0, None),
    ],
)
def test_what_will_never_be_believed_is_answered_so_that_it_is_not_sent_for_ever(
    topic: str, payload: bytes, late: float, answer: tuple[str, str] | None
) -> None:
    found = knowing_gw00()
    with pytest.raises(PeerError) as caught:
        found.take(topic, payload, NOW + late)
    assert found.hopeless(topic, payload, caught.value) == answer


def _alert() -> bytes:
    time = "2030-03-17T17:46:40Z"
    return codec.canonical_json(
        {
            "v": 1,
            "id": "a-1",
            "seq": 0,
            "time": time,
            "site": "plant-1",
            "device": "gw-00",
            "entity": "10.0.0.7",
            "detector": "network",
            "kind": "magnitude",
            "severity": "high",
            "confidence": 0.9,
            "score": 9.0,
            "p_value": 1e-6,
            "threshold": 3.0,
            "window_start": time,
            "window_end": time,
            "features": [],
            "model": {"task": "network", "version": 1, "digest": "0" * 16},
            "state": "open",
            "count": 1,
            "summary": "a port scan",
        }
    )
