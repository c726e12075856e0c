"""What a detector of many entities does about those that a person accepted: «this is fine, learn it».

=========  ==============================================  ===========================================================
stage      until                                           what a window of the entity is used for
=========  ==============================================  ===========================================================
learning   `stretch_windows` of it were learnt             kept, unless it is loud; only a loud one is alarming
learnt     a person takes the acceptance back              judged like any other, and by its own calibration as well
lapsed     a person accepts it again                       a newcomer's: the stretch took too long, or was too loud
=========  ==============================================  ===========================================================

Loud is a window whose score is `magnitude_factor` times that of what was accepted, and of the largest benign one.
Nothing in the stretch raises that, or an attack would do so by its own first windows. Loud windows are not learnt.
The first two thirds of a stretch scale the entity's rows, and what was held out behind them is what its own scores are
ranked among.

What the common scale makes of a newcomer may be so far out that nothing is louder. A long stretch is therefore settled
once in advance, by its first `ACCEPT_WINDOWS_MIN` windows if none of them is loud: from then on loud is what stands out
by the entity's own scale.

Of the two p-values of a learnt entity, by all entities and by itself, the larger one counts: its own calibration can
only quiet its own alerts, and nothing that it does changes how others are judged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, Final, Literal

import numpy as np

from vedette_core.learning.calibration import SCORES_MIN, Calibration, calibrate
from vedette_core.learning.layout import Float32
from vedette_device.alert_record import ScoredWindow
from vedette_device.baseline import Baseline
from vedette_device.calibrated_model import CalibratedModel, largest_average
from vedette_device.detector_settings import ACCEPT_WINDOWS_MIN, DetectorSettings
from vedette_device.features.windows import Window
from vedette_device.input_history import InputHistory, pack_windows, unpack_windows
from vedette_schemas.errors import RefusedError
from vedette_schemas.features import FeatureSchema

Stage = Literal["learning", "learnt", "lapsed"]
Step = Literal["learning", "early", "learnt", "lapsed"]

ENTITIES_MAX: Final = 32
"""Accepted entities of one detector: with 1,440 held-out windows each, 5 MB. More is a network to learn anew."""
LEARNING_MAX: Final = 8
"""Of them at a time in their stretch, in which only loud windows are heard: most of a network stays watched."""
HELD_OUT_MIN: Final = 80
"""Fewest held-out inputs of an entity: fewer do not make a tail, without which no p-value falls below 1 %."""
HELD_OUT_MAX: Final = 2048
"""Most of them, the newest."""
WINDOWS_A_STRETCH: Final = 2
"""Times the wanted windows that a stretch may see in all: one that is loud for longer is not what was accepted."""
TIME_A_STRETCH: Final = 8
"""Times its nominal length that a stretch may last: whoever has an address days later may not be who was accepted."""


@dataclass(frozen=True, slots=True)
class EntityProgress:
    """How far an accepted entity is.

    Attributes:
        entity: its name.
        id: of the acceptance.
        stage: see the module's text.
        windows: windows that were learnt.
        of: windows that it takes.
    """

    entity: str
    id: str
    stage: Stage
    windows: int
    of: int


@dataclass(slots=True)
class _Entity:
    """One of them; `level` is the score of what was accepted, over the largest benign one of its time."""

    id: str
    level: float
    stage: Stage = "learning"
    has_own: bool = False  # whether the baseline has what an acceptance taught it
    learnt: int = 0
    held_out: int = 0
    since_loud: int = 0
    windows: list[Window] = field(default_factory=list)
    loud: list[bool] = field(default_factory=list)
    first: int = 0  # of the held-out windows
    early: tuple[int, int] = (0, 0)  # the same, and the end of them, where the stretch was settled in advance
    own: Calibration | None = None
    average: float = 0.0


class AcceptedEntities:
    """The accepted entities of one detector.

    Args:
        schema: columns of its windows.
        settings: the detector's.
    """

    def __init__(self, schema: FeatureSchema, settings: DetectorSettings) -> None:
        self._schema, self._settings = schema, settings
        self._of = settings.stretch_windows
        self._entities: dict[str, _Entity] = {}

    def known(self) -> dict[str, str]:
        """The acceptance that each entity is there by: id by entity."""
        return {entity: each.id for entity, each in self._entities.items()}

    def progress(self) -> list[EntityProgress]:
        """How far each is."""
        return [EntityProgress(e, a.id, a.stage, a.learnt, self._of) for e, a in self._entities.items()]

    def is_learning(self, entity: str) -> bool:
        """Whether the entity is in its stretch."""
        each = self._entities.get(entity)
        return each is not None and each.stage == "learning"

    def is_settled(self, entity: str) -> bool:
        """Whether the baseline has what the entity's acceptance taught it."""
        each = self._entities[entity]
        return each.stage == "learnt" or each.early[1] > 0

    def begin(self, entity: str, identity: str, level: float) -> None:
        """Learn an entity from its next window on; what was learnt of it before stays until then.

        Args:
            entity: its name.
            identity: of the acceptance.
            level: score of what was accepted over the largest benign one of its time; 1 where there is none.

        Raises:
            RefusedError: there are `ENTITIES_MAX` already, or `LEARNING_MAX` in their stretch.
        """
        others = {name: each for name, each in self._entities.items() if name != entity}
        learning = sum(each.stage == "learning" for each in others.values())
        for found, most, what in ((len(others), ENTITIES_MAX, "accepted"), (learning, LEARNING_MAX, "being learnt")):
            if found >= most:
                raise RefusedError(f"{entity}: found {found} entities {what}, expected fewer than {most}", rule="limit")
        before = self._entities.get(entity)
        has_own = before is not None and before.has_own
        self._entities[entity] = _Entity(identity, max(level, 1.0), has_own=has_own, since_loud=self._schema.history)

    def forget(self, entity: str) -> bool:
        """Forget an entity; returns whether the baseline still has what it taught it."""
        gone = self._entities.pop(entity, None)
        return gone is not None and gone.has_own

    def judged(self, window: ScoredWindow) -> ScoredWindow:
        """A window that was scored by what all entities have in common, as its own entity's standing makes it."""
        each = self._entities.get(window.entity)
        if each is None or each.stage == "lapsed":
            return window
        if each.stage == "learning":
            if each.own is not None:
                window = replace(window, benign_max=max(window.benign_max, each.own.largest))
            bar = max(window.threshold, window.benign_max)
            return replace(window, learning_limit=self._settings.magnitude_factor * each.level * bar)
        if each.own is None:
            return window
        return replace(
            window,
            p_value=max(window.p_value, float(each.own.p_values(window.score)[0])),
            benign_max=max(window.benign_max, each.own.largest),
            benign_average=max(window.benign_average, each.average),
            calibration_size=min(window.calibration_size, each.own.size),
        )

    def take(self, window: Window, judged: ScoredWindow | None) -> Step:
        """Take a window of an entity that is being learnt.

        Args:
            window: the window.
            judged: what `judged` made of it; None where nothing scores yet.

        Returns:
            What this brings about: ``early`` and ``learnt`` ask the caller to call `settle` now, and ``lapsed`` to drop
            what the baseline has of the entity.
        """
        each = self._entities[window.entity]
        is_loud = judged is not None and judged.learning_limit is not None and judged.score > judged.learning_limit
        each.windows.append(window)
        each.loud.append(is_loud)
        each.since_loud = 0 if is_loud else each.since_loud + 1
        if not is_loud:
            each.learnt += 1
            if self._is_held_out(each) and each.since_loud >= self._schema.history:
                each.held_out += 1
            if not each.first and self._is_held_out(each):
                each.first = len(each.windows) - 1
        if each.learnt >= self._of and each.held_out >= HELD_OUT_MIN:
            return "learnt"
        if self._of >= 2 * ACCEPT_WINDOWS_MIN and each.learnt == ACCEPT_WINDOWS_MIN and not is_loud:
            first = ACCEPT_WINDOWS_MIN * 2 // 3
            if not any(each.loud):
                each.early = (first, len(each.windows))
                return "early"
        length_s = self._of * self._schema.window_s
        if (
            len(each.windows) >= WINDOWS_A_STRETCH * self._of
            or window.end_s - each.windows[0].start_s > TIME_A_STRETCH * length_s
        ):
            self.lapse(window.entity)
            return "lapsed"
        return "learning"

    def lapse(self, entity: str) -> None:
        """Give a stretch up; the caller drops what the baseline has of the entity, which is then a newcomer."""
        each = self._entities[entity]
        each.stage, each.has_own, each.own, each.average = "lapsed", False, None, 0.0
        each.windows, each.loud, each.first, each.early = [], [], 0, (0, 0)

    def settle(self, entity: str, baseline: Baseline) -> Baseline:
        """End a stretch, or settle it in advance; returns the baseline with the entity's own scaler and usual range.

        Raises:
            RefusedError: the baseline has no room; the stretch is then to be given up.
        """
        each = self._entities[entity]
        if each.learnt < self._of:
            settled = baseline.with_entity(entity, np.stack([w.values for w in each.windows[: each.early[0]]]))
            each.has_own, each.level = True, 1.0  # from here on by its own scale
            return settled
        learnt = [w.values for w, loud in zip(each.windows[: each.first], each.loud, strict=False) if not loud]
        settled = baseline.with_entity(entity, np.stack(learnt))
        start = max(each.first, len(each.windows) - HELD_OUT_MAX)
        context = max(start - self._schema.history + 1, 0)
        each.windows, each.loud, each.first = each.windows[context:], each.loud[context:], start - context
        each.stage, each.has_own, each.early = "learnt", True, (0, 0)
        return settled

    def held_out(self, baseline: Baseline) -> dict[str, Float32]:
        """Held-out inputs ``(n, history, columns)`` float32 of each settled entity, scaled, oldest first."""
        return {entity: self.inputs(entity, baseline) for entity in self._entities if self.is_settled(entity)}

    def inputs(self, entity: str, baseline: Baseline) -> Float32:
        """Held-out inputs ``(n, history, columns)`` float32 of a settled entity; none with a loud window in it."""
        each, history = self._entities[entity], InputHistory(self._schema)
        first, end = each.early if each.early[1] else (each.first, len(each.windows))
        loud: deque[bool] = deque(maxlen=self._schema.history)
        rows = []
        for place, window in enumerate(each.windows[:end]):
            loud.append(each.loud[place])
            values = history.push(window)
            if values is not None and place >= first and not any(loud):
                rows.append(values)
        if not rows:
            return np.zeros((0, *self._schema.input_shape), np.float32)
        return baseline.scale(entity, np.stack(rows))

    def measure(self, active: CalibratedModel, held_out: Mapping[str, Float32]) -> None:
        """Rank each learnt entity's scores among its own, by the model that scores from now on.

        Args:
            active: the model, which has the entities' factors.
            held_out: inputs by entity.
        """
        for entity, inputs in held_out.items():
            each = self._entities[entity]
            each.own, each.average = None, 0.0
            if len(inputs) < SCORES_MIN:
                continue
            names = [entity] * len(inputs)
            judgement = active.judge(inputs, names)
            each.own = calibrate(judgement.scores)
            p_values = np.maximum(judgement.p_values, each.own.p_values(judgement.scores))
            each.average = largest_average(p_values, names, self._settings.half_life_windows)

    def to_state(self) -> list[dict[str, Any]]:
        """Plain form for msgpack; what was measured of a model is measured again."""
        return [
            {
                "entity": entity,
                "id": each.id,
                "level": each.level,
                "stage": each.stage,
                "has_own": each.has_own,
                "numbers": [each.learnt, each.held_out, each.since_loud, each.first],
                "early": list(each.early),
                "windows": pack_windows(each.windows),
                "loud": bytes(each.loud),
            }
            for entity, each in self._entities.items()
        ]

    def restore(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Read `to_state`'s form back.

        Raises:
            ValueError, KeyError, TypeError, IndexError: it is another form.
        """
        for plain in state[:ENTITIES_MAX]:
            windows = unpack_windows(plain["windows"], len(self._schema.columns))
            loud = [bool(b) for b in plain["loud"]]
            learnt, held_out, since_loud, first = (int(n) for n in plain["numbers"])
            early_first, early_end = (int(n) for n in plain["early"])
            level, stage = float(plain["level"]), plain["stage"]
            if (
                len(loud) != len(windows)
                or not 0 <= first <= len(windows)
                or stage not in ("learning", "learnt", "lapsed")
            ):
                raise ValueError(f"an accepted entity of stage {stage!r} with {len(windows)} windows")
            if not 0 <= early_first <= early_end <= len(windows):
                raise ValueError(f"an accepted entity that was settled by windows {early_first} to {early_end}")
            if not 1.0 <= level < inf:
                raise ValueError(f"an accepted entity of level {level}")
            self._entities[str(plain["entity"])] = _Entity(
                id=str(plain["id"]),
                level=level,
                stage=stage,
                has_own=bool(plain["has_own"]),
                learnt=learnt,
                held_out=held_out,
                since_loud=since_loud,
                windows=windows,
                loud=loud,
                first=first,
                early=(early_first, early_end),
            )

    def _is_held_out(self, each: _Entity) -> bool:
        return each.learnt > self._of * 2 // 3
