"""From check-ins to rosters: who is drawn, what each counts, in which group, and who opens its sum."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

from vedette_aggregator.round_book import RoundBook
from vedette_aggregator.round_setup import RoundParts
from vedette_aggregator.selection import Applicant, assigned_weight, attempt_seed, form_groups, overselect, select
from vedette_core.secagg.parameters import votes_needed
from vedette_schemas.errors import PeerError, RefusedError
from vedette_schemas.round import CheckIn, Member, Plan, Roster, hash_parts


def form(
    book: RoundBook,
    plan: Plan,
    parts: RoundParts,
    eligible: Collection[str],
    *,
    beacon: bytes,
    now: float,
    deadline_s: float,
) -> tuple[Roster, ...]:
    """The rosters of an attempt, by gid; none if nothing can be opened.

    Args:
        book: check-ins, and what was so far.
        plan: the round's.
        parts: settings, and the secret for the draw.
        eligible: devices that may be drawn.
        beacon: revealed value of the epoch.
        now: epoch seconds.
        deadline_s: until when uploads are taken.
    """
    record, groups, update = book.record, plan.groups, plan.update
    seed = attempt_seed(parts.seed, plan.task, record.round, record.attempt)
    applicants = [book.applicant(device) for device in _admitted(book, parts, eligible, now)]
    seats = _seats(applicants, parts.settings.uploads_wanted, groups.checkins_max)
    selection = select(applicants, seats, seed, round_number=record.round, mode=parts.settings.selection)
    grouping = form_groups(
        selection.devices,
        beacon,
        plan.task,
        groups=groups.groups,
        members_max=groups.members_max,
        survivors_min=_least_members(plan),
        seed=seed,
    )
    helpers = _helpers(book, plan, _admitted(book, parts, book.helpers, now), beacon)
    if groups.committee == "helpers" and len(helpers) < votes_needed(groups, groups.committee_size):
        return ()

    def member(device: str) -> Member:
        checkin = book.devices[device].checkin
        weight = assigned_weight(
            checkin.examples_bucket,
            update.examples_reference,
            update.weight_max,
            selection.representation[device],
        )
        return _member(checkin, weight)

    return tuple(
        Roster(
            task=plan.task,
            round=record.round,
            attempt=record.attempt,
            gid=gid,
            model=record.model_sha256,
            model_version=record.model_version,
            plan=hashlib.sha256(record.plan).hexdigest(),
            beacon=beacon,
            members=tuple(member(device) for device in members),
            committee=helpers,
            deadline_s=deadline_s,
        )
        for gid, members in sorted(grouping.members.items())
    )


def _seats(applicants: Sequence[Applicant], wanted: int, most: int) -> int:
    if not wanted:
        return most
    completed, selected = sum(a.completed for a in applicants), sum(a.selected for a in applicants)
    return min(most, overselect(wanted, completed, selected))


def _least_members(plan: Plan) -> int:
    """Smallest group that its own members may open, where they do."""
    groups = plan.groups
    return max(groups.survivors_min, groups.corrupt_max + 2) if groups.committee == "inline" else groups.survivors_min


def _admitted(book: RoundBook, parts: RoundParts, devices: Collection[str], now: float) -> list[str]:
    """Those who may still be placed: what held at check-in, hours ago, may have run out."""
    admitted = []
    for device in devices:
        try:
            if parts.admit is not None:
                parts.admit(book.devices[device].checkin, now)
        except (RefusedError, PeerError):
            continue
        admitted.append(device)
    return admitted


def _helpers(book: RoundBook, plan: Plan, admitted: Collection[str], beacon: bytes) -> tuple[Member, ...]:
    """The helpers of all groups: those whom the beacon puts first."""
    if plan.groups.committee != "helpers":
        return ()
    drawn = sorted(admitted, key=lambda h: hash_parts(b"vedette-committee-1", beacon, h.encode()))
    return tuple(_member(book.devices[h].checkin, 0) for h in sorted(drawn[: plan.groups.committee_size]))


def _member(checkin: CheckIn, weight: int) -> Member:
    return Member(
        device=checkin.device,
        epk=checkin.epk,
        seq=checkin.seq,
        certificate=checkin.certificate,
        offer=checkin.offer,
        weight=weight,
    )
