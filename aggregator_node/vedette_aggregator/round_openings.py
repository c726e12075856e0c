"""How the sums of an attempt's groups are opened: what committees are asked, what they answer, who is left.

Source: `docs/protocol.md` §5 (CLOSE, VOTE, SHARES, DONE).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vedette_aggregator.aggregation import OpenedGroup
from vedette_aggregator.round_book import RoundBook
from vedette_aggregator.round_messages import RoundMessages
from vedette_aggregator.round_state import RoundKeys, below
from vedette_core.machine import Effect, Note, Persist
from vedette_core.secagg.aggregator import Unmasking
from vedette_schemas import codec
from vedette_schemas.envelope import Envelope
from vedette_schemas.errors import PeerError
from vedette_schemas.round import Plan
from vedette_schemas.secagg import Shares, Vote

ASK_AGAIN_S: Final = 10.0
"""Work for a committee is QoS 0: whoever has not answered is asked again this often."""

Ring = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the openings stand.

    Attributes:
        opened: groups whose sum is open, by gid.
        hopeless: groups that no further answer can open.
        waiting: groups that may still be opened.
    """

    opened: tuple[int, ...]
    hopeless: tuple[int, ...]
    waiting: tuple[int, ...]


class Openings:
    """The groups that are being opened in an attempt.

    Args:
        keys: where votes and shares are persisted.
        say: what the aggregator says.
        plan: the attempt's.
    """

    def __init__(self, keys: RoundKeys, say: RoundMessages, plan: Plan) -> None:
        self._keys, self._say, self._plan = keys, say, plan
        self._groups: dict[int, Unmasking] = {}
        self._ask_at = 0.0

    def begin(self, book: RoundBook) -> None:
        """Take over the survivor sets that were written down; they do not change any more."""
        self._groups = {}
        for gid, devices in sorted(book.record.survivors.items()):
            roster = book.roster(gid)
            assert roster is not None, "survivors are of current groups"
            evidence = {device: book.contributions[device].evidence for device in devices}
            self._groups[gid] = Unmasking(roster, self._plan, evidence)

    def restore(self, persisted: Mapping[str, bytes]) -> None:
        """Take over the votes and shares that were persisted."""
        for sealed in below(persisted, self._keys.votes).values():
            vote = codec.unpack(Vote, codec.unpack(Envelope, sealed).body)
            if vote.gid in self._groups:
                self._groups[vote.gid].take_vote(vote, sealed)
        for sealed in below(persisted, self._keys.shares).values():
            shares = codec.unpack(Shares, codec.unpack(Envelope, sealed).body)
            if shares.gid in self._groups:
                self._groups[shares.gid].take_shares(shares)
        for group in self._groups.values():
            group.try_open()

    @property
    def next_deadline(self) -> float | None:
        """When somebody is to be asked again."""
        return self._ask_at if self.outcome().waiting else None

    def outcome(self) -> Outcome:
        """How they stand."""
        opened = tuple(gid for gid, group in self._groups.items() if group.opened)
        hopeless = tuple(gid for gid, group in self._groups.items() if group.hopeless)
        waiting = tuple(gid for gid in self._groups if gid not in opened and gid not in hopeless)
        return Outcome(opened, hopeless, waiting)

    def blamed(self) -> tuple[str, ...]:
        """Devices that provably dealt wrong shares."""
        return tuple(sorted({device for group in self._groups.values() for device in group.blamed}))

    def silent(self) -> tuple[str, ...]:
        """Committee members that have not answered what they were last asked."""
        waiting = self.outcome().waiting
        return tuple(sorted({member for gid in waiting for member in self._groups[gid].silent}))

    def ask(self, now: float, out: list[Effect], *, only: int | None = None) -> None:
        """Ask everybody who has not answered: for a vote, or for shares."""
        self._ask_at = now + ASK_AGAIN_S
        for gid in self.outcome().waiting:
            if only is not None and gid != only:
                continue
            group = self._groups[gid]
            for member in group.silent:
                # Whoever missed the close has nothing to open: it is asked for its vote, however many there are.
                if group.certified and group.has_voted(member):
                    out.append(self._say.opening(member, group.opening()))
                else:
                    out.append(self._say.close(member, group.close_for(member)))

    def tick(self, now: float, out: list[Effect]) -> None:
        """Ask again where it is time, or the clock went back."""
        if now >= self._ask_at or self._ask_at > now + ASK_AGAIN_S:
            self.ask(now, out)

    def take_vote(self, body: Vote, sealed: bytes, now: float, out: list[Effect]) -> None:
        """Take a vote; enough of them are shown to the members at once.

        Raises:
            PeerError: it is not for a group that is being opened, or not for its survivor set.
        """
        group = self._find(body)
        before = group.certified
        if not group.take_vote(body, sealed):
            return
        out.append(Persist(f"{self._keys.votes}{body.gid}/{body.member}", sealed))
        if group.certified and not group.hopeless and not group.opened:
            if before:
                out.append(self._say.opening(body.member, group.opening()))
            else:
                self.ask(now, out, only=body.gid)

    def take_shares(self, body: Shares, sealed: bytes, out: list[Effect]) -> None:
        """Take a member's shares, and open the group if they suffice.

        Raises:
            PeerError: they are not for a group that is being opened, or not for its survivor set.
        """
        group = self._find(body)
        if not group.take_shares(body):
            return
        out.append(Persist(f"{self._keys.shares}{body.gid}/{body.member}", sealed))
        if group.try_open() and group.liars:
            out.append(
                Note("warning", f"group {body.gid}: shares of {', '.join(group.liars)} contradicted most devices")
            )

    def open_groups(self, book: RoundBook, plan: Plan) -> list[OpenedGroup]:
        """The groups whose sums can be read, by gid: those that were opened, or without masking all that survived."""
        if not plan.masked:
            return [book.opened(gid, book.sums[gid]) for gid in sorted(book.record.survivors)]
        groups = []
        for gid in sorted(self.outcome().opened):
            total = book.sums[gid].copy()
            self._groups[gid].unmask(total)
            groups.append(book.opened(gid, total))
        return groups

    def erase(self) -> list[Effect]:
        """What erases every vote and share of the attempt."""
        out: list[Effect] = []
        for gid, group in self._groups.items():
            out += [Persist(f"{self._keys.votes}{gid}/{member}", None) for member in group.voted]
            out += [Persist(f"{self._keys.shares}{gid}/{member}", None) for member in group.answered]
        self._groups = {}
        return out

    def _find(self, body: Vote | Shares) -> Unmasking:
        group = self._groups.get(body.gid)
        if group is None:
            raise PeerError(
                f"{body.id}: found group {body.gid}, expected one that is being opened: "
                f"{', '.join(map(str, self._groups)) or 'none'}",
                reason="group",
            )
        return group
