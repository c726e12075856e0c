"""Who takes part in a round, and in which group: fair over time, and the same for whoever computes it again.

Kinds of devices are told apart by what they say of themselves: a cohort's name, and a sketch of their behaviour. A kind
gets seats by the square root of its size, so that small kinds are heard, and its updates weigh what it is short of
seats, so that the mean still stands for the whole fleet. What somebody gains who invents a kind of its own is bounded
by `OVER_REPRESENTATION_MAX`.

Measured losses and speeds, as Oort and its like select by, are no part of it: under masks the aggregator has no loss of
a single device, and a device that wants to be selected would only have to name a large one.

Source: Gonzalez 1985, "Clustering to minimize the maximum intercluster distance" (farthest-point centres); Madow 1949
(systematic sampling); Lai et al. 2021, arXiv 2010.06081 (Oort), for comparison.
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from vedette_schemas.round import GROUP_MEMBERS_MAX, GROUPS_MAX, group_of, hash_parts

CLUSTERS_MAX: Final = 4
"""Kinds that sketches may divide a cohort into: with more, most get no seat in a round of ordinary size."""
SKETCH_NEAR: Final = 16.0
"""Sketches whose bytes differ by at most this on average (of 255) are one kind: noise must not make kinds."""
OVER_REPRESENTATION_MAX: Final = 4.0
"""Seats a kind has at most, as a multiple of its share of the applicants: what inventing a cohort can gain."""
OVERSELECTION_MAX: Final = 1.5
"""More than half as many again as are wanted burns energy of devices whose updates nobody waits for."""
_COMPLETIONS_BEFORE: Final = (10.0, 13.0)
"""(completed, selected) assumed before anything was seen: 130 % of the target, see `overselect`."""
_WHOLE: Final = 2**64
"""`group_of` modulo this is the whole hash, and modulo a number of groups it is the group: one hash serves them all."""
_SEAT: Final = 2**40
"""Parts of a seat: shares of seats are whole numbers of these, so that they add up exactly."""

SelectionMode = Literal["diverse", "random", "all"]
"""``diverse``: by kind and turn; ``random``: each with the same chance; ``all``: everybody, by turn if too many."""


@dataclass(frozen=True, slots=True)
class Applicant:
    """A device that checked in, and what the aggregator remembers of it.

    Attributes:
        device: its id.
        examples_bucket: floor(log2) of the examples that it says it has.
        cohort: kind that it says it is; may be empty.
        sketch: its summary of its behaviour; may be empty.
        selected: rosters that it was in.
        completed: uploads of it that were accepted.
        last_round: round of its last roster; 0 is none. Who was drawn but found no room in a group keeps its turn.
        joined_round: round that was current when it first checked in.
    """

    device: str
    examples_bucket: int
    cohort: str = ""
    sketch: bytes = b""
    selected: int = 0
    completed: int = 0
    last_round: int = 0
    joined_round: int = 0


@dataclass(frozen=True, slots=True)
class Selection:
    """Who takes part.

    Attributes:
        devices: sorted ids.
        representation: applicants that a selected device stands for, over the mean of that; an update's weight is
            multiplied with it (`assigned_weight`).
    """

    devices: tuple[str, ...]
    representation: Mapping[str, float]


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


# -- who --------------------------------------------------------------------------------------------------------------


def select(
    applicants: Collection[Applicant], count: int, seed: bytes, *, round_number: int, mode: SelectionMode = "diverse"
) -> Selection:
    """Draw at most `count` applicants.

    Within a kind, who waited for the most rounds comes first; among those, who completed and was selected least for
    the rounds that it was there; then the seed decides. So everybody's turn comes within a bounded number of a kind's
    seats, and counts within a kind of devices that are always there differ by one. A turn counts from the last roster
    and not from all that was missed: a site that comes back after months would else hold every seat for months.

    Args:
        applicants: those that checked in, each once; their order does not matter.
        count: most that are drawn, ≥ 0.
        seed: unknown to the devices, fresh for every attempt.
        round_number: the round that they are drawn for.
        mode: see `SelectionMode`.

    Raises:
        ValueError: a device that is there twice, or a negative count.
    """
    by_id = {a.device: a for a in applicants}
    if len(by_id) != len(applicants) or count < 0:
        raise ValueError(f"selection: found {len(applicants)} applicants of {len(by_id)} devices, {count} wanted")
    everybody = [by_id[device] for device in sorted(by_id)]
    luck = {a.device: hmac.digest(seed, a.device.encode(), "sha256") for a in everybody}
    if not everybody or count == 0:
        return Selection((), {})
    if mode == "random":
        drawn = sorted(luck, key=luck.__getitem__)[:count]
        return Selection(tuple(sorted(drawn)), dict.fromkeys(sorted(drawn), 1.0))
    strata = [everybody] if mode == "all" else _strata(everybody)
    strata.sort(key=lambda stratum: luck[stratum[0].device])  # so that no two kinds always share a seat
    seats = _seats([len(s) for s in strata], count, hash_parts(b"vedette-seats-1", seed))
    stands_for: dict[str, float] = {}
    for stratum, taken in zip(strata, seats, strict=True):
        by_turn = sorted(stratum, key=lambda a: (*_turn(a, round_number), luck[a.device]))
        stands_for |= {a.device: len(stratum) / taken for a in by_turn[:taken]}
    mean = sum(stands_for.values()) / max(1, len(stands_for))
    devices = tuple(sorted(stands_for))
    return Selection(devices, {device: stands_for[device] / mean for device in devices})


def _turn(applicant: Applicant, round_number: int) -> tuple[int, float, float]:
    since = max(applicant.last_round, applicant.joined_round)
    # A task that starts again counts from 1: what lies in the future was another count.
    since = since if since <= round_number else 0
    there = max(1, round_number - applicant.joined_round + 1)
    return since, applicant.completed / there, applicant.selected / there


def _strata(applicants: Sequence[Applicant]) -> list[list[Applicant]]:
    """Kinds: the same cohort and the nearest of its sketches' centres; sorted ids within."""
    cohorts: dict[tuple[str, int], list[Applicant]] = {}
    for a in applicants:
        cohorts.setdefault((a.cohort, len(a.sketch)), []).append(a)
    strata = []
    for (_, length), members in sorted(cohorts.items()):
        nearest = [0] * len(members) if length == 0 else nearest_centres([a.sketch for a in members])
        kinds: dict[int, list[Applicant]] = {}
        for a, kind in zip(members, nearest, strict=True):
            kinds.setdefault(kind, []).append(a)
        strata += [kinds[kind] for kind in sorted(kinds)]
    return strata


def nearest_centres(sketches: Sequence[bytes]) -> list[int]:
    """The number of the nearest centre, for every sketch; the same whatever their order.

    The first centre is the sketch that is nearest to the median of all; each further one is the farthest from those
    before, until all are near one or there are `CLUSTERS_MAX`.

    Args:
        sketches: of one length ≥ 1.
    """
    rows = np.frombuffer(b"".join(sketches), np.uint8).reshape(len(sketches), -1).astype(np.int16)
    kinds, place = np.unique(rows, axis=0, return_inverse=True)  # sorted: ties go to the smallest bytes
    first = int(np.abs(kinds - np.median(rows, axis=0)).sum(axis=1).argmin())
    distance = _mean_difference(kinds, kinds[first])
    nearest = np.zeros(len(kinds), np.int64)
    for number in range(1, CLUSTERS_MAX):
        farthest = int(distance.argmax())
        if distance[farthest] <= SKETCH_NEAR:
            break
        found = _mean_difference(kinds, kinds[farthest])
        nearest[found < distance] = number
        distance = np.minimum(distance, found)
    return [int(kind) for kind in nearest[place.reshape(-1)]]


def _mean_difference(rows: npt.NDArray[np.int16], centre: npt.NDArray[np.int16]) -> npt.NDArray[np.float64]:
    return np.asarray(np.abs(rows - centre).mean(axis=1, dtype=np.float64))


def _seats(sizes: Sequence[int], count: int, seed: bytes) -> list[int]:
    """Whole seats a stratum, `count` in all: its share rounded up or down, by chance, so that the mean is the share."""
    count = min(count, sum(sizes))
    parts = [min(round(share * _SEAT), size * _SEAT) for share, size in zip(_shares(sizes, count), sizes, strict=True)]
    missing = count * _SEAT - sum(parts)  # what floating point and rounding left over, less than a thousandth of a seat
    for i, size in enumerate(sizes):
        change = max(-parts[i], min(missing, size * _SEAT - parts[i]))
        parts[i] += change
        missing -= change
    seats: list[int] = []
    at = int.from_bytes(seed[:8], "big") % _SEAT
    for part in parts:
        seats.append((at + part) // _SEAT - at // _SEAT)
        at += part
    return seats


def _shares(sizes: Sequence[int], count: int) -> list[float]:
    """Seats a stratum by the square root of its size, bounded; what a bound takes away goes to the others."""
    total = sum(sizes)
    bounds = [min(float(n), OVER_REPRESENTATION_MAX * count * n / total) for n in sizes]
    shares, free = [0.0] * len(sizes), set(range(len(sizes)))
    left = float(count)
    while free:
        per_root = max(0.0, left) / sum(math.sqrt(sizes[i]) for i in free)
        full = {i for i in free if per_root * math.sqrt(sizes[i]) >= bounds[i]}
        for i in full or free:
            shares[i] = bounds[i] if full else per_root * math.sqrt(sizes[i])
            left -= shares[i]
        free -= full or free
    return shares


def assigned_weight(examples_bucket: int, examples_reference: int, weight_max: int, representation: float = 1.0) -> int:
    """What an update counts: clamp(round(representation · 2^bucket / n_ref), 1, W_max). In the roster, for all to see.

    Args:
        examples_bucket: of the check-in; a claim, and bounded by `weight_max` like everything else about it.
        examples_reference: examples that make weight 1, ≥ 1.
        weight_max: of the plan, ≥ 1.
        representation: `Selection.representation`.
    """
    wanted = min(representation * (1 << examples_bucket) / examples_reference, float(weight_max))
    return max(1, min(weight_max, round(wanted)))


def overselect(wanted: int, completed: int, selected: int) -> int:
    """How many to select so that about `wanted` uploads arrive: `wanted` to `OVERSELECTION_MAX` times it.

    Before anything was seen it is 130 % of the target; ten or twenty selections later the fleet's own rate counts more.

    Args:
        wanted: uploads that the round should have.
        completed: of those, how many had their upload accepted.
        selected: devices that were in the rosters of the last rounds.

    Raises:
        ValueError: more completed than selected, or a negative number.

    Source: Bonawitz et al. 2019, arXiv 1902.01046, section 9 (130 % against drop-outs of 6 to 10 % and stragglers).
    """
    if not 0 <= completed <= selected or wanted < 0:
        raise ValueError(f"over-selection: found {completed} of {selected} completed, {wanted} wanted")
    rate = (completed + _COMPLETIONS_BEFORE[0]) / (selected + _COMPLETIONS_BEFORE[1])
    return max(wanted, min(math.ceil(wanted / rate), math.floor(wanted * OVERSELECTION_MAX)))


def attempt_seed(secret: bytes, task: str, number: int, attempt: int) -> bytes:
    """The selection's seed for one attempt, from the aggregator's own secret."""
    return hash_parts(b"vedette-selection-1", secret, task.encode(), str(number).encode(), str(attempt).encode())


def beacon_of(previous: bytes, task: str, number: int, attempt: int, keys: Mapping[str, bytes]) -> bytes:
    """The 32 bytes that assign devices to groups, where no beacon is revealed an epoch.

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


# -- in which group ---------------------------------------------------------------------------------------------------


def form_groups(
    devices: Collection[str],
    beacon: bytes,
    task: str,
    *,
    groups: int,
    members_max: int,
    survivors_min: int,
    seed: bytes,
) -> Grouping:
    """Let the beacon put devices into the groups of the plan.

    Hashing makes groups of unequal size. Those that a full group has no room for sit this attempt out, drawn by the
    seed, so that it is not always the same ones; groups below `survivors_min` are not opened.

    Args:
        devices: the selected ids.
        beacon: revealed value of the epoch.
        task: the task.
        groups: G of the plan, the same through the epoch (`choose_groups`).
        members_max: most members a group.
        survivors_min: smallest group that can be opened.
        seed: unknown to the devices, fresh for every attempt.

    Raises:
        ValueError: numbers that no plan can have.
    """
    if not (1 <= groups <= GROUPS_MAX and 1 <= survivors_min <= members_max <= GROUP_MEMBERS_MAX):
        raise ValueError(f"groups: found {groups} of {survivors_min} to {members_max} members")
    found: dict[int, list[str]] = {}
    for device in set(devices):
        found.setdefault(group_of(beacon, task, device, groups), []).append(device)
    draw = hash_parts(b"vedette-room-1", seed)  # other luck than in `select`, which the selected ones all have
    members = {
        gid: tuple(sorted(sorted(group, key=lambda d: hmac.digest(draw, d.encode(), "sha256"))[:members_max]))
        for gid, group in sorted(found.items())
        if len(group) >= survivors_min
    }
    return Grouping(groups, members)


def choose_groups(
    devices: Collection[str],
    beacon: bytes,
    task: str,
    *,
    group_size: int,
    members_max: int,
    survivors_min: int,
    expected: int | None = None,
) -> int:
    """The number of groups for an epoch, from the devices that are known when its plan is made.

    Of all numbers that are possible, the one that leaves the fewest devices without a group is taken; among those the
    one whose groups come nearest to `group_size`, and then the one with fewer, larger groups.

    Args:
        devices: ids of those that may take part in the epoch.
        beacon: the epoch's. It must be fixed before the devices' ids can react to it.
        task: the task.
        group_size: members wished for.
        members_max: most members a group.
        survivors_min: smallest group that can be opened.
        expected: how many of them a round will have; None is all. Groups are then that much smaller than their hashes.

    Returns:
        1 to `GROUPS_MAX`; 1 if no number opens any group.
    """
    hashes = np.array([group_of(beacon, task, device, _WHOLE) for device in sorted(set(devices))], np.uint64)
    there = len(hashes) if expected is None else min(len(hashes), max(0, expected))
    best, best_rank = 1, (0.0, -math.inf)
    for count in range(1, max(1, min(GROUPS_MAX, there // survivors_min)) + 1):
        sizes = np.bincount((hashes % np.uint64(count)).astype(np.int64), minlength=count) * (
            there / max(1, len(hashes))
        )
        # Rounded: shares of devices that differ in the last bit only are equals.
        placed = round(float(np.minimum(sizes[sizes >= survivors_min], members_max).sum()), 6)
        rank = (placed, -abs(there / count - group_size))
        if rank > best_rank:
            best, best_rank = count, rank
    return best
