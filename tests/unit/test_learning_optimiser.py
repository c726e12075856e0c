from __future__ import annotations

import numpy as np
import pytest

from vedette_core.learning.local_training import local_optimiser, train
from vedette_core.learning.network import build_network
from vedette_core.learning.optimiser import Adam, FedAdam, FedAvg, LocalOptimiser, Moments, Sgd
from vedette_core.learning.spec import dense_spec
from vedette_schemas.errors import ConfigError, PeerError, RefusedError


@pytest.mark.parametrize("optimiser", [Sgd(0.1), Adam(0.05)])
def test_local_optimisers_find_the_bottom_of_a_bowl(optimiser: LocalOptimiser) -> None:
    goal = np.array([1.0, -2.0, 3.0], np.float32)
    weights: np.ndarray = np.zeros(3, np.float32)
    state = Moments.zero(3)
    for _ in range(400):
        weights, state = optimiser.step(weights, 2 * (weights - goal), state)
    assert np.allclose(weights, goal, atol=0.02)
    assert state.step == 400


def test_adam_takes_its_first_step_at_the_learning_rate_whatever_the_gradient() -> None:
    weights = np.zeros(2, np.float32)
    after, _ = Adam(0.01).step(weights, np.array([1000.0, -0.01], np.float32), Moments.zero(2))
    assert after == pytest.approx([-0.01, 0.01], rel=1e-3)
    assert np.array_equal(weights, [0.0, 0.0])


def test_fedavg_at_rate_one_lands_on_the_mean_of_the_local_weights() -> None:
    weights = np.array([1.0, 2.0], np.float32)
    optimiser = FedAvg()
    after, state = optimiser.apply(weights, np.array([0.5, -0.5]), optimiser.initial_state(2))
    assert after == pytest.approx([1.5, 1.5])
    assert after.dtype == np.float32
    assert state.step == 1


def test_fedadam_follows_its_published_recurrence() -> None:
    optimiser = FedAdam(learning_rate=0.1, beta1=0.9, beta2=0.99, tau=1e-2)
    weights, state = np.zeros(1, np.float32), optimiser.initial_state(1)
    m, v, w = 0.0, 1e-4, 0.0
    for delta in (0.5, 0.2, -0.1):
        weights, state = optimiser.apply(weights, np.array([delta]), state)
        m = 0.9 * m + 0.1 * delta
        v = 0.99 * v + 0.01 * delta**2
        w += 0.1 * m / (v**0.5 + 1e-2)
        assert weights[0] == pytest.approx(w, rel=1e-5)


def test_the_servers_state_survives_a_restart() -> None:
    optimiser = FedAdam()
    rng = np.random.default_rng(0)
    weights, state = rng.standard_normal(5).astype(np.float32), optimiser.initial_state(5)
    weights, state = optimiser.apply(weights, rng.standard_normal(5), state)
    restored = Moments.from_bytes(state.to_bytes())
    delta = rng.standard_normal(5)
    assert np.array_equal(optimiser.apply(weights, delta, state)[0], optimiser.apply(weights, delta, restored)[0])


@pytest.mark.parametrize("damage", ["truncated", "appended", "nan", "lengths", "noise"])
def test_a_damaged_state_is_refused(damage: str) -> None:
    good = Moments(3, np.ones(4, np.float32), np.ones(4, np.float32))
    data = {
        "truncated": good.to_bytes()[:-1],
        "appended": good.to_bytes() + b"\0",
        "nan": Moments(3, np.full(4, np.nan, np.float32), np.ones(4, np.float32)).to_bytes(),
        "lengths": Moments(3, np.ones(3, np.float32), np.ones(4, np.float32)).to_bytes(),
        "noise": b"\x81\xa1x\x01",
    }[damage]
    with pytest.raises(PeerError, match="optimiser state"):
        Moments.from_bytes(data)


def test_the_proximal_term_holds_the_weights_back() -> None:
    network = build_network(dense_spec(12))
    rng = np.random.default_rng(0)
    weights = network.initial_weights(rng)
    x = rng.standard_normal((200, 12)).astype(np.float32)

    def distance(mu: float) -> float:
        result = train(
            network,
            weights,
            x,
            epochs=5,
            batch_size=32,
            learning_rate=0.05,
            prox_mu=mu,
            rng=np.random.default_rng(1),
            optimiser="sgd",
        )
        return float(np.linalg.norm(result.delta))

    assert distance(5.0) < 0.5 * distance(0.0)


def test_training_refuses_what_it_cannot_learn_from() -> None:
    network = build_network(dense_spec(8))
    weights = network.initial_weights(np.random.default_rng(0))

    def attempt(x: np.ndarray, learning_rate: float = 1e-3) -> None:
        train(
            network,
            weights,
            x.astype(np.float32),
            epochs=2,
            batch_size=8,
            learning_rate=learning_rate,
            prox_mu=0.0,
            rng=np.random.default_rng(0),
            optimiser="sgd",
        )

    with pytest.raises(RefusedError, match="found 0 rows"):
        attempt(np.zeros((0, 8)))
    bad = np.zeros((5, 8))
    bad[2, 3], bad[4, 0] = np.nan, np.inf
    with pytest.raises(RefusedError, match="found 2 rows of 5 with NaN or infinity"):
        attempt(bad)
    with pytest.raises(RefusedError, match="not finite after 2 epochs") as caught:
        attempt(np.random.default_rng(0).standard_normal((64, 8)) * 100, learning_rate=1e6)
    assert caught.value.rule == "diverged"


def test_an_unknown_optimiser_is_the_operators_to_mend() -> None:
    with pytest.raises(ConfigError, match="found 'lion', expected one of adam, sgd"):
        local_optimiser("lion", 0.1)
