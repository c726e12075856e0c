"""What became of groups with lying devices, and of the liars: figures from the aggregator's own record and log."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

from vedette_aggregator.company import Company
from vedette_core.learning.suspicion import OBSERVATIONS_MIN

DROPPED: Final = re.compile(r"round (\d+)\.\d+: group (\d+) dropped: ([a-z-]+)")
ROUND: Final = re.compile(r"\bround (\d+)[.:]")


@dataclass(frozen=True, slots=True)
class GroupSeen:
    """A group of one round.

    Attributes:
        round: the round.
        gid: its number.
        members: whose updates were in its sum.
        liars: how many of them lie.
        cosine: of its mean to the root set's update; −1 where its sum could not be read.
        dropped: why it does not count; empty if it does.
    """

    round: int
    gid: int
    members: int
    liars: int
    cosine: float
    dropped: str

    @property
    def trust(self) -> float:
        """What it weighs, before shares are capped: members × max(0, cosine)."""
        return 0.0 if self.dropped else self.members * max(0.0, self.cosine)


def seen_groups(companies: Mapping[int, Company], liars: Collection[str], log: str) -> list[GroupSeen]:
    """The groups of every round.

    Args:
        companies: what the aggregator remembered, by round; an epoch is one round.
        liars: who lies.
        log: the aggregator's, which says what was dropped and why.
    """
    dropped = {(int(number), int(gid)): reason for number, gid, reason in DROPPED.findall(log)}
    return [
        GroupSeen(
            number,
            gid,
            len(company.members[gid]),
            len(company.members[gid] & set(liars)),
            total / rounds,
            dropped.get((number, gid), ""),
        )
        for number, company in sorted(companies.items())
        for gid, (total, rounds) in sorted(company.cosines.items())
    ]


def round_at(log: str, said: str) -> int | None:
    """The round that an aggregator was in when it last logged something; None if it did not.

    Its own log is in order; what others hear of its rounds is a little later.
    """
    before, found, _ = log.rpartition(said)
    if not found:
        return None
    rounds = ROUND.findall(before)
    return int(rounds[-1]) if rounds else 0


def group_figures(groups: Sequence[GroupSeen]) -> dict[str, Any]:
    """How groups with a liar fared, beside those without."""
    lying, clean = [g for g in groups if g.liars], [g for g in groups if not g.liars]
    weights = [_lying_shares([g for g in groups if g.round == n]) for n in sorted({g.round for g in groups})]
    return {
        "groups_with_poisoned": _fared(lying),
        "groups_without": _fared(clean),
        "share_of_devices_in_groups_with_poisoned": _mean([devices for devices, _ in weights]),
        "share_of_weight_of_groups_with_poisoned": _mean([weight for _, weight in weights]),
    }


def proposed(suspects: Sequence[Mapping[str, Any]], suspicion_min: float) -> list[str]:
    """The devices that a person is asked to look at, most suspicious first."""
    return [
        str(s["device"]) for s in suspects if s["suspicion"] >= suspicion_min and s["observations"] >= OBSERVATIONS_MIN
    ]


def suspicion_figures(
    suspects: Sequence[Mapping[str, Any]], liars: Collection[str], suspicion_min: float
) -> dict[str, Any]:
    """Where the liars stand among the suspects, and who is proposed.

    Args:
        suspects: of ``vedette device quarantine list --json``, most suspicious first; who is missing has no suspicion.
        liars: who lies.
        suspicion_min: of a proposal.
    """
    ranks = {}
    for liar in liars:
        found = [(rank, s) for rank, s in enumerate(suspects, start=1) if s["device"] == liar]
        ranks[liar] = (
            {"rank": found[0][0], "suspicion": found[0][1]["suspicion"], "observations": found[0][1]["observations"]}
            if found
            else {"rank": None, "suspicion": 0.0, "observations": None}
        )
    named = proposed(suspects, suspicion_min)
    honest = [s["suspicion"] for s in suspects if s["device"] not in liars]
    return {
        "suspicion": ranks,
        "suspicion_of_most_suspicious_honest": max(honest, default=0.0),
        "suspicion_min": suspicion_min,
        "proposed": named,
        "proposed_but_honest": [device for device in named if device not in liars],
    }


def broken_poisoned(figures: Mapping[str, Any]) -> list[str]:
    """What was promised and did not happen; empty if all is well."""
    broken = []
    loss = figures["benign_loss"]
    if loss["defended"] >= loss["plain_mean"]:
        broken.append(f"benign loss {loss['defended']} with the defence, {loss['plain_mean']} without")
    lying = figures["share_of_weight_of_groups_with_poisoned"], figures["share_of_devices_in_groups_with_poisoned"]
    if lying[0] >= lying[1]:
        broken.append(f"groups with a poisoned device have {lying[0]:.0%} of the weight and {lying[1]:.0%} of devices")
    if not figures["confirmed_by_a_person"]:
        broken.append("no poisoned device was proposed")
    if figures["in_a_roster_afterwards"]:
        broken.append(f"quarantined, and in a roster afterwards: {', '.join(figures['in_a_roster_afterwards'])}")
    return broken


def _fared(groups: Sequence[GroupSeen]) -> dict[str, Any]:
    reasons = Counter(g.dropped for g in groups if g.dropped)
    return {
        "seen": len(groups),
        "dropped": dict(sorted(reasons.items())),
        "cosine_to_root": _mean([g.cosine for g in groups]),
    }


def _lying_shares(groups: Sequence[GroupSeen]) -> tuple[float, float]:
    """Of one round: part of the devices, and of the weight, that groups with a liar have."""
    devices, trust = sum(g.members for g in groups), sum(g.trust for g in groups)
    lying = [g for g in groups if g.liars]
    return sum(g.members for g in lying) / devices, sum(g.trust for g in lying) / trust if trust else 0.0


def _mean(values: Sequence[float]) -> float:
    return round(fmean(values), 3) if values else 0.0
