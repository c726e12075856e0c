"""The scaled benign inputs that a detector keeps: held out for the calibration, or to train on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vedette_core.learning.layout import Float32
from vedette_device.baseline import INPUTS_KEPT_MAX
from vedette_schemas.features import FeatureSchema

Float16 = npt.NDArray[np.float16]

STORED: Final = "<f2"
"""Half precision: values end at ±8, where its step is 1/256, finer than that of an INT8 input."""


class KeptInputs:
    """Held-out inputs and training rows, which stay disjoint.

    Args:
        schema: shape of an input.
        held_out_max: inputs that are held out once all are there.

    Attributes:
        training: ``(n, history, columns)`` float16, n ≤ `INPUTS_KEPT_MAX`.
        training_entities: whose each training row is; empty where a state from before did not say.
        held_out: ``(held_out_max, history, columns)`` float16, or none before the first.
        entities: whose each held-out input is; those that are there.
    """

    def __init__(self, schema: FeatureSchema, held_out_max: int) -> None:
        self._shape, self._most = schema.input_shape, held_out_max
        self.training: Float16 = self.none()
        self.training_entities: list[str] = []
        self.held_out: Float16 = self.none()
        self.entities: list[str] = []
        self._next = 0

    def none(self) -> Float16:
        """No inputs ``(0, history, columns)``."""
        return np.zeros((0, *self._shape), np.float16)

    @property
    def is_complete(self) -> bool:
        """Whether as many are held out as are wanted."""
        return len(self.entities) >= self._most

    @staticmethod
    def thinned(count: int, most: int = INPUTS_KEPT_MAX) -> list[int]:
        """At most `most` places out of `count`, evenly spread."""
        return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.intp)).tolist() if count else []

    def train_on(self, entities: Sequence[str], scaled: Sequence[Float32]) -> None:
        """Take the learning phase's inputs, and whose each is, as training rows."""
        if scaled:
            self.training, self.training_entities = np.stack(scaled).astype(np.float16), list(entities)

    def hold_out(self, entity: str, scaled: Float32) -> None:
        """Hold one more out, while they are not complete."""
        if not len(self.held_out):
            self.held_out = np.zeros((self._most, *self._shape), np.float16)
        self.held_out[len(self.entities)] = scaled
        self.entities.append(entity)

    def renew(self, place: int, entity: str, scaled: Float32) -> None:
        """Put an input in the place of a held-out one, which becomes a training row."""
        if len(self.training):
            self.training[self._next], self.training_entities[self._next] = self.held_out[place], self.entities[place]
            self._next = (self._next + 1) % len(self.training)
        self.held_out[place] = scaled
        self.entities[place] = entity

    def take_out(self, entity: str) -> None:
        """Hold nothing of an entity out, nor train on it, any more; others' inputs, evenly spread, take its places."""
        for inputs, entities in ((self.held_out, self.entities), (self.training, self.training_entities)):
            names = np.array(entities)
            gone, others = np.flatnonzero(names == entity), np.flatnonzero(names != entity)
            if not len(gone) or not len(others):
                continue
            instead = others[np.linspace(0, len(others) - 1, len(gone)).astype(np.intp)]
            inputs[gone] = inputs[instead]
            for place, other in zip(gone.tolist(), instead.tolist(), strict=True):
                entities[place] = entities[other]

    def to_state(self) -> dict[str, Any]:
        """Plain form for msgpack."""
        return {
            "training": self.training.astype(STORED).tobytes(),
            "training_entities": list(self.training_entities),
            "training_next": self._next,
            "held_out": self.held_out[: len(self.entities)].astype(STORED).tobytes(),
            "held_out_entities": list(self.entities),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Read `to_state`'s form back; of more held-out inputs than are wanted now, the first stay.

        Raises:
            ValueError, KeyError, TypeError: it is another form.
        """
        self.training = self._inputs(state["training"])
        unnamed = [""] * len(self.training)  # the state of a node from before has no names
        self.training_entities = [str(name) for name in state.get("training_entities", unnamed)]
        if len(self.training_entities) != len(self.training):
            raise ValueError(f"{len(self.training)} training rows of {len(self.training_entities)} entities")
        self._next = int(state["training_next"]) % max(len(self.training), 1)
        held_out = self._inputs(state["held_out"])[: self._most]
        self.entities = [str(name) for name in state["held_out_entities"]][: self._most]
        if len(held_out) != len(self.entities):
            raise ValueError(f"{len(held_out)} held-out inputs of {len(self.entities)} entities")
        if len(held_out):
            self.held_out = np.zeros((self._most, *self._shape), np.float16)
            self.held_out[: len(held_out)] = held_out

    def _inputs(self, data: bytes) -> Float16:
        inputs = np.frombuffer(data, STORED).reshape(-1, *self._shape).astype(np.float16)
        if not np.isfinite(inputs).all():
            raise ValueError("inputs that are not finite")
        return inputs
