"""Damaged messages of the closing phase: refused by name, or taken for what they are; nothing else happens."""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from secagg_adversary import Adversary
from secagg_parts import Group, Node, make_plan
from secagg_site import NOW

from vedette_core.secagg.committee import CloseReceived, OpeningReceived, Seated
from vedette_schemas import codec
from vedette_schemas.codec import Message
from vedette_schemas.errors import PeerError
from vedette_schemas.round import Roster, Upload
from vedette_schemas.secagg import Close, Opening, Shares, Vote

CLASSES: dict[str, type[Message]] = {
    "close": Close,
    "vote": Vote,
    "opening": Opening,
    "shares": Shares,
    "upload": Upload,
    "roster": Roster,
}


@lru_cache(maxsize=1)
def the_group() -> Group:
    """Six of eight devices have uploaded."""
    group = Group(make_plan())
    group.uploads = dict(list(group.uploads.items())[:6])
    return group


@lru_cache(maxsize=1)
def valid() -> dict[str, bytes]:
    """One of each kind, as it travels inside its envelope."""
    group = the_group()
    name = group.committee[0]
    node = group.nodes([name])[name]
    vote = node.tell(CloseReceived(group.close(name))).votes[0]
    votes = [group.vote(group.people[m]) for m in group.committee]
    shares = node.tell(OpeningReceived(group.opening(votes))).shares[0]
    bodies: dict[str, Message] = {
        "close": group.close(name),
        "vote": vote,
        "opening": group.opening(votes),
        "shares": shares,
        "upload": group.uploads[next(iter(group.uploads))],
        "roster": group.roster,
    }
    return {kind: codec.pack(body) for kind, body in bodies.items()}


Edit = tuple[str, int, int]
EDITS = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "insert", "copy"]), st.integers(0, 2**20), st.integers(0, 2**20)),
    min_size=1,
    max_size=6,
)


def mutated(data: bytes, edits: list[Edit]) -> bytes:
    """Bytes flipped, cut out, put in, or copied to another place."""
    out = bytearray(data)
    for kind, where, what in edits:
        if not out:
            break
        place = where % len(out)
        if kind == "flip":
            out[place] ^= 1 + what % 255
        elif kind == "cut":
            del out[place : place + 1 + what % 40]
        elif kind == "insert":
            out[place:place] = bytes([what % 256]) * (1 + what % 9)
        else:
            other = what % len(out)
            out[place : place + 20] = out[other : other + 20]
    return bytes(out)


@settings(max_examples=1500)
@given(st.sampled_from(sorted(CLASSES)), EDITS)
def test_damaged_bytes_are_refused_by_name_or_are_a_message(kind: str, edits: list[Edit]) -> None:
    """Nothing but `PeerError`; and what is decoded encodes again."""
    data = mutated(valid()[kind], edits)
    try:
        body = codec.unpack(CLASSES[kind], data)
    except PeerError:
        return
    assert codec.unpack(CLASSES[kind], codec.pack(body)) == body


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=70),
    st.lists(st.binary(max_size=40), max_size=4),
    st.dictionaries(st.text(max_size=8), st.integers(0, 5), max_size=3),
)


def replaced(plain: Any, path: list[int], leaf: Any, *, drop: bool) -> Any:
    """The same structure with something else at one place."""
    if not path or not isinstance(plain, (dict, list, tuple)) or not plain:
        return leaf
    if isinstance(plain, dict):
        key = sorted(plain)[path[0] % len(plain)]
        if drop and len(path) == 1:
            return {k: v for k, v in plain.items() if k != key}
        return plain | {key: replaced(plain[key], path[1:], leaf, drop=drop)}
    place = path[0] % len(plain)
    several = list(plain)
    several[place] = replaced(several[place], path[1:], leaf, drop=drop)
    return several


@settings(max_examples=1500)
@given(st.sampled_from(sorted(CLASSES)), st.lists(st.integers(0, 99), min_size=1, max_size=4), LEAVES, st.booleans())
def test_other_types_in_any_place(kind: str, path: list[int], leaf: Any, drop: bool) -> None:
    """A message with one field of another type, out of range, or missing."""
    plain = replaced(msgpack.unpackb(valid()[kind]), path, leaf, drop=drop)
    try:
        data = msgpack.packb(plain)
    except (ValueError, OverflowError):
        return
    try:
        body = codec.unpack(CLASSES[kind], data)
    except PeerError:
        return
    assert isinstance(body, CLASSES[kind])


@pytest.mark.parametrize("kind", sorted(CLASSES))
def test_lists_that_are_too_long(kind: str) -> None:
    """Every list of a message has its limit."""
    plain = msgpack.unpackb(valid()[kind])

    def check(path: list[str], listed: list[Any]) -> None:
        many = dict(plain)
        (name,) = path
        for count in (65, 5000):
            many[name] = (listed * count)[:count]
            with pytest.raises(PeerError):
                codec.unpack(CLASSES[kind], msgpack.packb(many))

    lists = [name for name, value in plain.items() if isinstance(value, list) and value]
    for name in lists:
        check([name], plain[name])
    assert lists or kind == "vote"


@lru_cache(maxsize=1)
def voters() -> dict[str, bytes]:
    """Disks of a member that is seated, and of one that has voted."""
    group = the_group()
    name = group.committee[0]
    node = group.nodes([name])[name]
    seated = dict(node.disk)
    node.tell(CloseReceived(group.close(name)))
    return {"seated": next(iter(v for k, v in seated.items() if "seat" in k)), "voted": node.disk[seat_key()]}


def seat_key() -> str:
    """Where a seat is kept."""
    return "committee/network/seat/0"


@settings(max_examples=400)
@given(st.sampled_from(["close", "opening"]), st.sampled_from(["seated", "voted"]), EDITS)
def test_what_is_decoded_never_opens_anything(kind: str, state: str, edits: list[Edit]) -> None:
    """A member that is told damaged messages: no exception, no second vote, and shares for its own set only."""
    group = the_group()
    data = mutated(valid()[kind], edits)
    node = Node(group.people[group.committee[0]])
    node.disk = {seat_key(): voters()[state]}
    node.restart()
    try:
        body = codec.unpack(CLASSES[kind], data)
    except PeerError:
        return
    event = CloseReceived(body) if isinstance(body, Close) else OpeningReceived(codec.unpack(Opening, codec.pack(body)))
    answer = node.tell(event)
    assert answer.outcome in ("accepted", "rejected", "discarded")
    allowed = group.survivors_hash()
    if state == "voted":
        assert all(v.survivors == allowed for v in answer.votes)
        assert all(s.survivors == allowed for s in answer.shares)
    else:
        assert answer.shares == []
    adversary = Adversary([group.people[m] for m in group.committee[-3:]])
    adversary.see(group)
    adversary.hear(answer)
    assert adversary.exposed(group) == {}


@settings(max_examples=200)
@given(EDITS)
def test_damaged_rosters_take_no_seat_that_is_not_the_own(edits: list[Edit]) -> None:
    """Whatever a roster says, a seat is taken with the own id and key, or not at all."""
    group = the_group()
    try:
        roster = codec.unpack(Roster, mutated(valid()["roster"], edits))
    except PeerError:
        return
    who = group.people[group.committee[0]]
    node = Node(who)
    answer = node.tell(Seated(roster, group.plan, who.pair), NOW)
    own = roster.member(who.name)
    seated = roster.task == group.plan.task and own is not None and own.epk == who.pair.public
    assert answer.outcome == ("accepted" if seated else "rejected")
