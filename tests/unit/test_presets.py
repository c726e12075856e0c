"""Presets: what they promise about bytes, and that a task without one keeps the network that it had."""

from __future__ import annotations

import numpy as np
import pytest

from vedette_aggregator.artifacts import assumed_ranges, build_artifacts
from vedette_aggregator.releases import TaskModel
from vedette_aggregator.settings import TaskSection
from vedette_core.learning.network import build_network
from vedette_core.learning.presets import FAMILIES, TASK_LONGEST, Preset, family_spec, int8_bytes_max, task_spec
from vedette_core.learning.spec import (
    COUNTS,
    DENSE_AUTOENCODER,
    SEPARABLE_CNN,
    NetworkSpec,
    counts_spec,
    dense_spec,
    flow_spec,
)
from vedette_schemas.errors import ConfigError, PeerError
from vedette_schemas.features import NETWORK_FLOWS, FeatureSchema, sensor_schema
from vedette_schemas.model import Variant


def sensors(channels: int) -> FeatureSchema:
    return sensor_schema(tuple(f"channel_{i}" for i in range(channels)))


def rows_of(columns: int, history: int = 1) -> FeatureSchema:
    names = tuple(f"h{i:02x}.0a1b" for i in range(columns))
    return FeatureSchema(use_case="network", version=1, columns=names, window_s=60.0, history=history)


def int8_bytes(spec: NetworkSpec, schema: FeatureSchema) -> int:
    network = build_network(spec)
    weights = network.initial_weights(np.random.default_rng(0))
    ranges = assumed_ranges(network, weights)
    built = build_artifacts(network, weights, task=TASK_LONGEST, schema=schema, ranges=ranges, variants=[Variant.INT8])
    return len(built[Variant.INT8].data)


@pytest.mark.parametrize(
    ("spec", "digest"),
    [
        (flow_spec(), "80ee5de7f3574c091c6be4f7abfd2bdc6acbefa231a68b78fb743f236a857e16"),
        (dense_spec(16, 6), "8bc1fe5b90504b62b9c8a2c21d0a3a424c32c0579d779ed1b68c26b3cd9bbfda"),
        (dense_spec(16, 14), "195842a9b5571b626764bbfc3fb1dc0a4975fb077b0573e94521e8fbbc0a8406"),
        (dense_spec(16, 64), "b4a0d3fb1a7135484f81926eea16435f57814bd0e5944789d513e7ac3517262b"),
    ],
)
def test_networks_in_use_keep_their_digests(spec: NetworkSpec, digest: str) -> None:
    """A site whose network changed would have to begin its model anew, under another task name."""
    assert spec.digest == digest


@pytest.mark.parametrize("channels", [1, 3, 7, 16, 32])
def test_without_a_preset_a_task_has_its_use_cases_own_network(channels: int) -> None:
    assert task_spec(NETWORK_FLOWS) == flow_spec()
    assert task_spec(sensors(channels)) == dense_spec(16, 2 * channels)


@pytest.mark.parametrize("channels", [1, 3, 7, 8])
def test_standard_is_the_own_network_where_that_keeps_the_promise(channels: int) -> None:
    assert task_spec(sensors(channels), Preset.STANDARD) == dense_spec(16, 2 * channels)
    assert task_spec(NETWORK_FLOWS, Preset.STANDARD) == task_spec(NETWORK_FLOWS, Preset.SMALL) == flow_spec()


@pytest.mark.parametrize("preset", Preset)
@pytest.mark.parametrize(
    ("family", "schema"),
    [
        (SEPARABLE_CNN, NETWORK_FLOWS),
        (DENSE_AUTOENCODER, sensors(1)),
        (DENSE_AUTOENCODER, sensors(3)),
        (DENSE_AUTOENCODER, sensors(12)),
        (DENSE_AUTOENCODER, sensors(32)),
        (COUNTS, rows_of(16)),
        (COUNTS, rows_of(32, history=4)),
        (COUNTS, rows_of(128)),
    ],
    ids=["flow", "1 channel", "3 channels", "12 channels", "32 channels", "16 counts", "32 × 4 counts", "128 counts"],
)
def test_the_built_artifact_is_within_the_budget_and_near_the_bound(
    family: str, schema: FeatureSchema, preset: Preset
) -> None:
    narrowest = NetworkSpec(DENSE_AUTOENCODER, schema.input_shape, (2,), target_windows=1)
    if preset is Preset.TINY and int8_bytes(narrowest, schema) > preset.int8_bytes_max:
        with pytest.raises(ConfigError, match="preset tiny"):
            family_spec(family, schema, preset)
        return
    spec = family_spec(family, schema, preset)
    built, bound = int8_bytes(spec, schema), int8_bytes_max(spec, schema)
    assert built <= bound <= min(built + 200, preset.int8_bytes_max)


@pytest.mark.parametrize("seed", range(6))
def test_the_bound_holds_for_networks_of_any_shape(seed: int) -> None:
    rng = np.random.default_rng(seed)
    history, columns = int(rng.integers(1, 17)), int(rng.integers(1, 60))
    schema = rows_of(columns, history)
    hidden = tuple(int(n) for n in rng.integers(1, 40, size=rng.integers(1, 4)))
    target = int(rng.integers(1, history + 1))
    specs = [NetworkSpec(DENSE_AUTOENCODER, (history, columns), hidden, target_windows=target)]
    if history >= 3:
        specs.append(
            NetworkSpec(SEPARABLE_CNN, (history, columns), hidden, bottleneck=5, target_windows=target, kernel=3)
        )
    for spec in specs:
        built = int8_bytes(spec, schema)
        assert built <= int8_bytes_max(spec, schema) <= built + 600, spec


def test_a_budget_that_nothing_fits_into_is_refused_with_the_way_out() -> None:
    with pytest.raises(
        ConfigError, match=r"preset tiny: found 64 columns of 16 windows.*expected at most 4000; take a"
    ):
        task_spec(sensors(32), Preset.TINY)


def test_a_larger_budget_never_gives_fewer_weights() -> None:
    for family, schema in ((SEPARABLE_CNN, NETWORK_FLOWS), (DENSE_AUTOENCODER, sensors(7)), (COUNTS, rows_of(32))):
        sizes = [build_network(family_spec(family, schema, preset)).layout.size for preset in Preset]
        assert sizes == sorted(sizes)


def test_every_use_case_has_a_family() -> None:
    assert FAMILIES[NETWORK_FLOWS.use_case] == SEPARABLE_CNN
    assert FAMILIES[sensors(1).use_case] == DENSE_AUTOENCODER


def test_counts_have_the_dense_graph_and_a_name_of_their_own() -> None:
    counts = counts_spec(64)
    dense = NetworkSpec(DENSE_AUTOENCODER, (64,), counts.hidden)
    assert build_network(counts).layout == build_network(dense).layout
    assert counts.digest != dense.digest
    with pytest.raises(PeerError, match="bottleneck, decoder, kernel"):
        NetworkSpec(COUNTS, (64,), (8,), kernel=3)


@pytest.mark.parametrize("preset", [None, "tiny", "small", "standard"])
def test_a_tasks_preset_is_a_setting(preset: str | None) -> None:
    section = TaskSection.model_validate(
        {"task": "sensor", "use_case": "sensor", "channels": ("a", "b", "c"), "preset": preset}
    )
    model = TaskModel.of(section)
    assert model.network.spec == task_spec(model.schema, Preset(preset) if preset else None)


def test_a_preset_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="preset"):
        TaskSection.model_validate({"task": "network", "use_case": "network", "preset": "huge"})
