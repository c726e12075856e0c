"""Makes the SIMULATED sensor recordings: one water tank a gateway, with labelled tampering cases.

Nothing here was measured on a real plant. The same seed gives the same bytes.

Run from the project's root: ``python -m bench.lab.simulate_sensors [--seed N] [--out FOLDER]``.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench.lab import shipping, tampering, tank

SEED = 20261123
"""Seed of the shipped set."""
GATEWAYS = 8
DAYS = 8
ROWS = DAYS * tank.DAY_S // tank.ROW_PERIOD_S
START_S = 1_772_755_200
"""First row: 6 March 2026, 00:00 UTC, a Friday, so that the benign days hold a weekend."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One gateway's sensor recording.

    Attributes:
        content: The CSV file.
        labels: Its tampering cases in order of time.
    """

    content: bytes
    labels: tuple[shipping.Label, ...]


def _describe(case: tampering.Case) -> str:
    detail = {
        "stuck": "held at its last value",
        "replay": f"replayed from {int(case.strength) * tank.ROW_PERIOD_S} s before",
        "scaling": f"times {case.strength:.3f}",
        "offset": f"{case.strength:+.2f} spreads",
        "drift": f"up to {case.strength:+.2f} spreads",
        "noise": f"noise of {case.strength:.2f} spreads",
        "spikes": f"spikes of {case.strength:.2f} spreads",
        "actuator_spoof": f"{case.actuator} while the report says otherwise",
    }[case.kind]
    return f"simulated: {'+'.join(case.channels)} {detail}"


def record(gateway: int, seed: int) -> Recording:
    """Simulates one gateway's process and tampers with it.

    Args:
        gateway: Number of the gateway, from 1.
        seed: Seed of the whole set.

    Returns:
        CSV bytes and labels.
    """
    # One independent stream each for the plant, its weather and the attacker: changing one leaves the others alone.
    plant, process, plan, forgery = (np.random.default_rng([seed, gateway, part]) for part in range(4))
    cases = tampering.plan_cases(gateway, plan)
    run = tank.simulate(tank.draw_tank(plant), ROWS, process, tampering.manipulations_of(cases))
    readings = run.readings
    manipulated = iter(run.manipulated)
    labels = []
    for case in cases:
        if case.kind == tampering.MANIPULATION_KIND:
            first, last = next(manipulated)
        else:
            first, last = tampering.forge(readings, case, forgery)
        labels.append(
            shipping.Label(
                gateway=shipping.gateway_id(gateway),
                source="sensor",
                kind=case.kind,
                start_s=START_S + first * tank.ROW_PERIOD_S,
                end_s=START_S + last * tank.ROW_PERIOD_S,
                entity=case.channels[0],
                attacker="simulated",
                tool=_describe(case),
            )
        )
    steps = np.asarray(tank.RESOLUTION)
    # Adding zero turns a negative zero, which would be written "-0.0", into a plain one.
    quantised = np.round(readings / steps) * steps + 0.0
    row_format = "%d," + ",".join(f"%.{digits}f" for digits in tank.DECIMALS)
    lines = ["time_s," + ",".join(tank.CHANNELS)]
    lines += [
        row_format % (START_S + row * tank.ROW_PERIOD_S, *values) for row, values in enumerate(quantised.tolist())
    ]
    return Recording(("\n".join(lines) + "\n").encode("ascii"), tuple(labels))


def main() -> None:
    parser = argparse.ArgumentParser(description="make the simulated sensor recordings")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=shipping.RECORDINGS)
    arguments = parser.parse_args()
    entries: dict[str, dict[str, Any]] = {}
    labels: list[shipping.Label] = []
    for gateway in range(1, GATEWAYS + 1):
        recording = record(gateway, arguments.seed)
        name = shipping.gateway_id(gateway)
        file = f"sensor/{name}.csv.xz"
        digest = shipping.write_compressed(arguments.out / file, recording.content)
        entries[name] = {
            "sensor": {
                "file": file,
                "sha256": digest,
                "rows": ROWS,
                "columns": ["time_s", *tank.CHANNELS],
                "start_s": START_S,
                "end_s": START_S + ROWS * tank.ROW_PERIOD_S,
                "benign_until_s": recording.labels[0].start_s,
                "seed": arguments.seed,
                "simulated": True,
            }
        }
        labels += recording.labels
        print(f"{file}: {ROWS} rows, {len(recording.labels)} tampering cases")
    shipping.update_manifest(arguments.out, entries)
    shipping.update_labels(arguments.out, "sensor", labels)


if __name__ == "__main__":
    main()
