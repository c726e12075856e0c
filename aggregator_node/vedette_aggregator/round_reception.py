"""What devices send to a round: taken and written down, or refused, with a receipt behind either."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Final

from vedette_aggregator.admission import check_checkin, check_upload
from vedette_aggregator.round_book import RoundBook
from vedette_aggregator.round_events import Answer
from vedette_aggregator.round_messages import RoundMessages
from vedette_aggregator.round_state import RoundState
from vedette_core.machine import Effect, Note
from vedette_schemas.errors import PeerError
from vedette_schemas.round import CheckIn, Plan, Upload, upload_id

UPLOAD_TIMES_KEPT: Final = 256
"""Observations behind the next deadline: some rounds of a small fleet, one of a large one."""


class Reception:
    """Takes check-ins and uploads in for one task.

    Args:
        book: where they are kept.
        say: what the aggregator says.
    """

    def __init__(self, book: RoundBook, say: RoundMessages) -> None:
        self._book, self._say = book, say
        self._attempt = (0, 0)
        self._timed: set[str] = set()

    def checkin(self, body: CheckIn, plan: Plan, out: list[Effect]) -> Answer:
        """Take a check-in for the next attempt, which will run under `plan`."""
        known = self._book.devices.get(body.device)
        if known is None or body != known.checkin:
            try:
                check_checkin(body, plan, known.checkin.seq if known else 0)
                if self._book.key_owner(body.epk) not in (None, body.device):
                    # Members refuse a roster in which two have one key: the first to offer it has it.
                    raise PeerError(f"check-in of {body.device}: found another's key, expected its own", reason="key")
            except PeerError as fault:
                return self.refuse(body.device, body.id, fault, out)
            self._book.add_checkin(body, out)
        out.append(self._say.receipt(body.device, body.id))
        return Answer.ACCEPT

    def upload(self, body: Upload, sealed: bytes, plan: Plan, answer: Answer, now: float, out: list[Effect]) -> Answer:
        """Take an upload, once; `answer` is what the state says of a new one."""
        if self._is_known(body):
            first = self._book.contributions.get(body.device)
            if first is not None and hashlib.sha256(sealed).digest() != first.digest:
                out.append(Note("warning", f"{body.device}: found other bytes under {body.id}; the first ones count"))
            out.append(self._say.receipt(body.device, body.id))
            return Answer.ACCEPT
        try:
            self._check_upload(body, plan, answer, now)
        except PeerError as fault:
            return self.refuse(body.device, body.id, fault, out)
        self._book.add_upload(body, sealed, plan, out)
        out.append(self._say.receipt(body.device, body.id))
        return Answer.ACCEPT

    def refuse(self, device: str, message_id: str, fault: PeerError, out: list[Effect]) -> Answer:
        """Say why a message is not taken, so that it is not sent again."""
        out.append(self._say.receipt(device, message_id, f"{fault.reason}: {fault}"))
        out.append(Note("info", f"{message_id} rejected: {fault}"))
        return Answer.REJECT

    def _is_known(self, body: Upload) -> bool:
        """Whether this upload was accepted before, in this attempt or as the device's last one."""
        belongs, record = (body.round, body.attempt), self._book.record
        if body.id != upload_id(body.task, *belongs, body.device):
            return False
        known = self._book.devices.get(body.device)
        return (known is not None and known.accepted == belongs) or (
            belongs == (record.round, record.attempt) and body.device in self._book.contributions
        )

    def _check_upload(self, body: Upload, plan: Plan, answer: Answer, now: float) -> None:
        record = self._book.record
        current = f"{record.round}.{record.attempt}"
        who = f"round {current}: upload of {body.device}"
        if (body.round, body.attempt) != (record.round, record.attempt):
            raise PeerError(f"{who}: found round {body.round}.{body.attempt}, expected {current}", reason="round")
        roster = self._book.roster_of(body.device)
        if roster is not None and record.state in (RoundState.COLLECT, RoundState.UNMASK):
            self._observe(body.device, now)
        if answer is not Answer.ACCEPT:
            raise PeerError(f"{who}: found it after the round was closed, expected it earlier", reason="late")
        if roster is None:
            raise PeerError(f"{who}: found a device that is in no group, expected a member", reason="member")
        check_upload(body, roster, plan)

    def _observe(self, device: str, now: float) -> None:
        """How long an upload took, late ones included; it is written down with the next transition.

        Once a member: who sends a thousand wrong ones must not say how long the others are waited for.
        """
        place = (self._book.record.round, self._book.record.attempt)
        if self._attempt != place:
            self._attempt, self._timed = place, set()
        if device in self._timed:
            return
        self._timed.add(device)
        took = max(0.0, now - self._book.record.collect_from_s)
        times = (*self._book.record.upload_times, took)[-UPLOAD_TIMES_KEPT:]
        self._book.record = replace(self._book.record, upload_times=times)
