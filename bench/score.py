"""What scoring costs: the node's judging against the bare interpreter call, and rows a second against a peer.

Judging is `CalibratedModel.judge`, as the detector calls it: with the windows of one tick together, from scaled windows
to scores and p-values. Ticks have 1, 8 or 64 windows; the headline is 8, a gateway with several local devices. The bare
calls get the same rows one by one. Making, scaling and remembering windows and the reasons of rare ones are not in it.

All figures come from one process on one thread, in many short repetitions that alternate and of which the median
counts: shorter than a scheduler's slice, so that a busy machine spoils few of them, and both sides alike. Rows are
synthetic (12 latent factors) and benign: a score beyond all that were calibrated on would cost the tail's law as well.

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
from vedette_core.learning.network import build_network
from vedette_core.learning.spec import NetworkSpec, dense_spec, flow_spec
from vedette_device.baseline import Baseline
from vedette_device.calibrated_model import CalibratedModel, shaped
from vedette_device.features import Window
from vedette_device.inference import INTERPRETER_MODULES, Backend, open_model
from vedette_schemas.features import NETWORK_FLOWS, FeatureSchema, sensor_schema
from vedette_schemas.model import Variant

if TYPE_CHECKING or __package__:
    from bench.kitnet import KitnetEnsemble
    from bench.node_scoring import HALF_LIFE_WINDOWS, IDENTITY
else:
    from kitnet import KitnetEnsemble
    from node_scoring import HALF_LIFE_WINDOWS, IDENTITY

REPETITIONS: Final = 301
PEER_REPETITIONS: Final = 31
TICKS: Final = (1, 8, 64)
"""Windows of one call."""
TICK: Final = 8
"""Of the headline: a gateway with several local devices has about so many windows at once."""
ROWS: Final = 64
"""Rows of one repetition, a multiple of every tick: 0.1 to 2 ms."""
ENTITIES: Final = 8
PEER_CALLS: Final = 40
"""Rows of one repetition of the peer, which takes 0.6 ms for one: enough to run warm."""
LATENT_FACTORS: Final = 12
TRAINING_ROWS: Final = 2000
PEER_COLUMNS: Final = 115
"""Width of the rows that the peer was published with."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A trained, built, opened and calibrated model, with rows to score.

    Attributes:
        artifact: what `backend` runs.
        backend: back end of `model`.
        model: calibrated on other rows than it learnt from and than it scores.
        training: ``(TRAINING_ROWS, history, columns)`` scaled.
        inputs: ``(ROWS, history, columns)`` scaled.
        entities: whose input each is, in turn.
    """

    artifact: bytes
    backend: Backend
    model: CalibratedModel
    training: Float32
    inputs: Float32
    entities: list[str]


def synthetic_rows(count: int, shape: tuple[int, ...], seed: int) -> Float32:
    """Correlated rows ``(count, *shape)`` with `LATENT_FACTORS` factors and noise."""
    rng = np.random.default_rng(seed)
    width = int(np.prod(shape))
    mixing = rng.standard_normal((LATENT_FACTORS, width)) / LATENT_FACTORS**0.5
    rows = rng.standard_normal((count, LATENT_FACTORS)) @ mixing + 0.3 * rng.standard_normal((count, width))
    return rows.astype(np.float32).reshape(count, *shape)


def prepare(spec: NetworkSpec, schema: FeatureSchema, variant: Variant) -> Subject:
    """Train, quantise, open and calibrate a model on synthetic rows, which become positive values like counts."""
    network = build_network(spec)
    rng = np.random.default_rng(1)
    total = 2 * TRAINING_ROWS + ROWS
    values = np.expm1(np.abs(synthetic_rows(total, (schema.history, len(schema.columns)), seed=2)))
    entities = [f"device_{i % ENTITIES}" for i in range(total)]
    named = list(zip(entities, values, strict=True))
    baseline = Baseline.fit(
        schema, [Window(entity, float(i), i + 1.0, rows[-1]) for i, (entity, rows) in enumerate(named[:TRAINING_ROWS])]
    )
    inputs = np.stack([baseline.scale(entity, rows) for entity, rows in named])
    training, held_out = inputs[:TRAINING_ROWS], slice(TRAINING_ROWS, 2 * TRAINING_ROWS)
    weights = network.initial_weights(rng)
    result = train(
        network,
        weights,
        shaped(training, network),
        epochs=3,
        batch_size=32,
        learning_rate=2e-3,
        prox_mu=0.0,
        rng=rng,
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
    model = CalibratedModel.measure(
        backend, IDENTITY, baseline, inputs[held_out], entities[held_out], HALF_LIFE_WINDOWS
    )
    return Subject(built.data, backend, model, training, inputs[-ROWS:], entities[-ROWS:])


def judging(subject: Subject, tick: int) -> Callable[[], None]:
    """All rows, so many in one call."""
    judge = subject.model.judge
    ticks = [(subject.inputs[i : i + tick], subject.entities[i : i + tick]) for i in range(0, ROWS, tick)]

    def run() -> None:
        for inputs, entities in ticks:
            judge(inputs, entities)

    return run


def bare(subject: Subject) -> Callable[[], None]:
    """The same artifact and rows through nothing but the interpreter's public calls."""
    interpreter: Any = importlib.import_module(INTERPRETER_MODULES[subject.backend.name]).Interpreter(
        model_content=subject.artifact, num_threads=1
    )
    interpreter.allocate_tensors()
    source, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]["index"]
    index = source["index"]
    rows = [row.reshape(source["shape"]) for row in subject.inputs]

    def run() -> None:
        for row in rows:
            interpreter.set_tensor(index, row)
            interpreter.invoke()
            interpreter.get_tensor(result)

    return run


def seconds(run: Callable[[], None], clock: Callable[[], float] = time.perf_counter) -> float:
    """Time of one run by a clock."""
    start = clock()
    run()
    return clock() - start


def window_cost(subject: Subject, tick: int) -> tuple[float, float, float]:
    """Medians of (µs a window judged, µs a bare call, their ratio a repetition)."""
    ours, theirs = judging(subject, tick), bare(subject)
    ours()
    theirs()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(REPETITIONS)]
    scale = 1e6 / ROWS
    return median(a for a, _ in pairs) * scale, median(b for _, b in pairs) * scale, median(a / b for a, b in pairs)


def measure() -> dict[str, Any]:
    """Every figure of this benchmark."""
    flow = prepare(flow_spec(*NETWORK_FLOWS.input_shape), NETWORK_FLOWS, Variant.INT8)
    costs = {tick: window_cost(flow, tick) for tick in TICKS}
    window_us, bare_us, ratio = costs[TICK]

    channels = sensor_schema(tuple(f"channel_{i}" for i in range(7)))
    sensor = prepare(dense_spec(*channels.input_shape), channels, Variant.INT8)
    sensor_us, sensor_bare_us, sensor_ratio = window_cost(sensor, 1)

    columns = tuple(f"column_{i:03d}" for i in range(PEER_COLUMNS))
    wide_schema = FeatureSchema(use_case="network", version=1, columns=columns, window_s=1.0, history=1)
    wide = prepare(dense_spec(PEER_COLUMNS), wide_schema, Variant.INT8)
    learning = wide.training.reshape(-1, PEER_COLUMNS).astype(np.float64)
    peer = KitnetEnsemble(learning)
    for row in learning:
        peer.learn(row)
    peer_rows = wide.inputs[:PEER_CALLS].reshape(-1, PEER_COLUMNS).astype(np.float64)

    def peer_run() -> None:
        for row in peer_rows:
            peer.score(row)

    single, many = judging(wide, 1), judging(wide, ROWS)
    for warm_up in (single, many, peer_run):
        warm_up()
    # The peer's repetitions are longer than a scheduler's slice: processor time of the (only) thread, on both sides.
    times = [tuple(seconds(r, time.thread_time) for r in (single, many, peer_run)) for _ in range(PEER_REPETITIONS)]
    return {
        "window_us_p50": round(window_us, 3),
        "bare_us_p50": round(bare_us, 3),
        "ratio": round(ratio, 3),
        "tick": TICK,
        "window_us_by_tick": {str(tick): round(us, 3) for tick, (us, _, _) in costs.items()},
        "ratio_by_tick": {str(tick): round(each, 3) for tick, (_, _, each) in costs.items()},
        "sensor_window_us_p50": round(sensor_us, 3),
        "sensor_bare_us_p50": round(sensor_bare_us, 3),
        "sensor_ratio": round(sensor_ratio, 3),
        "rows_per_second": round(median(ROWS / a for a, _, _ in times)),
        "rows_per_second_batched": round(median(ROWS / b for _, b, _ in times)),
        "kitnet_rows_per_second": round(median(PEER_CALLS / c for _, _, c in times)),
        "ratio_kitnet": round(median((ROWS / a) / (PEER_CALLS / c) for a, _, c in times), 1),
        "ratio_kitnet_batched": round(median((ROWS / b) / (PEER_CALLS / c) for _, b, c in times), 1),
        "kitnet_autoencoders": len(peer.ensemble) + 1,
        "columns": PEER_COLUMNS,
        "backend": flow.backend.name,
        "variant": Variant.INT8.value,
        "artifact_bytes": len(flow.artifact),
        "repetitions": REPETITIONS,
        "calibration_scores": TRAINING_ROWS,
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
