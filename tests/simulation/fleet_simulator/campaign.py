"""Many runs, each from its own seed; a failing one is printed with the command that repeats it."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from .faults import Faults, inflict
from .observer import ViolationError
from .simulation import Fleet

COMMAND: Final = "python -m tests.simulation --seed"
RECOVERY_S: Final = 4_000.0
"""Time after the last fault within which a round must be released.

A round that the faults left behind may need all its attempts: 3 × (60 s check-in + 300 s collect), then the interval of
120 s; a clock that was set back adds one window of each. The next round, on a quiet network, takes less than 400 s.
Twice that, because a device that slept needs the next attempt to come back."""
ROUNDS_AFTER: Final = 2


@dataclass(frozen=True)
class Run:
    """What came of a run: rounds that ended, that were released, crashes, and messages refused by their reason."""

    seed: int
    devices: int
    faults: Faults
    ended: int
    released: int
    crashes: int
    steps: int
    refused: Counter[str]


def fleet_of(seed: int) -> Fleet:
    """The fleet of a seed."""
    return Fleet(seed, devices=Random(f"devices {seed}").randint(3, 7))


def run(seed: int, fleet: Fleet | None = None) -> Run:
    """Run a fleet through the faults of a seed, and on until it has recovered.

    Args:
        seed: of the faults, and of the fleet.
        fleet: `fleet_of` the same seed, for a caller that wants its transcript.

    Raises:
        ViolationError, AssertionError: something did not hold.
    """
    random = Random(f"faults {seed}")
    fleet = fleet or fleet_of(seed)
    faults = Faults.draw(random)
    quiet_from_s = inflict(fleet, faults, random)
    fleet.start()
    fleet.run(quiet_from_s)
    before, released = len(fleet.observer.ended), fleet.released
    fleet.scheduler.run(
        quiet_from_s + RECOVERY_S,
        lambda: fleet.released > released and len(fleet.observer.ended) >= before + ROUNDS_AFTER,
    )
    if fleet.released <= released or len(fleet.observer.ended) < before + ROUNDS_AFTER:
        raise ViolationError(
            f"found {len(fleet.observer.ended) - before} rounds ended and {fleet.released - released} released within "
            f"{RECOVERY_S:.0f} s after the last fault, expected {ROUNDS_AFTER} and 1"
        )
    fleet.run(fleet.scheduler.now + 100.0)
    return Run(
        seed,
        fleet.devices,
        faults,
        len(fleet.observer.ended),
        fleet.released,
        sum(p.crashes for p in fleet.processes),
        fleet.scheduler.steps,
        sum((g.refused for g in fleet.gateways.values()), fleet.aggregator.refused.copy()),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: run seeds, report, and return 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description="Simulate fleets and check them.")
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds to run, from --first on")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="run only this seed, and print what happened")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        return _one(options.seed)
    failed = []
    totals: Counter[str] = Counter()
    began = time.monotonic()
    for seed in range(options.first, options.first + options.seeds):
        try:
            done = run(seed)
        except Exception as fault:  # every failing seed is reported, whatever it failed with
            failed.append(seed)
            print(f"seed {seed}: {type(fault).__name__}: {fault}\n    repeat with: {COMMAND} {seed}", flush=True)
        else:
            totals.update(runs=1, rounds=done.ended, released=done.released, crashes=done.crashes, steps=done.steps)
            totals.update({f"refused for {reason}": count for reason, count in done.refused.items()})
    took = time.monotonic() - began
    print(", ".join(f"{count} {name}" for name, count in totals.items()) + f", {took:.0f} s, {len(failed)} failed")
    return 1 if failed else 0


def _one(seed: int) -> int:
    fleet = fleet_of(seed)
    try:
        done = run(seed, fleet)
    except Exception as fault:
        print("\n".join(fleet.transcript.lines))
        print(f"seed {seed}: {type(fault).__name__}: {fault}", file=sys.stderr)
        return 1
    print("\n".join(fleet.transcript.lines))
    print(done)
    return 0
