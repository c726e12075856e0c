"""A fleet on the poisoning benchmark's tasks: rounds in which some devices lie, through the project's own encoding."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import numpy.typing as npt

from vedette.demo.recordings import SHIPPED, Source, load
from vedette_core.learning.encoding import Encoding, Levels, decode_mean, encode, weighted_sum
from vedette_core.learning.layout import Float32
from vedette_core.learning.local_training import train
from vedette_core.learning.optimiser import FedAvg
from vedette_core.learning.poisoning import ATTACKS, Attack, AttackView, Backdoor
from vedette_core.learning.robust.defence import Defence
from vedette_core.learning.robust.norm_gate import NormHistory
from vedette_core.learning.robust.rule import Context, cosines_to
from vedette_core.learning.suspicion import Suspicions
from vedette_schemas.errors import RefusedError

if TYPE_CHECKING or __package__:
    from bench import poisoning_classification as classification
    from bench import poisoning_detection as detection
else:
    import poisoning_classification as classification
    import poisoning_detection as detection

PLAIN: Final = "none"
"""The rule that is none: the plain mean, without any gate."""
STAMP: Final = Backdoor()
"""The pattern that backdoors are measured with."""
BOOST_MAX: Final = 40.0
"""Longest delta that a changed client can send here, in clip norms."""


@dataclass(frozen=True, slots=True)
class Case:
    """One run.

    Attributes:
        task: ``classification``, or a source of the recordings.
        attack: key of `ATTACKS`.
        fraction: part of the devices that lie.
        group_size: devices a group.
        rule: key of `RULES`, or `PLAIN`.
        seed: of everything that is drawn.
        devices: of the fleet.
        rounds: how many.
    """

    task: str
    attack: str
    fraction: float
    group_size: int
    rule: str
    seed: int
    devices: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to.

    Attributes:
        quality: accuracy or AUC, in points.
        refused: rounds that the rule refused, which changed nothing.
        backdoor: part of the stamped test rows that are taken as the attacker wants, in points; also of runs without
            any attack, for comparison, and None under other attacks.
        unexplained: for a detector, see `Detection.unexplained`.
        blamed_10: part of the liars that are among the most suspected (as many as there are liars) after ten rounds,
            in points; None without liars or before.
        blamed: the same after the last round.
        processor_s: processor time of the run, without reading the recordings.
    """

    quality: float
    refused: int
    backdoor: float | None
    unexplained: float | None
    blamed_10: float | None
    blamed: float | None
    processor_s: float


class Task(Protocol):
    """A task as a fleet sees it."""

    @property
    def clip_norm(self) -> float:
        """The plan's."""

    @property
    def server_rate(self) -> float:
        """The server's learning rate."""

    def initial(self, rng: np.random.Generator) -> Float32:
        """Weights of the first round."""

    def poison(self, devices: list[int], attack: Attack, rng: np.random.Generator) -> Task:
        """The same task with the rows that these devices hold poisoned."""

    def deltas(self, weights: Float32, rng: np.random.Generator) -> Float32:
        """What honest training gives each device, ``(devices, d)``."""

    def root(self, weights: Float32, rng: np.random.Generator) -> Float32:
        """What it gives the aggregator on its root set."""

    def quality(self, weights: Float32) -> float:
        """Accuracy or AUC, in points."""

    def backdoor(self, weights: Float32, attack: Backdoor) -> float:
        """See `Outcome.backdoor`."""


@dataclass(frozen=True, slots=True)
class ClassificationTask:
    """The synthetic task, at the server rate that Vedette has by default."""

    data: classification.Classification
    clip_norm: float = 4.0
    """An honest delta's norm is 2.5 at first and 1.4 at the end: the full norm is two to three times as loud."""
    server_rate: float = 1.0

    def initial(self, rng: np.random.Generator) -> Float32:
        return classification.initial_weights(rng)

    def poison(self, devices: list[int], attack: Attack, rng: np.random.Generator) -> Task:
        data, view = self.data, AttackView(self.clip_norm, classes=classification.CLASSES)
        x, y = data.x.copy(), data.y.copy()
        for device in devices:
            x[device], y[device] = attack.poison_rows(x[device], y[device], view, rng)
        poisoned = classification.Classification(x, y, data.root_x, data.root_y, data.test_x, data.test_y)
        return ClassificationTask(poisoned)

    def deltas(self, weights: Float32, rng: np.random.Generator) -> Float32:
        return classification.train_all(weights, self.data.x, self.data.y, steps=8, batch=16, rate=0.3, rng=rng)

    def root(self, weights: Float32, rng: np.random.Generator) -> Float32:
        x, y = self.data.root_x[None], self.data.root_y[None]
        return np.asarray(classification.train_all(weights, x, y, steps=8, batch=16, rate=0.3, rng=rng)[0])

    def quality(self, weights: Float32) -> float:
        return classification.accuracy(weights, self.data.test_x, self.data.test_y)

    def backdoor(self, weights: Float32, attack: Backdoor) -> float:
        return classification.backdoor_success(weights, self.data, attack)


@dataclass(frozen=True, slots=True)
class DetectionTask:
    """A source of the recordings."""

    data: detection.Detection
    epochs: int
    clip_norm: float
    """Above an honest delta's norm, by about as much as in the synthetic task."""
    server_rate: float = 1.0

    def initial(self, rng: np.random.Generator) -> Float32:
        return self.data.network.initial_weights(rng)

    def poison(self, devices: list[int], attack: Attack, rng: np.random.Generator) -> Task:
        return DetectionTask(detection.poisoned(self.data, devices, attack, rng), self.epochs, self.clip_norm)

    def deltas(self, weights: Float32, rng: np.random.Generator) -> Float32:
        return np.stack([self._trained(weights, x, rng) for x in self.data.devices])

    def root(self, weights: Float32, rng: np.random.Generator) -> Float32:
        return self._trained(weights, self.data.root, rng)

    def quality(self, weights: Float32) -> float:
        return self.data.quality(weights)

    def backdoor(self, weights: Float32, attack: Backdoor) -> float:
        return self.data.unseen(weights, attack)

    def _trained(self, weights: Float32, x: Float32, rng: np.random.Generator) -> Float32:
        result = train(
            self.data.network,
            weights,
            x,
            epochs=self.epochs,
            batch_size=32,
            learning_rate=3e-3,
            prox_mu=0.0,
            rng=rng,
        )
        return result.delta


@cache
def task_of(name: str, devices: int, seed: int, recordings: Path = SHIPPED) -> Task:
    """A task's data; the recordings are the same for every seed."""
    if name == "classification":
        return ClassificationTask(classification.make_task(devices, np.random.default_rng(seed)))
    data = _recorded(name, devices, recordings)
    return DetectionTask(data, epochs=8, clip_norm=3.0) if name == "network" else DetectionTask(data, 3, clip_norm=4.0)


@cache
def _recorded(source: Source, devices: int, folder: Path) -> detection.Detection:
    recordings = load(folder)
    return detection.make_task(recordings, source, devices // len(recordings.gateways))


def run(case: Case) -> Outcome:
    """Some rounds of one fleet; every device takes part in every round, in groups drawn anew each time."""
    attack = ATTACKS[case.attack]
    clean = task_of(case.task, case.devices, case.seed)
    start_s = time.process_time()
    # Streams apart: with the same seed, rules differ in nothing but what they make of the same devices and groups.
    setting, training, grouping, lying = (np.random.default_rng([case.seed, i]) for i in range(4))
    liars = np.sort(setting.permutation(case.devices)[: round(case.fraction * case.devices)])
    weights = clean.initial(setting)
    task = clean.poison([int(i) for i in liars], attack, setting)
    optimiser, defence = FedAvg(task.server_rate), None
    if case.rule != PLAIN:
        defence = Defence.configured(case.rule, has_root=True)
    state, history = optimiser.initial_state(len(weights)), NormHistory()
    previous: Float32 | None = None
    refused, suspicions, blamed_10 = 0, Suspicions(), None
    for number in range(case.rounds):
        deltas = task.deltas(weights, training)
        root = task.root(weights, training)
        if len(liars):
            deltas[liars] = attack.poison_deltas(deltas[liars], AttackView(task.clip_norm, previous), lying)
        encoding = Encoding(len(weights), task.clip_norm, f"{case.seed}/{number}".encode())
        groups = np.array_split(grouping.permutation(case.devices), max(1, case.devices // case.group_size))
        unclipped = set() if attack.clips else {int(i) for i in liars}
        means = np.stack([group_mean(deltas, [int(i) for i in g], unclipped, encoding, training) for g in groups])
        cosines = cosines_to(means.astype(np.float64), root.astype(np.float64))
        suspicions = suspicions.after([[str(i) for i in group] for group in groups], cosines)
        if number == 9:
            blamed_10 = blamed_share(suspicions, liars)
        counts = np.array([len(group) for group in groups], np.float64)
        if defence is None:
            step = (counts @ means / counts.sum()).astype(np.float32)
        else:
            root *= min(1.0, task.clip_norm / float(np.linalg.norm(root)))
            try:
                result = defence.aggregate(means, counts, Context(root, history.running))
                step, history = result.delta, history.after(result.median_norm)
            except RefusedError:
                step, refused = np.zeros_like(weights), refused + 1
        weights, state = optimiser.apply(weights, step, state)
        previous = step
    compared = case.attack in ("none", STAMP.name)
    return Outcome(
        clean.quality(weights),
        refused,
        clean.backdoor(weights, STAMP) if compared else None,
        clean.data.unexplained(weights) if isinstance(clean, DetectionTask) else None,
        blamed_10,
        blamed_share(suspicions, liars),
        time.process_time() - start_s,
    )


def blamed_share(suspicions: Suspicions, liars: npt.NDArray[np.intp]) -> float | None:
    """See `Outcome.blamed_10`."""
    if not len(liars):
        return None
    top = {int(device) for device, _ in suspicions.ranked()[: len(liars)]}
    return 100.0 * len(top.intersection(liars.tolist())) / len(liars)


def group_mean(
    deltas: Float32, members: list[int], unclipped: set[int], encoding: Encoding, rng: np.random.Generator
) -> Float32:
    """A group's mean as the aggregator decodes it.

    A client that was changed not to clip is not bound to a byte a coordinate either: under masks only the sum shows.
    It is given the most that it could reach: its levels are whole numbers of any size, and the sum is bounded by the
    range that decoding accepts, as if it knew all others' levels.
    """
    honest = [i for i in members if i not in unclipped]
    total = np.zeros(encoding.padded, np.int64)
    if honest:
        levels: Levels = np.stack([np.asarray(encode(deltas[i], encoding, rng).levels, np.uint8) for i in honest])
        total += weighted_sum(levels, np.ones(len(honest), np.int64))
    wide = Encoding(encoding.dimension, BOOST_MAX * encoding.clip_norm, encoding.seed)
    for i in unclipped.intersection(members):
        values = encode(deltas[i], wide, rng).levels * wide.step - wide.limit
        total += np.rint((values + encoding.limit) / encoding.step).astype(np.int64)
    return decode_mean(np.clip(total, 0, encoding.level_max * len(members)), len(members), encoding)
