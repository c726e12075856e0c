"""What an aggregator does now and then: it also puts all retained state out again, unasked."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from vedette_aggregator import service
from vedette_aggregator.service import AggregatorService
from vedette_core.runtime.jobs import Jobs
from vedette_core.runtime.metrics import AGGREGATOR_METRICS, Metrics


class Registry:
    """Nothing to sign; counts how often it was looked at, and holds on to who looks once too often."""

    def __init__(self, looks_max: int) -> None:
        self.looks, self._looks_max = 0, looks_max
        self.over = threading.Event()

    def refresh_timestamp(self, now: float) -> None:
        self.looks += 1
        if self.looks > self._looks_max:
            self.over.wait()


class Housekeeping(AggregatorService):
    """The part of an aggregator that keeps house."""

    def __init__(self, *, connected: bool, looks: int) -> None:
        quiet = SimpleNamespace(look=lambda: None, tick=lambda now: None)
        self._own = self._fleet = quiet  # type: ignore[assignment]
        self._trust, self._machines = SimpleNamespace(look=lambda rounds: None), {}  # type: ignore[assignment]
        self._metrics, self._jobs = Metrics(AGGREGATOR_METRICS), Jobs()
        self.registry = registry = Registry(looks)
        self._registry = cast(Any, registry)
        self._link = SimpleNamespace(connected=connected)  # type: ignore[assignment]
        self.said, self._looks = 0, looks

    async def _publish_again(self) -> None:
        self.said += 1

    async def keep(self) -> None:
        """Keep house until all looks are over, and what each of them was a reason for is done."""
        job = asyncio.create_task(self._keep_house())
        while self.registry.looks <= self._looks:
            await asyncio.sleep(0.001)
        job.cancel()
        self.registry.over.set()


@pytest.mark.parametrize(("connected", "said"), [(True, 2), (False, 0)])
def test_retained_state_is_put_out_again_while_there_is_a_broker(
    monkeypatch: pytest.MonkeyPatch, connected: bool, said: int
) -> None:
    monkeypatch.setattr(service, "HOUSEKEEPING_S", 0.0)
    monkeypatch.setattr(service, "SAID_AGAIN_EVERY", 5)
    house = Housekeeping(connected=connected, looks=2 * 5)
    asyncio.run(house.keep())
    assert house.said == said
