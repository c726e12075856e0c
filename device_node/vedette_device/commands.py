"""Carries out what the aggregator asked of this device."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from vedette_core.machine import Effect, Event
from vedette_core.runtime.metrics import Metrics
from vedette_device.command_machine import ColdStart, CommandMachine, Recalibrate
from vedette_device.pipeline import Pipeline
from vedette_schemas.errors import VedetteError

log = logging.getLogger("vedette.commands")


class Commands:
    """The hands of the command machine.

    Args:
        device: own id.
        pipelines: the detectors, by task.
        saved: what the machine persisted.
        metrics: the device's.
    """

    def __init__(self, device: str, pipelines: Mapping[str, Pipeline], saved: bytes | None, metrics: Metrics) -> None:
        self._machine = CommandMachine(device, pipelines, saved)
        self._pipelines, self._metrics = pipelines, metrics

    async def take(self, event: Event, carry_out: Callable[[Sequence[Effect]], Awaitable[None]]) -> None:
        """Take a command; what it changes is persisted before it is done."""
        effects = self._machine.handle(event, time.time())
        await carry_out([e for e in effects if not isinstance(e, (Recalibrate, ColdStart))])
        for effect in effects:
            if isinstance(effect, Recalibrate):
                self._recalibrate(effect)
            elif isinstance(effect, ColdStart):
                self._cold_start(effect)

    def _recalibrate(self, effect: Recalibrate) -> None:
        try:
            windows = self._pipelines[effect.task].recalibrate()
        except (VedetteError, ValueError) as fault:
            log.warning("%s: not recalibrated: %s", effect.task, fault)
            self._metrics.inc("recalibrations", effect.task, "refused")
        else:
            log.info("%s: recalibrated on %d windows (%s)", effect.task, windows, effect.reason or "no reason given")
            self._metrics.inc("recalibrations", effect.task, "done")

    def _cold_start(self, effect: ColdStart) -> None:
        try:
            self._pipelines[effect.task].cold_start(effect.version, effect.sketch)
        except (VedetteError, ValueError) as fault:
            log.info("%s: no cold start: %s", effect.task, fault)
            self._metrics.inc("cold_starts", effect.task, "refused")
        else:
            log.info("%s: scores release %d with the fleet's scores until it has its own", effect.task, effect.version)
            self._metrics.inc("cold_starts", effect.task, "done")
