"""Why an alert was raised: shares that are exact, gradients of the right release, and what a person reads of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import evidence_parts as e
import numpy as np
import pytest
from typer.testing import CliRunner

from vedette import explanation_text
from vedette.commands.device import app
from vedette_core.learning.attribution import integrated_gradients
from vedette_core.learning.weights_file import WeightsFile, write_weights
from vedette_device.evidence import Evidence
from vedette_device.explanation import Explanation, _agreement, explain
from vedette_device.reasons import top_reasons
from vedette_device.scored_input import ENSEMBLE
from vedette_schemas.alert import FeatureReason
from vedette_schemas.errors import RefusedError, VedetteError
from vedette_schemas.features import FeatureSchema

GONE = RefusedError("weights of sensor 1: found none of that release here", rule="weights")


def attributed(error: tuple[float, float, float], gradient: tuple[float, float, float]) -> Explanation:
    """An explanation with these parts of the score by either attribution."""
    made = explain(e.evidence(), e.weights())
    whole, names = sum(abs(part) for part in gradient), e.SCHEMA.columns
    columns = {column.name: column for column in made.columns}
    parts = [
        replace(columns[name], share=share, gradient=part, gradient_share=part / whole)
        for name, share, part in zip(names, error, gradient, strict=True)
    ]
    ordered = tuple(sorted(parts, key=lambda column: -column.share))
    return replace(made, columns=ordered, agreement=_agreement(ordered))


def test_shares_are_exactly_those_of_the_alerts_own_reasons() -> None:
    made = e.evidence()
    given = made.input
    found = {column.name: column for column in explain(made, GONE).columns}
    reasons = top_reasons(given.squared_ratio, given.values, given.usual, e.SCHEMA.columns)
    assert len(reasons) == 3
    for reason in reasons:
        column = found[reason.name]
        assert column.share == pytest.approx(reason.share, abs=5e-4)
        assert column.value == pytest.approx(reason.value, rel=1e-3)
        assert column.usual == pytest.approx(reason.usual, rel=1e-3)
    assert sum(column.share for column in found.values()) == pytest.approx(1.0)


def test_gradients_are_those_of_the_float_weights_and_add_up_to_the_score() -> None:
    made = e.evidence()
    found = explain(made, e.weights(1))
    assert (found.method, found.missing) == ("gradients", "")
    assert found.float_score == pytest.approx(found.artifact_score, rel=1e-4)
    assert not found.is_rough
    row, weights = made.input.scaled, e.NETWORK.initial_weights(np.random.default_rng(1))
    by_hand = integrated_gradients(e.NETWORK, weights, row, np.zeros_like(row), made.input.scale).sum(axis=0)
    for column in found.columns:
        assert column.gradient == pytest.approx(float(by_hand[e.SCHEMA.index(column.name)]))
    at_usual = e.NETWORK.reconstruct(np.zeros_like(row)[None], weights) / made.input.scale
    change = found.artifact_score**2 - float(np.mean(np.square(at_usual)))
    assert sum(column.gradient or 0.0 for column in found.columns) == pytest.approx(change, rel=0.05)
    assert sum(abs(column.gradient_share or 0.0) for column in found.columns) == pytest.approx(1.0)


def test_weights_that_score_otherwise_are_said_to_be_rough() -> None:
    made = e.evidence()
    bounded = replace(made, input=replace(made.input, squared_ratio=made.input.squared_ratio * np.float32(4)))
    found = explain(bounded, e.weights(1))
    assert found.is_rough
    assert "rough" in " ".join(explanation_text.verdict(found))
    assert "rough" not in " ".join(explanation_text.verdict(explain(made, e.weights(1))))


def other_schema() -> bytes:
    schema = FeatureSchema(use_case="sensor", version=1, columns=("a", "b", "c"), window_s=30, history=4)
    return write_weights(WeightsFile(e.NETWORK, e.NETWORK.initial_weights(np.random.default_rng(1)), schema))


@pytest.mark.parametrize(
    ("weights", "says"),
    [(GONE, "found none of that release"), (b"damaged", "weights file: found"), (other_schema(), "unknown columns a")],
    ids=["gone", "damaged", "of other columns"],
)
def test_without_the_weights_the_shares_stand_alone_and_it_says_why(weights: bytes | VedetteError, says: str) -> None:
    found = explain(e.evidence(), weights)
    assert (found.method, found.agreement, found.float_score) == ("shares", None, None)
    assert says in found.missing
    assert found.leading_gradient is None
    assert {column.gradient for column in found.columns} == {None}
    text = " ".join(explanation_text.verdict(found))
    assert says in text
    assert "look at" in text


@pytest.mark.parametrize(
    ("error", "gradient", "agreement", "says"),
    [
        ((0.8, 0.1, 0.1), (5.0, 1.0, -1.0), "agree", "Both agree on flow"),
        ((0.6, 0.3, 0.1), (1.0, 5.0, 0.5), "partly", "Look at flow first, and at level next"),
    ],
)
def test_it_says_whether_the_two_agree_and_what_that_means(
    error: tuple[float, float, float], gradient: tuple[float, float, float], agreement: str, says: str
) -> None:
    found = attributed(error, gradient)
    assert found.agreement == agreement
    assert says in " ".join(explanation_text.verdict(found))


def test_attributions_that_name_other_columns_differ() -> None:
    """Of many columns: each one's leader is far down in the other's list."""
    made = attributed((0.8, 0.1, 0.1), (5.0, 1.0, 1.0))
    shares = (0.5, 0.2, 0.15, 0.1, 0.05)
    gradients = (0.1, 1.0, 1.0, 1.0, 6.0)
    columns = tuple(
        replace(made.columns[0], name=f"c{i}_kpa", share=share, gradient=part, gradient_share=part / 9.1)
        for i, (share, part) in enumerate(zip(shares, gradients, strict=True))
    )
    found = replace(made, columns=columns, agreement=_agreement(columns))
    assert found.agreement == "differ"
    text = " ".join(explanation_text.verdict(found))
    assert "the error is largest in c0, but c4 raised the score most" in text
    assert "Look at c4 first, and at c0 next" in text


def test_where_the_ensemble_decided_its_own_shares_are_shown_and_no_gradients() -> None:
    made = e.evidence()
    squared = np.zeros((4, 3), np.float32)
    squared[-1] = (16.0, 1.0, 3.0)
    named = tuple(
        FeatureReason(name=f"process.{name}", value=9.0, usual=(0.0, 1.0), share=share)
        for name, share in (("xmrig", 0.8), ("sshd", 0.15), ("cron", 0.05))
    )
    hashed = replace(made, input=replace(made.input, squared_ratio=squared, head=ENSEMBLE), reasons=named)
    found = explain(hashed, e.weights(1))
    assert (found.method, found.agreement) == ("ensemble", None)
    assert [column.share for column in found.columns] == pytest.approx([0.8, 0.15, 0.05])
    assert [column.behind.name for column in found.columns if column.behind] == [n.name for n in named]
    text = " ".join(explanation_text.verdict(found))
    assert "Gradients do not apply: the count ensemble decided" in text
    assert "look at process.xmrig first" in text


def test_the_course_joins_the_input_and_the_time_before() -> None:
    made = e.evidence(step=10)
    course = explain(made, GONE).course
    ends = [moment.end_s for moment in course]
    assert ends == sorted(ends)
    assert len(course) == 6  # four windows of the input are among the six that were remembered
    assert [moment.scored for moment in course] == [False] * 5 + [True]
    assert all(moment.score is not None for moment in course)
    late = replace(made, past=e.past(3, made.end_s + 10 * e.PERIOD_S))
    course = explain(late, GONE).course
    assert [moment.score is None for moment in course] == [True, True, True, False, False, False, False]
    assert (course[3].scored, course[3].score) == (True, made.score)
    gaps = explanation_text._with_gaps(explain(late, GONE))
    assert [moment is None for moment in gaps] == [False] * 4 + [True] + [False] * 3


def test_the_document_is_json_with_every_column() -> None:
    document = explanation_text.document(explain(e.evidence(), e.weights(1)))
    assert json.loads(json.dumps(document)) == document
    assert {column["name"] for column in document["columns"]} == set(e.SCHEMA.columns)
    assert document["evidence"] == "device:gw-1-sensor-a"
    assert set(document["course"][0]["values"]) == set(e.SCHEMA.columns)


def test_every_key_of_the_document_is_explained() -> None:
    document = explanation_text.document(explain(e.evidence(), e.weights(1)))
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    section = page[page.index("## Why this alert?") :]
    section = section[: section.index("\n## ", 4)]
    keys = {*document, *document["columns"][0], *document["course"][0]}
    assert {key for key in keys if f"`{key}`" not in section} == set()


# --- the command ---


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Path]:
    """Settings of a node, and its state with one alert."""
    path = tmp_path / "device.toml"
    identity = f'[identity]\nbundle = "{tmp_path}"\ntrust_root = "{tmp_path}/root.json"\n'
    path.write_text(f'site = "s"\ndevice = "gw-1"\nstate_dir = "{tmp_path}"\n{identity}')
    database = e.database(tmp_path)
    store = e.store(database)
    hostile = replace(e.window(), entity="\x1b[31mtank", features=())
    store.keep(Evidence.of("gw-1-sensor-a", hostile, e.SCHEMA, e.past(6, hostile.end_s)))
    store.keep_weights(e.release(1), e.weights(1), "")
    yield path
    database.close()


def test_the_command_shows_an_alert_and_steers_no_terminal(config: Path) -> None:
    shown = CliRunner().invoke(app, ["explain", "-c", str(config), "gw-1-sensor-a"])
    assert shown.exit_code == 0, shown.output
    assert "\x1b" not in shown.output
    for words in ("tank", "flow", "level", "valve", "gradient", "▲", "3.0 times the threshold", "release 1 of sensor"):
        assert words in shown.output
    assert max(len(line) for line in shown.output.splitlines()) <= 80


def test_the_command_lists_what_is_kept(config: Path) -> None:
    for arguments in ([], ["--list"]):
        shown = CliRunner().invoke(app, ["explain", "-c", str(config), *arguments])
        assert shown.exit_code == 0, shown.output
        assert shown.output.splitlines()[0] == "gw-1-sensor-a"
        assert "\x1b" not in shown.output
    rows = json.loads(CliRunner().invoke(app, ["explain", "-c", str(config), "--list", "--json"]).output)
    assert [row["alert"] for row in rows] == ["gw-1-sensor-a"]
    both = CliRunner().invoke(app, ["explain", "-c", str(config), "gw-1-sensor-a", "--list"])
    assert both.exit_code == 2
