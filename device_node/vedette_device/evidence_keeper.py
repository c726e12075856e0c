"""Keeps the evidence of one detector's alerts: remembers the newest windows of each entity, and writes when asked."""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from vedette_core.machine import Effect
from vedette_core.runtime.metrics import Metrics
from vedette_device.alert_record import ScoredWindow
from vedette_device.detection_machine import KeepEvidence
from vedette_device.evidence import PAST_MAX, Evidence, Past
from vedette_device.evidence_store import EvidenceStore
from vedette_device.verified_release import VerifiedRelease
from vedette_schemas.errors import ConfigError, RefusedError, TransientError
from vedette_schemas.features import FeatureSchema

log = logging.getLogger("vedette.evidence")

ENTITIES_MAX: Final = 256
"""Entities whose newest windows are remembered: 0.6 MB of network windows. Past it the longest unseen one goes."""


@dataclass(frozen=True, slots=True)
class _Seen:
    end_s: float
    score: float
    p_value: float
    row: npt.NDArray[np.float32]


class EvidenceKeeper:
    """The evidence of one detector.

    A disk that is full or damaged holds no alert back: its evidence is then given up, with a warning, and counted.

    Args:
        store: where it is kept.
        metrics: the device's.
        task: the detector's.
        schema: what its windows hold.
    """

    def __init__(self, store: EvidenceStore, metrics: Metrics, task: str, schema: FeatureSchema) -> None:
        self._store, self._metrics, self._task, self._schema = store, metrics, task, schema
        self._past: OrderedDict[str, deque[_Seen]] = OrderedDict()
        self._warned = ""
        try:
            damaged = store.begin(task)
        except (TransientError, ConfigError) as fault:
            self._warn(fault)
        else:
            if damaged:
                metrics.inc("evidence", task, "damaged", by=damaged)

    def observe(self, scored: Sequence[ScoredWindow]) -> None:
        """Remember windows that were scored, in the order of their time; those without an input are left out."""
        for window in scored:
            if window.input is None:
                continue
            past = self._past.get(window.entity)
            if past is None:
                if len(self._past) >= ENTITIES_MAX:
                    self._past.popitem(last=False)
                past = self._past[window.entity] = deque(maxlen=PAST_MAX)
            self._past.move_to_end(window.entity)
            row = window.input.values[-1].copy()
            past.append(_Seen(window.end_s, window.score, window.p_value, row))

    def carry_out(self, effects: Sequence[Effect]) -> list[Effect]:
        """Keep what a detection machine wants kept; returns the other effects, which come after it."""
        rest = []
        for effect in effects:
            if isinstance(effect, KeepEvidence):
                self._keep(effect)
            else:
                rest.append(effect)
        return rest

    def keep_weights(self, release: VerifiedRelease, data: bytes, running: str) -> None:
        """Keep a release's weights; see `EvidenceStore.keep_weights`."""
        try:
            self._store.keep_weights(release, data, running)
        except (TransientError, ConfigError) as fault:
            self._warn(fault)

    def _keep(self, effect: KeepEvidence) -> None:
        evidence = Evidence.of(effect.alert, effect.window, self._schema, self._past_of(effect.window.entity))
        try:
            gone = self._store.keep(evidence)
        except (TransientError, RefusedError, ConfigError) as fault:
            self._metrics.inc("evidence", self._task, "damaged" if isinstance(fault, ConfigError) else "no-room")
            self._warn(fault)
            return
        self._warned = ""
        self._metrics.inc("evidence", self._task, "kept")
        if gone:
            self._metrics.inc("evidence", self._task, "made-room", by=gone)

    def _past_of(self, entity: str) -> Past:
        seen = self._past.get(entity, ())
        columns = len(self._schema.columns)
        return Past(
            np.array([each.end_s for each in seen]),
            np.array([each.score for each in seen]),
            np.array([each.p_value for each in seen]),
            np.array([each.row for each in seen], np.float32).reshape(-1, columns),
        )

    def _warn(self, fault: Exception) -> None:
        """Say a thing once until it is over: a full disk would say it with every alert."""
        if str(fault) != self._warned:
            self._warned = str(fault)
            log.warning("%s: %s", self._task, fault)
