"""Carries out what the update machine of a task asks for: download, stage, self-test, activate, confirm, fall back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from vedette_core.learning.layout import Float32
from vedette_core.machine import Effect, Event
from vedette_device.inference import LITERT, TFLITE_RUNTIME, LoadedModel, available_interpreters, open_model
from vedette_device.model_slots import ModelSlots
from vedette_device.pipeline import Pipeline
from vedette_device.trust import TrustClient
from vedette_device.update_events import (
    Activate,
    Activated,
    ActivationFailed,
    ArtifactStaged,
    BootedWith,
    Confirm,
    DropRevoked,
    FallBack,
    FetchFailed,
    InstalledModel,
    ReleasesRevoked,
    ReportState,
    SelfTest,
    SelfTestFailed,
    SelfTestPassed,
    Stage,
    TrialConfirmed,
    TrialFailed,
)
from vedette_device.update_machine import UpdateMachine
from vedette_device.update_state import Phase
from vedette_device.verified_release import Backend
from vedette_schemas.errors import ConfigError, PeerError, RefusedError, TransientError, VedetteError

log = logging.getLogger("vedette.updates")

TRIAL_WINDOWS: Final = 20
"""Live windows that a model on trial must score: more than one input's history, so that each saw fresh data only."""
SELF_TEST_ROWS: Final = 256
SELF_TEST_LOSS_FACTOR: Final = 4.0
"""A model whose loss on recorded benign windows is this many times that of answering zero everywhere is broken."""

CarryOut = Callable[[Sequence[Effect]], Awaitable[None]]


class Updates:
    """The releases of one task on this device.

    Args:
        device: the device's id.
        pipeline: the task's detector.
        directory: where its slots lie.
        saved: what the machine persisted.
        trust: finds and downloads releases.
        report: called when the active model changed.
        model_bytes_max: largest artifact that this device has memory for; 0 is no limit.
    """

    def __init__(
        self,
        device: str,
        pipeline: Pipeline,
        directory: Path,
        saved: bytes | None,
        trust: TrustClient,
        report: Callable[[], None],
        model_bytes_max: int = 0,
    ) -> None:
        self.task = pipeline.task
        self._pipeline, self._trust, self._report = pipeline, trust, report
        self._slots = ModelSlots(directory)
        if self._slots.damaged:
            log.warning("%s: %s", self.task, self._slots.damaged)
        self.machine = UpdateMachine(
            self.task, device, backends(), pipeline.schema.digest, saved, model_bytes_max=model_bytes_max
        )
        self._tested: LoadedModel | None = None
        self._running: InstalledModel | None = None
        self._trial: tuple[InstalledModel, int] | None = None
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        pipeline.on_scored = self._scored
        pipeline.on_fault = self._failed_live

    @property
    def active(self) -> InstalledModel | None:
        """The model that runs."""
        return self.machine.active

    def post(self, event: Event) -> None:
        """Give the machine an event; what it answers is carried out by `run`, one after the other."""
        self._events.put_nowait(event)

    async def start(self, carry_out: CarryOut) -> None:
        """Look at the slots, and run what is in them."""
        await carry_out(self.machine.handle(BootedWith(self._slots.view()), time.time()))
        revocation = self._trust.revoked(self.task)
        if revocation.sha256:
            # The process may have ended between the metadata and the machine, which was waiting for a download.
            await carry_out(self.machine.handle(ReleasesRevoked(revocation), time.time()))
        if self.active is not None:
            if self.machine.phase is Phase.TRIAL:
                self._trial = (self.active, 0)
            try:
                self._install(self.active)
            except VedetteError as error:
                log.error("%s: %s", self.task, error)

    async def run(self, carry_out: CarryOut) -> None:
        """Take events until cancelled. A slot has one writer: nothing else carries out this task's effects."""
        while True:
            event = await self._events.get()
            await carry_out(self.machine.handle(event, time.time()))

    async def special(self, effect: Effect) -> None:
        """Carry out an effect of the machine that only this class knows; its answer is posted."""
        match effect:
            case Stage():
                self.post(await self._stage(effect))
            case SelfTest(model=model):
                self.post(await self._self_test(model))
            case Activate(model=model):
                self.post(self._activate(model))
                self._confirm_if_waiting()
            case Confirm(model=model):
                self._trial = None
                try:
                    self._slots.confirm(model)
                except VedetteError as error:
                    log.warning("%s: %s", self.task, error)
            case FallBack():
                self._fall_back()
            case DropRevoked():
                self._drop(effect.sha256, effect.successor)
            case ReportState():
                self._report()
            case _:
                raise AssertionError(f"nobody carries out {effect!r}")

    async def _stage(self, effect: Stage) -> Event:
        model = effect.model
        try:
            if self._slots.holds(model):
                self._slots.stage_again(model)
            else:
                data = self._slots.held(model.sha256)
                if data is None:
                    data = await asyncio.to_thread(self._trust.download, effect.target, self._slots.held)
                self._slots.stage(model, data)
        except (TransientError, ConfigError) as error:
            # A disk that went read-only must not end the node: it detects with what it has.
            return FetchFailed(model.sha256, str(error), transient=True)
        except (PeerError, RefusedError) as error:
            return FetchFailed(model.sha256, str(error), transient=False)
        return ArtifactStaged(model.sha256)

    async def _self_test(self, model: InstalledModel) -> Event:
        try:
            loaded = open_model(self._slots.load(model), sha256=model.sha256)
            recorded = self._pipeline.detector.training_matrix(loaded.backend.network)[-SELF_TEST_ROWS:]
            await asyncio.to_thread(_check, loaded, recorded)
        except (VedetteError, ValueError, RuntimeError) as fault:
            return SelfTestFailed(model.sha256, str(fault)[:200])
        self._tested = loaded
        return SelfTestPassed(model.sha256)

    def _activate(self, model: InstalledModel) -> Event:
        try:
            self._slots.activate(model)
            self._install(model)
        except VedetteError as error:
            return ActivationFailed(model.sha256, str(error)[:200])
        self._trial = (model, 0)
        return Activated(model.sha256)

    def _install(self, model: InstalledModel) -> None:
        loaded, self._tested = self._tested, None
        if loaded is None or loaded.sha256 != model.sha256:
            loaded = open_model(self._slots.load(model), sha256=model.sha256)
        self._pipeline.install(loaded, model.version)
        self._running = model
        log.info("%s: release %d is active (%s, %s)", self.task, model.version, loaded.variant, loaded.backend.name)

    def _fall_back(self) -> None:
        self._trial = None
        try:
            good = self._slots.fall_back()
            if good is not None:
                self._install(good)
            else:
                self._running = None
                self._pipeline.uninstall()
        except VedetteError as error:
            log.error("%s: %s", self.task, error)

    def _drop(self, digests: frozenset[str], successor: str) -> None:
        """Stop running what is revoked before its slot is emptied: a full disk must not keep it running."""
        running = self._running
        if running is not None and running.sha256 in digests:
            self._trial = None
            self._running = None
            self._pipeline.uninstall()
        if self._tested is not None and self._tested.sha256 in digests:
            self._tested = None
        try:
            good = self._slots.drop(digests, successor)
        except VedetteError as error:  # it is done at the next start; the last good one runs all the same
            log.error("%s: %s", self.task, error)
            view = self._slots.view()
            good = next((m for m in (view.spare, view.active) if m is not None and m.sha256 == successor), None)
        try:
            if good is not None and self._running is None:
                self._install(good)
        except VedetteError as error:
            log.error("%s: %s", self.task, error)

    def _scored(self, windows: int) -> None:
        if self._trial is None:
            return
        model, seen = self._trial
        self._trial = (model, seen + windows)
        if seen < TRIAL_WINDOWS <= seen + windows:
            self.post(TrialConfirmed(model.sha256))

    def _confirm_if_waiting(self) -> None:
        """A replay that waits for a later release has no live windows: the calibration stretch was the trial."""
        if self._trial is not None and self._pipeline.waits:
            self.post(TrialConfirmed(self._trial[0].sha256))

    def _failed_live(self, fault: Exception) -> None:
        if self._trial is not None:
            self.post(TrialFailed(self._trial[0].sha256, str(fault)[:200]))


def backends() -> tuple[Backend, ...]:
    """The back ends that work here, as releases name them."""
    names: dict[str, Backend] = {LITERT: "litert", TFLITE_RUNTIME: "tflite"}
    return (*(names[name] for name in available_interpreters()), "numpy")


def _check(model: LoadedModel, recorded: Float32) -> None:
    """Score recorded benign windows (or, before there are any, zeros) with a model.

    Raises:
        RefusedError: its reconstructions are not finite, or worse than no model at all.
    """
    network = model.backend.network
    rows = recorded if len(recorded) else np.zeros((4, *network.input_shape), np.float32)
    found = model.backend.reconstruct(rows)
    if not np.isfinite(found).all():
        raise RefusedError("found reconstructions that are not finite", rule="self-test")
    if len(recorded):
        target = network.target(rows)
        loss, zero = float(np.mean(np.square(found - target))), float(np.mean(np.square(target)))
        if loss > SELF_TEST_LOSS_FACTOR * max(zero, 1e-6):
            raise RefusedError(
                f"found a loss of {loss:.3g} on {len(recorded)} recorded windows, expected at most "
                f"{SELF_TEST_LOSS_FACTOR:g} times the {zero:.3g} of no model",
                rule="self-test",
            )
