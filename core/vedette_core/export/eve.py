"""A line in the manner of Suricata's EVE log: what reads ``eve.json`` reads this.

An open or updated alert is ``event_type: alert``. One that closes is ``event_type: vedette``: EVE has no word for an
end, and a reader that counts alerts must not count it. Everything of Vedette's own is below ``vedette``.

Source: Suricata user guide, *EVE JSON format*.
"""

from __future__ import annotations

from typing import Any, Final

from vedette_core.export import facts
from vedette_schemas.alert import Alert, AlertState, Severity

SIGNATURES: Final = {
    ("network", "magnitude"): 1_900_001,
    ("network", "sustained"): 1_900_002,
    ("sensor", "magnitude"): 1_900_003,
    ("sensor", "sustained"): 1_900_004,
    ("behaviour", "magnitude"): 1_900_005,
    ("behaviour", "sustained"): 1_900_006,
}
"""Within 1,000,000–1,999,999, which is left to local rules. A number once given never means anything else."""
GENERATOR: Final = 1
PRIORITIES: Final = {Severity.CRITICAL: 1, Severity.HIGH: 2, Severity.MEDIUM: 3, Severity.LOW: 4}
"""EVE counts priorities: 1 is the most severe."""
RULE_SEVERITIES: Final = {
    Severity.LOW: "Minor",
    Severity.MEDIUM: "Major",
    Severity.HIGH: "Major",
    Severity.CRITICAL: "Critical",
}
FLOW_ID_BYTES: Final = 6
"""48 bits: a JavaScript reader keeps the number exactly."""


def event(alert: Alert) -> dict[str, Any]:
    """An alert as an EVE event.

    Raises:
        PeerError: a time that does not exist.
    """
    entity = facts.entity_of(alert)
    closed = alert.state is AlertState.CLOSED
    document: dict[str, Any] = {
        "timestamp": facts.moment(alert.time).isoformat(timespec="microseconds").replace("+00:00", "+0000"),
        "flow_id": _flow_id(alert),
        "event_type": "vedette" if closed else "alert",
        "host": alert.device,
    }
    if entity.is_ip:
        document["src_ip"] = entity.value
    if not closed:
        document["alert"] = {
            "action": "allowed",
            "gid": GENERATOR,
            "signature_id": SIGNATURES[alert.detector, alert.kind],
            "rev": 1,
            "signature": f"VEDETTE {facts.TITLES[alert.detector]} ({alert.kind})",
            "category": "Anomalous behaviour",
            "severity": PRIORITIES[alert.severity],
            "metadata": {
                "confidence": [facts.confidence_word(alert)],
                "signature_severity": [RULE_SEVERITIES[alert.severity]],
            },
        }
    start, end = facts.window(alert)
    document["vedette"] = {
        **alert.model_dump(mode="json", exclude_none=True),
        "uuid": facts.alert_uuid(alert),
        "window_start": start,
        "window_end": end,
    }
    return document


def _flow_id(alert: Alert) -> int:
    """The same number for every message of one alert, so that a reader can join them."""
    return int(facts.alert_uuid(alert).replace("-", "")[: 2 * FLOW_ID_BYTES], 16)
