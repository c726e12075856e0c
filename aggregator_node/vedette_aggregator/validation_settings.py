"""Settings of the validation gate of a task; every key is in ``aggregator_node/aggregator.example.toml``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from vedette_core.runtime.config import Section

Name = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,60}$")]
Cohort = Annotated[str, Field(pattern=r"^[a-z0-9-]{0,60}$")]
HOLDOUTS_MAX = 16
"""Most sets of windows of either kind; each is held in memory."""


class HoldoutSection(Section):
    """Benign windows of one kind of device, which no model was trained on.

    Attributes:
        cohort: the kind of device, as the devices call it themselves; empty where there is one kind only.
        path: file in the form of a root set.
    """

    cohort: Cohort = ""
    path: Path


class AttackSection(Section):
    """Windows during an attack.

    Attributes:
        name: what is attacked, or with what.
        cohort: whose benign windows they are ranked among.
        path: file in the form of a root set, scaled by the gateway that `cohort`'s benign windows came from.
    """

    name: Name
    cohort: Cohort = ""
    path: Path


class ValidationSection(Section):
    """What a round's candidate must hold before it becomes a release.

    Attributes:
        mode: ``enforce`` rejects, ``watch`` only writes down what it would have rejected, ``off`` measures nothing.
        alpha: significance of the thresholds that are judged.
        change_max: largest L2 norm of the change of the weights, over the norm of the parent's.
        shift_max: largest difference of candidate's and parent's reconstructions, over the size of the windows.
        loss_ratio_max: largest loss of a cohort, over the parent's on the same windows.
        false_positives_max: largest share of a cohort's benign windows that may pass the threshold, or the parent's.
        detection_drop_max: how much less of an attack a candidate may find than its parent.
        calibration_error_max: largest distance of p-values from even ones, or the parent's.
        quantisation_drop_max: how much area under the ROC curve INT8 may lose against float.
        holdouts: benign windows a cohort.
        attacks: windows of attacks.
    """

    mode: Literal["enforce", "watch", "off"] = "enforce"
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.01
    change_max: Annotated[float, Field(gt=0, le=1000)] = 2.0
    shift_max: Annotated[float, Field(gt=0, le=1000)] = 2.0
    loss_ratio_max: Annotated[float, Field(ge=1, le=1000)] = 1.2
    false_positives_max: Annotated[float, Field(gt=0, le=1)] = 0.05
    detection_drop_max: Annotated[float, Field(ge=0, le=1)] = 0.05
    calibration_error_max: Annotated[float, Field(gt=0, le=1)] = 0.25
    quantisation_drop_max: Annotated[float, Field(ge=0, le=1)] = 0.01
    holdouts: Annotated[tuple[HoldoutSection, ...], Field(max_length=HOLDOUTS_MAX)] = ()
    attacks: Annotated[tuple[AttackSection, ...], Field(max_length=HOLDOUTS_MAX)] = ()
