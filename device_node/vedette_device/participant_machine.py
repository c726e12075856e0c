"""A device's side of a task's rounds: check in, follow the round to its own group, train, upload once.

Pure: events carry verified bodies (`vedette_device.intake`). Rules that hold whatever the network, a crash or the
aggregator does: a key is in one check-in and used for one attempt; the attempt is marked as used, with the exact bytes,
before the upload leaves; there is one upload an attempt, for ever; a roster is believed only if this device would have
put itself into that very group, with its own key, on the model and plan that it verified itself.

Deadlines are the aggregator's to judge: a gateway's clock may be hours off, and late uploads are told so by receipt.

Source: `docs/protocol.md` §5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from vedette_core.learning.encoding import rotation_seed
from vedette_core.machine import Connected, Count, Effect, Event, Note, Persist, Subscribe, Tick, Unsubscribe
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
from vedette_device.participant_state import ParticipantRecord, Place, RoundKey, StoredUpload, state_key, upload_key
from vedette_device.roster_check import check_roster, own_group
from vedette_schemas.errors import PeerError
from vedette_schemas.round import (
    Phase,
    Roster,
    RoundOpen,
)
from vedette_schemas.telemetry import Receipt
from vedette_schemas.topics import FlStep, Topics

__all__ = ["DeviceIdentity", "ParticipantMachine"]

ROSTER_RETRY_S: Final = 30.0
"""A roster that does not come is subscribed to again: a subscription makes the broker send what it retains."""
_RANK: Final = {Phase.CHECKIN: 0, Phase.COLLECT: 1, Phase.DONE: 2, Phase.FAILED: 2}


class ParticipantMachine:
    """One task of one device.

    Args:
        topics: the site's topics.
        task: the task.
        identity: who takes part.
        new_key: makes fresh X25519 key pairs.
    """

    def __init__(self, *, topics: Topics, task: str, identity: DeviceIdentity, new_key: KeyFactory) -> None:
        self.task = task
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
    ) -> tuple[ParticipantMachine, list[Effect]]:
        """Go on from what was persisted; with nothing persisted, begin.

        Args:
            persisted: every key below ``participant/{task}/`` with its value.
            topics: the site's topics.
            task: the task.
            identity: who takes part.
            new_key: makes fresh X25519 key pairs.

        Returns:
            The machine, and the effects that finish what a crash interrupted; they are carried out before any event.

        Raises:
            ConfigError: the store holds something else than this machine's records.
        """
        machine = cls(topics=topics, task=task, identity=identity, new_key=new_key)
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
                    answer = self._on_roster(body, out)
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
        self._save(out)
        out.append(Count("machine_events", answer.value, self.task, KINDS[type(event)]))
        return out

    # -- the round ----------------------------------------------------------------------------------------------------

    def _on_open(self, body: RoundOpen, now: float, out: list[Effect]) -> Answer:
        position = (body.round, body.attempt, _RANK[body.phase])
        if position < self._record.seen:
            return Answer.DISCARD
        same = self._open is not None and position == (self._open.round, self._open.attempt, _RANK[self._open.phase])
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
        if self._training is not None and (over or (self._training.round, self._training.attempt) < here):
            self._training = None
            self._drop_key()
        if self._roster is not None and (over or (self._roster.round, self._roster.attempt) < here):
            self._roster = None
        key = self._record.key
        if key is not None and self._is_spent(key, here, phase):
            self._drop_key()
        elif key is not None and over and key.earliest > here:
            # It was made for the next attempt, and there is none: the next round is the first that can have it.
            self._put(replace(self._record, key=replace(key, earliest=self._first_after(here, phase))))
        if self._record.key is None:
            self._check_in(self._first_after(here, phase), now, out)
        key = self._record.key
        if self._training is None and self._roster is not None:
            self._try_training(out)
        elif phase is Phase.COLLECT and key is not None and key.earliest <= here and self._awaits_roster(here):
            self._join(now, out)
        else:
            self._leave(out)

    def _awaits_roster(self, here: Place) -> bool:
        return self._training is None and self._record.used < here and self._passed != here

    def _is_spent(self, key: RoundKey, here: Place, phase: Phase) -> bool:
        """Whether the key may have been in the roster of an attempt that is over; such a key is not offered again."""
        if phase is Phase.COLLECT:
            return key.earliest <= self._record.used < here
        return key.earliest < here or (phase is not Phase.CHECKIN and key.earliest == here)

    def _first_after(self, here: Place, phase: Phase) -> Place:
        """The first attempt that can have a key which is made now."""
        if phase is Phase.CHECKIN:
            return here
        return (here[0], here[1] + 1) if phase is Phase.COLLECT else (here[0] + 1, 1)

    def _check_in(self, earliest: Place, now: float, out: list[Effect]) -> None:
        release = self._release
        if release is None or not self._fits() or self._examples < release.plan.training.examples_min:
            return
        if self._refused_at == self._record.seen:
            return
        pair = self._new_key()
        # Epoch seconds, unless the clock went back: counts up even on a device that lost its state.
        seq = max(self._record.seq + 1, int(now))
        message_id, sealed = self._say.checkin(pair, seq=seq, examples=self._examples, model_version=release.version)
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

    def _on_roster(self, roster: Roster, out: list[Effect]) -> Answer:
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
        self._try_training(out)
        return Answer.ACCEPT

    def _try_training(self, out: list[Effect]) -> None:
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
        if len(roster.members) < plan.groups.survivors_min:
            self._passed = (roster.round, roster.attempt)
            found = f"found a group of {len(roster.members)}, expected {plan.groups.survivors_min} or more"
            out.append(self._note("warning", f"round {roster.round}.{roster.attempt}: {found}"))
            return
        self._training = roster
        seed = rotation_seed(
            task=self.task,
            round_number=roster.round,
            attempt=roster.attempt,
            model=roster.model,
            plan=roster.plan,
            beacon=roster.beacon,
        )
        out.append(Train(self.task, roster.round, roster.attempt, roster.model_version, roster.model, plan, seed))

    def _on_trained(self, event: TrainingFinished, out: list[Effect]) -> Answer:
        roster = self._training
        if roster is None or (event.round, event.attempt) != (roster.round, roster.attempt):
            return Answer.DISCARD
        message_id, sealed = self._say.upload(roster, event.contribution)
        place = (roster.round, roster.attempt)
        self._training = None
        self._upload = StoredUpload(place, message_id, sealed)
        out.append(Persist(upload_key(self.task), self._upload.to_bytes()))
        self._put(replace(self._record, used=place))
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
        self._put(replace(self._record, used=(roster.round, roster.attempt)))
        out.append(self._note("warning", f"round {roster.round}.{roster.attempt}: sits out: {event.reason}"))
        return Answer.ACCEPT

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

    def _on_release(self, event: ReleaseVerified, now: float, out: list[Effect]) -> Answer:
        self._release = event
        if self._fits():
            self._follow(now, out)
            return Answer.ACCEPT
        self._training = self._roster = None
        self._drop_key()
        self._leave(out)
        found, expected = event.plan.feature_schema[:16], self._identity.feature_schema[:16]
        out.append(
            self._note(
                "error",
                f"release {event.version}: found feature schema {found} in its plan, expected {expected}, which this "
                "device computes; it does not take part: update its software, or correct its channels",
            )
        )
        return Answer.REJECT

    def _fits(self) -> bool:
        return self._release is None or self._release.plan.feature_schema == self._identity.feature_schema

    def _subscribe(self, out: list[Effect]) -> None:
        out.append(Subscribe(self._topics.round(self.task)))
        if self._group is not None:
            out.append(Subscribe(self._group))

    def _note(self, level: str, text: str) -> Note:
        return Note(level, f"{self.task}: {text}")

    def _drop_key(self) -> None:
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
                self._put(replace(self._record, used=self._upload.place))
        self._save(out)
        key = self._record.key
        if key is not None and key.unacknowledged:
            out.append(self._say.publication(FlStep.CHECKIN, key.id, key.unacknowledged))
        if self._upload is not None:
            out.append(self._say.publication(FlStep.UPLOAD, self._upload.id, self._upload.sealed))
        return out
