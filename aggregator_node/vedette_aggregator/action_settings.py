"""Settings of what the aggregator does by itself; every key is in ``aggregator_node/aggregator.example.toml``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vedette_core.runtime.config import Section

Mode = Literal["off", "watch", "on"]


class ActionsSection(Section):
    """When drift or a bad release is answered without a person, and how often at most.

    Attributes:
        recalibrate: whether a drifting device is asked to calibrate anew: ``off``, ``watch`` (only written down) or
            ``on``.
        extra_round: whether a task whose devices drift gets a round before its time.
        rollback: whether a fresh release on which devices fire or drift together is taken back.
        reports_min: node reports in a row that make a device drift, and that end it.
        recalibrate_interval_s: least seconds between two recalibrations of a device and task.
        recalibrations_per_hour: most of them in an hour, over all devices.
        drift_share: part of a task's reporting devices that drift, from which a round is asked for …
        devices_min: … and fewest devices that report, for a round and for a rollback.
        round_interval_s: least seconds between two rounds that are asked for.
        rollback_window_s: how long a release is fresh.
        rollback_share: part of the devices on it that fire or drift, and at least twice as many as before it.
        cold_start: whether a device that has no calibration yet is told what benign windows score on the others.
        rollbacks_per_day: most of them in any 24 hours, a task.
    """

    recalibrate: Mode = "watch"
    extra_round: Mode = "watch"
    rollback: Mode = "watch"
    reports_min: Annotated[int, Field(ge=1, le=1000)] = 3
    recalibrate_interval_s: Annotated[float, Field(ge=3600, le=31 * 86_400)] = 86_400.0
    recalibrations_per_hour: Annotated[int, Field(ge=1, le=10_000)] = 20
    drift_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    devices_min: Annotated[int, Field(ge=2, le=100_000)] = 5
    round_interval_s: Annotated[float, Field(ge=60, le=31 * 86_400)] = 21_600.0
    rollback_window_s: Annotated[float, Field(ge=60, le=31 * 86_400)] = 3_600.0
    rollback_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    cold_start: bool = True
    rollbacks_per_day: Annotated[int, Field(ge=1, le=24)] = 1
