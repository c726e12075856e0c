"""Lies of an aggregator about rosters, models and plans: no secret may come out of any of them.

Each is told to honest machines. Then the adversary tries to compute what it may not know, from all that honest parties
ever said and the keys of as many corrupt members as the plan tolerates, and of corrupt devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from secagg_adversary import MODES, Adversary, Scene, refused, scene_of
from secagg_parts import (
    Group,
    Node,
    device_agrees,
    make_plan,
    make_roster,
    make_upload,
    names_in_group,
    plain_vector,
)
from secagg_site import NOW, Authority, Person, digest, entropy_of, helper, person, the_authority

from vedette_core.crypto.agreement import key_pair
from vedette_core.crypto.certificates import CertificateRole
from vedette_core.crypto.signing import Ed25519Signer
from vedette_core.secagg.committee import CloseReceived, Seated
from vedette_core.secagg.membership import committee_of
from vedette_core.secagg.parameters import check_plan
from vedette_core.secagg.participant import mask_update
from vedette_core.secagg.secrets import pair_secret
from vedette_schemas.errors import PeerError, RefusedError
from vedette_schemas.round import Plan, Roster, plan_bytes, transcript_hash


@pytest.fixture(params=MODES)
def scene(request: pytest.FixtureRequest) -> Scene:
    """Both kinds of committee."""
    return scene_of(request.param)


def swapped(group: Group, device: str, /, **changes: Any) -> Roster:
    """The roster with other fields in one member's entry."""
    members = tuple(m.model_copy(update=changes) if m.device == device else m for m in group.roster.members)
    return Roster.model_validate(group.roster.model_dump() | {"members": tuple(m.model_dump() for m in members)})


def test_lie_15_the_aggregators_own_key_in_a_members_entry(scene: Scene) -> None:
    """With it, it would share the mask of the victim's pair."""
    own = key_pair(digest("the aggregator's"))
    target = scene.honest[1]
    roster = swapped(scene.group, target, epk=own.public)
    with pytest.raises(PeerError, match="did not sign"):
        device_agrees(roster, scene.group.plan)
    roster = swapped(scene.group, target, epk=own.public, offer=Ed25519Signer.from_seed(bytes(32)).sign(b"x"))
    with pytest.raises(PeerError, match="did not sign"):
        device_agrees(roster, scene.group.plan)
    for name, node in scene.nodes.items():
        later = node.tell(Seated(roster, scene.group.plan, node.who.pair))
        if name != target:
            refused([later], "second roster")
    for name, node in scene.nodes.items():
        close = scene.group.close(name).model_copy(update={"transcript": transcript_hash(roster)})
        refused([node.tell(CloseReceived(close))], "transcript")
    scene.nothing_learnt()


@pytest.mark.parametrize("replayed", ["offer of an older key", "offer in another task", "offer in another role"])
def test_lie_16_an_offer_that_was_for_something_else(scene: Scene, replayed: str) -> None:
    """What a device signed once does not make another key, task or role of it."""
    target = scene.honest[1]
    who = scene.group.devices[target]
    offers = {
        "offer of an older key": person(target, key=9).offer(),
        "offer in another task": who.offer(task="motors"),
        "offer in another role": who.offer(word="unmask"),
    }
    with pytest.raises(PeerError, match="did not sign"):
        device_agrees(swapped(scene.group, target, offer=offers[replayed]), scene.group.plan)
    scene.nothing_learnt()


@pytest.mark.parametrize("kind", ["self-made", "of another site", "of somebody else", "expired"])
def test_lie_17_sybils(scene: Scene, kind: str) -> None:
    """Members that no authority of the site has made."""
    name = scene.honest[1]
    signer = Ed25519Signer.from_seed(digest("sybil"))
    role = CertificateRole.DEVICE
    certificates: dict[str, Callable[[], bytes]] = {
        "self-made": lambda: Authority("the aggregator's").certificate(signer, name, role),
        "of another site": lambda: Authority(site="plant-2").certificate(signer, name, role),
        "of somebody else": lambda: the_authority().certificate(signer, "gw-other", role),
        "expired": lambda: the_authority().certificate(signer, name, role, now=NOW - 8 * 86_400 - 3600),
    }
    sybil = Person(name, role, signer, certificates[kind](), key_pair(digest("sybil")))
    roster = swapped(scene.group, name, **dict(sybil.member()))
    with pytest.raises(PeerError, match="certificate"):
        device_agrees(roster, scene.group.plan)
    scene.nothing_learnt()


def test_lie_18_members_of_another_group() -> None:
    """The aggregator stacks a group with those whom it knows: the beacon does not put them there."""
    plan = make_plan(groups=4)
    mine = [person(n) for n in names_in_group(2, 4, 4)]
    theirs = [person(n) for n in names_in_group(3, 4, 4)]
    with pytest.raises(PeerError, match="where the beacon puts it"):
        device_agrees(make_roster(plan, [*mine, *theirs], gid=2), plan)
    device_agrees(make_roster(plan, [person(n) for n in names_in_group(2, 4, 8)], gid=2), plan)


def test_lie_19_another_beacon_or_group() -> None:
    """The whole roster under another beacon, or under another number."""
    plan = make_plan(groups=4)
    people = [person(n) for n in names_in_group(2, 4, 8)]
    lies: list[dict[str, Any]] = [{"gid": 2, "beacon": bytes(32)}, {"gid": 1}, {"gid": 4}]
    for changes in lies:
        with pytest.raises(PeerError, match=r"where the beacon puts it|one of 4"):
            device_agrees(make_roster(plan, people, **changes), plan)
    scene = scene_of("inline")
    for changes in lies[:2]:
        other = make_roster(scene.group.plan, list(scene.group.devices.values()), **changes)
        assert transcript_hash(other) != scene.group.transcript
        for name, node in scene.nodes.items():
            close = scene.group.close(name, transcript=transcript_hash(other))
            refused([node.tell(CloseReceived(close))], "transcript")
    scene.nothing_learnt()


def test_lie_20_a_roster_of_too_few(scene: Scene) -> None:
    """Members left out until the sum is small, or until corrupt ones are most of the committee."""
    few = list(scene.group.devices.values())[: scene.group.plan.groups.survivors_min - 1]
    with pytest.raises(PeerError, match="members, expected"):
        device_agrees(make_roster(scene.group.plan, few, list(scene.group.helpers.values())), scene.group.plan)
    if scene.group.helpers:
        corrupt = list(scene.group.helpers.values())[-scene.group.plan.groups.corrupt_max :]
        with pytest.raises(RefusedError, match="a committee of 4"):
            device_agrees(make_roster(scene.group.plan, list(scene.group.devices.values()), corrupt), scene.group.plan)
    scene.nothing_learnt()


def test_lie_21_two_entries_with_one_key(scene: Scene) -> None:
    """A corrupt device that calls an honest one's key its own."""
    honest, corrupt = (
        scene.group.devices[scene.honest[0]],
        next(p for p in scene.corrupt if p.name in scene.group.devices),
    )
    twin = Person(corrupt.name, corrupt.role, corrupt.signer, corrupt.certificate, honest.pair)
    roster = swapped(scene.group, corrupt.name, **dict(twin.member()))
    with pytest.raises(PeerError, match="one key for two"):
        device_agrees(roster, scene.group.plan)
    scene.nothing_learnt()


def test_lie_22_the_same_point_as_another_key(scene: Scene) -> None:
    """X25519 ignores the top bit, so that one point has two encodings: the pair's secrets differ all the same."""
    honest = scene.group.devices[scene.honest[1]]
    corrupt = next(p for p in scene.corrupt if p.name in scene.group.devices)
    public = honest.pair.public[:-1] + bytes([honest.pair.public[-1] ^ 0x80])
    twin = Person(corrupt.name, corrupt.role, corrupt.signer, corrupt.certificate, type(honest.pair)(bytes(32), public))
    people = [twin if p.name == corrupt.name else p for p in scene.group.devices.values()]
    uploads = [p.name for p in people if p.name != corrupt.name]
    group = Group(scene.group.plan, devices=people, helpers=list(scene.group.helpers.values()), uploads=uploads)
    device_agrees(group.roster, group.plan)
    adversary = Adversary([p for p in scene.corrupt if p.name != corrupt.name])
    adversary.see(group)
    assert adversary.released(group) == {}
    for device in scene.honest:
        keys = scene.group.devices[device].pair
        if keys.public != honest.pair.public:
            pair = pair_secret(keys, honest.pair.public, group.transcript)
            assert pair != pair_secret(keys, public, group.transcript), "the same point, and another secret"


@pytest.mark.parametrize("point", [bytes(32), bytes([1]) + bytes(31)])
def test_lie_23_a_key_of_low_order(scene: Scene, point: bytes) -> None:
    """With such a key, the pair's secret would be the same for everybody: nobody uploads."""
    corrupt = next(p for p in scene.corrupt if p.name in scene.group.devices)
    weak = Person(corrupt.name, corrupt.role, corrupt.signer, corrupt.certificate, type(corrupt.pair)(bytes(32), point))
    roster = swapped(scene.group, corrupt.name, **dict(weak.member()))
    for device in scene.honest:
        vector = plain_vector(device, scene.group.plan)
        with pytest.raises(PeerError, match="small order"):
            mask_update(vector, roster, scene.group.plan, device, scene.group.devices[device].pair, entropy_of("x"))
    scene.nothing_learnt()


@pytest.mark.parametrize("weight", [0, 5, 255])
def test_lie_24_weights_outside_the_plan(scene: Scene, weight: int) -> None:
    """A victim that counts for nothing, or so much that it drowns the others."""
    with pytest.raises(PeerError, match=f"weight {weight}"):
        device_agrees(swapped(scene.group, scene.victim, weight=weight), scene.group.plan)
    scene.nothing_learnt()


def test_lie_25_device_certificates_in_the_committee_and_the_other_way_round() -> None:
    """There are many devices, and they are cheap to corrupt: they cannot sit where helpers do."""
    group = Group(make_plan(committee="helpers", size=15))
    wrong = person("gw-corrupt", CertificateRole.DEVICE)
    as_helper = Person(wrong.name, CertificateRole.COMMITTEE, wrong.signer, wrong.certificate, wrong.pair)
    helpers = [*list(group.helpers.values())[1:], as_helper]
    with pytest.raises(PeerError, match="found role device, expected committee"):
        device_agrees(make_roster(group.plan, list(group.devices.values()), helpers), group.plan)
    name = next(iter(group.devices))
    sitting = person(name, CertificateRole.COMMITTEE)
    as_device = Person(name, CertificateRole.DEVICE, sitting.signer, sitting.certificate, sitting.pair)
    devices = [*list(group.devices.values())[1:], as_device]
    with pytest.raises(PeerError, match="found role committee, expected device"):
        device_agrees(make_roster(group.plan, devices, list(group.helpers.values())), group.plan)


def test_lie_26_one_id_as_member_and_as_helper() -> None:
    """Two certificates of one id: the helper's key would sign for the device."""
    group = Group(make_plan(committee="helpers", size=15))
    helpers = [*list(group.helpers.values())[1:], helper(next(iter(group.devices)))]
    with pytest.raises(PeerError, match="as member and as helper"):
        device_agrees(make_roster(group.plan, list(group.devices.values()), helpers), group.plan)


def test_lie_27_another_committee_than_the_plans(scene: Scene) -> None:
    """No helpers where the plan wants them, and some where it does not."""
    devices = list(scene.group.devices.values())
    helpers = [] if scene.group.helpers else [helper("helper-00")]
    with pytest.raises(PeerError, match="a committee of"):
        device_agrees(make_roster(scene.group.plan, devices, helpers), scene.group.plan)


@pytest.mark.parametrize("swap", ["model", "plan", "attempt", "round"])
def test_lie_28_another_model_plan_or_place_for_one_victim(scene: Scene, swap: str) -> None:
    """The victim's masks are unrelated to the others' then: the sum is noise, and its header is for something else."""
    other_plan = make_plan(survivors_min=6)
    every: dict[str, dict[str, Any]] = {
        "model": {"model": "c" * 64},
        "plan": {"plan": plan_bytes(other_plan)[1]},
        "attempt": {"attempt": 3},
        "round": {"round": 7},
    }
    people = (list(scene.group.devices.values()), list(scene.group.helpers.values()))
    roster = make_roster(scene.group.plan, *people, **every[swap])
    upload = make_upload(roster, scene.group.plan, scene.group.devices[scene.victim])
    answers = []
    for name, node in scene.nodes.items():
        close = scene.group.close(name)
        mixed = tuple(
            scene.group.survivor(s.device, name, upload) if s.device == scene.victim else s for s in close.survivors
        )
        answers.append(node.tell(CloseReceived(close.model_copy(update={"survivors": mixed}))))
    refused(answers, "signature")
    scene.nothing_learnt()


def test_lie_29_a_plan_with_other_numbers_behind_the_same_roster(scene: Scene) -> None:
    """A plan that asks for one survivor: a member keeps to the one that it was seated with."""
    lax = scene.group.plan.model_copy(
        update={"groups": scene.group.plan.groups.model_copy(update={"survivors_min": 1})}
    )
    with pytest.raises(RefusedError, match="survivors_min 1"):
        check_plan(lax)
    for name, node in scene.nodes.items():
        node.seat(scene.group.roster, lax)
        refused([node.tell(CloseReceived(scene.group.close(name, [scene.victim])))], "expected 5 or more")
    scene.nothing_learnt()


UNSAFE: dict[str, tuple[dict[str, Any], str]] = {
    "too few survivors": ({"survivors_min": 4}, "anonymity"),
    "a quorum below a group": ({"quorum": 4}, "group"),
    "masking without a committee": ({"committee": "none"}, "committee"),
    "an inline committee of others": ({"committee_size": 7}, "committee"),
    "no votes": ({"votes_min": 0}, "quorum"),
    "more votes than members": ({"votes_min": 9, "threshold": 4}, "quorum"),
    "two sets": ({"votes_min": 5, "threshold": 4}, "equivocation"),
    "two sets by one corrupt member more": ({"corrupt_max": 4}, "equivocation"),
    "corrupt members open secrets": ({"threshold": 3}, "secrecy"),
    "a threshold that votes do not reach": ({"votes_min": 6, "threshold": 7}, "liveness"),
    "only corrupt members survive": ({"votes_min": 8, "threshold": 8, "corrupt_max": 7}, "anonymity"),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_lie_30_unsafe_numbers(name: str) -> None:
    """Each rule of a plan, broken alone."""
    check_plan(make_plan())
    changes, rule = UNSAFE[name]
    with pytest.raises(RefusedError) as caught:
        check_plan(make_plan(**changes))
    assert caught.value.rule == rule


def test_lie_30_noise_that_promises_nothing() -> None:
    """Noise without a budget, or with statistics beside it."""
    base = make_plan(update={"statistics": False}).model_dump()
    good = {"noise_multiplier": 1.0, "epsilon_max": 3.0, "participations_max": 5}
    check_plan(Plan.model_validate(base | {"privacy": good}))
    for changes, rule in (({"epsilon_max": 0.0}, "budget"), ({"participations_max": 0}, "budget")):
        with pytest.raises(RefusedError) as caught:
            check_plan(Plan.model_validate(base | {"privacy": good | changes}))
        assert caught.value.rule == rule
    with pytest.raises(RefusedError) as caught:
        check_plan(Plan.model_validate(make_plan().model_dump() | {"privacy": good}))
    assert caught.value.rule == "statistics"


def test_lie_31_a_plan_without_masking() -> None:
    """It must be said openly: without a committee; and nobody is seated under it."""
    plain = make_plan(committee="none", committee_size=0, update={"protection": "none"})
    check_plan(plain)
    with pytest.raises(RefusedError, match="without masking"):
        check_plan(make_plan(update={"protection": "none"}))
    group = Group()
    roster = make_roster(plain, list(group.devices.values()))
    assert committee_of(roster, plain) == ()
    node = Node(next(iter(group.devices.values())))
    refused([node.tell(Seated(roster, plain, node.who.pair))], "no seat")
