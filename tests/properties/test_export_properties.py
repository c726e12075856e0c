"""Whatever a valid alert holds, every format takes it, and the ecosystem's validator takes the document."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from export_parts import VERSION, alerts
from export_validators import check_ocsf, check_stix, read_cef, read_syslog

from vedette_core.export import cef, eve, home_assistant, ocsf, rfc5424, stix
from vedette_core.export.facts import entity_of, json_line, moment
from vedette_schemas.alert import Alert, AlertState

fewer = settings(max_examples=60)


def one_line(document: dict[str, object]) -> dict[str, object]:
    """The document as a reader gets it: one ASCII line, read strictly."""
    line = json_line(document)
    assert line.isascii()
    assert b"\n" not in line

    def refuse(name: str) -> float:
        raise AssertionError(f"found {name} in JSON")

    read: dict[str, object] = json.loads(line, parse_constant=refuse)
    return read


@given(alerts)
@fewer
def test_ocsf(alert: Alert) -> None:
    check_ocsf(one_line(ocsf.finding(alert, VERSION)))


@given(alerts)
@fewer
def test_stix(alert: Alert) -> None:
    check_stix(one_line(stix.bundle(alert)))


@given(alerts)
@fewer
def test_eve(alert: Alert) -> None:
    read = one_line(eve.event(alert))
    assert moment(str(read["timestamp"])) == moment(alert.time)
    assert ("src_ip" in read) == entity_of(alert).is_ip


@given(alerts)
@fewer
def test_cef(alert: Alert) -> None:
    line = cef.line(alert, VERSION)
    assert len(line.splitlines()) == 1
    found = read_cef(line)
    assert found["DeviceEventClassID"] == f"{alert.detector}-{alert.kind}"
    assert found["alertId"] == alert.id
    clean = {text: cef._CONTROL.sub(" ", text).strip() for text in (alert.entity, alert.summary)}
    assert found.get("entity", "") == clean[alert.entity]
    assert found.get("msg", "") == clean[alert.summary]


@given(alerts, st.integers(0, 2**40), st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40))
@fewer
def test_syslog(alert: Alert, sequence: int, version: str) -> None:
    line = cef.line(alert, VERSION)
    message = rfc5424.message(alert, line.encode(), sequence, version)
    found = read_syslog(message)
    assert found.hostname == alert.device
    assert found.msg.removeprefix("\ufeff") == line
    assert set(found.sd) == {"meta", "origin"}
    length, _, framed = rfc5424.counted(message).partition(b" ")
    assert int(length) == len(framed) == len(message)


@given(st.lists(alerts, max_size=6))
@fewer
def test_home_assistant(several: list[Alert]) -> None:
    board = home_assistant.Board(VERSION)
    announced = set()
    for alert in several:
        publications = board.take(alert)
        topics = [p.topic for p in publications]
        assert all(p.payload.isascii() and "+" not in p.topic and "#" not in p.topic for p in publications)
        documents = [json.loads(p.payload) for p in publications]
        assert (len(publications) == 3) == ((alert.site, alert.device) not in announced)
        announced.add((alert.site, alert.device))
        state, event = documents[-2:]
        assert (state["problem"] == "ON") == (state["open"] > 0) == (state["severity"] != "none")
        assert event["event_type"] == alert.state.value
        assert topics[-2].endswith("/state")
        if alert.state is not AlertState.CLOSED:
            assert state["problem"] == "ON"


@given(alerts)
@fewer
def test_the_same_alert_gives_the_same_bytes(alert: Alert) -> None:
    again = Alert.model_validate_json(alert.model_dump_json())
    for convert in (stix.bundle, eve.event):
        assert json_line(convert(alert)) == json_line(convert(again))
