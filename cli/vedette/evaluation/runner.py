"""One set after the other: prepare its devices, learn in three ways, judge, and judge the simple peers beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np

from vedette.evaluation import baselines
from vedette.evaluation.datasets import DataSet, Fleet
from vedette.evaluation.detectors import (
    CONFIGURATIONS,
    Configuration,
    Learnt,
    calibrated,
    float_backend,
    int8_backend,
    learn_alone,
    learn_together,
    network_for,
    scores_of,
)
from vedette.evaluation.explanations import hits_at_three
from vedette.evaluation.judging import Calibrated, Outcome, figures, judge
from vedette.evaluation.metrics import area, roc_curve
from vedette.evaluation.splits import left_out
from vedette.evaluation.stretches import Prepared, prepare_fleet
from vedette_core.learning.network import Network
from vedette_schemas.errors import VedetteError

OURS: Final = ("local", "central", "federated")
WON_BY: Final = 0.01
"""What wins a set must be more than this ahead in AUC: by less, what is simple does as well."""
NEW_DEVICES_MAX: Final = 2
"""Devices of a fleet that a model is asked about without their having trained it: each costs a training of its own."""

Say = Callable[[str], None]
"""Told what is done next."""


@dataclass(frozen=True, slots=True, eq=False)
class SetResult:
    """A set's figures, and outcomes to draw from.

    Attributes:
        figures: as JSON has them.
        outcomes: of the first seed, by detector; what the federated detector and the peers did.
    """

    figures: dict[str, Any]
    outcomes: Mapping[str, Sequence[Outcome]]


def evaluate(
    data: DataSet, seeds: Sequence[int], *, noise_multiplier: float = 0.0, say: Say = lambda _: None
) -> SetResult:
    """Evaluate one set.

    Args:
        data: the set.
        seeds: to average over.
        noise_multiplier: of the noise that federated rounds add to their sums.
        say: told what is done next.

    Raises:
        VedetteError: no device of it can be evaluated.
    """
    config = replace(CONFIGURATIONS[data.suite], noise_multiplier=noise_multiplier)
    fleets: list[tuple[Fleet, tuple[Prepared, ...]]] = []
    skipped: dict[str, str] = {}
    for fleet in data.fleets:
        ready, unready = prepare_fleet(fleet)
        skipped |= unready
        if ready:
            fleets.append((fleet, ready))
    about = _about(data, [device for _, devices in fleets for device in devices], skipped)
    about["training"] = asdict(config)
    if not fleets:
        return SetResult({**about, "failed": "no device has enough benign windows"}, {})
    kept: dict[str, list[Outcome]] = {}
    failures: dict[str, str] = {}
    hits: list[tuple[list[bool], list[bool], list[float]]] = []
    by_seed: list[dict[str, dict[str, Any]]] = []
    for seed in seeds:
        outcomes: dict[str, list[Outcome]] = {}
        deltas: dict[str, list[float]] = {}
        for fleet, devices in fleets:
            say(f"{fleet.name}: seed {seed}, {len(devices)} devices, ours")
            try:
                _ours(data, fleet, devices, config, seed, outcomes, deltas, hits)
            except VedetteError as fault:
                failures[f"{fleet.name} seed {seed}"] = str(fault)
        rows = {name: figures(each) for name, each in outcomes.items()}
        for name, row in rows.items():
            row["auc_int8_delta"] = round(min(deltas[name]), 5) if deltas.get(name) else None
        by_seed.append(rows)
        kept = kept or outcomes
    models = {name: _over_seeds([rows[name] for rows in by_seed if name in rows]) for name in by_seed[0]}
    peers = _peers(data, fleets, seeds[0], say)
    kept |= peers
    about["models"] = models | {name: figures(each) for name, each in peers.items()}
    best_ours = max((models[name]["auc"] or 0.0 for name in OURS if name in models), default=0.0)
    column, single = _best_column(data, fleets)
    about["best_single_column"] = column
    if single:
        about["models"]["single_column"] = figures(single)
        kept["single_column"] = single
    best_single = about["models"]["single_column"]["auc"] if single else None
    about["trivial"] = bool(best_ours) and (best_single or 0.0) >= best_ours - WON_BY
    about |= _newcomers([device for _, devices in fleets for device in devices], best_ours)
    for place, name in enumerate(("reasons", "gradients", "chance")):
        verdicts = [verdict for each in hits for verdict in each[place]]
        if verdicts:
            about[f"hit_at_3_{name}"] = round(float(np.mean(verdicts)), 4)
            about["windows_explained"] = len(verdicts)
    if failures:
        about["failures"] = failures
    return SetResult(about, kept)


def _about(data: DataSet, devices: Sequence[Prepared], skipped: Mapping[str, str]) -> dict[str, Any]:
    labels = np.concatenate([d.test.labels for d in devices]) if devices else np.zeros(0)
    return {
        "suite": data.suite,
        "notes": list(data.notes),
        "timed": data.timed,
        "constructed": data.constructed,
        "devices": len(devices),
        "skipped": dict(skipped),
        "splits": dict(Counter(d.kind for d in devices)),
        "windows_train": sum(len(d.train.windows) for d in devices),
        "windows_calibrate": sum(len(d.calibrate.windows) for d in devices),
        "windows_test_benign": int((labels == 0).sum()),
        "windows_test_anomalous": int((labels == 1).sum()),
    }


def _ours(
    data: DataSet,
    fleet: Fleet,
    devices: Sequence[Prepared],
    config: Configuration,
    seed: int,
    outcomes: dict[str, list[Outcome]],
    deltas: dict[str, list[float]],
    hits: list[tuple[list[bool], list[bool], list[float]]],
) -> None:
    network = network_for(data.suite, fleet.schema)

    def take(name: str, learnt: Learnt, these: Iterable[Prepared], *, compare: bool = True) -> None:
        backend = int8_backend(network, learnt, fleet.schema)
        for device in these:
            model = calibrated(backend, device)
            scores = scores_of(model, device)
            if compare and (delta := _delta(network, learnt, device, scores)) is not None:
                deltas.setdefault(name, []).append(delta)
            known = Calibrated.of_model(model)
            outcome = judge(device, scores, known, fleet.schema, data.suite, timed=data.timed)
            outcomes.setdefault(name, []).append(outcome)
            if name == "federated" and device.truth:
                hits.append(
                    hits_at_three(model, network, learnt, device, fleet.schema.columns, scores, outcome.threshold)
                )

    alone = [learn_alone(network, device.train.inputs, config, seed) for device in devices]
    for device, learnt in zip(devices, alone, strict=True):
        take("local", learnt, [device])
    if len(devices) == 1:  # nothing to pool: the same model, and a round of one
        take("central", alone[0], devices)
    else:
        take("central", learn_alone(network, np.concatenate([d.train.inputs for d in devices]), config, seed), devices)
    take("federated", learn_together(network, devices, config, seed), devices)
    for place in left_out(len(devices), NEW_DEVICES_MAX):
        others = [device for i, device in enumerate(devices) if i != place]
        new = [devices[place]]
        take("federated_new_device", learn_together(network, others, config, seed), new, compare=False)
        take("local_new_device", alone[(place + 1) % len(devices)], new, compare=False)


def _delta(network: Network, learnt: Learnt, device: Prepared, scores: np.ndarray) -> float | None:
    """AUC of the INT8 artifact less that of its weights in float32."""
    counted = device.test.labels >= 0
    labels = device.test.labels[counted] == 1
    quantised = roc_curve(scores[counted], labels)
    if quantised is None:
        return None
    exact = roc_curve(scores_of(calibrated(float_backend(network, learnt), device), device)[counted], labels)
    assert exact is not None
    return area(quantised) - area(exact)


def _peers(
    data: DataSet, fleets: Sequence[tuple[Fleet, Sequence[Prepared]]], seed: int, say: Say
) -> dict[str, list[Outcome]]:
    outcomes: dict[str, list[Outcome]] = {}
    for fleet, devices in fleets:
        for name, fit in baselines.FITS.items():
            say(f"{fleet.name}: {name}")
            for device in devices:
                pair = baselines.fit_on(device, fit, seed)
                outcomes.setdefault(name, []).append(_judged(data, fleet, device, pair))
        if data.suite == "network":
            for device in devices:
                counts = baselines.volume(device, fleet.schema)
                if counts is not None:
                    outcomes.setdefault("packets_a_window", []).append(_judged(data, fleet, device, counts))
    return outcomes


def _judged(data: DataSet, fleet: Fleet, device: Prepared, pair: tuple[np.ndarray, np.ndarray]) -> Outcome:
    known = Calibrated.of_scores(pair[0], device.calibrate)
    return judge(device, pair[1], known, fleet.schema, data.suite, timed=data.timed)


def _best_column(
    data: DataSet, fleets: Sequence[tuple[Fleet, Sequence[Prepared]]]
) -> tuple[dict[str, str], list[Outcome]]:
    """The one raw column of a fleet that separates best: chosen *with the labels*, to tell what a set is worth.

    Of a fleet without an attack there is none.
    """
    chosen, outcomes = {}, []
    for fleet, devices in fleets:
        if not any((device.test.labels == 1).any() for device in devices):
            continue
        areas = np.zeros(len(fleet.schema.columns))
        for column in range(len(areas)):
            found = []
            for device in devices:
                counted = device.test.labels >= 0
                scores = np.abs(device.test.rows[counted, column]).astype(np.float64)
                if (curve := roc_curve(scores, device.test.labels[counted] == 1)) is not None:
                    found.append(area(curve))
            areas[column] = np.mean(found) if found else 0.0
        best = int(np.argmax(areas))
        chosen[fleet.name] = fleet.schema.columns[best]
        outcomes += [_judged(data, fleet, device, baselines.one_column(device, best)) for device in devices]
    return chosen, outcomes


def _newcomers(devices: Sequence[Prepared], best_ours: float) -> dict[str, Any]:
    """How far «this host was not there in training» alone gets.

    Where attacks were recorded on other hosts than benign traffic, every detector finds what is new, and its figures
    say little about attacks: such a set is marked as confounded.
    """
    areas, bad, bad_new = [], 0, 0
    for device in devices:
        known = {*device.train.entities, *device.calibrate.entities}
        new = np.array([entity not in known for entity in device.test.entities], bool)
        counted, anomalous = device.test.labels >= 0, device.test.labels == 1
        bad, bad_new = bad + int(anomalous.sum()), bad_new + int((anomalous & new).sum())
        if (curve := roc_curve(new[counted].astype(np.float64), anomalous[counted])) is not None:
            areas.append(area(curve))
    found = float(np.mean(areas)) if areas else None
    return {
        "newcomer_auc": None if found is None else round(found, 5),
        "anomalous_windows_of_newcomers": bad_new,
        "confounded": bool(best_ours) and found is not None and found >= best_ours - WON_BY,
    }


def _over_seeds(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, and the largest distance of an AUC from its mean."""
    merged: dict[str, Any] = {}
    for name in rows[0]:
        values = [row[name] for row in rows if row[name] is not None]
        merged[name] = round(float(np.mean(values)), 5) if values else None
    areas = [row["auc"] for row in rows if row["auc"] is not None]
    merged["auc_seed_range"] = round(max(areas) - min(areas), 5) if areas else None
    return merged
