from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vedette_core.learning.encoding import Encoding, aggregate
from vedette_core.learning.network import build_network
from vedette_core.learning.optimiser import FedAdam, FedAvg, ServerOptimiser
from vedette_core.learning.spec import dense_spec
from vedette_device.training import Contribution, contribute
from vedette_schemas.errors import PeerError, RefusedError
from vedette_schemas.round import GroupPlan, Plan, TrainingPlan, UpdatePlan, Upload

NETWORK = build_network(dense_spec(12))
WEIGHTS = NETWORK.initial_weights(np.random.default_rng(0))
SEED = b"s" * 32
MIXING = np.random.default_rng(1).standard_normal((2, 12))


def rows(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, 2)) @ MIXING + 0.1 * rng.standard_normal((count, 12))).astype(np.float32)


def plan(**update: Any) -> Plan:
    return Plan(
        task="sensor",
        version=1,
        feature_schema="0" * 64,
        network=NETWORK.spec.digest,
        dimension=NETWORK.layout.size,
        training=TrainingPlan(local_epochs=1, batch_size=16, learning_rate=5e-3, prox_mu=0.0, examples_min=10),
        update=UpdatePlan(**{"clip_norm": 2.0, "weight_max": 4, "examples_reference": 100, **update}),
        groups=GroupPlan(group_size=4, survivors_min=1, quorum=1, checkins_max=4),
    )


def contribution(count: int, seed: int, weights: np.ndarray = WEIGHTS, **update: Any) -> Contribution:
    return contribute(plan(**update), NETWORK, weights, rows(count, seed), seed=SEED, rng=np.random.default_rng(seed))


@pytest.mark.parametrize("optimiser", [FedAvg(), FedAdam(learning_rate=0.05)])
def test_rounds_of_devices_learn_what_none_of_them_sends(optimiser: ServerOptimiser) -> None:
    weights, state = WEIGHTS, optimiser.initial_state(len(WEIGHTS))
    encoding = Encoding(len(WEIGHTS), 2.0, SEED)
    test = rows(300, seed=99)
    before = NETWORK.loss(test, weights)
    for number in range(12):
        updates = [contribution(150 * (1 + device), 10 * number + device, weights) for device in range(4)]
        levels = np.stack([np.frombuffer(u.levels, np.uint8) for u in updates])
        mean = aggregate(levels, np.array([u.weight for u in updates]), encoding)
        weights, state = optimiser.apply(weights, mean, state)
    assert NETWORK.loss(test, weights) < 0.5 * before


def test_a_contribution_is_what_an_upload_holds() -> None:
    made = contribution(250, 1)
    upload = Upload(
        id="up",
        task="sensor",
        round=1,
        attempt=1,
        gid=0,
        device="dev-1",
        transcript=SEED,
        **{name: getattr(made, name) for name in Contribution.__dataclass_fields__},
    )
    assert upload.num_examples == 250
    assert upload.weight == 2
    assert len(upload.levels) == 1024
    assert upload.loss_after < upload.loss_before
    assert {r.tensor for r in upload.ranges} == {"input", *(layer.name for layer in NETWORK.layers)}
    assert all(r.low <= r.high for r in upload.ranges)


def test_the_clip_norm_bounds_what_one_device_can_do() -> None:
    made = contribution(250, 1, clip_norm=0.05)
    assert made.clipped
    assert not contribution(250, 1, clip_norm=50.0).clipped
    mean = aggregate(
        np.frombuffer(made.levels, np.uint8)[None], np.array([1]), Encoding(NETWORK.layout.size, 0.05, SEED)
    )
    assert np.linalg.norm(mean) <= 0.05 * 1.02


def test_a_device_with_too_little_sits_the_round_out() -> None:
    with pytest.raises(RefusedError, match="found 9 examples, expected at least 10"):
        contribution(9, 1)


def test_rows_that_are_not_finite_are_not_learnt_from() -> None:
    x = rows(50, 1)
    x[3, 3] = np.nan
    with pytest.raises(RefusedError, match="found 1 rows of 50"):
        contribute(plan(), NETWORK, WEIGHTS, x, seed=SEED, rng=np.random.default_rng(0))


@pytest.mark.parametrize("change", [{"dimension": 5}, {"network": "f" * 64}])
def test_a_plan_for_another_network_is_refused(change: dict[str, Any]) -> None:
    other = plan().model_copy(update=change)
    with pytest.raises(PeerError, match="plan of sensor: found network"):
        contribute(other, NETWORK, WEIGHTS, rows(50, 1), seed=SEED, rng=np.random.default_rng(0))
