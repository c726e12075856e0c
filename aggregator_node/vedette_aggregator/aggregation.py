"""From a round's group sums to a candidate: checks, noise, the robust rule, one server step.

What comes in are sums, one a group: no function here ever sees a single device's update. With noise the order is the
promise: the sums are noised, as residues of their ring, before anything that is not the same for every update reads
them, and the release is in the ledger before the noised result leaves (`vedette_core.privacy.ledger`). A refusal that
comes after the noise is such a result, too (`SpentError`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from vedette_core.learning.encoding import Encoding
from vedette_core.learning.layout import Float32
from vedette_core.learning.optimiser import Moments, ServerOptimiser
from vedette_core.learning.robust.defence import Defence
from vedette_core.learning.robust.norm_gate import NormHistory
from vedette_core.learning.robust.rule import Context
from vedette_core.learning.round_vector import encoding_of, read_frame, read_sum
from vedette_core.learning.statistics_slots import StatisticsSum, add_statistics, merge_range_histograms
from vedette_core.learning.update_vector import (
    GroupSum,
    RingSum,
    add_group_sums,
    add_ring_sums,
    decode_group_mean,
    read_levels,
)
from vedette_core.privacy.adaptive_clip import count_sigma, noisy_clipped_share, sum_multiplier
from vedette_core.privacy.events import PrivacyEvent, Scope
from vedette_core.privacy.ledger import Ledger
from vedette_core.privacy.noise import add_noise, noise_sigma
from vedette_schemas.errors import PeerError, RefusedError
from vedette_schemas.round import Plan, Roster, hash_parts, transcript_hash

Ranges = Mapping[str, tuple[float, float]]
Entropy = Callable[[int], bytes]
T = TypeVar("T")


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
        ranges: merged activation range (low, high) a tensor, for the quantiser; empty where none were reported.
        contributors: sorted ids of the devices whose updates are in it.
        transcript: 32 bytes over the groups' transcripts and every upload's digest.
        metrics: ``participants groups groups_dropped weight clipped_share update_norm``, and where participants report
            them ``loss_before loss_after``.
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
class OpenedGroup:
    """A group whose sum is open.

    Attributes:
        roster: the group's.
        digests: SHA-256 of each survivor's sealed upload, by device.
        total: sum of the survivors' vectors, in the plan's ring, without masks.
    """

    roster: Roster
    digests: Mapping[str, bytes]
    total: npt.NDArray[np.unsignedinteger[Any]] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Judged:
    """What a round says about a group, for the record of its members.

    Attributes:
        members: whose updates were in the sum.
        dropped: why it does not count; empty if it does.
        mean: its mean update, where its sum could be read.
    """

    members: tuple[str, ...]
    dropped: str = ""
    mean: Float32 | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Aggregate:
    """What came of an attempt's sums.

    Attributes:
        candidate: the candidate.
        groups: what is said about each group, by gid.
        norms: usual norms, with this round's.
        event: the release for the ledger: with noise also of groups that were dropped for what their noised sum said.
        clipped_share: share of clipped updates, noised where the plan asks for noise.
        update: ``(dimension,)`` float32 that the groups' means became.
    """

    candidate: Candidate
    groups: Mapping[int, Judged]
    norms: NormHistory
    event: PrivacyEvent
    clipped_share: float
    update: Float32 = field(repr=False)


class SpentError(RefusedError):
    """Refused after noise was drawn: it tells of the noised sums, and costs what their release costs.

    Attributes:
        event: for the ledger, before the refusal leaves.
    """

    def __init__(self, fault: RefusedError, event: PrivacyEvent) -> None:
        super().__init__(str(fault), rule=fault.rule)
        self.event = event


def release_event(plan: Plan, number: int, attempt: int, devices: Sequence[str]) -> PrivacyEvent:
    """What the ledger must hold before anything of an attempt leaves."""
    return PrivacyEvent(
        task=plan.task,
        round=number,
        attempt=attempt,
        noise_multiplier=plan.privacy.noise_multiplier,
        clip_norm=plan.update.clip_norm,
        weight_max=plan.update.weight_max,
        scope=Scope(plan.privacy.scope),
        devices=tuple(sorted(devices)),
    )


def aggregate_round(
    plan: Plan,
    groups: Sequence[OpenedGroup],
    model: GlobalModel,
    optimiser: ServerOptimiser,
    *,
    defence: Defence,
    norms: NormHistory,
    root: Float32 | None,
    ledger: Ledger,
    entropy: Entropy,
    adapts: bool = False,
) -> Aggregate:
    """Aggregate an attempt.

    Without noise the same input gives the same candidate, to the last bit; with noise it is drawn once, and what came
    of it is written down before it leaves.

    Args:
        plan: the attempt's plan.
        groups: the groups that were opened, by gid; at least one.
        model: what the round started from.
        optimiser: the server's optimiser.
        defence: the robust rule and its gates.
        norms: usual norms of the groups' means.
        root: update trained on the aggregator's own clean root set, where there is one.
        ledger: of the task; it is asked, and not changed.
        entropy: for the noise.
        adapts: whether the share of clipped updates is used, so that it costs some of the noise.

    Raises:
        SpentError: one of the refusals below, with noise, and not for the budget; or the noised sum of all groups is
            none that updates can have (rule ``limit``).
        RefusedError: rule ``quorum``: too few updates are in sums that hold; others: the budget is used up, the step
            leads to weights that are not finite, or nothing passed the defence. The released model stays.
    """
    judged: dict[int, Judged] = {}
    if plan.privacy.noise_multiplier == 0:
        sums = _holding(groups, judged, lambda g: read_sum(plan, g.roster, g.digests, g.total))
        held = [group for group, _ in sums]
        event = _affordable_event(plan, held, groups[0].roster, judged, ledger)
        share = sum(s.clipped for _, s in sums) / len(event.devices)
        read = _Read(held, [s for _, s in sums], share)
        return _aggregate(plan, read, judged, event, model, optimiser, defence, norms, root)
    frames = _holding(groups, judged, lambda g: read_frame(plan, g.roster, g.digests, g.total))
    event = _affordable_event(plan, [group for group, _ in frames], groups[0].roster, judged, ledger)
    try:
        read = _read_noised(plan, frames, judged, entropy, adapts)
        return _aggregate(plan, read, judged, event, model, optimiser, defence, norms, root)
    except RefusedError as fault:
        raise SpentError(fault, event) from fault


@dataclass(frozen=True, slots=True)
class _Read:
    """What may be read of an attempt: with noise all of it is noised.

    Attributes:
        groups: that hold.
        sums: one a group; where the plan has noise on the total, the one sum of all groups.
        clipped_share: share of clipped updates; 0 where it is not told.
    """

    groups: Sequence[OpenedGroup]
    sums: Sequence[GroupSum]
    clipped_share: float


def _holding(
    groups: Sequence[OpenedGroup], judged: dict[int, Judged], read: Callable[[OpenedGroup], T]
) -> list[tuple[OpenedGroup, T]]:
    """The groups that can be read; of the others `judged` is told why not."""
    found = []
    for group in groups:
        try:
            found.append((group, read(group)))
        except PeerError as fault:
            judged[group.roster.gid] = Judged(tuple(sorted(group.digests)), fault.reason)
    return found


def _affordable_event(
    plan: Plan, held: Sequence[OpenedGroup], roster: Roster, judged: Mapping[int, Judged], ledger: Ledger
) -> PrivacyEvent:
    """The release of these groups, if they are enough and it is within every budget."""
    event = release_event(plan, roster.round, roster.attempt, _quorum(plan, held, roster, judged))
    ledger.check(event)
    return event


def _quorum(plan: Plan, held: Sequence[OpenedGroup], roster: Roster, judged: Mapping[int, Judged]) -> tuple[str, ...]:
    """The devices of these groups, sorted, if they are enough."""
    devices = tuple(sorted(device for group in held for device in group.digests))
    if len(devices) < plan.groups.quorum:
        reasons = ", ".join(f"group {gid}: {j.dropped}" for gid, j in sorted(judged.items())) or "none dropped"
        raise RefusedError(
            f"round {roster.round}.{roster.attempt}: found {len(devices)} updates in sums that hold ({reasons}), "
            f"expected a quorum of {plan.groups.quorum}",
            rule="quorum",
        )
    return devices


def _read_noised(
    plan: Plan,
    frames: Sequence[tuple[OpenedGroup, RingSum]],
    judged: dict[int, Judged],
    entropy: Entropy,
    adapts: bool,
) -> _Read:
    """Noise the sums as they are, each once, and only then look at them.

    Raises:
        RefusedError: rule ``limit``: the sum of all groups is none that updates can have; ``quorum``: too few are left.
    """
    sums = [frame for _, frame in frames]
    roster = frames[0][0].roster
    encoding = encoding_of(plan, roster)
    share, multiplier = _split_noise(plan, add_ring_sums(sums), entropy, adapts)
    if plan.privacy.scope == "total" and plan.update.noise_sigma == 0:
        try:
            total = _noised(add_ring_sums(sums), plan, encoding, multiplier, entropy)
        except PeerError as fault:
            raise RefusedError(f"round {roster.round}.{roster.attempt}: all groups: {fault}", rule="limit") from fault
        return _Read([group for group, _ in frames], [total], share)
    by_group = {group.roster.gid: frame for group, frame in frames}
    read = _holding(
        [group for group, _ in frames],
        judged,
        lambda g: _noised(by_group[g.roster.gid], plan, encoding, multiplier, entropy),
    )
    held = [group for group, _ in read]
    _quorum(plan, held, roster, judged)
    found = [s for _, s in read]
    return _Read(held, [add_group_sums(found)] if plan.privacy.scope == "total" else found, share)


def _split_noise(plan: Plan, total: RingSum, entropy: Entropy, adapts: bool) -> tuple[float, float]:
    """The share of clipped updates as it may be used, and what multiplier is left for the sums.

    The plan's multiplier pays for both: the count has its own noise, and the sums get a little more. A count that is
    not used is not looked at.
    """
    z = plan.privacy.noise_multiplier
    if not adapts:
        return 0.0, z
    sigma = count_sigma(total.survivors, z)
    share = noisy_clipped_share(total.clipped, total.survivors, sigma, entropy, total.modulus)
    return share, sum_multiplier(z, sigma)


def _noised(total: RingSum, plan: Plan, encoding: Encoding, multiplier: float, entropy: Entropy) -> GroupSum:
    """A sum with its noise, read.

    Raises:
        PeerError: with the noise, and whatever it can be, it is none that updates can have.
    """
    sigma, draws = plan.update.noise_sigma, total.survivors  # the devices brought it: enough of them are honest
    if sigma == 0:
        sigma, draws = noise_sigma(multiplier, plan.update.clip_norm, plan.update.weight_max, encoding.step), 1
        noised = add_noise(total.residues.astype(np.int64), sigma, entropy)
        total = replace(total, residues=noised.astype(total.residues.dtype))  # modulo the ring
    return GroupSum(read_levels(total, encoding, sigma, draws), total.weight, total.survivors, clipped=0)


def _aggregate(
    plan: Plan,
    read: _Read,
    judged: dict[int, Judged],
    event: PrivacyEvent,
    model: GlobalModel,
    optimiser: ServerOptimiser,
    defence: Defence,
    norms: NormHistory,
    root: Float32 | None,
) -> Aggregate:
    """The candidate that comes of sums that may be read."""
    first = read.groups[0].roster
    encoding = encoding_of(plan, first)
    devices = tuple(sorted(device for group in read.groups for device in group.digests))
    members = [tuple(sorted(group.digests)) for group in read.groups]
    if plan.privacy.noise_multiplier > 0 and plan.privacy.scope == "total":
        mean, norms_after = decode_group_mean(read.sums[0], encoding), norms
        judged |= {group.roster.gid: Judged(own) for group, own in zip(read.groups, members, strict=True)}
    else:
        means = np.stack([decode_group_mean(s, encoding) for s in read.sums])
        shares = np.array([float(s.weight) for s in read.sums])
        result = defence.aggregate(means, shares, Context(root=root, running_norm=norms.running))
        mean, norms_after = result.delta, norms.after(result.median_norm)
        why = dict(result.dropped)
        judged |= {
            group.roster.gid: Judged(members[i], why.get(i, ""), means[i]) for i, group in enumerate(read.groups)
        }
    weights, after = _step(plan, model, mean, optimiser, first.round)
    statistics = _statistics(read.sums)
    metrics = {
        "participants": float(len(devices)),
        "groups": float(len(read.groups)),
        "groups_dropped": float(sum(1 for j in judged.values() if j.dropped)),
        "weight": float(sum(s.weight for s in read.sums)),
        "clipped_share": read.clipped_share,
        "update_norm": float(np.linalg.norm(mean.astype(np.float64))),
    }
    if statistics is not None:
        metrics |= {"loss_before": statistics.loss_before, "loss_after": statistics.loss_after}
    candidate = Candidate(
        task=plan.task,
        round=first.round,
        attempt=first.attempt,
        parent_version=model.version,
        parent_sha256=model.sha256,
        plan=first.plan,
        weights=weights,
        ranges=merge_range_histograms(statistics.ranges, statistics.survivors) if statistics is not None else {},
        contributors=devices,
        transcript=_round_transcript(read.groups),
        metrics=metrics,
        optimiser=after,
    )
    return Aggregate(candidate, judged, norms_after, event, read.clipped_share, mean)


def _step(
    plan: Plan, model: GlobalModel, mean: Float32, optimiser: ServerOptimiser, number: int
) -> tuple[Float32, Moments]:
    state = model.optimiser
    fresh = optimiser.initial_state(plan.dimension)
    if state.first.shape != fresh.first.shape:
        state = fresh  # the operator chose another optimiser: the old one's memory means nothing to it
    with np.errstate(over="ignore", invalid="ignore"):
        weights, after = optimiser.apply(model.weights, mean, state)
    if not np.isfinite(weights).all():
        raise RefusedError(
            f"round {number}: found {int((~np.isfinite(weights)).sum())} weights of {plan.dimension} that are "
            "not finite after the server's step, expected none; the released model stays",
            rule="finite",
        )
    return weights.astype(np.float32), after


def _statistics(sums: Iterable[GroupSum]) -> StatisticsSum | None:
    total: StatisticsSum | None = None
    for group in sums:
        if group.statistics is not None:
            total = group.statistics if total is None else add_statistics(total, group.statistics)
    return total


def _round_transcript(groups: Sequence[OpenedGroup]) -> bytes:
    return hash_parts(
        b"vedette-round-1",
        *(transcript_hash(group.roster) for group in groups),
        b"uploads",
        *sorted(digest for group in groups for digest in group.digests.values()),
    )
