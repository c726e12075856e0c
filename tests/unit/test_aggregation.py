"""The aggregate: exact, weighted, over surviving groups only; its ranges, transcript and figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from round_parts import DIMENSION, OPTIMISER, check_mean, checkin, model_of, plan_of, settings, upload

from vedette_aggregator.admission import check_upload
from vedette_aggregator.aggregation import Contribution, aggregate_round, encoding_of, merge_ranges
from vedette_core.learning.encoding import encode
from vedette_core.learning.optimiser import FedAdam, FedAvg
from vedette_schemas.errors import RefusedError
from vedette_schemas.round import ActivationRange, Member, Roster, Upload, plan_bytes, transcript_hash

PLAN = plan_of(settings(4, quorum=2))


def roster_of(gid: int, devices: list[str]) -> Roster:
    return Roster(
        task="network",
        round=3,
        attempt=2,
        gid=gid,
        model="a" * 64,
        model_version=0,
        plan=plan_bytes(PLAN)[1],
        beacon=b"b" * 32,
        members=tuple(Member(device=d, epk=checkin(d).epk) for d in devices),
        deadline_s=1e9,
    )


ROSTERS = [roster_of(0, ["gw-00", "gw-01"]), roster_of(2, ["gw-02", "gw-03"])]


def contributions(deltas: dict[str, np.ndarray], **changes: Any) -> dict[str, Contribution]:
    found = {}
    for index, (device, delta) in enumerate(deltas.items()):
        roster = next(r for r in ROSTERS if any(m.device == device for m in r.members))
        update = encode(delta.astype(np.float32), encoding_of(PLAN, roster), np.random.default_rng(index))
        examples = 64 * (index + 1)
        body = upload(
            roster,
            device,
            levels=update.levels.tobytes(),
            num_examples=examples,
            weight=index + 1,
            clipped=update.clipped,
            **changes,
        )
        check_upload(body, roster, PLAN)
        found[device] = Contribution(body, device.encode().ljust(32, b"."))
    return found


def deltas(count: int = 4, scale: float = 0.3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    return {f"gw-{i:02}": rng.normal(scale=scale, size=DIMENSION) for i in range(count)}


def test_the_aggregate_is_the_weighted_mean_of_what_was_sent() -> None:
    sent = contributions(deltas())
    candidate = aggregate_round(PLAN, ROSTERS, sent, model_of(PLAN), FedAvg())
    uploads = [sent[d].upload for d in candidate.contributors]
    check_mean(candidate.weights, uploads, PLAN, ROSTERS[0])
    true = np.average(np.stack(list(deltas().values())), axis=0, weights=[1, 2, 3, 4])
    step = encoding_of(PLAN, ROSTERS[0]).step
    assert np.abs(candidate.weights - true).max() < 8 * step
    assert candidate.contributors == ("gw-00", "gw-01", "gw-02", "gw-03")


def test_the_order_of_arrival_does_not_matter_to_the_last_bit() -> None:
    sent = contributions(deltas())
    first = aggregate_round(PLAN, ROSTERS, sent, model_of(PLAN), FedAdam())
    second = aggregate_round(PLAN, ROSTERS, dict(reversed(sent.items())), model_of(PLAN), FedAdam())
    assert first.digest() == second.digest()


def test_groups_that_are_not_given_count_for_nothing() -> None:
    sent = contributions(deltas())
    candidate = aggregate_round(PLAN, ROSTERS[:1], sent, model_of(PLAN), FedAvg())
    assert candidate.contributors == ("gw-00", "gw-01")
    check_mean(candidate.weights, [sent["gw-00"].upload, sent["gw-01"].upload], PLAN, ROSTERS[0])
    assert candidate.metrics["weight"] == 3


def test_the_server_optimiser_keeps_its_memory_in_the_candidate() -> None:
    sent, optimiser = contributions(deltas()), FedAdam()
    model = model_of(PLAN)
    fresh = aggregate_round(PLAN, ROSTERS, sent, model, optimiser)
    assert fresh.optimiser.step == 1, "another optimiser's memory of no length is taken for a fresh one"
    assert fresh.optimiser.first.shape == (DIMENSION,)
    direct, _ = optimiser.apply(
        model.weights,
        aggregate_round(PLAN, ROSTERS, sent, model, FedAvg()).weights,
        optimiser.initial_state(DIMENSION),
    )
    np.testing.assert_array_equal(fresh.weights, direct)


def test_figures_are_weighted() -> None:
    sent = contributions(deltas(2), loss_before=4.0, loss_after=1.0)
    body = sent["gw-01"].upload.model_copy(update={"loss_before": 1.0})
    sent["gw-01"] = Contribution(body, sent["gw-01"].digest)
    metrics = aggregate_round(PLAN, ROSTERS[:1], sent, model_of(PLAN), FedAvg()).metrics
    assert metrics["loss_before"] == pytest.approx((4.0 * 1 + 1.0 * 2) / 3)
    assert metrics["loss_after"] == pytest.approx(1.0)
    assert (metrics["participants"], metrics["groups"], metrics["clipped_share"]) == (2, 1, 0)


def test_a_clipped_update_is_counted_and_bounded() -> None:
    candidate = aggregate_round(PLAN, ROSTERS, contributions(deltas(scale=50.0)), model_of(PLAN), FedAvg())
    assert candidate.metrics["clipped_share"] == 1.0
    assert candidate.metrics["update_norm"] <= PLAN.update.clip_norm * 1.05


def test_weights_that_are_not_finite_refuse_the_candidate() -> None:
    model = model_of(PLAN)
    with pytest.raises(RefusedError, match="not finite after the server's step"):
        aggregate_round(PLAN, ROSTERS, contributions(deltas()), model, FedAvg(learning_rate=1e300))


def test_the_transcript_names_every_upload_and_group() -> None:
    sent = contributions(deltas())
    base = aggregate_round(PLAN, ROSTERS, sent, model_of(PLAN), OPTIMISER).transcript
    other = {**sent, "gw-03": Contribution(sent["gw-03"].upload, b"x" * 32)}
    fewer = {d: c for d, c in sent.items() if d != "gw-03"}
    variants = [
        aggregate_round(PLAN, ROSTERS, other, model_of(PLAN), OPTIMISER).transcript,
        aggregate_round(PLAN, ROSTERS, fewer, model_of(PLAN), OPTIMISER).transcript,
        aggregate_round(PLAN, ROSTERS[:1], sent, model_of(PLAN), OPTIMISER).transcript,
    ]
    assert len({base, *variants}) == 4
    assert transcript_hash(ROSTERS[0]) != transcript_hash(ROSTERS[1])


def ranged(device: str, *ranges: tuple[str, float, float]) -> Upload:
    found = tuple(ActivationRange(tensor=t, low=low, high=high) for t, low, high in ranges)
    return upload(ROSTERS[0], device, ranges=found)


def test_ranges_are_merged_by_minimum_and_maximum() -> None:
    merged = merge_ranges([ranged("gw-00", ("h", -1.0, 2.0)), ranged("gw-01", ("h", -2.0, 1.0))])
    assert merged == {"h": (-2.0, 2.0)}


def test_one_device_cannot_spoil_the_quantisers_resolution() -> None:
    honest = [ranged(f"gw-{i:02}", ("h", -1.0, 1.0)) for i in range(4)]
    merged = merge_ranges([*honest, ranged("gw-04", ("h", -1e6, 1e6))])
    assert merged == {"h": (-9.0, 9.0)}, "four median widths beyond the median range"


def test_a_tensor_that_few_know_is_left_out() -> None:
    merged = merge_ranges(
        [ranged("gw-00", ("h", 0.0, 1.0)), ranged("gw-01", ("h", 0.0, 1.0)), ranged("gw-02", ("x", 0, 1))]
    )
    assert set(merged) == {"h"}


@pytest.mark.parametrize(
    "ranges",
    [
        (ActivationRange(tensor="h", low=0.0, high=2e6),),
        (ActivationRange(tensor="h", low=0.0, high=1.0), ActivationRange(tensor="h", low=0.0, high=1.0)),
    ],
)
def test_ranges_that_are_none_are_refused(ranges: tuple[ActivationRange, ...]) -> None:
    with pytest.raises(Exception, match="range"):
        check_upload(upload(ROSTERS[0], "gw-00", ranges=ranges), ROSTERS[0], PLAN)
