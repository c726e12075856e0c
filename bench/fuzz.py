"""A fuzzing campaign: every parser that reads bytes from outside, given damaged inputs for as long as it is let.

Sound inputs are damaged (bits, lengths, magic numbers, cuts, copies, splices of two) and given to the parser. Only the
exceptions that it declares may come out; anything else is a finding, as is an input that takes more than
`INPUT_SECONDS_MAX`, needs more than `MEMORY_MB_MAX` of memory, or ends the process. An input that is answered in a new
way joins those that are damaged further. Each parser runs in a process of its own; a seed repeats its inputs, except
that how many there are depends on the time.

Run: ``python bench/fuzz.py [--parser NAME ...] [--seconds S] [--seed N] [--jobs N] [--corpus FOLDER] [--json]``
Exit status 1: there are findings.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: a thread's stacks are not the parser's memory

import argparse
import contextlib
import hashlib
import json
import logging
import mmap
import platform
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING or __package__:
    from bench.fuzz_damage import INPUT_BYTES_MAX, USUAL_BYTES_MAX, damaged
    from bench.fuzz_targets import TARGETS
    from bench.fuzz_wire import Target
else:
    from fuzz_damage import INPUT_BYTES_MAX, USUAL_BYTES_MAX, damaged
    from fuzz_targets import TARGETS
    from fuzz_wire import Target

SECONDS: Final = 600.0
INPUT_SECONDS_MAX: Final = 5.0
"""Of processor time, so that a busy machine makes no findings; nothing here waits."""
MEMORY_MB_MAX: Final = 256
"""Address space beyond what the process has after imports and seeds; ``xz -9`` asks for a quarter of it."""
GRACE_SECONDS: Final = 60.0
"""For imports, and for the last input, before a process that no longer answers is killed."""
POOL_MAX: Final = 512
"""Inputs that are damaged further."""
FAULTS_SHOWN_MAX: Final = 20

Rng = np.random.Generator


class TooSlowError(BaseException):
    """An input took longer than `INPUT_SECONDS_MAX`; no parser catches it by catching `Exception`."""


# -- one parser -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Outcome:
    """What came of a campaign against one parser.

    Attributes:
        inputs: how many it was given, sound ones included.
        accepted: of them, those of which it took something.
        refused: of them, those that it took nothing of, or answered with a declared exception.
        faults: kind and place of each finding → how many inputs there were of it.
        examples: the first input of each.
        rss_growth_mb: how much the largest resident set grew after imports and seeds.
        seconds: how long it took.
    """

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    examples: dict[str, bytes] = field(default_factory=dict)
    rss_growth_mb: float = 0.0
    seconds: float = 0.0

    def found(self, what: str, data: bytes) -> None:
        """Note a finding."""
        self.faults[what] += 1
        self.examples.setdefault(what, data)

    def plain(self) -> dict[str, Any]:
        """The figures, as they are printed."""
        return {
            "inputs": self.inputs,
            "accepted": self.accepted,
            "refused": self.refused,
            "findings": len(self.faults),
            "rss_growth_mb": round(self.rss_growth_mb, 1),
            "seconds": round(self.seconds, 1),
            "faults": dict(self.faults.most_common(FAULTS_SHOWN_MAX)),
        }


def one_input(target: Target, data: bytes, outcome: Outcome, watch: Callable[[float], object]) -> str:
    """Give a parser one input; returns how it answered, in a word without numbers, the same for like answers."""
    outcome.inputs += 1
    try:
        watch(INPUT_SECONDS_MAX)
        try:
            accepted = target.run(data)
        finally:
            watch(0.0)
    except target.declared as refusal:
        outcome.refused += 1
        return type(refusal).__name__ + re.sub(r"[0-9a-f]*\d[0-9a-f]*|'[^']*'|\"[^\"]*\"", "", str(refusal))[:90]
    except (Exception, TooSlowError) as fault:
        what = f"{type(fault).__name__} at {_where(fault)}: {str(fault)[:120]!r}"
        outcome.found(re.sub(r"\d{3,}", "N", what), data)
        return what
    if accepted:
        outcome.accepted += 1
        return "accepted"
    outcome.refused += 1
    return "nothing"


def _where(fault: BaseException) -> str:
    """Where it was raised, and the last place of ours before that."""
    frames = traceback.extract_tb(fault.__traceback__)
    ours = [frame for frame in frames if "/vedette" in frame.filename] or frames
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in (frames[-1], ours[-1])]
    return " < ".join(dict.fromkeys(places))


def campaign(
    target: Target,
    rng: Rng,
    *,
    inputs_max: int | None = None,
    seconds: float | None = None,
    watch: Callable[[float], object] = lambda _: None,
    note: Callable[[bytes], object] = lambda _: None,
) -> Outcome:
    """Damage and give, until there were enough inputs or the time is over; at least once.

    Args:
        target: the parser.
        rng: chooses what is damaged and how.
        inputs_max: most inputs beyond the sound ones.
        seconds: longest time.
        watch: called with the seconds that an input may take before it, with 0 after it.
        note: called with every input before the parser gets it.
    """
    outcome, pool, answers = Outcome(), list(target.seeds), {"accepted", "nothing"}
    start = time.monotonic()
    for data in target.seeds:
        one_input(target, data, outcome, watch)
    growth = _growth()
    next(growth)
    while outcome.inputs == len(target.seeds) or (
        (inputs_max is None or outcome.inputs < inputs_max + len(target.seeds))
        and (seconds is None or time.monotonic() - start < seconds)
    ):
        data = damaged(rng, target.seeds, pool)
        note(data)
        answer = one_input(target, data, outcome, watch)
        if answer not in answers and len(pool) < POOL_MAX and (len(data) <= USUAL_BYTES_MAX or not rng.integers(0, 50)):
            answers.add(answer)
            pool.append(data)
    outcome.rss_growth_mb, outcome.seconds = next(growth), time.monotonic() - start
    return outcome


def _growth() -> Iterator[float]:
    """Yields 0, and then by how many MB the largest resident set has grown since.

    The kernel's high-water mark of this address space (``VmHWM``), begun anew where it lets us: ``ru_maxrss`` would
    hold that of the parent, too, which is handed down to a child.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = _high_water_kb()
    yield 0.0
    yield max(_high_water_kb() - before, 0) / 1024


def _high_water_kb() -> int:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0])


# -- processes --------------------------------------------------------------------------------------------------------


def child(name: str, seconds: float, seed: int, folder: Path) -> None:
    """Run one campaign in this process and leave its outcome and examples in a folder."""
    logging.disable()
    target = TARGETS[name](folder)
    for data in target.seeds:  # what is loaded lazily is loaded now
        with contextlib.suppress(Exception):
            target.run(data)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = pages * mmap.PAGESIZE + MEMORY_MB_MAX * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (room, room))

    def too_slow(*_: object) -> None:
        raise TooSlowError(f"more than {INPUT_SECONDS_MAX} s")

    signal.signal(signal.SIGPROF, too_slow)
    with (folder / "current").open("w+b") as file:
        file.truncate(8 + INPUT_BYTES_MAX)
        current = mmap.mmap(file.fileno(), 0)

        def note(data: bytes) -> None:
            current[: 8 + len(data)] = len(data).to_bytes(8, "little") + data

        outcome = campaign(
            target,
            np.random.default_rng([seed, zlib.crc32(name.encode())]),
            seconds=seconds,
            watch=lambda s: signal.setitimer(signal.ITIMER_PROF, s),
            note=note,
        )
    for place, data in enumerate(outcome.examples.values()):
        (folder / f"{place}.input").write_bytes(data)
    (folder / "outcome.json").write_text(json.dumps(outcome.plain()))


def supervise(name: str, seconds: float, seed: int, corpus: Path | None) -> dict[str, Any]:
    """Run one campaign in a process of its own; its figures. Inputs of findings go into the corpus."""
    memory = Path("/dev/shm")  # a file an input: on a disk that would be most of the time
    with tempfile.TemporaryDirectory(prefix="vedette-fuzz-", dir=memory if memory.is_dir() else None) as scratch:
        folder = Path(scratch)
        command = [sys.executable, str(Path(__file__).resolve()), "--child", scratch, "--parser", name]
        start = time.monotonic()
        try:
            ended = subprocess.run(
                [*command, "--seconds", str(seconds), "--seed", str(seed)],
                timeout=seconds + GRACE_SECONDS,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                check=False,
            )
            how = f"the process ended with {ended.returncode}: {ended.stderr.decode('utf-8', 'replace')[-300:]!r}"
        except subprocess.TimeoutExpired:
            how = f"the process did not answer for {GRACE_SECONDS:.0f} s"
        examples = [path.read_bytes() for path in sorted(folder.glob("*.input"))]
        written = folder / "outcome.json"
        if written.exists():
            result: dict[str, Any] = json.loads(written.read_text())
        else:
            lost = Outcome(seconds=time.monotonic() - start)
            current = (folder / "current").read_bytes() if (folder / "current").exists() else bytes(8)
            lost.found(how, current[8 : 8 + int.from_bytes(current[:8], "little")])
            examples, result = list(lost.examples.values()), lost.plain()
    if corpus is not None:
        corpus.mkdir(parents=True, exist_ok=True)
        for data in examples:
            (corpus / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}.hex").write_text(data.hex() + "\n")
    return result


def main() -> None:
    """Run the campaigns and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--parser", action="append", choices=list(TARGETS), help="only this one; may be repeated")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for each parser")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="parsers at a time")
    parser.add_argument("--corpus", type=Path, help="folder that keeps the inputs of findings, as hex")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names: list[str] = list(dict.fromkeys(arguments.parser or TARGETS))
    if arguments.child is not None:
        child(names[0], arguments.seconds, arguments.seed, arguments.child)
        return
    start = time.monotonic()
    with ThreadPoolExecutor(max(arguments.jobs, 1)) as jobs:
        run = jobs.map(lambda name: supervise(name, arguments.seconds, arguments.seed, arguments.corpus), names)
        parsers = dict(zip(names, run, strict=True))
    result: dict[str, Any] = {key: sum(p[key] for p in parsers.values()) for key in ("inputs", "accepted", "refused")}
    result["findings"] = sum(p["findings"] for p in parsers.values())
    result["rss_growth_mb_max"] = max(p["rss_growth_mb"] for p in parsers.values())
    result |= {
        "seconds": round(time.monotonic() - start, 1),
        "seed": arguments.seed,
        "python": platform.python_version(),
    }
    if arguments.json:
        print(json.dumps(result | {"parsers": parsers}))
    else:
        for name, p in parsers.items():
            counts = "  ".join(f"{key} {value}" for key, value in p.items() if key != "faults")
            print(f"{name:<12}  {counts}", *(f"\n    {n} × {what}" for what, n in p["faults"].items()), sep="")
        print("  ".join(f"{key} {value}" for key, value in result.items()))
    sys.exit(1 if result["findings"] else 0)


if __name__ == "__main__":
    main()
