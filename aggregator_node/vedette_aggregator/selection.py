"""Who takes part in a round, and in which group: random to everybody, the same for whoever computes it again."""

from __future__ import annotations

import hmac
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from vedette_schemas.round import GROUP_MEMBERS_MAX, GROUPS_MAX, group_of, hash_parts

_WHOLE: Final = 2**64
"""`group_of` modulo this is the whole hash, and modulo a number of groups it is the group: one hash serves them all."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """How the selected devices fall into groups.

    Attributes:
        count: number of groups that the hash is taken modulo; the G that `group_of` is called with.
        members: device ids a group, sorted; groups that are too small to be opened are left out.
    """

    count: int
    members: Mapping[int, tuple[str, ...]]

    @property
    def placed(self) -> frozenset[str]:
        """Every device that is in a group."""
        return frozenset(device for group in self.members.values() for device in group)


def select(devices: Collection[str], count: int, seed: bytes) -> tuple[str, ...]:
    """Draw at most `count` devices, each with the same chance.

    Args:
        devices: ids of those that checked in; their order does not matter.
        count: most that are drawn.
        seed: unknown to the devices, fresh for every attempt.

    Returns:
        Sorted ids.
    """
    drawn = sorted(set(devices), key=lambda device: hmac.digest(seed, device.encode(), "sha256"))[:count]
    return tuple(sorted(drawn))


def attempt_seed(secret: bytes, task: str, number: int, attempt: int) -> bytes:
    """The selection's seed for one attempt, from the aggregator's own secret."""
    return hash_parts(b"vedette-selection-1", secret, task.encode(), str(number).encode(), str(attempt).encode())


def beacon_of(previous: bytes, task: str, number: int, attempt: int, keys: Mapping[str, bytes]) -> bytes:
    """The 32 bytes that assign devices to groups.

    They depend on the transcript of the round before and on every selected device's fresh key, which nobody chooses
    alone. The aggregator chooses who is selected, so that it can still try several beacons: see the threat model.

    Args:
        previous: transcript of the last released round; 32 zero bytes before the first.
        task: the task.
        number: the round.
        attempt: the attempt.
        keys: X25519 public key a selected device.
    """
    parts = [part for device in sorted(keys) for part in (device.encode(), keys[device])]
    return hash_parts(b"vedette-beacon-1", previous, task.encode(), str(number).encode(), str(attempt).encode(), *parts)


def form_groups(devices: Collection[str], beacon: bytes, task: str, *, group_size: int, survivors_min: int) -> Grouping:
    """Let the beacon put devices into groups of about `group_size`.

    Hashing makes groups of unequal size. Of all numbers of groups that are possible, the one that leaves the fewest
    devices without a group is taken, and among those the largest. Members that a full group has no room for, and
    groups below `survivors_min`, sit this attempt out.

    Args:
        devices: the selected ids.
        beacon: `beacon_of`.
        task: the task.
        group_size: members wished for.
        survivors_min: smallest group that can be opened.
    """
    hashes = {device: group_of(beacon, task, device, _WHOLE) for device in sorted(devices)}
    most = max(1, min(GROUPS_MAX, len(hashes) // group_size))
    best = Grouping(1, {})
    for count in range(most, 0, -1):
        if count * GROUP_MEMBERS_MAX <= len(best.placed):
            break
        grouping = _grouping(hashes, count, survivors_min)
        if len(grouping.placed) > len(best.placed):
            best = grouping
    return best


def _grouping(hashes: Mapping[str, int], count: int, survivors_min: int) -> Grouping:
    groups: dict[int, list[str]] = {}
    for device, value in hashes.items():
        groups.setdefault(value % count, []).append(device)
    members: dict[int, tuple[str, ...]] = {}
    for gid, found in sorted(groups.items()):
        by_hash = sorted(found, key=lambda device: hashes[device])[:GROUP_MEMBERS_MAX]
        if len(by_hash) >= survivors_min:
            members[gid] = tuple(sorted(by_hash))
    return Grouping(count, members)
