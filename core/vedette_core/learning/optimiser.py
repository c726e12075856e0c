"""Optimisers: those that run on a device within a round, and those that the aggregator applies to a round's mean.

All are functions of their state: the state goes in, the next one comes out, and can be stored in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import msgpack
import numpy as np

from vedette_core.learning.layout import Float32, FloatArray
from vedette_core.learning.spec import WEIGHTS_MAX
from vedette_schemas.errors import PeerError

STATE_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Moments:
    """What an adaptive optimiser remembers.

    Attributes:
        step: steps taken.
        first: running mean of the gradients, ``(weights,)``.
        second: running mean of their squares, ``(weights,)``.
    """

    step: int
    first: FloatArray
    second: FloatArray

    @classmethod
    def zero(cls, size: int) -> Moments:
        """Before the first step."""
        return cls(0, np.zeros(size, np.float32), np.zeros(size, np.float32))

    def to_bytes(self) -> bytes:
        """msgpack of the step and both vectors as raw little-endian float32."""
        return bytes(
            msgpack.packb(
                {
                    "format": STATE_FORMAT,
                    "step": self.step,
                    "first": self.first.astype("<f4").tobytes(),
                    "second": self.second.astype("<f4").tobytes(),
                }
            )
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Moments:
        """Read `to_bytes`'s form back.

        Raises:
            PeerError: not this form, another format number, vectors of different lengths, values not finite.
        """
        limit = 4 * WEIGHTS_MAX
        try:
            plain = msgpack.unpackb(data, max_bin_len=limit, max_str_len=16, max_map_len=4, max_array_len=0)
            if set(plain) != {"format", "step", "first", "second"} or plain["format"] != STATE_FORMAT:
                raise ValueError("another set of fields or format")
            if type(plain["step"]) is not int or plain["step"] < 0:
                raise ValueError(f"step {plain['step']!r}")
            first = np.frombuffer(plain["first"], "<f4").astype(np.float32)
            second = np.frombuffer(plain["second"], "<f4").astype(np.float32)
            if first.shape != second.shape or not (np.isfinite(first).all() and np.isfinite(second).all()):
                raise ValueError("vectors of different lengths or not finite")
        except (msgpack.UnpackException, ValueError, TypeError) as fault:
            raise PeerError(f"optimiser state: found {fault}, expected format {STATE_FORMAT}") from fault
        return cls(plain["step"], first, second)


class LocalOptimiser(Protocol):
    """Turns a gradient into a change of the weights, on the device."""

    def step(self, weights: FloatArray, gradient: FloatArray, state: Moments) -> tuple[FloatArray, Moments]:
        """The next weights and state; neither argument is changed."""


@dataclass(frozen=True, slots=True)
class Sgd:
    """Plain gradient descent.

    Attributes:
        learning_rate: > 0.
    """

    learning_rate: float

    def step(self, weights: FloatArray, gradient: FloatArray, state: Moments) -> tuple[FloatArray, Moments]:
        """See `LocalOptimiser.step`."""
        next_state = Moments(state.step + 1, state.first, state.second)
        return weights - np.float32(self.learning_rate) * gradient, next_state


@dataclass(frozen=True, slots=True)
class Adam:
    """Adam with bias correction.

    Attributes:
        learning_rate: > 0.
        beta1: decay of the first moment, 0 ≤ β < 1.
        beta2: decay of the second moment, 0 ≤ β < 1.
        epsilon: keeps the quotient finite where the gradient vanishes.

    Source: Kingma & Ba 2015, arXiv 1412.6980, algorithm 1.
    """

    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-7

    def step(self, weights: FloatArray, gradient: FloatArray, state: Moments) -> tuple[FloatArray, Moments]:
        """See `LocalOptimiser.step`."""
        count = state.step + 1
        first = state.first + (1 - self.beta1) * (gradient - state.first)
        second = state.second + (1 - self.beta2) * (gradient * gradient - state.second)
        rate = self.learning_rate * (1 - self.beta2**count) ** 0.5 / (1 - self.beta1**count)
        return weights - rate * first / (np.sqrt(second) + self.epsilon), Moments(count, first, second)


class ServerOptimiser(Protocol):
    """Applies the mean delta of a round to the global weights, on the aggregator."""

    def initial_state(self, size: int) -> Moments:
        """State before the first round, for `size` weights."""

    def apply(self, weights: Float32, mean_delta: FloatArray, state: Moments) -> tuple[Float32, Moments]:
        """The next global weights and state.

        Args:
            weights: ``(size,)`` float32, what the round started from.
            mean_delta: ``(size,)`` weighted mean of (local − global) over the round's updates.
            state: from the round before.
        """


@dataclass(frozen=True, slots=True)
class FedAvg:
    """Adds the mean delta, scaled.

    Attributes:
        learning_rate: 1 replaces the global weights by the mean of the local ones.

    Source: McMahan et al. 2017, arXiv 1602.05629, algorithm 1.
    """

    learning_rate: float = 1.0

    def initial_state(self, size: int) -> Moments:
        """See `ServerOptimiser.initial_state`; FedAvg only counts its rounds."""
        return Moments.zero(0)

    def apply(self, weights: Float32, mean_delta: FloatArray, state: Moments) -> tuple[Float32, Moments]:
        """See `ServerOptimiser.apply`."""
        after = (weights + self.learning_rate * mean_delta).astype(np.float32)
        return after, Moments(state.step + 1, state.first, state.second)


@dataclass(frozen=True, slots=True)
class FedAdam:
    """Adam on the pseudo-gradient (the negated mean delta), without bias correction, as published.

    Attributes:
        learning_rate: server rate η.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        tau: adaptivity τ: the larger, the nearer to momentum FedAvg.

    Source: Reddi et al. 2021, arXiv 2003.00295, algorithm 2 (FedAdam).
    """

    learning_rate: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def initial_state(self, size: int) -> Moments:
        """See `ServerOptimiser.initial_state`; the second moment starts at τ², the least the paper allows."""
        return Moments(0, np.zeros(size, np.float32), np.full(size, self.tau**2, np.float32))

    def apply(self, weights: Float32, mean_delta: FloatArray, state: Moments) -> tuple[Float32, Moments]:
        """See `ServerOptimiser.apply`."""
        delta = mean_delta.astype(np.float32)
        first = (self.beta1 * state.first + (1 - self.beta1) * delta).astype(np.float32)
        second = (self.beta2 * state.second + (1 - self.beta2) * delta * delta).astype(np.float32)
        after = weights + self.learning_rate * first / (np.sqrt(second) + self.tau)
        return after.astype(np.float32), Moments(state.step + 1, first, second)
