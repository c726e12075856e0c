"""A detector of a small network: two hosts that it learnt, a third that comes later, and what each of them does."""

from __future__ import annotations

from functools import cache

import numpy as np

from vedette_core.learning.local_training import train
from vedette_core.learning.network import build_network
from vedette_core.learning.spec import dense_spec
from vedette_device.alert_record import ScoredWindow
from vedette_device.detector import Detector
from vedette_device.detector_settings import DetectorSettings
from vedette_device.features.windows import Window
from vedette_device.inference import NumpyBackend
from vedette_schemas.alert import AlertModel
from vedette_schemas.features import FeatureSchema

T0, STEP_S = 1_772_755_200.0, 5.0
SCHEMA = FeatureSchema(
    use_case="network", version=1, columns=("packets_in", "syn_count", "tcp_share"), window_s=5, history=4
)
SETTINGS = DetectorSettings(training_windows=400, calibration_windows=200, accept_windows=240)
MODEL = AlertModel(task="network", version=1, digest="a" * 16)
OLD, NEW = ("10.0.0.1", "10.0.0.2"), "10.0.0.9"
BEFORE = (SETTINGS.training_windows + SETTINGS.calibration_windows) // len(OLD)


def row(entity: str, step: int, *, loud: float = 0.0) -> np.ndarray:
    """What a host does in a step: the two old ones alike, the new one more of it; e³ times more for each `loud`."""
    rng = np.random.default_rng([step, int(entity.rpartition(".")[2])])
    packets, syn, share = (400.0, 30.0, 0.15) if entity == NEW else (40.0, 3.0, 0.6)
    values = [packets * np.exp(rng.normal(0, 0.2) + 3 * loud), syn * np.exp(rng.normal(0, 0.3) + 3 * loud)]
    return np.array([*values, np.clip(share + rng.normal(0, 0.05), 0, 1)], np.float32)


def window(entity: str, step: int, *, loud: float = 0.0) -> Window:
    return Window(entity, T0 + step * STEP_S, T0 + (step + 1) * STEP_S, row(entity, step, loud=loud))


def tick(detector: Detector, step: int, *entities: str, loud: float = 0.0) -> dict[str, ScoredWindow]:
    """One step of some hosts, by host; `loud` is the new one's."""
    windows = [window(e, step, loud=loud if e == NEW else 0.0) for e in entities]
    return {scored.entity: scored for scored in detector.feed(windows)}


@cache
def collected() -> tuple[dict[str, object], NumpyBackend]:
    """State of a detector that has collected everything, and a model for it."""
    detector = Detector(SCHEMA, SETTINGS)
    for step in range(BEFORE):
        tick(detector, step, *OLD)
    network = build_network(dense_spec(*SCHEMA.input_shape))
    start = network.initial_weights(np.random.default_rng(1))
    learnt = train(
        network,
        start,
        detector.training_matrix(network),
        epochs=40,
        batch_size=32,
        learning_rate=5e-3,
        prox_mu=0.0,
        rng=np.random.default_rng(2),
    )
    return detector.to_state(), NumpyBackend(network, start + learnt.delta)


def armed(settings: DetectorSettings = SETTINGS) -> Detector:
    state, backend = collected()
    detector = Detector.from_state(SCHEMA, settings, state)
    detector.install(backend, MODEL)
    return detector
