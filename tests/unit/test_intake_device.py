"""The device's intake: only the aggregator's signed word about this device's own tasks comes through."""

from __future__ import annotations

import pytest
from group_parts import Rest
from participant_parts import Gateway, opened, upload_body
from round_parts import AGGREGATOR, NOW, SITE, TASK, TOPICS, Stage, checkin, rosters

from vedette_aggregator.round_events import CheckInReceived
from vedette_core.machine import Publish
from vedette_core.secagg.committee import CloseReceived, OpeningReceived
from vedette_device.command_machine import CommandReceived
from vedette_device.intake import Intake
from vedette_device.participant_events import ReceiptReceived, RosterReceived, RoundOpened
from vedette_schemas.codec import Message
from vedette_schemas.command import COMMAND_TYPE, Command
from vedette_schemas.envelope import seal
from vedette_schemas.errors import PeerError
from vedette_schemas.round import OPEN_TYPE, ROSTER_TYPE, Phase
from vedette_schemas.secagg import CLOSE_TYPE, OPENING_TYPE, VOTE_TYPE, Close, Opening
from vedette_schemas.telemetry import RECEIPT_TYPE, Receipt, ReceiptItem

RECEIPT = Receipt(device="gw-00", items=(ReceiptItem(id="x", outcome="accepted"),))

COMMAND = Command(device="gw-00", seq=1, issued_s=NOW, expires_s=NOW + 60.0, action="recalibrate", task=TASK)


def intake() -> Intake:
    ring = SITE.ring()
    ring.learn(SITE.node(AGGREGATOR).certificate, NOW)
    ring.learn(SITE.node("gw-01").certificate, NOW)
    return Intake(TOPICS, "gw-00", AGGREGATOR, [TASK], ring)


def said(body: Message, kind: str, sender: str = AGGREGATOR, signer: str | None = None) -> bytes:
    return seal(body, kind, sender, SITE.node(signer or sender).signer)


def test_what_the_aggregator_really_says_is_believed() -> None:
    stage = Stage()
    stage.to_collect()
    sent = [e for e in stage.effects if isinstance(e, Publish) and "gw-01" not in e.topic and "gw-02" not in e.topic]
    kinds = {type(intake().take(e.topic, e.payload)) for e in sent}
    assert kinds == {RoundOpened, RosterReceived, ReceiptReceived}


def test_a_command_for_this_device_is_believed() -> None:
    assert intake().take(TOPICS.command("gw-00"), said(COMMAND, COMMAND_TYPE)) == CommandReceived(COMMAND)


@pytest.mark.parametrize(
    ("topic", "payload", "reason"),
    [
        (TOPICS.round(TASK), said(opened(Phase.CHECKIN), OPEN_TYPE, signer="gw-01"), "signature"),
        (TOPICS.round(TASK), said(opened(Phase.CHECKIN), OPEN_TYPE, sender="gw-01"), "sender"),
        (TOPICS.round(TASK), said(opened(Phase.CHECKIN), ROSTER_TYPE), "type"),
        (TOPICS.round(TASK), said(opened(Phase.CHECKIN, task="sensor"), OPEN_TYPE), "task"),
        (TOPICS.round("sensor"), said(opened(Phase.CHECKIN, task="sensor"), OPEN_TYPE), "task"),
        (TOPICS.round(TASK), b"", "encoding"),
        (TOPICS.group(TASK, 0), b"", "encoding"),
        (TOPICS.receipt("gw-01"), said(RECEIPT, RECEIPT_TYPE), "device"),
        (
            TOPICS.receipt("gw-00"),
            said(RECEIPT.model_copy(update={"device": "gw-01"}), RECEIPT_TYPE),
            "device",
        ),
        (TOPICS.receipt("gw-00"), said(RECEIPT, RECEIPT_TYPE, sender="gw-01"), "sender"),
        (TOPICS.command("gw-01"), said(COMMAND, COMMAND_TYPE), "device"),
        (TOPICS.command("gw-00"), said(COMMAND.model_copy(update={"device": "gw-01"}), COMMAND_TYPE), "device"),
        (TOPICS.command("gw-00"), said(COMMAND, COMMAND_TYPE, sender="gw-01"), "sender"),
        (TOPICS.command("gw-00"), said(COMMAND, COMMAND_TYPE, signer="gw-01"), "signature"),
        (TOPICS.command("gw-00"), said(COMMAND, RECEIPT_TYPE), "type"),
        (TOPICS.trust("timestamp.json"), b"", "topic"),
        ("other/topic", b"", "topic"),
    ],
)
def test_everything_else_is_refused(topic: str, payload: bytes, reason: str) -> None:
    with pytest.raises(PeerError) as caught:
        intake().take(topic, payload)
    assert caught.value.reason == reason


def test_a_roster_on_another_groups_topic_is_refused() -> None:
    gateway = Gateway()
    gateway.to_collecting()
    payload = said(gateway.roster(), ROSTER_TYPE)
    assert isinstance(intake().take(TOPICS.group(TASK, 0), payload), RosterReceived)
    with pytest.raises(PeerError, match="found group 0, expected 1") as caught:
        intake().take(TOPICS.group(TASK, 1), payload)
    assert caught.value.reason == "group"


def test_a_devices_own_messages_do_not_pass_for_the_aggregators() -> None:
    stage = Stage()
    stage.to_checkin()
    stage.handle(CheckInReceived(checkin("gw-00")))
    assert rosters(stage.effects) == []
    with pytest.raises(PeerError):
        intake().take(TOPICS.round(TASK), said(checkin("gw-01"), "round.checkin", sender="gw-01"))


# -- the committee ----------------------------------------------------------------------------------------------------


def committee_work() -> tuple[Close, Opening]:
    """What an aggregator asks of this device."""
    gateway = Gateway()
    upload = gateway.to_uploaded()
    rest = Rest(gateway.roster(), gateway.plan, upload_body(upload))
    rest.vote()
    return rest.close(), rest.opening()


def test_committee_work_is_told_apart_by_its_type() -> None:
    close, opening = committee_work()
    topic = TOPICS.committee("gw-00")
    assert intake().take(topic, said(close, CLOSE_TYPE)) == CloseReceived(close)
    assert intake().take(topic, said(opening, OPENING_TYPE)) == OpeningReceived(opening)


@pytest.mark.parametrize("which", [0, 1], ids=["close", "opening"])
def test_committee_work_is_the_aggregators_and_for_this_device(which: int) -> None:
    body, kind = committee_work()[which], (CLOSE_TYPE, OPENING_TYPE)[which]
    other_kind = (OPENING_TYPE, CLOSE_TYPE)[which]
    sensor = body.model_copy(update={"task": "sensor"})
    for topic, payload, reason in (
        (TOPICS.committee("gw-01"), said(body, kind), "device"),
        (TOPICS.committee("gw-00"), said(body, kind, sender="gw-01"), "sender"),
        (TOPICS.committee("gw-00"), said(body, kind, signer="gw-01"), "signature"),
        (TOPICS.committee("gw-00"), said(body, other_kind), "schema"),
        (TOPICS.committee("gw-00"), said(body, VOTE_TYPE), "type"),
        (TOPICS.committee("gw-00"), said(sensor, kind), "task"),
        (TOPICS.committee("gw-00"), said(body, kind)[:-1], "encoding"),
        (TOPICS.committee("gw-00"), b"", "encoding"),
    ):
        with pytest.raises(PeerError) as caught:
            intake().take(topic, payload)
        assert caught.value.reason == reason
