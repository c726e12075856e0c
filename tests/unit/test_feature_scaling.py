from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vedette_device.features.scaling import (
    CLIP,
    ROWS_MIN,
    ROWS_OWN_MIN,
    EntityScalers,
    RobustScaler,
    transforms_for,
)
from vedette_schemas.errors import ConfigError
from vedette_schemas.features import NETWORK_FLOWS, sensor_schema

PLAIN = sensor_schema(("level", "flow"))


def rows_of(level: Any, flow: Any = 5.0, n: int = 200) -> np.ndarray:
    return np.stack([np.broadcast_to(c, (n,)) for c in (level, flow, 0.0, 0.0)], axis=1).astype(float)


def test_median_and_median_deviation_are_what_is_subtracted_and_divided_by() -> None:
    rng = np.random.default_rng(3)
    level = rng.normal(100, 7, 20_000)
    scaler = RobustScaler.fit(PLAIN, rows_of(level, n=20_000))
    assert scaler.centre[0] == np.median(level)
    assert scaler.scale[0] == pytest.approx(7, rel=0.03)
    scaled = scaler.scale_rows(rows_of(level, n=20_000))
    assert scaled.dtype == np.float32
    assert scaled[:, 0].std() == pytest.approx(1, rel=0.05)


def test_a_tenth_of_wild_rows_hardly_moves_it() -> None:
    rng = np.random.default_rng(3)
    clean = rng.normal(100, 7, 1_000)
    poisoned = np.where(np.arange(1_000) < 100, 1e6, clean)
    a, b = RobustScaler.fit(PLAIN, rows_of(clean, n=1_000)), RobustScaler.fit(PLAIN, rows_of(poisoned, n=1_000))
    assert b.centre[0] == pytest.approx(a.centre[0], abs=1.5)
    assert b.scale[0] == pytest.approx(a.scale[0], rel=0.25)


def test_a_constant_column_neither_blows_up_nor_hides() -> None:
    scaler = RobustScaler.fit(PLAIN, rows_of(50.0))
    same, tiny, real = (scaler.scale_rows(rows_of(level, n=1))[0, 0] for level in (50.0, 50.01, 51.0))
    assert same == 0
    assert 0 < tiny < 1
    assert real == CLIP
    counts = NETWORK_FLOWS.index("syn_count")
    network = RobustScaler.fit(NETWORK_FLOWS, np.zeros((50, 24)))
    one, many = np.zeros(24), np.zeros(24)
    one[counts], many[counts] = 1, 7
    assert network.scale_rows(one)[counts] == pytest.approx(np.log(2) / 0.25)
    assert network.scale_rows(many)[counts] == CLIP


def test_a_column_that_is_mostly_zero_is_scaled_by_its_mean_deviation() -> None:
    rows = np.zeros((100, 24))
    column = NETWORK_FLOWS.index("dns_queries")
    rows[::10, column] = 50  # every tenth window
    scaler = RobustScaler.fit(NETWORK_FLOWS, rows)
    assert scaler.scale[column] == pytest.approx(np.sqrt(np.pi / 2) * 0.1 * np.log(51))


def test_logarithms_for_what_is_counted_and_none_for_shares() -> None:
    by_name = dict(zip(NETWORK_FLOWS.columns, transforms_for(NETWORK_FLOWS), strict=True))
    linear = {name for name, transform in by_name.items() if transform == "linear"}
    assert linear == {"tcp_share", "udp_share", "internal_share", "service_port_entropy_bits"}
    assert set(transforms_for(PLAIN)) == {"linear"}


@given(
    hnp.arrays(np.float64, (ROWS_MIN, 24), elements=st.floats(0, 1e300)),
    hnp.arrays(np.float64, (3, 24), elements=st.floats(-1e300, 1e300)),
)
def test_finite_rows_give_finite_bounded_rows(fitted: np.ndarray, rows: np.ndarray) -> None:
    scaled = RobustScaler.fit(NETWORK_FLOWS, fitted).scale_rows(rows)
    assert np.isfinite(scaled).all()
    assert (np.abs(scaled) <= CLIP).all()


def test_whole_model_inputs_are_scaled_like_their_rows_and_back() -> None:
    rng = np.random.default_rng(1)
    rows = rng.gamma(2, 20, (64, 24))
    scaler = RobustScaler.fit(NETWORK_FLOWS, rows)
    assert np.array_equal(scaler.scale_rows(rows.reshape(4, 16, 24)).reshape(64, 24), scaler.scale_rows(rows))
    inside = np.abs(scaler.scale_rows(rows)) < CLIP
    assert np.allclose(scaler.unscale(scaler.scale_rows(rows))[inside], rows[inside], rtol=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_never_enters(bad: float) -> None:
    rows = np.ones((20, 24))
    scaler = RobustScaler.fit(NETWORK_FLOWS, rows)
    rows[7, 3] = bad
    for use in (lambda: RobustScaler.fit(NETWORK_FLOWS, rows), lambda: scaler.scale_rows(rows)):
        with pytest.raises(ConfigError, match="column 'bytes_out' has a value that is not finite"):
            use()


def test_wrong_shapes_and_too_few_rows_are_refused() -> None:
    scaler = RobustScaler.fit(NETWORK_FLOWS, np.ones((20, 24)))
    with pytest.raises(ConfigError, match="expected 24 columns"):
        scaler.scale_rows(np.ones((2, 23)))
    with pytest.raises(ConfigError, match="expected at least 8"):
        RobustScaler.fit(NETWORK_FLOWS, np.ones((ROWS_MIN - 1, 24)))


def scalers() -> EntityScalers:
    rng = np.random.default_rng(0)
    return EntityScalers.fit(
        PLAIN,
        {
            "large": rows_of(rng.normal(1_000, 9, 200)),
            "small": rows_of(rng.normal(1, 0.1, ROWS_OWN_MIN), n=ROWS_OWN_MIN),
            "few": rows_of(rng.normal(500, 1, ROWS_OWN_MIN - 1), n=ROWS_OWN_MIN - 1),
            "none": np.zeros((0, 4)),
        },
    )


def test_each_entity_has_its_own_scale_and_a_new_one_the_pooled() -> None:
    subject = scalers()
    assert set(subject.own) == {"large", "small"}
    assert subject.for_entity("small").centre[0] == pytest.approx(1, abs=0.1)
    for name in ("few", "none", "never seen"):
        assert subject.for_entity(name) is subject.pooled
    with pytest.raises(ConfigError, match="no rows"):
        EntityScalers.fit(PLAIN, {"none": np.zeros((0, 4))})


def test_scalers_survive_json_and_refuse_another_schema_or_damage() -> None:
    subject = scalers()
    stored = json.loads(json.dumps(subject.to_dict()))
    again = EntityScalers.from_dict(PLAIN, stored)
    rows = rows_of(1_003.0, n=3)
    for name in ("large", "new"):
        assert np.array_equal(again.for_entity(name).scale_rows(rows), subject.for_entity(name).scale_rows(rows))
    with pytest.raises(ConfigError, match="scaler is of schema"):
        EntityScalers.from_dict(sensor_schema(("level", "heat")), stored)


@pytest.mark.parametrize(
    "damage",
    [
        {"centre": [0.0]},
        {"centre": [None] * 4},
        {"centre": [float("nan")] * 4},
        {"scale": [0.0] * 4},
        {"scale": "wide"},
        {"transforms": ["cube"] * 4},
        {"transforms": 4},
    ],
)
def test_a_damaged_scaler_is_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        RobustScaler.from_dict(PLAIN, {**scalers().pooled.to_dict(), **damage})
    with pytest.raises(ConfigError, match="damaged"):
        RobustScaler.from_dict(PLAIN, {})
    with pytest.raises(ConfigError, match="damaged"):
        EntityScalers.from_dict(PLAIN, {"pooled": 1, "own": {}})
