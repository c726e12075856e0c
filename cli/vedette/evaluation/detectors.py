"""The product's own detector: its networks, its training, its rounds, its INT8 artifact, its calibration.

The configuration is one a use case, the same for every set of it, and was fixed before any test stretch was read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from vedette.evaluation.datasets import Suite
from vedette.evaluation.stretches import Prepared
from vedette_aggregator.artifacts import build_artifacts
from vedette_core.learning.encoding import Encoding, encode
from vedette_core.learning.layout import Float32
from vedette_core.learning.local_training import train
from vedette_core.learning.network import ActivationRanges, Network, build_network
from vedette_core.learning.optimiser import FedAvg
from vedette_core.learning.spec import NetworkSpec, counts_spec, dense_spec, flow_spec
from vedette_core.learning.statistics_slots import LocalStatistics, merge_range_histograms
from vedette_core.learning.update_vector import (
    VectorLayout,
    add_vector,
    decode_group_mean,
    pack_vector,
    ring_bits,
    unpack_sum,
    zero_vector,
)
from vedette_core.privacy.noise import add_noise, noise_sigma
from vedette_device.calibrated_model import CalibratedModel, Reconstructs, shaped
from vedette_device.inference import NumpyBackend, open_model
from vedette_schemas.alert import AlertModel
from vedette_schemas.features import FeatureSchema
from vedette_schemas.model import Variant

HALF_LIFE_WINDOWS: Final = 2.0
"""As in `DetectionSettings`."""
JUDGED_AT_ONCE: Final = 4096
"""Inputs a call of the back end: the squared errors of a wide schema would fill memory otherwise."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """How the detectors of a use case learn. A device passes ``rounds · epochs`` times over its rows in every mode.

    Attributes:
        rounds: of the federated mode.
        epochs: local ones a round.
        batch_size: rows a step.
        learning_rate: of Adam.
        clip_norm: of an update.
        encoding_bits: of a level.
        noise_multiplier: of the central Gaussian noise on each round's sum; 0 adds none.
    """

    rounds: int = 40
    epochs: int = 2
    batch_size: int = 32
    learning_rate: float = 0.003
    clip_norm: float = 20.0
    encoding_bits: int = 8
    noise_multiplier: float = 0.0


CONFIGURATIONS: Final[Mapping[Suite, Configuration]] = {
    "network": Configuration(),
    "sensor": Configuration(),
    "behaviour": Configuration(),
}


@dataclass(frozen=True, slots=True, eq=False)
class Learnt:
    """Weights, and the ranges that a quantiser needs."""

    weights: Float32
    ranges: ActivationRanges


def spec_for(suite: Suite, schema: FeatureSchema) -> NetworkSpec:
    """The product's default network: a CNN for traffic, the network of counts for counts, a dense one for the rest."""
    if schema.use_case == "behaviour":
        return counts_spec(*schema.input_shape)
    if suite == "network" and schema.history > 1:
        return flow_spec(*schema.input_shape)
    return dense_spec(*schema.input_shape)


def learn_alone(network: Network, rows: Float32, config: Configuration, seed: int) -> Learnt:
    """Train on rows ``(n, history, columns)`` of one device, or of all of them pooled."""
    rng = np.random.default_rng([seed, 1])
    weights = network.initial_weights(np.random.default_rng([seed, 0]))
    result = train(
        network,
        weights,
        shaped(rows, network),
        epochs=config.rounds * config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        prox_mu=0.0,
        rng=rng,
    )
    return Learnt((weights + result.delta).astype(np.float32), result.activation_ranges)


def learn_together(network: Network, fleet: Sequence[Prepared], config: Configuration, seed: int) -> Learnt:
    """Rounds with the system's own encoding: clipped, rotated, rounded to levels, summed as integers, decoded once.

    Masks cancel exactly in such a sum: rounds with and without them give the same weights, and none are drawn here.
    """
    rng = np.random.default_rng([seed, 2])
    weights = network.initial_weights(np.random.default_rng([seed, 0]))
    optimiser = FedAvg()
    state = optimiser.initial_state(len(weights))
    ranges: ActivationRanges = {}
    for number in range(config.rounds):
        encoding = Encoding(len(weights), config.clip_norm, f"evaluate/{seed}/{number}".encode())
        layout = VectorLayout(encoding.padded, tuple(sorted(network.tensor_names)), statistics=True)
        bits = ring_bits(len(fleet), 1, encoding.bits)
        total = zero_vector(layout, bits)
        for device in fleet:
            result = train(
                network,
                weights,
                shaped(device.train.inputs, network),
                epochs=config.epochs,
                batch_size=config.batch_size,
                learning_rate=config.learning_rate,
                prox_mu=0.0,
                rng=rng,
            )
            update = encode(result.delta, encoding, rng)
            own = LocalStatistics(
                update.clipped, update.norm, result.loss_before, result.loss_after, result.activation_ranges
            )
            add_vector(total, pack_vector(update.levels, 1, own, layout, encoding, bits))
        group = unpack_sum(total, len(fleet), len(fleet), layout, encoding, bits)
        read = group
        if config.noise_multiplier > 0:
            sigma = noise_sigma(config.noise_multiplier, config.clip_norm, 1, encoding.step)
            read = replace(group, levels=add_noise(group.levels, sigma, rng.bytes))
        weights, state = optimiser.apply(weights, decode_group_mean(read, encoding), state)
        assert group.statistics is not None
        ranges = merge_range_histograms(group.statistics.ranges, group.survivors)
    return Learnt(weights, ranges)


def float_backend(network: Network, learnt: Learnt) -> Reconstructs:
    """The weights as they are."""
    return NumpyBackend(network, learnt.weights)


def int8_backend(network: Network, learnt: Learnt, schema: FeatureSchema) -> Reconstructs:
    """The artifact that a release would hold, in the interpreter that a gateway would run it with.

    Raises:
        RefusedError: the quantised model is too far from its weights, and would not be published.
    """
    built = build_artifacts(
        network,
        learnt.weights,
        task="evaluate",
        schema=schema,
        ranges=learnt.ranges,
        variants=[Variant.INT8],
    )[Variant.INT8]
    return open_model(built.data, sha256=built.sha256).backend


def calibrated(backend: Reconstructs, device: Prepared) -> CalibratedModel:
    """The model on one device, with thresholds from its own calibration stretch."""
    model = AlertModel(task="evaluate", version=1, digest="0" * 16)
    stretch = device.calibrate
    return CalibratedModel.measure(
        backend,
        model,
        device.baseline,
        stretch.inputs,
        stretch.entities,
        HALF_LIFE_WINDOWS,
        device.train.inputs,
    )


def scores_of(model: CalibratedModel, device: Prepared) -> np.ndarray:
    """Scores of the test stretch, ``(n,) float64``; what is remembered of benign ones does not change by it."""
    inputs, entities, windows = device.test.inputs, device.test.entities, device.test.windows
    pieces = []
    for i in range(0, len(inputs), JUDGED_AT_ONCE):
        piece = slice(i, i + JUDGED_AT_ONCE)
        newest = np.stack([window.values for window in windows[piece]])
        pieces.append(model.judge(inputs[piece], entities[piece], newest).scores)
    return np.concatenate(pieces) if pieces else np.zeros(0)


def network_for(suite: Suite, schema: FeatureSchema) -> Network:
    """See `spec_for`."""
    return build_network(spec_for(suite, schema))
