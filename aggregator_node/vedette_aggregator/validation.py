"""The gate between a round's candidate and its release: several validators, each with its own verdict.

It needs no service, no clock and no registry: a candidate's weights, its parent's, the INT8 artifact and sets of
windows go in, verdicts come out, and the same input gives the same verdicts. Whoever else validates a release (a second
signer) calls `validate_files` with the files' bytes.

What a candidate is held against is its parent on the same windows wherever that can be: an absolute limit would
stop every candidate of a task whose holdout set is hard, and with them every better model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf, isnan
from typing import Any, Final, Self

import numpy as np

from vedette_aggregator.artifacts import run_artifact
from vedette_aggregator.holdouts import Attack, Benign, Holdouts
from vedette_aggregator.validation_settings import ValidationSection
from vedette_core.learning.layout import Float32
from vedette_core.learning.model_quality import (
    BenignFigures,
    Reconstruct,
    area_under_roc,
    attack_scores,
    detected_share,
    in_blocks,
    made_up_windows,
    measure_benign,
    prediction_shift,
    weight_change,
)
from vedette_core.learning.network import Network
from vedette_core.learning.tail import Float64
from vedette_core.learning.weights_file import read_weights
from vedette_schemas.errors import PeerError, RefusedError

CHANCE_DEVIATIONS: Final = 3.0
"""How many standard deviations of chance a share of windows may be above its limit: of 32 judged windows two pass a
threshold of 1 % in one set of twenty-five."""
CALIBRATION_CHANCE: Final = 1.63
"""Kolmogorov's distance of n even values is above this over √n once in a hundred times."""
QUANTISED_SHIFT_MAX: Final = 0.25
"""Largest root-mean-square difference of INT8 and float reconstructions, over that of the windows."""


class Validator(StrEnum):
    """What is looked at; also the label of metrics."""

    WEIGHTS = "weights"
    SHIFT = "shift"
    LOSS = "loss"
    FALSE_POSITIVES = "false-positives"
    DETECTION = "detection"
    CALIBRATION = "calibration"
    QUANTISATION = "quantisation"


class Outcome(StrEnum):
    """A validator's word. Without windows to measure on it has none, and rejects nothing."""

    PASS = "pass"
    REJECT = "reject"
    NO_DATA = "no-data"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One validator's verdict on the worst of what it looked at.

    Attributes:
        validator: whose.
        outcome: pass, reject, or no data.
        found: what was measured, in words.
        expected: what would have passed.
        cohort: where it was worst; empty where cohorts have no part in it.
    """

    validator: Validator
    outcome: Outcome
    found: str
    expected: str
    cohort: str = ""

    def text(self) -> str:
        """One line for a person."""
        where = f" ({self.cohort})" if self.cohort else ""
        return f"{self.validator.value}{where}: found {self.found}, expected {self.expected}"


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """What all validators together say of a candidate.

    Attributes:
        verdicts: one a validator, in the order of `Validator`.
        figures: what was measured, for the registry: worst cohort each.
    """

    verdicts: tuple[Verdict, ...]
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def rejections(self) -> tuple[Verdict, ...]:
        """Those that speak against it."""
        return tuple(v for v in self.verdicts if v.outcome is Outcome.REJECT)

    @property
    def against(self) -> str:
        """What speaks against it, in words; empty if nothing does."""
        return "; ".join(v.text() for v in self.rejections)

    @property
    def accepted(self) -> bool:
        """Whether nobody rejects it."""
        return not self.rejections

    def to_plain(self) -> list[dict[str, str]]:
        """The verdicts as plain data for JSON."""
        return [
            {
                "validator": v.validator.value,
                "outcome": v.outcome.value,
                "found": v.found,
                "expected": v.expected,
                "cohort": v.cohort,
            }
            for v in self.verdicts
        ]

    @classmethod
    def from_plain(cls, plain: Any, figures: Mapping[str, float] | None = None) -> Self:
        """Read `to_plain`'s form back.

        Raises:
            PeerError: another form.
        """
        try:
            verdicts = tuple(
                Verdict(Validator(v["validator"]), Outcome(v["outcome"]), v["found"], v["expected"], v["cohort"])
                for v in plain
            )
        except (KeyError, TypeError, ValueError) as fault:
            raise PeerError(f"verdicts: found {fault!r}, expected what `to_plain` gives") from fault
        return cls(verdicts, dict(figures or {}))


def raise_if_rejected(verdict: GateVerdict) -> None:
    """Stop a candidate that is rejected.

    Raises:
        RefusedError: naming every validator that rejects it, with what was found and expected.
    """
    if not verdict.accepted:
        raise RefusedError(f"validation: {verdict.against}", rule="validation")


def validate_files(
    candidate: bytes, parent: bytes, int8: bytes | None, holdouts: Holdouts, settings: ValidationSection
) -> GateVerdict:
    """Validate a release by its files, as an independent validator sees them.

    Args:
        candidate: the weights file.
        parent: the weights file of the release that it was made from.
        int8: the INT8 artifact, whose digest was checked; None where there is none.
        holdouts: windows to measure on.
        settings: limits.

    Raises:
        PeerError: a file that cannot be read, or the two are of other networks or feature schemas.
    """
    new, old = read_weights(candidate), read_weights(parent)
    if new.network.spec != old.network.spec or new.schema.digest != old.schema.digest:
        raise PeerError(
            f"validation: found a candidate of network {new.network.spec.digest[:12]}… and schema "
            f"{new.schema.digest[:12]}…, expected its parent's {old.network.spec.digest[:12]}… and "
            f"{old.schema.digest[:12]}…",
            reason="schema",
        )
    return validate(new.network, new.weights, old.weights, int8, holdouts, settings)


def validate(
    network: Network,
    weights: Float32,
    parent: Float32,
    int8: bytes | None,
    holdouts: Holdouts,
    settings: ValidationSection,
) -> GateVerdict:
    """Hold a candidate against its parent.

    Args:
        network: what both are weights of.
        weights: ``(size,)`` float32 of the candidate.
        parent: the same of the release that the round started from.
        int8: the candidate's INT8 artifact, built here or of a digest that was checked; None where there is none.
        holdouts: windows to measure on; without any only weights and shift have something to say.
        settings: limits.

    Returns:
        A verdict a validator. Whether a rejection counts (`mode`) is the caller's.
    """
    gate = _Gate(network, weights, parent, int8, holdouts, settings)
    looks: dict[Validator, Callable[[], Iterator[_Look]]] = {
        Validator.WEIGHTS: gate.weights,
        Validator.SHIFT: gate.shift,
        Validator.LOSS: gate.loss,
        Validator.FALSE_POSITIVES: gate.false_positives,
        Validator.DETECTION: gate.detection,
        Validator.CALIBRATION: gate.calibration,
        Validator.QUANTISATION: gate.quantisation,
    }
    verdicts: list[Verdict] = []
    if not np.isfinite(weights).all():
        bad = int((~np.isfinite(weights)).sum())
        rejected = Verdict(Validator.WEIGHTS, Outcome.REJECT, f"{bad} weights that are not finite", "finite ones")
        return GateVerdict(
            (rejected, *(Verdict(v, Outcome.NO_DATA, "no usable weights", "some") for v in list(Validator)[1:])), {}
        )
    figures: dict[str, float] = {}
    for validator, look in looks.items():
        try:
            verdicts.append(_worst(validator, list(look()), figures))
        except (RefusedError, ValueError, RuntimeError) as fault:
            # What cannot even be measured is no model: reconstructions that are not finite, an artifact that fails.
            verdicts.append(Verdict(validator, Outcome.REJECT, str(fault)[:200], "something that can be measured"))
    return GateVerdict(tuple(verdicts), figures)


@dataclass(frozen=True, slots=True)
class _Look:
    """One measurement: rejected if `value` is above `limit`. `figures` are what the registry keeps of it."""

    value: float
    limit: float
    found: str
    expected: str
    cohort: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


class _Gate:
    """The measurements; what several validators need is measured once."""

    def __init__(
        self,
        network: Network,
        weights: Float32,
        parent: Float32,
        int8: bytes | None,
        holdouts: Holdouts,
        settings: ValidationSection,
    ) -> None:
        self._network, self._weights, self._parent = network, weights, parent
        self._int8, self._holdouts, self._settings = int8, holdouts, settings
        self._measured: dict[tuple[str, str], BenignFigures] = {}
        self._scored: dict[tuple[str, int], Float64] = {}
        self._rebuilt: dict[tuple[str, str], Float32] = {}
        self._cohorts = {held.cohort: held for held in holdouts.benign}

    # -- what is measured ---------------------------------------------------------------------------------------------

    def _runs(self, which: str) -> Reconstruct:
        if which == "int8":
            data, shape = self._int8, self._network.target_shape
            assert data is not None
            return lambda x: run_artifact(data, x).reshape(len(x), *shape)
        weights = self._parent if which == "parent" else self._weights
        return lambda x: self._network.reconstruct(x, weights).astype(np.float32)

    @property
    def _shipped(self) -> str:
        """What devices run: INT8 where it is built."""
        return "candidate" if self._int8 is None else "int8"

    def _benign(self, which: str, held: Benign) -> BenignFigures:
        key = (which, held.cohort)
        if key not in self._measured:
            self._measured[key] = measure_benign(self._network, self._runs(which), held.x, self._settings.alpha)
        return self._measured[key]

    def _attack(self, which: str, attack: Attack) -> tuple[BenignFigures, Float64]:
        """What benign windows of the attack's cohort gave, and the attack's scores."""
        benign, key = self._benign(which, self._cohorts[attack.cohort]), (which, id(attack))
        if key not in self._scored:
            self._scored[key] = attack_scores(self._runs(which), benign, attack.x)
        return benign, self._scored[key]

    def _reconstructed(self, which: str, cohort: str, x: Float32) -> Float32:
        if (which, cohort) not in self._rebuilt:
            self._rebuilt[which, cohort] = in_blocks(self._runs(which), x)
        return self._rebuilt[which, cohort]

    def _pairs(self) -> Iterator[tuple[str, BenignFigures, BenignFigures]]:
        """Cohort, what is shipped, and its parent in full precision: the quantised one may be gone."""
        for held in self._holdouts.benign:
            yield held.cohort, self._benign(self._shipped, held), self._benign("parent", held)

    # -- validators ---------------------------------------------------------------------------------------------------

    def weights(self) -> Iterator[_Look]:
        """How far the weights have moved in one round."""
        moved = weight_change(self._parent, self._weights)
        limit = self._settings.change_max
        yield _Look(
            moved.relative,
            limit,
            f"a change of {moved.change:.3g}, {moved.relative:.3g} times the parent's norm",
            f"at most {limit:g} times",
            figures={"weights_change": moved.relative, "weights_norm": moved.norm},
        )

    def shift(self) -> Iterator[_Look]:
        """How far reconstructions have moved; on made-up windows where no real ones are at hand."""
        sets = [(h.cohort, h.x) for h in self._holdouts.benign] or [("", made_up_windows(self._network))]
        for cohort, x in sets:
            found, before = (self._reconstructed(which, cohort, x) for which in ("candidate", "parent"))
            moved = prediction_shift(found, before, self._network.target(x))
            yield _Look(
                moved,
                self._settings.shift_max,
                f"reconstructions {moved:.3g} times the windows' size away from the parent's",
                f"at most {self._settings.shift_max:g} times",
                cohort,
                {"shift": moved},
            )

    def loss(self) -> Iterator[_Look]:
        """Loss in full precision; what INT8 costs is another validator's."""
        for held in self._holdouts.benign:
            found, before = self._benign("candidate", held).loss, self._benign("parent", held).loss
            ratio = found / max(before, 1e-12)
            yield _Look(
                ratio,
                self._settings.loss_ratio_max,
                f"a loss of {found:.4g}, {ratio:.3g} times the parent's",
                f"at most {self._settings.loss_ratio_max:g} times",
                held.cohort,
                {"holdout_loss": found, "holdout_loss_ratio": ratio},
            )

    def false_positives(self) -> Iterator[_Look]:
        """False positives at the threshold that a device of the cohort would calibrate."""
        for cohort, shipped, parent in self._pairs():
            most = max(self._settings.false_positives_max, parent.false_positives)
            chance = CHANCE_DEVIATIONS * (most * (1.0 - most) / shipped.judged) ** 0.5
            yield _Look(
                shipped.false_positives,
                most + chance,
                f"{shipped.false_positives:.2%} of {shipped.judged} benign windows above the threshold",
                f"at most {most:.2%}, {most + chance:.2%} with chance",
                cohort,
                {"false_positives": shipped.false_positives},
            )

    def detection(self) -> Iterator[_Look]:
        """True positives of each attack, against the parent's."""
        alpha = self._settings.alpha
        for attack in self._holdouts.attacks:
            found, before = (detected_share(*self._attack(w, attack), alpha) for w in (self._shipped, "parent"))
            yield _Look(
                before - found,
                self._settings.detection_drop_max,
                f"{found:.1%} of the windows of {attack.name} detected",
                f"at least {max(before - self._settings.detection_drop_max, 0.0):.1%} (the parent: {before:.1%})",
                attack.cohort,
                {"detected": found},
            )

    def calibration(self) -> Iterator[_Look]:
        """Whether p-values keep their promise on windows that did not calibrate them."""
        for cohort, shipped, parent in self._pairs():
            chance = CALIBRATION_CHANCE / shipped.judged**0.5
            most = max(self._settings.calibration_error_max, parent.calibration_error) + chance
            yield _Look(
                shipped.calibration_error,
                most,
                f"p-values {shipped.calibration_error:.3f} from even ones",
                f"at most {most:.3f}",
                cohort,
                {"calibration_error": shipped.calibration_error},
            )

    def quantisation(self) -> Iterator[_Look]:
        """What INT8 costs: how far its reconstructions are off, and area under the ROC curve where there are attacks.

        Made-up windows are no measure of it: they lie outside of the ranges that it was quantised for.
        """
        if self._int8 is None:
            return
        for held in self._holdouts.benign:
            quantised, exact = (self._reconstructed(which, held.cohort, held.x) for which in ("int8", "candidate"))
            off = prediction_shift(quantised, exact, self._network.target(held.x))
            yield _Look(
                off,
                QUANTISED_SHIFT_MAX,
                f"INT8 reconstructions {off:.3g} times the windows' size away from the float ones",
                f"at most {QUANTISED_SHIFT_MAX:g} times",
                held.cohort,
                {"quantised_shift": off},
            )
        for attack in self._holdouts.attacks:
            areas = {}
            for which in ("candidate", "int8"):
                measured, scores = self._attack(which, attack)
                areas[which] = area_under_roc(measured.scores, scores)
            lost = areas["candidate"] - areas["int8"]
            yield _Look(
                lost,
                self._settings.quantisation_drop_max,
                f"{lost:.4f} of the area under the ROC curve of {attack.name} lost",
                f"at most {self._settings.quantisation_drop_max:g} (float has {areas['candidate']:.4f})",
                attack.cohort,
                {"quantised_auc_lost": lost},
            )


def _worst(validator: Validator, looks: list[_Look], figures: dict[str, float]) -> Verdict:
    if not looks:
        return Verdict(validator, Outcome.NO_DATA, "no windows to measure on", "a holdout set")
    # What is no number is the worst of all: compared as it is, it would be passed over behind a good cohort.
    worst = max(looks, key=lambda look: inf if isnan(look.value) else look.value - look.limit)
    figures.update(worst.figures)
    # Written so that a value that is no number does not pass.
    outcome = Outcome.PASS if worst.value <= worst.limit else Outcome.REJECT
    return Verdict(validator, outcome, worst.found, worst.expected, worst.cohort)
