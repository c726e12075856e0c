"""What secure aggregation costs: our groups beside Flower's SecAgg+ and beside no protection at all.

100 devices send one update of ``d`` parameters each; 0, 5 and 30 % vanish before they do. Ours is a whole round:
rosters checked, updates encoded, masked, signed and sealed; uploads verified and summed; a committee of 15 that votes
and releases shares; secrets opened, masks subtracted, the sum compared with the integers'. Flower's is its own client
modifier and workflow (`flower_peer.py`), without its network. Plain is the sum of our integer vectors as they are.

All in one process, peers alternating, medians of repetitions. Seconds are processor time, so that other programs on
the machine count little; what is left of their influence is told as ``noise``. Further processes aggregate 100 to
10,000 devices to show that time grows with their number and memory does not.

Run: ``python bench/secagg.py [--d 100000] [--json]``
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: one thread on both sides

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vedette_core.learning.update_vector import GroupSum, add_group_sums, decode_group_mean
from vedette_core.secagg.parameters import find_survivors_min
from vedette_schemas.round import GROUPS_MAX

if TYPE_CHECKING or __package__:
    from bench import flower_peer
    from bench.masked_group import Costs, MaskedGroup
    from bench.masked_site import GroupShape
else:
    import flower_peer
    from masked_group import Costs, MaskedGroup
    from masked_site import GroupShape

DEVICES: Final = 100
DROPOUTS: Final = (0.0, 0.05, 0.3)
DEFAULT_D: Final = 100_000
SCALE_D: Final = 10_000
SCALE_DEVICES: Final = (100, 1_000, 10_000)
SCALE_MEMBERS: Final = 25
SCALE_ROUNDS: Final = {100: 20, 1_000: 2}
"""Few devices are aggregated repeatedly, so that every process is timed for seconds."""
REPETITIONS: Final = 3
LARGE_D: Final = 300_000
"""From here on everything is measured once: a round of the peer takes 20 s."""
HEADLINE: Final = "4x25"
BYTES_CASE: Final = "3x32"


@dataclass(frozen=True, slots=True)
class Case:
    """How the devices are grouped."""

    groups: int
    members: int
    weight_max: int

    @property
    def shape(self) -> GroupShape:
        """Rosters of up to 32, a committee of 15 of which 4 may be corrupt and 10 must answer."""
        return GroupShape(weight_max=self.weight_max, survivors_min=find_survivors_min(self.members))


CASES: Final = {
    HEADLINE: Case(4, 25, 8),  # the 100 devices of the peer; 32 · 8 · 255 fits 16 bits
    BYTES_CASE: Case(3, 32, 8),  # full groups: most masks, boxes and commitments a device
    "4x25 uint32": Case(4, 25, 16),
}


@dataclass(slots=True)
class Samples:
    """One figure of each repetition, by name."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, **figures: float) -> None:
        """Of one repetition."""
        for name, value in figures.items():
            self.values.setdefault(name, []).append(value)

    def medians(self) -> dict[str, float]:
        """Of all repetitions."""
        return {name: round(median(values), 4) for name, values in self.values.items()}

    def spread(self, name: str) -> float:
        """Largest less smallest, over the median."""
        values = self.values[name]
        return round((max(values) - min(values)) / median(values), 3)


def draw_missing(groups: Sequence[MaskedGroup], dropout: float, rng: np.random.Generator) -> tuple[set[str], int]:
    """Which devices vanish, and how many draws would have cost a group its sum."""
    everybody = [(g, node.name) for g, group in enumerate(groups) for node in group.devices]
    count = round(dropout * len(everybody))
    redraws = 0
    while True:
        gone = [everybody[i] for i in rng.choice(len(everybody), count, replace=False)]
        left = [len(group.devices) - sum(g == h for h, _ in gone) for g, group in enumerate(groups)]
        if all(n >= group.shape.survivors_min for n, group in zip(left, groups, strict=True)):
            return {f"{g}/{name}" for g, name in gone}, redraws
        redraws += 1


def our_round(
    groups: Sequence[MaskedGroup], dropout: float, rng: np.random.Generator, ours: Samples, plain: Samples
) -> None:
    """One repetition over all groups."""
    costs = Costs()
    gone, redraws = draw_missing(groups, dropout, rng)
    sums = [
        group.run([n.name for n in group.devices if f"{g}/{n.name}" in gone], costs) for g, group in enumerate(groups)
    ]
    with costs.server("groups added"):
        add_group_sums(sums)
    steps = {name: 1e3 * median(device[name] for device in costs.devices_s) for name in costs.devices_s[0]}
    d = groups[0].d
    ours.add(
        device_ms=1e3 * median(sum(device.values()) for device in costs.devices_s),
        server_ms=1e3 * costs.server_s,
        member_ms=1e3 * median(costs.members_s),
        bytes_per_param=median(costs.upload_bytes) / d,
        redraws=redraws,
        **{f"device {name} ms": value for name, value in steps.items()},
        **{f"server {name} ms": 1e3 * value for name, value in costs.server_steps_s.items()},
    )
    plain.add(
        device_ms=steps["encode"],
        server_ms=1e3 * costs.plain_s,
        bytes_per_param=groups[0].layout.length * groups[0].ring / 8 / d,
    )


def flower_round(
    flower: flower_peer.Flower, d: int, dropout: float, rng: np.random.Generator, samples: Samples
) -> None:
    """One repetition of the peer, whose mean must be right, too."""
    cost = flower_peer.run_round(flower, d, dropout, rng, clients=DEVICES)
    worst = float(np.abs(cost.mean - flower_peer.expected_mean(cost.stayed, d)).max())
    if worst > flower_peer.MEAN_ERROR_MAX:
        raise AssertionError(f"the peer's mean is off by {worst}: it was not run as it is meant")
    samples.add(
        device_ms=1e3 * cost.device_s,
        server_ms=1e3 * cost.server_s,
        bytes_per_param=(cost.vector_bytes + cost.other_bytes) / d,
        vector_bytes_per_param=cost.vector_bytes / d,
        redraws=cost.redraws,
        **{f"device {name} ms": 1e3 * value for name, value in cost.device_stages_s.items()},
        **{"server combine shares ms": 1e3 * cost.combine_s, "server rest ms": 1e3 * (cost.server_s - cost.combine_s)},
    )


def compare(d: int, repetitions: int, flower: flower_peer.Flower | None) -> dict[str, Any]:
    """Rows of all sides, and their ratios."""
    rng = np.random.default_rng(5)
    groups = {
        name: [MaskedGroup(case.shape, case.members, d, gid=g, groups=case.groups, rng=rng) for g in range(case.groups)]
        for name, case in CASES.items()
    }
    ours = {name: {dropout: Samples() for dropout in DROPOUTS} for name in CASES}
    plain = {name: {dropout: Samples() for dropout in DROPOUTS} for name in CASES}
    theirs = {dropout: Samples() for dropout in DROPOUTS}
    wall, processor = time.perf_counter(), time.process_time()
    for repetition in range(-1, repetitions):  # the first is a warm-up, without dropout
        for dropout in DROPOUTS[:1] if repetition < 0 else DROPOUTS:
            for name in CASES:
                if repetition < 0:
                    our_round(groups[name], dropout, rng, Samples(), Samples())
                else:
                    our_round(groups[name], dropout, rng, ours[name][dropout], plain[name][dropout])
            if flower and repetition >= 0:
                flower_round(flower, d, dropout, rng, theirs[dropout])
    share = (time.process_time() - processor) / (time.perf_counter() - wall)
    result: dict[str, Any] = {
        "ours": {name: {str(x): s.medians() for x, s in rows.items()} for name, rows in ours.items()},
        "plain": {str(x): s.medians() for x, s in plain[HEADLINE].items()},
        "bytes_per_param": ours[BYTES_CASE][0.0].medians()["bytes_per_param"],
        "enveloped": {name: gs[0].enveloped for name, gs in groups.items()},
        "noise": {
            "processor_share": round(share, 3),
            "load_average": round(os.getloadavg()[0], 2),
            "spread_ours_server": ours[HEADLINE][0.0].spread("server_ms"),
            "spread_ours_device": ours[HEADLINE][0.0].spread("device_ms"),
        },
    }
    if flower:
        result["flower"] = {str(x): s.medians() for x, s in theirs.items()} | {
            "version": flower.version,
            "num_shares": flower_peer.NUM_SHARES,
            "threshold": flower_peer.THRESHOLD,
        }
        result["noise"]["spread_flower_server"] = theirs[0.0].spread("server_ms")
        result["noise"]["spread_flower_device"] = theirs[0.0].spread("device_ms")
        result |= ratios(ours[HEADLINE], theirs)
    return result


def ratios(ours: dict[float, Samples], theirs: dict[float, Samples]) -> dict[str, Any]:
    """Ours over Flower's: medians of the repetitions' ratios. Without dropout on top, as it is the peer's best case."""

    def of(dropout: float, mine: str, other: str) -> float:
        pairs = zip(ours[dropout].values[mine], theirs[dropout].values[other], strict=True)
        return round(median(a / b for a, b in pairs), 4)

    return {
        "ratio_server": of(0.0, "server_ms", "server_ms"),
        "ratio_device": of(0.0, "device_ms", "device_ms"),
        "ratio_server_by_dropout": {str(x): of(x, "server_ms", "server_ms") for x in DROPOUTS},
        "ratio_device_by_dropout": {str(x): of(x, "device_ms", "device_ms") for x in DROPOUTS},
        # Nearly all of the peer's server time is Shamir's scheme in pure Python. Against the rest of it:
        "ratio_server_without_its_combining": {str(x): of(x, "server_ms", "server rest ms") for x in DROPOUTS},
    }


def resident_bytes(name: str) -> int:
    """VmRSS or VmHWM of this process. Not ``ru_maxrss``: a new process inherits its parent's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"no {name} in /proc/self/status")


def aggregate(devices: int, d: int) -> dict[str, Any]:
    """Aggregate so many devices, a group at a time, in this process; uploads are made as they are needed."""
    case = Case(devices // SCALE_MEMBERS, SCALE_MEMBERS, 8)
    rng = np.random.default_rng(devices)

    def group(gid: int) -> MaskedGroup:
        return MaskedGroup(case.shape, case.members, d, gid=gid, groups=1, rng=rng)

    before = resident_bytes("VmRSS")
    group(0).run((), Costs(), answering=case.shape.votes_min, check_rosters=False)
    per_round: list[float] = []
    for _ in range(SCALE_ROUNDS.get(devices, 1)):
        server_s = 0.0
        total: GroupSum | None = None
        for gid in range(case.groups):
            costs = Costs()  # one a group: the benchmark's own notes must not grow, either
            one = group(gid % GROUPS_MAX)  # after as many as a round may have, the numbers begin again
            part = one.run((), costs, answering=case.shape.votes_min, check_rosters=False)
            with costs.server("groups added"):
                total = part if total is None else add_group_sums((total, part))
            if gid == case.groups - 1:
                with costs.server("decoded"):
                    decode_group_mean(total, one.encoding)
            server_s += costs.server_s
        per_round.append(server_s)
    return {
        "devices": devices,
        "server_s": round(median(per_round), 5),
        "peak_bytes": resident_bytes("VmHWM") - before,
        "uploads_bytes": devices * one.layout.length * one.ring // 8,
    }


def scale(d: int, counts: Sequence[int]) -> dict[str, Any]:
    """Each number of devices in a process of its own, one after the other."""
    runs = []
    for devices in counts:
        command = [sys.executable, str(Path(__file__).resolve()), "--aggregate", str(devices), "--scale-d", str(d)]
        runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    first = runs[0]
    per_device = [run["server_s"] / run["devices"] for run in runs]
    return {
        "growth": {
            "d": d,
            "server_s": {str(run["devices"]): run["server_s"] for run in runs},
            "per_device_ms": {str(run["devices"]): round(1e3 * s, 4) for run, s in zip(runs, per_device, strict=True)},
            "per_device_ratio": {
                str(run["devices"]): round(s / per_device[0], 3) for run, s in zip(runs, per_device, strict=True)
            },
            "worst": round(max(abs(s / per_device[0] - 1.0) for s in per_device), 3),
        },
        "memory": {
            "d": d,
            "peak_mb": {str(run["devices"]): round(run["peak_bytes"] / 2**20, 2) for run in runs},
            "uploads_mb": {str(run["devices"]): round(run["uploads_bytes"] / 2**20, 2) for run in runs},
            "ratio": round(runs[-1]["peak_bytes"] / first["peak_bytes"], 3),
        },
    }


def measure(d: int, repetitions: int, scale_d: int, counts: Sequence[int], flower_path: Path | None) -> dict[str, Any]:
    """Every figure of this benchmark."""
    flower, reason = None, ""
    try:
        flower = flower_peer.load(flower_path)
    except flower_peer.UnavailableError as error:
        reason = str(error)
    result = {"d": d, "devices": DEVICES, "repetitions": repetitions} | compare(d, repetitions, flower)
    if not flower:
        result |= {"flower": f"skipped: {reason}", "ratio_server": None, "ratio_device": None}
    if counts:
        result |= scale(scale_d, counts)
    return result | {
        "clock": "processor time",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--d", type=int, default=DEFAULT_D, help="parameters of the model")
    parser.add_argument(
        "--repetitions", type=int, help=f"rounds of each side; default {REPETITIONS}, 1 for large models"
    )
    parser.add_argument("--scale-d", type=int, default=SCALE_D, help="parameters, for growth and memory")
    parser.add_argument("--scale", type=int, nargs="*", default=list(SCALE_DEVICES), help="numbers of devices")
    parser.add_argument("--flower", type=Path, help="folder or wheel with flwr and its needs (flower_peer.txt)")
    parser.add_argument("--aggregate", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--output", type=Path, help="also write the JSON object to this file")
    arguments = parser.parse_args()
    if arguments.aggregate:
        print(json.dumps(aggregate(arguments.aggregate, arguments.scale_d)))
        return
    repetitions = arguments.repetitions or (REPETITIONS if arguments.d < LARGE_D else 1)
    result = measure(arguments.d, repetitions, arguments.scale_d, arguments.scale, arguments.flower)
    if arguments.output:
        arguments.output.write_text(json.dumps(result) + "\n")
    print(json.dumps(result, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
