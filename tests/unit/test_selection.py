"""Selection and grouping: fair, repeatable, and the same groups that a device would put itself into."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from vedette_aggregator.profiles import PROFILES
from vedette_aggregator.selection import (
    OVER_REPRESENTATION_MAX,
    Applicant,
    assigned_weight,
    attempt_seed,
    choose_groups,
    form_groups,
    nearest_centres,
    overselect,
    select,
)
from vedette_aggregator.settings import TaskSection
from vedette_core.learning.update_vector import ring_bits
from vedette_schemas.round import GROUP_MEMBERS_MAX, group_of

DEVICES = [f"gw-{i:03}" for i in range(200)]
BEACON = b"b" * 32


def applicants(count: int, **fields: object) -> list[Applicant]:
    return [Applicant(device, 6, **fields) for device in DEVICES[:count]]  # type: ignore[arg-type]


# --- select ---


@pytest.mark.parametrize("mode", ["diverse", "random", "all"])
def test_selection_does_not_depend_on_the_order_of_check_ins(mode: str) -> None:
    fleet = [replace(a, sketch=bytes([7 * i % 256, i])) for i, a in enumerate(applicants(200))]
    drawn = select(fleet, 20, b"seed", round_number=1, mode=mode)  # type: ignore[arg-type]
    assert select(fleet[::-1], 20, b"seed", round_number=1, mode=mode) == drawn  # type: ignore[arg-type]
    assert select(fleet, 20, b"other", round_number=1, mode=mode).devices != drawn.devices  # type: ignore[arg-type]
    assert list(drawn.devices) == sorted(drawn.devices)
    assert drawn.representation.keys() == set(drawn.devices)


@pytest.mark.parametrize("mode", ["diverse", "random", "all"])
def test_everybody_is_selected_where_there_is_room(mode: str) -> None:
    drawn = select(applicants(5), 20, b"seed", round_number=1, mode=mode)  # type: ignore[arg-type]
    assert drawn.devices == tuple(DEVICES[:5])
    assert set(drawn.representation.values()) == {1.0}


@pytest.mark.parametrize("mode", ["diverse", "random", "all"])
def test_nobody_is_selected_from_nobody_or_for_nothing(mode: str) -> None:
    assert select([], 20, b"seed", round_number=1, mode=mode).devices == ()  # type: ignore[arg-type]
    assert select(applicants(5), 0, b"seed", round_number=1, mode=mode).devices == ()  # type: ignore[arg-type]


def test_an_applicant_twice_is_a_fault() -> None:
    with pytest.raises(ValueError, match="found 4 applicants of 2 devices"):
        select(applicants(2) * 2, 20, b"seed", round_number=1)
    with pytest.raises(ValueError, match="-1 wanted"):
        select(applicants(2), -1, b"seed", round_number=1)


@pytest.mark.parametrize("mode", ["diverse", "random"])
def test_every_device_has_the_same_chance_at_first(mode: str) -> None:
    drawn = Counter(
        d
        for i in range(400)
        for d in select(applicants(10), 3, i.to_bytes(4, "big"), round_number=1, mode=mode).devices  # type: ignore[arg-type]
    )
    # Binomial(400, 0.3): mean 120, σ 9.2; six σ are one failure in 10⁸ sets of seeds, and these are fixed.
    assert set(drawn) == set(DEVICES[:10])
    assert all(abs(n - 120) < 6 * 9.2 for n in drawn.values())


def test_a_small_kind_is_heard_and_weighs_what_it_is() -> None:
    fleet = [replace(a, cohort="meter" if i < 4 else "camera") for i, a in enumerate(applicants(100))]
    seats = Counter[str]()
    for i in range(300):
        drawn = select(fleet, 10, i.to_bytes(4, "big"), round_number=1)
        meters = [d for d in drawn.devices if d in DEVICES[:4]]
        seats.update(meters=len(meters), all=len(drawn.devices))
        assert len(meters) in (1, 2), "10 · √4 / (√4 + √96) = 1.696, rounded up or down"
        # 4 applicants by so many meters, 96 by so many cameras; the mean over the ten selected is 100 / 10.
        for device, share in drawn.representation.items():
            of, by = (4, len(meters)) if device in meters else (96, 10 - len(meters))
            assert share == pytest.approx(of / by / 10)
        assert sum(drawn.representation.values()) == pytest.approx(10)
    assert seats["all"] == 3000
    # 300 draws with mean 1.696 and σ 0.46: six σ of the sum are 48.
    assert abs(seats["meters"] - 300 * 1.696) < 48


def test_what_inventing_a_kind_of_ones_own_gains_is_bounded() -> None:
    """A hundred devices, each a cohort of its own, would have three quarters of the seats by the square root alone."""
    liars = set(DEVICES[:20])
    fleet = [replace(a, cohort=a.device if a.device in liars else "camera") for a in applicants(200)]
    drawn = [select(fleet, 20, i.to_bytes(4, "big"), round_number=1) for i in range(300)]
    taken = sum(len(liars & set(d.devices)) for d in drawn)
    # Each has min(1, 4 · 20/200, √-share) of a seat: √-share is 20/(20 + √180) = 0.599, so that the bound of 0.4 holds.
    assert taken / 300 == pytest.approx(20 * OVER_REPRESENTATION_MAX * 20 / 200, abs=0.01)


def test_no_two_kinds_always_or_never_share_a_round() -> None:
    fleet = [replace(a, cohort=a.device) for a in applicants(4)]
    pairs = Counter(select(fleet, 2, bytes([i]), round_number=1).devices for i in range(200))
    # Half a seat each: six pairs, each two kinds apart with a chance of at least 1/12. None in 200 is 3e-8.
    assert len(pairs) == 6


def test_who_waited_longest_comes_first_and_counts_do_not_make_up_for_absence() -> None:
    back_after_months = replace(applicants(1)[0], selected=2, completed=2, last_round=3)
    others = [replace(a, selected=300, completed=300, last_round=1000 - i) for i, a in enumerate(applicants(9)[1:])]
    assert back_after_months.device in select([back_after_months, *others], 1, b"s", round_number=1001).devices
    seated = replace(back_after_months, selected=3, completed=3, last_round=1001)
    assert select([seated, *others], 1, b"s", round_number=1002).devices == (others[-1].device,)


def test_who_completed_less_comes_first_among_those_who_waited_alike() -> None:
    fleet = [replace(a, selected=10, completed=10 - (a.device == "gw-004"), last_round=40) for a in applicants(8)]
    assert all(select(fleet, 1, bytes([i]), round_number=50).devices == ("gw-004",) for i in range(20))


def test_a_newcomer_waits_its_turn() -> None:
    waiting = [replace(a, selected=4, completed=4, last_round=40) for a in applicants(8)]
    newcomer = Applicant("gw-new", 6, joined_round=49)
    assert "gw-new" not in select([*waiting, newcomer], 8, b"s", round_number=50).devices
    assert (
        "gw-new" in select([replace(a, last_round=50) for a in waiting] + [newcomer], 1, b"s", round_number=51).devices
    )


def test_a_task_that_starts_again_forgets_turns_of_the_future() -> None:
    fleet = [replace(a, last_round=900 + i, joined_round=800) for i, a in enumerate(applicants(6))]
    drawn = {select(fleet, 1, bytes([i]), round_number=1).devices for i in range(60)}
    assert len(drawn) == 6


def test_all_takes_the_longest_waiting_where_the_plan_has_no_room() -> None:
    fleet = [replace(a, last_round=9 - (a.device in DEVICES[3:5])) for a in applicants(6)]
    drawn = select(fleet, 2, b"s", round_number=10, mode="all")
    assert drawn.devices == tuple(DEVICES[3:5])


# --- sketches ---


def test_sketches_that_differ_by_noise_are_one_kind() -> None:
    assert set(nearest_centres([bytes([100 + i, 90 - i, 50]) for i in range(12)])) == {0}


def test_sketches_divide_a_cohort_into_the_kinds_that_are_there() -> None:
    sketches = [bytes([20 + i % 5, 20]) for i in range(30)] + [bytes([200, 20 + i]) for i in range(5)] + [b"\x14\xf0"]
    kinds = nearest_centres(sketches)
    assert len(set(kinds[:30])) == len(set(kinds[30:35])) == 1
    assert len(set(kinds)) == 3
    assert nearest_centres(sketches[::-1]) == kinds[::-1]


def test_there_are_never_more_kinds_than_can_be_seated() -> None:
    kinds = Counter(nearest_centres([bytes([i, 255 - i, 37 * i % 256]) for i in range(256)]))
    assert len(kinds) == 4


def test_a_device_without_a_sketch_or_with_one_of_another_length_is_another_kind() -> None:
    fleet = [replace(a, sketch=[b"", b"\x01", b"\x01\x01"][i % 3]) for i, a in enumerate(applicants(30))]
    for i in range(20):
        drawn = select(fleet, 3, bytes([i]), round_number=1).devices
        assert {DEVICES.index(d) % 3 for d in drawn} == {0, 1, 2}


# --- weights and numbers ---


def test_weights_are_within_the_plan() -> None:
    assert [assigned_weight(bucket, 64, 8) for bucket in (0, 5, 6, 7, 8, 9, 40)] == [1, 1, 1, 2, 4, 8, 8]
    assert assigned_weight(8, 64, 8, 0.5) == 2
    assert assigned_weight(8, 64, 8, 1.4) == 6
    assert assigned_weight(8, 64, 8, 1e-9) == 1
    assert assigned_weight(40, 1, 8, 1e300) == 8


def test_overselection_starts_at_130_percent_and_learns() -> None:
    assert overselect(100, 0, 0) == 130
    assert overselect(100, 1000, 1000) == 101
    assert overselect(100, 800, 1000) == 126, "1013 / 810 = 1.2506"
    assert overselect(100, 10, 1000) == 150
    assert overselect(1, 0, 1000) == 1
    assert overselect(0, 5, 10) == 0
    with pytest.raises(ValueError, match="11 of 10"):
        overselect(5, 11, 10)


def test_attempts_draw_anew() -> None:
    seeds = {attempt_seed(b"secret", "network", r, a) for r in range(1, 4) for a in range(1, 4)}
    assert len(seeds) == 9


# --- groups ---


def test_groups_are_those_that_the_devices_compute() -> None:
    grouping = form_groups(DEVICES, BEACON, "network", groups=6, members_max=64, survivors_min=5, seed=b"s")
    assert (grouping.count, len(grouping.members)) == (6, 6)
    for gid, members in grouping.members.items():
        assert list(members) == sorted(members)
        assert {group_of(BEACON, "network", d, 6) for d in members} == {gid}
    assert grouping.placed == set(DEVICES)


def test_who_has_no_room_is_drawn_anew_every_attempt() -> None:
    out = Counter[str]()
    for i in range(200):
        grouping = form_groups(
            DEVICES[:50], BEACON, "network", groups=1, members_max=40, survivors_min=5, seed=i.to_bytes(4, "big")
        )
        assert len(grouping.members[0]) == 40
        out.update(set(DEVICES[:50]) - grouping.placed)
    # Binomial(200, 0.2): mean 40, σ 5.7.
    assert set(out) == set(DEVICES[:50])
    assert all(abs(n - 40) < 6 * 5.7 for n in out.values())


def test_who_has_no_room_is_not_who_was_drawn_last() -> None:
    """The same seed serves the selection and the grouping: its luck must not count twice."""
    drawn = select(applicants(100), 50, b"seed", round_number=1, mode="random").devices
    first = set(select(applicants(100), 25, b"seed", round_number=1, mode="random").devices)
    placed = form_groups(drawn, BEACON, "network", groups=1, members_max=25, survivors_min=5, seed=b"seed").placed
    assert placed != first


def test_groups_that_are_too_small_are_not_opened() -> None:
    grouping = form_groups(DEVICES[:4], BEACON, "network", groups=1, members_max=64, survivors_min=5, seed=b"s")
    assert grouping.members == {}
    empty = form_groups([], BEACON, "network", groups=3, members_max=64, survivors_min=1, seed=b"s")
    assert empty.placed == frozenset()


@pytest.mark.parametrize(("groups", "members_max", "survivors_min"), [(0, 8, 5), (513, 8, 5), (1, 65, 5), (1, 4, 5)])
def test_groups_of_no_plan_are_a_fault(groups: int, members_max: int, survivors_min: int) -> None:
    with pytest.raises(ValueError, match="groups: found"):
        form_groups(
            DEVICES, BEACON, "network", groups=groups, members_max=members_max, survivors_min=survivors_min, seed=b"s"
        )


def test_a_small_fleet_is_one_group() -> None:
    sizes = {"group_size": 32, "members_max": 64, "survivors_min": 5}
    assert choose_groups(DEVICES[:5], BEACON, "network", **sizes) == 1
    assert choose_groups(DEVICES[:4], BEACON, "network", **sizes) == 1
    assert choose_groups([], BEACON, "network", **sizes) == 1


def test_as_many_devices_as_possible_are_placed_in_groups_of_about_the_size() -> None:
    for i in range(20):
        beacon = bytes([i]) * 32
        limits = {"members_max": 20, "survivors_min": 6}
        chosen = choose_groups(DEVICES[:80], beacon, "network", group_size=12, **limits)

        def placed(groups: int) -> int:
            return len(
                form_groups(
                    DEVICES[:80],
                    beacon,  # noqa: B023
                    "network",
                    groups=groups,
                    seed=b"s",
                    **limits,  # noqa: B023
                ).placed
            )

        by_number = {groups: placed(groups) for groups in range(1, 14)}
        assert by_number[chosen] == max(by_number.values())
        equals = [groups for groups, n in by_number.items() if n == by_number[chosen]]
        assert chosen == min(equals, key=lambda groups: abs(80 / groups - 12))


def test_with_fewer_expected_than_known_there_are_fewer_groups() -> None:
    sizes = {"group_size": 16, "members_max": 64, "survivors_min": 5}
    everybody = choose_groups(DEVICES, BEACON, "network", **sizes)
    some = choose_groups(DEVICES, BEACON, "network", **sizes, expected=64)
    assert everybody > some >= 2
    for i in range(20):  # any 64 of the 200: nearly all have a place
        present = select(applicants(200), 64, bytes([i]), round_number=1, mode="random").devices
        grouping = form_groups(present, BEACON, "network", groups=some, members_max=64, survivors_min=5, seed=b"s")
        assert len(grouping.placed) >= 60
    assert choose_groups(DEVICES, BEACON, "network", **sizes, expected=0) == 1


def test_the_smallest_group_is_counted_by_those_who_are_expected() -> None:
    """All groups would be large enough if every device came; of a third of them, four groups would lose one."""
    sizes = Counter(group_of(BEACON, "network", device, 4) for device in DEVICES)
    smallest = min(sizes.values()) * 64 // 200
    limits = {"group_size": 16, "members_max": 64}
    assert choose_groups(DEVICES, BEACON, "network", **limits, survivors_min=smallest, expected=64) == 4
    assert choose_groups(DEVICES, BEACON, "network", **limits, survivors_min=smallest + 1, expected=64) < 4


# --- profiles ---


@pytest.mark.parametrize("name", list(PROFILES))
def test_profiles_are_settings_that_exist_and_fit_together(name: str) -> None:
    task = TaskSection.model_validate(
        {"task": "network", "use_case": "network"}
        | {section: dict(values) for section, values in PROFILES[name].items()}
    )
    for section, values in PROFILES[name].items():
        assert {key: getattr(getattr(task, section), key) for key in values} == values
    settings = task.round
    assert settings.survivors_min <= settings.group_size <= GROUP_MEMBERS_MAX
    assert max(settings.quorum, settings.survivors_min) <= settings.checkins_max
    assert ring_bits(settings.group_size, settings.weight_max, 8) == 16, "uploads keep to two bytes a coordinate"
