"""From a round's uploads to a candidate: exact whole-number sums a group, one decoded mean, one server step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final

import numpy as np

from vedette_core.learning.encoding import Encoding, Sums, decode_mean, rotation_seed, weighted_sum
from vedette_core.learning.layout import Float32
from vedette_core.learning.optimiser import Moments, ServerOptimiser
from vedette_schemas.errors import RefusedError
from vedette_schemas.round import Plan, Roster, Upload, hash_parts, transcript_hash

RANGE_WIDTHS_MAX: Final = 4.0
"""How many median widths a merged range may stick out: bounds what one device can do to the quantiser's resolution."""

Ranges = Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class GlobalModel:
    """The weights that a round starts from.

    Attributes:
        version: release version.
        sha256: hex digest of the released weights file.
        plan: the plan that was released with it, as its artifact: rounds that start from it run under this plan.
        round: round that made it; 0 for the initial model.
        weights: ``(dimension,)`` float32.
        optimiser: state of the server's optimiser after it.
    """

    version: int
    sha256: str
    plan: bytes = field(repr=False)
    round: int
    weights: Float32 = field(repr=False)
    optimiser: Moments = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """What a round made, not yet released.

    Attributes:
        task: the task.
        round: its round.
        attempt: the attempt that succeeded.
        parent_version: release version that the round started from.
        parent_sha256: hex digest of that release's weights file.
        plan: hex digest of the plan that the round ran under.
        weights: ``(dimension,)`` float32, finite.
        ranges: merged activation range (low, high) a tensor, for the quantiser.
        contributors: sorted ids of the devices whose updates are in it.
        transcript: 32 bytes over the groups' transcripts and every upload's digest.
        metrics: ``loss_before loss_after participants groups weight clipped_share update_norm``.
        optimiser: state of the server's optimiser after it.
    """

    task: str
    round: int
    attempt: int
    parent_version: int
    parent_sha256: str
    plan: str
    weights: Float32 = field(repr=False)
    ranges: Ranges
    contributors: tuple[str, ...]
    transcript: bytes
    metrics: Mapping[str, float]
    optimiser: Moments = field(repr=False)

    def digest(self) -> bytes:
        """SHA-256 over everything in it: two candidates with the same digest are the same to the last bit."""
        numbers = [f"{name}={value.hex()}".encode() for name, value in sorted(self.metrics.items())]
        ranges = [f"{name}={low.hex()},{high.hex()}".encode() for name, (low, high) in sorted(self.ranges.items())]
        return hash_parts(
            f"{self.task} {self.round} {self.attempt} {self.parent_version} {self.parent_sha256} {self.plan}".encode(),
            self.weights.astype("<f4").tobytes(),
            hash_parts(*ranges),
            hash_parts(*(c.encode() for c in self.contributors)),
            self.transcript,
            hash_parts(*numbers),
            self.optimiser.to_bytes(),
        )


@dataclass(frozen=True, slots=True)
class Contribution:
    """An accepted upload, with the sha256 of the sealed message that it came in."""

    upload: Upload
    digest: bytes


def encoding_of(plan: Plan, roster: Roster) -> Encoding:
    """The encoding that every participant of an attempt shares, whatever its group."""
    seed = rotation_seed(
        task=roster.task,
        round_number=roster.round,
        attempt=roster.attempt,
        model=roster.model,
        plan=roster.plan,
        beacon=roster.beacon,
    )
    return Encoding(plan.dimension, plan.update.clip_norm, seed)


def aggregate_round(
    plan: Plan,
    rosters: Sequence[Roster],
    contributions: Mapping[str, Contribution],
    model: GlobalModel,
    optimiser: ServerOptimiser,
) -> Candidate:
    """Aggregate an attempt. The same input gives the same candidate, to the last bit.

    Args:
        plan: the attempt's plan.
        rosters: the groups that have enough survivors, by gid; at least one.
        contributions: accepted uploads by device; each is of a member of one of the groups.
        model: what the round started from.
        optimiser: the server's optimiser.

    Raises:
        RefusedError: the step leads to weights that are not finite: the candidate is refused, the model stays.
        PeerError: a group's sum is none that its members' encodings can have.
    """
    first = rosters[0]
    encoding = encoding_of(plan, first)
    total: Sums = np.zeros(encoding.padded, np.int64)
    weight_sum = 0
    survivors: list[Contribution] = []
    for roster in rosters:
        group = [contributions[m.device] for m in roster.members if m.device in contributions]
        group_sum, group_weight = _sum_group(group)
        total += group_sum
        weight_sum += group_weight
        survivors += group
    mean = decode_mean(total, weight_sum, encoding)
    state = model.optimiser
    fresh = optimiser.initial_state(plan.dimension)
    if state.first.shape != fresh.first.shape:
        state = fresh  # the operator chose another optimiser: the old one's memory means nothing to it
    with np.errstate(over="ignore", invalid="ignore"):
        weights, after = optimiser.apply(model.weights, mean, state)
    if not np.isfinite(weights).all():
        raise RefusedError(
            f"round {first.round}: found {int((~np.isfinite(weights)).sum())} weights of {plan.dimension} that are "
            "not finite after the server's step, expected none; the released model stays",
            rule="finite",
        )
    uploads = [c.upload for c in survivors]
    return Candidate(
        task=plan.task,
        round=first.round,
        attempt=first.attempt,
        parent_version=model.version,
        parent_sha256=model.sha256,
        plan=first.plan,
        weights=weights.astype(np.float32),
        ranges=merge_ranges(uploads),
        contributors=tuple(sorted(u.device for u in uploads)),
        transcript=_round_transcript(rosters, survivors),
        metrics=_metrics(uploads, len(rosters), weight_sum, float(np.linalg.norm(mean.astype(np.float64)))),
        optimiser=after,
    )


def merge_ranges(uploads: Sequence[Upload]) -> dict[str, tuple[float, float]]:
    """Smallest and largest activation a tensor over all devices, outliers held back.

    A tensor counts if at least half of the devices report it. Its range is the devices' minimum and maximum, but
    sticks out of the median range by no more than `RANGE_WIDTHS_MAX` median widths.
    """
    reported: dict[str, list[tuple[float, float]]] = {}
    for upload in uploads:
        for r in upload.ranges:
            reported.setdefault(r.tensor, []).append((r.low, r.high))
    merged: dict[str, tuple[float, float]] = {}
    for tensor, found in sorted(reported.items()):
        if 2 * len(found) < len(uploads):
            continue
        low, high = median(r[0] for r in found), median(r[1] for r in found)
        slack = RANGE_WIDTHS_MAX * max(high - low, 0.0)
        merged[tensor] = (
            max(min(r[0] for r in found), low - slack),
            min(max(r[1] for r in found), high + slack),
        )
    return merged


def _sum_group(group: Sequence[Contribution]) -> tuple[Sums, int]:
    """The group's weighted sum: the one thing that stays visible of it once uploads are masked."""
    levels = np.frombuffer(b"".join(c.upload.levels for c in group), np.uint8).reshape(len(group), -1)
    weights = np.array([c.upload.weight for c in group], np.int64)
    return weighted_sum(levels, weights), int(weights.sum())


def _round_transcript(rosters: Sequence[Roster], survivors: Sequence[Contribution]) -> bytes:
    return hash_parts(
        b"vedette-round-1",
        *(transcript_hash(r) for r in rosters),
        b"uploads",
        *sorted(c.digest for c in survivors),
    )


def _metrics(uploads: Sequence[Upload], groups: int, weight_sum: int, update_norm: float) -> dict[str, float]:
    return {
        "loss_before": math.fsum(u.loss_before * u.weight for u in uploads) / weight_sum,
        "loss_after": math.fsum(u.loss_after * u.weight for u in uploads) / weight_sum,
        "participants": float(len(uploads)),
        "groups": float(groups),
        "weight": float(weight_sum),
        "clipped_share": sum(u.clipped for u in uploads) / len(uploads),
        "update_norm": update_norm,
    }
