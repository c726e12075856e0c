"""What the ledger is made of: one record a release, and one that stands for releases of periods that are over."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import msgpack

from vedette_core.privacy.exposure import NOISE_MULTIPLIER_MAX, NOTHING, Exposure, exposure_of
from vedette_schemas.errors import ConfigError
from vedette_schemas.topics import ID_PATTERN, TASK_PATTERN

FORMAT: Final = 1
DEVICES_MAX: Final = 65_536
"""Most devices of one release: twice what a plan allows to check in."""
EVENT_BYTES_MAX: Final = 4 * 1024 * 1024
"""Largest stored event: that many devices with the longest ids."""
FOLDED_DEVICES_MAX: Final = 1_000_000
"""Most devices that a folded history remembers; they are never forgotten."""
FOLDED_BYTES_MAX: Final = 128 * 1024 * 1024
UNITS_BYTES_MAX: Final = 32
"""Longest sum of exposure units: 256 bits are never reached."""
ROUND_MAX: Final = 2**53

_ID: Final = re.compile(ID_PATTERN)
_TASK: Final = re.compile(TASK_PATTERN)


class Scope(StrEnum):
    """What was noised: the sum over all groups, or each group's by itself."""

    TOTAL = "total"
    GROUP = "group"


@dataclass(frozen=True, slots=True)
class PrivacyEvent:
    """A release of one attempt of a round, written down before anything of it leaves.

    Attributes:
        task: the task.
        round: ≥ 1.
        attempt: of the round, ≥ 1.
        noise_multiplier: z of everything that is released of the round, the clipped count included; 0 is no noise.
        clip_norm: C that the sensitivity was taken from, > 0.
        weight_max: largest weight that it was taken from, ≥ 1.
        scope: what was noised.
        devices: whose updates are in it, sorted and unique: each is in one group.
    """

    task: str
    round: int
    attempt: int
    noise_multiplier: float
    clip_norm: float
    weight_max: int
    scope: Scope
    devices: tuple[str, ...]

    def __post_init__(self) -> None:
        _expect("task", self.task, _TASK.fullmatch(self.task) is not None, TASK_PATTERN)
        for name in ("round", "attempt", "weight_max"):
            value = getattr(self, name)
            _expect(name, value, type(value) is int and 1 <= value <= ROUND_MAX, "a whole number from 1")
        _expect("noise_multiplier", self.noise_multiplier, 0.0 <= self.noise_multiplier <= NOISE_MULTIPLIER_MAX, "≥ 0")
        _expect("clip_norm", self.clip_norm, 0.0 < self.clip_norm < math.inf, "> 0")
        _expect("devices", len(self.devices), 1 <= len(self.devices) <= DEVICES_MAX, f"1 to {DEVICES_MAX}")
        _check_devices(self.devices)

    @property
    def key(self) -> tuple[int, int]:
        """(round, attempt): an attempt of a round is released once."""
        return self.round, self.attempt

    @property
    def exposure(self) -> Exposure:
        """What it is to each of its devices."""
        return exposure_of(self.noise_multiplier)

    def to_bytes(self) -> bytes:
        """msgpack."""
        return bytes(
            msgpack.packb(
                {
                    "format": FORMAT,
                    "task": self.task,
                    "round": self.round,
                    "attempt": self.attempt,
                    "noise_multiplier": self.noise_multiplier,
                    "clip_norm": self.clip_norm,
                    "weight_max": self.weight_max,
                    "scope": self.scope.value,
                    "devices": self.devices,
                }
            )
        )

    @classmethod
    def from_bytes(cls, data: bytes, key: str) -> PrivacyEvent:
        """Read it back; `key` is where it was stored.

        Raises:
            ConfigError: the store holds something else.
        """
        plain = _read(data, key, bytes_max=EVENT_BYTES_MAX, items_max=DEVICES_MAX)
        try:
            plain["scope"] = Scope(plain["scope"])
            return cls(**plain)
        except (KeyError, TypeError, ValueError) as fault:
            raise _unreadable(key, str(fault)) from fault


@dataclass(frozen=True, slots=True)
class FoldedHistory:
    """Everything up to a round, one exposure a device: it grows with the devices ever seen, not with the rounds.

    Attributes:
        task: the task.
        through: last round that is in it; 0 is none. Events up to here are counted here and nowhere else.
        releases: how many events it stands for.
        devices: exposure of each device that was in any of them.
    """

    task: str
    through: int = 0
    releases: int = 0
    devices: Mapping[str, Exposure] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _expect("task", self.task, _TASK.fullmatch(self.task) is not None, TASK_PATTERN)
        for name in ("through", "releases"):
            value = getattr(self, name)
            _expect(name, value, type(value) is int and 0 <= value <= ROUND_MAX, "a whole number from 0")
        _check_devices(tuple(self.devices))

    def with_events(self, events: Iterable[PrivacyEvent], through: int) -> FoldedHistory:
        """This and these, up to a later round.

        Raises:
            ConfigError: more devices than `FOLDED_DEVICES_MAX`.
            ValueError: an event lies outside of the rounds that are added.
        """
        devices, releases = dict(self.devices), self.releases
        for event in events:
            if event.task != self.task or not self.through < event.round <= through:
                raise ValueError(f"event of {event.task} round {event.round}: not in {self.through}…{through}")
            releases += 1
            exposure = event.exposure
            for device in event.devices:
                devices[device] = devices.get(device, NOTHING) + exposure
        if len(devices) > FOLDED_DEVICES_MAX:
            raise ConfigError(
                f"privacy ledger of {self.task}: found {len(devices)} devices, expected at most "
                f"{FOLDED_DEVICES_MAX}; continue with a new task"
            )
        return FoldedHistory(self.task, through, releases, dict(sorted(devices.items())))

    def to_bytes(self) -> bytes:
        """msgpack; a device is [releases, units as big-endian bytes, bare]."""
        return bytes(
            msgpack.packb(
                {
                    "format": FORMAT,
                    "task": self.task,
                    "through": self.through,
                    "releases": self.releases,
                    "devices": {
                        device: (e.releases, e.units.to_bytes((e.units.bit_length() + 7) // 8, "big"), e.bare)
                        for device, e in self.devices.items()
                    },
                }
            )
        )

    @classmethod
    def from_bytes(cls, data: bytes, key: str) -> FoldedHistory:
        """Read it back; `key` is where it was stored.

        Raises:
            ConfigError: the store holds something else.
        """
        plain = _read(data, key, bytes_max=FOLDED_BYTES_MAX, items_max=FOLDED_DEVICES_MAX)
        try:
            plain["devices"] = {device: _exposure(stored) for device, stored in plain["devices"].items()}
            return cls(**plain)
        except (AttributeError, KeyError, TypeError, ValueError) as fault:
            raise _unreadable(key, str(fault)) from fault


def _exposure(stored: Any) -> Exposure:
    releases, units, bare = stored
    for value in (releases, bare):
        _expect("count", value, type(value) is int and 0 <= value <= ROUND_MAX, "a whole number from 0")
    _expect("units", units, isinstance(units, bytes) and len(units) <= UNITS_BYTES_MAX, "bytes")
    return Exposure(releases, int.from_bytes(units, "big"), bare)


def _check_devices(devices: tuple[str, ...]) -> None:
    before = ""
    for device in devices:
        _expect("device", device, _ID.fullmatch(device) is not None, ID_PATTERN)
        _expect("device", device, before < device, f"one that sorts behind {before!r}")
        before = device


def _read(data: bytes, key: str, *, bytes_max: int, items_max: int) -> dict[str, Any]:
    if len(data) > bytes_max:
        raise _unreadable(key, f"{len(data)} bytes")
    try:
        plain = msgpack.unpackb(
            data,
            use_list=False,
            strict_map_key=True,
            max_str_len=64,
            max_bin_len=UNITS_BYTES_MAX,
            max_array_len=items_max,
            max_map_len=items_max,
            max_ext_len=0,
        )
    except (msgpack.UnpackException, ValueError, TypeError, RecursionError) as fault:
        raise _unreadable(key, str(fault)) from fault
    if not isinstance(plain, dict) or plain.pop("format", None) != FORMAT:
        raise _unreadable(key, "another format")
    return plain


def _expect(name: str, found: object, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name}: found {str(found)[:80]}, expected {expected}")


def _unreadable(key: str, found: str) -> ConfigError:
    return ConfigError(
        f"stored {key}: found {found}, expected format {FORMAT} of the privacy ledger; "
        "restore the state database from its backup: without the ledger nobody knows what was spent"
    )
