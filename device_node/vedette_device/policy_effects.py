"""What a policy is told, and what it asks for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgpack

from vedette_core.machine import Effect, Event
from vedette_device.policy_protection import Address, Protection, plain_address
from vedette_device.policy_rules import ExecRule, PublishRule, WebhookRule
from vedette_schemas.alert import Alert
from vedette_schemas.errors import PeerError

MeasureKind = Literal["quarantine", "throttle"]
FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class AlertReported(Event):
    """An alert was opened, updated or closed, and is on its way already."""

    alert: Alert


@dataclass(frozen=True, slots=True)
class ProtectionLearned(Event):
    """Who must never be cut off, as it is now; before the first of these nobody is."""

    protection: Protection


@dataclass(frozen=True, slots=True)
class ReleaseAsked(Event):
    """A person ends measures.

    Attributes:
        entity: the address; empty for all of them.
        who: who asked, for the audit.
    """

    entity: str
    who: str


@dataclass(frozen=True, slots=True)
class MeasureFailed(Event):
    """A measure that was asked for is not in force: the firewall refused it, or it could not be audited."""

    kind: MeasureKind
    address: Address
    reason: str


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure in force.

    Attributes:
        kind: what it is.
        address: on whom.
        since: when it began, seconds.
        until: when it ends, seconds.
        rule: name of the rule that asked for it, or drew it out, last.
        alert: id of the alert that did.
        on_close: whether it ends when that alert closes.
        kbytes_per_s: rate of a throttle; 0 for a quarantine.
    """

    kind: MeasureKind
    address: Address
    since: float
    until: float
    rule: str
    alert: str
    on_close: bool = False
    kbytes_per_s: int = 0

    def to_bytes(self) -> bytes:
        """msgpack, with its format's number."""
        plain: list[Any] = [FORMAT, self.kind, str(self.address), self.since, self.until, self.rule, self.alert]
        return bytes(msgpack.packb([*plain, self.on_close, self.kbytes_per_s]))

    @classmethod
    def from_bytes(cls, data: bytes) -> Measure:
        """Read `to_bytes`'s form back.

        Raises:
            PeerError: not this form.
        """
        try:
            number, kind, address, since, until, rule, alert, on_close, rate = msgpack.unpackb(data)
            if number != FORMAT or kind not in ("quarantine", "throttle"):
                raise ValueError(f"format {number!r}, kind {kind!r}")
            if not float("-inf") < float(since) <= float(until) < float("inf"):
                raise ValueError(f"from {since!r} to {until!r}")
            if (int(rate) > 0) != (kind == "throttle"):
                raise ValueError(f"a rate of {rate!r} for a {kind}")
            return cls(
                kind,
                plain_address(str(address)),
                float(since),
                float(until),
                str(rule),
                str(alert),
                bool(on_close),
                int(rate),
            )
        except (msgpack.UnpackException, ValueError, TypeError) as fault:
            raise PeerError(f"measure: found {len(data)} bytes that are none ({fault})") from fault


@dataclass(frozen=True, slots=True)
class Quarantine(Effect):
    """Drop everything from and to an address until a time; also draws out what is in force."""

    address: Address
    until: float


@dataclass(frozen=True, slots=True)
class Throttle(Effect):
    """Let only so many kilobytes a second from and to an address pass until a time; replaces what is in force."""

    address: Address
    kbytes_per_s: int
    until: float


@dataclass(frozen=True, slots=True)
class Release(Effect):
    """End a measure on an address, if there is one."""

    kind: MeasureKind
    address: Address


@dataclass(frozen=True, slots=True)
class Protect(Effect):
    """Never touch these addresses from now on, whatever else is in force."""

    protection: Protection


@dataclass(frozen=True, slots=True)
class Webhook(Effect):
    """POST a body to the rule's URL."""

    rule: WebhookRule
    alert: Alert
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Execute(Effect):
    """Run the rule's command.

    Attributes:
        environment: variables about the alert, without control characters.
        stdin: the alert's JSON.
    """

    rule: ExecRule
    alert: Alert
    environment: tuple[tuple[str, str], ...]
    stdin: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class PublishCommand(Effect):
    """Publish on the site's own broker."""

    rule: PublishRule
    alert: Alert
    payload: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Audit(Effect):
    """A line for the audit; it is on disk before the effects behind it are carried out.

    Attributes:
        event: what it is about: ``quarantine``, ``webhook``, ``release`` …
        outcome: a stable word: ``begun``, ``extended``, ``refused``, ``ended``, ``failed``, ``done`` …
        rule: name of the rule, where there is one.
        alert: id of the alert, where there is one.
        entity: whom it is about.
        until: when the measure ends, seconds.
        detail: for a person.
    """

    event: str
    outcome: str
    rule: str = ""
    alert: str = ""
    entity: str = ""
    until: float | None = None
    detail: str = ""
