"""The aggregator's side of a task's rounds: open → check-in → groups → collect → aggregate → release → pause.

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

from vedette_aggregator.admission import check_checkin, check_upload
from vedette_aggregator.aggregation import Candidate, GlobalModel, aggregate_round
from vedette_aggregator.round_book import RoundBook
from vedette_aggregator.round_events import (
    KINDS,
    TABLE,
    Answer,
    CheckInReceived,
    ModelReplaced,
    PublishCandidate,
    Released,
    ReleaseFailed,
    UploadReceived,
)
from vedette_aggregator.round_messages import RoundMessages
from vedette_aggregator.round_settings import RoundSettings, check_same_model
from vedette_aggregator.round_state import (
    RoundRecord,
    RoundState,
)
from vedette_aggregator.selection import attempt_seed, beacon_of, form_groups, select
from vedette_core.learning.optimiser import ServerOptimiser
from vedette_core.machine import Connected, Count, Effect, Event, Note, Tick
from vedette_schemas.envelope import Signer
from vedette_schemas.errors import PeerError, RefusedError
from vedette_schemas.round import CheckIn, Member, Phase, Plan, Roster, Upload, plan_bytes, read_plan, upload_id
from vedette_schemas.topics import Topics

ANNOUNCE_S: Final = 60.0
"""While a round waits for check-ins its state is published again this often: whoever missed it would wait for ever."""

__all__ = [
    "CheckInReceived",
    "ModelReplaced",
    "PublishCandidate",
    "ReleaseFailed",
    "Released",
    "RoundMachine",
    "UploadReceived",
]


class RoundMachine:
    """The rounds of one task.

    Args:
        topics: the site's topics.
        aggregator: own id, the sender of everything published here.
        signer: own signing key.
        settings: when and with how many.
        plan: the plan that the operator wants; it takes effect with the next release.
        optimiser: the server's optimiser.
        model: what the first round starts from, with the plan that it was released with.
        seed: 32 secret random bytes, for the selection.

    Raises:
        ConfigError: the wanted plan is for another model than the released one.
    """

    def __init__(
        self,
        *,
        topics: Topics,
        aggregator: str,
        signer: Signer,
        settings: RoundSettings,
        plan: Plan,
        optimiser: ServerOptimiser,
        model: GlobalModel,
        seed: bytes,
    ) -> None:
        self.task = plan.task
        self._settings = settings
        self._optimiser = optimiser
        self._seed = seed
        self._wanted_plan, _ = plan_bytes(plan)
        self._say = RoundMessages(topics, aggregator, signer)
        self._plan = check_same_model(plan, model)
        self._book = RoundBook(plan.task, model)
        self._candidate: Candidate | None = None
        self._announce_at: float | None = None

    @classmethod
    def restore(
        cls,
        persisted: Mapping[str, bytes],
        *,
        topics: Topics,
        aggregator: str,
        signer: Signer,
        settings: RoundSettings,
        plan: Plan,
        optimiser: ServerOptimiser,
        model: GlobalModel,
        seed: bytes,
    ) -> tuple[RoundMachine, list[Effect]]:
        """Go on from what was persisted; with nothing persisted, begin.

        Args:
            persisted: every key below ``round/{task}/`` with its value.
            topics: see `RoundMachine`.
            aggregator: see `RoundMachine`.
            signer: see `RoundMachine`.
            settings: see `RoundMachine`.
            plan: see `RoundMachine`.
            optimiser: see `RoundMachine`.
            model: counts only if nothing is persisted.
            seed: see `RoundMachine`.

        Returns:
            The machine, and the effects that finish what a crash interrupted; they are carried out before any event.

        Raises:
            ConfigError: the store holds something else than this machine's records, or another model.
        """
        machine = cls(
            topics=topics,
            aggregator=aggregator,
            signer=signer,
            settings=settings,
            plan=plan,
            optimiser=optimiser,
            model=model,
            seed=seed,
        )
        return machine, machine._resume(plan, persisted)

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
    def waiting(self) -> int:
        """Devices that checked in and are in no roster yet."""
        return len(self._book.waiting)

    @property
    def uploads(self) -> int:
        """Uploads accepted in the current attempt."""
        return len(self._book.contributions)

    @property
    def certificates(self) -> tuple[tuple[str, bytes, bytes], ...]:
        """(device, certificate, intermediate) of every device that ever checked in: what the intake must know."""
        checkins = (self._book.devices[device].checkin for device in sorted(self._book.devices))
        return tuple((c.device, c.certificate, c.intermediate) for c in checkins)

    def next_deadline(self) -> float | None:
        """When a `Tick` is due, epoch seconds; None if only a message or the shell's answer moves the round.

        A `Tick` is due every minute all the same: a clock that is set back moves the deadline away, and only an event
        brings it near again.
        """
        waits = self.state is RoundState.CHECKIN and self._book.record.deadline is None
        return (self._announce_at or 0.0) if waits else self._book.record.deadline

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event.

        Args:
            event: one of `KINDS`.
            now: epoch seconds. It may jump: no state waits longer than its own window after a jump.
        """
        out: list[Effect] = []
        if isinstance(event, (Tick, CheckInReceived, UploadReceived)):
            self._on_time(now, out)
        answer = TABLE[self.state, type(event)]
        match event:
            case Connected():
                self._announce(out)
            case CheckInReceived(body):
                answer = self._on_checkin(body, now, out)
            case UploadReceived(body, sealed):
                answer = self._on_upload(body, sealed, answer, now, out)
            case Released() if answer is Answer.ACCEPT:
                answer = self._on_released(event, now, out)
            case ReleaseFailed(reason) if answer is Answer.ACCEPT:
                self._end(Phase.FAILED, f"the candidate was not released: {reason}", now, out)
            case ModelReplaced(model):
                self._on_replaced(model, now, out)
        out.append(Count("machine_events", answer.value, self.task, KINDS[type(event)]))
        return out

    # -- time ---------------------------------------------------------------------------------------------------------

    def _on_time(self, now: float, out: list[Effect]) -> None:
        window, passed = {
            RoundState.INTERVAL: (self._settings.interval_s, self._open),
            RoundState.CHECKIN: (self._settings.checkin_s, self._form_groups),
            RoundState.COLLECT: (self._settings.collect_s, self._close),
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
        if self._announce_at is not None and now >= self._announce_at:
            self._announce(out)
            self._announce_at = None
        until = now + ANNOUNCE_S
        self._announce_at = until if self._announce_at is None else min(self._announce_at, until)

    def _open(self, now: float, out: list[Effect]) -> None:
        """A new round, from the current model and under the plan that was released with it."""
        self._book.store_model(out)
        self._plan = read_plan(self._book.model.plan)
        number = self.round + 1
        model = self._book.model
        record = replace(
            self._book.record, round=number, plan=model.plan, model_version=model.version, model_sha256=model.sha256
        )
        self._begin_checkin(record, 1, now, out)
        out.append(Count("rounds", "opened", self.task))
        out.append(Note("info", f"{self.task} round {number}: open on release {self._book.model.version}"))

    def _begin_checkin(self, record: RoundRecord, attempt: int, now: float, out: list[Effect]) -> None:
        self._book.rosters, self._announce_at = (), now + ANNOUNCE_S
        until = now + self._settings.checkin_s if self._enough() else None
        self._book.commit(record.checking_in(attempt, until), out)
        self._announce(out)

    def _form_groups(self, now: float, out: list[Effect]) -> None:
        """The check-in window is over: draw the participants and open their groups."""
        limits, where = self._plan.groups, (self.task, self.round, self.attempt)
        selected = select(self._book.waiting, limits.checkins_max, attempt_seed(self._seed, *where))
        keys = {device: self._book.devices[device].checkin.epk for device in selected}
        beacon = beacon_of(self._book.record.transcript, *where, keys)
        grouping = form_groups(
            selected, beacon, self.task, group_size=limits.group_size, survivors_min=limits.survivors_min
        )
        placed = len(grouping.placed)
        if placed < limits.quorum:
            self._retry(f"found {placed} devices in groups, expected a quorum of {limits.quorum}", now, out)
            return
        deadline = now + self._settings.collect_s
        self._book.rosters = tuple(
            Roster(
                task=self.task,
                round=self.round,
                attempt=self.attempt,
                gid=gid,
                model=self._book.record.model_sha256,
                model_version=self._book.record.model_version,
                plan=hashlib.sha256(self._book.record.plan).hexdigest(),
                beacon=beacon,
                members=tuple(Member(device=device, epk=keys[device]) for device in members),
                deadline_s=deadline,
            )
            for gid, members in grouping.members.items()
        )
        self._book.commit(self._book.record.collecting(deadline, beacon, grouping.count, self._book.rosters), out)
        self._book.mark_used(out)
        self._announce(out)
        groups = len(self._book.rosters)
        out.append(Note("info", f"{self.task} round {self.round}.{self.attempt}: {placed} devices in {groups} groups"))

    def _close(self, now: float, out: list[Effect]) -> None:
        """The uploads are in, or their time is over."""
        limits = self._plan.groups
        counts = {r.gid: sum(m.device in self._book.contributions for m in r.members) for r in self._book.rosters}
        surviving = [r for r in self._book.rosters if counts[r.gid] >= limits.survivors_min]
        total = sum(counts[r.gid] for r in surviving)
        if total < limits.quorum:
            found = (
                f"found {len(self._book.contributions)} uploads, {total} in groups of {limits.survivors_min} or more"
            )
            self._retry(f"{found}, expected a quorum of {limits.quorum}", now, out)
            return
        try:
            candidate = self._aggregate(surviving)
        except (RefusedError, PeerError) as fault:  # the same input would fail in every attempt alike
            self._end(Phase.FAILED, str(fault), now, out)
            return
        self._book.commit(self._book.record.releasing(candidate.contributors, self._wanted_plan), out)
        out.append(PublishCandidate(candidate, self._wanted_plan))

    def _aggregate(self, surviving: list[Roster]) -> Candidate:
        members = {m.device for r in surviving for m in r.members}
        counted = {device: c for device, c in self._book.contributions.items() if device in members}
        self._candidate = aggregate_round(self._plan, surviving, counted, self._book.model, self._optimiser)
        return self._candidate

    # -- messages -----------------------------------------------------------------------------------------------------

    def _on_checkin(self, body: CheckIn, now: float, out: list[Effect]) -> Answer:
        known = self._book.devices.get(body.device)
        if known is None or body != known.checkin:
            try:
                check_checkin(body, read_plan(self._book.model.plan), known.checkin.seq if known else 0)
            except PeerError as fault:
                return self._refuse(body.device, body.id, fault, out)
            self._book.add_checkin(body, out)
        out.append(self._say.receipt(body.device, body.id))
        if self.state is RoundState.CHECKIN and self._book.record.deadline is None and self._enough():
            until = now + self._settings.checkin_s
            self._book.commit(replace(self._book.record, deadline=until, checkin_until_s=until), out)
            self._announce(out)
        return Answer.ACCEPT

    def _on_upload(self, body: Upload, sealed: bytes, answer: Answer, now: float, out: list[Effect]) -> Answer:
        if self._is_known(body):
            first = self._book.contributions.get(body.device)
            if first is not None and hashlib.sha256(sealed).digest() != first.digest:
                out.append(Note("warning", f"{body.device}: found other bytes under {body.id}; the first ones count"))
            out.append(self._say.receipt(body.device, body.id))
            return Answer.ACCEPT
        try:
            self._check_upload(body, answer)
        except PeerError as fault:
            return self._refuse(body.device, body.id, fault, out)
        self._book.add_upload(body, sealed, out)
        out.append(self._say.receipt(body.device, body.id))
        if len(self._book.contributions) == sum(len(r.members) for r in self._book.rosters):
            self._close(now, out)
        return Answer.ACCEPT

    def _is_known(self, body: Upload) -> bool:
        """Whether this upload was accepted before, in this attempt or as the device's last one."""
        belongs = (body.round, body.attempt)
        if body.id != upload_id(self.task, *belongs, body.device):
            return False
        known = self._book.devices.get(body.device)
        return (known is not None and known.accepted == belongs) or (
            belongs == (self.round, self.attempt) and body.device in self._book.contributions
        )

    def _check_upload(self, body: Upload, answer: Answer) -> None:
        current = f"{self.round}.{self.attempt}"
        who = f"round {current}: upload of {body.device}"
        if (body.round, body.attempt) != (self.round, self.attempt):
            raise PeerError(f"{who}: found round {body.round}.{body.attempt}, expected {current}", reason="round")
        if answer is not Answer.ACCEPT:
            raise PeerError(f"{who}: found it after the round was closed, expected it earlier", reason="late")
        roster = self._book.roster_of(body.device)
        if roster is None:
            raise PeerError(f"{who}: found a device that is in no group, expected a member", reason="member")
        check_upload(body, roster, self._plan)

    def _refuse(self, device: str, message_id: str, fault: PeerError, out: list[Effect]) -> Answer:
        out.append(self._say.receipt(device, message_id, f"{fault.reason}: {fault}"))
        out.append(Note("info", f"{message_id} rejected: {fault}"))
        return Answer.REJECT

    # -- ends ---------------------------------------------------------------------------------------------------------

    def _on_released(self, event: Released, now: float, out: list[Effect]) -> Answer:
        if event.version <= self._book.model.version:
            return Answer.DISCARD  # the answer to an earlier candidate, once more
        plan = self._book.record.offered_plan
        if event.plan_sha256 != hashlib.sha256(plan).hexdigest():
            raise ValueError(f"release {event.version}: published with another plan than was handed over")
        candidate = self._candidate
        assert candidate is not None, "there is one while it is being released"
        self._book.record = replace(self._book.record, transcript=candidate.transcript)
        replaced = self._book.take_model(
            GlobalModel(event.version, event.model_sha256, plan, self.round, candidate.weights, candidate.optimiser),
            out,
        )
        self._end(Phase.DONE, "", now, out)
        out += replaced
        return Answer.ACCEPT

    def _on_replaced(self, model: GlobalModel, now: float, out: list[Effect]) -> None:
        check_same_model(read_plan(self._wanted_plan), model)
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
        out.append(Note("warning", f"{self.task} round {self.round}.{self.attempt}: {reason}; trying again"))
        gone = self._book.settle(out)
        self._begin_checkin(replace(self._book.record, reason=reason), self.attempt + 1, now, out)
        out += gone
        out.append(Count("rounds", "retried", self.task))

    def _end(self, phase: Phase, reason: str, now: float, out: list[Effect]) -> None:
        gone = self._book.settle(out)
        self._candidate = None
        last = 0 < self._settings.rounds_max <= self._book.record.rounds + 1
        self._book.commit(
            self._book.record.ended(phase, reason, None if last else now + self._settings.interval_s), out
        )
        out += gone
        self._announce(out)
        done = phase is Phase.DONE
        ended = f"{self.task} round {self.round}.{self.attempt}"
        out.append(Count("rounds", "released" if done else "failed", self.task))
        if done:
            out.append(Note("info", f"{ended}: released as version {self._book.model.version}"))
        else:
            out.append(Note("error", f"{ended} failed: {reason}; release {self._book.model.version} stays"))

    def _announce(self, out: list[Effect]) -> None:
        """Publish the retained state: rosters before the state that sends devices to them."""
        if self._book.record.phase == Phase.COLLECT:
            out += [self._say.roster(roster) for roster in self._book.rosters]
        if self._book.record.phase:
            out.append(self._say.round(self.task, self._book.record))

    def _enough(self) -> bool:
        limits = self._plan.groups
        return len(self._book.waiting) >= max(limits.quorum, limits.survivors_min)

    def _resume(self, wanted: Plan, persisted: Mapping[str, bytes]) -> list[Effect]:
        out = self._book.load(persisted)
        check_same_model(wanted, self._book.model)
        self._plan = read_plan(self._book.record.plan)
        last = 0 < self._settings.rounds_max <= self._book.record.rounds
        if self.state is RoundState.FINISHED and not last:
            self._book.record = replace(self._book.record, state=RoundState.INTERVAL, deadline=0.0)
        elif self.state is RoundState.INTERVAL and last:
            self._book.record = replace(self._book.record, state=RoundState.FINISHED, deadline=None)
        self._announce(out)
        if self.state is RoundState.RELEASING:
            out.append(PublishCandidate(self._aggregate(self._book.surviving), self._book.record.offered_plan))
        return out
