"""One detector of a device: collects benign windows, calibrates a released model on them, then scores.

===========  ===============================================  ==========================================================
phase        until                                            what a window is used for
===========  ===============================================  ==========================================================
learning     `training_windows` windows                       scaling, usual ranges, training rows
calibrating  `calibration_windows` more inputs, and a model   held out: usual errors and p-values of that very model
armed                                                         scored; benign ones slowly renew the held-out inputs
===========  ===============================================  ==========================================================

An entity that a person accepted goes its own way meanwhile: see `vedette_device.accepted_entities`.

Rows stay on the device: `training_matrix` is for the device's own share of a round. Only event time is known here.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from vedette_core.learning.calibration import SCORES_MIN
from vedette_core.learning.layout import Float32
from vedette_core.learning.network import Network
from vedette_core.learning.sketch import ScoreSketch
from vedette_device.accepted_entities import AcceptedEntities
from vedette_device.alert_record import ScoredWindow
from vedette_device.baseline import Baseline
from vedette_device.calibrated_model import CalibratedModel, Reconstructs, shaped
from vedette_device.cold_start import first_calibration
from vedette_device.detector_settings import DetectorSettings
from vedette_device.drift_watch import DriftWatch
from vedette_device.features.windows import Window
from vedette_device.input_history import InputHistory, pack_windows, unpack_windows
from vedette_device.kept_inputs import KeptInputs
from vedette_device.reasons import top_reasons
from vedette_device.scored_input import ENSEMBLE, NETWORK, ScoredInput
from vedette_schemas.alert import AlertModel, FeatureReason
from vedette_schemas.errors import PeerError, RefusedError
from vedette_schemas.features import FeatureSchema
from vedette_schemas.telemetry import SCORE_BUCKETS, DriftReport

Phase = Literal["learning", "calibrating", "armed"]

STATE_FORMAT: Final = 2
REASONS_P: Final = 0.25
"""Windows with a larger p-value get no reasons: nobody will ask why an ordinary window was ordinary."""
TIMINGS_KEPT: Final = 512
"""Timings behind the reported quantiles: some minutes of a busy gateway."""


class Detector:
    """The detector of one task.

    Args:
        schema: columns of the windows that it is fed.
        settings: see `DetectorSettings`.
        timer: monotonic nanoseconds, given by the shell; without it nothing is timed.
    """

    def __init__(
        self, schema: FeatureSchema, settings: DetectorSettings, *, timer: Callable[[], int] | None = None
    ) -> None:
        self.schema = schema
        self.settings = settings
        self.windows_scored = 0
        self.refused: Counter[str] = Counter()
        self.p_histogram = [0] * SCORE_BUCKETS
        self.drift_watch = DriftWatch(schema)
        self.accepted = AcceptedEntities(schema, settings)
        self.gives_inputs = False
        """Whether scored windows carry what was scored: where evidence of alerts is kept."""
        self._timer = timer
        self._timings_us: deque[float] = deque(maxlen=TIMINGS_KEPT)
        self._history = InputHistory(schema)
        self._learning: list[Window] = []
        self._baseline: Baseline | None = None
        self._kept = KeptInputs(schema, settings.calibration_windows)
        self._pending: tuple[Reconstructs, AlertModel] | None = None
        self._active: CalibratedModel | None = None
        self._stored: Mapping[str, Any] | None = None
        self._cold: CalibratedModel | None = None

    @property
    def phase(self) -> Phase:
        """Where the detector is; see the module's text."""
        if self._baseline is None:
            return "learning"
        return "calibrating" if self._active is None else "armed"

    @property
    def is_calibratable(self) -> bool:
        """Whether everything is collected, and only a model is missing (or not even that)."""
        return self._kept.is_complete

    @property
    def model(self) -> AlertModel | None:
        """The model that scores, or that will once the calibration windows are complete."""
        if self._active:
            return self._active.model
        return self._pending[1] if self._pending else None

    @property
    def training_rows(self) -> int:
        """Rows of `training_matrix`; 0 in the learning phase."""
        return len(self._kept.training)

    def score_us(self, quantile: float) -> float:
        """Quantile of the time that scoring took, in microseconds a window; 0 before the first."""
        return float(np.quantile(self._timings_us, quantile)) if self._timings_us else 0.0

    def drift(self) -> DriftReport | None:
        """How far the newest windows are from what was calibrated on; None before there is enough to say."""
        if self._active is None or self._baseline is None:
            return None
        learnt = self._kept.training[:, -1] if len(self._kept.training) else None
        return self.drift_watch.report(self._active.rolling.current.ordered, self._baseline, learnt)

    def score_sketch(self) -> ScoreSketch | None:
        """What benign windows score here, for a device that has no calibration yet; None before this one has."""
        return ScoreSketch.of(self._active.rolling.current.ordered) if self._active else None

    def outline(self) -> bytes:
        """What kind of device this is, as its scores tell: see `ScoreSketch.outline`; empty before it is calibrated."""
        sketch = self.score_sketch()
        return sketch.outline() if sketch else b""

    def training_matrix(self, network: Network) -> Float32:
        """Scaled benign inputs for a round's local training, ``(n, *input_shape)`` float32, at most `INPUTS_KEPT_MAX`.

        Raises:
            PeerError: the network's input is not the schema's.
        """
        return shaped(self._kept.training.astype(np.float32), network)

    def training_windows(self, count: int) -> Float32:
        """At most `count` of the scaled training inputs, ``(n, *schema.input_shape)`` float32, evenly spread."""
        training = self._kept.training
        return training[self._kept.thinned(len(training), count)].astype(np.float32)

    def install(self, backend: Reconstructs, model: AlertModel) -> None:
        """Score with this model from now on, or from the end of the calibration stretch on.

        Its usual errors and p-values are measured here, with its own (quantised) arithmetic, on the inputs that are
        held out.

        Raises:
            PeerError: the model's input is not the schema's; what was active stays so.
        """
        shaped(self._kept.none().astype(np.float32), backend.network)
        if self._baseline is None or not self.is_calibratable:
            self._pending, self._cold = (backend, model), None
            return
        self._cold = None
        stored, self._stored, self._pending = self._stored, None, None
        self.drift_watch.restart()
        own = self.accepted.held_out(self._baseline)
        if stored is not None and stored["digest"] == model.digest:
            self._active = CalibratedModel.from_state(backend, model, self._baseline, stored)
            self.accepted.measure(self._active, own)
            return
        inputs = self._kept.held_out.astype(np.float32)
        self._active = CalibratedModel.measure(
            backend,
            model,
            self._baseline,
            inputs,
            self._kept.entities,
            self.settings.half_life_windows,
            self._kept.training.astype(np.float32),
            own,
        )
        self.accepted.measure(self._active, own)

    def begin_cold(self, fleet: ScoreSketch) -> None:
        """Score the model that waits for its calibration with the fleet's scores, until it has its own.

        Nothing of it is persisted, and its scores go into no calibration: after a restart it must be asked for again.

        Args:
            fleet: benign scores of that model on other devices.

        Raises:
            RefusedError: there is nothing to begin with, it is not needed any more, or the sketch holds too little.
        """
        if self._baseline is None or self._pending is None or len(self._kept.training) < SCORES_MIN:
            raise RefusedError(
                f"cold start: found phase {self.phase} with {self.training_rows} training rows, expected calibrating "
                f"with a model that waits, and at least {SCORES_MIN}",
                rule="phase",
            )
        backend, model = self._pending
        training, half_life = self._kept.training.astype(np.float32), self.settings.half_life_windows
        self._cold = CalibratedModel.provisional(
            backend, model, self._baseline, training, first_calibration(fleet), half_life
        )

    def recalibrate(self) -> int:
        """Measure the active model anew on the inputs that are held out now.

        Those are the device's own recent benign windows: each came in past the brake of the rolling calibration, so
        that nobody can be quicker by asking for this.

        Returns:
            Windows that it was measured on.

        Raises:
            RefusedError: no model is active, or too few benign windows are there.
        """
        if self._active is None or self._baseline is None or not self.is_calibratable:
            raise RefusedError(f"found phase {self.phase}, expected armed: nothing is calibrated yet", rule="phase")
        backend, model = self._active.backend, self._active.model
        self._stored = None
        self.install(backend, model)
        return len(self._kept.entities)

    @property
    def accepts_entities(self) -> bool:
        """Whether it watches many entities, each of which a person may accept."""
        return self.schema.use_case == "network"

    def accept(self, entity: str, identity: str, level: float) -> None:
        """Learn an entity from its next window on, because a person said that what it does is fine.

        Args:
            entity: its name.
            identity: of the acceptance.
            level: see `AcceptedEntities.begin`.

        Raises:
            RefusedError: this detector watches a single entity, is still learning, or learns too many already.
        """
        if not self.accepts_entities or self._baseline is None:
            raise RefusedError(
                f"{entity}: found a detector of {self.schema.use_case} in phase {self.phase}, expected one of many "
                "entities whose learning phase is over",
                rule="phase",
            )
        self.accepted.begin(entity, identity, level)

    def forget(self, entity: str) -> None:
        """Take an acceptance back: the entity is a newcomer again; its windows leave calibration and training rows."""
        if not self.accepted.forget(entity) or self._baseline is None:
            return
        self._baseline = self._baseline.without(entity)
        self._kept.take_out(entity)
        self._stored = None
        if self._cold is not None:
            self._cold.baseline = self._baseline
        if self._active is not None:
            self.install(self._active.backend, self._active.model)

    def uninstall(self) -> None:
        """Score nothing until a model is installed again; if it is the same one, it goes on with its calibration."""
        if self._active is not None:
            self._stored = self._active.to_state()
        self._active, self._pending, self._cold = None, None, None

    def feed(self, windows: Sequence[Window], *, frozen: bool = False) -> list[ScoredWindow]:
        """Take windows in the order of their time.

        Args:
            windows: usually those of one tick, all entities together: they are scored in one call of the back end.
            frozen: whether an alert of this detector is open; nothing is then taken into the calibration.

        Returns:
            What was scored, in the same order; nothing before the detector is armed.
        """
        waiting: list[tuple[Window, npt.NDArray[np.float32], Float32]] = []
        was_cold = self._cold is not None  # its windows are held out already
        for window in windows:
            if self._history.is_stale(window):
                self.refused["stale"] += 1
                continue
            if self._baseline is None:
                self._learn(window)
                continue
            values = self._history.push(window)
            if values is None:
                continue
            scaled = self._baseline.scale(window.entity, values)
            if self._active is not None or self._cold is not None:
                waiting.append((window, values, scaled))
            if self.accepted.is_learning(window.entity):
                if self._active is None and self._cold is None:
                    self._learn_accepted(window, None, frozen=True)
            elif self._active is None and not self.is_calibratable:
                # Held out whatever it scores: a threshold that is wrong here must not keep the right one away.
                self._hold_out(window.entity, scaled)
        return self._score(waiting, frozen=frozen or was_cold) if waiting else []

    def _learn(self, window: Window) -> None:
        self._history.push(window)
        self._learning.append(window)
        if len(self._learning) < self.settings.training_windows:
            return
        self._baseline = baseline = Baseline.fit(self.schema, self._learning)
        again = InputHistory(self.schema)
        inputs = [(w.entity, values) for w in self._learning if (values := again.push(w)) is not None]
        self._learning = []
        chosen = [inputs[i] for i in self._kept.thinned(len(inputs))]
        self._kept.train_on([entity for entity, _ in chosen], [baseline.scale(*each) for each in chosen])

    def _hold_out(self, entity: str, scaled: Float32) -> None:
        self._kept.hold_out(entity, scaled)
        if self.is_calibratable and self._pending is not None:
            self.install(*self._pending)

    def _score(
        self, waiting: list[tuple[Window, npt.NDArray[np.float32], Float32]], *, frozen: bool
    ) -> list[ScoredWindow]:
        active = self._active or self._cold
        assert active is not None
        assert self._baseline is not None
        started = self._timer() if self._timer else 0
        calibration = active.rolling.current
        inputs = np.stack([scaled for _, _, scaled in waiting])
        newest = np.stack([values[-1] for _, values, _ in waiting])
        judgement = active.judge(inputs, [window.entity for window, _, _ in waiting], newest)
        threshold = max(calibration.threshold(self.settings.alpha), 0.0)
        scored = []
        for i, (window, values, scaled) in enumerate(waiting):
            p_value = float(judgement.p_values[i])
            reasons: tuple[FeatureReason, ...] = ()
            squared, usual = judgement.squared_ratio[i], self._baseline.usual_of(window.entity)
            if p_value <= REASONS_P:
                reasons = top_reasons(squared, values[-len(squared) :], usual, self.schema.columns)
            scored.append(
                ScoredWindow(
                    entity=window.entity,
                    start_s=window.start_s,
                    end_s=window.end_s,
                    score=float(judgement.scores[i]),
                    p_value=p_value,
                    threshold=threshold,
                    benign_max=calibration.largest,
                    benign_average=active.benign_average,
                    calibration_size=calibration.size,
                    features=reasons,
                    model=active.model,
                    spread=active.spread,
                    input=self._input(active, values, scaled, squared, usual, judgement.by_ensemble[i]),
                )
            )
        if self._timer:
            self._timings_us.append((self._timer() - started) / 1000.0 / len(waiting))
        judged = [self.accepted.judged(window) for window in scored]
        self._remember(waiting, scored, judged, frozen=frozen)
        return judged

    def _input(
        self,
        active: CalibratedModel,
        values: npt.NDArray[np.float32],
        scaled: Float32,
        squared: Float32,
        usual: Float32,
        by_ensemble: np.bool_,
    ) -> ScoredInput | None:
        if not self.gives_inputs:
            return None
        head = ENSEMBLE if by_ensemble else NETWORK
        # A copy: an alert that stays open must not hold the errors of all entities of its tick.
        return ScoredInput(values, scaled, squared.copy(), active.residuals.scale, usual, head)

    def _remember(
        self,
        waiting: list[tuple[Window, npt.NDArray[np.float32], Float32]],
        scored: list[ScoredWindow],
        judged: list[ScoredWindow],
        *,
        frozen: bool,
    ) -> None:
        """Count, and renew what is held out, by what all entities have in common."""
        assert self._baseline is not None
        self.windows_scored += len(scored)
        for (window, values, scaled), common, own in zip(waiting, scored, judged, strict=True):
            self.p_histogram[min(int(-4.0 * np.log10(own.p_value)), SCORE_BUCKETS - 1)] += 1
            if own.learning_limit is not None:
                if self.accepted.is_learning(window.entity):  # an earlier window of the same call may have ended it
                    self._learn_accepted(window, own, frozen=frozen)
                continue
            if self._active is None:
                continue  # a cold start: the scores that it goes by are the fleet's, and stay
            self.drift_watch.observe(own.score, own.p_value, values[-1], scaled[-1], self._baseline)
            if not frozen:
                self._renew(self._active, window.entity, scaled, common.score, common.p_value)

    def _renew(self, active: CalibratedModel, entity: str, scaled: Float32, score: float, p_value: float) -> None:
        """Offer a score: what leaves the held-out inputs becomes a training row, so that the two stay disjoint."""
        place = active.rolling.observe(score, p_value)
        if place is not None:
            self._kept.renew(place, entity, scaled)

    def _learn_accepted(self, window: Window, judged: ScoredWindow | None, *, frozen: bool) -> None:
        assert self._baseline is not None
        entity, active = window.entity, self._active
        step = self.accepted.take(window, judged)
        if step == "learning":
            return
        try:
            baseline = self._baseline.without(entity)  # of one that has lapsed
            if step != "lapsed":
                baseline = self.accepted.settle(entity, self._baseline)
        except RefusedError:
            self.accepted.lapse(entity)
        self._baseline = baseline
        if self._cold is not None:
            self._cold.baseline = baseline
        if not self.accepted.is_settled(entity):
            if active is not None:
                active.drop_entity(entity, baseline)
            return
        if active is None:
            return
        inputs = self.accepted.inputs(entity, baseline)
        active.take_entity(entity, inputs, baseline)
        self.accepted.measure(active, {entity: inputs})
        if frozen or step == "early":
            return
        # No more than the entity's fair share, and each past the brake, as if it had been there all along.
        share = max(self.settings.calibration_windows // len({*self._kept.entities, entity}), 1)
        chosen = self._kept.thinned(len(inputs), share)
        joining = active.judge(inputs[chosen], [entity] * len(chosen))
        for i, scaled in enumerate(inputs[chosen]):
            self._renew(active, entity, scaled, float(joining.scores[i]), float(joining.p_values[i]))

    def to_state(self) -> dict[str, Any]:
        """Everything but the model itself, as plain data for msgpack; some megabytes at most."""
        return {
            "format": STATE_FORMAT,
            "schema": self.schema.digest,
            "learning": pack_windows(self._learning),
            "history": pack_windows(list(self._history.windows())),
            "baseline": self._baseline.to_state() if self._baseline else None,
            **self._kept.to_state(),
            "windows_scored": self.windows_scored,
            "p_histogram": list(self.p_histogram),
            "active": self._active.to_state() if self._active else self._stored,
            "accepted": self.accepted.to_state(),
        }

    @classmethod
    def from_state(
        cls,
        schema: FeatureSchema,
        settings: DetectorSettings,
        state: Mapping[str, Any],
        *,
        timer: Callable[[], int] | None = None,
    ) -> Detector:
        """Go on from `to_state`'s form. The model must be installed again: it is not part of the state.

        Raises:
            PeerError: another format or schema, or parts that do not fit each other; start a new detector then.
        """
        detector = cls(schema, settings, timer=timer)
        try:
            detector._restore(state)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as fault:
            raise PeerError(f"detector state: found {fault!r}, expected what `to_state` gives") from fault
        return detector

    def _restore(self, state: Mapping[str, Any]) -> None:
        found = (state["format"], state["schema"])
        if found != (STATE_FORMAT, self.schema.digest):
            raise PeerError(
                f"detector state: found format {found[0]!r} and schema {found[1]!s:.12}, "
                f"expected format {STATE_FORMAT} and schema {self.schema.digest:.12}; start the learning phase anew",
                reason="schema",
            )
        columns = len(self.schema.columns)
        self._learning = unpack_windows(state["learning"], columns)
        for window in unpack_windows(state["history"], columns):
            self._history.push(window)
        if state["baseline"] is None:
            return
        self._baseline = Baseline.from_state(self.schema, state["baseline"])
        self.accepted.restore(state.get("accepted", ()))  # the state of a node from before has none
        self._kept.restore(state)
        self.windows_scored = int(state["windows_scored"])
        histogram = [int(n) for n in state["p_histogram"]]
        if len(histogram) != SCORE_BUCKETS:
            raise ValueError(f"{len(histogram)} buckets")
        self.p_histogram = histogram
        # With other settings the stretch has another length, and the calibration is measured anew.
        active = state["active"]
        if (
            active is not None
            and len(active["rolling"]["scores"]) == 8 * len(self._kept.entities)
            and self.is_calibratable
        ):
            self._stored = active
