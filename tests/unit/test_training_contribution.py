"""A device's training step: what it learns from, what leaves, masked and unmasked, and when it sits a round out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from vedette_aggregator.selection import assigned_weight
from vedette_core.crypto.agreement import BOX_OVERHEAD, KeyPair, key_pair
from vedette_core.crypto.masks import MaskExpander
from vedette_core.learning.local_training import TrainingResult
from vedette_core.learning.network import build_network
from vedette_core.learning.optimiser import FedAdam, FedAvg, ServerOptimiser
from vedette_core.learning.round_vector import encoding_of, layout_of, read_sum, ring_of, vector_bytes
from vedette_core.learning.spec import dense_spec
from vedette_core.learning.update_vector import GroupSum, add_vector, decode_group_mean, vector_from_bytes, zero_vector
from vedette_core.secagg.secrets import commitment, pair_secret
from vedette_device.training import Contribution, contribute, train_locally
from vedette_schemas.errors import PeerError, RefusedError
from vedette_schemas.round import (
    DIGEST_BYTES,
    GroupPlan,
    Member,
    Plan,
    Roster,
    TrainingPlan,
    UpdatePlan,
    Upload,
    plan_bytes,
    transcript_hash,
)
from vedette_schemas.secagg import SECRET_BYTES

NETWORK = build_network(dense_spec(12))
WEIGHTS = NETWORK.initial_weights(np.random.default_rng(0))
TENSORS = tuple(sorted({"input", *(layer.name for layer in NETWORK.layers)}))
MIXING = np.random.default_rng(1).standard_normal((2, 12))
DEVICES = ("dev-0", "dev-1", "dev-2", "dev-3")
EXAMPLES = {"dev-0": 150, "dev-1": 300, "dev-2": 450, "dev-3": 600}
REFERENCE = 100


def rows(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, 2)) @ MIXING + 0.1 * rng.standard_normal((count, 12))).astype(np.float32)


def plan(*, protection: str = "none", **update: Any) -> Plan:
    masked = protection == "masked"
    values = {"clip_norm": 2.0, "weight_max": 4, "examples_reference": REFERENCE, "tensors": TENSORS}
    committee: dict[str, Any] = {"committee": "none"}
    if masked:
        committee = {"committee_size": 4, "votes_min": 3, "threshold": 3, "corrupt_max": 1}
    return Plan(
        task="sensor",
        version=1,
        feature_schema="0" * 64,
        network=NETWORK.spec.digest,
        dimension=NETWORK.layout.size,
        training=TrainingPlan(local_epochs=1, batch_size=16, learning_rate=5e-3, prox_mu=0.0, examples_min=10),
        update=UpdatePlan(**{**values, "protection": protection, **update}),
        groups=GroupPlan(group_size=4, members_max=4, survivors_min=1, quorum=1, checkins_max=4, **committee),
    )


def key_of(device: str) -> KeyPair:
    return key_pair(hashlib.sha256(device.encode()).digest())


def roster_of(rounds: Plan, number: int = 1) -> Roster:
    members = tuple(
        Member(
            device=device,
            epk=key_of(device).public,
            seq=1,
            certificate=b"not looked at here",
            offer=bytes(64),
            weight=assigned_weight(EXAMPLES[device].bit_length() - 1, REFERENCE, rounds.update.weight_max),
        )
        for device in DEVICES
    )
    return Roster(
        task="sensor",
        round=number,
        attempt=1,
        gid=0,
        model="a" * 64,
        model_version=number - 1,
        plan=plan_bytes(rounds)[1],
        beacon=b"b" * 32,
        members=members,
        deadline_s=0.0,
    )


def trained(rounds: Plan, device: str, seed: int, weights: np.ndarray = WEIGHTS) -> TrainingResult:
    x = rows(EXAMPLES[device], seed)
    return train_locally(rounds, NETWORK, weights, x, np.random.default_rng(seed))


def contribution(
    rounds: Plan, roster: Roster, device: str = "dev-1", seed: int = 1, weights: np.ndarray = WEIGHTS
) -> Contribution:
    return contribute(
        rounds,
        roster,
        device,
        key_of(device),
        trained(rounds, device, seed, weights),
        rng=np.random.default_rng(seed),
        entropy=np.random.default_rng(seed + 1).bytes,
    )


def group_sum(rounds: Plan, roster: Roster, vectors: dict[str, bytes]) -> GroupSum:
    """What the aggregator reads in a sum of vectors without masks."""
    layout, bits = layout_of(rounds), ring_of(rounds)
    total = zero_vector(layout, bits)
    for vector in vectors.values():
        add_vector(total, vector_from_bytes(vector, layout, bits))
    return read_sum(rounds, roster, vectors, total)


@pytest.mark.parametrize("optimiser", [FedAvg(), FedAdam(learning_rate=0.05)])
def test_rounds_of_devices_learn_what_none_of_them_sends(optimiser: ServerOptimiser) -> None:
    weights, state, rounds = WEIGHTS, optimiser.initial_state(len(WEIGHTS)), plan()
    test = rows(300, seed=99)
    before = NETWORK.loss(test, weights)
    for number in range(1, 13):
        roster = roster_of(rounds, number)
        made = {d: contribution(rounds, roster, d, 10 * number + i, weights) for i, d in enumerate(DEVICES)}
        group = group_sum(rounds, roster, {d: m.vector for d, m in made.items()})
        weights, state = optimiser.apply(weights, decode_group_mean(group, encoding_of(rounds, roster)), state)
    assert NETWORK.loss(test, weights) < 0.5 * before


@pytest.mark.parametrize("protection", ["none", "masked"])
def test_a_contribution_is_what_an_upload_holds(protection: str) -> None:
    rounds = plan(protection=protection)
    roster = roster_of(rounds)
    made = contribution(rounds, roster)
    upload = Upload(
        id="up",
        task="sensor",
        round=1,
        attempt=1,
        gid=0,
        device="dev-1",
        transcript=transcript_hash(roster),
        vector=made.vector,
        boxes=made.boxes,
        commitments=made.commitments,
        header=bytes(64),
    )
    assert len(upload.vector) == vector_bytes(rounds)
    assert made.num_examples == 300
    assert made.loss_after < made.loss_before
    if protection == "none":
        assert (made.boxes, made.commitments) == ((), ())
        return
    # A box a member of the committee, which here is the group: shares of the own secret and of three pairs'.
    assert [len(box) for box in made.boxes] == [BOX_OVERHEAD + 4 * SECRET_BYTES] * 4
    assert [len(c) for c in made.commitments] == [DIGEST_BYTES] * 4


def test_what_an_upload_says_about_the_training_rides_in_the_vector() -> None:
    rounds = plan()
    roster = roster_of(rounds)
    made = contribution(rounds, roster)
    group = group_sum(rounds, roster, {"dev-1": made.vector})
    assert (group.weight, group.survivors, group.clipped) == (3, 1, int(made.clipped))
    assert group.statistics is not None
    assert group.statistics.loss_before == pytest.approx(made.loss_before, rel=0.05)
    assert group.statistics.loss_after == pytest.approx(made.loss_after, rel=0.05)
    assert set(group.statistics.ranges) == set(TENSORS)


def test_nothing_of_the_training_is_said_where_the_plan_wants_no_statistics() -> None:
    rounds = plan(statistics=False, tensors=())
    roster = roster_of(rounds)
    group = group_sum(rounds, roster, {"dev-1": contribution(rounds, roster).vector})
    assert group.statistics is None


def test_the_weight_is_the_rosters_and_not_the_devices_word() -> None:
    rounds = plan()
    roster = roster_of(rounds)
    weights = {m.device: m.weight for m in roster.members}
    assert weights == {"dev-0": 1, "dev-1": 3, "dev-2": 3, "dev-3": 4}, "by powers of two, and at most 4"
    for device in DEVICES:
        made = contribution(rounds, roster, device)
        assert group_sum(rounds, roster, {device: made.vector}).weight == weights[device]


def test_masks_cancel_but_for_each_devices_own() -> None:
    """The sum of all four is that of the plain vectors once the four own masks are subtracted."""
    rounds, seeds = plan(protection="masked"), {d: i for i, d in enumerate(DEVICES)}
    roster, layout, bits = roster_of(rounds), layout_of(rounds), ring_of(rounds)
    transcript = transcript_hash(roster)
    total, plain = zero_vector(layout, bits), zero_vector(layout, bits)
    expander = MaskExpander(layout.length, bits)
    unmasked = rounds.model_copy(update={"update": rounds.update.model_copy(update={"protection": "none"})})
    for device, seed in seeds.items():
        made = contribution(rounds, roster, device, seed)
        add_vector(total, vector_from_bytes(made.vector, layout, bits))
        own = np.random.default_rng(seed + 1).bytes(SECRET_BYTES)
        assert made.commitments[0] == commitment(transcript, device, 0, own)
        expander.subtract(total, own, transcript)
        add_vector(plain, vector_from_bytes(contribution(unmasked, roster, device, seed).vector, layout, bits))
    assert (total == plain).all()


def test_a_pairs_secret_is_committed_to_by_both() -> None:
    rounds = plan(protection="masked")
    roster = roster_of(rounds)
    transcript = transcript_hash(roster)
    shared = pair_secret(key_of("dev-0"), key_of("dev-3").public, transcript)
    first, last = contribution(rounds, roster, "dev-0"), contribution(rounds, roster, "dev-3")
    assert first.commitments[3] == commitment(transcript, "dev-0", 3, shared)
    assert last.commitments[1] == commitment(transcript, "dev-3", 1, shared)


def test_the_clip_norm_bounds_what_one_device_can_do() -> None:
    tight, wide = plan(clip_norm=0.05), plan(clip_norm=50.0)
    made = contribution(tight, roster_of(tight))
    assert made.clipped
    assert not contribution(wide, roster_of(wide)).clipped
    roster = roster_of(tight)
    mean = decode_group_mean(group_sum(tight, roster, {"dev-1": made.vector}), encoding_of(tight, roster))
    assert np.linalg.norm(mean) <= 0.05 * 1.02


def test_a_device_with_too_little_sits_the_round_out() -> None:
    with pytest.raises(RefusedError, match="found 9 examples, expected at least 10"):
        train_locally(plan(), NETWORK, WEIGHTS, rows(9, 1), np.random.default_rng(0))


def test_rows_that_are_not_finite_are_not_learnt_from() -> None:
    x = rows(50, 1)
    x[3, 3] = np.nan
    with pytest.raises(RefusedError, match="found 1 rows of 50"):
        train_locally(plan(), NETWORK, WEIGHTS, x, np.random.default_rng(0))


@pytest.mark.parametrize("change", [{"dimension": 5}, {"network": "f" * 64}])
def test_a_plan_for_another_network_is_refused(change: dict[str, Any]) -> None:
    other = plan().model_copy(update=change)
    with pytest.raises(PeerError, match="plan of sensor: found network"):
        train_locally(other, NETWORK, WEIGHTS, rows(50, 1), np.random.default_rng(0))


@pytest.mark.parametrize("broken", [[np.nan], [np.inf]])
def test_a_change_that_is_not_finite_does_not_leave(broken: Sequence[float]) -> None:
    rounds = plan()
    delta = np.zeros(NETWORK.layout.size, np.float32)
    delta[7] = broken[0]
    result = TrainingResult(delta, 1.0, 0.5, 100, dict.fromkeys(TENSORS, (0.0, 1.0)))
    with pytest.raises(RefusedError, match="finite"):
        contribute(
            rounds,
            roster_of(rounds),
            "dev-1",
            key_of("dev-1"),
            result,
            rng=np.random.default_rng(0),
            entropy=np.random.default_rng(0).bytes,
        )


def test_a_member_whose_key_shares_no_secret_is_refused() -> None:
    rounds = plan(protection="masked")
    roster = roster_of(rounds)
    bad = tuple(m.model_copy(update={"epk": bytes(32)}) if m.device == "dev-3" else m for m in roster.members)
    with pytest.raises(PeerError, match="small order"):
        contribution(rounds, roster.model_copy(update={"members": bad}))


def test_only_with_the_own_key_something_is_masked() -> None:
    rounds = plan(protection="masked")
    roster, result = roster_of(rounds), trained(rounds, "dev-1", 1)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="dev-1 is not in the roster with this key"):
        contribute(rounds, roster, "dev-1", key_of("dev-2"), result, rng=rng, entropy=rng.bytes)
    with pytest.raises(ValueError, match="dev-9 is not in the roster"):
        contribute(rounds, roster, "dev-9", key_of("dev-9"), result, rng=rng, entropy=rng.bytes)
