"""Windows that somebody vouches for, kept apart from training: what the validation gate measures models on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from vedette_aggregator.root_set import RootSet
from vedette_aggregator.validation_settings import ValidationSection
from vedette_core.learning.layout import Float32
from vedette_core.learning.model_quality import WINDOWS_MIN
from vedette_core.learning.network import Network
from vedette_schemas.errors import ConfigError
from vedette_schemas.features import FeatureSchema


@dataclass(frozen=True, slots=True)
class Benign:
    """Benign windows ``(n, *input_shape)`` float32 of one cohort, oldest first."""

    cohort: str
    x: Float32 = field(repr=False)


@dataclass(frozen=True, slots=True)
class Attack:
    """Windows ``(n, *input_shape)`` float32 of one attack on a device of a cohort."""

    name: str
    cohort: str
    x: Float32 = field(repr=False)


@dataclass(frozen=True, slots=True)
class Holdouts:
    """All of them of one task; none is fine, too: then only what needs no windows is validated.

    Attributes:
        benign: a set a cohort.
        attacks: each among a cohort that `benign` has.
    """

    benign: tuple[Benign, ...] = ()
    attacks: tuple[Attack, ...] = ()

    @classmethod
    def load(cls, settings: ValidationSection, network: Network, schema: FeatureSchema) -> Self:
        """Read the files that the settings name.

        Raises:
            ConfigError: a file that is missing, of another feature schema or too small; a cohort or an attack that is
                named twice; an attack among benign windows that are not there.
        """
        for what, names in (
            ("cohort", [h.cohort for h in settings.holdouts]),
            ("attack", [a.name for a in settings.attacks]),
        ):
            twice = sorted(name for name, count in Counter(names).items() if count > 1)
            if twice:
                raise ConfigError(f"validation: found {what} {twice[0]!r} twice, expected each once")
        cohorts = {h.cohort for h in settings.holdouts}
        for attack in settings.attacks:
            if attack.cohort not in cohorts:
                raise ConfigError(
                    f"validation: found attack {attack.name!r} among cohort {attack.cohort!r}, expected one of the "
                    f"holdouts' cohorts: {', '.join(repr(c) for c in sorted(cohorts)) or 'there are none'}"
                )
        benign = tuple(Benign(h.cohort, _windows(h.path, network, schema)) for h in settings.holdouts)
        for section, found in zip(settings.holdouts, benign, strict=True):
            if len(found.x) < WINDOWS_MIN:
                raise ConfigError(
                    f"holdout {section.path}: found {len(found.x)} windows, expected at least {WINDOWS_MIN}"
                )
        attacks = tuple(Attack(a.name, a.cohort, _windows(a.path, network, schema, least=1)) for a in settings.attacks)
        return cls(benign, attacks)


def _windows(path: Path, network: Network, schema: FeatureSchema, *, least: int | None = None) -> Float32:
    x = RootSet.load(path, network, schema, what="holdout", least=least).x
    return x.reshape(len(x), *network.input_shape)
