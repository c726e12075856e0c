"""How a task's releases reach the fleet: stages, soak times, gates and limits, checked."""

from __future__ import annotations

from dataclasses import dataclass

from vedette_schemas.errors import ConfigError


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """The rollouts of a task; see ``[tasks.rollout]`` in the example TOML for each key.

    Attributes:
        enabled: without it every release is active at once.
        from_version: releases below it are active at once: while nothing guards anything yet, nothing can be compared.
        stages: parts of the fleet that run the candidate, in percent, rising to 100.
        devices_min: fewest devices of a stage, as far as half of the fleet allows.
        soak_s: how long a stage is watched at its full size.
        patience_s: how long missing evidence is waited for after that, before a person is asked.
        settle_s: how long devices are counted after a start, before a stage begins.
        check_s: seconds between two looks at the gates.
        approve: stages, in percent, that a person must approve before they begin; 0 stands for the start.
        exposed_per_hour: most devices that begin to run a candidate in an hour; 0 is no limit.
        pause_s_max: how long a person is waited for; then the rollout is aborted.
        samples_min: fewest node reports of each cohort that a comparison is made of.
        alpha: how often chance alone may decide a comparison.
        success_min: part of the exposed devices that must have confirmed the candidate.
        errors_max: part of them on which it may fail.
        alerts_relative: what the alerts a hundred windows may be more than the control cohort's, as a part …
        alerts_absolute: … and in absolute terms.
        score_shift: what the mean −log10(p) may be above the control cohort's.
        latency_relative: what the time to score a window may be more, as a part.
        memory_relative: what the resident memory may be more, as a part.
        mass_share: part of the exposed devices that open alerts …
        mass_alerts: … so many each, which rolls back at once.
        state_life_s: how long a signed rollout state counts; it is renewed at half of it.
    """

    enabled: bool = False
    from_version: int = 2
    stages: tuple[float, ...] = (1.0, 10.0, 50.0, 100.0)
    devices_min: int = 5
    soak_s: float = 6 * 3600.0
    patience_s: float = 6 * 3600.0
    settle_s: float = 120.0
    check_s: float = 60.0
    approve: tuple[float, ...] = ()
    exposed_per_hour: int = 0
    pause_s_max: float = 14 * 86_400.0
    samples_min: int = 50
    alpha: float = 0.01
    success_min: float = 0.95
    errors_max: float = 0.05
    alerts_relative: float = 0.5
    alerts_absolute: float = 0.5
    score_shift: float = 0.2
    latency_relative: float = 0.5
    memory_relative: float = 0.25
    mass_share: float = 0.3
    mass_alerts: int = 3
    state_life_s: float = 86_400.0

    def __post_init__(self) -> None:
        found = list(self.stages)
        if not found or found[-1] != 100.0 or found != sorted(set(found)) or found[0] <= 0:
            raise ConfigError(f"rollout: found stages {found}, expected rising percentages above 0 that end with 100")
        unknown = set(self.approve) - {0.0, *found}
        if unknown:
            raise ConfigError(f"rollout: found approve {sorted(unknown)}, expected 0 or one of the stages {found}")
        if self.from_version < 2:
            raise ConfigError(f"rollout: found from_version {self.from_version}, expected 2 or more")
