"""Laws of selection: exactly as many as there is room for, nobody starves, and weights that stand for the fleet."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vedette_aggregator.selection import (
    Applicant,
    Selection,
    attempt_seed,
    choose_groups,
    form_groups,
    nearest_centres,
    overselect,
    select,
)
from vedette_schemas.round import GROUPS_MAX, group_of

kinds = st.lists(
    st.tuples(st.sampled_from(["", "camera", "meter"]), st.sampled_from([b"", b"\x00\x00", b"\xff\x00", b"\x80\xff"])),
    min_size=1,
    max_size=40,
)
seeds = st.binary(min_size=1, max_size=8)
beacons = st.binary(min_size=32, max_size=32)


def fleet_of(found: list[tuple[str, bytes]]) -> list[Applicant]:
    return [Applicant(f"gw-{i:02}", 6, cohort, sketch) for i, (cohort, sketch) in enumerate(found)]


def after(fleet: list[Applicant], drawn: Selection, number: int) -> list[Applicant]:
    """The fleet when the selected ones have completed the round."""
    return [
        replace(a, selected=a.selected + 1, completed=a.completed + 1, last_round=number)
        if a.device in drawn.representation
        else a
        for a in fleet
    ]


@given(kinds, st.integers(0, 50), seeds, st.sampled_from(["diverse", "random", "all"]))
def test_as_many_as_wanted_or_all_are_drawn_each_once(
    found: list[tuple[str, bytes]], count: int, seed: bytes, mode: str
) -> None:
    fleet = fleet_of(found)
    drawn = select(fleet, count, seed, round_number=1, mode=mode)  # type: ignore[arg-type]
    assert len(drawn.devices) == min(count, len(fleet)) == len(drawn.representation)
    assert set(drawn.devices) <= {a.device for a in fleet}
    assert list(drawn.devices) == sorted(set(drawn.devices))
    assert all(share > 0 for share in drawn.representation.values())
    if drawn.devices:
        assert sum(drawn.representation.values()) == pytest.approx(len(drawn.devices))


@given(kinds, st.integers(1, 40), seeds)
def test_a_kinds_weights_add_up_to_its_size(found: list[tuple[str, bytes]], count: int, seed: bytes) -> None:
    """Of kinds with a seat, each is in the mean with the share that it has of them in the fleet."""
    fleet = fleet_of(found)
    drawn = select(fleet, count, seed, round_number=1)
    size = Counter((a.cohort, a.sketch) for a in fleet)
    weight: Counter[tuple[str, bytes]] = Counter()
    for a in fleet:
        weight[a.cohort, a.sketch] += drawn.representation.get(a.device, 0.0)  # type: ignore[assignment]
    seated = {kind for kind, total in weight.items() if total > 0}
    for kind in seated:
        assert weight[kind] / sum(weight.values()) == pytest.approx(size[kind] / sum(size[k] for k in seated))


@settings(max_examples=25)
@given(kinds, st.integers(1, 8), seeds)
def test_nobody_starves_and_turns_within_a_kind_are_even(
    found: list[tuple[str, bytes]], count: int, secret: bytes
) -> None:
    fleet = fleet_of(found)
    for number in range(1, 401):
        drawn = select(fleet, count, attempt_seed(secret, "t", number, 1), round_number=number)
        fleet = after(fleet, drawn, number)
        by_kind: dict[tuple[str, bytes], list[int]] = {}
        for a in fleet:
            by_kind.setdefault((a.cohort, a.sketch), []).append(a.selected)
        assert all(max(turns) - min(turns) <= 1 for turns in by_kind.values())
    # The smallest share is that of a kind of one: 1 / Σ√n ≥ 1 / √(12 · 40) = 0.046 of a seat with 12 kinds and 40
    # devices. No seat in 400 rounds has a chance of 0.954⁴⁰⁰ = 7e-9.
    assert min(a.selected for a in fleet) >= 1


@settings(max_examples=25)
@given(st.integers(2, 20), st.integers(1, 5), st.integers(1, 6), seeds)
def test_a_stream_of_newcomers_starves_nobody(old: int, count: int, newcomers: int, secret: bytes) -> None:
    fleet = [Applicant(f"old-{i:02}", 6) for i in range(old)]
    for number in range(1, 41):
        fleet += [Applicant(f"new-{number:02}-{i}", 6, joined_round=number) for i in range(newcomers)]
        fleet = after(fleet, select(fleet, count, attempt_seed(secret, "t", number, 1), round_number=number), number)
    assert min(a.selected for a in fleet if a.device.startswith("old")) >= 1


@settings(max_examples=25)
@given(st.integers(6, 20), st.integers(1, 5), st.lists(st.sets(st.integers(0, 19)), min_size=60, max_size=60), seeds)
def test_whoever_is_there_often_enough_has_its_turn(
    size: int, count: int, absences: list[set[int]], secret: bytes
) -> None:
    """While a device waits, each of the others is served at most once before it."""
    fleet = {a.device: a for a in (Applicant(f"gw-{i:02}", 6) for i in range(size))}
    present_unserved: Counter[str] = Counter()
    for number, away in enumerate(absences, start=1):
        there = [a for i, a in enumerate(fleet.values()) if i not in away]
        drawn = select(there, count, attempt_seed(secret, "t", number, 1), round_number=number)
        fleet |= {a.device: a for a in after(there, drawn, number)}
        for a in there:
            present_unserved[a.device] = 0 if a.device in drawn.representation else present_unserved[a.device] + 1
        assert max(present_unserved.values(), default=0) <= -(-size // count)


@given(st.lists(st.binary(min_size=3, max_size=3), min_size=1, max_size=40), st.randoms())
def test_kinds_of_sketches_do_not_depend_on_the_order(sketches: list[bytes], shuffle: object) -> None:
    order = list(range(len(sketches)))
    shuffle.shuffle(order)  # type: ignore[attr-defined]
    numbered = nearest_centres(sketches)
    assert nearest_centres([sketches[i] for i in order]) == [numbered[i] for i in order]
    assert len(set(numbered)) <= 4
    assert all(a != b or numbered[i] == numbered[j] for i, a in enumerate(sketches) for j, b in enumerate(sketches))


@given(st.sets(st.integers(0, 500), max_size=120), beacons, st.integers(1, 20), st.integers(1, 12), seeds)
def test_groups_are_of_the_plan_whoever_computes_them(
    found: set[int], beacon: bytes, groups: int, survivors_min: int, seed: bytes
) -> None:
    devices = [f"gw-{i}" for i in sorted(found)]
    grouping = form_groups(devices, beacon, "t", groups=groups, members_max=16, survivors_min=survivors_min, seed=seed)
    sizes = Counter(group_of(beacon, "t", d, groups) for d in devices)
    assert {g: len(m) for g, m in grouping.members.items()} == {
        g: min(n, 16) for g, n in sizes.items() if n >= survivors_min
    }
    assert all(group_of(beacon, "t", d, groups) == g for g, members in grouping.members.items() for d in members)


@given(st.integers(0, 150), beacons, st.integers(1, 32), st.integers(1, 32), st.none() | st.integers(0, 200))
def test_a_number_of_groups_is_always_possible(
    size: int, beacon: bytes, group_size: int, survivors_min: int, expected: int | None
) -> None:
    devices = [f"gw-{i}" for i in range(size)]
    chosen = choose_groups(
        devices,
        beacon,
        "t",
        group_size=group_size,
        members_max=max(32, group_size),
        survivors_min=survivors_min,
        expected=expected,
    )
    assert 1 <= chosen <= GROUPS_MAX
    assert chosen == 1 or chosen * survivors_min <= size


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(0, 10_000))
def test_overselection_is_bounded(wanted: int, completed: int, more: int) -> None:
    chosen = overselect(wanted, completed, completed + more)
    assert wanted <= chosen <= 1.5 * wanted
