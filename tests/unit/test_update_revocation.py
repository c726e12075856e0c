"""Revoked releases in the update machine: whatever the phase, what is revoked does not run, and does not come back."""

from __future__ import annotations

import pytest
from test_update_machine import Bench, digest, model, outcomes, release

from vedette_core.machine import Effect, Persist
from vedette_device.update_events import (
    Activate,
    Activated,
    ArtifactStaged,
    DropRevoked,
    FetchFailed,
    ReleaseAnnounced,
    ReleasesRevoked,
    SelfTest,
    SelfTestPassed,
    SlotsView,
    Stage,
)
from vedette_device.update_state import Phase
from vedette_device.verified_release import Revocation


@pytest.fixture
def bench() -> Bench:
    found = Bench()
    found.boot()
    return found


def revoke(*versions: int, metadata: int = 50, root: int = 1) -> ReleasesRevoked:
    return ReleasesRevoked(Revocation("network", (root, metadata), frozenset(map(digest, versions))))


def drops(effects: list[Effect]) -> list[str]:
    return [e.successor for e in effects if isinstance(e, DropRevoked)]


def test_an_active_and_confirmed_release_is_left_for_the_last_good_one(bench: Bench) -> None:
    bench.to_good(1)
    bench.to_good(2)
    effects = bench.send(revoke(2))
    assert drops(effects) == [digest(1)]
    assert bench.machine.active == model(1)
    assert isinstance(effects[0], Persist), "remembered before anything is dropped"
    assert "revoked" in outcomes(effects)


def test_without_a_good_one_nothing_runs(bench: Bench) -> None:
    bench.to_good(1)
    assert drops(bench.send(revoke(1))) == [""]
    assert bench.machine.active is None


def test_the_one_to_fall_back_to_is_dropped_too(bench: Bench) -> None:
    bench.to_good(1)
    bench.to_good(2)
    assert drops(bench.send(revoke(1))) == [digest(2)]
    assert bench.machine.active == model(2)
    assert drops(bench.send(revoke(1, 2, metadata=51))) == [""], "there is nothing left to fall back to"


def test_on_trial(bench: Bench) -> None:
    bench.to_good(1)
    bench.to_trial(2)
    effects = bench.send(revoke(2))
    assert drops(effects) == [digest(1)]
    assert (bench.machine.phase, bench.machine.active) == (Phase.IDLE, model(1))


@pytest.mark.parametrize("phase", [Phase.STAGING, Phase.WAITING, Phase.TESTING, Phase.ACTIVATING])
@pytest.mark.parametrize("which", ["candidate", "active", "both"])
def test_on_its_way(bench: Bench, phase: Phase, which: str) -> None:
    bench.to_good(1)
    bench.to_good(2)
    bench.send(ReleaseAnnounced(release(3)))
    steps = {
        Phase.STAGING: [],
        Phase.WAITING: [FetchFailed(digest(3), "away", transient=True)],
        Phase.TESTING: [ArtifactStaged(digest(3))],
        Phase.ACTIVATING: [ArtifactStaged(digest(3)), SelfTestPassed(digest(3))],
    }
    for event in steps[phase]:
        bench.send(event)
    assert bench.machine.phase is phase
    versions = {"candidate": (3,), "active": (2,), "both": (2, 3)}[which]
    effects = bench.send(revoke(*versions))
    assert drops(effects)
    for event in (ArtifactStaged(digest(3)), SelfTestPassed(digest(3)), Activated(digest(3))):
        effects += bench.send(event)  # what was under way answers late
    active = bench.machine.active
    assert active is None or active.version not in versions
    if which == "active" and phase is Phase.ACTIVATING:
        assert active == model(3), "it was switched to already, and is sound"
    elif which == "active":
        again = bench.send(ReleaseAnnounced(release(3, metadata=50)))
        assert any(isinstance(e, Stage) for e in again), "what was given up starts anew"
    else:
        assert not any(isinstance(e, SelfTest | Activate) for e in effects)


def test_a_revoked_release_is_refused_when_it_is_announced(bench: Bench) -> None:
    bench.send(revoke(5))
    effects = bench.send(ReleaseAnnounced(release(5, metadata=60)))
    assert "refused" in outcomes(effects)
    assert not any(isinstance(e, Stage) for e in effects)


def test_a_crash_between_remembering_and_dropping_is_finished_at_boot(bench: Bench) -> None:
    bench.to_good(1)
    bench.to_good(2)
    bench.send(revoke(2))  # the slots were not touched
    effects = bench.boot(SlotsView(active=model(2), spare=model(1), spare_good=True))
    assert drops(effects) == [digest(1)]
    assert bench.machine.active == model(1)
    effects = bench.boot(SlotsView(active=model(1), spare=model(2), spare_good=True))
    assert drops(effects) == [digest(1)], "also where it was only kept"


def test_what_a_thief_revoked_comes_back_with_newer_metadata(bench: Bench) -> None:
    bench.to_good(1)
    bench.send(revoke(1, metadata=900))
    assert bench.machine.active is None
    assert outcomes(bench.send(revoke(metadata=800))) == ["stale"], "the same root: the older list counts for nothing"
    bench.send(revoke(metadata=3, root=2))
    assert any(isinstance(e, Stage) for e in bench.send(ReleaseAnnounced(root_two(1))))


def root_two(version: int) -> object:
    import dataclasses

    return dataclasses.replace(release(version), metadata_version=(2, 3))


def test_nothing_happens_where_nothing_is_revoked(bench: Bench) -> None:
    bench.to_good(1)
    assert bench.send(revoke()) == []
    assert bench.send(revoke(7)) != []
    assert bench.send(revoke(7)) == []
