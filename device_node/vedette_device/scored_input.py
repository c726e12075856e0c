"""What a score was made of: the model input as it was measured and as it was scored, and the errors in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from vedette_core.learning.layout import Float32

Head = Literal["network", "ensemble"]
NETWORK: Final[Head] = "network"
ENSEMBLE: Final[Head] = "ensemble"


@dataclass(frozen=True, slots=True, eq=False)
class ScoredInput:
    """One model input that was scored.

    Attributes:
        values: ``(history, columns)`` float32 in the columns' own units, oldest window first.
        scaled: ``(history, columns)`` float32, what the model saw.
        squared_ratio: ``(windows, columns)`` float32 squared error over the usual squared one, for the newest windows
            that the model reconstructs; see `vedette_device.calibrated_model.Judgement`.
        scale: ``(features,)`` float32 > 0, usual error of each feature of the model's output, in scaled units.
        usual: ``(2, columns)`` float32 benign 5th and 95th percentile, in the columns' own units.
        head: which part of the detector decided: the network, or the count ensemble beside it.
    """

    values: npt.NDArray[np.float32]
    scaled: Float32
    squared_ratio: Float32
    scale: Float32
    usual: Float32
    head: Head = NETWORK
