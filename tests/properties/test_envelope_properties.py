"""A sealed message that was touched anywhere is refused, and a transcript hash tells every roster apart."""

from __future__ import annotations

import hashlib
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import assume, given
from hypothesis import strategies as st

from vedette_schemas.envelope import pre_authentication_encoding, seal, unseal
from vedette_schemas.errors import PeerError
from vedette_schemas.round import Member, Roster, group_of, hash_parts, roster_hash, transcript_hash
from vedette_schemas.telemetry import Receipt, ReceiptItem

KEY = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"test key").digest())
ids = st.from_regex(r"[a-z0-9-]{1,60}", fullmatch=True)
kinds = st.from_regex(r"[a-z][a-z0-9.]{0,39}", fullmatch=True)


class Keys:
    def sign(self, data: bytes) -> bytes:
        return KEY.sign(data)

    def verify(self, sender: str, signature: bytes, data: bytes) -> None:
        try:
            KEY.public_key().verify(signature, data)
        except InvalidSignature as fault:
            raise PeerError(f"signature of {sender} does not hold", reason="signature") from fault


@given(st.binary(max_size=400))
def test_random_bytes_are_refused(data: bytes) -> None:
    try:
        unseal(Receipt, data, "receipt", Keys())
    except PeerError:
        return
    raise AssertionError("random bytes were taken for a signed message")


@given(ids, st.binary(max_size=8), st.data())
def test_any_touched_message_is_refused(sender: str, junk: bytes, draw: st.DataObject) -> None:
    body = Receipt(device="gw-01", items=(ReceiptItem(id="a", outcome="accepted"),))
    data = seal(body, "receipt", sender, Keys())
    start = draw.draw(st.integers(0, len(data)))
    end = draw.draw(st.integers(start, min(len(data), start + 12)))
    touched = data[:start] + junk + data[end:]
    assume(touched != data)
    try:
        opened = unseal(Receipt, touched, "receipt", Keys())
    except PeerError:
        return
    # msgpack has several encodings of one value: a re-encoded envelope around the very same signed bytes is no forgery.
    assert opened == (body, sender)


@given(kinds, ids, st.binary(max_size=40), kinds, ids, st.binary(max_size=40))
def test_no_two_messages_are_signed_alike(k1: str, s1: str, b1: bytes, k2: str, s2: str, b2: bytes) -> None:
    same = (k1, s1, b1) == (k2, s2, b2)
    assert (pre_authentication_encoding(k1, s1, b1) == pre_authentication_encoding(k2, s2, b2)) is same


@given(st.lists(st.binary(max_size=9), max_size=5), st.lists(st.binary(max_size=9), max_size=5))
def test_no_two_lists_hash_alike(one: list[bytes], other: list[bytes]) -> None:
    assert (hash_parts(*one) == hash_parts(*other)) is (one == other)


# Keys that are also ids: what an ambiguous encoding of members and committee would confuse.
keys = st.binary(min_size=32, max_size=32) | st.sampled_from([b"a" * 32, b"committee".ljust(32, b"-")])
names = st.sampled_from(["a" * 32, "committee", "committee".ljust(32, "-"), "gw-01", "gw-02"])
people = st.dictionaries(names, st.tuples(keys, st.integers(0, 3)), max_size=4)


def listed(found: dict[str, tuple[bytes, int]]) -> tuple[Member, ...]:
    return tuple(
        Member(device=device, epk=key, seq=1, certificate=b"c", offer=bytes(64), weight=weight)
        for device, (key, weight) in sorted(found.items())
    )


rosters = st.builds(
    lambda members, committee, more: Roster(members=listed(members), committee=listed(committee), **more),
    people.filter(bool),
    people,
    st.fixed_dictionaries(
        {
            "task": st.sampled_from(["network", "sensor"]),
            "round": st.integers(1, 12),
            "attempt": st.integers(1, 2),
            "gid": st.integers(0, 2),
            "model": st.sampled_from(["0" * 64, "1" * 64]),
            "plan": st.sampled_from(["0" * 64, "1" * 64]),
            "beacon": st.sampled_from([bytes(32), b"\x01" * 32]),
            "model_version": st.just(3),
            "deadline_s": st.just(60.0),
        }
    ),
)


@given(rosters, rosters)
def test_two_rosters_have_one_transcript_only_if_they_are_the_same(one: Roster, other: Roster) -> None:
    assert (transcript_hash(one) == transcript_hash(other)) is (one == other)
    who: list[Any] = [(r.members, r.committee) for r in (one, other)]
    assert (roster_hash(one) == roster_hash(other)) is (who[0] == who[1])


@given(st.binary(min_size=1, max_size=32), ids, ids, st.integers(1, 512))
def test_a_device_is_in_exactly_one_group_of_the_round(beacon: bytes, task: str, device: str, groups: int) -> None:
    gid = group_of(beacon, task, device, groups)
    assert 0 <= gid < groups
    assert gid == group_of(beacon, task, device, groups)
