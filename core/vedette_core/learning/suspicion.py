"""Who might be lying, although nobody sees a single device's update: blame by the company that devices keep.

Groups are drawn anew in every epoch. A group with a liar in it agrees a little less with the root update (or, without
a root set, with the round's robust result); what a group falls behind the others is put down to every one of its
devices, and only the liars carry it from group to group. Honest devices' blame is noise that decays.

Suspicion is no proof: a device with unusual but honest data looks the same. It *proposes* devices for a fresh
attestation or a quarantine that a person confirms; nothing here excludes anybody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import msgpack
import numpy as np

from vedette_core.learning.robust.rule import Float64
from vedette_schemas.errors import ConfigError

STATE_FORMAT: Final = 1
DECAY: Final = 0.97
"""What an epoch keeps of the blame before it: 23 epochs halve it, so that who has stopped lying is forgotten."""
Z_MAX: Final = 3.0
"""Clip of one epoch's z-score: no single group, however bad, can convict its devices."""
MAD_TO_STD: Final = 1.4826
"""A normal distribution's standard deviation, in median absolute deviations."""
SPREAD_MIN: Final = 1e-3
"""Least standard deviation of cosines: below it groups agree so well that differences are rounding."""
GROUPS_MIN: Final = 4
"""Fewest groups of an epoch that say anything about each other."""
OBSERVATIONS_MIN: Final = 5
"""Fewest epochs in which a device was seen, in as many different groups, before it is proposed."""
THRESHOLD_DEFAULT: Final = 3.0
"""Suspicion of a proposal, in standard deviations of a device whose groups are drawn by chance: one in 740."""
DEVICES_MAX: Final = 65_536
"""Most devices that are remembered; the state of so many is 8 MB."""
GROUPS_REMEMBERED: Final = 16
"""Most fingerprints of groups that are kept for each device: three times `OBSERVATIONS_MIN`."""
ID_CHARACTERS_MAX: Final = 128
"""Longest name of a device in a stored state; names on the wire are shorter."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one device.

    Attributes:
        blame: decayed sum of clipped z-scores, less each epoch's mean; positive where its groups fell behind.
        variance: decayed sum of the epochs' variances of those scores: the blame's, if groups are drawn by chance.
        observations: epochs in which it was seen.
        groups: fingerprints of the groups that it was seen in, without repetition, oldest first.
    """

    blame: float = 0.0
    variance: float = 0.0
    observations: int = 0
    groups: tuple[int, ...] = ()

    @property
    def suspicion(self) -> float:
        """Blame in standard deviations of an average device's; 0 before the first observation."""
        return self.blame / self.variance**0.5 if self.variance > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Suspicions:
    """Suspicion of every device, over epochs.

    Attributes:
        records: by device.
        decay: see `DECAY`, 0 < decay ≤ 1.
    """

    records: Mapping[str, Record] = field(default_factory=lambda: MappingProxyType({}))
    decay: float = DECAY

    def after(self, groups: Sequence[Sequence[str]], cosines: Float64) -> Suspicions:
        """With one more epoch.

        Epochs of fewer than `GROUPS_MIN` groups change nothing: there is nobody to compare with.

        Args:
            groups: devices of each group that counted; a device is in one group at most.
            cosines: ``(G,)`` float64 in −1…1, of each group's mean to the root update, or to the round's robust result.

        Raises:
            ValueError: another number of cosines, values outside −1…1, or a device in two groups.
        """
        if cosines.shape != (len(groups),):
            raise ValueError(f"cosines: found shape {cosines.shape}, expected ({len(groups)},)")
        devices = [device for group in groups for device in group]
        if len(set(devices)) != len(devices):
            raise ValueError("groups: found a device in two groups of one epoch")
        if len(groups) < GROUPS_MIN:
            return self
        if not np.isfinite(cosines).all() or np.abs(cosines).max() > 1.0 + 1e-6:
            raise ValueError(f"cosines: found {cosines.min()} to {cosines.max()}, expected -1 to 1")
        scores = -robust_z(cosines)
        sizes = np.array([len(group) for group in groups], np.float64)
        if sizes.sum() == 0:
            return self
        # Liars pull groups down and none up, so that even the blame of honest devices would have a mean above 0.
        scores -= np.average(scores, weights=sizes)
        variance = float(np.average(scores**2, weights=sizes))
        records = {
            device: Record(r.blame * self.decay, r.variance * self.decay**2, r.observations, r.groups)
            for device, r in self.records.items()
        }
        for group, score in zip(groups, scores.tolist(), strict=True):
            mark = _fingerprint(group)
            for device in group:
                records[device] = _observed(records.get(device, Record()), score, variance, mark)
        return Suspicions(MappingProxyType(_bounded(records)), self.decay)

    def without(self, devices: Iterable[str]) -> Suspicions:
        """Without the records of some devices: they left, or a person has cleared them."""
        gone = set(devices)
        return Suspicions(MappingProxyType({d: r for d, r in self.records.items() if d not in gone}), self.decay)

    def ranked(self) -> list[tuple[str, float]]:
        """(device, suspicion) of all, most suspicious first; names break ties."""
        return sorted(((d, r.suspicion) for d, r in self.records.items()), key=lambda each: (-each[1], each[0]))

    def suspects(
        self, threshold: float = THRESHOLD_DEFAULT, *, observations_min: int = OBSERVATIONS_MIN
    ) -> list[tuple[str, float]]:
        """Devices to propose for attestation or quarantine, with their suspicion, most suspicious first.

        Only who was seen in at least `observations_min` different groups is proposed: devices that are always in the
        same group cannot be told apart. It is a proposal, for a person to confirm.

        Raises:
            ValueError: `observations_min` is not 1 to `GROUPS_REMEMBERED`.
        """
        if not 1 <= observations_min <= GROUPS_REMEMBERED:
            raise ValueError(f"observations_min: found {observations_min}, expected 1 to {GROUPS_REMEMBERED}")
        return [
            (device, suspicion)
            for device, suspicion in self.ranked()
            if suspicion >= threshold and len(self.records[device].groups) >= observations_min
        ]

    def to_bytes(self) -> bytes:
        """msgpack, devices in the order of their names."""
        rows = [
            [device, r.blame, r.variance, r.observations, list(r.groups)] for device, r in sorted(self.records.items())
        ]
        return bytes(msgpack.packb({"format": STATE_FORMAT, "decay": self.decay, "records": rows}))

    @classmethod
    def from_bytes(cls, data: bytes) -> Suspicions:
        """Read `to_bytes`'s form back.

        Raises:
            ConfigError: not this form, another format number, too many devices, or values that cannot be.
        """
        try:
            plain = msgpack.unpackb(
                data, max_str_len=ID_CHARACTERS_MAX * 4, max_bin_len=0, max_array_len=DEVICES_MAX, max_map_len=3
            )
            if not isinstance(plain, dict) or set(plain) != {"format", "decay", "records"}:
                raise ValueError("another set of fields")
            if plain["format"] != STATE_FORMAT:
                raise ValueError(f"format {plain['format']!r}")
            decay = plain["decay"]
            if not isinstance(decay, float) or not 0.0 < decay <= 1.0:
                raise ValueError(f"decay {decay!r}")
            records = dict(_record(row) for row in plain["records"])
            if len(records) != len(plain["records"]):
                raise ValueError("a device twice")
        except (msgpack.UnpackException, ValueError, TypeError) as fault:
            raise ConfigError(
                f"suspicions: found {fault}, expected format {STATE_FORMAT}; delete the stored state to start anew"
            ) from fault
        return cls(MappingProxyType(records), decay)


def robust_z(values: Float64) -> Float64:
    """Distances ``(k,)`` from the median in robust standard deviations, clipped to ±`Z_MAX`."""
    distance = values - np.median(values)
    spread = max(SPREAD_MIN, MAD_TO_STD * float(np.median(np.abs(distance))))
    return np.clip(distance / spread, -Z_MAX, Z_MAX)


def _observed(record: Record, score: float, variance: float, mark: int) -> Record:
    groups = record.groups if mark in record.groups else (*record.groups, mark)[-GROUPS_REMEMBERED:]
    return Record(record.blame + score, record.variance + variance, record.observations + 1, groups)


def _bounded(records: dict[str, Record]) -> dict[str, Record]:
    """The most recently seen `DEVICES_MAX` (largest variance); names break ties."""
    if len(records) <= DEVICES_MAX:
        return records
    kept = sorted(records, key=lambda device: (-records[device].variance, device))[:DEVICES_MAX]
    return {device: records[device] for device in kept}


def _fingerprint(group: Sequence[str]) -> int:
    """32 bits of a set of devices; a collision costs one observation."""
    text = "\n".join(sorted(group)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "big")


def _record(row: Any) -> tuple[str, Record]:
    if not isinstance(row, list) or len(row) != 5:
        raise ValueError("a record of another form")
    device, blame, variance, observations, groups = row
    if not isinstance(device, str) or not 0 < len(device) <= ID_CHARACTERS_MAX:
        raise ValueError("a device without a usable name")
    if not isinstance(blame, float) or not isinstance(variance, float) or type(observations) is not int:
        raise ValueError(f"a record of other types for {device!r}")
    if not np.isfinite([blame, variance]).all() or variance < 0 or observations < 0:
        raise ValueError(f"a record that cannot be for {device!r}")
    if not isinstance(groups, list) or len(groups) > GROUPS_REMEMBERED or len(groups) > observations:
        raise ValueError(f"groups that cannot be for {device!r}")
    if not all(type(mark) is int and 0 <= mark < 1 << 32 for mark in groups):
        raise ValueError(f"groups that cannot be for {device!r}")
    return device, Record(blame, variance, observations, tuple(groups))
