"""What a task's rounds remember of each other: the privacy ledger, usual norms, and whose groups stand out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgpack

from vedette_aggregator.aggregation import Aggregate, GlobalModel, OpenedGroup, SpentError, aggregate_round
from vedette_aggregator.company import Company
from vedette_aggregator.round_events import Suspect
from vedette_aggregator.round_setup import RoundParts
from vedette_aggregator.round_state import FORMAT, RoundKeys, below, read_record, unreadable
from vedette_core.learning.layout import Float32
from vedette_core.learning.robust.norm_gate import NormHistory
from vedette_core.learning.suspicion import Suspicions
from vedette_core.machine import Count, Effect, Note, Persist
from vedette_core.privacy.events import FoldedHistory, PrivacyEvent
from vedette_core.privacy.ledger import Budget, Ledger
from vedette_schemas.errors import ConfigError
from vedette_schemas.round import Plan, epoch_of


class RoundMemory:
    """The memory of one task.

    Args:
        keys: where it is persisted.
        plan: the current round's.

    Attributes:
        ledger: releases and what they cost.
        norms: usual norms of the groups' means.
        suspicions: of devices, by the company that they keep from epoch to epoch.
    """

    def __init__(self, keys: RoundKeys, plan: Plan) -> None:
        self._keys, self._plan = keys, plan
        self.ledger = Ledger(plan.task, Budget.of(plan.privacy))
        self.norms = NormHistory()
        self.suspicions = Suspicions()
        self._company = Company(0)

    def load(self, persisted: Mapping[str, bytes], unfinished: tuple[int, int] | None = None) -> None:
        """Take over what was persisted.

        Args:
            persisted: every record.
            unfinished: (round, attempt) that will be aggregated again: what it left here is not counted twice, and
                does not change what comes of it.

        Raises:
            ConfigError: the store holds something else.
        """
        keys = self._keys
        self.ledger = read_ledger(keys, Budget.of(self._plan.privacy), persisted)
        if keys.memory in persisted:
            plain = read_record(persisted[keys.memory], keys.memory)
            try:
                if plain["place"] == unfinished:
                    plain = read_record(plain["before"], keys.memory)
                self.norms = NormHistory.from_list(list(plain["norms"]))
                self.suspicions = Suspicions.from_bytes(plain["suspicions"])
                self._company = Company.from_plain(plain["company"])
            except (KeyError, TypeError, ValueError) as fault:
                raise unreadable(keys.memory, str(fault)) from fault

    def take_plan(self, plan: Plan) -> None:
        """A round begins under this plan; its budget is in force from here on."""
        self._plan = plan
        self.ledger.budget = Budget.of(plan.privacy)

    def fold(self, number: int) -> list[Effect]:
        """Make one record of the budget periods that are over: the history first, then its events go."""
        events = self.ledger.fold(number)
        if not events:
            return []
        out: list[Effect] = [Persist(self._keys.history, self.ledger.history.to_bytes())]
        return out + [Persist(self._event_key(event), None) for event in events]

    def eligible(self, devices: Iterable[str], number: int) -> tuple[str, ...]:
        """Devices that a further release leaves within their budget."""
        try:
            return self.ledger.eligible(devices, number, self._plan.privacy.noise_multiplier)
        except ValueError as fault:
            raise ConfigError(f"privacy ledger of {self._plan.task}: {fault}") from fault

    def aggregate(
        self,
        groups: Sequence[OpenedGroup],
        model: GlobalModel,
        parts: RoundParts,
        root: Float32 | None,
        out: list[Effect],
    ) -> Aggregate:
        """Aggregate an attempt's groups, held to what is remembered.

        Raises:
            RefusedError: see `vedette_aggregator.aggregation.aggregate_round`; what it cost is in `out`.
        """
        try:
            return aggregate_round(
                self._plan,
                groups,
                model,
                parts.optimiser,
                defence=parts.defence,
                norms=self.norms,
                root=root,
                ledger=self.ledger,
                entropy=parts.entropy,
                adapts=parts.settings.adaptive_clip > 0,
            )
        except SpentError as fault:
            self._spend(fault.event, out)
            raise

    def _spend(self, event: PrivacyEvent, out: list[Effect]) -> None:
        self.ledger.record(event)
        out.append(Persist(self._event_key(event), event.to_bytes()))

    def keep(self, made: Aggregate, root: Float32 | None, suspicion_min: float) -> list[Effect]:
        """Write down what a release costs and says, before anything of it leaves; and whom a person should look at."""
        out: list[Effect] = []
        self._spend(made.event, out)
        before = self._packed()
        self.norms = made.norms
        epoch = epoch_of(made.event.round, self._plan.groups.epoch_rounds)
        if epoch != self._company.epoch:
            known = {device for device, _ in self.suspicions.suspects(suspicion_min)}
            self.suspicions = self._company.folded(self.suspicions)
            self._company = Company(epoch)
            for device, score in self.suspicions.suspects(suspicion_min):
                if device not in known:
                    seen = self.suspicions.records[device].observations
                    out.append(Suspect(self._plan.task, device, score, seen))
        reference = root if root is not None else made.update
        self._company.add(made.groups, reference)
        return [*out, Persist(self._keys.memory, self._packed(place=made.event.key, before=before))]

    def _packed(self, **more: Any) -> bytes:
        plain = {
            "format": FORMAT,
            "norms": self.norms.to_list(),
            "suspicions": self.suspicions.to_bytes(),
            "company": self._company.to_plain(),
        }
        return bytes(msgpack.packb(plain | more))

    def _event_key(self, event: PrivacyEvent) -> str:
        return f"{self._keys.events}{event.round}.{event.attempt}"


def told(made: Aggregate) -> list[Effect]:
    """What the log and the metrics are told of a round's groups."""
    out: list[Effect] = []
    candidate = made.candidate
    for gid, judged in sorted(made.groups.items()):
        if judged.dropped:
            where = f"{candidate.task} round {candidate.round}.{candidate.attempt}"
            out.append(Count("groups_dropped", judged.dropped, candidate.task))
            out.append(Note("warning", f"{where}: group {gid} dropped: {judged.dropped}"))
    return out


def read_ledger(keys: RoundKeys, budget: Budget, persisted: Mapping[str, bytes]) -> Ledger:
    """A task's privacy ledger, from what was persisted.

    Raises:
        ConfigError: the store holds something else.
    """
    history = None
    if keys.history in persisted:
        history = FoldedHistory.from_bytes(persisted[keys.history], keys.history)
    events = [PrivacyEvent.from_bytes(data, keys.events + key) for key, data in below(persisted, keys.events).items()]
    return Ledger(keys.task, budget, history, events)


def read_suspicions(stored: bytes, key: str) -> Suspicions:
    """The suspicions in a stored memory.

    Raises:
        ConfigError: the store holds something else.
    """
    try:
        return Suspicions.from_bytes(read_record(stored, key)["suspicions"])
    except (KeyError, TypeError) as fault:
        raise unreadable(key, str(fault)) from fault
