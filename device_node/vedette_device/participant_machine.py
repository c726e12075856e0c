"""A device's side of a task's rounds: check in, follow the round to its own group, train, upload once.

Pure: events carry verified bodies (`vedette_device.intake`). Rules that hold whatever the network, a crash or the
aggregator does: a key is in one check-in and used for one attempt; the attempt is marked as used, with the exact bytes,
before the upload leaves; there is one upload an attempt, for ever, and no more in a budget period than the plan allows;
a roster is believed only if this device would have put itself into that very group, with its own key, with members who
signed theirs, on the model and plan that it verified itself; a plan that would show its update to anybody is refused.

In a group whose members open its sum, the device is in the committee, too: `vedette_core.secagg.committee`.

Deadlines are the aggregator's to judge: a gateway's clock may be hours off, and late uploads are told so by receipt.

Source: `docs/protocol.md` §5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from vedette_core.crypto.agreement import KeyPair
from vedette_core.machine import Connected, Count, Effect, Event, Note, Persist, Subscribe, Tick, Unsubscribe
from vedette_core.secagg.committee import CloseReceived, CommitteeMember, OpeningReceived, PlaceOver, Seated
from vedette_core.secagg.membership import PeerSource
from vedette_device.participant_events import (
    KINDS,
    TABLE,
    Answer,
    ExamplesAvailable,
    KeyFactory,
    ParticipantState,
    ReceiptReceived,
    ReleaseVerified,
    RosterReceived,
    RoundOpened,
    Train,
    TrainingFailed,
    TrainingFinished,
)
from vedette_device.participant_messages import DeviceIdentity, ParticipantMessages
from vedette_device.participant_state import (
    ParticipantRecord,
    Place,
    RoundKey,
    StoredUpload,
    first_after,
    state_key,
    upload_key,
)
from vedette_device.plan_check import misfit
from vedette_device.roster_check import PHASE_RANK, check_against_plan, check_roster, own_group
from vedette_schemas.errors import PeerError, RefusedError
from vedette_schemas.round import Phase, Roster, RoundOpen
from vedette_schemas.telemetry import Receipt
from vedette_schemas.topics import FlStep, Topics

__all__ = ["DeviceIdentity", "ParticipantMachine"]

ROSTER_RETRY_S: Final = 30.0
"""A roster that does not come is subscribed to again: a subscription makes the broker send what it retains."""
MayJoin = Callable[[float, int], str]
"""Whether this device's own budget lets it take part now (epoch seconds) in a round: empty, or the reason why not."""


class ParticipantMachine:
    """One task of one device.

    Args:
        topics: the site's topics.
        task: the task.
        identity: who takes part.
        new_key: makes fresh X25519 key pairs.
        peers: the site's anchors, to believe the certificates of others in a roster by.
        plain_allowed: whether an update may leave that the aggregator can read.
        may_join: the device's own budget.
        sketch: a coarse summary of this device's behaviour, for a diverse selection; may be empty.
    """

    def __init__(
        self,
        *,
        topics: Topics,
        task: str,
        identity: DeviceIdentity,
        new_key: KeyFactory,
        peers: PeerSource,
        plain_allowed: bool = False,
        may_join: MayJoin | None = None,
        sketch: Callable[[], bytes] = bytes,
    ) -> None:
        self.task = task
        self._peers = peers
        self._plain_allowed = plain_allowed
        self._may_join, self._sketch = may_join, sketch
        self._committee = CommitteeMember(
            topics=topics, task=task, member=identity.device, signer=identity.signer, peers=peers
        )
        self._unsafe = ""
        self._topics = topics
        self._identity = identity
        self._say = ParticipantMessages(topics, task, identity)
        self._new_key = new_key
        self._record = ParticipantRecord()
        self._dirty = False
        self._upload: StoredUpload | None = None
        self._open: RoundOpen | None = None
        self._release: ReleaseVerified | None = None
        self._examples = 0
        self._training: Roster | None = None
        self._roster: Roster | None = None
        self._passed: Place | None = None
        self._refused_at: tuple[int, int, int] | None = None
        self._group: str | None = None
        self._retry_at: float | None = None

    @classmethod
    def restore(
        cls,
        persisted: Mapping[str, bytes],
        *,
        topics: Topics,
        task: str,
        identity: DeviceIdentity,
        new_key: KeyFactory,
        peers: PeerSource,
        plain_allowed: bool = False,
        may_join: MayJoin | None = None,
        sketch: Callable[[], bytes] = bytes,
    ) -> tuple[ParticipantMachine, list[Effect]]:
        """Go on from what was persisted; with nothing persisted, begin.

        Args:
            persisted: every key below ``participant/{task}/`` and ``committee/{task}/`` with its value.
            topics: see `ParticipantMachine`.
            task: see `ParticipantMachine`.
            identity: see `ParticipantMachine`.
            new_key: see `ParticipantMachine`.
            peers: see `ParticipantMachine`.
            plain_allowed: see `ParticipantMachine`.
            may_join: see `ParticipantMachine`.
            sketch: see `ParticipantMachine`.

        Returns:
            The machine, and the effects that finish what a crash interrupted; they are carried out before any event.

        Raises:
            ConfigError: the store holds something else than this machine's records.
        """
        machine = cls(
            topics=topics,
            task=task,
            identity=identity,
            new_key=new_key,
            peers=peers,
            plain_allowed=plain_allowed,
            may_join=may_join,
            sketch=sketch,
        )
        machine._committee = CommitteeMember.restore(
            persisted, topics=topics, task=task, member=identity.device, signer=identity.signer, peers=peers
        )
        return machine, machine._resume(persisted)

    @property
    def state(self) -> ParticipantState:
        """Where the participant is."""
        if not self._fits():
            return ParticipantState.UNFIT
        if self._training is not None:
            return ParticipantState.TRAINING
        key = self._record.key
        if key is None:
            return ParticipantState.IDLE
        return ParticipantState.CHECKED_IN if self._record.used < key.earliest else ParticipantState.UPLOADED

    @property
    def used(self) -> Place:
        """The last attempt that this device gave its upload to, or sat out."""
        return self._record.used

    def next_deadline(self) -> float | None:
        """When a `Tick` is due, epoch seconds; one is due every minute all the same, for a clock that is set back."""
        return self._retry_at

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event.

        Args:
            event: one of `vedette_device.participant_events.KINDS`.
            now: epoch seconds; only intervals are measured with it.
        """
        out: list[Effect] = []
        answer = TABLE[self.state, type(event)]
        if answer is Answer.ACCEPT:
            match event:
                case Tick():
                    self._on_tick(now, out)
                case Connected():
                    self._subscribe(out)
                case RoundOpened(body):
                    answer = self._on_open(body, now, out)
                case RosterReceived(body):
                    answer = self._on_roster(body, now, out)
                case ReceiptReceived(body):
                    self._on_receipt(body, out)
                case ExamplesAvailable(count):
                    self._examples = count
                    self._follow(now, out)
                case ReleaseVerified():
                    answer = self._on_release(event, now, out)
                case TrainingFinished():
                    answer = self._on_trained(event, out)
                case TrainingFailed():
                    answer = self._on_failed(event, out)
                case CloseReceived() | OpeningReceived():
                    said = self._committee.handle(event, now)
                    self._give_up_key(out)
                    out += said
        self._save(out)
        out.append(Count("machine_events", answer.value, self.task, KINDS[type(event)]))
        return out

    # -- the round ----------------------------------------------------------------------------------------------------

    def _on_open(self, body: RoundOpen, now: float, out: list[Effect]) -> Answer:
        position = (body.round, body.attempt, PHASE_RANK[body.phase])
        if position < self._record.seen:
            return Answer.DISCARD
        same = self._open is not None and position == (
            self._open.round,
            self._open.attempt,
            PHASE_RANK[self._open.phase],
        )
        if same and body.phase is Phase.COLLECT and body != self._open:
            out.append(
                self._note("warning", f"round {body.round}.{body.attempt}: found two states; the first one counts")
            )
            return Answer.REJECT
        if same:
            self._refused_at = None  # said again: the aggregator still waits, so that trying again is welcome
        self._open = body
        if position > self._record.seen:
            self._put(replace(self._record, seen=position))
        self._follow(now, out)
        return Answer.ACCEPT

    def _follow(self, now: float, out: list[Effect]) -> None:
        """Do what the round's state asks of this device."""
        if self._open is None:
            return
        here: Place = (self._open.round, self._open.attempt)
        phase = self._open.phase
        over = phase in (Phase.DONE, Phase.FAILED)
        closed = over or phase is Phase.UNMASK
        next_place = (here[0], here[1] + 1) if over else here
        if next_place > self._committee.floor:
            out += self._committee.handle(PlaceOver(next_place), now)
        if self._training is not None and (closed or (self._training.round, self._training.attempt) < here):
            self._training = None
            self._drop_key()
        if self._roster is not None and (closed or (self._roster.round, self._roster.attempt) < here):
            self._roster = None
        key = self._record.key
        if key is not None and key.is_spent(self._record.used, here, phase):
            self._drop_key()
        elif key is not None and over and key.earliest > here:
            # It was made for the next attempt, and there is none: the next round is the first that can have it.
            self._put(replace(self._record, key=replace(key, earliest=first_after(here, phase))))
        if self._record.key is None:
            self._check_in(first_after(here, phase), now, out)
        key = self._record.key
        if self._training is None and self._roster is not None:
            self._try_training(now, out)
        elif phase is Phase.COLLECT and key is not None and key.earliest <= here and self._awaits_roster(here):
            self._join(now, out)
        else:
            self._leave(out)

    def _awaits_roster(self, here: Place) -> bool:
        return self._training is None and self._record.used < here and self._passed != here

    def _check_in(self, earliest: Place, now: float, out: list[Effect]) -> None:
        release = self._release
        if release is None or not self._fits() or self._examples < release.plan.training.examples_min:
            return
        if self._identity.awaits_attestation:
            return
        if self._refused_at == self._record.seen or self._record.is_exhausted(release.plan, earliest[0]):
            return
        if self._may_join is not None and self._may_join(now, earliest[0]):
            return
        pair = self._new_key()
        # Epoch seconds, unless the clock went back: counts up even on a device that lost its state.
        seq = max(self._record.seq + 1, int(now))
        message_id, sealed = self._say.checkin(
            pair, seq=seq, examples=self._examples, model_version=release.version, sketch=self._sketch()
        )
        self._put(replace(self._record, seq=seq, key=RoundKey(message_id, pair.private, pair.public, earliest, sealed)))
        self._save(out)
        out.append(self._say.publication(FlStep.CHECKIN, message_id, sealed))

    def _join(self, now: float, out: list[Effect]) -> None:
        assert self._open is not None
        topic = self._topics.group(self.task, own_group(self._open, self._identity.device))
        if topic != self._group:
            self._leave(out)
            self._group, self._retry_at = topic, now + ROSTER_RETRY_S
            out.append(Subscribe(topic))

    def _leave(self, out: list[Effect]) -> None:
        if self._group is not None:
            out.append(Unsubscribe(self._group))
        self._group = self._retry_at = None

    def _on_tick(self, now: float, out: list[Effect]) -> None:
        if self._group is None or self._retry_at is None:
            return
        if now >= self._retry_at:
            out.append(Subscribe(self._group))
        if now >= self._retry_at or self._retry_at > now + ROSTER_RETRY_S:  # or the clock went back
            self._retry_at = now + ROSTER_RETRY_S

    # -- the group ----------------------------------------------------------------------------------------------------

    def _on_roster(self, roster: Roster, now: float, out: list[Effect]) -> Answer:
        opened, key = self._open, self._record.key
        if opened is None or key is None or self._group is None:
            return Answer.DISCARD
        place = (roster.round, roster.attempt)
        if place != (opened.round, opened.attempt):
            return Answer.DISCARD
        try:
            check_roster(roster, opened, self._identity.device, key.public)
        except PeerError as fault:
            out.append(self._note("warning", str(fault)))
            return Answer.REJECT
        self._leave(out)
        if all(member.device != self._identity.device for member in roster.members):
            self._passed = place
            return Answer.DISCARD
        self._roster = roster
        self._try_training(now, out)
        return Answer.ACCEPT

    def _try_training(self, now: float, out: list[Effect]) -> None:
        """Train on the roster that holds, once its model and plan are here and verified, and the examples suffice."""
        roster, release = self._roster, self._release
        if roster is None or release is None:
            return
        if (release.version, release.model_sha256, release.plan_sha256) != (
            roster.model_version,
            roster.model,
            roster.plan,
        ):
            return
        plan = release.plan
        if self._examples < plan.training.examples_min:
            return
        self._roster = None
        key, own = self._record.key, roster.member(self._identity.device)
        if key is None or own is None or own.epk != key.public:
            return
        try:
            check_against_plan(roster, plan, release.anchor, self._peers.fork(), now)
            if self._record.is_exhausted(plan, roster.round):
                raise RefusedError("found this period's participations used up", rule="budget")
        except (PeerError, RefusedError) as fault:
            self._passed = (roster.round, roster.attempt)
            out.append(self._note("warning", f"round {roster.round}.{roster.attempt}: sits out: {fault}"))
            return
        self._training = roster
        pair = KeyPair(key.private, key.public)
        if plan.masked and plan.groups.committee == "inline":
            out += self._committee.handle(Seated(roster, plan, pair), now)
        out.append(
            Train(self.task, roster.round, roster.attempt, roster.model_version, roster.model, plan, roster, pair)
        )

    def _on_trained(self, event: TrainingFinished, out: list[Effect]) -> Answer:
        roster = self._training
        if roster is None or (event.round, event.attempt) != (roster.round, roster.attempt):
            return Answer.DISCARD
        message_id, sealed = self._say.upload(roster, event.contribution)
        place = (roster.round, roster.attempt)
        self._training = None
        self._upload = StoredUpload(place, message_id, sealed, self._record.spent_after(event.plan, place[0]))
        out.append(Persist(upload_key(self.task), self._upload.to_bytes()))
        self._put(self._record.with_used(place, self._upload.spent))
        self._save(out)
        out.append(self._say.publication(FlStep.UPLOAD, message_id, sealed))
        out.append(Count("rounds_joined", Answer.ACCEPT.value, self.task))
        return Answer.ACCEPT

    def _on_failed(self, event: TrainingFailed, out: list[Effect]) -> Answer:
        roster = self._training
        if roster is None or (event.round, event.attempt) != (roster.round, roster.attempt):
            return Answer.DISCARD
        # The attempt counts as used, so that a roster that comes again does not make the device train for ever.
        self._training = None
        self._put(self._record.with_used((roster.round, roster.attempt), self._record.spent))
        out.append(self._note("warning", f"round {roster.round}.{roster.attempt}: sits out: {event.reason}"))
        return Answer.ACCEPT

    def _give_up_key(self, out: list[Effect]) -> None:
        """Once the own shares are released the collection is over, whether or not the round's state said so here: what
        is still trained would come too late, and the key goes from this record, too, before the shares leave."""
        key = self._record.key
        place = self._committee.released_with(key.public) if key is not None and key.private else None
        if place is not None:
            self._training = self._roster = None
            self._put(self._record.with_used(place, self._record.spent))
            self._save(out)

    # -- the rest -----------------------------------------------------------------------------------------------------

    def _on_receipt(self, receipt: Receipt, out: list[Effect]) -> None:
        for item in receipt.items:
            key = self._record.key
            rejected = item.outcome == "rejected"
            if self._upload is not None and item.id == self._upload.id:
                self._upload = None
                out.append(Persist(upload_key(self.task), None))
            elif key is not None and item.id == key.id:
                if rejected and self._record.used < key.earliest and self._training is None:
                    self._drop_key()
                    self._refused_at = self._record.seen
                    self._leave(out)
                elif not rejected and key.unacknowledged:
                    self._put(replace(self._record, key=replace(key, unacknowledged=b"")))
            else:
                continue
            if rejected:
                out.append(self._note("warning", f"{item.id} rejected: {item.reason}"))

    def take_certificate(self, certificate: bytes, intermediate: bytes) -> None:
        """A newer certificate of the same key: shown from the next check-in on."""
        self._identity = replace(self._identity, certificate=certificate, intermediate=intermediate)
        self._say = ParticipantMessages(self._topics, self.task, self._identity)

    def _on_release(self, event: ReleaseVerified, now: float, out: list[Effect]) -> Answer:
        self._release = event
        self._unsafe = misfit(event.plan, self._identity.feature_schema, plain_allowed=self._plain_allowed)
        if self._fits():
            self._follow(now, out)
            return Answer.ACCEPT
        self._training = None
        self._drop_key()
        self._leave(out)
        out.append(self._note("error", f"release {event.version}: {self._unsafe}; this device does not take part"))
        return Answer.REJECT

    def _fits(self) -> bool:
        return not self._unsafe

    def _subscribe(self, out: list[Effect]) -> None:
        out.append(Subscribe(self._topics.round(self.task)))
        if self._group is not None:
            out.append(Subscribe(self._group))

    def _note(self, level: str, text: str) -> Note:
        return Note(level, f"{self.task}: {text}")

    def _drop_key(self) -> None:
        self._roster = None  # it holds the key that goes
        if self._record.key is not None:
            self._put(replace(self._record, key=None))

    def _put(self, record: ParticipantRecord) -> None:
        self._record, self._dirty = record, True

    def _save(self, out: list[Effect]) -> None:
        if self._dirty:
            out.append(Persist(state_key(self.task), self._record.to_bytes()))
            self._dirty = False

    def _resume(self, persisted: Mapping[str, bytes]) -> list[Effect]:
        out: list[Effect] = []
        stored = persisted.get(state_key(self.task))
        if stored is not None:
            self._record = ParticipantRecord.from_bytes(stored, state_key(self.task))
        stored = persisted.get(upload_key(self.task))
        if stored is not None:
            self._upload = StoredUpload.from_bytes(stored, upload_key(self.task))
            if self._upload.place > self._record.used:  # the crash was between the two writes
                self._put(self._record.with_used(self._upload.place, self._upload.spent))
        self._save(out)
        key = self._record.key
        if key is not None and key.unacknowledged:
            out.append(self._say.publication(FlStep.CHECKIN, key.id, key.unacknowledged))
        if self._upload is not None:
            out.append(self._say.publication(FlStep.UPLOAD, self._upload.id, self._upload.sealed))
        return out
