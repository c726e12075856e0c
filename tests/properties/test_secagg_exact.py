"""Secure aggregation against the integers: random groups, committees, dropouts, liars; and how masked vectors look."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from secagg_parts import Group, make_plan, make_roster
from secagg_site import TASK, Person, digest, entropy_of, helper, person

from vedette_core.crypto.agreement import open_box
from vedette_core.crypto.shamir import split
from vedette_core.learning.round_vector import ring_of
from vedette_core.secagg.aggregator import Unmasking, UploadEvidence
from vedette_core.secagg.membership import committee_of
from vedette_core.secagg.parameters import corrupt_floor, find_committee
from vedette_core.secagg.participant import mask_update
from vedette_core.secagg.reconstruction import Claim, Reconstruction
from vedette_core.secagg.secrets import box_context, box_key, commitment, others
from vedette_schemas.round import Plan, Roster, Upload, UploadHeader, hash_parts, transcript_hash
from vedette_schemas.secagg import DeviceShares, Shares, shares_id

Ring = npt.NDArray[np.unsignedinteger[Any]]


def wide(values: list[int]) -> st.SearchStrategy[int]:
    """Small sizes as often as large ones, which cost more."""
    return st.sampled_from(values)


@st.composite
def sizes(draw: st.DrawFn) -> dict[str, Any]:
    """A group with its committee: who is in it, who vanishes, who lies."""
    inline = draw(st.booleans())
    members = draw(wide([2, 3, 4, 5, 6, 8, 9, 13, 16, 24] if inline else [2, 3, 4, 5, 6, 8, 9, 13, 16, 32, 64]))
    listed = members if inline else draw(wide([2, 3, 4, 5, 7, 9, 12, 15, 15, 20, 33, 64]))
    votes = draw(st.integers((listed + corrupt_floor(listed)) // 2 + 1, listed))
    found = find_committee(listed, votes_min=votes)
    alive = draw(st.integers(max(1, members // 3), members))
    answering = draw(st.integers(found.votes_min, listed))
    return {
        "inline": inline,
        "members": members,
        "listed": listed,
        "votes": votes,
        "alive": alive,
        "answering": answering,
        "lying": draw(st.booleans()) and found.corrupt_max > 0 and answering > found.votes_min,
        "weight_max": draw(st.sampled_from([1, 4, 255])),
        "length": draw(st.integers(1, 40)),
        "seed": draw(st.integers(0, 2**32)),
    }


def given_shares(roster: Roster, plan: Plan, who: Person, uploads: dict[str, UploadEvidence]) -> Shares:
    """What a member gives; without the conversation that goes before, which is tested elsewhere."""
    transcript = transcript_hash(roster)
    number = [m.device for m in committee_of(roster, plan)].index(who.name) + 1
    rows = []
    for device, evidence in sorted(uploads.items()):
        member = roster.member(device)
        assert member is not None
        key = box_key(who.pair, member.epk, transcript, sealing=False)
        plain = open_box(key, evidence.boxes[number - 1], box_context(transcript, device, number))
        pieces = [plain[i : i + 16] for i in range(0, len(plain), 16)]
        peers = zip(others(roster, device), pieces[1:], strict=True)
        rows.append(
            DeviceShares(device=device, own=pieces[0], pairs=tuple(p for peer, p in peers if peer not in uploads))
        )
    headers = tuple(e.header for e in uploads.values())
    return Shares(
        id=shares_id(TASK, 1, 1, 0, who.name),
        task=TASK,
        round=1,
        attempt=1,
        gid=0,
        member=who.name,
        transcript=transcript,
        survivors=survivors_of(transcript, headers),
        shares=tuple(rows),
    )


def survivors_of(transcript: bytes, headers: tuple[UploadHeader, ...]) -> bytes:
    """Written down once more, from the protocol's text."""
    parts = [part for h in sorted(headers, key=lambda h: h.device) for part in (h.device.encode(), h.vector)]
    return hash_parts(b"vedette-survivors-1", transcript, *parts)


def evidence_of(roster: Roster, who: Person, masked: Any) -> UploadEvidence:
    """An upload's, without its signature."""
    upload = Upload(
        id="x",
        task=TASK,
        round=1,
        attempt=1,
        gid=0,
        device=who.name,
        transcript=transcript_hash(roster),
        vector=masked.vector,
        boxes=masked.boxes,
        commitments=masked.commitments,
        header=bytes(64),
    )
    return UploadEvidence.of(upload)


@settings(max_examples=60)
@given(sizes())
def test_the_sum_is_that_of_the_integers(case: dict[str, Any]) -> None:
    """Whatever the sizes, the ring, who vanished, and one liar."""
    rng = np.random.default_rng(case["seed"])
    plan = make_plan(
        members_max=case["members"],
        survivors_min=1,
        committee="inline" if case["inline"] else "helpers",
        size=case["listed"],
        votes=case["votes"],
        update={"weight_max": case["weight_max"]},
    )
    bits = ring_of(plan)
    assert bits == (16 if case["members"] * case["weight_max"] * 255 < 2**16 else 32)
    devices = [person(f"gw-{i:03}") for i in range(case["members"])]
    helpers = [] if case["inline"] else [helper(f"helper-{i:02}") for i in range(case["listed"])]
    roster = make_roster(plan, devices, helpers)
    alive = {devices[i].name for i in rng.choice(case["members"], case["alive"], replace=False)}
    total = np.zeros(case["length"], f"<u{bits // 8}")
    oracle = [0] * case["length"]
    uploads = {}
    for who in devices:
        plain = rng.integers(0, 2**bits, case["length"], dtype=np.uint64).astype(total.dtype)
        numbers = plain.tolist()
        if who.name in alive:
            masked = mask_update(plain, roster, plan, who.name, who.pair, rng.bytes)
            oracle = [a + b for a, b in zip(oracle, numbers, strict=True)]
            total += np.frombuffer(masked.vector, total.dtype)
            uploads[who.name] = evidence_of(roster, who, masked)
    unmasking = Unmasking(roster, plan, uploads)
    committee = devices if case["inline"] else helpers
    answering = [committee[i] for i in rng.permutation(len(committee))[: case["answering"]]]
    for place, who in enumerate(answering):
        shares = given_shares(roster, plan, who, uploads)
        if place == 0 and case["lying"]:
            rows = tuple(r.model_copy(update={"own": rng.bytes(16)}) for r in shares.shares)
            shares = shares.model_copy(update={"shares": rows})
        unmasking.take_shares(shares)
    assert unmasking.try_open()
    assert unmasking.blamed == ()
    assert set(unmasking.liars) == ({answering[0].name} if case["lying"] else set())
    unmasking.unmask(total)
    assert total.tolist() == [value % 2**bits for value in oracle]


@settings(max_examples=150)
@given(
    st.integers(3, 15),
    st.data(),
)
def test_honest_devices_are_never_to_blame(size: int, data: st.DataObject) -> None:
    """Up to c members give whatever they like for an honest device, the rest what they were dealt, some nothing."""
    committee = find_committee(size)
    lying = data.draw(st.sets(st.integers(1, size), max_size=committee.corrupt_max))
    silent = data.draw(st.sets(st.integers(1, size).filter(lambda x: x not in lying), max_size=2))
    secrets = [digest(f"secret {i}")[:16] for i in range(2)]
    commits = tuple(commitment(bytes(32), "gw", i, s) for i, s in enumerate(secrets))
    dealt = split(b"".join(secrets), committee.threshold, size, entropy_of(f"{size} {lying}"))
    errors = st.one_of(st.binary(min_size=32, max_size=32), st.sampled_from([b"\x01" * 32, b"\x01" * 16 + bytes(16)]))
    shares = {
        x: bytes(a ^ b for a, b in zip(piece, data.draw(errors), strict=True)) if x in lying else piece
        for x, piece in enumerate(dealt, start=1)
        if x not in silent
    }
    found = Reconstruction(bytes(32), committee.threshold, committee.corrupt_max)
    opened = found.open([Claim("gw", (0, 1), commits, shares)])
    assert found.dealt_wrong == set()
    if len(shares) - len(lying) >= committee.threshold or opened:
        assert opened == {"gw": tuple(secrets)}


def test_masked_vectors_of_constants_are_uniform_and_uncorrelated() -> None:
    """Bytes of what leaves a device that hides nothing: χ² over 256 values, and no likeness between any two."""
    length = 60_000
    plan = make_plan()
    devices = [person(f"gw-{i:03}") for i in range(8)]
    rosters = [make_roster(plan, devices, attempt=attempt) for attempt in (1, 2)]
    vectors = []
    for roster in rosters:
        for who in devices[:4]:
            plain = np.full(length, 7, "<u2")
            masked = mask_update(plain, roster, plan, who.name, who.pair, entropy_of(f"{roster.attempt} {who.name}"))
            vectors.append(np.frombuffer(masked.vector, "<u2"))
    for vector in vectors:
        counts = np.bincount(vector.view(np.uint8), minlength=256)
        expected = 2 * length / 256
        chi2 = float(((counts - expected) ** 2 / expected).sum())
        # 255 degrees of freedom: outside of 170 to 360 with less than one in 10^4; the keys are fixed: it repeats.
        assert 170 < chi2 < 360, chi2
    likeness = np.corrcoef(np.array(vectors, dtype=np.float64))
    off = np.abs(likeness - np.eye(len(vectors)))
    assert off.max() < 5 / np.sqrt(length)


def test_only_the_sum_of_all_says_anything() -> None:
    """The masks of pairs leave in the sum of all, and in no smaller sum."""
    plan = make_plan()
    group = Group(plan)
    for size in range(1, 8):
        part = list(group.uploads)[:size]
        unmasked = group.masked_sum(part) - group.plain_sum(part)
        assert len(set(unmasked.tolist())) > 40, "still masked"


@pytest.mark.parametrize("what", ["model", "plan", "attempt", "round", "gid", "beacon", "task", "weight", "key"])
def test_every_part_of_the_transcript_gives_other_masks(what: str) -> None:
    """The same device with the same key and the same own secret: nothing of two uploads is alike."""
    plan = make_plan()
    devices = [person(f"gw-{i:03}") for i in range(8)]
    base = make_roster(plan, devices)
    every: dict[str, dict[str, Any]] = {
        "model": {"model": "b" * 64},
        "plan": {"plan": "b" * 64},
        "attempt": {"attempt": 2},
        "round": {"round": 2},
        "gid": {"gid": 1},
        "beacon": {"beacon": bytes(32)},
        "task": {"task": "motors"},
        "weight": {"members": tuple(m.model_copy(update={"weight": 1 + (i == 3)}) for i, m in enumerate(base.members))},
        "key": {"members": tuple(person(m.device, key=1 + (i == 3)).member() for i, m in enumerate(base.members))},
    }
    other = base.model_copy(update=every[what])
    made = [
        mask_update(np.zeros(64, "<u2"), roster, plan, "gw-000", devices[0].pair, lambda n: bytes(n))
        for roster in (base, other)
    ]
    same = np.frombuffer(made[0].vector, "<u2") == np.frombuffer(made[1].vector, "<u2")
    assert same.sum() <= 2
    assert not set(made[0].boxes) & set(made[1].boxes)
    assert not set(made[0].commitments) & set(made[1].commitments)
