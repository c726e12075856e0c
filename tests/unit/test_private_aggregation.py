"""Sums under noise: nothing of them is looked at before it is noised, whatever one of their members puts in."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from round_effects import every, notes, opened
from round_fleet import Fleet
from round_parts import DIMENSION, TASK, Fresh, Stage, devices_in, masked_settings, plan_of, settings
from test_aggregation import GIVEN, aggregated, deltas, opened_groups, roster_of, vectors_of

from vedette_aggregator import aggregation
from vedette_aggregator.aggregation import Aggregate, SpentError
from vedette_aggregator.round_events import PublishCandidate
from vedette_core.learning.encoding import Encoding
from vedette_core.learning.robust.defence import Defence
from vedette_core.learning.round_vector import Ring, aggregator_sigma_max, encoding_of, layout_of, ring_of
from vedette_core.learning.update_vector import GroupSum, decode_group_mean, noise_margin
from vedette_core.privacy.accountant import epsilon_after
from vedette_core.privacy.adaptive_clip import count_sigma, sum_multiplier
from vedette_core.privacy.events import PrivacyEvent
from vedette_core.privacy.noise import noise_sigma
from vedette_core.secagg.parameters import check_plan
from vedette_schemas.errors import ConfigError, RefusedError
from vedette_schemas.round import Phase, Plan, Roster

NOISE: dict[str, Any] = {"noise_multiplier": 1.0, "participations_max": 1, "epsilon_max": 9.0}


def noisy_plan(rule: str = "mean", **changes: Any) -> Plan:
    return plan_of(settings(4, **({"quorum": 2, "groups": 3, "rule": rule} | NOISE | changes)))


def rosters_of(plan: Plan) -> list[Roster]:
    return [roster_of(0, ["gw-00", "gw-01"], plan), roster_of(2, ["gw-02", "gw-03"], plan)]


def sent_under(plan: Plan, victim: np.ndarray | None = None) -> dict[str, Ring]:
    given = deltas() if victim is None else deltas() | {"gw-00": victim}
    return vectors_of(given, plan, rosters_of(plan))


def made_of(plan: Plan, sent: dict[str, Ring], **changes: Any) -> Aggregate:
    defence = Defence.configured("mean" if plan.privacy.scope == "total" else "trimmed-mean", has_root=False)
    groups = opened_groups(sent, rosters_of(plan), plan)
    return aggregated(groups, plan=plan, defence=defence, **changes)


def what_is_seen(plan: Plan, sent: dict[str, Ring], **changes: Any) -> tuple[object, ...]:
    """Everything of the outcome but the noised weights."""
    try:
        made = made_of(plan, sent, **changes)
    except SpentError as fault:
        return fault.rule, fault.event.devices
    return made.candidate.contributors, {gid: j.dropped for gid, j in made.groups.items()}, made.clipped_share


PLANS = [noisy_plan(), noisy_plan("trimmed-mean")]
BOTH = pytest.mark.parametrize("plan", PLANS, ids=["total", "group"])


@BOTH
def test_a_coordinate_at_the_limit_tells_nothing_of_another_member(plan: Plan) -> None:
    """One member puts limit − T into a coordinate: whether another's level is above T once decided about the group."""
    layout, roster = layout_of(plan), rosters_of(plan)[0]
    up = np.zeros(DIMENSION, np.float32)
    up[0] = 0.5
    sides = [sent_under(plan, x) for x in (up, -up)]
    levels = [side["gw-00"][: layout.coordinates].astype(int) for side in sides]
    place = int(np.argmax(levels[0] - levels[1]))
    between = (levels[0][place] + levels[1][place]) // 2
    assert levels[1][place] < between < levels[0][place]
    weights = GIVEN["gw-00"] + GIVEN["gw-01"]
    for side in sides:
        side["gw-01"][place] = encoding_of(plan, roster).level_max * weights - between
    for seed in range(10):
        seen = [what_is_seen(plan, s, entropy=np.random.default_rng(seed).bytes) for s in sides]
        assert seen[0] == seen[1]
        assert seen[0][0] == tuple(GIVEN), "and it is no reason to drop anything: noise may have done it"


@BOTH
def test_where_a_sum_wraps_tells_nothing_of_another_member(plan: Plan) -> None:
    """Noise comes before residues are read: after it, one level more of another would move a sum by the whole ring."""
    layout, roster = layout_of(plan), rosters_of(plan)[0]
    limit = encoding_of(plan, roster).level_max * 3
    border = (limit + 1) // 2 + 2 ** (ring_of(plan) - 1)
    seen = []
    for step in (-1, 0):
        sent = sent_under(plan)
        exact = int(sent["gw-00"][7]) + int(sent["gw-01"][7])
        sent["gw-01"][7] = (int(sent["gw-01"][7]) + border + step - exact) % 2 ** ring_of(plan)
        assert layout.coordinates > 7
        seen.append([what_is_seen(plan, sent, entropy=np.random.default_rng(s).bytes) for s in range(5)])
    assert seen[0] == seen[1]
    assert "limit" in str(seen[0][0]), "half a ring away, no noise explains it"


@BOTH
def test_the_clipped_slot_drops_no_group(plan: Plan) -> None:
    slot = int(layout_of(plan).content()[1])
    seen = []
    for length in (0.01, 9.0):  # another member clips, or does not
        sent = sent_under(plan, np.full(DIMENSION, length, np.float32))
        sent["gw-01"][slot] = 2
        seen.append(what_is_seen(plan, sent))
    assert seen[0] == seen[1]
    assert seen[0] == (tuple(GIVEN), {0: "", 2: ""}, 0.0)


@BOTH
@pytest.mark.parametrize("lie", [2**32 - 5, 2**31, 1000])
def test_a_count_that_cannot_be_is_a_share_within_bounds(plan: Plan, lie: int) -> None:
    slot = int(layout_of(plan).content()[1])
    sent = sent_under(plan)
    sent["gw-01"][slot] = lie
    made = made_of(plan, sent, adapts=True)
    spare = 8.0 * count_sigma(4, 1.0) / 4
    assert made.candidate.contributors == tuple(GIVEN)
    assert -spare <= made.clipped_share <= 1.0 + spare


def test_canaries_and_weights_are_the_same_for_everybody_and_still_drop_a_group() -> None:
    for plan in PLANS:
        for place, reason in ((layout_of(plan).canaries()[2], "canary"), (int(layout_of(plan).content()[0]), "weight")):
            sent = sent_under(plan)
            sent["gw-03"][place] += 1
            made = made_of(plan, sent)
            assert made.candidate.contributors == ("gw-00", "gw-01")
            assert made.groups[2].dropped == reason
            assert made.event.devices == ("gw-00", "gw-01"), "nothing of it was looked at"


def test_a_noised_sum_out_of_its_range_is_dropped_and_paid_for() -> None:
    plan = PLANS[1]
    sent = sent_under(plan)
    sent["gw-03"][11] = 2**30
    made = made_of(plan, sent)
    assert made.groups[2].dropped == "limit"
    assert made.candidate.contributors == ("gw-00", "gw-01")
    assert made.event.devices == tuple(GIVEN)
    assert made.candidate.metrics["groups_dropped"] == 1


def test_a_noised_total_out_of_its_range_is_refused_and_paid_for() -> None:
    plan, entropy = PLANS[0], Fresh()
    sent = sent_under(plan)
    sent["gw-03"][11] = 2**30
    with pytest.raises(SpentError, match="found coordinates") as caught:
        made_of(plan, sent, entropy=entropy)
    assert (caught.value.rule, caught.value.event.devices, entropy.asked) == ("limit", tuple(GIVEN), 1)


def test_too_few_that_hold_after_the_noise_are_paid_for() -> None:
    plan = noisy_plan("trimmed-mean", quorum=3)
    sent = sent_under(plan)
    sent["gw-03"][11] = 2**30
    with pytest.raises(SpentError, match="found 2 updates in sums that hold .group 2: limit.") as caught:
        made_of(plan, sent)
    assert (caught.value.rule, caught.value.event.devices) == ("quorum", tuple(GIVEN))


def test_what_is_noised_is_the_exact_residue(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []

    def noise(sums: np.ndarray, *_: object) -> np.ndarray:
        seen.append(sums.copy())
        return sums - 50_000

    monkeypatch.setattr(aggregation, "add_noise", noise)
    sent = sent_under(PLANS[0])
    made = made_of(PLANS[0], sent)
    coordinates = layout_of(PLANS[0]).coordinates
    exact = sum(v[:coordinates].astype(np.int64) for v in sent.values())
    np.testing.assert_array_equal(seen, [exact])
    read = GroupSum(exact - 50_000, 10, 4, 0)  # below zero is below zero, and no large residue
    expected = decode_group_mean(read, encoding_of(PLANS[0], rosters_of(PLANS[0])[0]))
    np.testing.assert_array_equal(made.update, expected)


# -- the ring ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("z", [0.5, 1.0, 4.0])
def test_the_ring_has_room_for_the_noise_also_where_it_pays_for_the_count(z: float, bits: int) -> None:
    for rule, most in (("mean", 4 * 8), ("trimmed-mean", 4 * 8)):
        plan = noisy_plan(rule, noise_multiplier=z, bits=bits, epsilon_max=500.0)
        step = Encoding(DIMENSION, 2.0, b"", plan.update.bits).step
        sigma = noise_sigma(sum_multiplier(z, count_sigma(1, z)), 2.0, 8, step)
        assert sigma <= aggregator_sigma_max(plan) <= 1.05 * sigma
        span = most * (2**bits - 1) + 2 * noise_margin(sigma, 1)
        assert span < 2 ** ring_of(plan)
        assert ring_of(plan) == 32


def test_without_noise_of_the_aggregator_the_ring_is_as_narrow_as_ever() -> None:
    assert ring_of(plan_of(settings(4, quorum=2))) == 16
    assert aggregator_sigma_max(plan_of(masked_settings(device_noise=True, **NOISE))) == 0.0


def test_a_total_that_no_ring_holds_is_no_plan() -> None:
    many = {"bits": 16, "weight_max": 255, "groups": 64, "group_size": 64, "survivors_min": 5, "checkins_max": 4096}
    with pytest.raises(ConfigError, match="ring of 32 bits"):
        noisy_plan(**many)
    noisy_plan("trimmed-mean", **many)  # a group's sum fits


# -- rounds -----------------------------------------------------------------------------------------------------------


def test_a_refusal_that_noise_came_before_is_in_the_ledger_when_it_leaves() -> None:
    entropy = Fresh()
    fleet = Fleet(Stage(masked_settings(**(NOISE | {"participations_max": 2})), entropy=entropy))
    (six,) = devices_in([6])
    fleet.collect(six)
    effects = fleet.upload_all(six[1:])
    plan, roster = fleet.stage.running, fleet.stage.roster_of(six[0])
    lie = np.zeros(layout_of(plan).length, f"<u{ring_of(plan) // 8}")
    member = roster.member(six[0])
    assert member is not None
    lie[layout_of(plan).content()[0]] = member.weight
    lie[3] = 2**30
    effects = fleet.open_sums(effects + fleet.upload(six[0], vector=lie))
    assert not every(effects, PublishCandidate)
    assert opened(effects)[-1].phase is Phase.FAILED
    assert "found coordinates" in notes(effects)
    stored = PrivacyEvent.from_bytes(fleet.stage.disk[f"privacy/{TASK}/event/1.1"], "event")
    assert stored.devices == six
    assert entropy.asked == 1
    fleet.stage.restart()
    assert fleet.stage.machine.memory.ledger.releases == 1
    assert entropy.asked == 1


# -- noise of the devices ---------------------------------------------------------------------------------------------


def full_sigma(plan: Plan) -> float:
    step = Encoding(plan.dimension, plan.update.clip_norm, b"", plan.update.bits).step
    return noise_sigma(plan.privacy.noise_multiplier, plan.update.clip_norm, plan.update.weight_max, step)


@pytest.mark.parametrize("size", [8, 16, 32, 64])
def test_honest_survivors_alone_bring_the_noise_that_the_ledger_counts(size: int) -> None:
    own = {"group_size": size, "survivors_min": 5 if size == 8 else 0, "checkins_max": size}
    plan = plan_of(masked_settings(device_noise=True, **(NOISE | own)))
    honest = plan.groups.survivors_min - plan.groups.corrupt_max
    assert 1 <= honest < plan.groups.survivors_min
    left = plan.update.noise_sigma * math.sqrt(honest) / full_sigma(plan)
    assert left == pytest.approx(1.0, rel=1e-12), "corrupt survivors that bring none"
    assert epsilon_after(left, 1, 1e-6) == pytest.approx(epsilon_after(plan.privacy.noise_multiplier, 1, 1e-6))


def test_with_helpers_two_honest_survivors_bring_it() -> None:
    plan = plan_of(masked_settings(device_noise=True, committee="helpers", **NOISE))
    assert plan.update.noise_sigma * math.sqrt(2) == pytest.approx(full_sigma(plan))


@pytest.mark.parametrize("committee", ["inline", "helpers"])
def test_devices_refuse_a_share_of_noise_that_is_too_small(committee: str) -> None:
    plan = plan_of(masked_settings(device_noise=True, committee=committee, **NOISE))
    check_plan(plan)
    less = plan.update.model_copy(update={"noise_sigma": 0.99 * plan.update.noise_sigma})
    with pytest.raises(RefusedError, match="must be honest") as caught:
        check_plan(plan.model_copy(update={"update": less}))
    assert caught.value.rule == "noise"


def test_a_plan_whose_survivors_may_all_be_corrupt_is_refused() -> None:
    with pytest.raises(ConfigError, match="5 survivors of which 5 may be corrupt, expected at least one that brings"):
        plan_of(masked_settings(device_noise=True, **(NOISE | {"group_size": 16, "survivors_min": 5})))
