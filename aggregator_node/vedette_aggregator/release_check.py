"""Looks at kept releases again: are their files those that were signed, and do they compute what the weights say?

A release was checked when it was built. Disks rot, runtimes are upgraded, and repositories are restored from backups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vedette_aggregator.artifacts import assumed_ranges, check_artifact, widen
from vedette_aggregator.graph_reader import Graph, read_graph
from vedette_aggregator.release_source import ListedTarget, ReleaseSource
from vedette_core.learning.model_metadata import read_model_metadata
from vedette_core.learning.network import INPUT, ActivationRanges, Network
from vedette_core.learning.weights_file import WeightsFile, read_weights
from vedette_schemas.errors import ConfigError, PeerError, RefusedError
from vedette_schemas.model import Variant
from vedette_schemas.round import read_plan

LEVELS: Final = {"int8": (-128, 127), "int16": (-32_768, 32_767)}
"""Smallest and largest quantised value by element type."""
QUANTISED_ENDING: Final = "_quantized"
"""What the quantizer adds to the name of the input that it made."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one file of a release.

    Attributes:
        task: the task.
        version: release version.
        variant: which file.
        sha256: hex digest that signed metadata name.
        error: root-mean-square difference from the numpy result, as a part of the output's range; 0 for the weights and
            the plan, and where there is a fault.
        fault: what is wrong with it; empty if nothing is.
    """

    task: str
    version: int
    variant: Variant
    sha256: str
    error: float
    fault: str


def check_release(registry: ReleaseSource, task: str, version: int) -> tuple[Finding, ...]:
    """Check every file of a kept release; signatures of the metadata were checked when the registry was opened.

    Raises:
        RefusedError: there is no such release.
        ConfigError: the metadata are damaged.
    """
    listed = registry.listed(task, version)
    weights, fault = _weights(registry, task, version, listed[Variant.WEIGHTS])
    findings = [Finding(task, version, Variant.WEIGHTS, listed[Variant.WEIGHTS].sha256, 0.0, fault)]
    for variant in sorted(set(listed) - {Variant.WEIGHTS}, key=list(Variant).index):
        target = listed[variant]

        def look(variant: Variant = variant, target: ListedTarget = target) -> float:
            _, data = registry.target(task, version, variant)
            if variant is Variant.PLAN:
                return _check_plan(data, weights)
            return _check_artifact(data, task, variant, target, weights)

        error, fault = _attempt(look)
        findings.append(Finding(task, version, variant, target.sha256, error, fault))
    return tuple(findings)


def quantised_ranges(graph: Graph, network: Network) -> ActivationRanges | None:
    """(min, max) of every tensor of the network, from the scales of an INT8 or int16x8 graph; None for a float one.

    Raises:
        PeerError: a quantised graph in which a tensor of the network is missing, or has no scale.
    """
    quantised = {t.name: t for t in graph.tensors if t.element in LEVELS and not t.constant_bytes}
    if not quantised:
        return None
    ranges = {}
    for name in network.tensor_names:
        tensor = quantised.get(name + QUANTISED_ENDING if name == INPUT else name)
        if tensor is None or len(tensor.scales) != 1:
            raise PeerError(f"model: found no quantised tensor {name!r} with one scale, expected it", reason="schema")
        low, high = LEVELS[tensor.element]
        (scale,), (zero,) = tensor.scales, tensor.zero_points
        ranges[name] = ((low - zero) * scale, (high - zero) * scale)
    return ranges


def _weights(registry: ReleaseSource, task: str, version: int, target: ListedTarget) -> tuple[WeightsFile | None, str]:
    found: list[WeightsFile] = []

    def look() -> float:
        _, data = registry.target(task, version, Variant.WEIGHTS)
        file = read_weights(data)
        if file.schema.digest != target.custom.feature_schema:
            raise PeerError(
                f"weights file: found feature schema {file.schema.digest[:12]}…, expected "
                f"{target.custom.feature_schema[:12]}… of the signed description"
            )
        found.append(file)
        return 0.0

    _, fault = _attempt(look)
    return (found[0] if found else None), fault


def _check_plan(data: bytes, weights: WeightsFile | None) -> float:
    plan = read_plan(data)
    if weights is None:
        return 0.0
    expected = (weights.network.spec.digest, weights.network.layout.size)
    if (plan.network, plan.dimension) != expected:
        raise PeerError(
            f"plan: found network {plan.network[:12]}… of {plan.dimension} weights, expected {expected[0][:12]}… of "
            f"{expected[1]}, those of the weights file"
        )
    return 0.0


def _check_artifact(
    data: bytes, task: str, variant: Variant, target: ListedTarget, weights: WeightsFile | None
) -> float:
    metadata = read_model_metadata(data)
    if (metadata.task, metadata.variant) != (task, variant.value):
        raise PeerError(
            f"artifact: found {metadata.variant} of task {metadata.task!r}, expected {variant.value} of {task!r}"
        )
    if metadata.schema.digest != target.custom.feature_schema:
        raise PeerError("artifact: found another feature schema in it than in its signed description")
    if weights is None:
        raise PeerError("artifact: found no readable weights file beside it to compare it with")
    if metadata.spec != weights.network.spec:
        raise PeerError("artifact: found another network in it than in the weights file")
    network, values = weights.network, weights.weights
    ranges = quantised_ranges(read_graph(data), network)
    if ranges is None:
        ranges = widen(assumed_ranges(network, values), ends=(INPUT, network.layers[-1].name))
    return check_artifact(network, values, ranges, variant, data)


def _attempt(look: Callable[[], float]) -> tuple[float, str]:
    """A file's error, or what is wrong with it: the other files are looked at all the same."""
    try:
        return look(), ""
    except (ConfigError, PeerError, RefusedError) as fault:
        return 0.0, str(fault)
