"""Fleets through everything that goes wrong, each from one seed; `python -m tests.simulation` runs larger campaigns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pytest
from fleet_simulator.campaign import COMMAND, Run, fleet_of, main, run
from fleet_simulator.disk import PowerLost
from fleet_simulator.kinds import KINDS, kind_of
from fleet_simulator.liars import DEVICE_LIES
from fleet_simulator.problem import settings
from fleet_simulator.simulation import Fleet

BLOCKS, SEEDS_A_BLOCK = 20, 10
FIRST_OF_KINDS = 10_000


@pytest.mark.parametrize("block", range(BLOCKS))
def test_what_must_hold_holds_whatever_goes_wrong(block: int) -> None:
    for seed in range(block * SEEDS_A_BLOCK, (block + 1) * SEEDS_A_BLOCK):
        try:
            done = run(seed)
        except Exception as fault:
            pytest.fail(f"seed {seed}: {type(fault).__name__}: {fault}\nrepeat with: {COMMAND} {seed}")
        assert done.released > 0 or done.spent_up or done.kind == "two-faced"


@pytest.mark.parametrize("seed", [9270, 9281])
def test_a_crash_before_the_end_of_a_round_that_cannot_be_leaves_no_open_round(seed: int) -> None:
    """Five devices, one of them blamed: the round failed, but a crash in between had left it open, for ever."""
    assert run(seed).released > 0


@lru_cache(maxsize=1)
def _some_of_every_kind() -> tuple[Run, ...]:
    """Runs of seeds that the blocks do not have: three of every kind of fleet."""
    return tuple(run(seed) for kind in KINDS for seed in _seeds_of(kind, 3))


def _seeds_of(kind: str, count: int) -> Iterator[int]:
    found = 0
    for seed in range(FIRST_OF_KINDS, FIRST_OF_KINDS + 10_000):
        if found == count:
            return
        if kind_of(seed) == kind:
            found += 1
            yield seed


def test_faults_do_happen() -> None:
    """A simulator in which nothing goes wrong proves nothing."""
    done = _some_of_every_kind()
    assert sum(d.crashes for d in done) > 100
    assert sum(d.refused.total() for d in done) > 100
    assert sum(d.rejected.total() for d in done) > 50
    assert any(d.ended > d.released for d in done), "rounds fail, too"
    assert sum(d.late for d in done) > 0


def test_lies_are_told_and_sums_are_opened() -> None:
    done = _some_of_every_kind()
    told: Counter[str] = sum((d.told for d in done), Counter())
    assert told.keys() >= {"another set", "mixed votes", "replay", "second roster"}
    assert len(told.keys() & set(DEVICE_LIES)) >= 4, told
    assert sum(d.openings for d in done) > 40
    assert sum(d.certificates for d in done) > sum(d.openings for d in done), "not every certificate leads to a sum"
    for kind in set(KINDS) - {"plain"}:
        assert any(d.openings for d in done if d.kind == kind), kind


def _private_fleets(**changes: bool) -> Iterator[Fleet]:
    values = {"noise_multiplier": 1.0, "epsilon_max": 1_000.0, "participations_max": 100}
    for seed in range(6):
        fleet = Fleet(seed, rounds=settings(6, **values, **changes))
        fleet.start()
        fleet.run_until_ended(8, 8 * 400.0)
        assert fleet.released == 8
        yield fleet


def test_the_noise_is_what_the_plan_says() -> None:
    """Over many releases: its standard deviation, its mean, and that no two coordinates share it."""
    noise = np.concatenate([x for fleet in _private_fleets() for x in fleet.observer.noise])
    assert noise.size == 6 * 8 * 12
    # 0.18 is six standard errors of the deviation, and four of the mean.
    assert abs(float(noise.std()) - 1.0) < 0.18
    assert abs(float(noise.mean())) < 0.18
    assert len(np.unique(np.round(noise, 6))) == noise.size


def test_the_devices_noise_is_as_much_as_the_plan_says() -> None:
    """Four devices have all of it between them, as one of five survivors may be corrupt; six are here."""
    noise = np.concatenate([x for fleet in _private_fleets(device_noise=True) for x in fleet.observer.device_noise])
    assert noise.size == 6 * 8 * 12
    assert abs(float(noise.std()) - (6 / 4) ** 0.5) < 0.22
    assert abs(float(noise.mean())) < 0.18


def test_a_seed_tells_everything() -> None:
    transcripts = []
    for _ in range(2):
        fleet = fleet_of(3)
        run(3, fleet)
        transcripts.append(fleet.transcript.lines)
    assert transcripts[0] == transcripts[1]


def test_the_power_goes_in_the_middle_of_a_transition() -> None:
    fleet = fleet_of(5)
    fleet.aggregator.disk.power_switch = lambda number, _key: "after" if number == 2 else None
    fleet.start()
    fleet.run(100.0)
    assert fleet.aggregator.crashes == 1
    fleet.aggregator.disk.writes = 1
    with pytest.raises(PowerLost):
        fleet.aggregator.disk.put("x", b"")


def test_the_command_line_says_what_happened_and_how_to_repeat_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vedette_aggregator import aggregation

    assert main(["--seeds", "2", "--first", "3"]) == 0
    said = capsys.readouterr().out
    assert all(f"{what}: " in said for what in ("runs", "fleets", "runs with faults", "totals", "lies"))
    assert said.endswith(" 0 violations\n")
    assert main(["--seeds", "2", "--first", "3", "--jobs", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[:-1] == said.splitlines()[:-1], "the same, whoever runs it"
    monkeypatch.setattr(aggregation, "decode_group_mean", lambda total, encoding: 1 / 0)
    assert main(["--seeds", "1", "--first", "3"]) == 1
    assert f"repeat with: {COMMAND} 3" in capsys.readouterr().out
