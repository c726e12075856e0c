"""Lies of an aggregator about survivor sets and places: no secret may come out of any of them.

Each is told to honest machines. Then the adversary tries to compute what it may not know, from all that honest parties
ever said and the keys of as many corrupt members as the plan tolerates, and of corrupt devices.
"""

from __future__ import annotations

import numpy as np
import pytest
from secagg_adversary import MODES, Adversary, Scene, refused, scene_of
from secagg_parts import (
    Group,
    Node,
    make_roster,
    make_upload,
    plain_vector,
)
from secagg_site import person

from vedette_core.crypto.agreement import open_box
from vedette_core.secagg.committee import CloseReceived, OpeningReceived, PlaceOver
from vedette_core.secagg.parameters import votes_needed
from vedette_core.secagg.secrets import box_context, box_key
from vedette_schemas import codec
from vedette_schemas.errors import PeerError
from vedette_schemas.secagg import Close, DeviceShares, Shares, shares_id


@pytest.fixture(params=MODES)
def scene(request: pytest.FixtureRequest) -> Scene:
    """Both kinds of committee."""
    return scene_of(request.param)


def test_without_lies_only_the_sum_comes_out(scene: Scene) -> None:
    """The positive control: what is promised to come out does, and the adversary computes it right."""
    everybody = list(scene.group.uploads)
    assert all(a.outcome == "accepted" for a in scene.open(scene.ask()))
    scene.only_the_sum(everybody)


def test_without_lies_dropped_devices_stay_closed() -> None:
    """Devices whose upload is late: their vector lies here, and stays masked."""
    scene = scene_of("helpers")
    survivors = list(scene.group.uploads)[:6]
    scene.open(scene.ask(survivors), survivors)
    scene.only_the_sum(survivors)


@pytest.mark.parametrize("mode", MODES)
def test_the_adversary_opens_everything_with_too_many_members(mode: str) -> None:
    """The negative control: with as many corrupt members as shares are needed, every single vector is computed."""
    scene = scene_of(mode)
    too_many = [scene.group.people[m] for m in scene.group.committee][-scene.group.plan.groups.threshold :]
    adversary = Adversary(too_many)
    adversary.see(scene.group)
    exposed = adversary.exposed(scene.group)
    victims = [d for d in scene.group.devices if d not in {p.name for p in too_many}]
    assert set(exposed) == {frozenset({d}) for d in victims}
    for part, vector in exposed.items():
        assert np.array_equal(vector, plain_vector(min(part), scene.group.plan))


def test_the_adversary_opens_a_victim_if_members_answer_both_lists(scene: Scene) -> None:
    """The other one: against members as Flower's, who give a victim's own share and those of its pairs."""
    for name in scene.nodes:
        scene.adversary.heard.append(answer_both_lists(scene, name))
    vector = scene.adversary.exposed(scene.group)[frozenset({scene.victim})]
    assert np.array_equal(vector, plain_vector(scene.victim, scene.group.plan))


def answer_both_lists(scene: Scene, name: str) -> Shares:
    """What a member gives that is asked for both of the victim's secrets and does not mind."""
    group, number = scene.group, scene.group.number(name)
    member = group.devices[scene.victim]
    key = box_key(group.people[name].pair, member.pair.public, group.transcript, sealing=False)
    box = group.uploads[scene.victim].boxes[number - 1]
    plain = open_box(key, box, box_context(group.transcript, scene.victim, number))
    pieces = [plain[i : i + 16] for i in range(0, len(plain), 16)]
    scene.adversary.sets[b"both".ljust(32)] = (scene.victim,)
    return Shares(
        id=shares_id(group.plan.task, 1, 1, 0, name),
        member=name,
        survivors=b"both".ljust(32),
        shares=(DeviceShares(device=scene.victim, own=pieces[0], pairs=tuple(pieces[1:])),),
        **group.names(),
    )


def test_lie_01_one_id_twice_in_the_set(scene: Scene) -> None:
    """A victim that stands in the list twice, with two uploads or one: not even a message."""
    name = next(iter(scene.nodes))
    close = scene.group.close(name)
    plain = close.model_dump()
    plain["survivors"] = (*plain["survivors"], plain["survivors"][0])
    with pytest.raises(PeerError, match="not sorted by unique"):
        codec.validate(Close, plain)
    scene.nothing_learnt()


def test_lie_02_a_victim_in_the_list_of_the_living_for_some_and_of_the_dead_for_others(scene: Scene) -> None:
    """Flower's hole, spread over members: own shares from some, pair shares from others."""
    everybody = list(scene.group.uploads)
    others = [d for d in everybody if d != scene.victim]
    names = list(scene.nodes)
    half = len(names) // 2
    alive, dead = scene.ask(everybody, names[:half]), scene.ask(others, names[half:])
    at_most_one(scene, {tuple(everybody): alive, tuple(others): dead})


def at_most_one(scene: Scene, votes: dict[tuple[str, ...], list[bytes]]) -> None:
    """Of these sets with their votes, at most one is opened; the other's members release nothing."""
    needed = votes_needed(scene.group.plan.groups, len(scene.group.committee))
    enough = [survivors for survivors, given in votes.items() if len(given) >= needed]
    assert len(enough) <= 1
    for survivors, given in votes.items():
        said = sum(len(answer.messages) for answer in scene.open(given, survivors))
        corrupt = scene.group.plan.groups.corrupt_max
        assert said == (len(given) - corrupt if survivors in enough else 0)
    if enough:
        scene.only_the_sum(enough[0])
    else:
        scene.nothing_learnt()


@pytest.mark.parametrize("split", range(1, 5))
def test_lie_03_two_sets_to_two_parts_of_the_committee(scene: Scene, split: int) -> None:
    """Whatever the split, at most one of two sets gets enough votes, although corrupt members vote for both."""
    everybody = list(scene.group.uploads)
    first, second = everybody[:6], everybody[-6:]
    names = list(scene.nodes)
    votes = {tuple(first): scene.ask(first, names[:split]), tuple(second): scene.ask(second, names[split:])}
    at_most_one(scene, votes)


def test_lie_04_two_sets_one_after_the_other(scene: Scene) -> None:
    """Everybody has voted for one set and is asked for another one, with or without the victim."""
    everybody = list(scene.group.uploads)
    scene.ask(everybody)
    fewer = [d for d in everybody if d != scene.victim]
    scene.adversary.see(scene.group, fewer)
    answers = [n.tell(CloseReceived(scene.group.close(name, fewer))) for name, n in scene.nodes.items()]
    refused(answers, "second survivor set")
    refused(scene.open(scene.bought(fewer), fewer), "another survivor set")
    scene.nothing_learnt()


def test_lie_05_a_set_of_one(scene: Scene) -> None:
    """The sum of one is the one."""
    votes = scene.ask([scene.victim])
    assert len(votes) == scene.group.plan.groups.corrupt_max, "only corrupt members vote"
    for answer in scene.open(votes, [scene.victim]):
        assert answer.messages == []
    scene.nothing_learnt()


def test_lie_06_one_survivor_too_few(scene: Scene) -> None:
    """One below the plan's number."""
    few = list(scene.group.uploads)[: scene.group.plan.groups.survivors_min - 1]
    answers = [n.tell(CloseReceived(scene.group.close(name, few))) for name, n in scene.nodes.items()]
    refused(answers, "survivors, expected 5 or more")
    scene.nothing_learnt()


def test_lie_07_a_victim_with_corrupt_devices_only(scene: Scene) -> None:
    """The least anonymous set that there can be: with the floor's number of survivors, honest ones are among them."""
    corrupt = [p.name for p in scene.corrupt if p.name in scene.group.devices]
    few = sorted([*corrupt, *scene.honest[: scene.group.plan.groups.survivors_min - 1 - len(corrupt)]])
    answers = [n.tell(CloseReceived(scene.group.close(name, few))) for name, n in scene.nodes.items()]
    refused(answers, "survivors, expected 5 or more")
    scene.nothing_learnt()
    enough = sorted([*few, next(d for d in scene.honest if d not in few)])
    scene.open(scene.ask(enough), enough)
    scene.only_the_sum(enough)
    assert len(set(enough) & set(scene.honest)) >= 2


def test_lie_08_sets_that_leave_out_everybody_else(scene: Scene) -> None:
    """All pairs of a victim with those who are left out come out; those inside the set still cover it."""
    survivors = sorted([scene.victim, *list(scene.group.uploads)[1 : scene.group.plan.groups.survivors_min]])
    scene.open(scene.ask(survivors), survivors)
    scene.only_the_sum(survivors)


def test_lie_09_a_survivor_that_is_not_in_the_roster(scene: Scene) -> None:
    """A device from elsewhere fills up the set."""
    stranger = person("gw-stranger")
    people = [*list(scene.group.devices.values())[:-1], stranger]
    fuller = make_roster(scene.group.plan, people, list(scene.group.helpers.values()))
    upload = make_upload(fuller, scene.group.plan, stranger, transcript=scene.group.transcript)
    for name, node in scene.nodes.items():
        few = [scene.group.survivor(d, name) for d in list(scene.group.uploads)[:4]]
        close = scene.group.close(name)
        several = tuple(sorted([*few, scene.group.survivor("gw-stranger", name, upload)], key=lambda s: s.device))
        answer = node.tell(CloseReceived(close.model_copy(update={"survivors": several})))
        refused([answer], "not in the roster")
    scene.nothing_learnt()


def test_lie_10_asked_again_after_the_release(scene: Scene) -> None:
    """The same set: the same bytes. Another set: nothing."""
    everybody = list(scene.group.uploads)
    votes = scene.ask(everybody)
    first = [a.messages for a in scene.open(votes)]
    again = [a.messages for a in scene.open(reversed(votes))]
    assert first == again
    assert all(len(m) == 1 for m in first)
    fewer = [d for d in everybody if d != scene.victim]
    scene.adversary.see(scene.group, fewer)
    answers = [n.tell(CloseReceived(scene.group.close(name, fewer))) for name, n in scene.nodes.items()]
    refused(answers, "second survivor set")
    refused(scene.open([*votes, *scene.bought(fewer)], fewer), "another survivor set")
    scene.only_the_sum(everybody)


@pytest.mark.parametrize(("number", "attempt"), [(1, 2), (2, 1)])
def test_lie_11_the_close_of_an_older_place(scene: Scene, number: int, attempt: int) -> None:
    """An older attempt's or round's uploads, once its committee is further on."""
    votes = scene.ask()
    later = Group(scene.group.plan, key=2, round=number, attempt=attempt)
    for name, node in scene.nodes.items():
        newer = Node(later.people[name])
        newer.disk = node.disk
        newer.restart()
        assert newer.seat(later.roster, later.plan).outcome == "accepted"
        for event in (CloseReceived(scene.group.close(name)), OpeningReceived(scene.group.opening(votes))):
            answer = newer.tell(event)
            assert (answer.outcome, answer.messages) == ("discarded", [])
    scene.nothing_learnt(scene.group, later)


def test_lie_12_the_roster_of_an_older_place_again(scene: Scene) -> None:
    """A seat that is over is not taken again, whatever the roster: not for a first vote, and not for a second."""
    for node in scene.nodes.values():
        node.tell(PlaceOver((1, 2)))
        assert node.seat(scene.group.roster, scene.group.plan).outcome == "discarded"
    assert scene.ask() == scene.bought()
    scene.nothing_learnt()


def test_lie_13_uploads_of_one_attempt_in_the_close_of_another(scene: Scene) -> None:
    """Same people and same keys, another attempt: the headers are for another transcript."""
    later = Group(scene.group.plan, attempt=2)
    assert later.transcript != scene.group.transcript
    for name, node in scene.nodes.items():
        assert node.seat(later.roster, later.plan).outcome == "accepted"
        old = scene.group.close(name).model_copy(update={"attempt": 2, "transcript": later.transcript})
        refused([node.tell(CloseReceived(old))], "signature")
    scene.nothing_learnt(scene.group, later)


def test_lie_14_votes_of_an_older_attempt(scene: Scene) -> None:
    """The same survivors in the next attempt, shown with the votes of the last one."""
    votes = scene.ask()
    later = Group(scene.group.plan, attempt=2)
    scene.adversary.see(later)
    for name, node in scene.nodes.items():
        node.seat(later.roster, later.plan)
        assert len(node.tell(CloseReceived(later.close(name))).messages) == 1
        refused([node.tell(OpeningReceived(later.opening(votes)))], "another group or set")
    scene.nothing_learnt(scene.group, later)
