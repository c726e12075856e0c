"""A validator's checks of a new release: its files, and the validation gate on windows that only the validator has.

What is measured is what the aggregator's own gate measures, from the bytes that are to be signed: a stolen release key
gets no model past it that floods alerts or has gone blind, and neither does an aggregator that lies about its gate.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from vedette_aggregator.holdouts import Holdouts
from vedette_aggregator.release_check import check_release
from vedette_aggregator.release_source import ReleaseSource
from vedette_aggregator.validation import GateVerdict, validate_files
from vedette_aggregator.validation_settings import ValidationSection
from vedette_aggregator.validator_settings import ValidatorSettings
from vedette_core.learning.weights_file import WeightsFile, read_weights
from vedette_schemas.errors import ConfigError, PeerError, VedetteError
from vedette_schemas.model import Variant

log = logging.getLogger("vedette.validator")

DEFAULTS: Final = ValidationSection()


class UnpreparedError(ConfigError):
    """The validator lacks something of its own: that is no verdict on anybody's release."""


def files_hold(source: ReleaseSource, task: str, version: int) -> list[str]:
    """Whether digests and formats are right, and every artifact computes what the weights say (`release_check`)."""
    return [f"{f.variant.value}: {f.fault}" for f in check_release(source, task, version) if f.fault]


class ReleaseGate:
    """Files, then the gate.

    Args:
        settings: limits and windows by task.
        told: hears of each verdict of the gate: task, version, verdict.
    """

    def __init__(
        self, settings: ValidatorSettings, told: Callable[[str, int, GateVerdict], None] = lambda *_: None
    ) -> None:
        self._sections: Mapping[str, ValidationSection] = {each.task: each.validation for each in settings.tasks}
        self._told = told

    def __call__(self, source: ReleaseSource, task: str, version: int) -> Sequence[str]:
        """What is wrong with a release; empty if nothing is.

        Raises:
            UnpreparedError: own windows that cannot be used.
        """
        faults = files_hold(source, task, version)
        section = self._sections.get(task, DEFAULTS)
        if faults or section.mode == "off":
            return faults
        listed = source.listed(task, version)
        said, weights = source.target(task, version, Variant.WEIGHTS)
        parent = _parent(source, task, version, said.parent)
        if parent is None:
            # The first release of all has nothing that it could be held against, and no device runs it.
            return [] if version == 0 else [_orphan(said.parent)]
        int8 = source.target(task, version, Variant.INT8)[1] if Variant.INT8 in listed else None
        new = read_weights(weights)
        try:
            verdict = validate_files(weights, parent, int8, self._holdouts(task, section, new), section)
        except PeerError as fault:
            return [str(fault)]
        self._told(task, version, verdict)
        against = [each.text() for each in verdict.rejections]
        if against and section.mode == "watch":
            log.warning("release %s %d: would be refused: %s", task, version, "; ".join(against))
            return []
        return against

    def _holdouts(self, task: str, section: ValidationSection, model: WeightsFile) -> Holdouts:
        """Read anew each time: a release comes a few times a day, and a mended file counts without a restart."""
        try:
            return Holdouts.load(section, model.network, model.schema)
        except VedetteError as fault:
            raise UnpreparedError(f"task {task}: no verdict is given: {fault}") from fault


def _parent(source: ReleaseSource, task: str, version: int, digest: str) -> bytes | None:
    """The weights of the listed release that one says it was made from; None if there is none."""
    for older in source.versions(task):
        listed = source.listed(task, older).get(Variant.WEIGHTS)
        if older < version and listed is not None and listed.sha256 == digest:
            return source.target(task, older, Variant.WEIGHTS)[1]
    return None


def _orphan(parent: str) -> str:
    return (
        f"parent: found {parent[:12] + '…' if parent else 'none named'}, expected the weights of an older release that "
        "stays listed: without one there is nothing to hold it against"
    )
