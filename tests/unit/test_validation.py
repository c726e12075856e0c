"""The validation gate: what passes, and each way in which a candidate is rejected."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gate_parts import NETWORK, SCHEMA, attack, holdouts, limits, trained, windows

from vedette_aggregator import validation
from vedette_aggregator.artifacts import build_artifacts
from vedette_aggregator.holdouts import Benign, Holdouts
from vedette_aggregator.validation import (
    GateVerdict,
    Outcome,
    Validator,
    Verdict,
    raise_if_rejected,
    validate,
    validate_files,
)
from vedette_aggregator.validation_settings import AttackSection, HoldoutSection
from vedette_core.learning.layout import Float32
from vedette_core.learning.network import build_network
from vedette_core.learning.spec import dense_spec
from vedette_core.learning.weights_file import WeightsFile, write_weights
from vedette_schemas.errors import ConfigError, PeerError, RefusedError
from vedette_schemas.features import sensor_schema
from vedette_schemas.model import Variant

NONE = Holdouts()


def outcomes(verdict: GateVerdict) -> dict[Validator, Outcome]:
    return {v.validator: v.outcome for v in verdict.verdicts}


def rejected_by(verdict: GateVerdict) -> set[Validator]:
    return {v.validator for v in verdict.rejections}


def int8_of(weights: Float32) -> bytes:
    ranges = NETWORK.activation_ranges(windows(256, 3), weights)
    built = build_artifacts(NETWORK, weights, task="sensor", schema=SCHEMA, ranges=ranges, variants=[Variant.INT8])
    return built[Variant.INT8].data


def test_an_ordinary_round_passes_every_validator() -> None:
    parent, candidate = trained()
    verdict = validate(NETWORK, candidate, parent, int8_of(candidate), holdouts(), limits())
    assert outcomes(verdict) == dict.fromkeys(Validator, Outcome.PASS)
    assert verdict.accepted
    assert {"holdout_loss", "false_positives", "detected", "calibration_error", "shift"} <= set(verdict.figures)
    assert verdict.figures["detected"] > 0.5
    raise_if_rejected(verdict)


def test_the_same_candidate_gets_the_same_verdict() -> None:
    parent, candidate = trained()
    assert validate(NETWORK, candidate, parent, None, holdouts(), limits()) == validate(
        NETWORK, candidate, parent, None, holdouts(), limits()
    )


def test_without_windows_only_what_needs_none_has_a_word() -> None:
    parent, candidate = trained()
    found = outcomes(validate(NETWORK, candidate, parent, int8_of(candidate), NONE, limits()))
    assert {v for v, o in found.items() if o is Outcome.PASS} == {Validator.WEIGHTS, Validator.SHIFT}
    assert {o for v, o in found.items() if v not in (Validator.WEIGHTS, Validator.SHIFT)} == {Outcome.NO_DATA}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_rejected(value: float) -> None:
    parent, candidate = trained()
    broken = candidate.copy()
    broken[7] = value
    verdict = validate(NETWORK, broken, parent, None, holdouts(), limits())
    assert rejected_by(verdict) == {Validator.WEIGHTS}
    assert "1 weights that are not finite" in verdict.rejections[0].found


def test_an_exploded_round_is_rejected_without_any_holdout_set() -> None:
    parent, candidate = trained()
    exploded = (parent + 50.0 * (candidate - parent) + 3.0 * np.abs(parent)).astype(np.float32)
    verdict = validate(NETWORK, exploded, parent, None, NONE, limits())
    assert {Validator.WEIGHTS, Validator.SHIFT} <= rejected_by(verdict)
    with pytest.raises(RefusedError, match=r"validation: weights: found a change of .*; shift: found"):
        raise_if_rejected(verdict)


def test_weights_that_overflow_while_they_are_run_are_rejected() -> None:
    parent, _ = trained()
    with np.errstate(all="ignore"):
        verdict = validate(NETWORK, np.full_like(parent, 1e30), parent, None, holdouts(), limits())
    assert {Validator.SHIFT, Validator.LOSS, Validator.FALSE_POSITIVES} <= rejected_by(verdict)


def test_a_step_backwards_is_rejected_by_loss_and_detection() -> None:
    _, candidate = trained()
    initial = NETWORK.initial_weights(np.random.default_rng(1))
    verdict = validate(NETWORK, initial, candidate, None, holdouts(), limits())
    assert {Validator.LOSS, Validator.DETECTION} <= rejected_by(verdict)


def test_the_worst_cohort_decides_and_is_named() -> None:
    parent, candidate = trained()
    other = Benign("pump", windows(400, 70, cohort=5))
    both = Holdouts((holdouts().benign[0], other), ())
    verdict = validate(NETWORK, candidate, parent, None, both, limits(loss_ratio_max=1.0))
    (loss,) = (v for v in verdict.verdicts if v.validator is Validator.LOSS)
    ratios = {
        name: NETWORK.loss(x, candidate) / NETWORK.loss(x, parent)
        for name, x in (("tank", both.benign[0].x), ("pump", other.x))
    }
    assert loss.cohort == max(ratios, key=lambda name: ratios[name])
    assert verdict.figures["holdout_loss_ratio"] == pytest.approx(max(ratios.values()), rel=1e-4)


@pytest.mark.parametrize("values", [(0.1, np.nan), (np.nan, 0.1), (np.nan, 5.0), (0.1, np.inf)])
def test_what_is_no_number_is_the_worst_cohort_wherever_it_stands(values: tuple[float, ...]) -> None:
    looks = [validation._Look(value, 1.0, str(value), "1") for value in values]
    found = validation._worst(Validator.LOSS, looks, {})
    assert found.outcome is Outcome.REJECT
    assert found.found in ("nan", "inf")


def test_false_positives_are_those_of_windows_that_did_not_calibrate() -> None:
    """The second half of the windows is of another kind: at the threshold of the first, most of it is flagged."""
    _, candidate = trained()
    x = np.concatenate([windows(200, 80), attack(200, 81)])
    moved = Holdouts((Benign("tank", x),), ())
    # The parent flags as much, and a candidate is only held against what its parent does:
    assert validate(NETWORK, candidate, candidate, None, moved, limits()).accepted
    flat = validate(NETWORK, candidate, NETWORK.initial_weights(np.random.default_rng(1)), None, moved, limits())
    assert {Validator.FALSE_POSITIVES, Validator.CALIBRATION} <= rejected_by(flat)


def test_an_int8_artifact_of_another_model_is_rejected() -> None:
    parent, candidate = trained()
    initial = NETWORK.initial_weights(np.random.default_rng(1))
    verdict = validate(NETWORK, candidate, parent, int8_of(initial), holdouts(), limits())
    assert Validator.QUANTISATION in rejected_by(verdict)
    broken = validate(NETWORK, candidate, parent, b"no flatbuffer" * 40, holdouts(), limits())
    assert Validator.QUANTISATION in rejected_by(broken)


def test_files_are_validated_as_weights_are() -> None:
    parent, candidate = trained()
    files = [write_weights(WeightsFile(NETWORK, weights, SCHEMA)) for weights in (candidate, parent)]
    assert validate_files(files[0], files[1], None, holdouts(), limits()) == validate(
        NETWORK, candidate, parent, None, holdouts(), limits()
    )
    schema = sensor_schema(("level_m", "inflow_l_s"), window_s=30.0, history=4)
    network = build_network(dense_spec(*schema.input_shape))
    weights = network.initial_weights(np.random.default_rng(0))
    with pytest.raises(PeerError, match="expected its parent's"):
        validate_files(write_weights(WeightsFile(network, weights, schema)), files[1], None, NONE, limits())


def test_verdicts_survive_their_plain_form() -> None:
    parent, candidate = trained()
    verdict = validate(NETWORK, candidate, parent, None, holdouts(), limits())
    assert GateVerdict.from_plain(verdict.to_plain(), verdict.figures) == verdict
    for plain in ([{}], [{**verdict.to_plain()[0], "outcome": "maybe"}], 7, [None]):
        with pytest.raises(PeerError, match="verdicts: found"):
            GateVerdict.from_plain(plain)
    assert "(tank)" in Verdict(Validator.LOSS, Outcome.REJECT, "much", "less", "tank").text()


# --- files of windows ---


def save(path: Path, x: Float32, digest: str = SCHEMA.digest) -> Path:
    np.savez_compressed(path, x=x.reshape(len(x), *SCHEMA.input_shape), schema=np.array(digest))
    return path.with_suffix(".npz")


def test_holdouts_are_read_as_root_sets_are(tmp_path: Path) -> None:
    benign = save(tmp_path / "benign.npz", windows(100, 1))
    trace = save(tmp_path / "trace.npz", attack(5, 2))
    found = Holdouts.load(
        limits(
            holdouts=(HoldoutSection(cohort="tank", path=benign),),
            attacks=(AttackSection(name="scan", cohort="tank", path=trace),),
        ),
        NETWORK,
        SCHEMA,
    )
    assert found.benign[0].x.shape == (100, *NETWORK.input_shape)
    assert [a.name for a in found.attacks] == ["scan"]


def test_holdouts_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    benign = save(tmp_path / "benign.npz", windows(100, 1))
    few = save(tmp_path / "few.npz", windows(35, 1))
    other = save(tmp_path / "other.npz", windows(100, 1), "ab" * 32)
    tank = HoldoutSection(cohort="tank", path=benign)
    for section, message in (
        (limits(holdouts=(tank, tank)), "cohort 'tank' twice"),
        (limits(holdouts=(HoldoutSection(path=few),)), "found 35 windows, expected at least 40"),
        (limits(holdouts=(HoldoutSection(path=other),)), "found windows of feature schema"),
        (limits(holdouts=(HoldoutSection(path=tmp_path / "none"),)), "holdout .*none: found"),
        (limits(attacks=(AttackSection(name="a", path=benign),)), "expected one of the holdouts' cohorts: there are"),
        (
            limits(holdouts=(tank,), attacks=(AttackSection(name="a", cohort="pump", path=benign),)),
            "among cohort 'pump', expected one of the holdouts' cohorts: 'tank'",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            Holdouts.load(section, NETWORK, SCHEMA)
