"""From a reconstruction to one anomaly score.

Each feature's absolute reconstruction error is divided by how large it usually is on this device's benign windows; the
score is the root mean square of those ratios: about 1 or less is usual, and high is anomalous. The root mean square
was chosen over the mean, the maximum, the mean of the top three and a 4-norm on three public sets (27 devices): the
maximum-like ones lose 2–5 points of AUC, and the mean, which is as good there, hides one tampered sensor among many.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from vedette_core.learning.layout import Float32
from vedette_core.learning.network import Network
from vedette_schemas.errors import PeerError, RefusedError

BENIGN_QUANTILE: Final = 0.99
"""Quantile of a feature's benign error that counts as 1."""
SHRINKAGE_ROWS: Final = 1000
"""With this many benign rows a feature's own quantile weighs half; with fewer, the mean over features rules. A
0.99 quantile of 100 rows is one row: trusting it cost 5 points of AUC on 90-row calibrations."""
OWN_WEIGHT_MAX: Final = 0.9
"""However many rows: a feature that never moved keeps a tenth of the mean error, or noise of one quantisation step
on it would drown all others."""
SCALE_MIN: Final = 1e-6
"""Keeps the quotient finite for a network that reconstructs everything perfectly."""


@dataclass(frozen=True, slots=True)
class ResidualCalibration:
    """How large each feature's reconstruction error usually is on one device with one artifact.

    Attributes:
        scale: ``(features,)`` float32 > 0, in units of the scaled row; feature = last axis of the network's target.
        rows: benign rows behind it.
    """

    scale: Float32
    rows: int

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON or msgpack."""
        return {"scale": [float(s) for s in self.scale], "rows": self.rows}

    @classmethod
    def from_dict(cls, plain: Any) -> ResidualCalibration:
        """Read `to_dict`'s form back.

        Raises:
            PeerError: another form, or a scale that is not finite and positive.
        """
        try:
            if set(plain) != {"scale", "rows"} or type(plain["rows"]) is not int:
                raise ValueError(f"fields {sorted(plain)}")
            scale = np.asarray(plain["scale"], dtype=np.float32)
            if scale.ndim != 1 or not len(scale) or not (np.isfinite(scale) & (scale > 0)).all():
                raise ValueError("a scale that is not a list of finite positive numbers")
        except (TypeError, ValueError) as fault:
            raise PeerError(f"residual calibration: found {fault}, expected scale and rows") from fault
        return cls(scale, plain["rows"])


def calibrate_residuals(network: Network, x: Float32, reconstruction: Float32) -> ResidualCalibration:
    """Measure the usual error of each feature on benign rows.

    Measure with the artifact that will score: the error of an INT8 model includes its quantisation.

    Args:
        network: names the target.
        x: ``(n, *input_shape)`` float32 benign rows, which the network was not trained on.
        reconstruction: ``(n, *target_shape)`` float32 of the same rows.

    Raises:
        RefusedError: no rows, or values that are not finite.
    """
    if len(x) == 0:
        raise RefusedError("residual calibration: found 0 benign rows, expected at least 1", rule="examples")
    error = np.abs(reconstruction - network.target(x)).reshape(-1, network.target_shape[-1])
    if not np.isfinite(error).all():
        raise RefusedError("residual calibration: found errors that are not finite, expected numbers", rule="finite")
    own = np.quantile(error, BENIGN_QUANTILE, axis=0)
    weight = min(OWN_WEIGHT_MAX, len(x) / (len(x) + SHRINKAGE_ROWS))
    scale = weight * own + (1.0 - weight) * own.mean()
    return ResidualCalibration(np.maximum(scale, SCALE_MIN).astype(np.float32), len(x))


class ResidualScorer:
    """Scores reconstructions against the float rows that they came from.

    The row is always the original float one, never its clipped INT8 image: at 1 % false positives that keeps 41 % of
    the detections of a small autoencoder where the clipped row keeps 27 %.

    Attributes:
        network: names the target.
        calibration: usual size of each feature's error.
    """

    def __init__(self, network: Network, calibration: ResidualCalibration) -> None:
        features = network.target_shape[-1]
        if calibration.scale.shape != (features,):
            raise PeerError(
                f"residual calibration: found {len(calibration.scale)} features, expected {features}", reason="schema"
            )
        self.network = network
        self.calibration = calibration
        self._inverse = (1.0 / calibration.scale).astype(np.float32)

    def score(self, x: Float32, reconstruction: Float32) -> Float32:
        """Scores of many rows.

        Args:
            x: ``(n, *input_shape)`` float32.
            reconstruction: ``(n, *target_shape)`` float32.

        Returns:
            ``(n,)`` float32 ≥ 0, high = anomalous; NaN where the row has one in its target.
        """
        ratio = (reconstruction - self.network.target(x)) * self._inverse
        scores: Float32 = np.sqrt(np.mean(ratio * ratio, axis=tuple(range(1, ratio.ndim)))).astype(np.float32)
        return scores
