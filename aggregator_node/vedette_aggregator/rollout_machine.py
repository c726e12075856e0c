"""A task's rollouts: a signed candidate reaches the fleet in stages, is compared with a control cohort, or goes back.

Pure: no clock, no I/O, no randomness of its own (salts come from `entropy`). Every change is persisted before anything
is said or done that depends on it, and what a crash interrupted is said and done again by `restore`.

Gates pass → next stage; they say too little → a person is asked; something critical → back at once. A rollout that
nobody decides about is aborted in the end. Rounds go on from the newest candidate that is not withdrawn.

Source: ``docs/protocol.md`` §8, ADR 0020.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from vedette_aggregator import rollout_requests
from vedette_aggregator.rollout_book import RolloutBook
from vedette_aggregator.rollout_events import (
    ActivateRelease,
    ActivationRefused,
    ActiveSeen,
    CandidateListed,
    DeviceAlerted,
    DeviceReported,
    FollowRounds,
    Measured,
    ReleaseUnlisted,
    Requested,
    Verb,
)
from vedette_aggregator.rollout_messages import RolloutMessages
from vedette_aggregator.rollout_settings import RolloutSettings
from vedette_aggregator.rollout_state import (
    DONE_MAX,
    KNOWN_MAX,
    TEXT_MAX,
    WATCHED,
    WITHDRAWN_MAX,
    KnownRelease,
    Phase,
    RolloutRecord,
    read_record,
    read_tallies,
    record_key,
    tallies_key,
)
from vedette_aggregator.rollout_watch import Judgement, RolloutWatch
from vedette_core.crypto.cohorts import bucket, control_of, members_of, share_of
from vedette_core.learning.rank_test import Verdict
from vedette_core.machine import Connected, Count, Effect, Event, Note, Persist, Tick
from vedette_schemas import codec
from vedette_schemas.errors import RefusedError
from vedette_schemas.rollout import MEMBERS_MAX, PPM, SALT_BYTES, RolloutPhase, RolloutPin

HOUR_S: Final = 3600.0
FLEET_SHARE_MIN: Final = 0.9
"""A stage begins only while so much of the fleet is known that was known last: of a part, shares cannot be told."""
TALLIES_S: Final = 5.0
"""Alerts are counted on disk this often: a crash costs no more."""


class RolloutMachine:
    """The rollouts of one task.

    Args:
        task: the task.
        settings: how far, how fast, on what evidence.
        messages: seals what devices are told.
        entropy: gives so many random bytes.
        record: as it was persisted.
    """

    def __init__(
        self,
        task: str,
        settings: RolloutSettings,
        messages: RolloutMessages,
        entropy: Callable[[int], bytes],
        record: RolloutRecord | None = None,
    ) -> None:
        self.task: Final = task
        self._settings, self._entropy = settings, entropy
        self._book = RolloutBook(task, record or RolloutRecord(), messages, settings.state_life_s)
        self._watch = RolloutWatch()
        self._started_s: float | None = None
        self._next_check_s = 0.0
        self._uncounted_s: float | None = None

    @classmethod
    def restore(
        cls,
        persisted: Mapping[str, bytes],
        task: str,
        settings: RolloutSettings,
        messages: RolloutMessages,
        entropy: Callable[[int], bytes],
    ) -> tuple[RolloutMachine, list[Effect]]:
        """Go on from what was persisted below ``rollout/{task}/``; and the effects that finish what was interrupted.

        Raises:
            ConfigError: the record is damaged.
        """
        machine = cls(task, settings, messages, entropy, read_record(persisted.get(record_key(task)), task))
        machine._watch.tallies = read_tallies(persisted.get(tallies_key(task)), machine.record.number)
        # What was asked of the shell before a crash, and not answered, is asked again.
        version = machine.record.to_activate
        return machine, machine._book.repeat() + ([] if version is None else [ActivateRelease(task, version)])

    @property
    def record(self) -> RolloutRecord:
        """Where the rollouts are."""
        return self._book.record

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event; return the effects in the order in which they must happen.

        Args:
            event: what happened.
            now: epoch seconds.
        """
        if self._started_s is None:
            self._started_s = now
        match event:
            case DeviceReported():
                self._watch.take_device(event)
                grown = self._watch.size > self.record.fleet / FLEET_SHARE_MIN
                # How large the fleet is must survive a crash before the first stage.
                out = self._book.save(fleet=self._watch.size) if grown else []
                return [*out, *(self._go_back_if_critical(now) if event.outcome == "failed" else [])]
            case Measured():
                return self._measured(event)
            case DeviceAlerted():
                return self._alerted(event, now)
            case CandidateListed():
                return self._listed(event, now)
            case ActiveSeen():
                return self._active_seen(event, now)
            case ReleaseUnlisted(version):
                return self._unlisted(version, now)
            case ActivationRefused(version, reason):
                refused = self.record.phase is Phase.PROMOTING and version == self.record.candidate
                return self._revert(reason, now) if refused else []
            case Requested():
                return self._requested(event, now)
            case Connected():
                return self._book.repeat()
            case Tick():
                return self._tick(now)
        return [Count("rollout_events", "discarded", self.task)]

    def next_deadline(self) -> float | None:
        """When to send a `Tick`."""
        watched = self.record.phase in (Phase.WAITING, *WATCHED)
        counted = None if self._uncounted_s is None else self._uncounted_s + TALLIES_S
        found = (self._book.renew_s, self._next_check_s if watched else None, counted)
        return min((at for at in found if at is not None), default=None)

    # -- releases -----------------------------------------------------------------------------------------------------

    def _listed(self, event: CandidateListed, now: float) -> list[Effect]:
        record = self.record
        if event.version <= record.active or any(r.sha256 == event.sha256 for r in record.known):
            return []
        release = KnownRelease(version=event.version, sha256=event.sha256, parent=event.parent)
        known = (*(r for r in record.known if r.version != event.version), release)[-KNOWN_MAX:]
        if event.sha256 in record.withdrawn:
            return self._book.save(known=known)  # somebody went back from it: only a person tries it again
        if event.parent in record.withdrawn:
            out = self._book.save(known=known, withdrawn=(*record.withdrawn, event.sha256)[-WITHDRAWN_MAX:])
            note = self._note("warning", f"release {event.version} comes of a withdrawn one, and is withdrawn, too")
            return [*out, note, FollowRounds(self.task)]
        if record.is_live:
            out = self._book.save(known=known, queued=event.version)
            if record.queued:
                out.append(Count("rollouts", "superseded", self.task))
            return [*out, self._note("info", f"release {event.version} waits for the rollout under way to end")]
        self._book.change(known=known)
        return self._begin(event.version, now)

    def _begin(self, version: int, now: float) -> list[Effect]:
        record = self.record
        self._watch.begin(record.number + 1)
        self._next_check_s = now
        waits = 0.0 in self._settings.approve
        reason = "the start waits for approval" if waits else "it waits for the fleet"
        out = self._book.save(
            number=record.number + 1,
            phase=Phase.WAITING,
            candidate=version,
            baseline=record.active,
            began_s=now,
            since_s=now,
            full_s=0.0,
            stage=-1,
            salt=self._entropy(SALT_BYTES),
            share_ppm=0,
            control_ppm=0,
            members=(),
            target=0,
            exposed=0,
            reason=reason,
            awaits=0.0 if waits else -1.0,
            approved=(),
            queued=0 if record.queued <= version else record.queued,
        )
        text = f"rollout {record.number + 1}: release {version} over release {record.active}; {reason}"
        return [*out, Count("rollouts", "created", self.task), self._note("info", text)]

    def _active_seen(self, event: ActiveSeen, now: float) -> list[Effect]:
        record = self.record
        if record.phase is Phase.PROMOTING and event.version == record.candidate:
            return self._end(Phase.PROMOTED, record.reason, now, active=event.version)
        if record.phase is Phase.REVERTING and event.version == record.baseline:
            return self._end(Phase.ROLLED_BACK, record.reason, now, active=event.version)
        if event.version == record.active:
            return []
        if record.phase is Phase.REVERTING and event.version == record.candidate:
            return self._book.save(active=event.version)  # its promotion was signed a moment before it was taken back
        # Somebody made another release active beside this machine: that is where everything goes on from.
        above = [r.sha256 for r in record.known if r.version > event.version]
        self._book.change(
            active=event.version,
            queued=0,
            known=(KnownRelease(version=event.version, sha256=event.sha256, parent=""),),
            withdrawn=(*record.withdrawn, *above)[-WITHDRAWN_MAX:],
        )
        out = self._book.save()
        said = record.said
        if said is not None and (said.state is RolloutPhase.PROMOTED or said.candidate == event.version):
            out += self._book.say_again(now, RolloutPhase.ABORTED)  # metadata alone say now what everybody runs
        if record.is_live:
            return [*out, *self._end(Phase.ABORTED, f"release {event.version} was made the active one", now)]
        return [*out, FollowRounds(self.task)]

    def _unlisted(self, version: int, now: float) -> list[Effect]:
        """What is not listed can be run by nobody: its rollout is over."""
        record, reason = self.record, f"release {version} is not listed any more"
        if record.phase is Phase.REVERTING and version == record.baseline:
            return self._end(Phase.ABORTED, reason, now)
        return self._end(Phase.ROLLED_BACK, reason, now) if record.is_live and version == record.candidate else []

    # -- evidence -----------------------------------------------------------------------------------------------------

    def _measured(self, event: Measured) -> list[Effect]:
        place = self._watch.counts_in(self.record, event.device, event.version)
        if place is not None:
            self._watch.measure(event, is_candidate=place)
        return []

    def _alerted(self, event: DeviceAlerted, now: float) -> list[Effect]:
        place = self._watch.counts_in(self.record, event.device, event.version)
        if place is None:
            return []
        self._watch.alerted(event.device, is_candidate=place)
        if self._uncounted_s is None:
            self._uncounted_s = now
        if not place:
            return []
        critical = self._watch.mass_alerts(self._settings, *self._watch.cohorts(self.record))
        return self._go_back(critical, now) if critical else []

    def _judge(self, *, peek: bool) -> Judgement:
        candidates, controls = self._watch.cohorts(self.record)
        return self._watch.judge(
            self._settings,
            self.record.candidate,
            candidates,
            controls,
            exposed=self.record.exposed,
            compares=not self._is_last(self.record.stage),
            peek=peek,
        )

    def _go_back_if_critical(self, now: float) -> list[Effect]:
        critical = self._judge(peek=True).critical if self.record.phase in WATCHED else ""
        return self._go_back(critical, now) if critical else []

    def _is_last(self, stage: int) -> bool:
        return stage == len(self._settings.stages) - 1

    # -- time ---------------------------------------------------------------------------------------------------------

    def _tick(self, now: float) -> list[Effect]:
        out: list[Effect] = []
        if self._uncounted_s is not None and not self._uncounted_s <= now < self._uncounted_s + TALLIES_S:
            self._uncounted_s = None
            out.append(Persist(tallies_key(self.task), codec.pack(self._watch.tallies)))
        # A clock that was set back must not make the next look wait for what was the time before.
        if self.record.is_live and not self._next_check_s - self._settings.check_s <= now < self._next_check_s:
            self._next_check_s = now + self._settings.check_s
            out += self._look(now)
        said, renew_s = self.record.said, self._book.renew_s
        if said is not None and renew_s is not None and not said.issued_s <= now < renew_s:
            out += self._book.say_again(now)
        return out

    def _look(self, now: float) -> list[Effect]:
        record, settings = self.record, self._settings
        if record.phase in (Phase.WAITING, Phase.PAUSED) and now >= record.since_s + settings.pause_s_max:
            return self._end(Phase.ABORTED, f"nobody decided: {record.reason}", now)
        if record.phase is Phase.WAITING:
            return self._enter(0, now) if record.awaits < 0 else []
        if record.phase not in WATCHED:
            return []
        soaked = record.full_s > 0 and now >= record.full_s + settings.soak_s
        judged = self._judge(peek=not soaked)
        if judged.critical:
            return self._go_back(judged.critical, now)
        if record.phase is not Phase.RUNNING:
            return []
        if record.full_s == 0:
            return self._raise_share(now)
        if not soaked:
            return []
        if judged.verdict is Verdict.PASS:
            return self._enter(record.stage + 1, now)
        if judged.verdict is Verdict.WORSE:
            return self._pause(judged.text, now)
        late = now >= record.full_s + settings.soak_s + settings.patience_s
        return self._pause(f"not enough is known: {judged.text}", now) if late else []

    # -- stages -------------------------------------------------------------------------------------------------------

    def _enter(self, stage: int, now: float) -> list[Effect]:
        """Begin a stage; behind the last one comes promotion."""
        record, settings = self.record, self._settings
        if stage >= len(settings.stages):
            return self._promote("every stage passed", now)
        percent = settings.stages[stage]
        if percent in settings.approve and percent not in record.approved:
            self._book.change(awaits=percent)
            return self._pause(f"stage {percent:g} % waits for approval", now)
        fleet = self._watch.fleet(self.record)
        settled = self._started_s is not None and now >= self._started_s + settings.settle_s
        if not settled or len(fleet) < max(2, FLEET_SHARE_MIN * record.fleet):
            late = now >= max(record.since_s, record.full_s + settings.soak_s) + settings.patience_s
            if settled and late:
                return self._pause(f"{len(fleet)} devices are known, {record.fleet} were before", now)
            return []
        wanted = max(math.ceil(len(fleet) * percent / 100.0), settings.devices_min, record.exposed)
        target = len(fleet) if self._is_last(stage) else min(wanted, len(fleet) // 2)
        self._watch.begin_stage()
        self._book.change(
            phase=Phase.RUNNING, stage=stage, since_s=now, target=target, fleet=len(fleet), reason="", awaits=-1.0
        )
        text = f"release {record.candidate} goes to {target} of {len(fleet)} devices (stage {percent:g} %)"
        return [*self._raise_share(now), self._note("info", text)]

    def _raise_share(self, now: float) -> list[Effect]:
        """Expose as many devices as the stage wants and the hour allows; persists the record whatever it does."""
        record, settings = self.record, self._settings
        fleet = self._watch.fleet(self.record)
        raised = tuple((at, n) for at, n in record.raised if now - HOUR_S < at <= now)
        room = max(0, record.target - record.exposed)
        if settings.exposed_per_hour:
            room = min(room, max(0, settings.exposed_per_hour - sum(n for _, n in raised)))
        exposed, last = record.exposed + room, self._is_last(record.stage)
        full = exposed >= record.target
        if not full and not room and self._book.is_heard_of:
            return self._book.save(full_s=0.0, raised=raised)
        # Cohorts only grow: devices that left the fleet must not take others out of theirs.
        # Nor may devices that joined push them into the control cohort.
        limit, members = PPM if last else PPM - record.control_ppm, list[str]()
        if last and full:
            share = PPM
        elif exposed <= MEMBERS_MAX:
            # Named: who was not counted (unknown, pinned) may be below the share, and would be one too many.
            members = members_of(record.salt, fleet, exposed, record.members, limit)
            share = max([record.share_ppm, *(bucket(record.salt, device) + 1 for device in members)])
        else:
            share = min(max(share_of(record.salt, fleet, exposed), record.share_ppm), limit)
        control = 0 if last else max(control_of(record.salt, fleet, exposed), record.control_ppm)
        return self._book.save_and_say(
            now,
            share_ppm=share,
            control_ppm=min(control, PPM - share),
            members=tuple(members),
            exposed=exposed,
            raised=(*raised, (now, room)) if room else raised,
            full_s=now if full else 0.0,
        )

    def _pause(self, reason: str, now: float) -> list[Effect]:
        changes: dict[str, Any] = {"phase": Phase.PAUSED, "since_s": now, "reason": reason[:TEXT_MAX]}
        out = self._book.save_where_heard(now, **changes)
        text = f"the rollout of release {self.record.candidate} is paused: {reason}"
        return [*out, Count("rollouts", "paused", self.task), self._note("warning", text)]

    # -- ends ---------------------------------------------------------------------------------------------------------

    def _promote(self, reason: str, now: float) -> list[Effect]:
        out = self._book.save(phase=Phase.PROMOTING, since_s=now, reason=reason[:TEXT_MAX], awaits=-1.0)
        return [*out, ActivateRelease(self.task, self.record.candidate)]

    def _go_back(self, reason: str, now: float) -> list[Effect]:
        self._book.note_decision("aggregator", Verb.ROLLBACK.value, now, reason)
        return self._back(reason, now)

    def _back(self, reason: str, now: float) -> list[Effect]:
        """Back to the baseline: at once where metadata call it active, else see `_revert`."""
        if self.record.phase in (Phase.PROMOTING, Phase.PROMOTED):
            return self._revert(reason, now)
        return self._end(Phase.ROLLED_BACK, reason, now)

    def _revert(self, reason: str, now: float) -> list[Effect]:
        """Go back where signed metadata call the candidate active, or may do so any moment.

        Devices go back at once: metadata list the baseline, and new ones may have to wait for a validator.
        """
        withdrawn = self._book.withdrawn_with(self.record.candidate)
        changes: dict[str, Any] = {"phase": Phase.REVERTING, "since_s": now, "reason": reason[:TEXT_MAX]}
        out = self._book.save_and_say(now, withdrawn=withdrawn, awaits=-1.0, **changes)
        return [*out, FollowRounds(self.task), ActivateRelease(self.task, self.record.baseline)]

    def _end(self, phase: Phase, reason: str, now: float, *, active: int | None = None) -> list[Effect]:
        """End the rollout; what devices are told then stays retained until the next one begins."""
        record = self.record
        changes: dict[str, Any] = {
            "phase": phase,
            "since_s": now,
            "reason": reason[:TEXT_MAX],
            "awaits": -1.0,
            "history": self._book.history_with(phase, reason, now),
        }
        if active is not None:
            changes["active"] = active
        if phase is Phase.ROLLED_BACK:
            withdrawn = changes["withdrawn"] = self._book.withdrawn_with(record.candidate)
            if any(r.version == record.queued and r.sha256 in withdrawn for r in record.known):
                changes["queued"] = 0
        # A rollout that no device ever heard of needs no word about its end, unless its release is everybody's now.
        heard = self._book.is_heard_of or phase is Phase.PROMOTED
        out = self._book.save_and_say(now, **changes) if heard else self._book.save(**changes)
        level = "warning" if phase in (Phase.ABORTED, Phase.ROLLED_BACK) else "info"
        text = f"the rollout of release {record.candidate} is {phase.value}: {reason}"
        out += [Count("rollouts", phase.value, self.task), self._note(level, text), FollowRounds(self.task)]
        queued = self.record.queued
        if queued > self.record.active and any(r.version == queued for r in self.record.known):
            out += self._begin(queued, now)
        return out

    # -- people -------------------------------------------------------------------------------------------------------

    def _requested(self, event: Requested, now: float) -> list[Effect]:
        gone = Persist(rollout_requests.request_key(self.task, event.id), None)
        if event.id in self.record.done:
            return [gone]
        self._book.change(done=(*self.record.done, event.id)[-DONE_MAX:])
        about = " ".join(part for part in (event.device, str(event.version) if event.version else "") if part)
        asked = f"{event.by} asked to {event.verb.value} {about}".rstrip()
        try:
            rollout_requests.check(self.record, event)
        except RefusedError as fault:
            self._book.note_decision(event.by, event.verb.value, event.at_s, f"refused: {fault}", about)
            note = self._note("warning", f"{asked}; refused: {fault}")
            return [*self._book.save(), gone, Count("rollout_events", "refused", self.task), note]
        self._book.note_decision(event.by, event.verb.value, event.at_s, "done", about)
        return [*self._carry_out(event, now), gone, self._note("warning", asked)]

    def _carry_out(self, event: Requested, now: float) -> list[Effect]:
        record, reason = self.record, f"{event.verb.value} by {event.by}"
        match event.verb:
            case Verb.CREATE:
                chosen = {r.sha256 for r in record.known if r.version == event.version}
                self._book.change(withdrawn=tuple(d for d in record.withdrawn if d not in chosen))
                return self._begin(event.version, now)
            case Verb.START | Verb.APPROVE:
                return self._go_on(now, full_s=record.full_s, approved=(*record.approved, max(0.0, record.awaits)))
            case Verb.RESUME:
                # What made it pause is not forgiven, but looked at afresh, for a whole soak.
                self._watch.begin_stage()
                fleet = min(record.fleet, self._watch.size)
                return self._go_on(now, full_s=now if record.full_s else 0.0, fleet=fleet)
            case Verb.PAUSE:
                return self._pause(reason, now)
            case Verb.PROMOTE:
                return self._promote(reason, now)
            case Verb.ABORT:
                return self._end(Phase.ABORTED, reason, now)
            case Verb.ROLLBACK:
                return self._back(reason, now)
            case Verb.PIN | Verb.UNPIN:
                pins = {pin.device: pin for pin in record.pins if pin.device != event.device}
                if event.verb is Verb.PIN:
                    pins[event.device] = RolloutPin(device=event.device, version=event.version)
                self._book.change(pins=tuple(pins[device] for device in sorted(pins)))
                return self._book.say_again(now) or self._book.save()

    def _go_on(self, now: float, *, full_s: float, **changes: Any) -> list[Effect]:
        """Watch the stage again, or wait for the first one; the next look decides."""
        self._next_check_s = now
        phase = Phase.RUNNING if self.record.stage >= 0 else Phase.WAITING
        self._book.change(phase=phase, since_s=now, full_s=full_s, reason="", awaits=-1.0, **changes)
        return self._book.save_where_heard(now)

    def _note(self, level: str, text: str) -> Effect:
        return Note(level, f"task {self.task}: {text}")
