"""Lies of an aggregator about uploads and votes: no secret may come out of any of them.

Each is told to honest machines. Then the adversary tries to compute what it may not know, from all that honest parties
ever said and the keys of as many corrupt members as the plan tolerates, and of corrupt devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from secagg_adversary import MODES, Adversary, Scene, refused, scene_of
from secagg_parts import (
    Answer,
    Group,
    Node,
    make_plan,
    make_upload,
    sign_header,
)
from secagg_site import NOW, Person, digest, helper, person, the_authority, the_ring

from vedette_core.crypto.agreement import key_pair
from vedette_core.crypto.signing import Ed25519Signer
from vedette_core.secagg.committee import CloseReceived, OpeningReceived, Seated
from vedette_core.secagg.parameters import votes_needed
from vedette_schemas import codec
from vedette_schemas.envelope import seal
from vedette_schemas.round import header_of
from vedette_schemas.secagg import VOTE_TYPE, Close, Vote


@pytest.fixture(params=MODES)
def scene(request: pytest.FixtureRequest) -> Scene:
    """Both kinds of committee."""
    return scene_of(request.param)


def altered(scene: Scene, alter: Callable[[Close, str], Close]) -> list[Answer]:
    """What honest members answer to an altered close."""
    return [n.tell(CloseReceived(alter(scene.group.close(name), name))) for name, n in scene.nodes.items()]


def with_fields(close: Close, device: str, **changes: Any) -> Close:
    """The close with other fields of one survivor."""
    several = tuple(s.model_copy(update=changes) if s.device == device else s for s in close.survivors)
    return close.model_copy(update={"survivors": several})


def test_lie_32_headers_exchanged_between_devices(scene: Scene) -> None:
    """One device's signature over its header, at another one's name."""

    def exchange(close: Close, _: str) -> Close:
        first, second, *rest = close.survivors
        swapped_headers = (
            first.model_copy(update={"header": second.header}),
            second.model_copy(update={"header": first.header}),
        )
        return close.model_copy(update={"survivors": (*swapped_headers, *rest)})

    refused(altered(scene, exchange), "signature")
    scene.nothing_learnt()


def test_lie_33_uploads_exchanged_between_devices(scene: Scene) -> None:
    """Everything of one device at another one's name."""

    def exchange(close: Close, _: str) -> Close:
        first, second, *rest = close.survivors
        pair = (
            second.model_copy(update={"device": first.device}),
            first.model_copy(update={"device": second.device}),
        )
        return close.model_copy(update={"survivors": (*pair, *rest)})

    refused(altered(scene, exchange), "signature")
    scene.nothing_learnt()


def test_lie_34_boxes_exchanged_between_members(scene: Scene) -> None:
    """A member that gets another one's box must not complain of the device: it is told from the digests."""
    listed = scene.group.committee

    def exchange(close: Close, name: str) -> Close:
        other = listed[(listed.index(name) + 1) % len(listed)]
        return with_fields(close, scene.victim, box=scene.group.survivor(scene.victim, other).box)

    answers = altered(scene, exchange)
    refused(answers, "a box that it did not sign")
    assert not any(vote.complaints for answer in answers for vote in answer.votes)
    scene.nothing_learnt()


@pytest.mark.parametrize("fake", [b"", bytes(60), bytes(1024)])
def test_lie_35_boxes_that_the_device_did_not_seal(scene: Scene, fake: bytes) -> None:
    """Nor of any other box that is not the device's."""
    refused(altered(scene, lambda close, _: with_fields(close, scene.victim, box=fake)), "a box that it did not sign")
    scene.nothing_learnt()


@pytest.mark.parametrize("what", ["vector", "boxes", "commitments"])
def test_lie_36_another_header_than_was_signed(scene: Scene, what: str) -> None:
    """The signature is over all of it."""
    header = header_of(scene.group.uploads[scene.victim])
    every: dict[str, dict[str, Any]] = {
        "vector": {"vector": bytes(32)},
        "boxes": {"boxes": tuple(reversed(header.boxes))},
        "commitments": {"commitments": bytes(32)},
    }
    other = every[what]
    refused(altered(scene, lambda close, _: with_fields(close, scene.victim, **other)), "signature")
    scene.nothing_learnt()


def test_lie_37_a_header_with_fewer_boxes(scene: Scene) -> None:
    """A corrupt device that signs boxes for some members only."""
    corrupt = next(p for p in scene.corrupt if p.name in scene.group.devices)
    upload = scene.group.uploads[corrupt.name]
    short = upload.model_copy(update={"boxes": upload.boxes[:-1]})
    short = short.model_copy(update={"header": sign_header(header_of(short), corrupt)})
    boxes = header_of(short).boxes
    answers = altered(scene, lambda close, _: with_fields(close, corrupt.name, boxes=boxes, header=short.header))
    refused(answers, "boxes, expected")
    scene.nothing_learnt()


def test_lie_38_a_corrupt_device_with_two_uploads(scene: Scene) -> None:
    """It signs two, and the aggregator shows one to some members and the other to the rest: that makes two sets."""
    corrupt = next(p for p in scene.corrupt if p.name in scene.group.devices)
    second = make_upload(scene.group.roster, scene.group.plan, corrupt, salt="2", vector=np.zeros(48, np.uint16))
    scene.adversary.see_upload(scene.group, corrupt.name, second)
    names = list(scene.nodes)
    votes: list[bytes] = []
    for place, name in enumerate(names):
        close = scene.group.close(name)
        if place % 2:
            several = tuple(
                scene.group.survivor(corrupt.name, name, second) if s.device == corrupt.name else s
                for s in close.survivors
            )
            close = close.model_copy(update={"survivors": several})
        votes += scene.nodes[name].tell(CloseReceived(close)).messages
    scene.open([*votes, *scene.bought()])
    needed = votes_needed(scene.group.plan.groups, len(scene.group.committee))
    if sum(place % 2 == 0 for place in range(len(names))) + scene.group.plan.groups.corrupt_max >= needed:
        scene.only_the_sum(scene.group.uploads)
    else:
        scene.nothing_learnt()


def test_lie_39_an_opening_without_a_close(scene: Scene) -> None:
    """Who has not voted does not release, whatever votes it is shown."""
    votes = scene.ask(members=list(scene.nodes)[1:])
    late = next(iter(scene.nodes))
    answers = scene.open(votes, members=[late])
    assert [(a.outcome, a.messages) for a in answers] == [("discarded", [])]
    scene.nothing_learnt()


def test_lie_40_an_opening_with_one_vote_too_few(scene: Scene) -> None:
    """One below what is needed, and then enough."""
    votes = scene.ask()
    needed = votes_needed(scene.group.plan.groups, len(scene.group.committee))
    refused(scene.open(votes[-needed + 1 :]), f"found {needed - 1} valid votes, expected {needed}")
    scene.nothing_learnt()
    scene.open(votes[-needed:])
    scene.only_the_sum(scene.group.uploads)


FORGERIES = (
    "copies of one vote",
    "of a device that is not in the committee",
    "of a stranger",
    "signed by the aggregator in a member's name",
    "of one member in another's name",
    "for another set",
    "of another group",
    "of another attempt",
    "of another round",
    "of another task",
    "for another transcript",
    "damaged",
    "not votes at all",
    "shares as votes",
)


@pytest.mark.parametrize("forgery", FORGERIES)
def test_lie_41_forged_votes(scene: Scene, forgery: str) -> None:
    """Votes of corrupt members and one honest one, filled up with what is none."""
    group = scene.group
    honest = list(scene.nodes)
    real = scene.ask(members=honest[:1])
    scene.ask(members=honest[1:])
    missing = [group.people[n] for n in honest[1:]]
    aggregator = Ed25519Signer.from_seed(digest("aggregator"))
    outsiders = [person(f"gw-out-{i}") for i in range(6)]
    body = Vote.model_validate(codec.unpack_plain(seal_body(group.vote(missing[0])), "vote"))
    fewer = [d for d in group.uploads if d != scene.victim]
    fills: dict[str, Callable[[Person], list[bytes]]] = {
        "copies of one vote": lambda p: [real[0]],
        "of a device that is not in the committee": lambda p: [
            group.vote(d) for d in (outsiders if group.plan.groups.committee == "inline" else group.devices.values())
        ][:6],
        "of a stranger": lambda p: [group.vote(Person(p.name, p.role, outsiders[0].signer, b"", p.pair))],
        "signed by the aggregator in a member's name": lambda p: [
            seal(body.model_copy(update={"member": p.name}), VOTE_TYPE, p.name, aggregator)
        ],
        "of one member in another's name": lambda p: [
            seal(body.model_copy(update={"member": p.name}), VOTE_TYPE, c.name, c.signer) for c in scene.corrupt
        ],
        "for another set": lambda p: [group.vote(p, fewer)],
        "of another group": lambda p: [group.vote(p, gid=1)],
        "of another attempt": lambda p: [group.vote(p, attempt=2)],
        "of another round": lambda p: [group.vote(p, round=2)],
        "of another task": lambda p: [group.vote(p, task="motors")],
        "for another transcript": lambda p: [group.vote(p, transcript=bytes(32))],
        "damaged": lambda p: [group.vote(p)[:-1] + b"\x00"],
        "not votes at all": lambda p: [b"", b"\x80", bytes(64)],
        "shares as votes": lambda p: [seal(body, "committee.shares", p.name, p.signer)],
    }
    votes = [*real, *(v for p in missing for v in fills[forgery](p))]
    refused(scene.open(votes[:64]), "valid votes, expected")
    scene.nothing_learnt()


def seal_body(sealed: bytes) -> bytes:
    """The body of a sealed message."""
    body = codec.unpack_plain(sealed, "envelope")["body"]
    assert isinstance(body, bytes)
    return body


def test_lie_42_votes_of_members_whose_certificates_have_ended() -> None:
    """Such a member has no vote any more; the others' count, and a device that dropped out costs nothing."""
    old, young = NOW - 6 * 86_400, NOW + 2 * 86_400
    group = Group(make_plan(committee="helpers", size=5))
    ended = list(group.helpers)[:2]

    def renewed(p: Person, now: float) -> Person:
        return Person(p.name, p.role, p.signer, the_authority().certificate(p.signer, p.name, p.role, now), p.pair)

    helpers = [renewed(p, old) if n in ended else renewed(p, NOW - 60) for n, p in group.helpers.items()]
    dropped = list(group.devices)[-1]
    devices = [renewed(p, old) if n == dropped else renewed(p, NOW - 60) for n, p in group.devices.items()]
    group = Group(group.plan, devices=devices, helpers=helpers, uploads=list(group.devices)[:-1])
    nodes = group.nodes()
    votes = [v for n, node in nodes.items() for v in node.tell(CloseReceived(group.close(n)), young).messages]
    assert len(votes) == 5
    answer = nodes["helper-04"].tell(OpeningReceived(group.opening(votes)), young)
    refused([answer], "found 3 valid votes, expected 4")
    late = Group(group.plan, devices=devices, helpers=helpers)
    node = late.nodes(["helper-04"])["helper-04"]
    refused([node.tell(CloseReceived(late.close("helper-04")), young)], "ended")


def test_lie_43_groups_that_share_a_helpers_key() -> None:
    """A helper serves two groups with one key: what is said in one says nothing in the other."""
    plan = make_plan(committee="helpers", size=5, groups=2)
    helpers = [helper(f"helper-{i:02}") for i in range(5)]
    groups = [Group(plan, helpers=helpers, gid=gid) for gid in (0, 1)]
    assert groups[0].plan.groups.corrupt_max == 2
    nodes = groups[0].nodes([p.name for p in helpers[:3]])
    adversary = Adversary(helpers[3:])
    for name, node in nodes.items():
        node.seat(groups[1].roster, plan)
        for mine, other in (groups, groups[::-1]):
            crossed = mine.close(name).model_copy(update={"gid": other.roster.gid})
            refused([node.tell(CloseReceived(crossed))], "transcript")
            crossed = crossed.model_copy(update={"transcript": other.transcript})
            refused([node.tell(CloseReceived(crossed))], "not in the roster")
    for group in groups:
        adversary.see(group)
    votes = [v for n, node in nodes.items() for v in node.tell(CloseReceived(groups[0].close(n))).messages]
    votes += [groups[0].vote(p) for p in helpers[3:]]
    for name, node in nodes.items():
        assert len(node.tell(CloseReceived(groups[1].close(name))).messages) == 1
        refused([node.tell(OpeningReceived(groups[1].opening(votes)))], "another group or set")
        assert adversary.hear(node.tell(OpeningReceived(groups[0].opening(votes)))).outcome == "accepted"
    assert set(adversary.exposed(groups[0])) == {frozenset(groups[0].devices)}
    assert adversary.released(groups[1]) == {}


def test_lie_44_the_same_people_in_two_tasks() -> None:
    """A close of one task at the machine of another: another transcript, and no seat."""
    groups = {task: Group(make_plan(task=task)) for task in ("network", "motors")}
    name = groups["network"].committee[0]
    node = groups["network"].nodes([name])[name]
    answer = node.tell(Seated(groups["motors"].roster, groups["motors"].plan, node.who.pair))
    refused([answer], "no seat")
    refused([node.tell(CloseReceived(groups["motors"].close(name)))], "transcript")


def test_a_seat_needs_the_own_key() -> None:
    """A roster that shows another key, or none, for this node is no seat."""
    group = Group()
    node = Node(group.people[group.committee[0]])
    wrong = key_pair(digest("another"))
    refused([node.tell(Seated(group.roster, group.plan, wrong))], "no seat")
    refused([Node(person("gw-out-1")).seat(group.roster, group.plan)], "no seat")
    assert node.machine.seats == ()
    assert the_ring().fork() is not the_ring()
