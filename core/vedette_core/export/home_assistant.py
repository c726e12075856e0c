"""What Home Assistant needs on its own broker: discovery, and a gateway's alerts as entities.

A gateway becomes a device with five entities: *anomaly* (on while an alert is open), *severity* (the worst open one),
*open alerts*, *last alert*, and *alert*, an event for automations. States are retained; events are not.

Vedette's own broker is not the place for it: its access rules know no ``homeassistant/`` topic, and Home Assistant is
no node of the site. The topics below are for the broker that Home Assistant uses.

Source: Home Assistant documentation, *MQTT discovery* (device discovery, since 2024.11), *MQTT binary sensor*, *MQTT
sensor*, *MQTT event*.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from vedette_core.export import facts
from vedette_schemas.alert import Alert, AlertState, Severity

DISCOVERY_PREFIX: Final = "homeassistant"
BASE: Final = "vedette-alerts"
"""First level of the state topics; another one than that of Vedette's own topics."""
ONLINE: Final = b"online"
OFFLINE: Final = b"offline"
NO_SEVERITY: Final = "none"
ALERTS_MAX: Final = 1000
"""Alerts that are remembered of one gateway; beyond it the one that was silent longest is forgotten."""
GATEWAYS_MAX: Final = 10_000
"""Gateways that are remembered; beyond it the one that was silent longest is forgotten and announced anew later."""


@dataclass(frozen=True, slots=True)
class Publication:
    """One MQTT message for Home Assistant's broker; QoS 1.

    Attributes:
        topic: where to.
        payload: JSON.
        retain: whether the broker keeps it.
    """

    topic: str
    payload: bytes
    retain: bool


def discovery(site: str, device: str, version: str, *, availability: bool = True) -> Publication:
    """The retained message that makes a gateway's entities appear.

    Args:
        site: the site's id.
        device: the gateway's id.
        version: Vedette's version.
        availability: whether somebody publishes `availability_topic`; entities whose topic nobody writes stay grey.
    """
    node = _node(site, device)
    state, event = _state_topic(site, device), _event_topic(site, device)
    components: dict[str, dict[str, Any]] = {
        "anomaly": {
            "platform": "binary_sensor",
            "name": "Anomaly",
            "device_class": "problem",
            "state_topic": state,
            "value_template": "{{ value_json.problem }}",
            "payload_on": "ON",
            "payload_off": "OFF",
        },
        "severity": {
            "platform": "sensor",
            "name": "Severity",
            "device_class": "enum",
            "options": [NO_SEVERITY, *(s.value for s in Severity)],
            "state_topic": state,
            "value_template": "{{ value_json.severity }}",
        },
        "open_alerts": {
            "platform": "sensor",
            "name": "Open alerts",
            "state_class": "measurement",
            "icon": "mdi:shield-alert",
            "state_topic": state,
            "value_template": "{{ value_json.open }}",
        },
        "last_alert": {
            "platform": "sensor",
            "name": "Last alert",
            "icon": "mdi:message-alert",
            "state_topic": state,
            "value_template": "{{ value_json.last.summary }}",
            "json_attributes_topic": state,
            "json_attributes_template": "{{ value_json.last | tojson }}",
        },
        "alert": {
            "platform": "event",
            "name": "Alert",
            "event_types": [s.value for s in AlertState],
            "state_topic": event,
        },
    }
    for key, component in components.items():
        component["unique_id"] = f"{node}_{key}"
        component["qos"] = 1
    document: dict[str, Any] = {
        "device": {
            "identifiers": [node],
            "name": f"Vedette {device}",
            "manufacturer": facts.VENDOR,
            "model": "Device node",
        },
        "origin": {"name": facts.PRODUCT, "sw_version": version},
        "components": components,
    }
    if availability:
        document["availability_topic"] = availability_topic(site)
    return Publication(f"{DISCOVERY_PREFIX}/device/{node}/config", facts.json_line(document), retain=True)


def availability_topic(site: str) -> str:
    """Where the exporter of a site's alerts says `ONLINE`, and its will `OFFLINE`; retained."""
    return f"{BASE}/{site}/status"


@dataclass(frozen=True, slots=True)
class _Last:
    """What was said of an alert last; a closed one has no severity, and is kept: a late report must not open it."""

    seq: int
    severity: Severity | None


class Board:
    """What is open on which gateway: an alert in, publications out.

    It starts empty: an alert that was open before is back with its next update.

    Args:
        version: Vedette's version.
        availability: as for `discovery`.
    """

    def __init__(self, version: str, *, availability: bool = True) -> None:
        self._version, self._availability = version, availability
        self._gateways: dict[tuple[str, str], dict[str, _Last]] = {}

    def take(self, alert: Alert) -> list[Publication]:
        """What an alert changes: discovery for a gateway that is new here, its state, and the event.

        Raises:
            PeerError: a time that does not exist.
        """
        facts.moment(alert.time)
        key = (alert.site, alert.device)
        known = self._gateways.pop(key, None)
        alerts = {} if known is None else known
        self._gateways[key] = alerts  # last: heard of just now
        if len(self._gateways) > GATEWAYS_MAX:
            del self._gateways[next(iter(self._gateways))]
        self._note(alerts, alert)
        publications = [self._state(alert, alerts), _event(alert)]
        if known is None:
            publications.insert(0, discovery(*key, self._version, availability=self._availability))
        return publications

    @staticmethod
    def _note(alerts: dict[str, _Last], alert: Alert) -> None:
        before = alerts.pop(alert.id, None)
        if before is not None and before.seq > alert.seq:
            alerts[alert.id] = before  # an older report that came late changes nothing
            return
        alerts[alert.id] = _Last(alert.seq, None if alert.state is AlertState.CLOSED else alert.severity)
        if len(alerts) > ALERTS_MAX:
            del alerts[next(iter(alerts))]

    @staticmethod
    def _state(alert: Alert, alerts: dict[str, _Last]) -> Publication:
        severities = [a.severity for a in alerts.values() if a.severity is not None]
        worst = max(severities, key=lambda s: s.rank, default=None)
        document = {
            "problem": "ON" if severities else "OFF",
            "severity": NO_SEVERITY if worst is None else worst.value,
            "open": len(severities),
            "last": _attributes(alert),
        }
        return Publication(_state_topic(alert.site, alert.device), facts.json_line(document), retain=True)


def _event(alert: Alert) -> Publication:
    document = {"event_type": alert.state.value, **_attributes(alert)}
    return Publication(_event_topic(alert.site, alert.device), facts.json_line(document), retain=False)


def _attributes(alert: Alert) -> dict[str, Any]:
    return {
        "alert_id": alert.id,
        "time": alert.time,
        "entity": alert.entity,
        "detector": alert.detector,
        "kind": alert.kind,
        "severity": alert.severity.value,
        "state": alert.state.value,
        "confidence": alert.confidence,
        "count": facts.bounded(alert.count),
        "summary": alert.summary,
        "features": [f.name for f in alert.features],
    }


def _node(site: str, device: str) -> str:
    """An id that two pairs of site and device never share: an underscore is in neither."""
    return f"vedette_{site}_{device}"


def _state_topic(site: str, device: str) -> str:
    return f"{BASE}/{site}/{device}/state"


def _event_topic(site: str, device: str) -> str:
    return f"{BASE}/{site}/{device}/event"
