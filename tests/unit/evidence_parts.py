"""Evidence of made-up alerts, a release with its weights, and a store to keep them in, for tests."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from vedette_core.learning.network import build_network
from vedette_core.learning.spec import dense_spec
from vedette_core.learning.weights_file import WeightsFile, write_weights
from vedette_core.runtime.storage import Database
from vedette_device.alert_record import ScoredWindow
from vedette_device.evidence import Evidence, Past
from vedette_device.evidence_store import TABLES, EvidenceStore
from vedette_device.reasons import top_reasons
from vedette_device.scored_input import ScoredInput
from vedette_device.settings import EvidenceSection
from vedette_device.verified_release import VerifiedRelease
from vedette_schemas.alert import AlertModel
from vedette_schemas.features import FeatureSchema
from vedette_schemas.model import Variant

SCHEMA = FeatureSchema(
    use_case="sensor", version=1, columns=("flow_lpm", "level_m", "valve_pct"), window_s=30, history=4
)
T0, PERIOD_S = 1_772_755_200.0, 30.0
NETWORK = build_network(dense_spec(*SCHEMA.input_shape))


def artifact(version: int) -> str:
    """Digest of a release's INT8 file."""
    return hashlib.sha256(f"int8 {version}".encode()).hexdigest()


def model(version: int = 1, task: str = "sensor") -> AlertModel:
    return AlertModel(task=task, version=version, digest=artifact(version)[:16])


def weights(version: int = 1) -> bytes:
    return write_weights(WeightsFile(NETWORK, NETWORK.initial_weights(np.random.default_rng(version)), SCHEMA))


def release(version: int = 1, task: str = "sensor") -> VerifiedRelease:
    """What is read of a release: its task, its version, the digests of its files."""
    digests = {
        Variant.INT8: artifact(version),
        Variant.WEIGHTS: hashlib.sha256(weights(version)).hexdigest(),
        Variant.PLAN: hashlib.sha256(b"plan").hexdigest(),
    }
    targets = {variant: SimpleNamespace(sha256=digest) for variant, digest in digests.items()}
    return VerifiedRelease(task, version, (1, version), cast(Any, targets))


def scored_input(seed: int = 0) -> ScoredInput:
    """An input as the network of release 1 scores it, all of it made of random numbers."""
    rng = np.random.default_rng(seed)
    scaled = rng.normal(0, 1, SCHEMA.input_shape).astype(np.float32)
    scale = rng.uniform(0.5, 2.0, NETWORK.target_shape[-1]).astype(np.float32)
    x = scaled[None]
    error = NETWORK.reconstruct(x, NETWORK.initial_weights(np.random.default_rng(1))) - NETWORK.target(x)
    squared = np.square(error[0] / scale).astype(np.float32)
    usual = np.array([[10.0, 1.0, 20.0], [40.0, 2.0, 60.0]], np.float32)
    return ScoredInput(scaled * 10 + 20, scaled, squared, scale, usual)


def window(step: int = 0, *, score: float = 3.0, seed: int = 0, version: int = 1, entity: str = "tank") -> ScoredWindow:
    """A window that was scored far above its threshold."""
    given = scored_input(seed)
    return ScoredWindow(
        entity=entity,
        start_s=T0 + step * PERIOD_S,
        end_s=T0 + (step + 1) * PERIOD_S,
        score=score,
        p_value=1e-6,
        threshold=1.0,
        benign_max=1.2,
        benign_average=1.5,
        calibration_size=300,
        features=top_reasons(given.squared_ratio, given.values, given.usual, SCHEMA.columns),
        model=model(version),
        input=given,
    )


def past(count: int, last_end_s: float) -> Past:
    """`count` windows up to one that ends then."""
    rng = np.random.default_rng(5)
    rows = rng.normal(20, 5, (count, len(SCHEMA.columns))).astype(np.float32)
    ends = last_end_s - PERIOD_S * np.arange(count)[::-1]
    return Past(ends, rng.uniform(0.2, 0.8, count), rng.uniform(0.1, 1.0, count), rows)


def evidence(alert: str = "gw-1-sensor-a", *, task: str = "sensor", **fields: Any) -> Evidence:
    scored = window(**fields)
    scored = replace(scored, model=scored.model.model_copy(update={"task": task}))
    return Evidence.of(alert, scored, SCHEMA, past(6, scored.end_s))


def database(folder: Path) -> Database:
    """The database of a device whose state lies in this folder."""
    return Database(folder / "device.db", TABLES)


def store(opened: Database, **limits: int) -> EvidenceStore:
    return EvidenceStore(opened, EvidenceSection(**limits))
