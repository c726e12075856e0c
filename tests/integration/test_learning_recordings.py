"""The dense detector on the shipped tank recordings: what federated rounds learn, and what INT8 keeps of it."""

from __future__ import annotations

import numpy as np
import pytest
from tank_recording import RECORDINGS, Tank

from vedette_aggregator.artifacts import build_artifacts
from vedette_core.learning.encoding import Encoding, encode
from vedette_core.learning.local_training import train
from vedette_core.learning.network import build_network
from vedette_core.learning.optimiser import FedAvg
from vedette_core.learning.scoring import ResidualScorer, calibrate_residuals
from vedette_core.learning.spec import dense_spec
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
from vedette_device.inference import open_model
from vedette_schemas.model import Variant

GATEWAYS = ("gw-01", "gw-02", "gw-04")


def auc(usual: np.ndarray, anomalous: np.ndarray) -> float:
    order = np.concatenate([usual, anomalous]).argsort().argsort()
    return float((order[len(usual) :].sum() - len(anomalous) * (len(anomalous) - 1) / 2) / len(usual) / len(anomalous))


@pytest.mark.skipif(not (RECORDINGS / "labels.csv").is_file(), reason="the recordings are not in this checkout")
def test_tampering_is_found_by_what_gateways_learnt_together_and_int8_keeps_it() -> None:
    tanks = [Tank(name) for name in GATEWAYS]
    network = build_network(dense_spec(*tanks[0].schema.input_shape))
    rng = np.random.default_rng(0)
    weights, optimiser = network.initial_weights(rng), FedAvg()
    state = optimiser.initial_state(len(weights))
    encoding = Encoding(len(weights), 10.0, b"recordings")
    layout = VectorLayout(encoding.padded, tuple(sorted(network.tensor_names)), statistics=True)
    bits = ring_bits(len(tanks), 1, encoding.bits)
    for _ in range(4):
        results = [
            train(network, weights, t.training, epochs=2, batch_size=32, learning_rate=2e-3, prox_mu=0.0, rng=rng)
            for t in tanks
        ]
        total = zero_vector(layout, bits)
        for r in results:
            update = encode(r.delta, encoding, rng)
            own = LocalStatistics(update.clipped, update.norm, r.loss_before, r.loss_after, r.activation_ranges)
            add_vector(total, pack_vector(update.levels, 1, own, layout, encoding, bits))
        group = unpack_sum(total, len(tanks), len(tanks), layout, encoding, bits)
        weights, state = optimiser.apply(weights, decode_group_mean(group, encoding), state)
    assert group.statistics is not None
    assert group.statistics.loss_after < group.statistics.loss_before
    built = build_artifacts(
        network,
        weights,
        task="sensor",
        schema=tanks[0].schema,
        ranges=merge_range_histograms(group.statistics.ranges, group.survivors),
        variants=[Variant.FLOAT32, Variant.INT8],
    )
    found, false_alarms = {}, {}
    for variant, artifact in built.items():
        backend = open_model(artifact.data, sha256=artifact.sha256).backend
        areas, rates = [], []
        for tank in tanks:
            calibration = calibrate_residuals(network, tank.held_out, backend.reconstruct(tank.held_out))
            scorer = ResidualScorer(network, calibration)
            held_out, usual, tampered = (
                scorer.score(x, backend.reconstruct(x)) for x in (tank.held_out, tank.usual, tank.tampered)
            )
            areas.append(auc(usual, tampered))
            rates.append(float((usual > np.quantile(held_out, 0.99)).mean()))
        found[variant], false_alarms[variant] = float(np.mean(areas)), float(np.mean(rates))
    # Window by window and without the smoothing that alerts have; most tampered windows hold one quiet changed channel.
    assert found[Variant.FLOAT32] > 0.7
    assert found[Variant.INT8] >= found[Variant.FLOAT32] - 0.01
    assert false_alarms[Variant.INT8] < 0.03, "1 % was asked for"
