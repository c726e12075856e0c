"""Whether a roster is one that this device would have put itself into."""

from __future__ import annotations

from typing import Final

from vedette_core.crypto.beacon import verify_beacon
from vedette_core.secagg.membership import Peers, check_members, learn_members
from vedette_schemas.errors import PeerError
from vedette_schemas.round import Phase, Plan, Roster, RoundOpen, epoch_of, group_of
from vedette_schemas.trust import BeaconAnchor

PHASE_RANK: Final = {Phase.CHECKIN: 0, Phase.COLLECT: 1, Phase.UNMASK: 2, Phase.DONE: 3, Phase.FAILED: 3}
"""In which order an attempt's phases follow each other: a round's state never goes back."""


def own_group(opened: RoundOpen, device: str) -> int:
    """The group that the round's beacon puts a device into."""
    return group_of(opened.beacon, opened.task, device, max(1, opened.groups))


def check_roster(roster: Roster, opened: RoundOpen, device: str, public_key: bytes) -> None:
    """Check a roster against the round's state and against what this device knows of itself.

    Args:
        roster: of the same (round, attempt) as `opened`; both are signed by the aggregator.
        opened: the round's state.
        device: own id; it need not be a member.
        public_key: the key of its check-in.

    Raises:
        PeerError: what was found and what was expected; the reason is a short stable word.
    """
    who = f"roster of {roster.task} round {roster.round}.{roster.attempt}"

    def refuse(reason: str, found: object, expected: object) -> PeerError:
        return PeerError(f"{who}: found {found}, expected {expected}", reason=reason)

    for name in ("model", "model_version", "plan", "beacon", "deadline_s"):
        found, expected = getattr(roster, name), getattr(opened, name)
        if found != expected:
            raise refuse(name, f"{name} {found!r}", f"{expected!r} as in the round's state")
    home = own_group(opened, device)
    if roster.gid != home:
        raise refuse("group", f"group {roster.gid}", f"group {home}, where the beacon puts this device")
    for member in roster.members:
        if member.device == device and member.epk != public_key:
            raise refuse("key", f"key {member.epk.hex()[:16]} for this device", public_key.hex()[:16])


def check_against_plan(roster: Roster, plan: Plan, anchor: BeaconAnchor | None, peers: Peers, now: float) -> None:
    """Check a roster against what the site's keys signed: the plan, the beacon's anchor, and everybody's certificate.

    Args:
        roster: `check_roster` holds for it.
        plan: the roster's, verified as part of a release.
        anchor: of the beacon, from the offline keys' metadata; None if there is none.
        peers: an empty ring; it knows the members afterwards.
        now: epoch seconds, for the certificates.

    Raises:
        PeerError: what was found and what was expected; the reason is a short stable word.
        RefusedError: the committee is too small to keep the promise.
    """
    if anchor is None:
        raise PeerError(
            f"round {roster.round}: found no anchor of the beacon in the release metadata, expected one that the "
            "offline keys signed; make one with the release ceremony",
            reason="beacon",
        )
    verify_beacon(roster.beacon, epoch_of(roster.round, plan.groups.epoch_rounds), anchor)
    check_members(roster, plan)
    learn_members(roster, peers, now)
