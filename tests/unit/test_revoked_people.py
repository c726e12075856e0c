"""Revoked while they are in the middle of it: check-ins, uploads, votes, shares, rosters and survivor sets."""

from __future__ import annotations

import pytest
from participant_parts import SITE as PARTY
from participant_parts import Gateway, notes
from round_parts import NOW, SITE, TASK, TOPICS, checkin, sealed
from secagg_parts import Group, Node
from secagg_site import NOW as COMMITTEE_NOW
from secagg_site import Authority, the_authority
from test_intake_aggregator import (
    CHECKIN_TOPIC,
    SHARES,
    SHARES_TOPIC,
    UPLOAD_TOPIC,
    VOTE,
    VOTE_TOPIC,
    an_upload,
    sealed_checkin,
)

from vedette_aggregator.intake import Intake
from vedette_aggregator.round_events import CheckInReceived, UploadReceived
from vedette_core.crypto.certificate_chain import load_certificates
from vedette_core.crypto.certificates import Issuer
from vedette_core.crypto.revocation import Revocation, make_list
from vedette_core.crypto.signing import KeyRing
from vedette_core.secagg.committee import CloseReceived, OpeningReceived
from vedette_device.participant_events import RosterReceived, Train
from vedette_schemas.errors import PeerError


def serial_of(certificate: bytes) -> int:
    return load_certificates(certificate)[0].serial_number


def own_ring() -> KeyRing:
    """A ring of the tests' site that shares nothing with the other tests'."""
    (online,) = load_certificates(SITE.intermediate)
    return KeyRing(SITE.root, "plant-1", [online])


def site_list(number: int, *names: str) -> bytes:
    issuer: Issuer = SITE._issuer
    return make_list(issuer, number, [Revocation(serial_of(SITE.node(n).certificate), NOW) for n in names], now=NOW)


@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        (CHECKIN_TOPIC, sealed_checkin(checkin("gw-00"))),
        (UPLOAD_TOPIC, sealed(an_upload())),
        (VOTE_TOPIC, VOTE.sealed),
        (SHARES_TOPIC, SHARES.sealed),
    ],
    ids=["checkin", "upload", "vote", "shares"],
)
def test_the_aggregator_refuses_a_revoked_device_within_one_list(topic: str, payload: bytes) -> None:
    ring = own_ring()
    intake = Intake(TOPICS, ring, [TASK])
    intake.take(CHECKIN_TOPIC, sealed_checkin(checkin("gw-00")), NOW)
    intake.take(topic, payload, NOW)
    ring.revocations.take(site_list(1, "gw-01"))
    intake.take(topic, payload, NOW)
    ring.revocations.take(site_list(2, "gw-01", "gw-00"))
    with pytest.raises(PeerError, match="found it revoked") as caught:
        intake.take(topic, payload, NOW)
    assert caught.value.reason == "revoked"
    answer = intake.hopeless(topic, payload, caught.value)
    assert answer is not None
    assert answer[0] == "gw-00", "it is told, and does not send it for ever"
    assert ring.revoked() == {"gw-00"}


def test_the_others_are_heard_as_before() -> None:
    ring = own_ring()
    intake = Intake(TOPICS, ring, [TASK])
    ring.revocations.take(site_list(1, "gw-01"))
    assert isinstance(intake.take(CHECKIN_TOPIC, sealed_checkin(checkin("gw-00")), NOW), CheckInReceived)
    assert isinstance(intake.take(UPLOAD_TOPIC, sealed(an_upload()), NOW), UploadReceived)


def test_a_restarted_aggregator_does_not_remember_a_revoked_device() -> None:
    ring = own_ring()
    ring.revocations.take(site_list(1, "gw-00"))
    intake, node = Intake(TOPICS, ring, [TASK]), SITE.node("gw-00")
    assert intake.remember([("gw-00", "contribute", node.certificate, SITE.intermediate)], NOW) == ("gw-00",)
    assert "gw-00" not in ring


def test_a_device_does_not_sit_beside_a_revoked_member() -> None:
    """The aggregator may know no newer list, or not want to: the device asks its own."""
    for names, trains in (((), True), (("gw-01",), False), (("gw-00",), False)):
        gateway = Gateway()
        ring = own_ring()
        ring.revocations.take(
            make_list(PARTY._issuer, 1, [Revocation(serial_of(PARTY.node(n).certificate), NOW) for n in names], now=NOW)
        )
        gateway.machine._peers = ring
        gateway.to_collecting()
        effects = gateway.handle(RosterReceived(gateway.roster()))
        assert any(isinstance(e, Train) for e in effects) is trains, names
        assert ("revoked" in notes(effects)) is not trains


def test_a_committee_member_votes_for_no_set_with_a_revoked_device() -> None:
    group, authority = Group(), the_authority()
    ring = KeyRing(authority.root, authority.site, [authority.online])
    member, revoked = group.committee[0], group.committee[3]
    node = Node(group.people[member], group.plan.task, ring)
    assert node.seat(group.roster, group.plan).outcome == "accepted"
    serial = serial_of(group.people[revoked].certificate)
    ring.revocations.take(_committee_list(authority, 1, serial))
    assert node.tell(CloseReceived(group.close(member))).outcome != "accepted"
    assert node.said == [], "no word about a set with it"
    others = [name for name in group.uploads if name != revoked]
    assert node.tell(CloseReceived(group.close(member, others))).outcome == "accepted"
    assert len(node.said) == 1


def test_a_revoked_member_s_vote_opens_nothing() -> None:
    group, authority = Group(), the_authority()
    member, revoked = group.committee[0], group.committee[3]
    others = [name for name in group.uploads if name != revoked]
    rings = {name: KeyRing(authority.root, authority.site, [authority.online]) for name in group.committee}
    votes = [group.vote(group.people[name], others) for name in group.committee if name != revoked]
    forged = group.vote(group.people[revoked], others)
    node = Node(group.people[member], group.plan.task, rings[member])
    assert node.seat(group.roster, group.plan).outcome == "accepted"
    assert node.tell(CloseReceived(group.close(member, others))).outcome == "accepted"
    serial = serial_of(group.people[revoked].certificate)
    rings[member].revocations.take(_committee_list(authority, 1, serial))
    needed = group.plan.groups.votes_min
    assert node.tell(OpeningReceived(group.opening([*votes[: needed - 1], forged], others))).outcome != "accepted"
    assert len(node.said) == 1, "no shares on a revoked member's word"
    assert node.tell(OpeningReceived(group.opening(votes[:needed], others))).outcome == "accepted"
    assert len(node.said) == 2


def _committee_list(authority: Authority, number: int, *serials: int) -> bytes:
    entries = [Revocation(serial, COMMITTEE_NOW) for serial in serials]
    return make_list(authority._issuer, number, entries, now=COMMITTEE_NOW)
