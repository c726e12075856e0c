"""What was tried to come nearer to the figures that we want, beside what the product does, in the same run.

    python bench/detection_tries.py --data ../shared/data --set skab --set smd --json

Every row is one federated training (or what is said), one threshold for 1 % that is fixed before the test stretch, and
three figures over the devices of a set: mean AUC, mean share of anomalous windows above 1 % false positives, and the
realised false-positive rate. Nothing is chosen a set: whatever is tried is tried with the same numbers on all of them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vedette.evaluation import baselines, behaviour_sets, network_sets, sensor_sets
from vedette.evaluation.datasets import DataSet, Fleet, Loader
from vedette.evaluation.detectors import (
    CONFIGURATIONS,
    JUDGED_AT_ONCE,
    Configuration,
    Learnt,
    calibrated,
    float_backend,
    learn_alone,
    learn_together,
    network_for,
    scores_of,
)
from vedette.evaluation.metrics import area, roc_curve, tpr_at
from vedette.evaluation.stretches import Prepared, Stretch, prepare_fleet
from vedette_core.learning.calibration import RollingCalibration
from vedette_core.learning.local_training import train
from vedette_core.learning.network import Network
from vedette_device.calibrated_model import shaped
from vedette_device.features.scaling import CLIP

Float64 = npt.NDArray[np.float64]
Scores = list[tuple[Float64, Float64]]
"""Of the calibration stretch and of the test stretch, a pair a device."""

ALPHA: Final = 0.01
LEVEL_HALF_LIFE: Final = 300.0
"""Windows in which the usual level of a score follows it half way."""
LEVEL_STEP_MAX: Final = 0.3
"""Of the logarithm: an attack moves the level no faster than a drift."""
TREND_HALF_LIFE: Final = 100.0
FINE_EPOCHS: Final = 16
WHITE: Final = 0.1
"""Share of the diagonal in the covariance of residuals."""
COLUMNS_MAX: Final = 600
USUAL_QUANTILE: Final = 0.9
LOADERS: Final[Mapping[str, Loader]] = {**sensor_sets.LOADERS, **behaviour_sets.LOADERS, **network_sets.LOADERS}


def model_scores(network: Network, models: Sequence[Learnt], devices: Sequence[Prepared]) -> Scores:
    """What the product's scoring says with these weights, a model a device."""
    found = []
    for learnt, device in zip(models, devices, strict=True):
        model, stretch = calibrated(float_backend(network, learnt), device), device.calibrate
        own = np.concatenate(
            [
                model.judge(stretch.inputs[i : i + JUDGED_AT_ONCE], stretch.entities[i : i + JUDGED_AT_ONCE]).scores
                for i in range(0, len(stretch.inputs), JUDGED_AT_ONCE)
            ]
        )
        found.append((own, scores_of(model, device)))
    return found


def following_level(pair: tuple[Float64, Float64], device: Prepared) -> tuple[Float64, Float64]:
    """Scores over their own slowly following level, an entity each."""
    scores = np.concatenate(pair)
    usual = float(np.median(np.log(np.maximum(pair[0], 1e-6))))
    weight, levels, out = 1.0 - 0.5 ** (1.0 / LEVEL_HALF_LIFE), dict[str, float](), np.empty_like(scores)
    for i, entity in enumerate(device.calibrate.entities + device.test.entities):
        level = levels.get(entity, 0.0)
        rest = float(np.log(max(scores[i], 1e-6))) - usual - level
        out[i] = np.exp(rest)
        levels[entity] = level + weight * float(np.clip(rest, -LEVEL_STEP_MAX, LEVEL_STEP_MAX))
    return out[: len(pair[0])], out[len(pair[0]) :]


def detrended(device: Prepared) -> Prepared:
    """Inputs less what each column has been of late, an entity each."""
    weight, means = 1.0 - 0.5 ** (1.0 / TREND_HALF_LIFE), dict[str, npt.NDArray[np.float32]]()

    def follow(stretch: Stretch) -> Stretch:
        out = np.empty_like(stretch.inputs)
        for i, entity in enumerate(stretch.entities):
            rows = stretch.inputs[i]
            mean = means.get(entity, rows.mean(axis=0))
            out[i] = np.clip(rows - mean, -CLIP, CLIP)
            means[entity] = (mean + weight * np.clip(rows[-1] - mean, -1.0, 1.0)).astype(np.float32)
        return replace(stretch, inputs=out)

    first, second, third = follow(device.train), follow(device.calibrate), follow(device.test)
    return replace(device, train=first, calibrate=second, test=third)


def whitened(network: Network, learnt: Learnt, device: Prepared) -> tuple[Float64, Float64]:
    """Distance of the residuals in the metric of those of the training stretch."""
    backend = float_backend(network, learnt)

    def residuals(stretch: Stretch) -> Float64:
        pieces = []
        for i in range(0, len(stretch.inputs), JUDGED_AT_ONCE):
            x = shaped(stretch.inputs[i : i + JUDGED_AT_ONCE], network)
            error = device.baseline.bound(backend.reconstruct(x)) - network.target(x)
            pieces.append(error.reshape(len(x), -1))
        return np.concatenate(pieces).astype(np.float64)

    known = residuals(device.train)
    mean, covariance = known.mean(axis=0), np.atleast_2d(np.cov(known, rowvar=False))
    diagonal = np.diag(np.diag(covariance))
    ridge = 1e-3 * max(float(np.trace(covariance)) / len(covariance), 1e-6) * np.eye(len(covariance))
    inverse = np.linalg.inv((1.0 - WHITE) * covariance + WHITE * diagonal + ridge)

    def score(stretch: Stretch) -> Float64:
        centred = residuals(stretch) - mean
        found: Float64 = np.sqrt(np.maximum(np.einsum("ij,ij->i", centred @ inverse, centred), 0.0))
        return found

    return score(device.calibrate), score(device.test)


def joined(first: tuple[Float64, Float64], second: tuple[Float64, Float64]) -> tuple[Float64, Float64]:
    """The larger of two scores, each over its usual benign size."""
    sizes = [max(float(np.quantile(pair[0], USUAL_QUANTILE)), 1e-9) for pair in (first, second)]
    calibration, test = (np.maximum(a / sizes[0], b / sizes[1]) for a, b in zip(first, second, strict=True))
    return calibration, test


def fine_tuned(network: Network, learnt: Learnt, device: Prepared, config: Configuration) -> Learnt:
    """The common weights, trained on by one device."""
    result = train(
        network,
        learnt.weights,
        shaped(device.train.inputs, network),
        epochs=FINE_EPOCHS,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        prox_mu=0.0,
        rng=np.random.default_rng(1),
    )
    return replace(learnt, weights=(learnt.weights + result.delta).astype(np.float32))


def tries(data: DataSet, fleet: Fleet, devices: Sequence[Prepared], seed: int) -> dict[str, Scores]:
    """Scores of everything that was tried, by its name; `product` is what the product does."""
    network, config = network_for(data.suite, fleet.schema), CONFIGURATIONS[data.suite]
    together = learn_together(network, devices, config, seed)
    same = [together] * len(devices)
    base = model_scores(network, same, devices)
    few = replace(config, rounds=config.rounds // 4, epochs=config.epochs * 4)
    found = {
        "product": base,
        "a quarter of the rounds": model_scores(
            network, [learn_together(network, devices, few, seed)] * len(devices), devices
        ),
        "alone": model_scores(network, [learn_alone(network, d.train.inputs, config, seed) for d in devices], devices),
        "fine-tuned alone": model_scores(network, [fine_tuned(network, together, d, config) for d in devices], devices),
    }
    if len(devices) > 1:
        pooled = np.concatenate([d.train.inputs for d in devices])
        central = learn_alone(network, pooled, config, seed)
        found["central"] = model_scores(network, [central] * len(devices), devices)
    for peer in ("isolation_forest", "mahalanobis"):
        pairs = [baselines.fit_on(d, baselines.FITS[peer], seed) for d in devices]
        found[f"joined with {peer}"] = [joined(a, b) for a, b in zip(base, pairs, strict=True)]
    if int(np.prod(network.target_shape)) <= COLUMNS_MAX:
        found["whitened residuals"] = [whitened(network, together, d) for d in devices]
    if data.timed:
        found["score over its level"] = [following_level(a, d) for a, d in zip(base, devices, strict=True)]
        level = [detrended(d) for d in devices]
        found["detrended inputs"] = model_scores(
            network, [learn_together(network, level, config, seed)] * len(devices), level
        )
    return found


def figures(pairs: Scores, devices: Sequence[Prepared]) -> dict[str, float | None]:
    """Mean AUC, mean TPR at 1 %, and the realised false-positive rate at the threshold for 1 %."""
    areas, shares, above, benign = [], [], 0, 0
    for (calibration, scores), device in zip(pairs, devices, strict=True):
        labels = device.test.labels
        threshold = RollingCalibration(np.maximum(calibration, 0.0)).current.threshold(ALPHA)
        above, benign = above + int((scores[labels == 0] > threshold).sum()), benign + int((labels == 0).sum())
        if (curve := roc_curve(scores[labels >= 0], labels[labels >= 0] == 1)) is not None:
            areas.append(area(curve))
            shares.append(tpr_at(curve, ALPHA))
    return {
        "auc": round(float(np.mean(areas)), 4) if areas else None,
        "tpr_at_1": round(float(np.mean(shares)), 4) if shares else None,
        "fpr_realised": round(above / benign, 4) if benign else None,
    }


def run(data: DataSet, seed: int) -> dict[str, dict[str, float | None]]:
    """All tries on one set."""
    pooled: dict[str, tuple[Scores, list[Prepared]]] = {}
    for fleet in data.fleets:
        devices, _ = prepare_fleet(fleet)  # `vedette evaluate` names who is skipped
        if not devices:
            continue
        for name, pairs in tries(data, fleet, devices, seed).items():
            scores, owners = pooled.setdefault(name, ([], []))
            scores += pairs
            owners += devices
    return {name: figures(*each) for name, each in pooled.items()}


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the recordings")
    parser.add_argument("--set", action="append", choices=sorted(LOADERS), help="one set; repeat; all without it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON only")
    arguments = parser.parse_args()
    result: dict[str, Any] = {}
    for name in arguments.set or LOADERS:
        result[name] = run(LOADERS[name](arguments.data), arguments.seed)
        if not arguments.json:
            print(name)
            for tried, row in result[name].items():
                print(f"  {tried:26} {row}")
    if arguments.json:
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
