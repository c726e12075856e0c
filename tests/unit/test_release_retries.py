"""A release that cannot be made just now is tried again, and one that cannot be made at all ends its round."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from vedette_aggregator import release_attempts
from vedette_aggregator.countersigning import AwaitsValidatorError
from vedette_aggregator.publication import Publication
from vedette_aggregator.release_attempts import attempt_release
from vedette_aggregator.round_events import Released, ReleaseFailed
from vedette_schemas.errors import ConfigError, RefusedError, TransientError

RELEASED = Released(1, "a" * 64, "b" * 64)
MADE = (RELEASED, Publication({}, {}))
EFFECT: Any = SimpleNamespace(candidate="candidate", plan=b"")


class Making:
    """What building and signing does: the faults one after the other, then a release."""

    def __init__(self, *faults: Exception, signed_late: bool = False) -> None:
        self._faults, self._signed_late = list(faults), signed_late
        self.attempts = 0
        self.given_up: list[str] = []

    def release(self, *_: object) -> tuple[Released, Publication]:
        self.attempts += 1
        if self._faults:
            raise self._faults.pop(0)
        return MADE

    def give_up(self, _: object, reason: str) -> tuple[Released, Publication] | None:
        self.given_up.append(reason)
        return MADE if self._signed_late else None

    async def _follow_releases(self, task: str) -> None:
        assert isinstance(self.heard[-1], Released | ReleaseFailed), "while it is being made nothing is followed"
        self.followed.append(task)
        raise ConfigError("a damaged repository ends no rounds")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_attempts, "RETRY_S", 0.0)


def attempt(making: Making, patience_s: float = 60.0) -> Any:
    return asyncio.run(attempt_release(making, "network", EFFECT, patience_s))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fault", [TransientError("disk full"), ConfigError("a key is missing"), AwaitsValidatorError("not signed")]
)
def test_what_can_be_mended_is_waited_for(fault: Exception) -> None:
    making = Making(fault)
    assert attempt(making) == MADE
    assert (making.attempts, making.given_up) == (2, [])


@pytest.mark.parametrize("fault", [RefusedError("no", rule="limit"), KeyError("tensor"), MemoryError()])
def test_what_would_fail_again_ends_the_round_and_not_all_rounds(fault: Exception) -> None:
    making = Making(fault)
    assert isinstance(attempt(making), ReleaseFailed)
    assert making.attempts == 1


@pytest.mark.parametrize("signed_late", [False, True])
def test_a_validator_that_says_nothing_is_not_waited_for_for_ever(signed_late: bool) -> None:
    making = Making(AwaitsValidatorError("not signed"), TransientError("disk full"), signed_late=signed_late)
    made = attempt(making, patience_s=0.0)
    assert making.attempts == 1
    assert making.given_up == ["the validator said nothing for 0 s; see `vedette validator run`"]
    assert (made == MADE) if signed_late else (made == ReleaseFailed(making.given_up[0]))


def test_other_waits_do_not_use_up_the_patience_with_a_validator() -> None:
    making = Making(TransientError("disk full"), TransientError("disk full"))
    assert attempt(making, patience_s=0.0) == MADE
