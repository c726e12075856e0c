"""The settings' defaults are those of the code that they configure."""

from __future__ import annotations

from dataclasses import asdict

from vedette_device.detection_machine import DetectionSettings
from vedette_device.settings import AlertSection


def test_alert_defaults_are_the_machines() -> None:
    assert AlertSection().model_dump() == asdict(DetectionSettings())
