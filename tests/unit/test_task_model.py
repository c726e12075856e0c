"""What a configured task learns: schema and network of each use case, and settings that make neither."""

from __future__ import annotations

from typing import Any

import behaviour_parts as b
import numpy as np
import pytest
from pydantic import ValidationError

from vedette_aggregator.artifacts import assumed_ranges, build_artifacts
from vedette_aggregator.releases import TaskModel
from vedette_aggregator.settings import TaskSection
from vedette_core.learning.model_metadata import ModelMetadata
from vedette_core.learning.presets import Preset
from vedette_core.learning.spec import COUNTS, SEPARABLE_CNN
from vedette_schemas.errors import ConfigError
from vedette_schemas.features import FLOW_LOGS, NETWORK_FLOWS
from vedette_schemas.model import Variant

MARK = b.hasher().mark


def task(**changes: Any) -> TaskSection:
    return TaskSection.model_validate({"task": "t", **changes})


def test_a_network_task_is_of_packets_or_of_logs() -> None:
    packets, logs = (
        TaskModel.of(task(use_case="network")),
        TaskModel.of(task(use_case="network", source_schema="flow-logs")),
    )
    assert (packets.schema, logs.schema) == (NETWORK_FLOWS, FLOW_LOGS)
    assert logs.network.spec.kind == SEPARABLE_CNN
    assert "window_s is 60.0, expected 5.0" in packets.schema.difference(logs.schema)


def test_a_behaviour_task_has_the_devices_schema_without_their_key() -> None:
    model = TaskModel.of(task(use_case="behaviour", hash_mark=MARK))
    assert model.schema == b.hasher().schema
    assert model.network.spec.kind == COUNTS
    assert model.network.input_shape == model.network.target_shape == (1, 64)
    narrow = TaskModel.of(task(use_case="behaviour", hash_mark=MARK, hash_columns=16))
    assert narrow.schema == b.hasher(16).schema


@pytest.mark.parametrize(
    ("width", "preset"),
    [(16, "tiny"), (32, "tiny"), (64, "small"), (64, "standard"), (256, "small"), (256, "standard")],
)
def test_a_behaviour_artifact_keeps_its_presets_promise(width: int, preset: str) -> None:
    model = TaskModel.of(task(use_case="behaviour", hash_mark=MARK, hash_columns=width, preset=preset))
    weights = model.network.initial_weights(np.random.default_rng(0))
    built = build_artifacts(
        model.network,
        weights,
        task="t",
        schema=model.schema,
        ranges=assumed_ranges(model.network, weights),
        variants=(Variant.INT8,),
    )
    assert len(built[Variant.INT8].data) <= Preset(preset).int8_bytes_max


@pytest.mark.parametrize("width", [64, 256])
def test_so_many_columns_are_no_tiny_model(width: int) -> None:
    with pytest.raises(ConfigError, match="take a larger preset or fewer columns"):
        TaskModel.of(task(use_case="behaviour", hash_mark=MARK, hash_columns=width, preset="tiny"))


@pytest.mark.parametrize(
    "changes",
    [
        {"use_case": "behaviour"},
        {"use_case": "behaviour", "hash_mark": "xyz!"},
        {"use_case": "behaviour", "hash_mark": "abcd", "hash_columns": 1},
        {"use_case": "behaviour", "hash_mark": "abcd", "hash_columns": 257},
        {"use_case": "behaviour", "hash_mark": "abcd", "source_schema": "flow-logs"},
        {"use_case": "sensor", "channels": ["a"], "source_schema": "flow-logs"},
        {"use_case": "network", "source_schema": "logs"},
        {"use_case": "sensor"},
        {"use_case": "drift"},
    ],
)
def test_settings_that_make_no_schema_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        task(**changes)


def test_the_schema_travels_in_the_artifact() -> None:
    model = TaskModel.of(task(use_case="behaviour", hash_mark=MARK))
    metadata = ModelMetadata("behaviour", "int8", model.network.spec, model.schema)
    assert ModelMetadata.from_bytes(metadata.to_bytes()).schema == b.hasher().schema
