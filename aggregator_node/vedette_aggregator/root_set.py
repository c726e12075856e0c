"""A small set of windows that the operator knows to be benign: what the direction of a round is compared with.

The file is a numpy archive that ``vedette device windows`` writes: ``x``, ``(n, *input_shape)`` float32 scaled windows,
and ``schema``, the digest of their feature schema. It is read once, without pickles.

Source: Cao et al. 2021, FLTrust (NDSS), section IV: the server's own update as root of trust.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import numpy as np

from vedette_core.learning.layout import Float32
from vedette_core.learning.local_training import train
from vedette_core.learning.network import Network
from vedette_schemas.errors import ConfigError
from vedette_schemas.features import FeatureSchema
from vedette_schemas.round import Plan

WINDOWS_MIN: Final = 32
WINDOWS_MAX: Final = 100_000
"""A root set is small: a hundred windows already give a direction."""
BYTES_MAX: Final = 512 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class RootSet:
    """Clean windows of one task.

    Attributes:
        network: the task's network.
        x: ``(n, *input_shape)`` float32, finite.
    """

    network: Network
    x: Float32 = field(repr=False)

    @classmethod
    def load(
        cls,
        path: Path,
        network: Network,
        schema: FeatureSchema,
        *,
        what: str = "root set",
        least: int | None = None,
    ) -> Self:
        """Read a file.

        Args:
            path: the archive.
            network: the task's network.
            schema: the task's feature schema.
            what: what the file is for, in messages.
            least: fewest windows; `WINDOWS_MIN` without it.

        Raises:
            ConfigError: it is missing, no such archive, or of another feature schema.
        """
        try:
            if path.stat().st_size > BYTES_MAX:
                raise ValueError(f"{path.stat().st_size} bytes, more than {BYTES_MAX}")
            with np.load(path, allow_pickle=False) as archive:
                x, digest = archive["x"], str(archive["schema"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as fault:
            raise ConfigError(
                f"{what} {path}: found {fault}, expected an archive made by `vedette device windows`"
            ) from fault
        if digest != schema.digest:
            raise ConfigError(
                f"{what} {path}: found windows of feature schema {digest[:16]}, expected {schema.digest[:16]}; "
                "make it again with a device of this task"
            )
        expected, fewest = tuple(schema.input_shape), WINDOWS_MIN if least is None else least
        if x.dtype != np.float32 or x.shape[1:] != expected or not fewest <= len(x) <= WINDOWS_MAX:
            raise ConfigError(
                f"{what} {path}: found {x.dtype} {x.shape}, expected {fewest} to {WINDOWS_MAX} float32 windows "
                f"of {expected}"
            )
        if not np.isfinite(x).all():
            raise ConfigError(f"{what} {path}: found values that are not finite; make it again")
        return cls(network, x)

    def train(self, plan: Plan, weights: Float32) -> Float32:
        """The change of the weights that a participant with these windows would have made.

        Raises:
            RefusedError: training diverged.
        """
        result = train(
            self.network,
            weights,
            self.x,
            epochs=plan.training.local_epochs,
            batch_size=plan.training.batch_size,
            learning_rate=plan.training.learning_rate,
            prox_mu=plan.training.prox_mu,
            rng=np.random.default_rng(0),  # the same for whoever repeats the round
        )
        return result.delta
