"""What scoring costs: a window end to end against the bare interpreter call, and rows a second against a peer.

Both figures come from one process on one thread, in many short repetitions that alternate and of which the median
counts: shorter than a scheduler's slice, so that a busy machine spoils few of them, and both sides alike. Rows are
synthetic (12 latent factors); no figure here depends on their values.

Run: ``python bench/score.py [--json]``
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: one thread on both sides

import argparse
import importlib
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vedette_aggregator.artifacts import build_artifacts
from vedette_core.learning.layout import Float32
from vedette_core.learning.local_training import train
from vedette_core.learning.network import Network, build_network
from vedette_core.learning.scoring import calibrate_residuals
from vedette_core.learning.spec import NetworkSpec, dense_spec, flow_spec
from vedette_device.inference import INTERPRETER_MODULES, Backend, WindowScorer, open_model
from vedette_schemas.features import NETWORK_FLOWS, FeatureSchema, sensor_schema
from vedette_schemas.model import Variant

if TYPE_CHECKING or __package__:
    from bench.kitnet import KitnetEnsemble
else:
    from kitnet import KitnetEnsemble

REPETITIONS: Final = 301
PEER_REPETITIONS: Final = 31
CALLS: Final = 200
PEER_CALLS: Final = 40
"""Rows of one repetition of the peer, which takes 0.6 ms for one: enough to run warm."""
LATENT_FACTORS: Final = 12
TRAINING_ROWS: Final = 2000
PEER_COLUMNS: Final = 115
"""Width of the rows that the peer was published with."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A trained, built and opened model with rows to score."""

    network: Network
    artifact: bytes
    backend: Backend
    scorer: WindowScorer
    rows: Float32


def synthetic_rows(count: int, shape: tuple[int, ...], seed: int) -> Float32:
    """Correlated rows ``(count, *shape)`` with `LATENT_FACTORS` factors and noise."""
    rng = np.random.default_rng(seed)
    width = int(np.prod(shape))
    mixing = rng.standard_normal((LATENT_FACTORS, width)) / LATENT_FACTORS**0.5
    rows = rng.standard_normal((count, LATENT_FACTORS)) @ mixing + 0.3 * rng.standard_normal((count, width))
    return rows.astype(np.float32).reshape(count, *shape)


def prepare(spec: NetworkSpec, schema: FeatureSchema, variant: Variant) -> Subject:
    """Train, quantise, open and calibrate a model on synthetic rows."""
    network = build_network(spec)
    rng = np.random.default_rng(1)
    x = synthetic_rows(2 * TRAINING_ROWS, spec.input_shape, seed=2)
    weights = network.initial_weights(rng)
    result = train(
        network, weights, x[:TRAINING_ROWS], epochs=3, batch_size=32, learning_rate=2e-3, prox_mu=0.0, rng=rng
    )
    built = build_artifacts(
        network,
        weights + result.delta,
        task="bench",
        schema=schema,
        ranges=result.activation_ranges,
        variants=[variant],
    )[variant]
    backend = open_model(built.data, sha256=built.sha256).backend
    held_out = x[TRAINING_ROWS:]
    scorer = WindowScorer(backend, calibrate_residuals(network, held_out, backend.reconstruct(held_out)))
    return Subject(network, built.data, backend, scorer, held_out[:CALLS])


def end_to_end(subject: Subject) -> Callable[[], None]:
    """Scaled row → back end → residual score, one row after the other."""
    rows, score = list(subject.rows), subject.scorer.score

    def run() -> None:
        for row in rows:
            score(row)

    return run


def bare(subject: Subject) -> Callable[[], None]:
    """The same artifact and rows through nothing but the interpreter's public calls."""
    interpreter: Any = importlib.import_module(INTERPRETER_MODULES[subject.backend.name]).Interpreter(
        model_content=subject.artifact, num_threads=1
    )
    interpreter.allocate_tensors()
    source, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]["index"]
    index = source["index"]
    rows = [row.reshape(source["shape"]) for row in subject.rows]

    def run() -> None:
        for row in rows:
            interpreter.set_tensor(index, row)
            interpreter.invoke()
            interpreter.get_tensor(result)

    return run


def batched(subject: Subject) -> Callable[[], None]:
    """All rows in one call."""

    def run() -> None:
        subject.scorer.score_many(subject.rows)

    return run


def seconds(run: Callable[[], None], clock: Callable[[], float] = time.perf_counter) -> float:
    """Time of one run by a clock."""
    start = clock()
    run()
    return clock() - start


def window_cost(subject: Subject) -> tuple[float, float, float]:
    """Medians of (µs end to end, µs bare, their ratio a repetition)."""
    ours, theirs = end_to_end(subject), bare(subject)
    ours()
    theirs()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(REPETITIONS)]  # each about half a millisecond
    scale = 1e6 / len(subject.rows)
    return median(a for a, _ in pairs) * scale, median(b for _, b in pairs) * scale, median(a / b for a, b in pairs)


def measure() -> dict[str, Any]:
    """Every figure of this benchmark."""
    flow = prepare(flow_spec(*NETWORK_FLOWS.input_shape), NETWORK_FLOWS, Variant.INT8)
    window_us, bare_us, ratio = window_cost(flow)

    channels = sensor_schema(tuple(f"channel_{i}" for i in range(7)))
    sensor = prepare(dense_spec(*channels.input_shape), channels, Variant.INT8)
    sensor_us, sensor_bare_us, sensor_ratio = window_cost(sensor)

    columns = tuple(f"column_{i:03d}" for i in range(PEER_COLUMNS))
    wide_schema = FeatureSchema(use_case="network", version=1, columns=columns, window_s=1.0, history=1)
    wide = prepare(dense_spec(PEER_COLUMNS), wide_schema, Variant.INT8)
    learning = synthetic_rows(TRAINING_ROWS, (PEER_COLUMNS,), seed=2).astype(np.float64)
    peer = KitnetEnsemble(learning)
    for row in learning:
        peer.learn(row)
    peer_rows = wide.rows[:PEER_CALLS].astype(np.float64)

    def peer_run() -> None:
        for row in peer_rows:
            peer.score(row)

    single, many = end_to_end(wide), batched(wide)
    for warm_up in (single, many, peer_run):
        warm_up()
    # The peer's repetitions are longer than a scheduler's slice: processor time of the (only) thread, on both sides.
    times = [tuple(seconds(r, time.thread_time) for r in (single, many, peer_run)) for _ in range(PEER_REPETITIONS)]
    count = len(wide.rows)
    rows_s = median(count / a for a, _, _ in times)
    peer_rows_s = median(PEER_CALLS / c for _, _, c in times)
    return {
        "window_us_p50": round(window_us, 3),
        "bare_us_p50": round(bare_us, 3),
        "ratio": round(ratio, 3),
        "sensor_window_us_p50": round(sensor_us, 3),
        "sensor_bare_us_p50": round(sensor_bare_us, 3),
        "sensor_ratio": round(sensor_ratio, 3),
        "rows_per_second": round(rows_s),
        "rows_per_second_batched": round(median(count / b for _, b, _ in times)),
        "kitnet_rows_per_second": round(peer_rows_s),
        "ratio_kitnet": round(median((count / a) / (PEER_CALLS / c) for a, _, c in times), 1),
        "kitnet_autoencoders": len(peer.ensemble) + 1,
        "columns": PEER_COLUMNS,
        "backend": flow.backend.name,
        "variant": Variant.INT8.value,
        "artifact_bytes": len(flow.artifact),
        "repetitions": REPETITIONS,
        "rows": "synthetic",
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--output", type=Path, help="also write the JSON object to this file")
    arguments = parser.parse_args()
    result = measure()
    if arguments.output:
        arguments.output.write_text(json.dumps(result) + "\n")
    if arguments.json:
        print(json.dumps(result))
        return
    width = max(map(len, result))
    for key, value in result.items():
        print(f"{key:<{width}}  {value}")


if __name__ == "__main__":
    main()
