"""Selection and grouping: fair, repeatable, and the same groups that a device would put itself into."""

from __future__ import annotations

from collections import Counter

from vedette_aggregator.selection import attempt_seed, beacon_of, form_groups, select
from vedette_schemas.round import GROUP_MEMBERS_MAX, group_of

DEVICES = [f"gw-{i:03}" for i in range(200)]


def test_selection_does_not_depend_on_the_order_of_check_ins() -> None:
    assert select(DEVICES, 20, b"seed") == select(DEVICES[::-1], 20, b"seed")
    assert select(DEVICES, 20, b"seed") != select(DEVICES, 20, b"other")


def test_everybody_is_selected_where_there_is_room() -> None:
    assert select(DEVICES[:5], 20, b"seed") == tuple(DEVICES[:5])


def test_every_device_has_the_same_chance() -> None:
    drawn = Counter(d for i in range(400) for d in select(DEVICES[:10], 3, i.to_bytes(4, "big")))
    # Binomial(400, 0.3): mean 120, σ 9.2; six σ are one failure in 10⁸ sets of seeds, and these are fixed.
    assert set(drawn) == set(DEVICES[:10])
    assert all(abs(n - 120) < 6 * 9.2 for n in drawn.values())


def test_attempts_draw_anew() -> None:
    seeds = {attempt_seed(b"secret", "network", r, a) for r in range(1, 4) for a in range(1, 4)}
    assert len(seeds) == 9


def test_the_beacon_depends_on_everything() -> None:
    keys = {"gw-01": bytes(32), "gw-02": bytes([1]) * 32}
    beacons = {
        beacon_of(bytes(32), "network", 1, 1, keys),
        beacon_of(bytes([9]) * 32, "network", 1, 1, keys),
        beacon_of(bytes(32), "sensor", 1, 1, keys),
        beacon_of(bytes(32), "network", 2, 1, keys),
        beacon_of(bytes(32), "network", 1, 2, keys),
        beacon_of(bytes(32), "network", 1, 1, {**keys, "gw-02": bytes([2]) * 32}),
        beacon_of(bytes(32), "network", 1, 1, {"gw-01": bytes(32)}),
    }
    assert len(beacons) == 7
    assert all(len(b) == 32 for b in beacons)
    assert beacon_of(bytes(32), "network", 1, 1, dict(reversed(keys.items()))) in beacons


def test_groups_are_those_that_the_devices_compute() -> None:
    grouping = form_groups(DEVICES, b"b" * 32, "network", group_size=32, survivors_min=5)
    assert len(grouping.members) > 1
    for gid, members in grouping.members.items():
        assert list(members) == sorted(members)
        assert {group_of(b"b" * 32, "network", d, grouping.count) for d in members} == {gid}
    assert grouping.placed == set(DEVICES)


def test_a_small_fleet_is_one_group() -> None:
    grouping = form_groups(DEVICES[:5], b"b" * 32, "network", group_size=32, survivors_min=5)
    assert (grouping.count, grouping.members) == (1, {0: tuple(DEVICES[:5])})


def test_too_few_devices_are_no_group() -> None:
    assert form_groups(DEVICES[:4], b"b" * 32, "network", group_size=32, survivors_min=5).placed == frozenset()
    assert form_groups([], b"b" * 32, "network", group_size=32, survivors_min=1).placed == frozenset()


def test_no_group_is_below_its_minimum_or_above_the_roster() -> None:
    for i in range(20):
        beacon = bytes([i]) * 32
        for size, least in ((4, 3), (32, 18), (64, 36)):
            grouping = form_groups(DEVICES, beacon, "network", group_size=size, survivors_min=least)
            assert all(least <= len(m) <= GROUP_MEMBERS_MAX for m in grouping.members.values())
            assert len(grouping.placed) == sum(len(m) for m in grouping.members.values())


def test_as_many_devices_as_possible_are_placed() -> None:
    for i in range(20):
        beacon = bytes([i]) * 32
        grouping = form_groups(DEVICES[:40], beacon, "network", group_size=8, survivors_min=6)
        assert len(grouping.placed) == 40, "fewer, larger groups where small ones would leave devices out"
