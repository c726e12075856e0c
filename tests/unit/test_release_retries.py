"""A release that cannot be made just now is tried again, and one that cannot be made at all ends its round."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from vedette_aggregator import service as service_module
from vedette_aggregator.publication import Publication
from vedette_aggregator.round_events import Released, ReleaseFailed
from vedette_aggregator.service import AggregatorService
from vedette_core.machine import Event
from vedette_core.runtime.metrics import AGGREGATOR_METRICS, Metrics
from vedette_schemas.errors import ConfigError, RefusedError, TransientError

RELEASED = Released(1, "a" * 64, "b" * 64)
EFFECT: Any = SimpleNamespace(
    candidate=SimpleNamespace(metrics={"loss_before": 2.0, "loss_after": 1.0}, contributors=("gw-1",)), plan=b""
)


class Releasing(AggregatorService):
    """The part of an aggregator that releases; `release` is what building and signing does."""

    def __init__(self, release: Callable[[], None]) -> None:
        self.attempts = 0
        self.heard: list[Event] = []
        self.followed: list[str] = []
        self._metrics = Metrics(AGGREGATOR_METRICS)

        def attempt(*_: object) -> tuple[Released, Publication]:
            self.attempts += 1
            if self.attempts == 1:
                release()
            return RELEASED, Publication({}, {})

        self._machines, self._suspicion_min = {"network": None}, {"network": 0.0}  # type: ignore[dict-item]
        self._releases = {"network": SimpleNamespace(release=attempt)}  # type: ignore[dict-item]

    def _put_out(self, publication: Publication) -> None:
        pass

    async def _handle(self, task: str, event: Event) -> None:
        self.heard.append(event)

    async def _follow_releases(self, task: str) -> None:
        assert isinstance(self.heard[-1], Released | ReleaseFailed), "while it is being made nothing is followed"
        self.followed.append(task)
        raise ConfigError("a damaged repository ends no rounds")


def failing(fault: Exception, monkeypatch: pytest.MonkeyPatch) -> Releasing:
    monkeypatch.setattr(service_module, "RELEASE_RETRY_S", 0.0)
    monkeypatch.setattr(service_module, "show_protection", lambda *_: None)

    def raising() -> None:
        raise fault

    service = Releasing(raising)
    asyncio.run(service._release("network", EFFECT))
    return service


@pytest.mark.parametrize("fault", [TransientError("disk full"), ConfigError("a key is missing")])
def test_what_can_be_mended_is_waited_for(fault: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    service = failing(fault, monkeypatch)
    assert (service.attempts, service.heard) == (2, [RELEASED])
    assert service.followed == ["network"], "it may be gone back from already, if a crash came behind its publication"


@pytest.mark.parametrize("fault", [RefusedError("no", rule="limit"), KeyError("tensor"), MemoryError()])
def test_what_would_fail_again_ends_the_round_and_not_all_rounds(
    fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = failing(fault, monkeypatch)
    assert service.attempts == 1
    assert [type(event) for event in service.heard] == [ReleaseFailed]
    assert service.followed == ["network"], "people may have gone back meanwhile: the next round begins from there"
