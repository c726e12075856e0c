"""A released model and what was measured of it on this device: usual errors, usual scores, p-values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from vedette_core.learning.calibration import Calibration, RollingCalibration, smoothing, z_score
from vedette_core.learning.cusum import SPREAD_MAX, long_run_spread
from vedette_core.learning.layout import Float32
from vedette_core.learning.network import Network
from vedette_core.learning.scoring import ResidualCalibration, ResidualScorer, calibrate_residuals
from vedette_device.baseline import Baseline
from vedette_device.count_heads import CountHeads, has_heads
from vedette_schemas.alert import AlertModel
from vedette_schemas.errors import PeerError, RefusedError

USUAL_SCORE_QUANTILE: Final = 0.9
"""Of an entity's benign scores: high enough to tell how far it swings, low enough that fifty of them can."""
SHRINKAGE_SCORES: Final = 50
"""With this many benign scores an entity's own usual score weighs half, and that of all entities the other half."""


class Reconstructs(Protocol):
    """What is needed of a back end (`vedette_device.inference.Backend`)."""

    @property
    def network(self) -> Network:
        """Shapes and target of the model."""

    def reconstruct(self, x: Float32) -> Float32:
        """Reconstructions ``(n, *target_shape)`` of ``(n, *input_shape)``."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """Inputs that were scored.

    Attributes:
        scores: ``(n,) float64``, each by its entity's factor, so that all entities are on one scale.
        p_values: ``(n,) float64``.
        squared_ratio: ``(n, windows, columns) float32`` what each column added to the score: squared error over the
            usual squared error, or where the count ensemble speaks its squared deviations.
        by_ensemble: ``(n,) bool`` where the count ensemble speaks.
    """

    scores: npt.NDArray[np.float64]
    p_values: npt.NDArray[np.float64]
    squared_ratio: Float32
    by_ensemble: npt.NDArray[np.bool_]


@dataclass(slots=True)
class CalibratedModel:
    """Scores with one model.

    An entity whose traffic is steady has low scores, and a restless one has high ones: ranked together, the restless
    one would hide whatever befalls the steady one. The scores of a restless entity are therefore multiplied by a factor
    that brings its usual score down to that of all entities. A steady one is not brought up: what was quiet for some
    minutes need not be steady, and its first ordinary burst would be an alert. A newcomer's factor is 1.

    Attributes:
        backend: runs the model.
        model: its identity.
        baseline: scaling and range of the columns.
        residuals: usual error of each column.
        factors: in (0, 1], by entity; 1 for those that are not in it.
        rolling: benign scores, after the factors.
        benign_average: largest moving average of z that an entity reached over the benign inputs: what an alert must
            pass. What a device does every hour scores high each time, and is no news.
        spread: long-run standard deviation of z a window over the benign inputs, ≥ 1: neighbours share most of their
            data, and a sum over them strays further than one of independent windows.
        heads: of a network of counts what its two heads usually say; None of any other network.
    """

    backend: Reconstructs
    model: AlertModel
    baseline: Baseline
    residuals: ResidualCalibration
    factors: Mapping[str, float]
    rolling: RollingCalibration
    benign_average: float
    spread: float
    heads: CountHeads | None = None

    @classmethod
    def measure(
        cls,
        backend: Reconstructs,
        model: AlertModel,
        baseline: Baseline,
        inputs: Float32,
        entities: Sequence[str],
        half_life_windows: float,
        training: Float32 | None = None,
        accepted: Mapping[str, Float32] | None = None,
    ) -> CalibratedModel:
        """Measure a model on benign inputs that it was not trained on, oldest first.

        Args:
            backend: runs the model, with the arithmetic that it will score with.
            model: its identity.
            baseline: of the learning phase.
            inputs: ``(n, history, columns)`` scaled.
            entities: whose input each is.
            half_life_windows: of the moving average that the alerts go by.
            training: ``(m, history, columns)`` scaled benign inputs that are not among `inputs`; only a network of
                counts needs them, for the ensemble beside it.
            accepted: inputs ``(m, history, columns)`` by entity that a person accepted: they alone say its factor.

        Raises:
            PeerError: the model's input is another.
            RefusedError: too few training rows for the ensemble of counts.
        """
        x = shaped(inputs, backend.network)
        reconstruction = baseline.bound(backend.reconstruct(x))
        residuals = calibrate_residuals(backend.network, x, reconstruction)
        scores = ResidualScorer(backend.network, residuals).score(x, reconstruction).astype(np.float64)
        heads = None
        if has_heads(backend.network.spec):
            # A detector of counts watches one host: what all entities have in common is its own.
            known, held_out = (baseline.scalers.pooled.transformed_of(_newest(r, inputs)) for r in (training, inputs))
            heads = CountHeads.measure(known, held_out, scores)
            none = np.zeros((len(x), 1, inputs.shape[-1]), np.float32)
            scores, _, _ = heads.judge(held_out, scores, none)
        factors = _factors(scores, entities)
        usual = float(np.quantile(scores, USUAL_SCORE_QUANTILE))
        for entity, own in (accepted or {}).items():
            given = shaped(own, backend.network)
            own_scores = ResidualScorer(backend.network, residuals).score(
                given, baseline.bound(backend.reconstruct(given))
            )
            factors[entity] = _factor(own_scores.astype(np.float64), usual)
        scores *= [factors.get(entity, 1.0) for entity in entities]
        rolling = RollingCalibration(scores)
        p_values = rolling.current.p_values(scores)
        average = largest_average(p_values, entities, half_life_windows)
        spread = long_run_spread(np.array([z_score(p) for p in p_values.tolist()]), entities, inputs.shape[1])
        return cls(backend, model, baseline, residuals, factors, rolling, average, spread, heads)

    @classmethod
    def provisional(
        cls,
        backend: Reconstructs,
        model: AlertModel,
        baseline: Baseline,
        training: Float32,
        fleet: Calibration,
        half_life_windows: float,
    ) -> CalibratedModel:
        """A model as a device can have it before it has held anything out: usual errors of its own, scores of others.

        Args:
            backend: runs the model, which was not trained here.
            model: its identity.
            baseline: of the learning phase.
            training: ``(n, history, columns)`` scaled benign inputs of the learning phase.
            fleet: what benign windows score on the other devices.
            half_life_windows: of the moving average that the alerts go by.

        Raises:
            PeerError: the model's input is another.
            RefusedError: a network of counts, whose ensemble needs windows that are held out.
        """
        if has_heads(backend.network.spec):
            raise RefusedError("cold start: found a network of counts, expected one of a score alone", rule="heads")
        x = shaped(training, backend.network)
        reconstruction = baseline.bound(backend.reconstruct(x))
        residuals = calibrate_residuals(backend.network, x, reconstruction)
        rolling = RollingCalibration(fleet.ordered)
        p_values = rolling.current.p_values(ResidualScorer(backend.network, residuals).score(x, reconstruction))
        entities = [""] * len(x)
        average = largest_average(p_values, entities, half_life_windows)
        spread = long_run_spread(np.array([z_score(p) for p in p_values.tolist()]), entities, training.shape[1])
        return cls(backend, model, baseline, residuals, {}, rolling, average, spread)

    def judge(self, inputs: Float32, entities: Sequence[str], newest: Float32 | None = None) -> Judgement:
        """Score inputs.

        Args:
            inputs: ``(n, history, columns)`` scaled.
            entities: as in `measure`.
            newest: ``(n, columns)`` the newest window of each in the columns' own units: scaled values are clipped, and
                the ensemble of counts tells how far beyond the clip they are. Without it, it goes by the scaled ones.
        """
        network, columns = self.backend.network, inputs.shape[-1]
        x = shaped(inputs, network)
        ratio = self.baseline.bound(self.backend.reconstruct(x)) - network.target(x)
        ratio /= self.residuals.scale
        squared = np.multiply(ratio, ratio, out=ratio).reshape(len(x), -1, columns)
        # What `mean` does, at two thirds of its cost for one window.
        scores = np.sqrt(np.add.reduce(squared, axis=(1, 2), dtype=np.float64) / (squared.shape[1] * columns))
        by_ensemble = np.zeros(len(x), np.bool_)
        if self.heads is not None:
            pooled = self.baseline.scalers.pooled
            rows = pooled.transformed_of(inputs[:, -1]) if newest is None else pooled.transform(newest)
            scores, squared, by_ensemble = self.heads.judge(rows, scores, squared)
        if self.factors:
            scores *= [self.factors.get(entity, 1.0) for entity in entities]
        return Judgement(scores, self.rolling.current.p_values(scores), squared, by_ensemble)

    def take_entity(self, entity: str, inputs: Float32, baseline: Baseline) -> None:
        """Score an entity from now on as one that was there when the model was measured.

        Args:
            entity: its name.
            inputs: ``(n, history, columns)`` its benign inputs, n ≥ 1, scaled by `baseline`.
            baseline: with the entity's own scaler.
        """
        self.drop_entity(entity, baseline)
        scores = self.judge(inputs, [entity] * len(inputs)).scores
        usual = float(np.quantile(self.rolling.current.ordered, USUAL_SCORE_QUANTILE))
        self.factors = {**self.factors, entity: _factor(scores, usual)}

    def drop_entity(self, entity: str, baseline: Baseline) -> None:
        """Score an entity as a newcomer from now on; `baseline` has nothing of its own."""
        self.baseline = baseline
        self.factors = {name: factor for name, factor in self.factors.items() if name != entity}

    def to_state(self) -> dict[str, Any]:
        """What was measured, as plain data for msgpack; the model itself is not in it."""
        return {
            "digest": self.model.digest,
            "residuals": self.residuals.to_dict(),
            "factors": dict(self.factors),
            "rolling": self.rolling.to_state(),
            "benign_average": self.benign_average,
            "spread": self.spread,
            "heads": self.heads.to_dict() if self.heads is not None else None,
        }

    @classmethod
    def from_state(
        cls, backend: Reconstructs, model: AlertModel, baseline: Baseline, state: Mapping[str, Any]
    ) -> CalibratedModel:
        """Go on with what was measured of the same model before a restart.

        Raises:
            PeerError: another form, or measured of another model.
        """
        try:
            if state["digest"] != model.digest:
                raise ValueError(f"digest {state['digest']}")
            factors = {str(entity): float(factor) for entity, factor in state["factors"].items()}
            if not all(0.0 < factor <= 1.0 for factor in factors.values()):
                raise ValueError("a factor that is not in (0, 1]")
            average, spread = float(state["benign_average"]), float(state["spread"])
            if not np.isfinite(average) or not 1.0 <= spread <= SPREAD_MAX:
                raise ValueError(f"benign average {average} and spread {spread}")
            residuals = ResidualCalibration.from_dict(state["residuals"])
            features = backend.network.target_shape[-1]
            if residuals.scale.shape != (features,):
                raise ValueError(f"usual errors of {len(residuals.scale)} features, expected {features}")
            heads = None
            if has_heads(backend.network.spec):
                heads = CountHeads.from_dict(state["heads"], len(baseline.lowest))
        except (KeyError, TypeError, ValueError, AttributeError) as fault:
            raise PeerError(
                f"calibration of {model.digest}: found {fault!r}, expected what `to_state` gives"
            ) from fault
        rolling = RollingCalibration.from_state(state["rolling"])
        return cls(backend, model, baseline, residuals, factors, rolling, average, spread, heads)


def shaped(inputs: Float32, network: Network) -> Float32:
    """Inputs ``(n, history, columns)`` in the network's own input shape, which may be flat.

    Raises:
        PeerError: the network takes another number of windows or columns.
    """
    expected = inputs.shape[1:]
    if network.input_shape not in (expected, (expected[0] * expected[1],)):
        raise PeerError(
            f"model: found input shape {network.input_shape}, expected {expected} or its flat form", reason="schema"
        )
    return inputs.reshape(len(inputs), *network.input_shape)


def _newest(rows: Float32 | None, inputs: Float32) -> Float32:
    """The newest window of each input ``(n, history, columns)``; none of them where nothing was kept."""
    return inputs[:0, -1] if rows is None else rows[:, -1]


def _factors(scores: npt.NDArray[np.float64], entities: Sequence[str]) -> dict[str, float]:
    names = np.array(entities)
    distinct = sorted(set(entities))
    usual = float(np.quantile(scores, USUAL_SCORE_QUANTILE))
    if len(distinct) < 2 or usual <= 0.0:
        return {}
    factors = {name: _factor(scores[names == name], usual) for name in distinct}
    return {name: factor for name, factor in factors.items() if factor < 1.0}


def _factor(own: npt.NDArray[np.float64], usual: float) -> float:
    """What brings an entity's scores down to the usual ones of all; 1 for those that are no higher, or none."""
    if not len(own) or usual <= 0.0:
        return 1.0
    weight = len(own) / (len(own) + SHRINKAGE_SCORES)
    blended = weight * float(np.quantile(own, USUAL_SCORE_QUANTILE)) + (1.0 - weight) * usual
    return min(usual / blended, 1.0)


def largest_average(p_values: npt.NDArray[np.float64], entities: Sequence[str], half_life_windows: float) -> float:
    """The largest moving average of z that an entity reaches over windows, oldest first.

    Args:
        p_values: ``(n,)`` in (0, 1].
        entities: whose each is.
        half_life_windows: of the average.
    """
    weight, averages, largest = smoothing(1.0, half_life_windows), dict.fromkeys(entities, 0.0), 0.0
    for entity, p_value in zip(entities, p_values.tolist(), strict=True):
        averages[entity] += weight * (z_score(p_value) - averages[entity])
        largest = max(largest, averages[entity])
    return largest
