"""What lying devices cost, with each robust rule and without: a synthetic task, and the detectors on the recordings.

Every figure is a median over seeds. *Cost* is in points (of accuracy, or of AUC × 100) against the same fleet without
liars and without any rule; *own cost* against the same rule without liars, so that a rule that only learns faster
cannot hide what an attack takes from it. Every rule sees the same devices, rows, groups and liars.

*Blamed* is the part of the liars among the most suspected devices, after ten rounds and after all, in points: what
`vedette_core.learning.suspicion` makes of the groups' cosines to the root update.

Targeted backdoors are measured and not covered: no bound is set for them, and no rule here stops them.

Run: ``python bench/poisoning.py [--json] [--quick]``
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: the runs are spread over processes instead
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import multiprocessing
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING or __package__:
    from bench.poisoning_fleet import PLAIN, Case, Outcome, run
else:
    from poisoning_fleet import PLAIN, Case, Outcome, run

DEFENDED: Final = "root-trust"
"""What a fleet with a root set runs by default, and what the bounds are about."""
RULES: Final = (PLAIN, DEFENDED, "fltrust", "trimmed-mean", "median", "geometric-median", "multi-krum")
DETECTION_RULES: Final = (PLAIN, DEFENDED, "fltrust", "trimmed-mean", "multi-krum")
ROOTED: Final = (PLAIN, DEFENDED)


@dataclass(frozen=True, slots=True)
class Bound:
    """What must hold for the defended fleet.

    Attributes:
        attack: which.
        fraction: of the devices.
        cost_max: most points that it may cost.
    """

    attack: str
    fraction: float
    cost_max: float


BOUNDS: Final = (
    Bound("none", 0.0, 0.5),
    Bound("sign-flip", 0.1, 3.0),
    Bound("sign-flip", 0.2, 6.0),
    Bound("boost", 0.02, 2.0),
)
"""For groups of 8, in each task."""
BOUND_GROUP_SIZE: Final = 8


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is run.

    Attributes:
        seeds: how many.
        devices: by task.
        rounds: by task.
        everything: whether to run other rules, group sizes and attacks than the bounds need.
    """

    seeds: int
    devices: dict[str, int]
    rounds: dict[str, int]
    everything: bool = True


FULL: Final = Extent(
    3, {"classification": 512, "network": 128, "sensor": 128}, {"classification": 25, "network": 10, "sensor": 10}
)
QUICK: Final = Extent(
    1,
    {"classification": 128, "network": 64, "sensor": 64},
    {"classification": 5, "network": 1, "sensor": 1},
    everything=False,
)

Cell = tuple[str, str, float, int, str]
"""(task, attack, fraction, group size, rule)."""


def cells(task: str, extent: Extent) -> list[Cell]:
    """What is run of a task, without repetition."""
    found: list[Cell] = []
    every = RULES if task == "classification" else DETECTION_RULES

    def add(attack: str, fraction: float, group_size: int, rules: Iterable[str]) -> None:
        found.extend((task, attack, fraction, group_size, rule) for rule in rules)

    for bound in BOUNDS:
        full = extent.everything and bound.attack in ("none", "sign-flip")
        add(bound.attack, bound.fraction, BOUND_GROUP_SIZE, every if full else ROOTED)
    if extent.everything:
        for attack, fraction in (("label-flip", 0.2), ("alie", 0.2), ("backdoor", 0.1)):
            add(attack, fraction, BOUND_GROUP_SIZE, ROOTED)
        if task == "classification":
            for attack in ("gaussian", "free-rider", "sybil"):
                add(attack, 0.2, BOUND_GROUP_SIZE, ROOTED)
            for attack, fraction in (("none", 0.0), ("sign-flip", 0.1), ("sign-flip", 0.2), ("boost", 0.02)):
                add(attack, fraction, 16, ROOTED)
            add("sign-flip", 0.05, BOUND_GROUP_SIZE, ROOTED)
    return found


def measure(extent: Extent, workers: int) -> dict[str, Any]:
    """Every figure of this benchmark."""
    start = time.perf_counter()
    wanted = [cell for task in extent.devices for cell in cells(task, extent)]
    cases = [
        Case(*cell, seed=seed, devices=extent.devices[cell[0]], rounds=extent.rounds[cell[0]])
        for seed in range(extent.seeds)
        for cell in wanted
    ]
    outcomes = dict(zip(cases, outcomes_of(cases, workers), strict=True))
    by_cell: dict[Cell, list[Outcome]] = {cell: [] for cell in wanted}
    for case, outcome in outcomes.items():
        by_cell[case.task, case.attack, case.fraction, case.group_size, case.rule].append(outcome)
    rows = [row_of(cell, by_cell) for cell in wanted]
    return {
        "classification": [row for row in rows if row["task"] == "classification"],
        "detection": [row for row in rows if row["task"] != "classification"],
        "bounds": bounds_of(rows),
        "defended": DEFENDED,
        "devices": extent.devices,
        "rounds": extent.rounds,
        "seeds": extent.seeds,
        "processor_seconds": round(sum(outcome.processor_s for outcome in outcomes.values()), 1),
        "seconds": round(time.perf_counter() - start, 1),
    }


def outcomes_of(cases: Sequence[Case], workers: int) -> list[Outcome]:
    """Run all, in this process or in several."""
    if workers < 2:
        return [run(case) for case in cases]
    # Spawned, not forked: a child of a process with BLAS threads may hang.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(run, cases))


def row_of(cell: Cell, by_cell: dict[Cell, list[Outcome]]) -> dict[str, Any]:
    """One cell's medians over seeds, costs paired by seed."""
    task, attack, fraction, group_size, rule = cell
    own = by_cell[cell]
    plain = by_cell[task, "none", 0.0, group_size, PLAIN]
    clean = by_cell.get((task, "none", 0.0, group_size, rule))
    row: dict[str, Any] = {
        "task": task,
        "attack": attack,
        "fraction": fraction,
        "group_size": group_size,
        "rule": rule,
        "quality": round(median(o.quality for o in own), 2),
        "cost": round(median(p.quality - o.quality for p, o in zip(plain, own, strict=True)), 2),
        "refused_rounds": sum(o.refused for o in own),
    }
    if clean:
        row["own_cost"] = round(median(c.quality - o.quality for c, o in zip(clean, own, strict=True)), 2)
    for key in ("backdoor", "unexplained", "blamed_10", "blamed"):
        values = [value for o in own if (value := getattr(o, key)) is not None]
        if values:
            row[key] = round(median(values), 3)
    return row


def bounds_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each bound in each task: what was found with the defence, with the plain mean, and whether it holds."""
    result = []
    for task in dict.fromkeys(row["task"] for row in rows):
        for bound in BOUNDS:
            costs = {
                row["rule"]: row
                for row in rows
                if (row["task"], row["attack"], row["fraction"]) == (task, bound.attack, bound.fraction)
                and row["group_size"] == BOUND_GROUP_SIZE
            }
            found = costs[DEFENDED]["cost"]
            result.append(
                {
                    "task": task,
                    "attack": bound.attack,
                    "fraction": bound.fraction,
                    "group_size": BOUND_GROUP_SIZE,
                    "found": found,
                    "own_cost": costs[DEFENDED]["own_cost"],
                    "plain_mean": costs[PLAIN]["cost"],
                    "most": bound.cost_max,
                    "holds": found <= bound.cost_max,
                }
            )
    return result


def show(result: dict[str, Any]) -> None:
    """Tables for people."""
    keys = ("task", "attack", "fraction", "group_size", "rule", "quality", "cost", "own_cost", "backdoor", "blamed")
    print("  ".join(f"{key:>14}" for key in keys))
    for row in (*result["classification"], *result["detection"]):
        print("  ".join(f"{row.get(key, ''):>14}" for key in keys))
    print("\nbounds, with a root set:")
    for bound in result["bounds"]:
        print(
            f"  {bound['task']:>14}  {bound['attack']:>10} {bound['fraction']:<4}: costs {bound['found']:>6}, at most "
            f"{bound['most']} ({'holds' if bound['holds'] else 'DOES NOT HOLD'}); plain mean {bound['plain_mean']}"
        )
    print(f"\nTargeted backdoors are not covered. {result['seconds']} s")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--output", type=Path, help="also write the JSON object to this file")
    parser.add_argument("--quick", action="store_true", help="few rounds of small fleets: shows that it runs")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    arguments = parser.parse_args()
    result = measure(QUICK if arguments.quick else FULL, 1 if arguments.quick else arguments.workers)
    if arguments.output:
        arguments.output.write_text(json.dumps(result) + "\n")
    if arguments.json:
        print(json.dumps(result))
    else:
        show(result)


if __name__ == "__main__":
    main()
