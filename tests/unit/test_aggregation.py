"""The aggregate: exact, weighted, over sound groups only; its ranges, transcript, figures, ledger event and noise."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from round_oracle import check_mean, mean_of
from round_parts import DIMENSION, OPTIMISER, Fresh, checkin, model_of, plain_vector, plan_of, settings, upload

from vedette_aggregator.admission import check_upload
from vedette_aggregator.aggregation import Aggregate, OpenedGroup, aggregate_round, release_event
from vedette_core.learning.layout import Float32
from vedette_core.learning.optimiser import FedAdam, FedAvg
from vedette_core.learning.robust.defence import Defence
from vedette_core.learning.robust.norm_gate import NormHistory
from vedette_core.learning.round_vector import Ring, encoding_of, layout_of, ring_of
from vedette_core.learning.update_vector import add_vector, zero_vector
from vedette_core.privacy.ledger import Budget, Ledger
from vedette_schemas.errors import RefusedError
from vedette_schemas.round import Member, Plan, Roster, plan_bytes, transcript_hash

RANGED = ("h", "x")
PLAN = plan_of(settings(4, quorum=2, groups=3, rule="mean"), tensors=RANGED)
NOISY = plan_of(
    settings(4, quorum=2, groups=3, rule="mean", noise_multiplier=1.0, participations_max=1, epsilon_max=9.0)
)
MEAN = Defence.configured("mean", has_root=False)
GIVEN = {"gw-00": 1, "gw-01": 2, "gw-02": 3, "gw-03": 4}
"""Weights in the rosters."""


def roster_of(gid: int, devices: Sequence[str], plan: Plan = PLAN) -> Roster:
    def member(device: str) -> Member:
        own = checkin(device)
        return Member(
            device=device, epk=own.epk, seq=1, certificate=own.certificate, offer=own.offer, weight=GIVEN[device]
        )

    return Roster(
        task="network",
        round=3,
        attempt=2,
        gid=gid,
        model="a" * 64,
        model_version=0,
        plan=plan_bytes(plan)[1],
        beacon=b"b" * 32,
        members=tuple(member(d) for d in devices),
        deadline_s=1e9,
    )


ROSTERS = [roster_of(0, ["gw-00", "gw-01"]), roster_of(2, ["gw-02", "gw-03"])]
NOISY_ROSTERS = [roster_of(r.gid, [m.device for m in r.members], NOISY) for r in ROSTERS]


def deltas(count: int = 4, scale: float = 0.3) -> dict[str, Float32]:
    rng = np.random.default_rng(7)
    return {f"gw-{i:02}": rng.normal(scale=scale, size=DIMENSION).astype(np.float32) for i in range(count)}


def vectors_of(
    given: Mapping[str, Float32], plan: Plan = PLAN, rosters: Sequence[Roster] = tuple(ROSTERS), **more: Any
) -> dict[str, Ring]:
    """What each device sends."""
    found = {}
    for device, delta in given.items():
        roster = next(r for r in rosters if r.member(device) is not None)
        own = {k: v[device] if isinstance(v, dict) and device in v else v for k, v in more.items()}
        found[device] = plain_vector(roster, device, plan, delta, **own)
        check_upload(upload(roster, device, plan, vector=found[device].tobytes()), roster, plan)
    return found


def opened_groups(
    vectors: Mapping[str, Ring], rosters: Sequence[Roster] = tuple(ROSTERS), plan: Plan = PLAN
) -> list[OpenedGroup]:
    """Their sums, a group at a time, in the order in which they came."""
    groups = []
    for roster in rosters:
        total, digests = zero_vector(layout_of(plan), ring_of(plan)), {}
        for device, vector in vectors.items():
            if roster.member(device) is not None:
                add_vector(total, vector)
                digests[device] = hashlib.sha256(vector.tobytes()).digest()
        if digests:
            groups.append(OpenedGroup(roster, digests, total))
    return groups


def aggregated(
    groups: Sequence[OpenedGroup], optimiser: Any = OPTIMISER, plan: Plan = PLAN, **changes: Any
) -> Aggregate:
    values: dict[str, Any] = {
        "defence": MEAN,
        "norms": NormHistory(),
        "root": None,
        "ledger": Ledger(plan.task, Budget.of(plan.privacy)),
        "entropy": Fresh(),
    }
    return aggregate_round(plan, groups, model_of(plan), optimiser, **(values | changes))


def test_the_aggregate_of_a_group_is_the_weighted_mean_of_what_was_sent() -> None:
    everybody = [roster_of(0, sorted(GIVEN))]
    sent = vectors_of(deltas(), rosters=everybody)
    made = aggregated(opened_groups(sent, everybody), FedAvg())
    check_mean(made.candidate.weights, list(sent.values()), list(GIVEN.values()), PLAN, everybody[0])
    true = np.average(np.stack(list(deltas().values())), axis=0, weights=[1, 2, 3, 4])
    step = encoding_of(PLAN, everybody[0]).step
    assert np.abs(made.candidate.weights - true).max() < 8 * step
    assert made.candidate.contributors == ("gw-00", "gw-01", "gw-02", "gw-03")
    np.testing.assert_array_equal(made.update, made.candidate.weights)


def test_groups_count_by_their_weight_and_none_is_longer_than_usual() -> None:
    sent = vectors_of(deltas())
    candidate = aggregated(opened_groups(sent)).candidate
    means = [
        mean_of([sent["gw-00"], sent["gw-01"]], [1, 2], PLAN, ROSTERS[0]),
        mean_of([sent["gw-02"], sent["gw-03"]], [3, 4], PLAN, ROSTERS[1]),
    ]
    norms = [float(np.linalg.norm(mean)) for mean in means]
    kept = [mean * min(1.0, float(np.median(norms)) / norm) for mean, norm in zip(means, norms, strict=True)]
    assert np.abs(candidate.weights - np.average(kept, axis=0, weights=[3, 7])).max() < 1e-5
    assert candidate.metrics["weight"] == 10


def test_the_order_of_arrival_does_not_matter_to_the_last_bit() -> None:
    sent = vectors_of(deltas(), ranges={"h": (-1.0, 1.0)})
    first = aggregated(opened_groups(sent), FedAdam()).candidate
    second = aggregated(opened_groups(dict(reversed(sent.items()))), FedAdam()).candidate
    assert first.digest() == second.digest()


def test_groups_that_are_not_given_count_for_nothing() -> None:
    sent = vectors_of(deltas())
    candidate = aggregated(opened_groups(sent, ROSTERS[:1])).candidate
    assert candidate.contributors == ("gw-00", "gw-01")
    check_mean(candidate.weights, [sent["gw-00"], sent["gw-01"]], [1, 2], PLAN, ROSTERS[0])
    assert candidate.metrics["weight"] == 3


def test_survivors_are_those_whose_digests_are_there() -> None:
    sent = vectors_of(deltas(3))
    candidate = aggregated(opened_groups(sent)).candidate
    assert candidate.contributors == ("gw-00", "gw-01", "gw-02")
    assert candidate.metrics["weight"] == 6, "of the second group, three of seven"


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (layout_of(PLAN).canaries()[3], 1, "canary"),
        (int(layout_of(PLAN).content()[0]), 99, "weight"),
        (5, 7 * 255 + 1, "limit"),
        (int(layout_of(PLAN).content()[1]), 3, "statistics"),
    ],
)
def test_a_sum_that_cannot_be_is_dropped_and_the_others_count(place: int, value: int, reason: str) -> None:
    sent = vectors_of(deltas())
    first, second = opened_groups(sent)
    spoilt = second.total.copy()
    spoilt[place] = value
    made = aggregated([first, replace(second, total=spoilt)])
    assert made.candidate.contributors == ("gw-00", "gw-01")
    check_mean(made.candidate.weights, [sent["gw-00"], sent["gw-01"]], [1, 2], PLAN, ROSTERS[0])
    assert {gid: judged.dropped for gid, judged in made.groups.items()} == {0: "", 2: reason}
    assert made.groups[2].members == ("gw-02", "gw-03")
    assert (made.candidate.metrics["groups"], made.candidate.metrics["groups_dropped"]) == (1, 1)
    assert made.event.devices == ("gw-00", "gw-01"), "nobody pays for a sum that was not released"


def test_too_few_updates_in_sums_that_hold_are_no_round() -> None:
    groups = opened_groups(vectors_of(deltas()))
    broken = []
    for group in groups:
        total = group.total.copy()
        total[layout_of(PLAN).canaries()[0]] = 1
        broken.append(replace(group, total=total))
    with pytest.raises(
        RefusedError, match=r"found 0 updates in sums that hold \(group 0: canary, group 2: canary\)"
    ) as e:
        aggregated(broken)
    assert e.value.rule == "quorum"
    with pytest.raises(RefusedError, match=r"found 1 updates in sums that hold \(none dropped\)"):
        aggregated(opened_groups(vectors_of(deltas(1))))


def test_the_server_optimiser_keeps_its_memory_in_the_candidate() -> None:
    groups, optimiser = opened_groups(vectors_of(deltas())), FedAdam()
    model = model_of(PLAN)
    fresh = aggregated(groups, optimiser).candidate
    assert fresh.optimiser.step == 1, "another optimiser's memory of no length is taken for a fresh one"
    assert fresh.optimiser.first.shape == (DIMENSION,)
    mean = aggregated(groups, FedAvg()).candidate.weights
    direct, _ = optimiser.apply(model.weights, mean, optimiser.initial_state(DIMENSION))
    np.testing.assert_array_equal(fresh.weights, direct)


def test_figures_are_weighted() -> None:
    sent = vectors_of(deltas(2), loss_before={"gw-00": 4.0, "gw-01": 1.0}, loss_after=1.0)
    metrics = aggregated(opened_groups(sent)).candidate.metrics
    # Losses travel as logarithms, 0.063 % apart: their mean is the geometric one.
    assert metrics["loss_before"] == pytest.approx(4.0 ** (1 / 3), rel=1e-3)
    assert metrics["loss_after"] == pytest.approx(1.0, rel=1e-3)
    assert (metrics["participants"], metrics["groups"], metrics["clipped_share"]) == (2, 1, 0)


def test_a_clipped_update_is_counted_and_bounded() -> None:
    made = aggregated(opened_groups(vectors_of(deltas(scale=50.0))))
    assert made.candidate.metrics["clipped_share"] == made.clipped_share == 1.0
    assert made.candidate.metrics["update_norm"] <= PLAN.update.clip_norm * 1.05


def test_weights_that_are_not_finite_refuse_the_candidate() -> None:
    with pytest.raises(RefusedError, match="not finite after the server's step"):
        aggregated(opened_groups(vectors_of(deltas())), FedAvg(learning_rate=1e300))


def test_the_transcript_names_every_upload_and_group() -> None:
    sent = vectors_of(deltas())
    groups = opened_groups(sent)
    base = aggregated(groups).candidate.transcript
    other = [groups[0], replace(groups[1], digests={**groups[1].digests, "gw-03": b"x" * 32})]
    variants = [
        aggregated(other).candidate.transcript,
        aggregated(opened_groups({d: v for d, v in sent.items() if d != "gw-03"})).candidate.transcript,
        aggregated(groups[:1]).candidate.transcript,
    ]
    assert len({base, *variants}) == 4
    assert transcript_hash(ROSTERS[0]) != transcript_hash(ROSTERS[1])


# -- ranges -----------------------------------------------------------------------------------------------------------


def ranges_of(given: Mapping[str, Mapping[str, tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    sent: dict[str, Ring] = {}
    for device, ranges in given.items():
        sent |= vectors_of({device: deltas()[device]}, ranges=ranges)
    return dict(aggregated(opened_groups(sent)).candidate.ranges)


def test_ranges_are_merged_over_groups_to_the_outermost_bin() -> None:
    merged = ranges_of({"gw-00": {"h": (-1.0, 2.0)}, "gw-03": {"h": (-2.0, 1.0)}})
    assert merged == {"h": (-2.0, 2.0)}, "powers of two are edges of bins"


def test_one_device_cannot_spoil_the_quantisers_resolution() -> None:
    honest = {f"gw-{i:02}": {"h": (-1.0, 1.0)} for i in range(3)}
    merged = ranges_of({**honest, "gw-03": {"h": (-200.0, 200.0)}})
    assert merged == {"h": (-9.0, 9.0)}, "four median widths beyond the median range"


def test_a_tensor_that_few_know_is_left_out() -> None:
    given: dict[str, dict[str, tuple[float, float]]] = {f"gw-{i:02}": {"h": (0.0, 1.0)} for i in range(3)}
    assert set(ranges_of({**given, "gw-03": {"x": (0.0, 1.0)}})) == {"h"}


# -- ledger and noise -------------------------------------------------------------------------------------------------


def noisy(**changes: Any) -> Aggregate:
    sent = vectors_of(deltas(), NOISY, NOISY_ROSTERS)
    return aggregated(opened_groups(sent, NOISY_ROSTERS, NOISY), plan=NOISY, **changes)


def test_the_event_says_what_was_released_and_the_ledger_is_only_asked() -> None:
    ledger = Ledger(NOISY.task, Budget.of(NOISY.privacy))
    made = noisy(ledger=ledger)
    assert made.event == release_event(NOISY, 3, 2, list(reversed(list(GIVEN))))
    assert (made.event.noise_multiplier, made.event.scope.value) == (1.0, "total")
    assert ledger.releases == 0
    ledger.record(made.event)
    assert noisy(ledger=ledger).event == made.event, "the very same release may be made again after a crash"


def test_a_release_past_the_budget_is_refused_before_any_noise_is_drawn() -> None:
    ledger, entropy = Ledger(NOISY.task, Budget.of(NOISY.privacy)), Fresh()
    ledger.record(release_event(NOISY, 2, 1, ["gw-00"]))
    with pytest.raises(RefusedError, match="gw-00 to participation 2") as caught:
        noisy(ledger=ledger, entropy=entropy)
    assert (caught.value.rule, entropy.asked) == ("budget", 0)


def test_noise_comes_on_top_of_the_same_mean() -> None:
    seeds = iter(range(400))
    found = [noisy(entropy=np.random.default_rng(next(seeds)).bytes).candidate.weights for _ in range(300)]
    true = np.average(np.stack(list(deltas().values())), axis=0, weights=[1, 2, 3, 4])
    sigma = 1.0 * 2.0 * 8 / 10  # z · C · W over the sum of the weights
    assert np.std(np.stack(found), axis=0).mean() == pytest.approx(sigma, rel=0.1)
    assert np.abs(np.mean(found, axis=0) - true).max() < 5 * sigma / 300**0.5


def test_without_adapting_the_share_of_clipped_updates_is_not_told_under_noise() -> None:
    assert noisy().clipped_share == 0.0
    entropy = Fresh()
    adapted = noisy(adapts=True, entropy=entropy)
    assert entropy.asked == 2
    assert adapted.clipped_share != 0.0, "it has noise of its own"


def test_a_total_that_is_noised_as_a_whole_judges_no_group() -> None:
    made = noisy()
    assert {gid: (j.dropped, j.mean) for gid, j in made.groups.items()} == {0: ("", None), 2: ("", None)}
    assert made.norms == NormHistory()
