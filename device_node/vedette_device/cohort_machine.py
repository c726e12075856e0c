"""Which of the listed releases this device goes to: the active one, or the candidate of a rollout that it is part of.

Pure. Signed metadata say what may run at all; the aggregator's signed rollout state only chooses among that. Rules:

* A rollout state with a lower sequence number than one that was taken before is refused, over restarts, too.
* A state that has expired decides nothing: the metadata's active release does, but never an older one than what runs
  (its announcement then lacks the sequence number, so that the update machine takes it for stale).
* While a rollout is paused, a device that has not begun to run the candidate does not begin.
* A candidate that the metadata do not list (or list no more) is not run.

Source: ADR 0020.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from vedette_core.crypto.cohorts import cohort
from vedette_core.machine import Count, Effect, Event, Note, Persist, Tick
from vedette_device.verified_release import VerifiedRelease
from vedette_schemas import codec
from vedette_schemas.codec import Message
from vedette_schemas.errors import PeerError
from vedette_schemas.rollout import RolloutPhase, RolloutState


@dataclass(frozen=True, slots=True)
class ReleasesListed(Event):
    """Signed metadata were verified.

    Attributes:
        active: the release that they call active.
        listed: every release that they list, by version.
    """

    active: VerifiedRelease
    listed: Mapping[int, VerifiedRelease] = field(repr=False)


@dataclass(frozen=True, slots=True)
class RolloutReceived(Event):
    """A rollout state came in, and its signature holds."""

    state: RolloutState


@dataclass(frozen=True, slots=True)
class Announce(Effect):
    """Tell the update machine of the release to go to."""

    release: VerifiedRelease


@dataclass(frozen=True, slots=True)
class LookAgain(Effect):
    """The rollout is about a release that the metadata seen so far do not list: look at them again."""

    task: str


class CohortRecord(Message):
    """What survives a restart.

    Attributes:
        state: newest rollout state that was taken.
        exposed: whether this device was told to run its candidate.
    """

    state: RolloutState
    exposed: bool = False


class CohortMachine:
    """One task of one device.

    Args:
        task: the task.
        device: own id.
        saved: what was persisted under `key`, if anything.
    """

    def __init__(self, task: str, device: str, saved: bytes | None = None) -> None:
        self.task: Final = task
        self._device = device
        self._record: CohortRecord | None = None
        self._damaged = ""
        if saved is not None:
            try:
                self._record = codec.unpack(CohortRecord, saved)
            except PeerError as fault:
                self._damaged = str(fault)
        self._listing: ReleasesListed | None = None
        self._expiry_seen = False

    @property
    def key(self) -> str:
        """Where the record is persisted."""
        return f"rollout/{self.task}"

    @property
    def state(self) -> RolloutState | None:
        """The newest rollout state that was taken."""
        return None if self._record is None else self._record.state

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event; return the effects in the order in which they must happen.

        Args:
            event: `ReleasesListed`, `RolloutReceived` or `Tick`.
            now: epoch seconds; only compared with the state's expiry.
        """
        match event:
            case RolloutReceived(state):
                return self._received(state, now)
            case ReleasesListed():
                self._listing = event
                return [*self._note_damage(), *self._decide(now)]
            case Tick():
                return self._decide(now) if self._is_due(now) else []
        return [self._count("discarded")]

    def next_deadline(self) -> float | None:
        """When to send a `Tick`: the state's expiry."""
        return None if self._record is None or self._expiry_seen else self._record.state.expires_s

    def _received(self, state: RolloutState, now: float) -> list[Effect]:
        before = self._record
        if state.task != self.task:
            return [self._count("discarded")]
        if before is not None and state.seq <= before.state.seq:
            # The broker sends what it retains at every subscription: the same one again is no replay.
            return [] if state == before.state else [self._count("stale")]
        same = before is not None and before.state.rollout == state.rollout
        self._record = CohortRecord(state=state, exposed=same and before is not None and before.exposed)
        self._expiry_seen = False
        taken = [self._persist(), self._count("taken")]
        if self._listing is not None and self._wants_candidate(state) and state.candidate not in self._listing.listed:
            return [*taken, LookAgain(self.task)]
        return [*taken, *self._decide(now)]

    def _decide(self, now: float) -> list[Effect]:
        listing, record = self._listing, self._record
        expired = record is not None and now >= record.state.expires_s
        # Also without metadata: their coming decides anew, and until then a deadline that is over would stay so.
        self._expiry_seen = self._expiry_seen or expired
        if listing is None:
            return []
        if record is None:
            return _announce(listing.active)
        if expired:
            return [self._count("expired"), *_announce(listing.active)]
        state, out = record.state, list[Effect]()
        wanted = self._wanted(state)
        release = listing.active if wanted is None else listing.listed.get(wanted)
        if release is None:
            out.append(self._count("unlisted"))
            release = listing.active
        elif wanted == state.candidate and not record.exposed:
            # Before the announcement: a pause that comes between must find that this device had begun.
            self._record = record.model_copy(update={"exposed": True})
            out.append(self._persist())
        root, role = release.metadata_version[:2]
        return [*out, *_announce(replace(release, metadata_version=(root, role, state.seq)))]

    def _wanted(self, state: RolloutState) -> int | None:
        """Version that this device should run; None for the metadata's active one."""
        pins = {pin.device: pin.version for pin in state.pins}
        if self._device in pins:
            return pins[self._device]
        if not self._wants_candidate(state):
            return None
        # A promoted candidate that newer metadata left behind is over.
        assert self._listing is not None
        over = state.state is RolloutPhase.PROMOTED and self._listing.active.version > state.candidate
        return None if over else state.candidate

    def _wants_candidate(self, state: RolloutState) -> bool:
        if state.state is RolloutPhase.PROMOTED:
            return True
        if state.state not in (RolloutPhase.RUNNING, RolloutPhase.PAUSED) or cohort(state, self._device) != "candidate":
            return False
        return state.state is RolloutPhase.RUNNING or (self._record is not None and self._record.exposed)

    def _is_due(self, now: float) -> bool:
        deadline = self.next_deadline()
        return deadline is not None and now >= deadline

    def _note_damage(self) -> list[Effect]:
        damage, self._damaged = self._damaged, ""
        if not damage:
            return []
        return [Note("warning", f"task {self.task}: forgot the rollout's state: {damage}")]

    def _persist(self) -> Effect:
        assert self._record is not None
        return Persist(self.key, codec.pack(self._record))

    def _count(self, outcome: str) -> Effect:
        return Count("rollout_states", outcome, self.task)


def _announce(release: VerifiedRelease) -> list[Effect]:
    """Release 0 is where the first round starts: it has learnt nothing, and nobody runs it."""
    return [Announce(release)] if release.version else []
