"""Alerts for the tests of the exported formats: five told by hand, and a strategy for every valid one.

``python tests/unit/export_parts.py`` writes the golden documents in ``tests/vectors/exports`` anew. They change only
when a format is meant to change: other people's rules match on them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from hypothesis import strategies as st

from vedette_core.export import cef, eve, home_assistant, ocsf, rfc5424, stix
from vedette_core.export.facts import json_line
from vedette_schemas.alert import Alert, AlertModel, AlertState, FeatureReason, Severity

GOLDEN: Final = Path(__file__).parents[1] / "vectors" / "exports"
VERSION: Final = "0.1.0"
NASTY: Final = 'tänk|1=2\\3] "x"\nCEF:0|evil|<34>1 -'
"""Everything that means something in one of the formats."""


def an_alert(**changes: Any) -> Alert:
    fields: dict[str, Any] = {
        "id": "gw-01-network-20260301-120000-0123456789ab",
        "seq": 0,
        "time": "2026-03-01T12:00:05.250Z",
        "site": "plant-1",
        "device": "gw-01",
        "entity": "10.0.1.17",
        "detector": "network",
        "kind": "magnitude",
        "severity": Severity.HIGH,
        "confidence": 0.97,
        "score": 41.5,
        "p_value": 1e-6,
        "threshold": 3.25,
        "window_start": "2026-03-01T12:00:00.250Z",
        "window_end": "2026-03-01T12:00:05.250Z",
        "features": (
            FeatureReason(name="syn_count", value=812.0, usual=(0.0, 4.0), share=0.61),
            FeatureReason(name="connects_failed", value=790.0, usual=(0.0, 1.0), share=0.22),
        ),
        "model": AlertModel(task="network", version=6, digest="8f5708f5494ccb11"),
        "state": AlertState.OPEN,
        "count": 1,
        "summary": "10.0.1.17: syn_count is 812, usually 0 to 4",
    }
    return Alert(**{**fields, **changes})


SAMPLES: Final = {
    "opened": an_alert(),
    "updated": an_alert(
        seq=2, entity="2001:DB8::0:17", kind="sustained", severity=Severity.CRITICAL, state=AlertState.UPDATED, count=4
    ),
    "closed": an_alert(seq=3, state=AlertState.CLOSED, count=9),
    "nasty": an_alert(
        id="gw-02-sensor-1",
        device="gw-02",
        entity=NASTY[:20],
        detector="sensor",
        severity=Severity.LOW,
        confidence=0.1,
        features=(FeatureReason(name="a=b|c\n", value=-1e-9, usual=(0.0, 1e30), share=1.0),),
        summary=NASTY,
        evidence="evidence|=\\1",
    ),
    "hardware": an_alert(
        id="gw-03-behaviour-1", device="gw-03", entity="AA-BB-CC-00-11-22", detector="behaviour", features=()
    ),
}


def golden() -> dict[str, str]:
    """Name of a file → one document a line, in the order of `SAMPLES`."""
    alerts = list(SAMPLES.values())
    board = home_assistant.Board(VERSION)
    published = [p for alert in alerts for p in board.take(alert)]
    homes = [{"topic": p.topic, "retain": p.retain, "payload": json.loads(p.payload)} for p in published]
    lines = [cef.line(a, VERSION) for a in alerts]
    return {
        "ocsf.jsonl": _lines(json_line(ocsf.finding(a, VERSION)).decode() for a in alerts),
        "eve.jsonl": _lines(json_line(eve.event(a)).decode() for a in alerts),
        "stix.jsonl": _lines(json_line(stix.bundle(a)).decode() for a in alerts),
        "homeassistant.jsonl": _lines(json_line(h).decode() for h in homes),
        "cef.txt": _lines(lines),
        "syslog.txt": _lines(
            rfc5424.message(a, line.encode(), n, VERSION).decode()
            for n, (a, line) in enumerate(zip(alerts, lines, strict=True))
        ),
    }


def _lines(documents: Any) -> str:
    return "".join(f"{document}\n" for document in documents)


finite = st.floats(allow_nan=False, allow_infinity=False)
ids = st.from_regex(r"[a-z0-9-]{1,60}", fullmatch=True)
characters = st.characters(exclude_categories=["Cs"])
names = st.text(characters, min_size=1, max_size=60)
entities = st.one_of(
    names,
    st.ip_addresses().map(str),
    st.ip_addresses(v=6).map(lambda a: a.exploded.upper()),
    st.from_regex(r"[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}", fullmatch=True),
    st.sampled_from(["::ffff:10.0.0.1", "fe80::1%eth0", "::", "010.0.0.1"]),
)
times = st.datetimes().map(lambda t: t.isoformat(timespec="microseconds") + "Z")
alerts = st.builds(
    Alert,
    id=ids,
    seq=st.integers(0, 2**70),
    time=times,
    site=ids,
    device=ids,
    entity=entities,
    detector=st.sampled_from(["network", "sensor", "behaviour"]),
    kind=st.sampled_from(["magnitude", "sustained"]),
    severity=st.sampled_from(Severity),
    confidence=st.floats(0, 1),
    score=st.floats(0, allow_infinity=False),
    p_value=st.floats(0, 1, exclude_min=True),
    threshold=st.floats(0, allow_infinity=False),
    window_start=times,
    window_end=times,
    features=st.lists(
        st.builds(FeatureReason, name=names, value=finite, usual=st.tuples(finite, finite), share=st.floats(0, 1)),
        max_size=5,
    ).map(tuple),
    model=st.builds(
        AlertModel, task=names, version=st.integers(0, 2**70), digest=st.from_regex(r"[0-9a-f]{16}", fullmatch=True)
    ),
    state=st.sampled_from(AlertState),
    count=st.integers(1, 2**70),
    summary=st.text(characters, max_size=200),
    evidence=st.none() | st.text(characters, max_size=100),
)
"""Every alert that the schema allows and whose times exist."""


if __name__ == "__main__":
    for file_name, text in golden().items():
        (GOLDEN / file_name).write_text(text, encoding="utf-8")
