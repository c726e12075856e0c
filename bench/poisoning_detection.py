"""The poisoning benchmark's own task: the shipped recordings, cut into many virtual devices, and the real networks.

A gateway's benign training stretch is cut into successive pieces, one a virtual device; one more piece of each gateway
gives rows to the root set. What the fleet learnt is scored on each gateway's labelled test stretch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from vedette.demo.recordings import Gateway, Recordings, Source
from vedette_core.learning.layout import Float32
from vedette_core.learning.network import Network, build_network
from vedette_core.learning.poisoning import Attack, AttackView, Backdoor
from vedette_core.learning.scoring import ResidualScorer, calibrate_residuals
from vedette_core.learning.spec import dense_spec, flow_spec
from vedette_device.features.network import NetworkWindower
from vedette_device.features.scaling import EntityScalers
from vedette_device.features.sensor import SensorWindower
from vedette_device.features.windows import Window
from vedette_device.input_history import InputHistory
from vedette_device.sources.capture_file import CaptureFile
from vedette_device.sources.csv_file import CsvFile
from vedette_schemas.features import NETWORK_FLOWS, FeatureSchema

TRAINING_SHARE: Final = 0.7
"""Part of a gateway's benign stretch that is learnt from; the rest calibrates."""
ROOT_ROWS_A_GATEWAY: Final = 32
SENSOR_PERIOD_S: Final = 30.0
SENSOR_STRIDE: Final = 4
"""Every fourth sensor input is used: neighbours share 15 of their 16 rows."""


@dataclass(frozen=True, slots=True)
class Site:
    """One gateway's inputs, scaled as the gateway would.

    Attributes:
        training: ``(n, history, columns)`` benign rows, in the order of time.
        held_out: benign rows that calibrate the scores.
        usual: benign rows of the test stretch.
        anomalous: rows of the test stretch that end within a labelled attack on their entity.
    """

    training: Float32
    held_out: Float32
    usual: Float32
    anomalous: Float32


@dataclass(frozen=True, slots=True)
class Detection:
    """One source of all gateways.

    Attributes:
        network: the detector's.
        sites: the gateways.
        devices: ``(rows, history, columns)`` of each virtual device; those of one gateway lie together.
        root: rows of the root set, from pieces that no device has.
    """

    network: Network
    sites: tuple[Site, ...]
    devices: tuple[Float32, ...]
    root: Float32

    def quality(self, weights: Float32) -> float:
        """Mean over the gateways of the area under the ROC curve, window by window, times 100.

        Float weights and bare scores: without the INT8 step and the smoothing over time that alerts have.
        """
        areas = []
        for site in self.sites:
            held_out, usual, anomalous = (
                self.network.reconstruct(x, weights) for x in (site.held_out, site.usual, site.anomalous)
            )
            scorer = ResidualScorer(self.network, calibrate_residuals(self.network, site.held_out, held_out))
            areas.append(auc(scorer.score(site.usual, usual), scorer.score(site.anomalous, anomalous)))
        return 100.0 * float(np.mean(areas))

    def unseen(self, weights: Float32, attack: Backdoor) -> float:
        """Part of stamped benign test rows whose score stays below the 99 % quantile of held-out ones, in points."""
        parts = []
        for site in self.sites:
            stamped = attack.stamp(site.usual)
            held_out, found = (self.network.reconstruct(x, weights) for x in (site.held_out, stamped))
            scorer = ResidualScorer(self.network, calibrate_residuals(self.network, site.held_out, held_out))
            limit = np.quantile(scorer.score(site.held_out, held_out), 0.99)
            parts.append(float((scorer.score(stamped, found) <= limit).mean()))
        return 100.0 * float(np.mean(parts))

    def unexplained(self, weights: Float32) -> float:
        """Part of the energy of the test stretches' benign rows that the network does not reconstruct."""
        losses = [self.network.loss(site.usual, weights) for site in self.sites]
        energies = [float(np.square(self.network.target(site.usual)).mean()) for site in self.sites]
        return float(np.mean(np.array(losses) / np.array(energies)))


def auc(usual: npt.NDArray[np.floating], anomalous: npt.NDArray[np.floating]) -> float:
    """Area under the ROC curve (Mann–Whitney); ties count half."""
    _, place, counts = np.unique(np.concatenate([usual, anomalous]), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2.0)[place]
    above = float(ranks[len(usual) :].sum()) - len(anomalous) * (len(anomalous) + 1) / 2
    return above / len(usual) / len(anomalous)


def make_task(recordings: Recordings, source: Source, devices_a_gateway: int) -> Detection:
    """Read, window, scale and cut all recordings of a source."""
    schema, sites = NETWORK_FLOWS, []
    for gateway in recordings.gateways:
        schema, windows = network_windows(gateway) if source == "network" else sensor_windows(gateway)
        sites.append(_site(recordings, gateway, source, schema, windows))
    spec = flow_spec(*schema.input_shape) if source == "network" else dense_spec(*schema.input_shape)
    pieces = [np.array_split(site.training, devices_a_gateway + 1) for site in sites]
    root = [_spread(own[-1], ROOT_ROWS_A_GATEWAY) for own in pieces]
    devices = tuple(np.ascontiguousarray(piece) for own in pieces for piece in own[:-1])
    return Detection(build_network(spec), tuple(sites), devices, np.concatenate(root))


def poisoned(task: Detection, liars: list[int], attack: Attack, rng: np.random.Generator) -> Detection:
    """The task with other rows on some devices.

    A liar has its benign rows (label 0) and the attacks on its gateway's test stretch (label 1), and trains on what
    its attack calls benign: one that flips labels teaches the model exactly the attacks that it will be asked about.
    """
    devices, a_gateway = list(task.devices), len(task.devices) // len(task.sites)
    for liar in liars:
        own, known = task.devices[liar], task.sites[liar // a_gateway].anomalous
        labels = np.repeat([0, 1], [len(own), len(known)])
        rows, labels = attack.poison_rows(np.concatenate([own, known]), labels, AttackView(1.0), rng)
        devices[liar] = rows[labels == 0]
    return replace(task, devices=tuple(devices))


def network_windows(gateway: Gateway) -> tuple[FeatureSchema, list[Window]]:
    """Feature windows of a gateway's capture."""
    windower, windows = NetworkWindower(gateway.local_networks), []
    capture = CaptureFile(gateway.network.path)
    while (batch := capture.read()) is not None:
        windows += windower.push(batch)
    capture.close()
    return windower.schema, windows + windower.flush()


def sensor_windows(gateway: Gateway) -> tuple[FeatureSchema, list[Window]]:
    """Feature windows of a gateway's readings."""
    windower = SensorWindower(f"tank-{gateway.id}", gateway.sensor.columns, period_s=SENSOR_PERIOD_S)
    file, windows = CsvFile(gateway.sensor.path, gateway.sensor.columns), []
    while (batch := file.read()) is not None:
        windows += windower.push(batch)
    file.close()
    return windower.schema, windows


def _site(
    recordings: Recordings, gateway: Gateway, source: Source, schema: FeatureSchema, windows: list[Window]
) -> Site:
    recording = gateway.network if source == "network" else gateway.sensor
    learn_until_s = recording.start_s + TRAINING_SHARE * (recording.benign_until_s - recording.start_s)
    rows: dict[str, list[npt.NDArray[np.float32]]] = {}
    for window in windows:
        if window.end_s <= learn_until_s:
            rows.setdefault(window.entity, []).append(window.values)
    scalers = EntityScalers.fit(schema, {entity: np.stack(each) for entity, each in rows.items()})
    episodes = [e for e in recordings.episodes if e.gateway == gateway.id and e.source == source]
    history = InputHistory(schema)
    parts: list[list[Float32]] = [[], [], [], []]
    reach_s = schema.history * schema.window_s
    count = 0
    for window in windows:
        raw = history.push(window)
        count += 1
        if raw is None or (source == "sensor" and count % SENSOR_STRIDE):
            continue
        if window.end_s <= learn_until_s:
            part = 0
        elif window.end_s <= recording.benign_until_s:
            part = 1
        elif any(e.start_s < window.end_s and window.start_s < e.end_s and _hits(e.entity, window) for e in episodes):
            part = 3
        elif any(e.start_s < window.end_s and window.start_s < e.end_s + reach_s for e in episodes):
            continue  # beside an attack, or with one in its past: neither usual nor anomalous
        else:
            part = 2
        parts[part].append(scalers.for_entity(window.entity).scale_rows(raw))
    return Site(*(np.stack(part) for part in parts))


def _hits(entity: str, window: Window) -> bool:
    return window.entity.startswith("tank-") or entity == window.entity


def _spread(rows: Float32, count: int) -> Float32:
    """About `count` rows, evenly over the piece."""
    return rows[:: max(1, len(rows) // count)][:count]
