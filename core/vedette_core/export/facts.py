"""What every format derives from an alert: moments, what the entity is, titles, stable ids, JSON.

The same alert gives the same bytes on every machine: nothing depends on a clock, on randomness or on the version of
Python.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from vedette_schemas.alert import Alert
from vedette_schemas.errors import PeerError

VENDOR: Final = "Vedette"
PRODUCT: Final = "Vedette"
INTEGER_MAX: Final = 2**31 - 1
"""Counts beyond are written as this: readers keep them in 32 bits."""
NAMESPACE: Final = "9ccb3d99-9db8-5a0d-8477-4f27f125e266"
"""Namespace of every UUID that is made here: UUIDv5 of ``alerts.vedette.invalid`` as a DNS name."""
CONFIDENCES: Final = ((0.75, "High"), (0.4, "Medium"), (0.0, "Low"))
"""Lowest confidence of each word. 300 calibration windows with p = 10⁻⁵ reach 0.75; 100 with p = 10⁻³ reach 0.4."""
TITLES: Final = {
    "network": "Anomalous network behaviour",
    "sensor": "Anomalous sensor readings",
    "behaviour": "Anomalous device behaviour",
}
"""One fixed title a detector: rules in a SIEM match on it, so nothing of an attacker's choosing is ever part of it."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MAC: Final = re.compile(r"[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}")


class EntityKind(StrEnum):
    """What an alert's entity is, as far as its text tells."""

    IPV4 = "ipv4"
    IPV6 = "ipv6"
    MAC = "mac"
    NAME = "name"


@dataclass(frozen=True, slots=True)
class Entity:
    """What an alert is about.

    Attributes:
        kind: address family, or ``name`` for everything else (a sensor, a process).
        value: the address in canonical form, or the text as it is.
    """

    kind: EntityKind
    value: str

    @property
    def is_ip(self) -> bool:
        """Whether it is an IP address."""
        return self.kind in (EntityKind.IPV4, EntityKind.IPV6)


def entity_of(alert: Alert) -> Entity:
    """The entity, with its kind told from its text.

    An IPv4 address mapped into IPv6 is the IPv4 address; one with a zone is a name: no format has a place for zones.
    """
    text = alert.entity
    if _MAC.fullmatch(text):
        return Entity(EntityKind.MAC, text.lower().replace("-", ":"))
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return Entity(EntityKind.NAME, text)
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return Entity(EntityKind.NAME, text)
        if address.ipv4_mapped is None:
            return Entity(EntityKind.IPV6, address.compressed)
        address = address.ipv4_mapped
    return Entity(EntityKind.IPV4, str(address))


def moment(text: str) -> datetime:
    """A time of an alert as an aware datetime in UTC.

    Raises:
        PeerError: it has the form of a time and is none, like a 31st of June.
    """
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as fault:
        raise PeerError(
            f"alert: found time {text!r} ({fault}), expected a date that exists", reason="schema"
        ) from fault


def epoch_ms(text: str) -> int:
    """A time of an alert in milliseconds since 1970, rounded down.

    Raises:
        PeerError: as for `moment`.
    """
    return (moment(text) - _EPOCH) // timedelta(milliseconds=1)


def iso_ms(text: str) -> str:
    """A time of an alert as RFC 3339 with exactly three digits after the point.

    Raises:
        PeerError: as for `moment`.
    """
    return moment(text).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def window(alert: Alert) -> tuple[str, str]:
    """Start and end of the window, in this order also where the alert has them the other way round.

    Raises:
        PeerError: as for `moment`.
    """
    first, last = sorted((alert.window_start, alert.window_end), key=moment)
    return first, last


def confidence_percent(alert: Alert) -> int:
    """Confidence as a whole number, 0–100."""
    return round(alert.confidence * 100)


def confidence_word(alert: Alert) -> str:
    """Confidence as ``Low``, ``Medium`` or ``High``."""
    return next(word for least, word in CONFIDENCES if alert.confidence >= least)


def bounded(count: int) -> int:
    """A count that fits into 32 bits."""
    return min(count, INTEGER_MAX)


def number(value: float) -> str:
    """A measured value as people read it: at most six significant digits."""
    return f"{value:.6g}"


def uuid5(namespace: str, name: str) -> str:
    """The UUID that a namespace and a name give.

    Source: RFC 9562 §5.5.
    """
    digest = bytearray(hashlib.sha1(bytes.fromhex(namespace.replace("-", "")) + name.encode()).digest()[:16])
    digest[6] = (digest[6] & 0x0F) | 0x50
    digest[8] = (digest[8] & 0x3F) | 0x80
    text = digest.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def alert_uuid(alert: Alert) -> str:
    """UUID of the alert: the same for every update of it, another on another site."""
    return uuid5(NAMESPACE, f"alert/{alert.site}/{alert.device}/{alert.id}")


def message_uuid(alert: Alert) -> str:
    """UUID of this one message: the same whenever it is converted again, another for the next update."""
    return uuid5(NAMESPACE, f"message/{alert.site}/{alert.device}/{alert.id}/{alert.seq}")


def json_line(document: dict[str, Any]) -> bytes:
    """A document as one line of compact ASCII JSON without a line break, no NaN, no infinity."""
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode("ascii")
