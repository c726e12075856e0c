"""A release whose signatures were checked, as plain data; and which of its variants a device takes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from vedette_schemas.errors import RefusedError
from vedette_schemas.model import ReleaseTarget, Variant

Backend = Literal["litert", "tflite", "numpy"]
MetadataVersion = tuple[int, int] | tuple[int, int, int]
"""(root version, version of the task's role[, sequence number of the rollout state that chose the release]). Ordered:
after stolen keys were replaced by a new root, the role's own number may be lower than the one a thief ran up, and the
pair is still higher; and a pair without a rollout is below the same pair with one."""

PREFERENCE: Final[tuple[tuple[Variant, tuple[Backend, ...]], ...]] = (
    (Variant.INT8, ("litert", "tflite")),
    (Variant.FLOAT32, ("litert", "tflite")),
    (Variant.FLOAT16, ("litert", "tflite")),
    (Variant.INT16X8, ("litert", "tflite")),
    (Variant.WEIGHTS, ("numpy",)),
)
"""Best first. INT8 is smallest and fastest; int16x8 misses the fast kernels; plain weights run everywhere."""


@dataclass(frozen=True, slots=True)
class VerifiedTarget:
    """One file of a release, as signed metadata describe it.

    Attributes:
        path: TUF path, ``{task}/{version}/{variant}``.
        length: bytes.
        sha256: hex digest of the bytes.
        custom: what the release says of it.
    """

    path: str
    length: int
    sha256: str
    custom: ReleaseTarget


@dataclass(frozen=True, slots=True)
class VerifiedRelease:
    """A release of a task that signed metadata list.

    Attributes:
        task: the task.
        version: release version.
        metadata_version: of the metadata that say so, with the rollout state that chose it, if one did.
        targets: every file of it, the plan and the weights among them.
    """

    task: str
    version: int
    metadata_version: MetadataVersion
    targets: Mapping[Variant, VerifiedTarget]


@dataclass(frozen=True, slots=True)
class Revocation:
    """What signed metadata revoke of a task.

    Attributes:
        task: the task.
        metadata_version: of the metadata that say so.
        sha256: hex digests of files that no device may run.
    """

    task: str
    metadata_version: tuple[int, int]
    sha256: frozenset[str]


@dataclass(frozen=True, slots=True)
class Choice:
    """The variant that a device takes, and the back end that runs it."""

    variant: Variant
    backend: Backend


def choose_variant(
    available: Collection[Variant], backends: Collection[Backend], too_large: Collection[Variant] = ()
) -> Choice:
    """The best variant of a release that one of this device's back ends can run; see `PREFERENCE`.

    Args:
        available: variants of the release.
        backends: what works here.
        too_large: variants that the device has no memory for; of a small network INT8 need not be the smallest.

    Raises:
        RefusedError: none fits; says what was there and what would have fitted.
    """
    for variant, runs_on in PREFERENCE:
        for backend in runs_on:
            if variant in available and backend in backends and variant not in too_large:
                return Choice(variant, backend)
    fitting = [variant.value for variant, runs_on in PREFERENCE if set(runs_on) & set(backends)]
    raise RefusedError(
        f"variants: found {', '.join(sorted(v.value for v in available)) or 'none'}"
        f"{', too large here: ' * bool(too_large)}{', '.join(sorted(v.value for v in too_large))}, expected one of "
        f"{', '.join(fitting) or 'none'} for the back ends here ({', '.join(sorted(backends)) or 'none'})",
        rule="variant",
    )
