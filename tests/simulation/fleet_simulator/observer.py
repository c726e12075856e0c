"""The one who sees everything: keeps a transcript, and checks after every step what must hold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import msgpack
import numpy as np

from vedette_aggregator.aggregation import GlobalModel, OpenedGroup
from vedette_aggregator.round_events import PublishCandidate, Released
from vedette_core.crypto.agreement import KeyPair
from vedette_core.learning.robust.defence import Defence
from vedette_core.machine import Effect, Event, Publish
from vedette_device.participant_events import Train
from vedette_schemas import codec
from vedette_schemas.envelope import Envelope
from vedette_schemas.round import Phase, Plan, Roster, RoundOpen, Upload, read_plan
from vedette_schemas.secagg import CLOSE_TYPE, Close, Shares, Vote
from vedette_schemas.telemetry import Receipt, ReceiptItem
from vedette_schemas.topics import FlStep, Topics

from .accounts import Accounts
from .disk import Disk
from .disk_watch import DiskWatch
from .oracle import Opening, check_against_truth, check_sum, check_update, mean_of
from .secrecy import Adversary
from .transcript import Transcript
from .violation import ViolationError

if TYPE_CHECKING:
    from .process import Process

_RANK = {Phase.CHECKIN: 0, Phase.COLLECT: 1, Phase.UNMASK: 2, Phase.DONE: 3, Phase.FAILED: 3}
Place = tuple[int, int]


class Observer:
    """Sees every message as it is sent, every effect as it is carried out, and every disk.

    Args:
        topics: the site's topics.
        transcript: where it tells what happened.
        first: what the first round starts from.
        corrupt: nodes that lie.
        honest_aggregator: whether the aggregator keeps to the protocol; whatever it does, no secret may come out.

    Attributes:
        accepted: by (round, attempt) the devices whose upload was acknowledged as accepted.
        ended: (round, phase) of every round that has ended, in order.
        rejected: (device, reason) of every message that was refused.
        noise: of every release with noise, what it did to each coordinate in standard deviations.
        device_noise: of every group whose devices bring the noise, the same in standard deviations of the plan's.
        late_updates: updates that were given to a later round than they were trained for.
        spoilt: (device, round, attempt) of uploads that are no encoding of anything.
    """

    def __init__(
        self,
        topics: Topics,
        transcript: Transcript,
        first: GlobalModel,
        corrupt: Iterable[str] = (),
        *,
        honest_aggregator: bool = True,
    ) -> None:
        self.topics = topics
        self.transcript = transcript
        self.processes: dict[str, Process] = {}
        self.accepted: dict[Place, dict[str, bytes]] = {}
        self.ended: list[tuple[int, Phase]] = []
        self.rejected: list[tuple[str, str]] = []
        self.noise: list[np.ndarray] = []
        self.device_noise: list[np.ndarray] = []
        self.late_updates = 0
        self.spoilt: set[tuple[str, int, int]] = set()
        self.corrupt = frozenset(corrupt)
        self.pairs: dict[bytes, KeyPair] = {}
        self.adversary = Adversary(self.corrupt, self.pairs)
        self.accounts = Accounts()
        self.disks = DiskWatch()
        self._honest_aggregator = honest_aggregator
        self._uploads: dict[tuple[str, Place], bytes] = {}
        self._deltas: dict[tuple[str, Place], np.ndarray] = {}
        self._plain: dict[tuple[str, Place], np.ndarray] = {}
        self._place: tuple[int, int, int] = (0, 0, 0)
        self._rosters: dict[Place, dict[int, Roster]] = {}
        self._key_places: dict[bytes, Place] = {}
        self._last_accepted: dict[str, str] = {}
        self._opened: Opening | None = None
        self._candidates: dict[int, bytes] = {}
        self._versions = [first.version]
        self._releases = [(first.version, first.weights.tobytes(), first.plan)]
        self._plans: dict[str, Plan] = {}
        self._learn_plan(first.plan)

    def tell(self, line: str) -> None:
        """Write something into the transcript."""
        self.transcript.line(line)

    # -- devices ------------------------------------------------------------------------------------------------------

    def key_made(self, device: str, pair: KeyPair) -> None:
        """A device or a helper made a key."""
        self.pairs[pair.public] = pair
        self.disks.key_made(device, pair)

    def trained(self, device: str, effect: Train, delta: np.ndarray, plain: np.ndarray) -> None:
        """A device is about to mask its vector."""
        self._deltas[device, (effect.round, effect.attempt)] = delta
        self._plain[device, (effect.round, effect.attempt)] = plain

    def plain(self, device: str, place: Place) -> np.ndarray:
        """A device's vector, as it was before any mask."""
        return self._plain[device, place]

    def resent(self, device: str, publish: Publish) -> None:
        """A device's outbox sends again."""
        self._check_said(device, publish)

    def receipt_arrived(self, device: str, item: ReceiptItem) -> None:
        """A receipt has arrived."""
        if item.outcome == "rejected":
            self.rejected.append((device, item.reason))

    # -- everybody ----------------------------------------------------------------------------------------------------

    def restored(self, process: str, effects: Sequence[Effect]) -> None:
        """A machine was made from its disk."""
        self.transcript.handled(process, "its disk", effects)

    def handled(self, process: str, event: Event, effects: Sequence[Effect]) -> None:
        """A machine took an event."""
        self.transcript.handled(process, event, effects)

    def published(self, process: str, publish: Publish) -> None:
        """A message is about to leave."""
        parsed = self.topics.parse(publish.topic)
        match parsed.kind:
            case "fl":
                self._check_said(process, publish)
            case "round":
                self._check_round(codec.unpack(RoundOpen, _body(publish.payload)))
            case "group":
                self._check_roster(codec.unpack(Roster, _body(publish.payload)))
            case "receipt":
                self._check_receipt(codec.unpack(Receipt, _body(publish.payload)))
            case "committee":
                envelope = codec.unpack(Envelope, publish.payload)
                if envelope.type == CLOSE_TYPE:
                    self.adversary.see_close(codec.unpack(Close, envelope.body))

    def after_step(self) -> None:
        """What must hold of the disks at any time."""
        self.disks.check(self.processes, self.corrupt)

    # -- the aggregator -----------------------------------------------------------------------------------------------

    def aggregator_wrote(self, key: str, value: bytes | None) -> None:
        """An upload is on the aggregator's disk: from here on it is accepted, whether or not its receipt leaves."""
        if key.startswith("round/network/upload/") and value is not None:
            body = codec.unpack(Upload, _body(value))
            self._last_accepted[body.device] = body.id

    def opened(self, groups: Sequence[OpenedGroup], running: float | None, root: np.ndarray | None) -> None:
        """The aggregator has opened sums, and is about to aggregate them."""
        self._opened = Opening([OpenedGroup(g.roster, g.digests, g.total.copy()) for g in groups], running, root)
        for group in groups:
            place = (group.roster.round, group.roster.attempt)
            lost = (self.accepted.get(place, {}).keys() & {m.device for m in group.roster.members}) - set(group.digests)
            if lost:
                raise ViolationError(f"round {place}: accepted, but not in the sum: {sorted(lost)}")
            if not self._is_spoilt(group):
                check_sum(group, self._plain_of(group), self._plans[group.roster.plan])

    def candidate(self, effect: PublishCandidate, model: GlobalModel, disk: Disk, defence: Defence) -> None:
        """A candidate is handed over: it must be what the opened sums of exactly the accepted uploads give."""
        made = effect.candidate
        self._learn_plan(effect.plan)
        first = self._candidates.setdefault(made.round, made.digest())
        if first != made.digest():
            raise ViolationError(f"round {made.round}: another candidate than before the crash")
        plan = self._plans[made.plan]
        self.accounts.candidate(made, plan, disk)
        assert self._opened is not None
        groups = [group for group in self._opened.groups if not self._is_spoilt(group)]
        places = {(group.roster.round, group.roster.attempt) for group in groups}
        expected = tuple(sorted(device for group in groups for device in group.digests))
        if made.contributors != expected or places != {(made.round, made.attempt)}:
            raise ViolationError(f"round {made.round}: contributors {made.contributors}, expected {expected}")
        if len(expected) < plan.groups.quorum:
            raise ViolationError(f"round {made.round}: {len(expected)} contributors, quorum {plan.groups.quorum}")
        if any(len(group.digests) < plan.groups.survivors_min for group in groups):
            raise ViolationError(f"round {made.round}: a group of less than {plan.groups.survivors_min}")
        means, weights = zip(*(mean_of(group, self._plain_of(group), plan) for group in groups), strict=True)
        update = made.weights - model.weights
        noise = check_update(update, means, weights, plan, defence, self._opened)
        if noise is not None:
            self.noise.append(noise)
        for group, mean in zip(groups, means, strict=True):
            members = [m for m in group.roster.members if m.device in group.digests]
            deltas = [self._deltas[m.device, (made.round, made.attempt)] for m in members]
            noise = check_against_truth(mean, deltas, [m.weight for m in members], plan)
            if noise is not None:
                self.device_noise.append(noise)

    def released(self, event: Released) -> None:
        """A candidate is released; after a crash, the same once more."""
        if event.version not in (self._versions[-1], self._versions[-1] + 1):
            raise ViolationError(f"release {event.version} after {self._versions[-1]}")
        if event.version != self._versions[-1]:
            self._versions.append(event.version)

    def registered(self, version: int, weights: bytes, plan: bytes) -> None:
        """A release is in the repository."""
        self._releases.append((version, weights, plan))
        self._learn_plan(plan)

    @property
    def releases(self) -> int:
        """Releases beyond the initial one."""
        return len(self._versions) - 1

    @property
    def plan(self) -> Plan:
        """The plan of the newest release."""
        return read_plan(self._releases[-1][2])

    def is_release(self, version: int, weights: bytes, plan: bytes) -> bool:
        """What the signed repository would say."""
        return (version, weights, plan) in self._releases

    # -- details ------------------------------------------------------------------------------------------------------

    def _learn_plan(self, packed: bytes) -> None:
        self._plans[hashlib.sha256(packed).hexdigest()] = read_plan(packed)

    def _is_spoilt(self, group: OpenedGroup) -> bool:
        place = (group.roster.round, group.roster.attempt)
        return any((device, *place) in self.spoilt for device in group.digests)

    def _plain_of(self, group: OpenedGroup) -> dict[str, np.ndarray]:
        place = (group.roster.round, group.roster.attempt)
        return {device: self._plain[device, place] for device in group.digests}

    def _check_said(self, node: str, publish: Publish) -> None:
        step = self.topics.parse(publish.topic).step
        body = _body(publish.payload)
        if step is FlStep.UPLOAD:
            self._check_upload(node, codec.unpack(Upload, body), publish.payload)
        elif step is FlStep.VOTE:
            self.adversary.see_vote(codec.unpack(Vote, body), publish.payload)
        elif step is FlStep.SHARES:
            shares = codec.unpack(Shares, body)
            self.adversary.see_shares(shares, publish.payload)
            if node not in self.corrupt:
                self.disks.released(node, (shares.round, shares.attempt), shares.gid)

    def _check_upload(self, device: str, body: Upload, payload: bytes) -> None:
        self.adversary.see_upload(body)
        if device in self.corrupt:
            return
        place = (body.round, body.attempt)
        if self._uploads.setdefault((device, place), payload) != payload:
            raise ViolationError(f"{device}: two different uploads for round {body.round}.{body.attempt}")
        roster = self._rosters[place][body.gid]
        self.accounts.upload(device, place, self._plans[roster.plan], self.processes[device].disk)

    def _check_round(self, body: RoundOpen) -> None:
        place = (body.round, body.attempt, _RANK[body.phase])
        if place < self._place:
            raise ViolationError(f"round state {place} after {self._place}")
        if body.phase in (Phase.DONE, Phase.FAILED) and place > self._place:
            self.ended.append((body.round, body.phase))
        self._place = place

    def _check_roster(self, body: Roster) -> None:
        place = (body.round, body.attempt)
        self.adversary.see_roster(body, self._plans[body.plan])
        known = self._rosters.setdefault(place, {}).setdefault(body.gid, body)
        if not self._honest_aggregator:
            return
        if known != body:
            raise ViolationError(f"two rosters for group {body.gid} of round {body.round}.{body.attempt}")
        for member in (*body.members, *body.committee):
            if self._key_places.setdefault(member.epk, place) != place:
                raise ViolationError(
                    f"{member.device}: its key is in rosters of {self._key_places[member.epk]} and {place}"
                )

    def _check_receipt(self, receipt: Receipt) -> None:
        disk = self.processes["aggregator"].disk.data
        for item in receipt.items:
            if item.outcome == "rejected":
                if item.id == self._last_accepted.get(receipt.device):
                    raise ViolationError(f"{item.id}: rejected ({item.reason}) after it was accepted")
                continue
            kind, *_ = item.id.split("-")
            if kind == "ci":
                if item.id.encode() not in disk.get(f"round/network/device/{receipt.device}", b""):
                    raise ViolationError(f"{item.id}: accepted before it was written down")
            elif kind == "up":
                self._check_accepted(receipt.device, item.id, disk)
            else:
                self._check_answer(receipt.device, item.id, disk)

    def _check_accepted(self, device: str, message_id: str, disk: dict[str, bytes]) -> None:
        number, attempt = (int(part) for part in message_id.split("-")[2:4])
        place = (number, attempt)
        sealed = disk.get(f"round/network/upload/{device}", b"")
        settled = msgpack.unpackb(disk.get(f"round/network/device/{device}", msgpack.packb({}))).get("accepted")
        written = message_id.encode() in sealed or settled == [number, attempt]
        if not written:
            raise ViolationError(f"{message_id}: accepted before it was written down")
        if message_id.encode() in sealed:
            digest = hashlib.sha256(sealed).digest()
            if self.accepted.setdefault(place, {}).setdefault(device, digest) != digest:
                raise ViolationError(f"{message_id}: two contributions accepted")

    def _check_answer(self, member: str, message_id: str, disk: dict[str, bytes]) -> None:
        """A vote or shares: written down, unless the attempt that they are for is over."""
        kind, _, number, attempt, gid = message_id.split("-")[:5]
        record = msgpack.unpackb(disk["round/network/state"], strict_map_key=False)
        here = (record["round"], record["attempt"], record["state"])
        if here != (int(number), int(attempt), "unmask"):
            return
        where = {"vo": "vote", "sh": "shares"}[kind]
        if message_id.encode() not in disk.get(f"round/network/{where}/{gid}/{member}", b""):
            raise ViolationError(f"{message_id}: accepted before it was written down")


def _body(payload: bytes) -> bytes:
    return codec.unpack(Envelope, payload).body
