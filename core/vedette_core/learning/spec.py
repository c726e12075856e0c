"""What a network looks like, as plain data: enough to rebuild it on another machine, and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import prod
from typing import Any, Final

from vedette_schemas.errors import PeerError

SEPARABLE_CNN: Final = "separable_cnn"
DENSE_AUTOENCODER: Final = "dense_autoencoder"
COUNTS: Final = "counts"
"""The dense graph, but of counts: whoever runs it scores each count by itself beside it (`CountEnsemble`)."""
KINDS: Final = (SEPARABLE_CNN, DENSE_AUTOENCODER, COUNTS)
ACTIVATIONS: Final = ("relu", "relu6")
"""What a convolution or a dense kernel fuses in every runtime, TensorFlow Lite Micro included."""

WIDTH_MAX: Final = 1024
"""Widest layer or input axis. Ten times the widest schema in use; bounds what a peer's spec makes us allocate."""
LAYERS_MAX: Final = 4
"""Most hidden layers: the models are shallow by design, and depth multiplies the cost of a hostile spec."""
DENSE_WEIGHTS_DEFAULT: Final = 17_000
"""Weights that `dense_spec` stays near: as INT8 (a byte each, 20 bytes an output, names) an artifact is below 28 kB."""
WEIGHTS_MAX: Final = 262_144
"""Most weights of a network: 1 MiB of float32, 60 times the largest model in use."""


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """Shape of a network.

    Attributes:
        kind: `SEPARABLE_CNN`, `DENSE_AUTOENCODER` or `COUNTS`, of which the last two have the same graph.
        input_shape: shape of one example: ``(windows, channels)``; the dense network also takes ``(columns,)``.
        hidden: for the CNN the channels after each separable convolution; for the dense network the widths from
            the input down to the bottleneck, mirrored by the decoder (its last layer is the input's width again).
        bottleneck: units that the CNN squeezes its input into; 0 for the dense network, whose bottleneck is the last
            entry of `hidden`.
        decoder: width of a rectified layer between the CNN's bottleneck and its output; 0 for none, and for the dense
            network.
        target_windows: how many of the newest windows are reconstructed; 0 if the input has one axis.
        kernel: taps of the CNN's depthwise convolutions; 0 for the dense network.
        activation: activation of the hidden layers; bottleneck and output are linear.
    """

    kind: str
    input_shape: tuple[int, ...]
    hidden: tuple[int, ...]
    bottleneck: int = 0
    decoder: int = 0
    target_windows: int = 0
    kernel: int = 0
    activation: str = "relu"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise _refusal("kind", self.kind, f"one of {', '.join(KINDS)}")
        if self.activation not in ACTIVATIONS:
            raise _refusal("activation", self.activation, f"one of {', '.join(ACTIVATIONS)}")
        ranks = (2,) if self.kind == SEPARABLE_CNN else (1, 2)
        if len(self.input_shape) not in ranks or not all(1 <= n <= WIDTH_MAX for n in self.input_shape):
            raise _refusal("input_shape", self.input_shape, f"{ranks[-1]} numbers from 1 to {WIDTH_MAX}")
        if not 1 <= len(self.hidden) <= LAYERS_MAX or not all(1 <= n <= WIDTH_MAX for n in self.hidden):
            raise _refusal("hidden", self.hidden, f"1 to {LAYERS_MAX} numbers from 1 to {WIDTH_MAX}")
        windows = self.input_shape[0] if len(self.input_shape) == 2 else 0
        if not min(1, windows) <= self.target_windows <= windows:
            raise _refusal("target_windows", self.target_windows, f"{min(1, windows)} to {windows}")
        cnn_only = (self.bottleneck, self.decoder, self.kernel)
        if self.kind != SEPARABLE_CNN:
            if any(cnn_only):
                raise _refusal("bottleneck, decoder, kernel", cnn_only, "0 for a dense network")
            return
        if not 1 <= self.bottleneck <= WIDTH_MAX or not 0 <= self.decoder <= WIDTH_MAX:
            raise _refusal("bottleneck, decoder", cnn_only[:2], f"numbers from 1 (decoder: 0) to {WIDTH_MAX}")
        if self.kernel % 2 == 0 or not 1 <= self.kernel <= self.input_shape[0]:
            raise _refusal("kernel", self.kernel, f"an odd number from 1 to {self.input_shape[0]}")

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Shape of one reconstruction: ``(target_windows, channels)``, or ``(columns,)``."""
        return (self.target_windows, *self.input_shape[1:]) if self.target_windows else self.input_shape

    @property
    def digest(self) -> str:
        """SHA-256 (64 hexadecimal digits) of `to_dict` as compact JSON with sorted keys: what a plan names."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, for JSON and msgpack."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}

    @classmethod
    def from_dict(cls, plain: Any) -> NetworkSpec:
        """Rebuild from `to_dict`'s form; types are strict, every field must be there and no other may.

        Raises:
            PeerError: wrong type, unknown or missing field, or a value out of its limits.
        """
        names = {f.name for f in fields(cls)}
        if not isinstance(plain, Mapping) or set(plain) != names:
            found = sorted(map(str, plain)) if isinstance(plain, Mapping) else type(plain).__name__
            raise _refusal("fields", found, f"a map of {sorted(names)}")
        values: dict[str, Any] = {}
        for name, value in plain.items():
            if name in ("input_shape", "hidden"):
                if not isinstance(value, (list, tuple)) or not all(type(n) is int for n in value):
                    raise _refusal(name, value, "a list of integers")
                values[name] = tuple(value)
            elif type(value) is not (str if name in ("kind", "activation") else int):
                raise _refusal(name, value, "a string" if name in ("kind", "activation") else "an integer")
            else:
                values[name] = value
        return cls(**values)


def flow_spec(windows: int = 16, channels: int = 24) -> NetworkSpec:
    """The network-flow detector's default: a separable convolution, 12 units, the four newest windows (4,260 weights).

    It reconstructs the newest windows only, from all of them: the whole input would spend the weights on what was
    scored before, and keep the score high long after an attack. A second convolution and a decoder layer learn more
    slowly than a fleet with few rows can afford: of held-out benign windows of eight gateways, recorded before any
    attack, they leave 0.43 of the energy unexplained after 10 rounds of 5 epochs, and this one 0.28.
    """
    return NetworkSpec(
        kind=SEPARABLE_CNN,
        input_shape=(windows, channels),
        hidden=(24,),
        bottleneck=12,
        target_windows=min(4, windows),
        kernel=3,
    )


def dense_spec(*input_shape: int) -> NetworkSpec:
    """The dense default for rows of ``(columns,)`` or ``(windows, columns)``: one linear hidden layer.

    A quarter of the inputs wide, or less where the artifact would pass 28 kB. On simulated tanks (8 gateways, another
    seed than the shipped recordings) one layer of 37 finds 0.73 of the tampered windows at 1 % false positives, where
    32-8-32 finds 0.51 and 48-12-48 0.54; a single layer (of 29) was also the best autoencoder of Rey et al. 2022,
    arXiv 2104.09994.
    """
    inputs = prod(input_shape)
    return NetworkSpec(
        kind=DENSE_AUTOENCODER,
        input_shape=input_shape,
        hidden=(max(2, min(inputs // 4, DENSE_WEIGHTS_DEFAULT // (2 * inputs))),),
        target_windows=input_shape[0] if len(input_shape) == 2 else 0,
    )


def counts_spec(*input_shape: int) -> NetworkSpec:
    """The behaviour detector's default for rows of ``(columns,)`` or ``(windows, columns)`` of scaled counts.

    Half as wide as the columns, then a quarter, and back; of several windows it reconstructs the newest: a program
    that starts, or a login that fails, is in one window and not in the ones before it.
    """
    columns = input_shape[-1]
    return NetworkSpec(
        kind=COUNTS,
        input_shape=input_shape,
        hidden=(max(2, columns // 2), max(1, columns // 4)),
        target_windows=1 if len(input_shape) == 2 else 0,
    )


def _refusal(name: str, found: object, expected: str) -> PeerError:
    return PeerError(f"network spec: found {name} = {found!r}, expected {expected}", reason="schema")
