from __future__ import annotations

import pytest
from pydantic import ValidationError

from vedette_schemas.errors import ConfigError
from vedette_schemas.features import COLUMNS_MAX, NETWORK_FLOWS, FeatureSchema, sensor_schema


def test_the_network_schema_is_what_models_were_trained_for() -> None:
    """A changed digest makes every stored model and every peer of an older version refuse: raise ``version`` then."""
    assert NETWORK_FLOWS.digest == "6d7b21f50bf38a5287081ad0837f34fb84f62690c142563e35761ce66dcf217c"
    assert NETWORK_FLOWS.input_shape == (16, 24)
    assert NETWORK_FLOWS.window_s == 5.0


def test_no_column_names_what_must_not_be_a_feature() -> None:
    forbidden = ("address", "ip_", "port_number", "ttl", "hour", "time_of_day", "weekday")
    assert not [name for name in NETWORK_FLOWS.columns if any(word in name for word in forbidden)]


def test_a_schema_survives_json() -> None:
    for schema in (NETWORK_FLOWS, sensor_schema(("a", "b"), window_s=0.5, history=8)):
        again = FeatureSchema.model_validate_json(schema.model_dump_json())
        assert again == schema
        assert again.digest == schema.digest
        assert again.difference(schema) == ""


def test_sensor_columns_are_channels_and_then_differences() -> None:
    schema = sensor_schema(("level", "flow"), window_s=2, history=8)
    assert schema.columns == ("level", "flow", "level_diff", "flow_diff")
    assert schema.input_shape == (8, 4)
    assert schema.index("flow_diff") == 3
    with pytest.raises(ConfigError, match="'pressure' is not in the sensor schema; it has: level, flow"):
        schema.index("pressure")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "version is 2, expected 1"),
        ({"window_s": 10.0}, "window_s is 10.0, expected 5.0"),
        ({"history": 8}, "history is 8, expected 16"),
        ({"use_case": "sensor"}, "use_case is 'sensor', expected 'network'"),
        ({"columns": NETWORK_FLOWS.columns[:-1]}, "lacks columns service_port_entropy_bits"),
        ({"columns": (*NETWORK_FLOWS.columns, "ttl")}, "has unknown columns ttl"),
        (
            {"columns": ("packets_out", "packets_in", *NETWORK_FLOWS.columns[2:])},
            "another order: column 0 is 'packets_out', expected 'packets_in'",
        ),
        ({"columns": tuple("abcdefgh")}, "and 19 more and has unknown columns a, b, c, d, e and 3 more"),
    ],
)
def test_every_difference_is_said_in_words_and_changes_the_digest(change: dict[str, object], words: str) -> None:
    other = FeatureSchema(**{**NETWORK_FLOWS.model_dump(), **change})
    assert words in NETWORK_FLOWS.difference(other)
    assert other.digest != NETWORK_FLOWS.digest


@pytest.mark.parametrize(
    "change",
    [
        {"columns": ()},
        {"columns": ("a", "a")},
        {"columns": ("",)},
        {"columns": ("a\n",)},
        {"columns": ("x" * 65,)},
        {"columns": tuple(map(str, range(COLUMNS_MAX + 1)))},
        {"window_s": 0},
        {"window_s": float("nan")},
        {"history": 0},
        {"version": 0},
        {"use_case": "weather"},
        {"surplus": 1},
    ],
)
def test_a_schema_that_cannot_be_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        FeatureSchema(**{**NETWORK_FLOWS.model_dump(), **change})


@pytest.mark.parametrize("channels", [(), ("a", "a"), tuple(map(str, range(129))), ("a", "a_diff")])
def test_sensor_channels_that_cannot_be_are_refused(channels: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="sensor channels"):
        sensor_schema(channels)
