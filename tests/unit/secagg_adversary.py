"""The adversary of the tests: aggregator, network, corrupt devices and corrupt committee members in league.

It keeps everything that honest parties ever said, and really tries to open what it must not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from secagg_parts import LENGTH, Answer, Group, Node, Ring, body_of, make_plan
from secagg_site import Person

from vedette_core.crypto.agreement import KeyPair, open_box
from vedette_core.crypto.masks import MaskExpander
from vedette_core.crypto.shamir import combine
from vedette_core.learning.round_vector import ring_of
from vedette_core.secagg.committee import CloseReceived, OpeningReceived
from vedette_core.secagg.membership import committee_of
from vedette_core.secagg.parameters import shares_needed
from vedette_core.secagg.secrets import box_context, box_key, commitment, others, pair_secret
from vedette_schemas.errors import PeerError
from vedette_schemas.round import (
    Upload,
)
from vedette_schemas.secagg import (
    SECRET_BYTES,
    Shares,
)

MODES = ("inline", "helpers")


class Adversary:
    """Everything that the aggregator, the network, corrupt devices and corrupt members know, put together.

    Args:
        corrupt: people whose keys of any group it knows.
    """

    def __init__(self, corrupt: Iterable[Person] = ()) -> None:
        self.corrupt = {p.pair.public: p.pair for p in corrupt}
        self.groups: dict[bytes, Group] = {}
        self.uploads: dict[tuple[bytes, str], list[Upload]] = {}
        self.sets: dict[bytes, tuple[str, ...]] = {}
        self.heard: list[Shares] = []

    def see(self, group: Group, survivors: Iterable[str] | None = None) -> None:
        """A group, its uploads, and a survivor set that it asked about there."""
        self.groups[group.transcript] = group
        for device, upload in group.uploads.items():
            self.see_upload(group, device, upload)
        chosen = sorted(group.uploads if survivors is None else survivors)
        self.sets[group.survivors_hash(chosen)] = tuple(chosen)

    def see_upload(self, group: Group, device: str, upload: Upload) -> None:
        """An upload; more than one of a device is possible, where it was made to say two things."""
        known = self.uploads.setdefault((group.transcript, device), [])
        if upload not in known:
            known.append(upload)

    def hear(self, answer: Answer) -> Answer:
        """What an honest member said."""
        self.heard += answer.shares
        return answer

    def hear_all(self, nodes: Iterable[Node]) -> None:
        """Everything that honest members ever said."""
        self.heard += [b for node in nodes for p in node.said if isinstance(b := body_of(p.payload), Shares)]

    def secrets(self, group: Group) -> dict[tuple[str, str], bytes]:
        """Secrets of honest devices that it can compute: (device, "") is its own, (device, peer) a pair's."""
        found: dict[tuple[str, str], bytes] = {}
        honest = self._honest(group)
        keys = {m.device: m.epk for m in group.roster.members}
        for device in honest:
            for peer, epk in keys.items():
                if epk in self.corrupt and peer != device:
                    found[device, peer] = pair_secret(self.corrupt[epk], keys[device], group.transcript)
        for device in honest:
            for upload in self.uploads.get((group.transcript, device), ()):
                for index, secret in self._from_shares(group, upload):
                    peer = "" if index == 0 else others(group.roster, device)[index - 1]
                    found[device, peer] = secret
                    if peer in honest:
                        found[peer, device] = secret
        return found

    def released(self, group: Group) -> dict[tuple[str, str], bytes]:
        """Those that are not shared with a corrupt device: what the committee gave away."""
        honest = self._honest(group)
        return {k: s for k, s in self.secrets(group).items() if k[1] in ("", *honest)}

    def exposed(self, group: Group) -> dict[frozenset[str], Ring]:
        """Smallest sets of honest devices whose vectors' sum it can compute, with the sum that it computed."""
        honest = self._honest(group)
        secrets = self.secrets(group)
        readable = {d for d in honest if (d, "") in secrets and (group.transcript, d) in self.uploads}
        result = {}
        for part in self._parts(honest, secrets):
            if part <= readable:
                result[part] = self._sum(group, part, secrets)
        return result

    def _honest(self, group: Group) -> list[str]:
        return [m.device for m in group.roster.members if m.epk not in self.corrupt]

    def _from_shares(self, group: Group, upload: Upload) -> list[tuple[int, bytes]]:
        shares: dict[int, dict[int, bytes]] = {}
        for number, member in enumerate(committee_of(group.roster, group.plan), start=1):
            if member.epk in self.corrupt:
                for index, share in enumerate(self._opened(group, upload, number, self.corrupt[member.epk])):
                    shares.setdefault(index, {})[number] = share
        peers = others(group.roster, upload.device)
        for said in self.heard:
            if said.transcript != group.transcript or said.survivors not in self.sets:
                continue
            dropped = [p for p in (m.device for m in group.roster.members) if p not in self.sets[said.survivors]]
            for row in said.shares:
                if row.device != upload.device:
                    continue
                number = group.number(said.member)
                shares.setdefault(0, {})[number] = row.own
                for peer, share in zip(dropped, row.pairs, strict=True):
                    shares.setdefault(1 + peers.index(peer), {})[number] = share
        needed = shares_needed(group.plan.groups, len(group.committee))
        found = []
        for index, known in shares.items():
            if len(known) >= needed:
                secret = combine(dict(sorted(known.items())[:needed]))
                if commitment(group.transcript, upload.device, index, secret) == upload.commitments[index]:
                    found.append((index, secret))
        return found

    def _opened(self, group: Group, upload: Upload, number: int, keys: KeyPair) -> list[bytes]:
        member = group.roster.member(upload.device)
        assert member is not None
        try:
            key = box_key(keys, member.epk, group.transcript, sealing=False)
            plain = open_box(key, upload.boxes[number - 1], box_context(group.transcript, upload.device, number))
        except PeerError:
            return []
        return [plain[i : i + SECRET_BYTES] for i in range(0, len(plain), SECRET_BYTES)]

    def _parts(self, honest: Sequence[str], secrets: Mapping[tuple[str, str], bytes]) -> list[frozenset[str]]:
        """Honest devices that hang together by pair masks which it does not know: their masks leave only as a whole."""
        left, parts = set(honest), []
        while left:
            part, edge = set[str](), [min(left)]
            while edge:
                device = edge.pop()
                part.add(device)
                edge += [d for d in honest if d not in part and (device, d) not in secrets]
            parts.append(frozenset(part))
            left -= part
        return parts

    def _sum(self, group: Group, part: frozenset[str], secrets: Mapping[tuple[str, str], bytes]) -> Ring:
        kind = np.dtype(f"<u{ring_of(group.plan) // 8}")
        keys = {m.device: m.epk for m in group.roster.members}
        total = np.zeros(LENGTH, kind)
        expander = MaskExpander(LENGTH, ring_of(group.plan))
        for device in part:
            total += np.frombuffer(self.uploads[group.transcript, device][0].vector, kind)
            expander.subtract(total, secrets[device, ""], group.transcript)
            for peer in others(group.roster, device):
                if peer in part and (device, peer) not in secrets:
                    continue
                remove = expander.subtract if keys[device] < keys[peer] else expander.add
                remove(total, secrets[device, peer], group.transcript)
        return total


@dataclass
class Scene:
    """A group of eight, the honest part of its committee, and everybody else in league."""

    group: Group
    nodes: dict[str, Node]
    adversary: Adversary
    corrupt: list[Person]
    victim: str

    @property
    def honest(self) -> list[str]:
        """Honest devices."""
        return [d for d in self.group.devices if d not in {p.name for p in self.corrupt}]

    def ask(self, survivors: Iterable[str] | None = None, members: Iterable[str] | None = None) -> list[bytes]:
        """Ask honest members for their votes for a set; corrupt ones give theirs as well."""
        chosen = list(self.group.uploads if survivors is None else survivors)
        self.adversary.see(self.group, chosen)
        votes = []
        for name in self.nodes if members is None else members:
            answer = self.adversary.hear(self.nodes[name].tell(CloseReceived(self.group.close(name, chosen))))
            votes += answer.messages
        return votes + self.bought(chosen)

    def bought(self, survivors: Iterable[str] | None = None) -> list[bytes]:
        """Votes of the corrupt members, for whatever set."""
        listed = set(self.group.committee)
        return [self.group.vote(p, survivors) for p in self.corrupt if p.name in listed]

    def open(
        self, votes: Iterable[bytes], survivors: Iterable[str] | None = None, members: Iterable[str] | None = None
    ) -> list[Answer]:
        """Show votes to honest members and ask for shares."""
        event = OpeningReceived(self.group.opening(votes, survivors))
        return [self.adversary.hear(self.nodes[n].tell(event)) for n in (self.nodes if members is None else members)]

    def nothing_learnt(self, *groups: Group) -> None:
        """No own secret and no pair's secret of honest devices has come out, and no vector."""
        self.adversary.hear_all(self.nodes.values())
        for group in groups or (self.group,):
            self.adversary.see(group)
            assert self.adversary.released(group) == {}
            assert self.adversary.exposed(group) == {}

    def only_the_sum(self, survivors: Iterable[str]) -> None:
        """What came out is the sum over all honest survivors of one set, and nothing smaller."""
        self.adversary.hear_all(self.nodes.values())
        honest = frozenset(survivors) & frozenset(self.honest)
        exposed = self.adversary.exposed(self.group)
        assert set(exposed) == {honest}
        assert np.array_equal(exposed[honest], self.group.plain_sum(honest))
        own = {d for d, peer in self.adversary.released(self.group) if peer == ""}
        assert own == honest, "own masks of survivors only"


def scene_of(mode: str, uploads: Iterable[str] | None = None, key: int = 1, **roster: Any) -> Scene:
    """A scene; three of eight members are corrupt, or four of fifteen helpers and two devices."""
    if mode == "inline":
        group = Group(make_plan(), uploads=uploads, key=key, **roster)
        corrupt = list(group.devices.values())[-3:]
    else:
        group = Group(make_plan(committee="helpers", size=15), uploads=uploads, key=key, **roster)
        corrupt = [*list(group.helpers.values())[-4:], *list(group.devices.values())[-2:]]
    assert sum(p.name in group.committee for p in corrupt) == group.plan.groups.corrupt_max
    honest = [m for m in group.committee if m not in {p.name for p in corrupt}]
    adversary = Adversary(corrupt)
    adversary.see(group)
    return Scene(group, group.nodes(honest), adversary, corrupt, next(iter(group.devices)))


def refused(answers: Iterable[Answer], *reasons: str) -> None:
    """Nobody said anything, and each wrote why."""
    for answer in answers:
        assert answer.outcome == "rejected"
        assert answer.messages == []
        assert any(reason in answer.notes for reason in reasons), answer.notes
