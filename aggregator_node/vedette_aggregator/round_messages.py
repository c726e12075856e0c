"""What the aggregator says in a round, sealed and addressed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vedette_aggregator.round_state import RoundRecord
from vedette_core.machine import Publish
from vedette_schemas.envelope import Signer, seal
from vedette_schemas.round import OPEN_TYPE, ROSTER_TYPE, Phase, Roster, RoundOpen
from vedette_schemas.secagg import CLOSE_TYPE, OPENING_TYPE, Close, Opening
from vedette_schemas.telemetry import RECEIPT_TYPE, Receipt, ReceiptItem
from vedette_schemas.topics import Topics

REASON_CHARACTERS_MAX: Final = 200
"""As in `ReceiptItem.reason`."""


NAMES_SHOWN: Final = 10
"""A line for the log names so many devices, and counts the others."""


def few(devices: Sequence[str]) -> str:
    """Devices for a line of the log."""
    more = len(devices) - NAMES_SHOWN
    return ", ".join(devices[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True, slots=True)
class RoundMessages:
    """Builds the messages of one aggregator.

    Attributes:
        topics: the site's topics.
        aggregator: own id, the sender of everything.
        signer: own signing key.
    """

    topics: Topics
    aggregator: str
    signer: Signer

    def receipt(self, device: str, message_id: str, refusal: str = "") -> Publish:
        """A message is taken, or refused for good with the reason."""
        item = ReceiptItem(
            id=message_id, outcome="rejected" if refusal else "accepted", reason=refusal[:REASON_CHARACTERS_MAX]
        )
        sealed = seal(Receipt(device=device, items=(item,)), RECEIPT_TYPE, self.aggregator, self.signer)
        return Publish(self.topics.receipt(device), sealed, qos=0)

    def round(self, task: str, record: RoundRecord) -> Publish:
        """The round's retained state."""
        message = RoundOpen(
            task=task,
            round=record.round,
            attempt=record.attempt,
            model=record.model_sha256,
            model_version=record.model_version,
            plan=hashlib.sha256(record.plan).hexdigest(),
            phase=Phase(record.phase),
            checkin_until_s=record.checkin_until_s,
            deadline_s=record.deadline_s,
            groups=record.groups,
            beacon=record.beacon,
            next_round_s=record.next_round_s,
        )
        return Publish(self.topics.round(task), seal(message, OPEN_TYPE, self.aggregator, self.signer), retain=True)

    def roster(self, roster: Roster) -> Publish:
        """One group's retained roster."""
        sealed = seal(roster, ROSTER_TYPE, self.aggregator, self.signer)
        return Publish(self.topics.group(roster.task, roster.gid), sealed, retain=True)

    def close(self, member: str, body: Close) -> Publish:
        """A committee member is asked for its vote."""
        sealed = seal(body, CLOSE_TYPE, self.aggregator, self.signer)
        return Publish(self.topics.committee(member), sealed, qos=0)

    def opening(self, member: str, body: Opening) -> Publish:
        """A committee member is shown votes, and asked for its shares."""
        sealed = seal(body, OPENING_TYPE, self.aggregator, self.signer)
        return Publish(self.topics.committee(member), sealed, qos=0)
