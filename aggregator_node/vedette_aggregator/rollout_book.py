"""A rollout machine's record: every change of it is persisted, and what devices are told follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from vedette_aggregator.rollout_messages import RolloutMessages
from vedette_aggregator.rollout_state import (
    AUDIT_MAX,
    HISTORY_MAX,
    TEXT_MAX,
    WITHDRAWN_MAX,
    AuditEntry,
    PastRollout,
    Phase,
    RolloutRecord,
    record_key,
)
from vedette_core.machine import Effect, Persist
from vedette_schemas import codec
from vedette_schemas.rollout import RolloutPhase, RolloutState

SAID: Final[Mapping[Phase, RolloutPhase]] = {
    Phase.RUNNING: RolloutPhase.RUNNING,
    Phase.PAUSED: RolloutPhase.PAUSED,
    Phase.PROMOTED: RolloutPhase.PROMOTED,
    Phase.ABORTED: RolloutPhase.ABORTED,
    Phase.REVERTING: RolloutPhase.ROLLED_BACK,
    Phase.ROLLED_BACK: RolloutPhase.ROLLED_BACK,
}
"""What devices are told; in the other phases what they were told last stays true."""


class RolloutBook:
    """The record of a task, and the words that follow from it.

    Args:
        task: the task.
        record: as it was persisted.
        messages: seals what devices are told.
        state_life_s: how long a state counts.
    """

    def __init__(self, task: str, record: RolloutRecord, messages: RolloutMessages, state_life_s: float) -> None:
        self.task: Final = task
        self.record = record
        self._messages, self._state_life_s = messages, state_life_s

    @property
    def is_heard_of(self) -> bool:
        """Whether devices were told of the newest rollout."""
        said = self.record.said
        return said is not None and said.rollout == self.record.number

    @property
    def renew_s(self) -> float | None:
        """When the state that was said last must be said again."""
        said = self.record.said
        return None if said is None else (said.issued_s + said.expires_s) / 2

    def change(self, **changes: Any) -> None:
        """Change the record; whoever does so saves it before anything else happens."""
        self.record = self.record.model_copy(update=changes)

    def save(self, **changes: Any) -> list[Effect]:
        """Change and persist the record."""
        self.change(**changes)
        return [Persist(record_key(self.task), codec.pack(self.record))]

    def save_where_heard(self, now: float, **changes: Any) -> list[Effect]:
        """Change and persist the record; devices are told only if one of them ever heard of the rollout."""
        return self.save_and_say(now, **changes) if self.is_heard_of else self.save(**changes)

    def save_and_say(self, now: float, **changes: Any) -> list[Effect]:
        """Change and persist the record, then tell devices where the rollout is."""
        self.change(**changes)
        record = self.record
        said = RolloutState(
            task=self.task,
            rollout=record.number,
            seq=record.seq + 1,
            candidate=record.candidate,
            baseline=record.baseline,
            share_ppm=record.share_ppm,
            control_ppm=record.control_ppm,
            salt=record.salt,
            state=SAID[record.phase],
            issued_s=now,
            expires_s=now + self._state_life_s,
            pins=record.pins,
            members=record.members,
        )
        return [*self.save(seq=said.seq, said=said), self._messages.state(said)]

    def say_again(self, now: float, state: RolloutPhase | None = None) -> list[Effect]:
        """Sign what was said last once more, for as long again, with the pins of now; nothing if nothing was said.

        Args:
            now: epoch seconds.
            state: what became of that rollout since; as it was without it.
        """
        said = self.record.said
        if said is None:
            return []
        changes = {"seq": self.record.seq + 1, "issued_s": now, "expires_s": now + self._state_life_s}
        again = said.model_copy(update={**changes, "pins": self.record.pins, "state": state or said.state})
        return [*self.save(seq=again.seq, said=again), self._messages.state(again)]

    def repeat(self) -> list[Effect]:
        """Put what was said last on its retained topic again, as it is."""
        return [] if self.record.said is None else [self._messages.state(self.record.said)]

    def note_decision(self, by: str, verb: str, at_s: float, outcome: str, argument: str = "") -> None:
        """Write down who decided what; not persisted yet."""
        entry = AuditEntry(
            at_s=at_s,
            by=by[:TEXT_MAX],
            verb=verb,
            argument=argument[:TEXT_MAX],
            outcome=outcome[:TEXT_MAX],
            rollout=self.record.number,
        )
        self.change(audit=(*self.record.audit, entry)[-AUDIT_MAX:])

    def history_with(self, phase: Phase, reason: str, now: float) -> tuple[PastRollout, ...]:
        """The rollouts that have ended, and the newest one as it ends now."""
        record = self.record
        past = PastRollout(
            number=record.number,
            candidate=record.candidate,
            baseline=record.baseline,
            phase=phase,
            reason=reason[:TEXT_MAX],
            began_s=record.began_s,
            ended_s=now,
            exposed=record.exposed,
        )
        return (*(p for p in record.history if p.number != record.number), past)[-HISTORY_MAX:]

    def withdrawn_with(self, version: int) -> tuple[str, ...]:
        """What is withdrawn, with a release and everything known that was made from it."""
        before = self.record.withdrawn
        return (*before, *(d for d in self._descendants(version) if d not in before))[-WITHDRAWN_MAX:]

    def _descendants(self, version: int) -> list[str]:
        found = [r.sha256 for r in self.record.known if r.version == version]
        for release in sorted(self.record.known, key=lambda r: r.version):
            if release.parent in found and release.sha256 not in found:
                found.append(release.sha256)
        return found
