"""Settings of an independent validator; every key is in ``aggregator_node/validator.example.toml`` with its meaning."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vedette_aggregator.validation_settings import ValidationSection
from vedette_core.runtime.config import Section, Settings
from vedette_schemas.topics import ID_PATTERN


class ValidatedTask(Section):
    """What the releases of one task must hold.

    Attributes:
        task: the task.
        validation: limits and windows; the validator's own, not the aggregator's.
    """

    task: Annotated[str, Field(pattern=f"^{ID_PATTERN}$")]
    validation: ValidationSection = ValidationSection()


class ValidatorSettings(Settings):
    """What a validator measures.

    Attributes:
        tasks: those with limits or windows of their own; others are held to the defaults, without windows.
    """

    tasks: Annotated[tuple[ValidatedTask, ...], Field(max_length=64)] = ()
