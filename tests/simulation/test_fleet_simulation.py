"""Fleets through everything that goes wrong, each from one seed; `python -m tests.simulation` runs larger campaigns."""

from __future__ import annotations

import pytest
from fleet_simulator.campaign import COMMAND, fleet_of, main, run
from fleet_simulator.disk import PowerLost
from fleet_simulator.observer import ViolationError

BLOCKS, SEEDS_A_BLOCK = 10, 10


@pytest.mark.parametrize("block", range(BLOCKS))
def test_what_must_hold_holds_whatever_goes_wrong(block: int) -> None:
    for seed in range(block * SEEDS_A_BLOCK, (block + 1) * SEEDS_A_BLOCK):
        try:
            done = run(seed)
        except Exception as fault:
            pytest.fail(f"seed {seed}: {type(fault).__name__}: {fault}\nrepeat with: {COMMAND} {seed}")
        assert done.released > 0


def test_faults_do_happen() -> None:
    """A simulator in which nothing goes wrong proves nothing."""
    done = [run(seed) for seed in range(100, 108)]
    assert sum(d.crashes for d in done) > 10
    assert sum(d.refused.total() for d in done) > 10
    assert any(d.ended > d.released for d in done), "rounds fail, too"


def test_a_seed_tells_everything() -> None:
    transcripts = []
    for _ in range(2):
        fleet = fleet_of(3)
        run(3, fleet)
        transcripts.append(fleet.transcript.lines)
    assert transcripts[0] == transcripts[1]


def test_the_oracle_sees_an_aggregate_that_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    from vedette_aggregator import aggregation

    honest = aggregation.decode_mean
    monkeypatch.setattr(aggregation, "decode_mean", lambda total, weight, e: honest(total, weight, e) * 1.01)
    with pytest.raises(AssertionError, match="off by"):
        run(3)


def test_the_observer_sees_a_receipt_before_its_write(monkeypatch: pytest.MonkeyPatch) -> None:
    from vedette_aggregator.round_machine import RoundMachine
    from vedette_core.machine import Persist

    honest = RoundMachine.handle

    def writes_last(self, event, now):  # type: ignore[no-untyped-def]
        return sorted(honest(self, event, now), key=lambda effect: isinstance(effect, Persist))

    monkeypatch.setattr(RoundMachine, "handle", writes_last)
    with pytest.raises(ViolationError, match="accepted before it was written down"):
        run(3)


def test_the_observer_sees_a_second_upload(monkeypatch: pytest.MonkeyPatch) -> None:
    from vedette_device import participant_machine

    monkeypatch.setattr(participant_machine, "upload_key", lambda task: f"forgotten/{task}")
    monkeypatch.setattr(participant_machine.ParticipantMachine, "_put", _never_used(participant_machine))
    fleet = fleet_of(3)
    for gateway in fleet.gateways.values():
        gateway.training_s = 10.0 if gateway.name == "gw-00" else 250.0
    fleet.start()
    fleet.scheduler.after(90.0, fleet.gateways["gw-00"].crash)
    with pytest.raises(ViolationError, match="two different uploads"):
        fleet.run(300.0)


def test_the_observer_sees_a_key_that_is_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    from vedette_aggregator.round_book import RoundBook

    monkeypatch.setattr(RoundBook, "mark_used", lambda self, out: None)
    fleet = fleet_of(3)
    for gateway in list(fleet.gateways.values())[1:]:
        gateway.training_s = 1e6
    fleet.gateways["gw-00"].link.cut(1e6)
    fleet.broker.weather.loss = 0.5
    fleet.start()
    with pytest.raises(ViolationError, match="its key is in rosters of"):
        fleet.run(5_000.0)


def test_the_power_goes_in_the_middle_of_a_transition() -> None:
    fleet = fleet_of(5)
    fleet.aggregator.disk.power_switch = lambda number, _key: "after" if number == 2 else None
    fleet.start()
    fleet.run(100.0)
    assert fleet.aggregator.crashes == 1
    fleet.aggregator.disk.writes = 1
    with pytest.raises(PowerLost):
        fleet.aggregator.disk.put("x", b"")


def test_the_command_line_says_how_to_repeat_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vedette_aggregator import aggregation

    assert main(["--seeds", "1", "--first", "3"]) == 0
    assert "1 runs" in capsys.readouterr().out
    monkeypatch.setattr(aggregation, "decode_mean", lambda total, weight, e: 1 / 0)
    assert main(["--seeds", "1", "--first", "3"]) == 1
    assert f"repeat with: {COMMAND} 3" in capsys.readouterr().out


def _never_used(module):  # type: ignore[no-untyped-def]
    """A participant that forgets, at a restart, which attempt it has used."""
    honest = module.ParticipantMachine._put
    return lambda self, record: honest(self, module.replace(record, used=(0, 0)))
