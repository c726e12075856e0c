"""The adversary: what the aggregator, the network and all corrupt nodes know together, and what they can open with it.

It hears everything that is said, whether it arrives or not, and has the keys of the corrupt. It counts shares as the
arithmetic does: as many as the threshold are the secret, fewer are nothing. A device's vector lies open when its own
mask and those of all its pairs are known; the sum of several does when the masks of their pairs with everybody else
are. So the honest members of a group are a graph, with an edge where a pair's secret is unknown, and every connected
part of it whose own masks are all known has its sum opened. There may be one such part a group, and it must be the
honest part of a survivor set that honest members voted for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from vedette_core.crypto.agreement import KeyPair, open_box
from vedette_core.crypto.masks import MaskExpander
from vedette_core.crypto.shamir import combine
from vedette_core.learning.round_vector import ring_of
from vedette_core.secagg.membership import committee_of
from vedette_core.secagg.parameters import shares_needed, votes_needed
from vedette_core.secagg.secrets import box_context, box_key, others, pair_secret
from vedette_schemas.errors import PeerError
from vedette_schemas.round import Plan, Roster, Upload, transcript_hash
from vedette_schemas.secagg import SECRET_BYTES, Close, Shares, Vote, survivors_hash

from .violation import ViolationError

Secret = tuple[str, str]
"""(device, "") is its own mask's, (device, peer) that of a pair, as this device dealt it."""


@dataclass
class Group:
    """One group of one attempt, as its transcript names it.

    Attributes:
        roster: its roster.
        plan: the roster's.
        members: honest members.
        numbers: of the committee, from 1.
        uploads: what was said to be its uploads, by device.
        shares: of every secret the shares that are known, by number.
        votes: honest voters a survivor set.
        certified: whether enough members voted for one set.
        opened: the survivor set whose sum lies open.
    """

    roster: Roster
    plan: Plan
    members: tuple[str, ...]
    numbers: dict[str, int]
    uploads: dict[str, Upload] = field(default_factory=dict)
    shares: dict[Secret, dict[int, bytes]] = field(default_factory=dict)
    votes: dict[bytes, set[str]] = field(default_factory=dict)
    certified: bool = False
    opened: bytes = b""

    @property
    def name(self) -> str:
        """For people."""
        return f"round {self.roster.round}.{self.roster.attempt} group {self.roster.gid}"


class Adversary:
    """Everything that is known to those who must not know more.

    Args:
        corrupt: ids of the devices and helpers whose keys it has.
        pairs: every key pair of the fleet by its public key: the honest ones serve to tell what a share is a share of.

    Attributes:
        groups: by their transcript.
        certificates: groups in which enough members voted for one set.
        openings: groups whose survivors' sum was opened.
    """

    def __init__(self, corrupt: Iterable[str], pairs: dict[bytes, KeyPair]) -> None:
        self.corrupt = frozenset(corrupt)
        self._pairs = pairs
        self.groups: dict[bytes, Group] = {}
        self._sets: dict[bytes, tuple[str, ...]] = {}
        self._said: dict[tuple[str, int, int, int, str], tuple[bytes, bytes]] = {}
        self.certificates = 0
        self.openings = 0

    def complain(self, text: str) -> None:
        """Something was said that may not be.

        Raises:
            ViolationError: always.
        """
        raise ViolationError(text)

    # -- what it sees -------------------------------------------------------------------------------------------------

    def see_roster(self, roster: Roster, plan: Plan) -> None:
        """A roster was published."""
        transcript = transcript_hash(roster)
        if transcript in self.groups or not plan.masked:
            return
        committee = committee_of(roster, plan)
        numbers = {m.device: i for i, m in enumerate(committee, start=1)}
        found = len(self.corrupt & numbers.keys())
        assert found <= plan.groups.corrupt_max, f"{found} corrupt members: no protocol promises anything here"
        members = tuple(m.device for m in roster.members if m.device not in self.corrupt)
        self.groups[transcript] = Group(roster, plan, members, numbers)

    def see_upload(self, upload: Upload) -> None:
        """A device published its upload; the corrupt members open their boxes."""
        group = self.groups.get(upload.transcript)
        if group is None or upload.device in group.uploads:
            return
        group.uploads[upload.device] = upload
        for member in self.corrupt & group.numbers.keys():
            for secret, share in self._in_box(group, upload, member).items():
                group.shares.setdefault(secret, {})[group.numbers[member]] = share
        self._check(group)

    def see_close(self, close: Close) -> None:
        """Somebody was asked to vote for a set."""
        statements = tuple(s.statement(close.transcript) for s in close.survivors)
        self._sets[survivors_hash(close.transcript, statements)] = tuple(s.device for s in close.survivors)

    def see_vote(self, vote: Vote, sealed: bytes) -> None:
        """A member voted."""
        if vote.member in self.corrupt:
            return
        place = ("vote", vote.round, vote.attempt, vote.gid, vote.member)
        if self._said.setdefault(place, (vote.survivors, sealed)) != (vote.survivors, sealed):
            self.complain(f"{vote.id}: {vote.member} voted twice in round {vote.round}.{vote.attempt}")
        group = self._group(vote.transcript, vote.id)
        devices = self._sets.get(vote.survivors, ())
        if len(devices) < group.plan.groups.survivors_min:
            self.complain(f"{vote.id}: for {devices}, expected {group.plan.groups.survivors_min} survivors")
        group.votes.setdefault(vote.survivors, set()).add(vote.member)
        needed = self._honest_votes_needed(group)
        certified = [chosen for chosen, voters in group.votes.items() if len(voters) >= needed]
        if len(certified) > 1:
            self.complain(f"{group.name}: two survivor sets can be certified: {self._names(certified)}")
        self.certificates += bool(certified) and not group.certified
        group.certified = group.certified or bool(certified)

    def see_shares(self, shares: Shares, sealed: bytes) -> None:
        """A member released shares."""
        if shares.member in self.corrupt:
            return
        place = ("shares", shares.round, shares.attempt, shares.gid, shares.member)
        if place in self._said and self._said[place] != (shares.survivors, sealed):
            self.complain(f"{shares.id}: {shares.member} released shares twice")
        if place in self._said:
            return
        self._said[place] = (shares.survivors, sealed)
        group = self._group(shares.transcript, shares.id)
        voters = group.votes.setdefault(shares.survivors, set())
        if any(shares.member in others for chosen, others in group.votes.items() if chosen != shares.survivors):
            self.complain(f"{shares.id}: {shares.member} voted for another set")
        if len(voters) < self._honest_votes_needed(group):
            self.complain(f"{shares.id}: shares on {len(voters)} honest votes")
        # Its vote may have got no farther than its disk before the power went.
        voters.add(shares.member)
        alive = set(self._sets[shares.survivors])
        for row in shares.shares:
            if row.device not in alive:
                self.complain(f"{shares.id}: shares of {row.device}, who is not a survivor")
            self._take_row(group, shares, row.device, (row.own, *row.pairs), alive)
        self._check(group)

    def _take_row(self, group: Group, shares: Shares, device: str, given: tuple[bytes, ...], alive: set[str]) -> None:
        """What was given, by what it is and not by what it says that it is."""
        if device in self.corrupt:
            return  # nothing that it shares with anybody is a secret
        dealt = self._in_box(group, group.uploads[device], shares.member)
        whose = {share: secret for secret, share in dealt.items()}
        for share in given:
            secret = whose.get(share, ("", ""))
            if secret[0] != device:
                self.complain(f"{shares.id}: a share that {device} did not deal")
            if secret[1] in alive:
                self.complain(f"{shares.id}: both secrets: that of {device} itself, and with {secret[1]}")
            group.shares.setdefault(secret, {})[group.numbers[shares.member]] = share

    @property
    def opened_again(self) -> int:
        """Groups that were opened in an earlier attempt of the same round, too: no promise is about more than one."""
        places = [(g.roster.round, g.roster.gid) for g in self.groups.values() if g.opened]
        return len(places) - len(set(places))

    # -- what it can do with it ---------------------------------------------------------------------------------------

    def knows(self, group: Group, device: str, peer: str = "") -> bool:
        """Whether a secret is known: of a device itself, or of a pair."""
        if peer and {device, peer} & self.corrupt:
            return True
        needed = shares_needed(group.plan.groups, len(group.numbers))
        dealt = [(device, peer)] + ([(peer, device)] if peer else [])
        return any(len(group.shares.get(secret, ())) >= needed for secret in dealt)

    def open_parts(self, group: Group) -> list[frozenset[str]]:
        """The sets of honest members whose sum lies open."""
        left, found = set(group.members), []
        while left:
            part, new = set[str](), {min(left)}
            while new:
                part |= new
                left -= new
                new = {peer for peer in left if any(not self.knows(group, one, peer) for one in new)}
            if all(self.knows(group, device) for device in part):
                found.append(frozenset(part))
        return found

    def open_vector(self, transcript: bytes, device: str) -> np.ndarray:
        """Take all masks off a single device's vector, with what is known and nothing else.

        Raises:
            KeyError: a secret is not known.
        """
        group = self.groups[transcript]
        width = ring_of(group.plan)
        vector = np.frombuffer(group.uploads[device].vector, f"<u{width // 8}").copy()
        expander = MaskExpander(len(vector), width)
        expander.subtract(vector, self._secret(group, device, ""), transcript)
        keys = {m.device: m.epk for m in group.roster.members}
        for peer in others(group.roster, device):
            low = keys[device] < keys[peer]
            (expander.subtract if low else expander.add)(vector, self._secret(group, device, peer), transcript)
        return vector

    def _secret(self, group: Group, device: str, peer: str) -> bytes:
        keys = {m.device: m.epk for m in group.roster.members}
        if peer in self.corrupt:
            return pair_secret(self._pairs[keys[peer]], keys[device], transcript_hash(group.roster))
        needed = shares_needed(group.plan.groups, len(group.numbers))
        for secret in ((device, peer), (peer, device)):
            known = group.shares.get(secret, {})
            if len(known) >= needed:
                return combine(dict(list(known.items())[:needed]))
        raise KeyError((device, peer))

    def _check(self, group: Group) -> None:
        for part in self.open_parts(group):
            who = f"{group.name}: the sum of {', '.join(sorted(part))} lies open"
            sets = [chosen for chosen in group.votes if part == set(self._sets[chosen]) - self.corrupt]
            if not sets:
                self.complain(f"{who}, which is no survivor set that honest members voted for")
                continue
            if len(self._sets[sets[0]]) < group.plan.groups.survivors_min:
                self.complain(f"{who}, of {len(self._sets[sets[0]])} survivors")
            if group.opened and group.opened != sets[0]:
                self.complain(f"{who}, and that of {self._names([group.opened])} does")
            self.openings += not group.opened
            group.opened = sets[0]

    # -- details ------------------------------------------------------------------------------------------------------

    def _in_box(self, group: Group, upload: Upload, member: str) -> dict[Secret, bytes]:
        """A device's shares for a member, by secret; none if the box does not hold them."""
        number, transcript = group.numbers[member], upload.transcript
        key = next(m.epk for m in committee_of(group.roster, group.plan) if m.device == member)
        dealer = group.roster.member(upload.device)
        assert dealer is not None, "only members upload"
        if number > len(upload.boxes):
            return {}
        try:
            opened = box_key(self._pairs[key], dealer.epk, transcript, sealing=False)
            plain = open_box(opened, upload.boxes[number - 1], box_context(transcript, upload.device, number))
        except PeerError:
            return {}
        secrets = [(upload.device, peer) for peer in ("", *others(group.roster, upload.device))]
        pieces = [plain[i : i + SECRET_BYTES] for i in range(0, len(plain), SECRET_BYTES)]
        return dict(zip(secrets, pieces, strict=True)) if len(pieces) == len(secrets) else {}

    def _honest_votes_needed(self, group: Group) -> int:
        """Votes of honest members without which there is no certificate, whatever the corrupt ones sign."""
        return votes_needed(group.plan.groups, len(group.numbers)) - len(self.corrupt & group.numbers.keys())

    def _group(self, transcript: bytes, what: str) -> Group:
        if transcript not in self.groups:
            self.complain(f"{what}: said for a roster that nobody published")
        return self.groups[transcript]

    def _names(self, sets: Iterable[bytes]) -> str:
        return " and ".join("{" + ", ".join(self._sets[chosen]) + "}" for chosen in sets)
