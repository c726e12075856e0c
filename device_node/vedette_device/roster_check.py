"""Whether a roster is one that this device would have put itself into."""

from __future__ import annotations

from vedette_schemas.errors import PeerError
from vedette_schemas.round import Roster, RoundOpen, group_of


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
    if roster.committee:
        raise refuse("committee", f"a committee of {len(roster.committee)}", "none without masking")
    for member in roster.members:
        if member.device == device and member.epk != public_key:
            raise refuse("key", f"key {member.epk.hex()[:16]} for this device", public_key.hex()[:16])
        belongs = own_group(opened, member.device)
        if belongs != roster.gid:
            raise refuse("group", f"{member.device} in group {roster.gid}", f"it in group {belongs}")
