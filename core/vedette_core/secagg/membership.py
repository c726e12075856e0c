"""Whether everybody in a roster is who it says: what members check of each other, because the aggregator may lie.

A roster that shows another key for a device than the device itself signed would let the aggregator compute that
device's pair masks, and read the others'. So each entry carries its certificate and its own signature over its key.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from vedette_core.crypto.certificates import CertificateRole
from vedette_core.secagg.parameters import votes_needed
from vedette_schemas.envelope import Verifier, pre_authentication_encoding
from vedette_schemas.errors import PeerError
from vedette_schemas.round import OFFER_TYPE, Member, Plan, Roster, group_of, offer_statement


class Peers(Verifier, Protocol):
    """Keys of one roster's members, each learnt from a certificate: a fork of `vedette_core.crypto.signing.KeyRing`."""

    def learn(
        self,
        certificate: bytes,
        now: float,
        *,
        intermediate: bytes = b"",
        sender: str | None = None,
        role: CertificateRole | None = None,
    ) -> object:
        """Verify a certificate's chain and add its key; raises `PeerError`."""


class PeerSource(Protocol):
    """Makes an empty `Peers` for every roster: `vedette_core.crypto.signing.KeyRing`."""

    def fork(self) -> Peers:
        """An empty ring with the site's anchors."""


def committee_of(roster: Roster, plan: Plan) -> tuple[Member, ...]:
    """Who opens a group's sum, in the order in which shares are numbered from 1; nobody without masking."""
    if not plan.masked:
        return ()
    return roster.members if plan.groups.committee == "inline" else roster.committee


def learn_members(roster: Roster, peers: Peers, now: float, *, only: Collection[str] | None = None) -> None:
    """Verify the certificate of everybody in a roster, and each one's offer.

    Args:
        roster: as received.
        peers: an empty ring; it knows everybody in the roster afterwards.
        now: epoch seconds, for the certificates.
        only: ids of those whose word is about to be believed; everybody by default.

    Raises:
        PeerError: a certificate or a signature that does not hold; the message names whose.
    """
    for listed, role, word in (
        (roster.members, CertificateRole.DEVICE, "contribute"),
        (roster.committee, CertificateRole.COMMITTEE, "unmask"),
    ):
        for member in listed:
            if only is not None and member.device not in only:
                continue
            peers.learn(member.certificate, now, sender=member.device, role=role)
            statement = offer_statement(roster.task, member.device, member.seq, member.epk, word)
            try:
                peers.verify(
                    member.device, member.offer, pre_authentication_encoding(OFFER_TYPE, member.device, statement)
                )
            except PeerError as fault:
                who = f"roster of {roster.task} round {roster.round}.{roster.attempt}"
                raise PeerError(
                    f"{who}: found a key for {member.device} that it did not sign: {fault}", reason="offer"
                ) from fault


def check_members(roster: Roster, plan: Plan) -> None:
    """Check a roster's shape against the signed plan: sizes, places, weights, distinct keys, committee.

    Args:
        roster: as received, for this plan.
        plan: verified as part of a signed release.

    Raises:
        PeerError: what was found and what was expected; the reason is a short stable word.
        RefusedError: the committee is too small to keep the promise.
    """
    groups = plan.groups
    who = f"roster of {roster.task} round {roster.round}.{roster.attempt} group {roster.gid}"

    def refuse(reason: str, found: object, expected: object) -> PeerError:
        return PeerError(f"{who}: found {found}, expected {expected}", reason=reason)

    if not groups.survivors_min <= len(roster.members) <= groups.members_max:
        raise refuse("size", f"{len(roster.members)} members", f"{groups.survivors_min} to {groups.members_max}")
    if roster.gid >= groups.groups:
        raise refuse("group", f"group {roster.gid}", f"one of {groups.groups}")
    for member in roster.members:
        home = group_of(roster.beacon, roster.task, member.device, groups.groups)
        if home != roster.gid:
            raise refuse("group", f"{member.device} in it", f"it in group {home}, where the beacon puts it")
        if not 1 <= member.weight <= plan.update.weight_max:
            raise refuse("weight", f"weight {member.weight} of {member.device}", f"1 to {plan.update.weight_max}")
    if any(member.weight for member in roster.committee):
        raise refuse("weight", "a helper with a weight", "0: helpers contribute nothing")
    keys = [m.epk for m in (*roster.members, *roster.committee)]
    if len(set(keys)) != len(keys):
        raise refuse("key", "one key for two of them", "a key each")
    both = {m.device for m in roster.members} & {m.device for m in roster.committee}
    if both:
        raise refuse("member", f"{min(both)} as member and as helper", "one of them")
    helpers = plan.masked and groups.committee == "helpers"
    if bool(roster.committee) != helpers:
        expected = "helpers" if helpers else "none beside the members"
        raise refuse("committee", f"a committee of {len(roster.committee)}", expected)
    if plan.masked:
        votes_needed(groups, len(committee_of(roster, plan)))
