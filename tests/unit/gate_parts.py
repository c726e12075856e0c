"""A small trained model, windows it knows and attacks it does not: what a validation gate is tried with."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from vedette_aggregator.holdouts import Attack, Benign, Holdouts
from vedette_aggregator.validation_settings import ValidationSection
from vedette_core.learning.layout import Float32
from vedette_core.learning.local_training import train
from vedette_core.learning.network import Network, build_network
from vedette_core.learning.spec import dense_spec
from vedette_schemas.features import FeatureSchema, sensor_schema

SCHEMA: FeatureSchema = sensor_schema(("level_m", "inflow_l_s", "outflow_l_s"), window_s=30.0, history=4)
NETWORK: Network = build_network(dense_spec(*SCHEMA.input_shape))


def windows(count: int, seed: int, *, cohort: int = 0) -> Float32:
    """Benign windows ``(count, *input_shape)``: a few things move, and every column follows them."""
    rng, size = np.random.default_rng(seed), int(np.prod(NETWORK.input_shape))
    mix = np.random.default_rng(100 + cohort).standard_normal((2, size))
    x = rng.standard_normal((count, 2)) @ mix + 0.1 * rng.standard_normal((count, size))
    return x.reshape(count, *NETWORK.input_shape).astype(np.float32)


def attack(count: int, seed: int) -> Float32:
    """Windows in which columns no longer go together."""
    x = windows(count, seed)
    flat = x.reshape(count, -1)
    return np.random.default_rng(seed).permuted(flat, axis=1).reshape(x.shape)


@lru_cache(maxsize=1)
def trained() -> tuple[Float32, Float32]:
    """The weights of a model after some training, and of the same a round later."""
    before = NETWORK.initial_weights(np.random.default_rng(1))
    for seed in range(2):
        delta = train(
            NETWORK,
            before,
            windows(512, seed),
            epochs=10,
            batch_size=32,
            learning_rate=5e-3,
            prox_mu=0.0,
            rng=np.random.default_rng(seed),
        ).delta
        before, parent = (before + delta).astype(np.float32), before
    return parent, before


def holdouts(*cohorts: str) -> Holdouts:
    """A holdout set a cohort, and an attack on the first."""
    names = cohorts or ("tank",)
    return Holdouts(
        tuple(Benign(name, windows(400, 50 + i)) for i, name in enumerate(names)),
        (Attack("permuted", names[0], attack(200, 90)),),
    )


def limits(**changes: Any) -> ValidationSection:
    """The default limits, with changes."""
    fields: Mapping[str, Any] = changes
    return ValidationSection(**fields)
