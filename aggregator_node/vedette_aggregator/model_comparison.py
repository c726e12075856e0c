"""Two models side by side, for a person: `vedette model diff`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from vedette_aggregator.root_set import RootSet
from vedette_core.learning.layout import Float32
from vedette_core.learning.model_diff import diff_models
from vedette_core.learning.model_quality import (
    WINDOWS_MIN,
    Reconstruct,
    WeightChange,
    attack_scores,
    detected_share,
    in_blocks,
    made_up_windows,
    measure_benign,
    prediction_shift,
)
from vedette_core.learning.network import Network
from vedette_core.learning.weights_file import WeightsFile
from vedette_schemas.errors import PeerError

ALPHA: Final = 0.01


def compare(
    a: WeightsFile, b: WeightsFile, *, holdout: Path | None = None, attack: Path | None = None, moves: int = 5
) -> dict[str, Any]:
    """Plain data of what lies between two models of the same network and feature schema.

    Args:
        a: the older one.
        b: the newer one.
        holdout: benign windows to measure both on; without them made-up ones show the shift alone.
        attack: windows of an attack on the gateway that `holdout` is from.
        moves: single weights that are named.

    Raises:
        PeerError: they are of different networks or feature schemas.
        ConfigError: files of windows that cannot be used.
        RefusedError: a model whose reconstructions are not finite.
    """
    difference = a.schema.difference(b.schema)
    if difference or a.network.spec != b.network.spec:
        raise PeerError(
            f"models: found {difference or 'another network'} in the second one, expected those of the first",
            reason="schema",
        )
    network, found = a.network, diff_models(a.network, a.weights, b.weights, moves)
    x = made_up_windows(network)
    if holdout is not None:
        x = _windows(holdout, a, "holdout", WINDOWS_MIN)
    runs = (_runs(network, a.weights), _runs(network, b.weights))
    shift = prediction_shift(in_blocks(runs[1], x), in_blocks(runs[0], x), network.target(x))
    figures: dict[str, dict[str, float]] = {}
    if holdout is not None:
        traces = None if attack is None else _windows(attack, a, "attack", 1)
        for side, run in zip("ab", runs, strict=True):
            benign = measure_benign(network, run, x, ALPHA)
            measured = {
                "loss": benign.loss,
                "false_positives": benign.false_positives,
                "calibration_error": benign.calibration_error,
            }
            if traces is not None:
                measured["detected"] = detected_share(benign, attack_scores(run, benign, traces), ALPHA)
            for name, value in measured.items():
                figures.setdefault(name, {})[side] = value
    return {
        "dimension": network.layout.size,
        "weights": _change(found.whole),
        "tensors": [{"name": t.name, "shape": list(t.shape), **_change(t.change)} for t in found.tensors],
        "moves": [
            {"tensor": m.tensor, "index": list(m.index), "before": m.before, "after": m.after} for m in found.moves
        ],
        "windows": len(x),
        "made_up": holdout is None,
        "shift": shift,
        "holdout": figures,
    }


def _runs(network: Network, weights: Float32) -> Reconstruct:
    return lambda x: network.reconstruct(x, weights).astype("float32")


def _windows(path: Path, model: WeightsFile, what: str, least: int) -> Float32:
    x = RootSet.load(path, model.network, model.schema, what=what, least=least).x
    return x.reshape(len(x), *model.network.input_shape)


def _change(change: WeightChange) -> dict[str, float]:
    return {"norm": change.norm, "change": change.change, "relative": change.relative, "cosine": change.cosine}
