"""Rollouts through everything that goes wrong; `python -m tests.simulation.rollouts` runs larger campaigns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
from fleet_simulator.violation import ViolationError
from rollout_simulator.rollout_campaign import COMMAND, Run, main, run
from rollout_simulator.rollout_site import Site
from rollout_simulator.world import Faults

from vedette_aggregator import rollout_machine
from vedette_aggregator.rollout_book import RolloutBook
from vedette_aggregator.rollout_machine import RolloutMachine
from vedette_aggregator.rollout_state import Phase
from vedette_aggregator.rollout_watch import Gate, RolloutWatch
from vedette_core.learning.rank_test import Verdict
from vedette_core.machine import Effect
from vedette_device.cohort_machine import CohortMachine
from vedette_schemas.rollout import RolloutState

BLOCKS, SEEDS_A_BLOCK = 3, 10
Patch = pytest.MonkeyPatch


@lru_cache(maxsize=BLOCKS)
def _block(block: int) -> tuple[Run, ...]:
    done = []
    for seed in range(block * SEEDS_A_BLOCK, (block + 1) * SEEDS_A_BLOCK):
        try:
            done.append(run(seed))
        except Exception as fault:
            pytest.fail(f"seed {seed}: {type(fault).__name__}: {fault}\nrepeat with: {COMMAND} {seed}")
    return tuple(done)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_what_must_hold_holds_whatever_goes_wrong(block: int) -> None:
    assert sum(done.ends.total() for done in _block(block)) > 0


def test_faults_do_happen() -> None:
    """A simulator in which nothing goes wrong, or nothing ever goes right, proves nothing."""
    done = [each for block in range(BLOCKS) for each in _block(block)]
    ends: Counter[str] = sum((d.ends for d in done), Counter())
    assert ends.keys() == {"promoted", "aborted", "rolled-back"}
    assert sum(d.crashes for d in done) > 20
    assert sum(d.exposures for d in done) > 50
    assert sum(d.returns for d in done) > 10
    assert sum(d.liars for d in done) > 0
    assert sum(d.asked for d in done) > 10


def test_a_seed_tells_everything() -> None:
    assert run(3) == run(3)


def _calm(seed: int, **changes: float) -> Site:
    """A site of a few devices with only the faults that are named."""
    site = Site(seed)
    values: dict[str, Any] = {**dict.fromkeys(("crash", "loss", "double", "replay", "away", "liars"), 0.0), **changes}
    site.world.faults = Faults(**values, person=False)
    for gateway in site.gateways.values():
        gateway.lies = gateway.comes_and_goes = False
    return site


NOT_COUNTED = (404,)
"""A seed in which a stage begins while the aggregator has not heard of two devices, and both are below the share."""
CRASHED = 75
"""A seed with few devices whose rollouts end in different ways. Every other write is tried: campaigns have the rest."""


def _switch(write: int, when: str) -> Callable[[int, str], str | None]:
    return lambda number, _key: when if number == write else None


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_power_goes_at_writes_of_the_aggregator(when: str) -> None:
    counted = _calm(CRASHED)
    counted.disk.power_switch = _switch(0, when)
    run(CRASHED, counted)
    writes = counted.disk.writes
    assert writes > 20
    crashes = 0
    for write in range(1, writes + 1, 2):
        site = _calm(CRASHED)
        site.disk.power_switch = _switch(write, when)
        run(CRASHED, site)
        crashes += site.crashes
    assert crashes == (writes + 1) // 2


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_power_goes_at_writes_of_a_gateway(when: str) -> None:
    counted, device = _calm(CRASHED), "gw-000"
    counted.gateways[device].disk.power_switch = _switch(0, when)
    run(CRASHED, counted)
    writes = counted.gateways[device].disk.writes
    assert writes > 10
    crashes = 0
    for write in range(1, writes + 1, 2):
        site = _calm(CRASHED)
        site.gateways[device].disk.power_switch = _switch(write, when)
        run(CRASHED, site)
        crashes += site.gateways[device].crashes
    assert crashes == (writes + 1) // 2


# -- a broken rule is seen --------------------------------------------------------------------------------------------


def _sees(what: str, seeds: Iterable[int] = range(60)) -> None:
    """Some seed shows it."""
    for seed in seeds:
        try:
            run(seed)
        except ViolationError as fault:
            if what in str(fault):
                return
            raise
    pytest.fail(f"nobody saw that {what!r}")


def test_a_stage_that_exposes_too_many_is_seen(monkeypatch: Patch) -> None:
    monkeypatch.setattr(rollout_machine, "members_of", lambda salt, fleet, *_: sorted(fleet))
    _sees("exposed, expected")


def test_a_device_that_ignores_its_cohort_is_seen(monkeypatch: Patch) -> None:
    monkeypatch.setattr(CohortMachine, "_wants_candidate", lambda machine, state: True)
    _sees("release")


def test_a_cohort_that_takes_in_whoever_is_below_the_share_is_seen(monkeypatch: Patch) -> None:
    """Of those that were pinned, or that nobody knew, when the share was set: it is right, and they are too many."""
    save = RolloutBook.save_and_say

    def without_names(book: RolloutBook, now: float, **changes: Any) -> list[Effect]:
        return save(book, now, **{**changes, "members": ()})

    monkeypatch.setattr(RolloutBook, "save_and_say", without_names)
    _sees("exposed, expected", NOT_COUNTED)


def test_a_word_that_is_said_before_it_is_written_down_is_seen(monkeypatch: Patch) -> None:
    save = RolloutBook.save_and_say
    monkeypatch.setattr(RolloutBook, "save_and_say", lambda *a, **changes: save(*a, **changes)[::-1])
    _sees("before it was written down")


def test_a_device_that_takes_old_states_is_seen(monkeypatch: Patch) -> None:
    take = CohortMachine._received

    def forget(machine: CohortMachine, state: RolloutState, now: float) -> list[Effect]:
        if machine.state is not None and state.seq < machine.state.seq:
            machine._record = None
        return take(machine, state, now)

    monkeypatch.setattr(CohortMachine, "_received", forget)
    _sees("after state")


def test_a_pause_that_never_ends_is_seen(monkeypatch: Patch) -> None:
    look = RolloutMachine._look
    is_paused = lambda machine: machine.record.phase is Phase.PAUSED  # noqa: E731
    monkeypatch.setattr(RolloutMachine, "_look", lambda m, now: [] if is_paused(m) else look(m, now))
    _sees("is still paused")


def test_a_gate_that_lets_floods_pass_is_seen(monkeypatch: Patch) -> None:
    figures = RolloutWatch._figures

    def blind(watch: RolloutWatch, *settings: Any) -> list[Gate]:
        return [replace(g, verdict=Verdict.PASS) if g.name == "alerts" else g for g in figures(watch, *settings)]

    monkeypatch.setattr(RolloutWatch, "_figures", blind)
    monkeypatch.setattr(RolloutWatch, "mass_alerts", lambda *_: "")
    _sees("floods alerts and passed every stage")


def test_a_deadline_that_stays_over_is_seen(monkeypatch: Patch) -> None:
    deadline = lambda machine: None if machine.state is None else machine.state.expires_s  # noqa: E731
    monkeypatch.setattr(CohortMachine, "next_deadline", deadline)
    _sees("time stands still")


def test_the_command_line_says_what_happened_and_how_to_repeat_a_failure(
    monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--seeds", "2"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("rollouts: ")
    assert said.endswith(" 0 violations\n")
    monkeypatch.setattr(CohortMachine, "handle", lambda *_: 1 / 0)
    assert main(["--seed", "3"]) == 1
    assert f"repeat with: {COMMAND} 3" in capsys.readouterr().out
