"""The aggregator's side of a task's rounds: open → check-in → groups → collect → unmask → aggregate → release → pause.

Pure: events carry verified bodies (`vedette_aggregator.intake`), `now` comes from the shell, and what must happen comes
back as effects in the order in which it must happen. A receipt stands behind the `Persist` of what it acknowledges;
writing the round's own record is what commits a transition, so that a crash between any two effects is repaired by
`RoundMachine.restore`.

Source: `docs/protocol.md` §5.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from vedette_aggregator.aggregation import Aggregate, GlobalModel
from vedette_aggregator.round_book import RoundBook
from vedette_aggregator.round_events import (
    KINDS,
    TABLE,
    Answer,
    CheckInReceived,
    ModelReplaced,
    PublishCandidate,
    Quarantined,
    Released,
    ReleaseFailed,
    RootTrained,
    RoundAsked,
    SharesReceived,
    TrainRoot,
    UploadReceived,
    VoteReceived,
)
from vedette_aggregator.round_formation import form
from vedette_aggregator.round_memory import RoundMemory, told
from vedette_aggregator.round_messages import RoundMessages, few
from vedette_aggregator.round_openings import Openings
from vedette_aggregator.round_planning import Planner
from vedette_aggregator.round_readiness import Readiness
from vedette_aggregator.round_reception import Reception
from vedette_aggregator.round_settings import check_same_model
from vedette_aggregator.round_setup import RoundParts
from vedette_aggregator.round_state import RoundRecord, RoundState
from vedette_core.learning.layout import Float32
from vedette_core.machine import Connected, Count, Effect, Event, Note, Tick
from vedette_schemas.errors import ConfigError, PeerError, RefusedError
from vedette_schemas.round import CheckIn, Phase, Plan, epoch_of, read_plan

ANNOUNCE_S: Final = 60.0
"""While a round waits for check-ins its state is published again this often: whoever missed it would wait for ever."""


class RoundMachine:
    """The rounds of one task.

    Args:
        parts: what they are made with.
        model: what the first round starts from, with the plan that it was released with.

    Raises:
        ConfigError: the wanted plan is for another model than the released one.
    """

    def __init__(self, parts: RoundParts, model: GlobalModel) -> None:
        self.task = parts.plan.task
        self._parts = parts
        self._settings = parts.settings
        self._planner = Planner(parts.settings, parts.plan)
        self._say = RoundMessages(parts.topics, parts.aggregator, parts.signer)
        self._plan = check_same_model(parts.plan, model)
        self._book = RoundBook(self.task, model)
        self._reception = Reception(self._book, self._say)
        self._ready = Readiness(self._book, parts.settings)
        self._memory = RoundMemory(self._book.keys, self._plan)
        self._openings = Openings(self._book.keys, self._say, self._plan)
        self._root: Float32 | None = None
        self._root_done = not parts.has_root
        self._announce_at: float | None = None

    @classmethod
    def restore(
        cls, persisted: Mapping[str, bytes], parts: RoundParts, model: GlobalModel
    ) -> tuple[RoundMachine, list[Effect]]:
        """Go on from what was persisted; with nothing persisted, begin.

        Args:
            persisted: every key below ``round/{task}/`` and ``privacy/{task}/`` with its value.
            parts: see `RoundMachine`.
            model: counts only if nothing is persisted.

        Returns:
            The machine, and the effects that finish what a crash interrupted; they are carried out before any event.

        Raises:
            ConfigError: the store holds something else than this machine's records, or another model.
        """
        machine = cls(parts, model)
        return machine, machine._resume(parts.plan, persisted)

    @property
    def state(self) -> RoundState:
        """Where the machine is."""
        return self._book.record.state

    @property
    def round(self) -> int:
        """Current round, or the last one."""
        return self._book.record.round

    @property
    def attempt(self) -> int:
        """Current attempt of it."""
        return self._book.record.attempt

    @property
    def model(self) -> GlobalModel:
        """What the next round starts from."""
        return self._book.model

    @property
    def memory(self) -> RoundMemory:
        """Ledger, norms, suspicions."""
        return self._memory

    @property
    def waiting(self) -> int:
        """Devices that checked in and are in no roster yet."""
        return len(self._book.waiting)

    @property
    def uploads(self) -> int:
        """Uploads accepted in the current attempt."""
        return len(self._book.contributions)

    @property
    def members(self) -> int:
        """Devices in the rosters of the current attempt."""
        return sum(len(roster.members) for roster in self._book.rosters)

    @property
    def _where(self) -> str:
        return f"{self.task} round {self.round}.{self.attempt}"

    @property
    def certificates(self) -> tuple[tuple[str, str, bytes, bytes], ...]:
        """(device, role, certificate, intermediate) of everybody who ever checked in: what the intake must know."""
        checkins = (self._book.devices[device].checkin for device in sorted(self._book.devices))
        return tuple((c.device, c.role, c.certificate, c.intermediate) for c in checkins)

    def next_deadline(self) -> float | None:
        """When a `Tick` is due, epoch seconds; None if only a message or the shell's answer moves the round.

        A `Tick` is due every minute all the same: only an event brings near what a clock that was set back moved away.
        """
        deadline = self._book.record.deadline
        if self.state is RoundState.CHECKIN and deadline is None:
            return self._announce_at or 0.0
        if self.state is RoundState.UNMASK and self._root_done and not self._openings.outcome().waiting:
            return 0.0  # a restart came between the last answer and what it led to
        ask_at = self._openings.next_deadline if self.state is RoundState.UNMASK else None
        return min(d for d in (deadline, ask_at) if d is not None) if deadline is not None else ask_at

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event.

        Args:
            event: one of `KINDS`.
            now: epoch seconds. It may jump: no state waits longer than its own window after a jump.
        """
        out: list[Effect] = []
        if isinstance(event, (Tick, CheckInReceived, UploadReceived, VoteReceived, SharesReceived)):
            self._on_time(now, out)
        answer = TABLE[self.state, type(event)]
        match event:
            case Connected():
                self._announce(out)
                if self.state is RoundState.UNMASK:
                    self._openings.ask(now, out)
            case Tick() if self.state is RoundState.UNMASK:
                self._openings.tick(now, out)
                self._go_on(now, out)
            case CheckInReceived(body):
                answer = self._on_checkin(body, now, out)
            case UploadReceived():
                answer = self._on_upload(event, answer, now, out)
            case VoteReceived() | SharesReceived():
                answer = self._on_answer(event, answer, now, out)
            case RootTrained() if answer is Answer.ACCEPT:
                answer = self._on_root(event, now, out)
            case Quarantined(devices):
                self._ready.quarantined = devices
                self._begin_window(now, out)
            case Released() if answer is Answer.ACCEPT:
                answer = self._on_released(event, now, out)
            case ReleaseFailed(reason) if answer is Answer.ACCEPT:
                self._end(Phase.FAILED, f"the candidate was not released: {reason}", now, out)
            case ModelReplaced(model):
                self._on_replaced(model, now, out)
            case RoundAsked() if answer is Answer.ACCEPT:
                self._book.bring_forward(self._settings.schedule.next_open(now, float("-inf")), out)
        out.append(Count("machine_events", answer.value, self.task, KINDS[type(event)]))
        return out

    # -- time ---------------------------------------------------------------------------------------------------------

    def _on_time(self, now: float, out: list[Effect]) -> None:
        window, passed = {
            RoundState.INTERVAL: (self._ready.wait_max_s(now), self._open),
            RoundState.CHECKIN: (self._settings.checkin_s, self._form_groups),
            RoundState.COLLECT: (self._settings.collect_s, self._close),
            RoundState.UNMASK: (self._settings.unmask_s, self._open_deadline),
        }.get(self.state, (0.0, self._close))
        deadline = self._book.record.deadline
        if deadline is None:
            self._on_waiting(now, out)
            return
        if deadline > now + window:  # the clock went back: wait one whole window at most
            self._book.record = replace(self._book.record, deadline=now + window)
        elif deadline <= now:
            passed(now, out)

    def _on_waiting(self, now: float, out: list[Effect]) -> None:
        if self.state is not RoundState.CHECKIN:
            return
        if self._ready.gives_up(self._plan, now):
            self._end(Phase.FAILED, "too few devices check in; their budget of the period may be used up", now, out)
            return
        if self._announce_at is not None and now >= self._announce_at:
            self._announce(out)
            self._announce_at = None
        until = now + ANNOUNCE_S
        self._announce_at = until if self._announce_at is None else min(self._announce_at, until)

    def _open(self, now: float, out: list[Effect]) -> None:
        """A new round, from the current model and under the plan that was released with it."""
        if self._settings.schedule.missed(self._book.record.deadline or now, now):
            until = self._settings.schedule.next_open(now, now)
            if until > now:  # quiet now, or too late for a grid: the next point of it
                self._book.store_model(out)
                self._book.commit(replace(self._book.record, deadline=until, next_round_s=until), out)
                self._announce(out)
                return
        self._book.store_model(out)
        self._take_plan(read_plan(self._book.model.plan))
        number, model = self.round + 1, self._book.model
        record = replace(
            self._book.record, round=number, plan=model.plan, model_version=model.version, model_sha256=model.sha256
        )
        if (number - 1) % self._plan.groups.epoch_rounds == 0:
            record = replace(record, excluded=())  # other groups: everybody gets another chance
        out += self._memory.fold(number)
        self._begin_checkin(record, 1, now, out)
        said = f"{self.task} round {number}: open on release {model.version}"
        out += [Count("rounds", "opened", self.task), Note("info", said)]

    def _take_plan(self, plan: Plan) -> None:
        self._plan = plan
        self._memory.take_plan(plan)
        self._openings = Openings(self._book.keys, self._say, plan)

    def _begin_checkin(self, record: RoundRecord, attempt: int, now: float, out: list[Effect]) -> None:
        self._book.rosters, self._announce_at = (), now + ANNOUNCE_S
        self._root, self._root_done = None, not self._parts.has_root
        self._book.record = record
        self._ready.begin(now)
        until = now + self._settings.checkin_s if self._ready.enough(self._plan) else None
        self._book.record = record.checking_in(attempt, until)
        if self._ready.possible(self._plan):
            self._book.commit(self._book.record, out)
            self._announce(out)
        else:  # counted as a round, so that the epoch ends; open is never written: a crash would leave it so for ever
            self._end(Phase.FAILED, "too few devices are left without those that dealt wrong shares", now, out)

    def _form_groups(self, now: float, out: list[Effect]) -> None:
        """The check-in window is over: draw the participants and open their groups."""
        groups = self._plan.groups
        try:
            beacon = self._parts.beacon(epoch_of(self.round, groups.epoch_rounds))
        except ConfigError as fault:
            self._end(Phase.FAILED, str(fault), now, out)
            return
        deadline = now + self._ready.collect_s()
        eligible = self._memory.eligible(self._ready.candidates(), self.round)
        formed = form(self._book, self._plan, self._parts, eligible, beacon=beacon, now=now, deadline_s=deadline)
        placed = sum(len(r.members) for r in formed)
        if placed < groups.quorum:
            without = self.waiting - len(eligible)
            budget = f" ({without} are out of budget, blamed or quarantined)" if without else ""
            self._retry(f"found {placed} devices in groups{budget}, expected a quorum of {groups.quorum}", now, out)
            return
        self._book.rosters = formed
        self._book.commit(self._book.record.collecting(now, deadline, beacon, groups.groups, formed), out)
        self._book.mark_used(out)
        self._announce(out)
        self._ask_root(out)
        out.append(Note("info", f"{self._where}: {placed} devices in {len(formed)} groups"))

    def _ask_root(self, out: list[Effect]) -> None:
        if not self._root_done:
            out.append(TrainRoot(self.task, self.round, self.attempt, self._plan, self._book.model.weights))

    def _close(self, now: float, out: list[Effect]) -> None:
        """The uploads are in, or their time is over."""
        groups = self._plan.groups
        surviving = self._book.surviving(groups.survivors_min)
        total = sum(map(len, surviving.values()))
        if total < groups.quorum:
            found = f"found {self.uploads} uploads, {total} in groups of {groups.survivors_min} or more"
            self._retry(f"{found}, expected a quorum of {groups.quorum}", now, out)
            return
        until = now + self._settings.unmask_s
        self._book.commit(self._book.record.unmasking(until, surviving), out)
        self._announce(out)
        if self._plan.masked:
            self._openings.begin(self._book)
            self._openings.ask(now, out)
        else:
            self._try_aggregate(now, out)

    # -- messages -----------------------------------------------------------------------------------------------------

    def _on_checkin(self, body: CheckIn, now: float, out: list[Effect]) -> Answer:
        answer = self._reception.checkin(body, read_plan(self._book.model.plan), out)
        self._begin_window(now, out)
        return answer

    def _begin_window(self, now: float, out: list[Effect]) -> None:
        """Where a round waited for enough check-ins, and they are there: the last ones have their time from now."""
        waits = self.state is RoundState.CHECKIN and self._book.record.deadline is None
        if waits and self._ready.enough(self._plan):
            until = now + self._settings.checkin_s
            self._book.commit(replace(self._book.record, deadline=until, checkin_until_s=until), out)
            self._announce(out)

    def _on_upload(self, event: UploadReceived, answer: Answer, now: float, out: list[Effect]) -> Answer:
        answer = self._reception.upload(event.body, event.sealed, self._plan, answer, now, out)
        if self.state is RoundState.COLLECT and self._ready.collected(self._plan):
            self._close(now, out)
        return answer

    def _on_answer(self, event: VoteReceived | SharesReceived, answer: Answer, now: float, out: list[Effect]) -> Answer:
        body = event.body
        if answer is not Answer.ACCEPT or (body.round, body.attempt) != (self.round, self.attempt):
            out.append(self._say.receipt(body.member, body.id))
            return Answer.DISCARD
        try:
            if isinstance(event, VoteReceived):
                self._openings.take_vote(event.body, event.sealed, now, out)
            else:
                self._openings.take_shares(event.body, event.sealed, out)
        except PeerError as fault:
            return self._reception.refuse(body.member, body.id, fault, out)
        out.append(self._say.receipt(body.member, body.id))
        self._go_on(now, out)
        return Answer.ACCEPT

    def _on_root(self, event: RootTrained, now: float, out: list[Effect]) -> Answer:
        if (event.round, event.attempt) != (self.round, self.attempt):
            return Answer.DISCARD
        self._root, self._root_done = event.delta, True
        if self.state is RoundState.UNMASK:
            self._go_on(now, out)
        return Answer.ACCEPT

    # -- opening ------------------------------------------------------------------------------------------------------

    def _go_on(self, now: float, out: list[Effect]) -> None:
        """Aggregate as soon as nothing can be added any more; a group with somebody to blame in it stays closed."""
        excluded = {*self._book.record.excluded, *self._openings.blamed()}
        new = sorted(excluded.difference(self._book.record.excluded))
        if new:
            self._book.record = replace(self._book.record, excluded=tuple(sorted(excluded)))
            out.append(Note("warning", f"{self._where}: wrong shares of {few(new)}, who sits the epoch out"))
        if not self._openings.outcome().waiting:
            self._try_aggregate(now, out)

    def _open_deadline(self, now: float, out: list[Effect]) -> None:
        """The committees' time is over: go on with the groups that are open."""
        silent = self._openings.silent()
        if silent:
            out.append(Note("warning", f"{self._where}: no answer of {few(silent)}"))
        self._root_done = True  # whoever trains on the root set had its time, too
        self._try_aggregate(now, out)

    def _try_aggregate(self, now: float, out: list[Effect]) -> None:
        if not self._root_done:
            return
        opened = self._openings.open_groups(self._book, self._plan)
        total = sum(len(group.digests) for group in opened)
        if total < self._plan.groups.quorum:
            stuck = f"found {total} uploads in {len(opened)} groups that could be opened"
            self._retry(f"{stuck}, expected a quorum of {self._plan.groups.quorum}", now, out)
            return
        try:
            made = self._memory.aggregate(opened, self._book.model, self._parts, self._root, out)
        except RefusedError as fault:
            if fault.rule == "quorum":  # other groups may hold another time
                self._retry(str(fault), now, out)
            else:
                self._end(Phase.FAILED, str(fault), now, out)
            return
        self._release(made, out)

    def _release(self, made: Aggregate, out: list[Effect]) -> None:
        """Ledger first, then the candidate, then the transition; only then does anything of it leave."""
        out += self._memory.keep(made, self._root, self._settings.suspicion_min)
        self._book.keep_candidate(made.candidate, out)
        plan = self._planner.next_plan(
            self._plan,
            next_round=self.round + 1,
            devices=self._book.expected(self.round - self._plan.groups.epoch_rounds),
            beacon=self._parts.beacon,
            clipped_share=made.clipped_share,
        )
        gone = [*self._book.settle(out), *self._openings.erase()]
        self._book.commit(self._book.record.releasing(plan), out)
        out.append(PublishCandidate(made.candidate, plan))
        out += gone
        out += told(made)

    # -- ends ---------------------------------------------------------------------------------------------------------

    def _on_released(self, event: Released, now: float, out: list[Effect]) -> Answer:
        if event.version <= self._book.model.version:
            return Answer.DISCARD  # the answer to an earlier candidate, once more
        plan = self._book.record.offered_plan
        if event.plan_sha256 != hashlib.sha256(plan).hexdigest():
            raise ValueError(f"release {event.version}: published with another plan than was handed over")
        candidate = self._book.offered
        self._book.record = replace(self._book.record, transcript=candidate.transcript)
        replaced = self._book.take_model(
            GlobalModel(event.version, event.model_sha256, plan, self.round, candidate.weights, candidate.optimiser),
            out,
        )
        self._end(Phase.DONE, "", now, out)
        out += replaced
        return Answer.ACCEPT

    def _on_replaced(self, model: GlobalModel, now: float, out: list[Effect]) -> None:
        check_same_model(self._parts.plan, model)
        replaced = self._book.take_model(model, out)
        if self.state in (RoundState.INTERVAL, RoundState.FINISHED):
            self._book.commit(self._book.record, out)
        else:
            self._end(Phase.FAILED, f"release {model.version} was made the active one", now, out)
        out += replaced

    def _retry(self, reason: str, now: float, out: list[Effect]) -> None:
        """The attempt failed: check-in again, with fresh keys, or give the round up."""
        if self.attempt >= self._settings.attempts_max:
            self._end(Phase.FAILED, f"attempt {self.attempt}: {reason}", now, out)
            return
        out.append(Note("warning", f"{self._where}: {reason}; trying again"))
        gone = [*self._book.settle(out), *self._openings.erase()]
        self._begin_checkin(replace(self._book.record, reason=reason), self.attempt + 1, now, out)
        out += gone
        out.append(Count("rounds", "retried", self.task))

    def _end(self, phase: Phase, reason: str, now: float, out: list[Effect]) -> None:
        gone = [*self._book.settle(out), *self._openings.erase(), *self._book.drop_candidate()]
        last = 0 < self._settings.rounds_max <= self._book.record.rounds + 1
        until = None if last else self._settings.schedule.next_open(now, now)
        self._book.commit(self._book.record.ended(phase, reason, until), out)
        out += gone
        self._announce(out)
        version, done = self._book.model.version, phase is Phase.DONE
        out.append(Count("rounds", "released" if done else "failed", self.task))
        said = f": released as version {version}" if done else f" failed: {reason}; release {version} stays"
        out.append(Note("info" if done else "error", self._where + said))

    def _announce(self, out: list[Effect]) -> None:
        """Publish the retained state: rosters before the state that sends devices to them."""
        if self._book.record.phase == Phase.COLLECT:
            out += [self._say.roster(roster) for roster in self._book.rosters]
        if self._book.record.phase:
            out.append(self._say.round(self.task, self._book.record))

    def _resume(self, wanted: Plan, persisted: Mapping[str, bytes]) -> list[Effect]:
        out = self._book.load(persisted)
        check_same_model(wanted, self._book.model)
        self._take_plan(read_plan(self._book.record.plan))
        unfinished = (self.round, self.attempt) if self.state is RoundState.UNMASK else None
        self._memory.load(persisted, unfinished)
        last = 0 < self._settings.rounds_max <= self._book.record.rounds
        if self.state is RoundState.FINISHED and not last:
            self._book.record = replace(self._book.record, state=RoundState.INTERVAL, deadline=0.0)
        elif self.state is RoundState.INTERVAL and last:
            self._book.record = replace(self._book.record, state=RoundState.FINISHED, deadline=None)
        self._announce(out)
        if self.state in (RoundState.COLLECT, RoundState.UNMASK):
            self._ask_root(out)
        if self.state is RoundState.UNMASK and self._plan.masked:
            self._openings.begin(self._book)
            self._openings.restore(persisted)
        if self.state is RoundState.RELEASING:
            out.append(PublishCandidate(self._book.offered, self._book.record.offered_plan))
        return out
