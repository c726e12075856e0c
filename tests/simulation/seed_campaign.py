"""What every campaign of seeds does: run them, in one process or in several, and say how a failing one is repeated."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, TypeVar

SEEDS_A_JOB: Final = 20

R = TypeVar("R")


@dataclass(frozen=True)
class Failure:
    """A run in which something did not hold."""

    seed: int
    fault: str


def attempt(run: Callable[[int], R], seed: int) -> R | Failure:
    """A run, or how it failed."""
    try:
        return run(seed)
    except Exception as fault:  # every failing seed is reported, whatever it failed with
        return Failure(seed, f"{type(fault).__name__}: {fault}")


def options_of(command: str, description: str, seeds: int) -> argparse.ArgumentParser:
    """The options that campaigns share.

    Args:
        command: that repeats one seed, without the seed.
        description: what is simulated.
        seeds: how many are run without another number.
    """
    parser = argparse.ArgumentParser(prog=command.rsplit(" ", 1)[0], description=description)
    parser.add_argument("--seeds", type=int, default=seeds, help="how many seeds to run, from --first on")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=1, help="how many processes run them")
    parser.add_argument("--seed", type=int, help="run only this seed")
    return parser


class Campaign(Generic[R]):
    """Runs of many seeds; what failed is printed at once.

    Args:
        run: one seed; raises what did not hold.
        command: that repeats one seed, without the seed.
    """

    def __init__(self, run: Callable[[int], R], command: str) -> None:
        self._run, self._command = run, command
        self._began, self._seeds, self.failed = time.monotonic(), 0, 0

    def sound(self, seeds: Sequence[int], jobs: int) -> Iterator[R]:
        """What came of the runs in which everything held."""
        self._seeds += len(seeds)
        for done in self._attempts(seeds, jobs):
            if isinstance(done, Failure):
                self.failed += 1
                print(f"seed {done.seed}: {done.fault}\n    repeat with: {self._command} {done.seed}", flush=True)
            else:
                yield done

    def end(self) -> int:
        """Say how many there were; 1 if one failed."""
        print(f"{self._seeds} seeds, {time.monotonic() - self._began:.0f} s, {self.failed} violations")
        return 1 if self.failed else 0

    def _attempts(self, seeds: Sequence[int], jobs: int) -> Iterator[R | Failure]:
        if jobs == 1:
            yield from map(partial(attempt, self._run), seeds)
            return
        with ProcessPoolExecutor(jobs) as pool:
            yield from pool.map(partial(attempt, self._run), seeds, chunksize=SEEDS_A_JOB)
