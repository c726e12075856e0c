"""From (topic, payload) to a typed, verified event of a round or rollout, or to a `PeerError` with its reason."""

from __future__ import annotations

from collections.abc import Collection

from vedette_core.machine import Event
from vedette_core.secagg.committee import CloseReceived, OpeningReceived
from vedette_device.cohort_machine import RolloutReceived
from vedette_device.command_machine import CommandReceived
from vedette_device.participant_events import ReceiptReceived, RosterReceived, RoundOpened
from vedette_schemas.command import COMMAND_TYPE, Command
from vedette_schemas.envelope import Verifier, kind_of, unseal
from vedette_schemas.errors import PeerError
from vedette_schemas.rollout import ROLLOUT_TYPE, RolloutState
from vedette_schemas.round import OPEN_TYPE, ROSTER_TYPE, Roster, RoundOpen
from vedette_schemas.secagg import CLOSE_TYPE, OPENING_TYPE, Close, Opening
from vedette_schemas.telemetry import RECEIPT_TYPE, Receipt
from vedette_schemas.topics import Parsed, Topics


class Intake:
    """Takes the aggregator's messages in for one device.

    Args:
        topics: the site's topics.
        device: own id.
        aggregator: id of the aggregator, the only sender that is believed here.
        tasks: the tasks that this device takes part in.
        keys: knows the aggregator's key.
    """

    def __init__(self, topics: Topics, device: str, aggregator: str, tasks: Collection[str], keys: Verifier) -> None:
        self._topics = topics
        self._device = device
        self._aggregator = aggregator
        self._tasks = frozenset(tasks)
        self._keys = keys

    def take(self, topic: str, payload: bytes) -> Event:
        """Take one message in.

        Args:
            topic: topic name as received.
            payload: bytes as received.

        Raises:
            PeerError: it is not what may be said there; count it by its reason, and drop it.
        """
        parsed = self._topics.parse(topic)
        match parsed.kind:
            case "round":
                self._check_task(parsed)
                opened, _ = unseal(RoundOpen, payload, OPEN_TYPE, self._keys, sender=self._aggregator)
                _same("round", "task", opened.task, parsed.task)
                return RoundOpened(opened)
            case "group":
                self._check_task(parsed)
                roster, _ = unseal(Roster, payload, ROSTER_TYPE, self._keys, sender=self._aggregator)
                _same("roster", "task", roster.task, parsed.task)
                _same("roster", "group", roster.gid, parsed.index)
                return RosterReceived(roster)
            case "rollout":
                self._check_task(parsed)
                state, _ = unseal(RolloutState, payload, ROLLOUT_TYPE, self._keys, sender=self._aggregator)
                _same("rollout", "task", state.task, parsed.task)
                return RolloutReceived(state)
            case "receipt":
                _same("receipt", "device", parsed.device, self._device)
                receipt, _ = unseal(Receipt, payload, RECEIPT_TYPE, self._keys, sender=self._aggregator)
                _same("receipt", "device", receipt.device, self._device)
                return ReceiptReceived(receipt)
            case "command":
                _same("command", "device", parsed.device, self._device)
                command, _ = unseal(Command, payload, COMMAND_TYPE, self._keys, sender=self._aggregator)
                _same("command", "device", command.device, self._device)
                return CommandReceived(command)
            case "committee":
                _same("committee", "device", parsed.device, self._device)
                return self._committee(payload)
        raise PeerError(f"topic {topic[:120]!r}: found a message that no round is about", reason="topic")

    def _committee(self, payload: bytes) -> Event:
        if kind_of(payload) == CLOSE_TYPE:
            close, _ = unseal(Close, payload, CLOSE_TYPE, self._keys, sender=self._aggregator)
            self._known(close.task)
            return CloseReceived(close)
        opening, _ = unseal(Opening, payload, OPENING_TYPE, self._keys, sender=self._aggregator)
        self._known(opening.task)
        return OpeningReceived(opening)

    def _check_task(self, parsed: Parsed) -> None:
        self._known(parsed.task or "")

    def _known(self, task: str) -> None:
        if task not in self._tasks:
            raise PeerError(
                f"round: found task {task!r}, expected one of {', '.join(sorted(self._tasks))}", reason="task"
            )


def _same(what: str, name: str, found: str | int | None, expected: str | int | None) -> None:
    if found != expected:
        raise PeerError(f"{what}: found {name} {found!r}, expected {expected!r} as in its topic", reason=name)
