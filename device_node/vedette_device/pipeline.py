"""One detector at work: windows in, alerts out, at the source's own pace."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any, Final

import msgpack

from vedette_core.learning.sketch import ScoreSketch
from vedette_core.machine import Effect, Publish
from vedette_core.runtime.metrics import Metrics
from vedette_core.runtime.storage import StateStore
from vedette_device.acceptances import Acceptances
from vedette_device.behaviour_stream import BehaviourStream
from vedette_device.detection_machine import DetectionMachine, DetectionSettings, WindowScored
from vedette_device.detector import Detector
from vedette_device.detector_settings import DetectorSettings
from vedette_device.evidence_keeper import EvidenceKeeper
from vedette_device.evidence_store import EvidenceStore
from vedette_device.features import Window
from vedette_device.inference import LoadedModel
from vedette_device.settings import DetectorSection, DeviceSettings, NetworkSection
from vedette_device.sources import SourceError
from vedette_device.streams import open_stream
from vedette_device.verified_release import VerifiedRelease
from vedette_schemas.alert import AlertModel
from vedette_schemas.errors import PeerError, RefusedError, TransientError
from vedette_schemas.telemetry import DetectorReport

log = logging.getLogger("vedette.detector")

SAVE_S: Final = 300.0
"""Seconds between two copies of a detector's state: what a crash may cost of the learning phase."""
BREATH_WINDOWS: Final = 64
"""Windows after which other work of the process gets its turn."""
REFUSED_MAX: Final = 32
"""Reasons in a report; sources have fewer."""
_DELIVERED: Final = frozenset(
    {"packets", "rows", "flows", "lines", "window_packets", "window_windows", "window_rows", "window_flows", "row_rows"}
)

CarryOut = Callable[[Sequence[Effect]], Awaitable[None]]


class Pipeline:
    """A source, its detector and its alerts.

    Args:
        settings: the device's settings.
        section: the detector's table in them.
        store: where the detector's state is kept.
        metrics: the device's metrics.
        evidence: where evidence of alerts is kept; without it, none is.

    Raises:
        ConfigError: the source cannot be opened.
    """

    def __init__(
        self,
        settings: DeviceSettings,
        section: DetectorSection,
        store: StateStore,
        metrics: Metrics,
        evidence: EvidenceStore | None = None,
    ) -> None:
        self.task = section.task
        self._section, self._store, self._metrics = section, store, metrics
        self._position = store.get(f"source/{section.task}")
        self._stream = open_stream(section, self._position)
        self.schema = self._stream.schema
        self.use_case = self.schema.use_case
        self._names = self._stream.names if isinstance(self._stream, BehaviourStream) else None
        self.detector = self._restore_detector()
        self._restore_names()
        self._evidence = None if evidence is None else EvidenceKeeper(evidence, metrics, self.task, self.schema)
        self.detector.gives_inputs = evidence is not None and evidence.enabled
        self.machine = DetectionMachine(
            settings.site,
            settings.device,
            self.use_case,
            self.task,
            DetectionSettings(**section.alerts.model_dump()),
        )
        self._acceptances = Acceptances(self.task, self.detector, self.machine, store, metrics, self.save)
        self.on_collected: Callable[[], None] | None = None
        self.on_scored: Callable[[int], None] | None = None
        self.on_fault: Callable[[Exception], None] | None = None
        self.fault: SourceError | None = None
        self._version = 0
        self._installed = asyncio.Event()
        self._alerts_opened = 0
        self._first_scored_s = self._last_scored_s = 0.0
        self._pace: tuple[float, float] | None = None
        self._counted: dict[str, int] = {}
        self._saved_at = time.monotonic()

    @property
    def recorded(self) -> bool:
        """Whether the source is a finished recording."""
        return self._stream.recorded

    @property
    def waits(self) -> bool:
        """Whether a replay waits for a release, so that no live window can show what the model is worth."""
        return self.recorded and self._version < self._section.replay.wait_for_release

    def install(self, model: LoadedModel, version: int) -> None:
        """Score with a model from now on.

        Raises:
            PeerError: it does not fit this detector's schema; what was active stays so.
        """
        if model.schema.digest != self.schema.digest:
            raise PeerError(
                f"model {model.sha256[:12]}: {self.schema.difference(model.schema)}; found in the model, expected here",
                reason="schema",
            )
        self.detector.install(model.backend, AlertModel(task=self.task, version=version, digest=model.sha256[:16]))
        self._version = version
        self._metrics.set("release_version", self.task, value=version)
        self.save()
        self._installed.set()

    def recalibrate(self) -> int:
        """Measure the active model anew; see `Detector.recalibrate`.

        Returns:
            Windows that it was measured on.

        Raises:
            RefusedError: an alert is open, or there is nothing to recalibrate.
        """
        if self.machine.open_entities:
            raise RefusedError(
                "found an alert that is open, expected none: what it is about is not benign", rule="alert"
            )
        windows = self.detector.recalibrate()
        self.save()
        return windows

    def cold_start(self, version: int, sketch: bytes) -> None:
        """Score with the fleet's scores until the own calibration is complete; see `Detector.begin_cold`.

        Raises:
            PeerError: a sketch that is none.
            RefusedError: it is about another release, or not needed.
        """
        if version != self._version:
            raise RefusedError(f"found scores of release {version}, expected {self._version}", rule="version")
        self.detector.begin_cold(ScoreSketch.from_bytes(sketch))

    def keep_weights(self, release: VerifiedRelease, data: bytes) -> None:
        """Keep the weights file of a verified release, to explain by what its artifacts score."""
        if self._evidence is not None:
            model = self.detector.model
            self._evidence.keep_weights(release, data, "" if model is None else model.digest)

    def uninstall(self) -> None:
        """Score nothing until another model is installed."""
        self.detector.uninstall()
        self._version = 0
        self._metrics.set("release_version", self.task, value=0)

    async def run(self, carry_out: CarryOut) -> None:
        """Read the source to its end, or for ever."""
        await self._stream.start()
        say = partial(self._say, carry_out)
        looking = asyncio.create_task(self._acceptances.run(say), name=f"acceptances-{self.task}")
        try:
            await carry_out(self.machine.restore(self._store.all(self.machine.prefix)))
            await self._acceptances.look(say)
            self._announce_collected()
            seen = 0
            while (windows := await self._read()) is not None:
                for tick in _ticks(windows):
                    await self._take_turn(tick[0].end_s)
                    async with self._acceptances.turn:
                        await self._feed(tick, carry_out)
                    seen += len(tick)
                    if seen >= BREATH_WINDOWS:
                        seen = 0
                        await asyncio.sleep(0)
                if time.monotonic() - self._saved_at > SAVE_S:
                    self.save()
                self._count_records()
            await self._acceptances.look(say)
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
            self._count_records()
            self.save()
            await self._stream.close()

    def report(self) -> DetectorReport:
        """What the detector did, for the node report."""
        counters = self._stream.counters()
        self.detector.drift_watch.take_records(counters)
        sketch, model = self.detector.score_sketch(), self.detector.model
        refused = {name: n for name, n in counters.items() if n and name not in _DELIVERED}
        for name, count in self.detector.refused.items():
            refused[name] = refused.get(name, 0) + count
        return DetectorReport(
            task=self.task,
            phase=self.detector.phase,
            windows=self.detector.windows_scored,
            refused=dict(sorted(refused.items())[:REFUSED_MAX]),
            p_histogram=tuple(self.detector.p_histogram),
            score_us_p50=self.detector.score_us(0.5),
            score_us_p99=self.detector.score_us(0.99),
            alerts_opened=self._alerts_opened,
            first_scored_s=self._first_scored_s,
            last_scored_s=self._last_scored_s,
            model_version=model.version if model and sketch else 0,
            sketch=sketch.to_bytes() if sketch else b"",
            drift=self.detector.drift(),
        )

    def save(self) -> None:
        """Keep the detector's state over a restart; without room on the disk the last copy stays."""
        self._saved_at = time.monotonic()
        position = self._stream.position()
        try:
            self._store.put(self._key, bytes(msgpack.packb(self.detector.to_state())))
            if self._names is not None:
                self._store.put(self._names_key, bytes(msgpack.packb(self._names.to_state())))
            # Behind the state: a crash between the two reads windows twice, which the detector notices, and loses none.
            if position != self._position:
                self._store.put(f"source/{self.task}", position)
                self._position = position
        except TransientError as error:
            log.warning("%s: %s", self.task, error)

    @property
    def _key(self) -> str:
        return f"detector/{self.task}"

    @property
    def _names_key(self) -> str:
        return f"names/{self.task}"

    def _restore_names(self) -> None:
        saved = self._store.get(self._names_key) if self._names is not None else None
        if self._names is None or saved is None:
            return
        try:
            self._names.restore(msgpack.unpackb(saved))
        except (PeerError, ValueError, msgpack.UnpackException) as fault:
            log.warning("%s: %s; alerts name columns until names are known again", self.task, fault)

    def _restore_detector(self) -> Detector:
        section = self._section
        settings = DetectorSettings(
            section.training_windows,
            section.calibration_windows,
            half_life_windows=section.alerts.half_life_windows,
            magnitude_factor=section.alerts.magnitude_factor,
            accept_windows=section.accept_windows if isinstance(section, NetworkSection) else 0,
        )
        saved = self._store.get(self._key)
        if saved is not None:
            try:
                state: dict[str, Any] = msgpack.unpackb(saved, strict_map_key=False)
                return Detector.from_state(self.schema, settings, state, timer=time.perf_counter_ns)
            except (PeerError, ValueError, msgpack.UnpackException) as fault:
                log.warning("%s: %s; learning starts anew", self.task, fault)
        return Detector(self.schema, settings, timer=time.perf_counter_ns)

    async def _read(self) -> list[Window] | None:
        try:
            return await self._stream.read()
        except SourceError as error:
            log.error("%s: %s", self.task, error)
            self.fault = error
            return None

    async def _take_turn(self, end_s: float) -> None:
        """Let a recording wait for its release, then keep to its pace."""
        replay = self._section.replay
        if not self.recorded:
            return
        if replay.wait_for_release and not self.detector.is_calibratable:
            return
        while self.waits:
            self._installed.clear()
            await self._installed.wait()
        if not replay.speed:
            return
        now = time.monotonic()
        if self._pace is None:
            self._pace = (now, end_s)
        ahead = self._pace[0] + (end_s - self._pace[1]) / replay.speed - now
        if ahead > 0:
            await asyncio.sleep(ahead)

    async def _feed(self, tick: Sequence[Window], carry_out: CarryOut) -> None:
        before = (self.detector.phase, self.detector.is_calibratable)
        started = time.perf_counter()
        try:
            scored = self.detector.feed(tick, frozen=bool(self.machine.open_entities))
        except (FloatingPointError, ValueError) as fault:
            log.exception("%s: scoring failed", self.task)
            if self.on_fault is not None:
                self.on_fault(fault)
            return
        if self._names is not None:
            scored = self._names.take(tick, scored, is_armed=before[0] == "armed")
        if (self.detector.phase, self.detector.is_calibratable) != before:
            log.info("%s: %s, %d training rows", self.task, self.detector.phase, self.detector.training_rows)
            self.save()
            self._announce_collected()
        if not scored:
            return
        self._first_scored_s = self._first_scored_s or scored[0].end_s
        self._last_scored_s = scored[-1].end_s
        self._metrics.inc("windows_scored", self.task, by=len(scored))
        self._metrics.observe("score_seconds", self.task, value=(time.perf_counter() - started) / len(scored))
        if self._evidence is not None:
            self._evidence.observe(scored)
        for window in scored:
            await self._say(carry_out, self.machine.handle(WindowScored(window), time.time()))
        if self.on_scored is not None:
            self.on_scored(len(scored))

    async def _say(self, carry_out: CarryOut, effects: Sequence[Effect]) -> None:
        self._count_alerts(effects)
        await carry_out(effects if self._evidence is None else self._evidence.carry_out(effects))

    def _count_alerts(self, effects: Sequence[Effect]) -> None:
        """Count what is new: what `run` publishes again after a restart was counted when it was."""
        for effect in effects:
            if isinstance(effect, Publish):
                document = json.loads(effect.payload)
                self._alerts_opened += document["state"] == "open"
                self._metrics.inc("alerts", self.task, document["state"], document["severity"])

    def _announce_collected(self) -> None:
        if self.detector.training_rows and self.on_collected is not None:
            self.on_collected()

    def _count_records(self) -> None:
        for name, count in self._stream.counters().items():
            new = count - self._counted.get(name, 0)
            if new > 0:
                self._metrics.inc("source_records", self.task, name, by=new)
                self._counted[name] = count


def _ticks(windows: Sequence[Window]) -> Iterator[list[Window]]:
    """Windows that end together are scored together."""
    for _, tick in groupby(windows, key=lambda window: window.end_s):
        yield list(tick)
