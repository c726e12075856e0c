"""Power cuts in a committee member, behind every single effect: one vote, one release, and no key that outlives it.

A life carries out the effects of the events up to some place, and ends there: what was persisted by then is all that
the next life has. Then the aggregator asks again, in whatever order, and also for something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import pytest
from secagg_parts import Group, Node, body_of, make_plan

from vedette_core.crypto.agreement import open_box
from vedette_core.machine import Event, Persist, Publish
from vedette_core.secagg.committee import CloseReceived, CommitteeMember, OpeningReceived, PlaceOver, Seated
from vedette_core.secagg.membership import committee_of
from vedette_core.secagg.secrets import box_context, box_key, others
from vedette_schemas.errors import ConfigError
from vedette_schemas.secagg import Shares, Vote

Place = tuple[int, int]
Said = tuple[Place, int, str]


@dataclass(frozen=True)
class Script:
    """Everything that a member may be told about two attempts, by name.

    Attributes:
        member: who it is.
        groups: by attempt.
        sets: two survivor sets.
        events: a close and an opening for each attempt and set, seats, and ends.
    """

    member: str
    groups: dict[int, Group]
    sets: tuple[tuple[str, ...], tuple[str, ...]]
    events: dict[str, Event]


@lru_cache(maxsize=1)
def the_script() -> Script:
    """One for all tests."""
    groups = {attempt: Group(make_plan(), attempt=attempt, key=attempt) for attempt in (1, 2)}
    member = groups[1].committee[2]
    devices = list(groups[1].uploads)
    sets = (tuple(devices[:6]), tuple(devices[-6:]))
    events: dict[str, Event] = {"over 1": PlaceOver((1, 2)), "over 2": PlaceOver((1, 3))}
    for attempt, group in groups.items():
        events[f"seat {attempt}"] = Seated(group.roster, group.plan, group.people[member].pair)
        for name, survivors in zip("AB", sets, strict=True):
            votes = [group.vote(p, survivors) for p in group.people.values()]
            events[f"close {attempt}{name}"] = CloseReceived(group.close(member, survivors))
            events[f"open {attempt}{name}"] = OpeningReceived(group.opening(votes, survivors))
    return Script(member, groups, sets, events)


USUAL = (
    "seat 1",
    "close 1A",
    "close 1A",
    "open 1A",
    "open 1A",
    "close 1B",
    "open 1B",
    "over 1",
    "seat 2",
    "close 2B",
    "open 2B",
    "over 2",
)


@dataclass
class Lives:
    """A member that dies and is made again from its disk.

    Attributes:
        disk: what is persisted.
        said: everything that ever left, with place, group and kind.
    """

    script: Script
    disk: dict[str, bytes] = field(default_factory=dict)
    said: list[tuple[Said, bytes]] = field(default_factory=list)
    effects: int = 0
    machine: CommitteeMember = field(init=False)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Another life."""
        node = Node(self.script.groups[1].people[self.script.member])
        node.disk = self.disk
        node.restart()
        self.machine = node.machine

    def tell(self, names: Sequence[str], stop: int | None = None) -> bool:
        """Tell it these, until so many effects were carried out in all; tells whether it came to the end."""
        for name in names:
            for effect in self.machine.handle(self.script.events[name], 1_900_000_000.0):
                if stop is not None and self.effects >= stop:
                    return False
                self.effects += 1
                if isinstance(effect, Persist):
                    if effect.value is None:
                        self.disk.pop(effect.key, None)
                    else:
                        self.disk[effect.key] = effect.value
                elif isinstance(effect, Publish):
                    body = body_of(effect.payload)
                    key = ((body.round, body.attempt), body.gid, type(body).__name__)
                    self.said.append((key, effect.payload))
                    self.check()
        return True

    def check(self) -> None:
        """What must hold at every moment at which something has left."""
        for key in {k for k, _ in self.said}:
            assert len({payload for k, payload in self.said if k == key}) == 1, f"two different {key}"
        votes = {k[:2]: body_of(p) for k, p in self.said if k[2] == Vote.__name__}
        for (place, gid, kind), payload in self.said:
            if kind != Shares.__name__:
                continue
            shares = body_of(payload)
            assert isinstance(shares, Shares)
            # A vote that was persisted and never left counts, too: the others' votes may be enough.
            vote = votes.get((place, gid))
            assert vote is None or shares.survivors == vote.survivors, "shares for another set than the vote"
            group = self.script.groups[place[1]]
            assert not on_disk(self.disk, group.people[self.script.member].pair.private), "the key outlives its use"
            survivors = next(s for s in self.script.sets if group.survivors_hash(s) == shares.survivors)
            for secret in kept_secrets(group, self.script.member, survivors):
                assert not on_disk(self.disk, secret), "shares that were not released are on the disk"
                assert secret not in payload, "and they were released"


def on_disk(disk: dict[str, bytes], secret: bytes) -> bool:
    """Whether these bytes are anywhere."""
    return any(secret in value for value in disk.values())


def kept_secrets(group: Group, member: str, survivors: Sequence[str]) -> Iterator[bytes]:
    """The member's shares that must never leave it: own masks of the dropped, pairs of two survivors."""
    number = [m.device for m in committee_of(group.roster, group.plan)].index(member) + 1
    for device, upload in group.uploads.items():
        key = box_key(group.people[member].pair, group.devices[device].pair.public, group.transcript, sealing=False)
        plain = open_box(key, upload.boxes[number - 1], box_context(group.transcript, device, number))
        pieces = [plain[i : i + 16] for i in range(0, len(plain), 16)]
        if device not in survivors:
            yield pieces[0]
            continue
        for peer, piece in zip(others(group.roster, device), pieces[1:], strict=True):
            if peer in survivors:
                yield piece


def effects_of(names: Sequence[str]) -> int:
    """How many effects these events have, without a crash."""
    lives = Lives(the_script())
    lives.tell(names)
    return lives.effects


def test_the_usual_course_says_two_votes_and_two_releases() -> None:
    """The script does what it is for."""
    lives = Lives(the_script())
    lives.tell(USUAL)
    kinds = [key for key, _ in lives.said]
    assert kinds.count(((1, 1), 0, "Vote")) == 2
    assert kinds.count(((1, 1), 0, "Shares")) == 2
    assert kinds.count(((1, 2), 0, "Vote")) == 1
    assert kinds.count(((1, 2), 0, "Shares")) == 1
    assert list(lives.disk) == ["committee/network/floor"]


STEPS = range(60)
REPLAYS: dict[str, Callable[[], Sequence[str]]] = {
    "the same again": lambda: USUAL,
    "the other set first": lambda: [n.translate(str.maketrans("AB", "BA")) for n in USUAL],
    "openings first": lambda: ["open 1A", "open 1B", "close 1B", "open 1B", *USUAL],
    "the next attempt": lambda: ["seat 2", "close 2A", "open 2A", "seat 1", "close 1B", "open 1B"],
    "everything is over": lambda: ["over 2", *USUAL],
}


@pytest.mark.parametrize("replay", REPLAYS)
def test_power_cuts_behind_every_effect(replay: str) -> None:
    """Every step of the usual course, and then the whole of a replay."""
    total = effects_of(USUAL)
    assert total <= max(STEPS)
    for stop in range(total + 1):
        lives = Lives(the_script())
        assert lives.tell(USUAL, stop) == (stop == total)
        lives.restart()
        lives.tell(REPLAYS[replay]())
        lives.check()


@pytest.mark.parametrize("seed", range(200))
def test_power_cuts_again_and_again(seed: int) -> None:
    """Events in random order, three lives, and a last one to the end."""
    rng = np.random.default_rng(seed)
    names = sorted(the_script().events)
    lives = Lives(the_script())
    for _ in range(3):
        order = [*USUAL[: int(rng.integers(0, len(USUAL)))], *(names[i] for i in rng.integers(0, len(names), 6))]
        lives.tell(order, lives.effects + int(rng.integers(0, 20)))
        lives.restart()
    lives.tell([*USUAL, *USUAL])
    lives.check()
    assert set(lives.disk) <= {"committee/network/floor"}, "all is over in the end"


def test_a_crash_between_the_floor_and_the_records_behind_it() -> None:
    """What is over stays over, although its record is still there; it is erased with the next word."""
    script = the_script()
    lives = Lives(script)
    lives.tell(["seat 1", "close 1A"])
    key = script.groups[1].people[script.member].pair.private
    lives.tell(["over 1"], lives.effects + 1)
    assert on_disk(lives.disk, key), "the floor is written, the record not yet erased"
    lives.restart()
    assert lives.machine.floor == (1, 2)
    assert lives.machine.seats == ()
    lives.tell(["open 1A", "close 1A"])
    assert [k for k, _ in lives.said] == [((1, 1), 0, "Vote")], "nothing is said about it any more"
    assert not on_disk(lives.disk, key)


def test_another_store_is_not_read() -> None:
    """Records that are damaged or of another format: the operator must act."""
    script = the_script()
    lives = Lives(script)
    lives.tell(["seat 1", "close 1A"])
    for key, value in list(lives.disk.items()):
        for damaged in (b"", value[:-1], b"\x81\xa6format\x02", value[:40] + b"\xff" + value[41:]):
            broken = Lives(script)
            broken.disk = lives.disk | {key: damaged}
            with pytest.raises(ConfigError, match="stored committee/"):
                broken.restart()


def test_a_seat_shows_no_secret_when_it_is_printed() -> None:
    """Neither keys nor boxes get into a log by accident."""
    lives = Lives(the_script())
    lives.tell(["seat 1", "close 1A"])
    shown = repr(lives.machine._seats)
    pair = the_script().groups[1].people[the_script().member].pair
    assert repr(pair.private)[2:-1] not in shown
    assert "boxes" not in shown.split("members=")[0]
