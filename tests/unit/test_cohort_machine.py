"""A device's side of a rollout, with its update machine where going back is the question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from test_update_machine import Bench, digest, release

from vedette_core.crypto.cohorts import bucket
from vedette_core.machine import Count, Effect, Persist, Tick
from vedette_device.cohort_machine import Announce, CohortMachine, LookAgain, ReleasesListed, RolloutReceived
from vedette_device.update_events import (
    Activated,
    ArtifactStaged,
    ReleaseAnnounced,
    SelfTestFailed,
    SelfTestPassed,
    TrialConfirmed,
)
from vedette_schemas.rollout import PPM, RolloutPhase, RolloutPin, RolloutState

SALT = bytes(range(16))
DEVICE = "gw-01"
PLACE = bucket(SALT, DEVICE)
IN, OUT = PLACE + 1, PLACE


def state(seq: int, **changes: Any) -> RolloutState:
    values: dict[str, Any] = {
        "task": "network",
        "rollout": 1,
        "seq": seq,
        "candidate": 2,
        "baseline": 1,
        "share_ppm": IN,
        "control_ppm": 0,
        "salt": SALT,
        "state": RolloutPhase.RUNNING,
        "issued_s": 0.0,
        "expires_s": 1000.0,
    }
    return RolloutState(**{**values, **changes})


def listing(active: int = 1, versions: Sequence[int] = (1, 2), metadata: int = 5) -> ReleasesListed:
    listed = {v: release(v, metadata) for v in versions}
    return ReleasesListed(listed[active], listed)


class Device:
    """A cohort machine and what it persisted."""

    def __init__(self) -> None:
        self.saved: bytes | None = None
        self.now = 10.0
        self.restart()

    def restart(self) -> None:
        self.machine = CohortMachine("network", DEVICE, self.saved)

    def send(self, event: Any) -> list[Effect]:
        effects = self.machine.handle(event, self.now)
        for effect in effects:
            if isinstance(effect, Persist):
                assert effect.key == "rollout/network"
                self.saved = effect.value
        return effects


@pytest.fixture
def device() -> Device:
    device = Device()
    device.send(listing())
    return device


def announced(effects: Sequence[Effect]) -> list[tuple[int, tuple[int, ...]]]:
    return [(e.release.version, e.release.metadata_version) for e in effects if isinstance(e, Announce)]


def outcomes(effects: Sequence[Effect]) -> list[str]:
    return [e.outcome for e in effects if isinstance(e, Count)]


def test_without_a_rollout_the_active_release_counts() -> None:
    device = Device()
    assert announced(device.send(listing(2))) == [(2, (1, 5))]
    assert announced(device.send(listing(0, (0, 1)))) == [], "release 0 has learnt nothing"


def test_a_device_of_the_canary_goes_to_the_candidate_and_others_do_not(device: Device) -> None:
    assert announced(device.send(RolloutReceived(state(3)))) == [(2, (1, 5, 3))]
    other = Device()
    other.send(listing())
    assert announced(other.send(RolloutReceived(state(3, share_ppm=OUT)))) == [(1, (1, 5, 3))]


@pytest.mark.parametrize("end", [RolloutPhase.ABORTED, RolloutPhase.ROLLED_BACK])
def test_an_ended_rollout_goes_back_with_a_higher_number(device: Device, end: RolloutPhase) -> None:
    device.send(RolloutReceived(state(3)))
    assert announced(device.send(RolloutReceived(state(4, state=end)))) == [(1, (1, 5, 4))]


def test_a_promoted_candidate_is_for_everybody(device: Device) -> None:
    promoted = state(3, share_ppm=OUT, state=RolloutPhase.PROMOTED)
    assert announced(device.send(RolloutReceived(promoted))) == [(2, (1, 5, 3))]


def test_newer_metadata_leave_a_promoted_candidate_behind(device: Device) -> None:
    device.send(RolloutReceived(state(3, state=RolloutPhase.PROMOTED)))
    assert announced(device.send(listing(3, (1, 2, 3), metadata=7))) == [(3, (1, 7, 3))]


def test_older_states_are_refused_over_restarts(device: Device) -> None:
    device.send(RolloutReceived(state(4, state=RolloutPhase.ROLLED_BACK)))
    for _ in range(2):
        assert outcomes(device.send(RolloutReceived(state(3)))) == ["stale"]
        assert device.send(RolloutReceived(state(4, state=RolloutPhase.ROLLED_BACK))) == []
        assert outcomes(device.send(RolloutReceived(state(4)))) == ["stale"], "the same number, something else"
        device.restart()
        assert announced(device.send(listing())) == [(1, (1, 5, 4))]


def test_a_pause_stops_who_has_not_begun_only(device: Device) -> None:
    paused = {"state": RolloutPhase.PAUSED}
    assert announced(device.send(RolloutReceived(state(3, **paused)))) == [(1, (1, 5, 3))]
    assert announced(device.send(RolloutReceived(state(4)))) == [(2, (1, 5, 4))]
    assert announced(device.send(RolloutReceived(state(5, **paused)))) == [(2, (1, 5, 5))]
    device.restart()
    assert announced(device.send(listing())) == [(2, (1, 5, 5))], "it had begun before the restart"
    again = state(6, rollout=2, candidate=3, **paused)
    assert announced([*device.send(RolloutReceived(again)), *device.send(listing(1, (1, 2, 3)))])[-1] == (1, (1, 5, 6))


def test_an_unlisted_candidate_is_looked_for_once_and_never_run(device: Device) -> None:
    effects = device.send(RolloutReceived(state(3, candidate=7)))
    assert [e for e in effects if isinstance(e, LookAgain)] == [LookAgain("network")]
    assert announced(effects) == []
    effects = device.send(listing(metadata=6))
    assert outcomes(effects) == ["unlisted"]
    assert announced(effects) == [(1, (1, 6, 3))]


def test_a_pin_is_stronger_than_a_cohort(device: Device) -> None:
    pins = (RolloutPin(device=DEVICE, version=1),)
    assert announced(device.send(RolloutReceived(state(3, pins=pins)))) == [(1, (1, 5, 3))]
    pins = (RolloutPin(device=DEVICE, version=2),)
    assert announced(device.send(RolloutReceived(state(4, pins=pins, share_ppm=OUT)))) == [(2, (1, 5, 4))]


def test_a_state_that_expires_before_metadata_come_asks_for_no_more_ticks(device: Device) -> None:
    device.send(RolloutReceived(state(3)))
    device.restart()
    assert device.machine.next_deadline() == 1000.0
    device.now = 1000.0
    assert device.send(Tick()) == []
    assert device.machine.next_deadline() is None
    effects = device.send(listing())
    assert (outcomes(effects), announced(effects)) == (["expired"], [(1, (1, 5))])


def test_an_expired_state_decides_nothing(device: Device) -> None:
    device.send(RolloutReceived(state(3)))
    assert device.machine.next_deadline() == 1000.0
    device.now = 1000.0
    effects = device.send(Tick())
    assert outcomes(effects) == ["expired"]
    assert announced(effects) == [(1, (1, 5))]
    assert device.machine.next_deadline() is None


def test_expiry_takes_nobody_back(device: Device) -> None:
    """With the update machine: what runs stays until something newer is signed."""
    bench = Bench()
    bench.boot()
    bench.to_good(1)
    for effect in device.send(RolloutReceived(state(3))):
        if isinstance(effect, Announce):
            bench.send(ReleaseAnnounced(effect.release))
    bench.send(ArtifactStaged(digest(2)))
    for event in (SelfTestPassed(digest(2)), Activated(digest(2)), TrialConfirmed(digest(2))):
        bench.send(event)
    assert bench.machine.outcome(2) == "confirmed"
    device.now = 2000.0
    for effect in device.send(Tick()):
        if isinstance(effect, Announce):
            assert "stale" in outcomes(bench.send(ReleaseAnnounced(effect.release)))
    assert bench.machine.active is not None
    assert bench.machine.active.version == 2
    for effect in device.send(RolloutReceived(state(9, state=RolloutPhase.ROLLED_BACK, expires_s=5000.0))):
        if isinstance(effect, Announce):
            assert "started" in outcomes(bench.send(ReleaseAnnounced(effect.release)))


def test_outcomes_as_a_device_reports_them() -> None:
    bench = Bench()
    bench.boot()
    assert bench.machine.outcome(2) == "none"
    bench.send(ReleaseAnnounced(release(2)))
    assert bench.machine.outcome(2) == "pending"
    for _ in range(3):
        bench.send(ArtifactStaged(digest(2)))
        effects = bench.send(SelfTestFailed(digest(2), "no"))
        if bench.machine.next_deadline() is not None:
            bench.wait()
    assert bench.machine.outcome(2) == "failed"
    assert "ReportState" in [type(e).__name__ for e in effects], "the aggregator must hear of it"
    bench.to_trial(3)
    assert bench.machine.outcome(3) == "trial"


def test_another_tasks_state_is_discarded(device: Device) -> None:
    assert outcomes(device.send(RolloutReceived(state(3, task="sensor")))) == ["discarded"]


def test_a_damaged_record_is_forgotten_and_said() -> None:
    device = Device()
    device.saved = b"\xc1"
    device.restart()
    effects = device.send(listing())
    assert [type(e).__name__ for e in effects] == ["Note", "Announce"]


def test_newer_metadata_with_an_older_state_are_newer(device: Device) -> None:
    device.send(RolloutReceived(state(3, share_ppm=OUT)))
    assert announced(device.send(replace(listing(2, metadata=6)))) == [(2, (1, 6, 3))]
    assert (1, 6, 3) > (1, 6) > (1, 5, 99)


def test_a_whole_share_is_everybody(device: Device) -> None:
    assert announced(device.send(RolloutReceived(state(3, share_ppm=PPM)))) == [(2, (1, 5, 3))]
