"""What an operator reads."""

from __future__ import annotations

import numpy as np
import pytest

from vedette_device.reasons import (
    REASONS_MAX,
    SUMMARY_CHARACTERS_MAX,
    clause,
    describe,
    summarise,
    top_reasons,
)
from vedette_schemas.alert import FeatureReason
from vedette_schemas.features import NETWORK_FLOWS


def _reason(name: str, value: float, low: float, high: float, share: float = 0.5) -> FeatureReason:
    return FeatureReason(name=name, value=value, usual=(low, high), share=share)


def test_shares_are_the_columns_parts_of_the_squared_score() -> None:
    squared = np.array([[1.0, 6.0, 0.0], [1.0, 2.0, 0.0]])
    values = np.array([[10.0, 20.0, 30.0], [11.0, 21.0, 31.0]])
    usual = np.array([[0.0, 1.0, 2.0], [5.0, 6.0, 7.0]])

    reasons = top_reasons(squared, values, usual, ("a", "b", "c"))

    assert [(r.name, r.share) for r in reasons] == [("b", 0.8), ("a", 0.2)]
    assert reasons[0].value == 20.0  # of the window in which its error was largest
    assert reasons[0].usual == (1.0, 6.0)


def test_names_no_more_than_three_and_none_that_made_next_to_nothing() -> None:
    squared = np.array([[100.0, 90.0, 80.0, 70.0, 1.0]])
    table = np.zeros((2, 5))

    reasons = top_reasons(squared, table[:1], table, tuple("abcde"))

    assert len(reasons) == REASONS_MAX
    assert [r.name for r in top_reasons(np.array([[100.0, 1.0]]), table[:1, :2], table[:, :2], ("a", "b"))] == ["a"]


def test_many_small_shares_still_name_the_largest() -> None:
    squared = np.ones((1, 40))
    squared[0, 7] = 1.1
    table = np.zeros((2, 40))

    assert [r.name for r in top_reasons(squared, table[:1], table, [f"c{i}" for i in range(40)])] == ["c7"]


def test_a_perfect_reconstruction_has_no_reasons() -> None:
    assert top_reasons(np.zeros((4, 3)), np.ones((4, 3)), np.zeros((2, 3)), ("a", "b", "c")) == ()


def test_sentence_names_value_and_usual_range() -> None:
    text = summarise(
        "10.77.1.11",
        [_reason("service_ports_distinct", 950.0, 0.0, 3.0), _reason("udp_share", 0.48, 0.0, 0.1)],
    )

    assert text == "10.77.1.11: distinct service ports 950 (usual 0–3), UDP 48 % (usual 0–10 %)"


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (_reason("pressure_kpa", 12.44, 15.0, 21.31), "pressure 12.4 kPa (usual 15–21.3 kPa)"),
        (_reason("level_m_diff", 0.0, -0.0112, 0.0109), "step of level 0 m (usual -0.0112 to 0.0109 m)"),
        (_reason("rst_count", 4.0, 0.0, 0.0), "connection resets (RST) 4 (usual 0)"),
        (_reason("bytes_out", 12_345_678.0, 100.0, 2500.0), "bytes sent 12345678 (usual 100–2500)"),
        (_reason("valve_pct", 97.0, 15.2, 58.0), "valve 97 % (usual 15.2–58 %)"),
        (_reason("vibration", 1e-9, 0.0, 1.0), "vibration 0 (usual 0–1)"),
    ],
)
def test_clauses_have_words_and_units(reason: FeatureReason, expected: str) -> None:
    assert clause(reason) == expected


def test_every_network_column_has_words() -> None:
    for column in NETWORK_FLOWS.columns:
        assert describe(column)[0] != column.replace("_", " ") or "_" not in column


def test_sentence_drops_clauses_before_it_passes_200_characters() -> None:
    long = [_reason(f"{'very_' * 9}long_name_{i}", 1.0, 0.0, 2.0) for i in range(3)]

    text = summarise("x" * 200, long)

    assert len(text) <= SUMMARY_CHARACTERS_MAX
    assert "very long name 0" in text or "long name 0" in text
    assert "long name 2" not in text
    assert summarise("pump", []) == "pump: unlike its usual behaviour"
