"""Many runs, each from its own seed; a failing one is printed with the command that repeats it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from seed_campaign import Campaign, options_of

from .faults import SLOW_ONLY, Faults, inflict
from .kinds import fleet_of, kind_of
from .simulation import Fleet
from .violation import ViolationError

__all__ = ["COMMAND", "Run", "fleet_of", "main", "run"]

COMMAND: Final = "python -m tests.simulation --seed"
RECOVERY_S: Final = 5_000.0
"""Time after the last fault within which a round must be released.

A round that the faults left behind may need all its attempts: 3 × (60 s check-in + 300 s collect + 120 s unmask), then
the interval of 120 s; a clock that was set back adds one window of each. The next round, on a quiet network, takes less
than 400 s. Twice that, because a device that slept needs the next attempt to come back."""
ROUNDS_AFTER: Final = 2


@dataclass(frozen=True)
class Run:
    """What came of a run.

    Attributes:
        seed: it repeats the run.
        kind: of the fleet.
        devices: how many.
        faults: how bad it was.
        ended: rounds that ended.
        released: rounds that were released.
        crashes: of processes.
        steps: of the simulation.
        refused: messages refused by intakes, by reason.
        rejected: messages refused with a receipt, by reason.
        told: lies, by kind.
        certificates: survivor sets that enough members voted for.
        openings: survivor sets whose sum was opened.
        opened_again: of those, sums of a group that was opened in an earlier attempt of the same round, too.
        late: updates that were given to a later round.
        spent_up: whether the devices' budgets were used up before the end.
    """

    seed: int
    kind: str
    devices: int
    faults: Faults
    ended: int
    released: int
    crashes: int
    steps: int
    refused: Counter[str]
    rejected: Counter[str]
    told: Counter[str]
    certificates: int
    openings: int
    opened_again: int
    late: int
    spent_up: bool


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
    faults = SLOW_ONLY if fleet.lying_aggregator and seed % 2 else Faults.draw(random)
    quiet_from_s = inflict(fleet, faults, random)
    fleet.start()
    fleet.run(quiet_from_s)
    before, released = len(fleet.observer.ended), fleet.released
    fleet.scheduler.run(
        quiet_from_s + RECOVERY_S,
        lambda: (
            (fleet.released > released and len(fleet.observer.ended) >= before + ROUNDS_AFTER)
            or (fleet.lying_aggregator and fleet.released > released)
        ),
    )
    ended = len(fleet.observer.ended) - before
    if not fleet.spent_up and (fleet.released <= released or ended < ROUNDS_AFTER) and not fleet.lying_aggregator:
        raise ViolationError(
            f"found {ended} rounds ended and {fleet.released - released} released within "
            f"{RECOVERY_S:.0f} s after the last fault, expected {ROUNDS_AFTER} and 1"
        )
    fleet.run(fleet.scheduler.now + 100.0)
    observer = fleet.observer
    return Run(
        seed,
        kind_of(seed),
        fleet.devices,
        faults,
        len(observer.ended),
        fleet.released,
        sum(p.crashes for p in fleet.processes),
        fleet.scheduler.steps,
        sum((g.refused for g in (*fleet.gateways.values(), *fleet.helping.values())), fleet.aggregator.refused.copy()),
        Counter(reason.split(":")[0] for _, reason in observer.rejected),
        fleet.told,
        observer.adversary.certificates,
        observer.adversary.openings,
        observer.adversary.opened_again,
        observer.late_updates,
        fleet.spent_up,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: run seeds, report, and return 1 if one failed; of one seed, print what happened."""
    options = options_of(COMMAND, "Simulate fleets and check them.", 200).parse_args(arguments)
    if options.seed is not None:
        return _one(options.seed)
    campaign, totals = Campaign(run, COMMAND), Totals()
    for done in campaign.sound(range(options.first, options.first + options.seeds), options.jobs):
        totals.add(done)
    totals.print()
    return campaign.end()


class Totals:
    """What many runs came to."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}

    def add(self, done: Run) -> None:
        """Count a run."""
        self._count("runs", ["all", *(["budget used up"] if done.spent_up else [])])
        self._count("fleets", [done.kind])
        self._count("runs with faults", done.faults.kinds)
        self._counts.setdefault("totals", Counter()).update(
            {
                "rounds": done.ended,
                "released": done.released,
                "crashes": done.crashes,
                "certificates": done.certificates,
                "sums opened": done.openings,
                "opened again in another attempt": done.opened_again,
                "late updates": done.late,
                "steps": done.steps,
            }
        )
        self._counts.setdefault("lies", Counter()).update(done.told)
        self._counts.setdefault("refused unread", Counter()).update(done.refused)
        self._counts.setdefault("rejected with a receipt", Counter()).update(done.rejected)

    def _count(self, what: str, names: Iterable[str]) -> None:
        self._counts.setdefault(what, Counter()).update(names)

    def print(self) -> None:
        """A line a kind of thing."""
        for what, counts in self._counts.items():
            print(f"{what}: " + ", ".join(f"{count} {name}" for name, count in counts.most_common()))


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
