"""The one who sees everything: keeps a transcript, and checks after every step what must hold."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgpack
import numpy as np

from vedette_aggregator.aggregation import GlobalModel
from vedette_aggregator.round_events import PublishCandidate, Released
from vedette_core.machine import Effect, Event, Publish
from vedette_device.participant_events import KeyPair, Train
from vedette_device.participant_state import ParticipantRecord, StoredUpload
from vedette_schemas import codec
from vedette_schemas.envelope import Envelope
from vedette_schemas.round import Phase, Roster, RoundOpen, Upload, read_plan
from vedette_schemas.telemetry import Receipt, ReceiptItem
from vedette_schemas.topics import FlStep, Topics

from .disk import Disk
from .oracle import check_against_plaintext, check_mean
from .transcript import Transcript

if TYPE_CHECKING:
    from .process import Process

_RANK = {Phase.CHECKIN: 0, Phase.COLLECT: 1, Phase.DONE: 2, Phase.FAILED: 2}
Place = tuple[int, int]


class ViolationError(AssertionError):
    """Something that must always hold did not."""


class Observer:
    """Sees every message as it is sent, every effect as it is carried out, and every disk.

    Attributes:
        accepted: by (round, attempt) the devices whose upload was acknowledged as accepted.
        ended: (round, phase) of every round that has ended, in order.
    """

    def __init__(self, topics: Topics, transcript: Transcript, first: GlobalModel) -> None:
        self.topics = topics
        self.transcript = transcript
        self.processes: dict[str, Process] = {}
        self.accepted: dict[Place, dict[str, bytes]] = {}
        self.ended: list[tuple[int, Phase]] = []
        self.rejected: list[tuple[str, str]] = []
        self._uploads: dict[tuple[str, Place], bytes] = {}
        self._trained: dict[tuple[str, Place], np.ndarray] = {}
        self._place: tuple[int, int, int] = (0, 0, 0)
        self._rosters: dict[Place, dict[int, Roster]] = {}
        self._key_places: dict[bytes, Place] = {}
        self._keys: dict[str, list[KeyPair]] = {}
        self._looked_at: dict[str, int] = {}
        self._last_accepted: dict[str, str] = {}
        self._candidates: dict[int, bytes] = {}
        self._versions = [first.version]
        self._releases = [(first.version, first.weights.tobytes(), first.plan)]

    def tell(self, line: str) -> None:
        """Write something into the transcript."""
        self.transcript.line(line)

    # -- devices ------------------------------------------------------------------------------------------------------

    def key_made(self, device: str, pair: KeyPair) -> None:
        """A device made a key."""
        self._keys.setdefault(device, []).append(pair)

    def trained(self, device: str, effect: Train, delta: np.ndarray) -> None:
        """A device is about to encode its delta."""
        self._trained[device, (effect.round, effect.attempt)] = delta

    def resent(self, device: str, topic: str, payload: bytes) -> None:
        """A device's outbox sends again."""
        self._check_upload(device, topic, payload)

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
                self._check_upload(process, publish.topic, publish.payload)
            case "round":
                self._check_round(codec.unpack(RoundOpen, _body(publish.payload)))
            case "group":
                self._check_roster(codec.unpack(Roster, _body(publish.payload)))
            case "receipt":
                self._check_receipt(codec.unpack(Receipt, _body(publish.payload)))

    def after_step(self) -> None:
        """What must hold of a device's disk at any time: of its keys only the one in use is there, and what it has not
        been told about waits in its outbox."""
        for device, pairs in self._keys.items():
            disk = self.processes[device].disk
            if disk.writes == self._looked_at.get(device):
                continue
            self._looked_at[device] = disk.writes
            stored = [key for key, value in disk.data.items() for pair in pairs if pair.private in value]
            if stored not in ([], ["participant/network/state"]):
                raise ViolationError(f"{device}: private keys at {stored}, expected one at most, in its record")
            if self.processes[device].up:
                self._check_outbox(device, disk.data)

    # -- the aggregator -----------------------------------------------------------------------------------------------

    def aggregator_wrote(self, key: str, value: bytes | None) -> None:
        """An upload is on the aggregator's disk: from here on it is accepted, whether or not its receipt leaves."""
        if key.startswith("round/network/upload/") and value is not None:
            body = codec.unpack(Upload, _body(value))
            self._last_accepted[body.device] = body.id

    def candidate(self, effect: PublishCandidate, model: GlobalModel, disk: Disk) -> None:
        """A candidate is handed over: it must be the mean of exactly the accepted uploads."""
        made = effect.candidate
        place = (made.round, made.attempt)
        first = self._candidates.setdefault(made.round, made.digest())
        if first != made.digest():
            raise ViolationError(f"round {made.round}: another candidate than before the crash")
        stored = {key.rsplit("/", 1)[1]: value for key, value in disk.below("round/network/upload/").items()}
        uploads = {device: codec.unpack(Upload, _body(sealed)) for device, sealed in stored.items()}
        uploads = {device: body for device, body in uploads.items() if (body.round, body.attempt) == place}
        plan = read_plan(model.plan)
        rosters = self._rosters[place].values()
        surviving = {
            member.device
            for roster in rosters
            if sum(m.device in uploads for m in roster.members) >= plan.groups.survivors_min
            for member in roster.members
        }
        expected = tuple(sorted(surviving & uploads.keys()))
        if made.contributors != expected:
            raise ViolationError(f"round {made.round}: contributors {made.contributors}, expected {expected}")
        lost = (self.accepted.get(place, {}).keys() & surviving) - set(made.contributors)
        if lost:
            raise ViolationError(f"round {made.round}: accepted, but not in the aggregate: {sorted(lost)}")
        if len(made.contributors) < plan.groups.quorum:
            raise ViolationError(
                f"round {made.round}: {len(made.contributors)} contributors, quorum {plan.groups.quorum}"
            )
        counted = [uploads[device] for device in made.contributors]
        roster = next(iter(rosters))
        update = made.weights - model.weights
        check_mean(update, counted, plan, roster)
        deltas = [self._trained[device, place] for device in made.contributors]
        check_against_plaintext(update, deltas, [u.weight for u in counted], plan)

    def released(self, event: Released) -> None:
        """A candidate is released; after a crash, the same once more."""
        if event.version not in (self._versions[-1], self._versions[-1] + 1):
            raise ViolationError(f"release {event.version} after {self._versions[-1]}")
        if event.version != self._versions[-1]:
            self._versions.append(event.version)

    def registered(self, version: int, weights: bytes, plan: bytes) -> None:
        """A release is in the repository."""
        self._releases.append((version, weights, plan))

    @property
    def releases(self) -> int:
        """Releases beyond the initial one."""
        return len(self._versions) - 1

    def is_release(self, version: int, weights: bytes, plan: bytes) -> bool:
        """What the signed repository would say."""
        return (version, weights, plan) in self._releases

    def _check_outbox(self, device: str, disk: dict[str, bytes]) -> None:
        waiting = []
        if upload := disk.get("participant/network/upload"):
            waiting.append(StoredUpload.from_bytes(upload, "upload").id)
        if state := disk.get("participant/network/state"):
            key = ParticipantRecord.from_bytes(state, "state").key
            waiting += [key.id] if key is not None and key.unacknowledged else []
        missing = [message_id for message_id in waiting if f"outbox/{message_id}" not in disk]
        if missing:
            raise ViolationError(f"{device}: {missing} wait for a receipt, but nobody sends them")

    # -- details ------------------------------------------------------------------------------------------------------

    def _check_upload(self, device: str, topic: str, payload: bytes) -> None:
        parsed = self.topics.parse(topic)
        if parsed.kind != "fl" or parsed.step is not FlStep.UPLOAD:
            return
        body = codec.unpack(Upload, _body(payload))
        place = (body.round, body.attempt)
        if self._uploads.setdefault((device, place), payload) != payload:
            raise ViolationError(f"{device}: two different uploads for round {body.round}.{body.attempt}")

    def _check_round(self, body: RoundOpen) -> None:
        place = (body.round, body.attempt, _RANK[body.phase])
        if place < self._place:
            raise ViolationError(f"round state {place} after {self._place}")
        if body.phase in (Phase.DONE, Phase.FAILED) and place > self._place:
            self.ended.append((body.round, body.phase))
        self._place = place

    def _check_roster(self, body: Roster) -> None:
        place = (body.round, body.attempt)
        known = self._rosters.setdefault(place, {}).setdefault(body.gid, body)
        if known != body:
            raise ViolationError(f"two rosters for group {body.gid} of round {body.round}.{body.attempt}")
        for member in body.members:
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
            if item.id.startswith("ci-"):
                if item.id.encode() not in disk.get(f"round/network/device/{receipt.device}", b""):
                    raise ViolationError(f"{item.id}: accepted before it was written down")
            else:
                self._check_accepted(receipt.device, item.id, disk)

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


def _body(payload: bytes) -> bytes:
    return codec.unpack(Envelope, payload).body
