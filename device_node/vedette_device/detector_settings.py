"""How much a detector learns from, and when it calls something significant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vedette_core.learning.calibration import SCORES_MAX, SCORES_MIN
from vedette_schemas.errors import ConfigError

WINDOWS_MAX: Final = SCORES_MAX
"""Most windows of one phase: four days of one device at 5 s, 45 days of a process at a minute."""
ACCEPT_WINDOWS_MIN: Final = 240
"""Fewest windows of an accepted entity: two thirds of them scale its rows (64 are the least), the last third calibrates
it (below 80 scores no tail is fitted, and no p-value could be small enough for an alert)."""


@dataclass(frozen=True, slots=True)
class DetectorSettings:
    """How much a detector learns from, and what it calls significant.

    Attributes:
        training_windows: windows of the learning phase, all entities together.
        calibration_windows: inputs that are held out behind them.
        alpha: significance of the threshold that alerts name.
        half_life_windows: of the moving average that alerts go by; the same as in `DetectionSettings`.
        magnitude_factor: how many times louder than all before a window must be to be heard while its entity is learnt;
            the same as in `DetectionSettings`.
        accept_windows: windows of an entity that are learnt when a person accepted it; 0 for a quarter of
            `training_windows`, and no fewer than `ACCEPT_WINDOWS_MIN`.

    Raises:
        ConfigError: a number out of its range.
    """

    training_windows: int
    calibration_windows: int
    alpha: float = 0.01
    half_life_windows: float = 2.0
    magnitude_factor: float = 2.0
    accept_windows: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.training_windows <= WINDOWS_MAX:
            raise ConfigError(f"training_windows: found {self.training_windows}, expected 1 to {WINDOWS_MAX}")
        if not SCORES_MIN <= self.calibration_windows <= WINDOWS_MAX:
            raise ConfigError(
                f"calibration_windows: found {self.calibration_windows}, expected {SCORES_MIN} to {WINDOWS_MAX}"
            )
        if not 0 < self.alpha < 1:
            raise ConfigError(f"alpha: found {self.alpha}, expected a probability between 0 and 1")
        if self.accept_windows and not ACCEPT_WINDOWS_MIN <= self.accept_windows <= WINDOWS_MAX:
            raise ConfigError(
                f"accept_windows: found {self.accept_windows}, expected {ACCEPT_WINDOWS_MIN} to {WINDOWS_MAX}, or 0"
            )

    @property
    def stretch_windows(self) -> int:
        """Windows that an accepted entity is learnt from."""
        return self.accept_windows or max(self.training_windows // 4, ACCEPT_WINDOWS_MIN)
