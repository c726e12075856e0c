"""Every variant of every family and preset: it is built, it is within its budget, and it finds what float finds."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from vedette.demo.recordings import SHIPPED, Source, load
from vedette_aggregator.artifacts import CHECK_ERROR_MAX, TFLITE_VARIANTS, Artifact, build_artifacts
from vedette_core.learning.count_ensemble import CountEnsemble
from vedette_core.learning.hashing import FeatureHasher, signed_log1p
from vedette_core.learning.layout import Float32
from vedette_core.learning.local_training import train
from vedette_core.learning.network import Network, build_network
from vedette_core.learning.presets import Preset, family_spec
from vedette_core.learning.scoring import ResidualScorer, calibrate_residuals
from vedette_core.learning.spec import COUNTS, DENSE_AUTOENCODER, SEPARABLE_CNN
from vedette_device.inference import open_model
from vedette_schemas.features import NETWORK_FLOWS, FeatureSchema, sensor_schema
from vedette_schemas.model import Variant

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from bench.poisoning_detection import Site, auc, make_task  # noqa: E402

GATEWAYS = 3
HASHER = FeatureHasher(32, bytes(range(32)))
AREA_LOST_MAX = 0.01
"""MLPerf Tiny's anomaly detector loses 0.035."""


@cache
def recorded(source: Source) -> tuple[FeatureSchema, tuple[Site, ...]]:
    """Scaled rows of some gateways of the shipped recordings."""
    recordings = load(SHIPPED)
    sites = make_task(replace(recordings, gateways=recordings.gateways[:GATEWAYS]), source, 1).sites
    if source == "network":
        return NETWORK_FLOWS, sites
    return sensor_schema(recordings.gateways[0].sensor.columns, window_s=30.0), sites


@cache
def counted() -> tuple[FeatureSchema, tuple[Site, ...]]:
    """Rows of hashed process counts; the anomalous ones have their counts from windows that never met."""
    rng = np.random.default_rng(0)
    names = [f"process-{i}" for i in range(24)]
    rates = np.abs(rng.standard_normal((3, len(names)))) * 6

    def rows(count: int) -> np.ndarray:
        found = rng.poisson(rng.gamma(4.0, 0.5, size=(count, 3)) @ rates)
        return signed_log1p([HASHER.row(dict(zip(names, map(int, row), strict=True))) for row in found])

    training = rows(1200)
    ensemble = CountEnsemble.fit(training)

    def scaled(x: np.ndarray) -> Float32:
        return np.clip((x - ensemble.centre) / ensemble.scale, -8, 8).astype(np.float32)[:, None]

    # A third of the counts only: mixing all of them would be found by anything.
    mixed = rows(500)
    mixed[:, :10] = np.stack([rng.permutation(column) for column in mixed[:, :10].T], axis=1)
    schema = FeatureSchema(use_case="network", version=1, columns=HASHER.columns, window_s=60.0, history=1)
    return schema, (Site(scaled(training), scaled(rows(400)), scaled(rows(500)), scaled(mixed)),)


class Model:
    """A network that was trained on all sites, and its artifacts."""

    def __init__(self, family: str, preset: Preset, schema: FeatureSchema, sites: tuple[Site, ...]) -> None:
        self.preset, self.schema, self.sites = preset, schema, sites
        self.network: Network = build_network(family_spec(family, schema, preset))
        rng = np.random.default_rng(3)
        start = self.network.initial_weights(rng)
        x = np.concatenate([site.training for site in sites])
        result = train(self.network, start, x, epochs=4, batch_size=32, learning_rate=2e-3, prox_mu=0.0, rng=rng)
        self.weights = start + result.delta
        self.artifacts: Mapping[Variant, Artifact] = build_artifacts(
            self.network,
            self.weights,
            task=family.replace("_", "-"),
            schema=schema,
            ranges=result.activation_ranges,
            variants=TFLITE_VARIANTS,
        )

    def area(self, variant: Variant) -> float:
        """Mean over the sites of the area under the ROC curve, row by row."""
        artifact, areas = self.artifacts[variant], []
        backend = open_model(artifact.data, sha256=artifact.sha256).backend
        for site in self.sites:
            calibration = calibrate_residuals(self.network, site.held_out, backend.reconstruct(site.held_out))
            scorer = ResidualScorer(self.network, calibration)
            usual, anomalous = (scorer.score(x, backend.reconstruct(x)) for x in (site.usual, site.anomalous))
            areas.append(auc(usual, anomalous))
        return float(np.mean(areas))


FAMILIES = {
    SEPARABLE_CNN: lambda: recorded("network"),
    DENSE_AUTOENCODER: lambda: recorded("sensor"),
    COUNTS: counted,
}


@pytest.fixture(
    scope="module",
    params=[(family, preset) for family in FAMILIES for preset in Preset],
    ids=lambda case: f"{case[0]}-{case[1].value}",
)
def model(request: pytest.FixtureRequest) -> Model:
    family, preset = request.param
    return Model(family, preset, *FAMILIES[family]())


def test_all_four_variants_are_built_and_int8_is_within_the_budget(model: Model) -> None:
    assert set(model.artifacts) == set(TFLITE_VARIANTS)
    assert len(model.artifacts[Variant.INT8].data) <= model.preset.int8_bytes_max
    for variant, artifact in model.artifacts.items():
        assert artifact.error <= CHECK_ERROR_MAX[variant]


def test_every_variant_finds_what_float_finds(model: Model) -> None:
    areas = {variant: model.area(variant) for variant in TFLITE_VARIANTS}
    assert 0.6 < areas[Variant.FLOAT32] < 0.9999, "the rows must leave something to lose"
    lost = {variant.value: areas[Variant.FLOAT32] - area for variant, area in areas.items()}
    assert max(lost.values()) <= AREA_LOST_MAX, (areas, lost)
