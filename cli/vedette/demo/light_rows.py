"""What light nodes train on: a recorded gateway's benign windows, cut among several of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from vedette.demo import plan
from vedette.demo.recordings import Gateway, load
from vedette_core.learning.layout import Float32
from vedette_core.learning.network import Network
from vedette_device.detector import Detector
from vedette_device.detector_settings import DetectorSettings
from vedette_device.features import NetworkWindower
from vedette_device.sources import CaptureFile
from vedette_schemas.errors import ConfigError
from vedette_schemas.features import NETWORK_FLOWS, FeatureSchema

SYNTHETIC_FACTORS: Final = 3
"""Synthetic rows have as many independent causes: something that a network can learn."""


@dataclass(frozen=True, slots=True)
class BenignWindows:
    """Scaled inputs of the network detectors of some gateways, each scaled by itself, from benign stretches.

    Attributes:
        training: ``(n, *input_shape)`` float32 of each gateway's training stretch.
        held_out: the same of its calibration stretch.
    """

    training: tuple[Float32, ...] = field(repr=False)
    held_out: tuple[Float32, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class LightRows:
    """A light node's rows; to a participation they are what a detector keeps (`vedette_device.participation.Learner`).

    Attributes:
        task: the task.
        x: ``(n, *input_shape)`` float32.
        schema: what they hold.
    """

    task: str
    x: Float32 = field(repr=False)
    schema: FeatureSchema = NETWORK_FLOWS

    @property
    def detector(self) -> LightRows:
        """Who keeps the rows."""
        return self

    @property
    def training_rows(self) -> int:
        """How many there are."""
        return len(self.x)

    def training_matrix(self, network: Network) -> Float32:
        """All of them, in the network's shape."""
        return self.x.reshape(-1, *network.spec.input_shape)

    def outline(self) -> bytes:
        """Nothing: these rows were never scored."""
        return b""


def recorded(folder: Path) -> BenignWindows:
    """The windows of a set of recordings, made by the detector that a device node has.

    Raises:
        ConfigError: recordings that cannot be used.
    """
    found = [_windows(gateway) for gateway in load(folder).gateways]
    return BenignWindows(tuple(training for training, _ in found), tuple(held_out for _, held_out in found))


def cut(windows: BenignWindows, nodes: int) -> tuple[list[Float32], Float32]:
    """Rows for so many nodes, and one piece of the first gateway that no node has: a root set.

    Gateways take turns; a gateway's stretch is cut into successive pieces, one a node, and one that is kept back.

    Args:
        windows: of some gateways.
        nodes: how many.

    Raises:
        ConfigError: there are too few windows for so many nodes.
    """
    gateways = len(windows.training)
    pieces = [np.array_split(own, -(-nodes // gateways) + 1) for own in windows.training]
    if min(len(piece) for own in pieces for piece in own) == 0:
        raise ConfigError(f"light nodes: found too few windows of {gateways} gateways for {nodes} nodes")
    return [np.ascontiguousarray(pieces[i % gateways][i // gateways]) for i in range(nodes)], pieces[0][-1]


def synthetic(nodes: int, count: int, seed: int = 0) -> list[Float32]:
    """Rows that a few hidden causes explain, the same causes for all nodes; for tests of the protocol."""
    rng = np.random.default_rng(seed)
    shape = NETWORK_FLOWS.input_shape
    causes = rng.standard_normal((SYNTHETIC_FACTORS, int(np.prod(shape))))
    rows = []
    for _ in range(nodes):
        x = rng.standard_normal((count, SYNTHETIC_FACTORS)) @ causes
        rows.append(np.clip(x, -8, 8).reshape(count, *shape).astype(np.float32))
    return rows


def _windows(gateway: Gateway) -> tuple[Float32, Float32]:
    windower = NetworkWindower(gateway.local_networks)
    settings = DetectorSettings(plan.NETWORK_TRAINING_WINDOWS, plan.NETWORK_CALIBRATION_WINDOWS)
    detector = Detector(windower.schema, settings)
    capture = CaptureFile(gateway.network.path)
    try:
        while not detector.is_calibratable and (batch := capture.read()) is not None:
            detector.feed(windower.push(batch))
    finally:
        capture.close()
    if not detector.is_calibratable:
        raise ConfigError(
            f"{gateway.network.path}: found too little traffic to learn from, expected "
            f"{plan.NETWORK_TRAINING_WINDOWS} windows and {plan.NETWORK_CALIBRATION_WINDOWS} more"
        )
    state = detector.to_state()
    return _inputs(state["training"]), _inputs(state["held_out"])


def _inputs(packed: bytes) -> npt.NDArray[np.float32]:
    return np.frombuffer(packed, "<f2").reshape(-1, *NETWORK_FLOWS.input_shape).astype(np.float32)
