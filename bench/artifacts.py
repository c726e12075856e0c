"""What a release costs to fetch, as a diff and whole; and a device's time to verify and activate it.

The fleet of the shipped recordings learns for some rounds, as in the demo but in one process: each node trains on its
own benign windows, updates are clipped and rounded to 8 bits, their mean is the step. Each round's release is built in
every variant, and its diff is made from the release before it, as the registry does. Beside it, on the same files:
zstd with the parent as its dictionary, where ``zstandard`` is installed, and LZMA of the whole file.

Then a real repository and a real device, over retained topics in memory: the metadata of a release are verified, its
INT8 file is fetched by its diff and whole, staged, loaded, and the slots are switched, with every fsync.

Run: ``python bench/artifacts.py [--json] [--rounds N] [--repository DIR]``
With ``--repository`` the releases that a site keeps are measured, too, for example those of ``vedette demo --keep``.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: one core means one thread

import argparse
import hashlib
import importlib
import json
import lzma
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np

from vedette.demo.light_rows import cut, recorded
from vedette.demo.recordings import SHIPPED
from vedette_aggregator.artifacts import TFLITE_VARIANTS, build_artifacts
from vedette_aggregator.publication import Publication, retained_messages
from vedette_aggregator.registry import Registry
from vedette_aggregator.releases import TaskModel
from vedette_aggregator.round_settings import RoundSettings
from vedette_aggregator.settings import TaskSection
from vedette_core.learning.artifact_diff import apply_diff, make_diff
from vedette_core.learning.encoding import Encoding, aggregate, encode
from vedette_device.inference import open_model
from vedette_device.model_slots import ModelSlots
from vedette_device.training import train_locally
from vedette_device.trust import RetainedMemory, TrustClient
from vedette_device.update_events import InstalledModel
from vedette_schemas.errors import RefusedError
from vedette_schemas.model import ReleaseTarget, Variant
from vedette_schemas.round import Plan, plan_bytes
from vedette_schemas.topics import Topics

ROUNDS: Final = 8
NODES: Final = 8
TASK: Final = "network"
VARIANTS: Final = (Variant.WEIGHTS, *TFLITE_VARIANTS)
REPETITIONS: Final = 31
ZSTD_LEVEL: Final = 19
TARGET_RATIO: Final = 0.5

Release = dict[Variant, bytes]


def section() -> TaskSection:
    """The demo's network task."""
    return TaskSection.model_validate(
        {
            "task": TASK,
            "use_case": "network",
            "training": {"local_epochs": 20, "batch_size": 32, "learning_rate": 0.003, "examples_min": 32},
            "round": {"clip_norm": 20.0},
        }
    )


def plan_of(task: TaskSection, model: TaskModel) -> Plan:
    """The signed plan of its rounds."""
    settings = RoundSettings(
        **task.round.model_dump(), **task.training.model_dump(), **task.privacy.model_dump(), masked=False
    )
    return model.plan(settings, TASK)


def trained(rounds: int) -> list[Release]:
    """A release a round, each made from the one before by a fleet that learns."""
    task = section()
    model = TaskModel.of(task)
    plan, network = plan_of(task, model), model.network
    rows, _ = cut(recorded(SHIPPED), NODES)
    rng = np.random.default_rng(1)
    weights, releases = network.initial_weights(rng), []
    for number in range(rounds + 1):
        encoding = Encoding(plan.dimension, plan.update.clip_norm, f"round {number}".encode(), plan.update.bits)
        results = [train_locally(plan, network, weights, x, rng) for x in rows]
        levels = np.stack([np.asarray(encode(r.delta, encoding, rng).levels, np.uint8) for r in results])
        weights = weights + aggregate(levels, np.ones(len(rows), np.int64), encoding)
        seen = [r.activation_ranges for r in results]
        ranges = {t: (min(r[t][0] for r in seen), max(r[t][1] for r in seen)) for t in seen[0]}
        built = build_artifacts(network, weights, task=TASK, schema=model.schema, ranges=ranges, variants=VARIANTS)
        releases.append({variant: artifact.data for variant, artifact in built.items()})
    return releases


def kept(repository: Path) -> dict[str, list[Release]]:
    """Releases that a real site keeps, by task, oldest first."""
    registry, found = Registry(repository), dict[str, list[Release]]()
    for task in registry.tasks:
        for version in registry.versions(task):
            files = {}
            for variant in VARIANTS:
                try:
                    files[variant] = registry.target(task, version, variant)[1]
                except RefusedError:
                    continue
            found.setdefault(task, []).append(files)
    return found


def diff_figures(releases: Sequence[Release]) -> dict[str, Any]:
    """Bytes of every variant, for every step from one release to the next."""
    figures: dict[str, Any] = {}
    zstd = _zstd()
    for variant in VARIANTS:
        steps = [(a[variant], b[variant]) for a, b in pairwise(releases) if variant in a and variant in b]
        if not steps:
            continue
        diffs, made = zip(*(_timed(partial(make_diff, p, c)) for p, c in steps), strict=True)
        applied = [_timed(partial(apply_diff, p, d, len(c))) for (p, c), d in zip(steps, diffs, strict=True)]
        if any(found != child for (found, _), (_, child) in zip(applied, steps, strict=True)):
            raise AssertionError(f"{variant}: a diff gives other bytes")
        full = [len(child) for _, child in steps]
        ratios = [len(d) / n for d, n in zip(diffs, full, strict=True)]
        figures[variant.value] = {
            "full_bytes": round(median(full)),
            "diff_bytes": round(median(map(len, diffs))),
            "ratio": round(median(ratios), 3),
            "ratio_by_step": [round(r, 3) for r in ratios],
            "within_target": median(ratios) <= TARGET_RATIO,
            "whole_file_lzma_ratio": round(median(len(lzma.compress(c)) / len(c) for _, c in steps), 3),
            "zstd_dictionary_ratio": zstd and round(median(len(zstd(p, c)) / len(c) for p, c in steps), 3),
            "make_ms": round(1e3 * median(made), 2),
            "apply_ms": round(1e3 * median(seconds for _, seconds in applied), 3),
        }
    return figures


def device_figures(folder: Path, before: Release, after: Release, repetitions: int) -> dict[str, Any]:
    """A device's time, medians, for an update of its INT8 model from one release to the next."""
    site = _Site(folder, before, after)
    times: dict[str, list[float]] = {}
    fetched: dict[str, int] = {}

    def timed(name: str, what: Callable[[], Any]) -> Any:
        value, seconds = _timed(what)
        times.setdefault(name, []).append(1e3 * seconds)
        return value

    for number in range(repetitions):
        own = folder / f"device-{number}"
        trust = site.device(own / "trust", site.first)
        slots = ModelSlots(own / "slots")
        old = site.install(slots, trust.refresh()[0].targets[Variant.INT8].sha256, before[Variant.INT8], 0)
        trust = site.device(own / "trust", site.second)
        trust.downloads.on_download = lambda _task, how, count: fetched.update({how: count})
        (release,) = timed("verify_metadata_ms", trust.refresh)
        target = release.targets[Variant.INT8]
        data = timed("fetch_by_diff_ms", partial(trust.download, target, slots.held))
        timed("fetch_whole_ms", partial(trust.download, target))
        model = old.model_copy(update={"version": 1, "sha256": target.sha256, "length": target.length})
        timed("stage_ms", partial(slots.stage, model, data))
        timed("load_ms", partial(_load, slots, model))
        timed("switch_ms", partial(slots.activate, model))
    if set(fetched) != {"diff", "full"}:
        raise AssertionError(f"fetched {fetched}, expected once by a diff and once whole")
    figures: dict[str, Any] = {name: round(median(values), 2) for name, values in times.items()}
    figures["verify_and_activate_ms"] = round(sum(v for k, v in figures.items() if k != "fetch_whole_ms"), 2)
    return figures | {"fetched_bytes": fetched, "repetitions": repetitions}


class _Site:
    """A repository with two releases, and what the broker kept after each."""

    def __init__(self, folder: Path, before: Release, after: Release) -> None:
        self._folder, self._topics = folder, Topics("bench")
        registry, task = Registry.create(folder / "trust", "bench", [TASK], time.time()), section()
        self._plan = plan_bytes(plan_of(task, TaskModel.of(task)))
        self._schema = TaskModel.of(task).schema.digest
        (folder / "root.json").write_bytes(registry.root)
        self.first = self._retained([self._publish(registry, 0, before)])
        self.second = self._retained([self._publish(registry, 1, after)], self.first)

    def device(self, folder: Path, retained: RetainedMemory) -> TrustClient:
        return TrustClient(folder, self._folder / "root.json", self._topics, [TASK], retained, time.time)

    def install(self, slots: ModelSlots, sha256: str, data: bytes, version: int) -> InstalledModel:
        model = InstalledModel(
            task=TASK, version=version, variant=Variant.INT8, backend="litert", sha256=sha256, length=len(data),
            metadata_version=(1, 1),
        )  # fmt: skip
        slots.stage(model, data)
        slots.activate(model)
        slots.confirm(model)
        return model

    def _publish(self, registry: Registry, version: int, release: Release) -> Publication:
        packed, digest = self._plan
        files = {**release, Variant.PLAN: packed}
        return registry.publish(TASK, version, files, self._described(version, files, digest), time.time())

    def _described(self, version: int, files: Iterable[Variant], plan: str) -> dict[Variant, ReleaseTarget]:
        forms = {Variant.WEIGHTS: "weights", Variant.PLAN: "plan"}
        return {
            variant: ReleaseTarget.model_validate(
                {
                    "task": TASK, "version": version, "parent": "", "round": version, "variant": variant,
                    "format": forms.get(variant, "tflite"), "feature_schema": self._schema, "runtime_min": "",
                    "contributors": NODES, "transcript": "", "plan": plan, "metrics": {}, "active": True,
                }
            )
            for variant in files
        }  # fmt: skip

    def _retained(
        self, publications: Sequence[Publication], before: Mapping[str, bytes] | None = None
    ) -> RetainedMemory:
        found = RetainedMemory(before or {})
        for publication in publications:
            found.update({t: p for t, p in retained_messages(self._topics, publication) if p})
        registry = Registry(self._folder / "trust")
        found.update({t: p for t, p in retained_messages(self._topics, registry.retained()) if p})
        return found


def _zstd() -> Callable[[bytes, bytes], bytes] | None:
    try:
        zstandard: Any = importlib.import_module("zstandard")
    except ImportError:
        return None

    def compress(parent: bytes, child: bytes) -> bytes:
        dictionary = zstandard.ZstdCompressionDict(parent, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        packed = zstandard.ZstdCompressor(level=ZSTD_LEVEL, dict_data=dictionary, write_checksum=False).compress(child)
        return bytes(packed)

    return compress


def _load(slots: ModelSlots, model: InstalledModel) -> Any:
    return open_model(slots.load(model), sha256=model.sha256)


def _timed(what: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    value = what()
    return value, time.perf_counter() - start


def machine_facts() -> dict[str, Any]:
    """What was measured on."""
    models = [
        line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "machine": platform.machine(),
        "cpu": models[0] if models else "unknown",
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="updates that are measured")
    parser.add_argument("--repository", type=Path, help="also measure the releases that this repository keeps")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS, help="updates of a device")
    arguments = parser.parse_args()
    releases = trained(max(arguments.rounds, 1))
    result: dict[str, Any] = {"rounds": len(releases) - 1, "variants": diff_figures(releases)}
    if arguments.repository is not None:
        found = kept(arguments.repository)
        result["repository"] = {task: diff_figures(each) for task, each in found.items() if len(each) > 1}
    with tempfile.TemporaryDirectory() as folder:
        last = releases[-2:]
        result["device"] = device_figures(Path(folder), last[0], last[1], max(arguments.repetitions, 1))
    digest = hashlib.sha256(releases[-1][Variant.INT8]).hexdigest()
    result |= {"last_int8_sha256": digest, "target_ratio": TARGET_RATIO} | machine_facts()
    if arguments.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        if isinstance(value, dict):
            for name, inner in value.items():
                print(f"{key} {name}: {inner}")
        else:
            print(f"{key}: {value}")


if __name__ == "__main__":
    main()
