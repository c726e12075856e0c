"""From (topic, payload) to a typed, verified event, or to a `PeerError` with its reason. No I/O, no clock.

What comes out can be believed: the topic is one of the grammar, the body is within its limits, the sender is the device
that the topic belongs to, and signed bodies are signed by it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol, TypeVar

from vedette_aggregator.round_events import CheckInReceived, SharesReceived, UploadReceived, VoteReceived
from vedette_core.crypto.certificates import CertificateRole, Identity
from vedette_core.machine import Event
from vedette_schemas import alert as alerts
from vedette_schemas import codec
from vedette_schemas.alert import Alert
from vedette_schemas.envelope import Envelope, Verifier, pre_authentication_encoding, unseal
from vedette_schemas.errors import PeerError
from vedette_schemas.round import (
    CHECKIN_TYPE,
    HEADER_TYPE,
    OFFER_TYPE,
    UPLOAD_TYPE,
    CheckIn,
    Upload,
    header_of,
    offer_statement,
)
from vedette_schemas.secagg import SHARES_TYPE, VOTE_TYPE, Shares, Vote
from vedette_schemas.telemetry import DeviceState, Telemetry
from vedette_schemas.topics import FlStep, Parsed, Topics

SEQ_MAX: Final = 2**53
"""Updates of one alert: as for every count that travels, and far more than there can be."""
HOPELESS: Final = frozenset({"attestation", "expired", "revoked", "signature"})
"""Reasons for which the same bytes will never be believed: their sender makes new ones, if it is told."""


A = TypeVar("A", Vote, Shares)
_BODIES: Final[Mapping[FlStep, type[CheckIn] | type[Upload] | type[Vote] | type[Shares]]] = {
    FlStep.CHECKIN: CheckIn,
    FlStep.UPLOAD: Upload,
    FlStep.VOTE: Vote,
    FlStep.SHARES: Shares,
}
_ROLES: Final = {"contribute": CertificateRole.DEVICE, "unmask": CertificateRole.COMMITTEE}
"""Which certificate whoever checks in for a role must have."""


class Keys(Verifier, Protocol):
    """The senders' keys, learnt from certificates: `vedette_core.crypto.signing.KeyRing`."""

    def learn(
        self,
        certificate: bytes,
        now: float,
        *,
        intermediate: bytes = b"",
        sender: str | None = None,
        role: CertificateRole | None = None,
    ) -> object:
        """Verify a certificate's chain and add its key; raises `PeerError`."""

    def fork(self) -> Keys:
        """An empty ring with the same anchors."""

    def identity(self, sender: str) -> Identity:
        """Who a sender is, and until when; raises `PeerError` for one that was not learnt."""


@dataclass(frozen=True, slots=True)
class AlertReceived(Event):
    """An alert of the device whose topic it came on. Alerts carry no signature: the broker's access rules bind them."""

    body: Alert


@dataclass(frozen=True, slots=True)
class StateReceived(Event):
    """A device's retained state, or its will."""

    body: DeviceState


@dataclass(frozen=True, slots=True)
class TelemetryReceived(Event):
    """A node report."""

    body: Telemetry


class Intake:
    """Takes messages in for an aggregator.

    Args:
        topics: the site's topics.
        keys: the devices' keys; check-ins add to them.
        tasks: the tasks that it runs.
    """

    def __init__(self, topics: Topics, keys: Keys, tasks: Collection[str]) -> None:
        self._topics = topics
        self._keys = keys
        self._tasks = frozenset(tasks)

    def remember(self, certificates: Iterable[tuple[str, str, bytes, bytes]], now: float) -> tuple[str, ...]:
        """Learn the keys of devices that checked in before a restart (`RoundMachine.certificates`).

        Returns:
            Devices whose certificate no longer holds: they must check in again before they are heard.
        """
        refused = []
        for device, role, certificate, intermediate in certificates:
            try:
                self._learn(device, role, certificate, intermediate, now)
            except PeerError:
                refused.append(device)
        return tuple(refused)

    def take(self, topic: str, payload: bytes, now: float) -> Event:
        """Take one message in.

        Args:
            topic: topic name as received.
            payload: bytes as received.
            now: epoch seconds, for the certificates.

        Raises:
            PeerError: it is not what may be said there; count it by its reason, and drop it.
        """
        parsed = self._topics.parse(topic)
        device = parsed.device or ""
        match parsed.kind, parsed.step:
            case "fl", FlStep.CHECKIN:
                return self._checkin(parsed, device, payload, now)
            case "fl", FlStep.UPLOAD:
                return self._upload(parsed, device, payload, now)
            case "fl", FlStep.VOTE:
                vote = self._answer(Vote, VOTE_TYPE, parsed, device, payload, now)
                _same("vote", "member", vote.member, device)
                _same("vote", "task", vote.task, parsed.task)
                return VoteReceived(vote, payload)
            case "fl", FlStep.SHARES:
                shares = self._answer(Shares, SHARES_TYPE, parsed, device, payload, now)
                _same("shares", "member", shares.member, device)
                _same("shares", "task", shares.task, parsed.task)
                return SharesReceived(shares, payload)
            case "alert", _:
                body = alerts.decode(payload)
                _same("alert", "site", body.site, self._topics.site)
                _same("alert", "device", body.device, device)
                _check_alert(body)
                return AlertReceived(body)
            case "state", _:
                state = codec.unpack_json(DeviceState, payload)
                _same("state", "device", state.device, device)
                return StateReceived(state)
            case "telemetry", _:
                report = codec.unpack(Telemetry, payload)
                _same("telemetry", "device", report.device, device)
                return TelemetryReceived(report)
        raise PeerError(f"topic {topic[:120]!r}: found a message that the aggregator does not take", reason="topic")

    def hopeless(self, topic: str, payload: bytes, fault: PeerError) -> tuple[str, str] | None:
        """Tell whether a refused check-in or upload is to be answered, so that it is not sent again for ever.

        A node's certificates are renewed while messages that the old key sealed still wait in its outbox.

        Returns:
            The device of the topic and the id that the message claims; None where silence is the answer.
        """
        if fault.reason not in HOPELESS:
            return None
        parsed = self._topics.parse(topic)
        if parsed.step is None or parsed.device is None:
            return None
        try:
            body = codec.unpack(Envelope, payload).body
            claimed = codec.unpack(_BODIES[parsed.step], body)
        except PeerError:
            return None
        return parsed.device, claimed.id

    def _checkin(self, parsed: Parsed, device: str, payload: bytes, now: float) -> CheckInReceived:
        # The key that signed it is in the body: it is read before its signature holds, but only for its certificate,
        # which must hold up to the site's root for this very device.
        self._check_task(parsed)
        claimed = codec.unpack(CheckIn, codec.unpack(Envelope, payload).body)
        self._learn(device, claimed.role, claimed.certificate, claimed.intermediate, now)
        # Members of a group will know this certificate alone, and refuse the whole roster if another one's key signed.
        shown = self._keys.fork()
        self._learn(device, claimed.role, claimed.certificate, b"", now, into=shown)
        body, _ = unseal(CheckIn, payload, CHECKIN_TYPE, shown, sender=device)
        _same("check-in", "device", body.device, device)
        _same("check-in", "task", body.task, parsed.task)
        statement = offer_statement(body.task, device, body.seq, body.epk, body.role)
        shown.verify(device, body.offer, pre_authentication_encoding(OFFER_TYPE, device, statement))
        return CheckInReceived(body)

    def _upload(self, parsed: Parsed, device: str, payload: bytes, now: float) -> UploadReceived:
        self._check_task(parsed)
        body, _ = unseal(Upload, payload, UPLOAD_TYPE, self._keys, sender=device)
        self._check_current(device, now)
        _same("upload", "device", body.device, device)
        _same("upload", "task", body.task, parsed.task)
        header = codec.pack(header_of(body))
        self._keys.verify(device, body.header, pre_authentication_encoding(HEADER_TYPE, device, header))
        return UploadReceived(body, payload)

    def _answer(self, cls: type[A], kind: str, parsed: Parsed, member: str, payload: bytes, now: float) -> A:
        self._check_task(parsed)
        body, _ = unseal(cls, payload, kind, self._keys, sender=member)
        self._check_current(member, now)
        return body

    def _check_current(self, sender: str, now: float) -> None:
        not_after = self._keys.identity(sender).not_after
        if not_after < now:
            raise PeerError(
                f"message of {sender}: found a certificate that ended {now - not_after:.0f} s ago, expected a new one",
                reason="expired",
            )

    def _learn(
        self, device: str, role: str, certificate: bytes, intermediate: bytes, now: float, into: Keys | None = None
    ) -> None:
        ring = self._keys if into is None else into
        try:
            ring.learn(certificate, now, intermediate=intermediate, sender=device, role=_ROLES[role])
        except PeerError:
            raise
        except Exception as fault:
            # The library parses a peer's certificate field by field, as each is first looked at, and fails in more ways
            # than it documents (InvalidVersion, UnsupportedAlgorithm, ValueError …): none may end the aggregator.
            raise PeerError(
                f"certificate of {device}: found one that cannot be read ({fault}), expected the site's",
                reason="certificate",
            ) from fault

    def _check_task(self, parsed: Parsed) -> None:
        if parsed.task not in self._tasks:
            raise PeerError(
                f"{parsed.device}: found task {parsed.task!r}, expected one of {', '.join(sorted(self._tasks))}",
                reason="task",
            )


def _check_alert(body: Alert) -> None:
    for text in (body.time, body.window_start, body.window_end):
        try:
            datetime.fromisoformat(text)
        except ValueError as fault:
            found = f"alert: found time {text!r} ({fault}), expected one of the calendar"
            raise PeerError(found, reason="schema") from fault
    if body.seq > SEQ_MAX:
        raise PeerError(f"alert: found update {body.seq}, expected at most {SEQ_MAX}", reason="schema")


def _same(what: str, name: str, found: str, expected: str | None) -> None:
    if found != expected:
        raise PeerError(f"{what}: found {name} {found!r} in the body, expected {expected!r} as its topic", reason=name)
