"""Each format by example: golden documents, mappings, escapes, and what validators make of it."""

from __future__ import annotations

import json
import re
import uuid
from typing import Any

import jsonschema
import pytest
import stix2
from export_parts import GOLDEN, NASTY, SAMPLES, VERSION, an_alert, golden
from export_validators import check_ocsf, check_stix, read_cef, read_syslog

from vedette_core.export import cef, eve, facts, ocsf, rfc5424, stix
from vedette_schemas.alert import AlertState, Severity
from vedette_schemas.errors import PeerError


@pytest.mark.parametrize("name", golden())
def test_the_golden_documents_are_what_the_code_makes(name: str) -> None:
    assert golden()[name] == (GOLDEN / name).read_text(encoding="utf-8"), "python tests/unit/export_parts.py"


# --- what all formats share ---


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("10.0.1.17", "ipv4", "10.0.1.17"),
        ("2001:DB8::0:17", "ipv6", "2001:db8::17"),
        ("::ffff:10.0.0.1", "ipv4", "10.0.0.1"),
        ("AA-BB-CC-00-11-22", "mac", "aa:bb:cc:00:11:22"),
        ("fe80::1%eth0", "name", "fe80::1%eth0"),
        ("010.0.0.1", "name", "010.0.0.1"),
        ("tank-level", "name", "tank-level"),
        ("aa:bb:cc:00:11", "name", "aa:bb:cc:00:11"),
    ],
)
def test_an_entity_is_told_from_its_text(text: str, kind: str, value: str) -> None:
    entity = facts.entity_of(an_alert(entity=text))
    assert (entity.kind.value, entity.value) == (kind, value)


@pytest.mark.parametrize("name", ["", "alert/a/b", "ünicode"])
def test_uuids_are_version_5(name: str) -> None:
    assert facts.uuid5(facts.NAMESPACE, name) == str(uuid.uuid5(uuid.UUID(facts.NAMESPACE), name))


def test_the_namespace_is_what_its_text_says() -> None:
    assert str(uuid.uuid5(uuid.NAMESPACE_DNS, "alerts.vedette.invalid")) == facts.NAMESPACE


def test_ids_hold_for_an_alert_or_for_one_message() -> None:
    first, second = an_alert(), an_alert(seq=1, state=AlertState.UPDATED, count=2)
    assert facts.alert_uuid(first) == facts.alert_uuid(second)
    assert facts.message_uuid(first) != facts.message_uuid(second)
    assert facts.alert_uuid(first) != facts.alert_uuid(an_alert(site="plant-2"))


@pytest.mark.parametrize("time", ["2026-02-30T00:00:00Z", "2026-01-01T25:00:00Z", "0000-01-01T00:00:00Z"])
def test_a_time_that_does_not_exist_is_refused_by_every_format(time: str) -> None:
    alert = an_alert(time=time)
    for convert in (
        lambda: ocsf.finding(alert, VERSION),
        lambda: eve.event(alert),
        lambda: cef.line(alert, VERSION),
        lambda: stix.bundle(alert),
        lambda: rfc5424.message(alert, b"", 0, VERSION),
    ):
        with pytest.raises(PeerError, match="expected a date that exists"):
            convert()


@pytest.mark.parametrize(
    ("confidence", "word"), [(1.0, "High"), (0.75, "High"), (0.749, "Medium"), (0.4, "Medium"), (0.0, "Low")]
)
def test_confidence_has_three_words(confidence: float, word: str) -> None:
    assert facts.confidence_word(an_alert(confidence=confidence)) == word


# --- OCSF ---


@pytest.mark.parametrize("name", SAMPLES)
def test_the_published_ocsf_schema_accepts(name: str) -> None:
    check_ocsf(ocsf.finding(SAMPLES[name], VERSION))


def damaged(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(document))
    *way, last = path.split(".")
    place = copy
    for step in way:
        place = place[step]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return copy


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.product", None),
        ("finding_info.uid", None),
        ("severity_id", 9),
        ("time", "2026"),
        ("verdict", "suspicious"),
        ("device.ip", "not an address"),
        ("device.type_id", None),
        ("finding_info.unknown", 1),
    ],
)
def test_the_ocsf_validator_would_notice(path: str, value: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        check_ocsf(damaged(ocsf.finding(an_alert(), VERSION), path, value))


def test_what_ocsf_says_of_each_state() -> None:
    said = {
        state: [ocsf.finding(an_alert(state=state), VERSION)[k] for k in ("type_uid", "status_id", "is_alert")]
        for state in AlertState
    }
    assert said == {
        AlertState.OPEN: [200401, 1, True],
        AlertState.UPDATED: [200402, 1, True],
        AlertState.CLOSED: [200403, 99, False],
    }


def test_ocsf_names_the_entity_as_the_device_and_the_gateway_as_the_reporter() -> None:
    document = ocsf.finding(an_alert(), VERSION)
    assert document["device"] == {
        "type_id": 7,
        "type": "IOT",
        "uid": "10.0.1.17",
        "name": "10.0.1.17",
        "ip": "10.0.1.17",
    }
    assert document["metadata"]["reporter"] == {"name": "gw-01", "uid": "gw-01"}
    analysis = document["anomaly_analyses"][0]
    assert [a["observation_parameter"] for a in analysis["anomalies"]] == [
        "anomaly score",
        "syn_count",
        "connects_failed",
    ]
    assert [b["observations"][0]["value"] for b in analysis["baselines"]] == ["at most 3.25", "0 to 4", "0 to 1"]


# --- EVE ---


def test_eve_counts_severities_from_the_top() -> None:
    found = [eve.event(an_alert(severity=s))["alert"]["severity"] for s in Severity]
    assert found == [4, 3, 2, 1]


def test_eve_does_not_count_the_end_of_an_alert() -> None:
    opened, closed = eve.event(an_alert()), eve.event(SAMPLES["closed"])
    assert (opened["event_type"], closed["event_type"]) == ("alert", "vedette")
    assert "alert" not in closed
    assert opened["flow_id"] == closed["flow_id"] < 2**53


def test_eve_has_the_form_of_suricatas_fields() -> None:
    document = eve.event(an_alert())
    assert document["timestamp"] == "2026-03-01T12:00:05.250000+0000"
    assert document["src_ip"] == "10.0.1.17"
    assert "src_ip" not in eve.event(an_alert(entity="tank"))
    assert all(isinstance(v, list) for v in document["alert"]["metadata"].values())
    assert document["vedette"]["features"][0]["name"] == "syn_count"


def test_every_signature_has_its_own_number_in_the_local_range() -> None:
    numbers = [eve.SIGNATURES[d, k] for d in facts.TITLES for k in ("magnitude", "sustained")]
    assert len(set(numbers)) == len(numbers) == len(eve.SIGNATURES)
    assert all(1_000_000 <= n < 2_000_000 for n in numbers)


# --- CEF ---


def test_a_cef_parser_reads_every_field() -> None:
    found = read_cef(cef.line(an_alert(), VERSION))
    expected = {
        "CEFVersion": "0",
        "DeviceVendor": "Vedette",
        "DeviceProduct": "Vedette",
        "DeviceVersion": VERSION,
        "DeviceEventClassID": "network-magnitude",
        "Name": "Anomalous network behaviour",
        "Severity": "8",
        "rt": "1772366405250",
        "start": "1772366400250",
        "end": "1772366405250",
        "dvchost": "gw-01",
        "src": "10.0.1.17",
        "act": "open",
        "cnt": "1",
        "score": "41.5",
        "pValue": "1e-06",
        "alertId": "gw-01-network-20260301-120000-0123456789ab",
        "features": "syn_count 812 (usually 0 to 4); connects_failed 790 (usually 0 to 1)",
        "model": "network 6 8f5708f5494ccb11",
        "msg": "10.0.1.17: syn_count is 812, usually 0 to 4",
    }
    assert {key: found.get(key) for key in expected} == expected
    assert len(found["externalId"]) <= 40


def test_cef_lets_nothing_of_an_alerts_text_become_a_field() -> None:
    line = cef.line(SAMPLES["nasty"], VERSION)
    assert "\n" not in line
    found = read_cef(line)
    assert found["msg"] == NASTY
    assert found["DeviceVendor"] == "Vedette"
    assert found["evidence"] == "evidence|=\\1"


@pytest.mark.parametrize(
    ("text", "header", "extension"),
    [
        ("a|b", "a\\|b", "a|b"),
        ("a=b", "a=b", "a\\=b"),
        ("a\\b", "a\\\\b", "a\\\\b"),
        ("a\nb\rc", "a b c", "a\\nb\\rc"),
        ("a\x00\x1b[31m\u2028b", "a  [31m b", "a  [31m b"),
        ("\\=", "\\\\=", "\\\\\\="),
    ],
)
def test_cef_escapes(text: str, header: str, extension: str) -> None:
    assert cef.escape_header(text) == header
    assert cef.escape_extension(text) == extension


def test_an_empty_cef_field_is_left_out_with_its_label() -> None:
    line = cef.line(an_alert(features=(), summary="  "), VERSION)
    assert "cs4" not in line
    assert "msg=" not in line


# --- STIX ---


def short_times(text: str) -> Any:
    """JSON with fractions of a second as short as can be: how the library writes most of them."""
    return json.loads(re.sub(r'(\.\d*?)0+Z"', lambda m: f'{m[1].rstrip(".")}Z"', text))


@pytest.mark.parametrize("name", SAMPLES)
def test_stix2_accepts_and_gives_back_the_same(name: str) -> None:
    document = stix.bundle(SAMPLES[name])
    assert short_times(check_stix(document).serialize()) == short_times(json.dumps(document))


def test_the_stix_parser_would_notice() -> None:
    document = stix.bundle(an_alert())
    for wrong in ({"x_severity": "high"}, {"last_seen": "2020-01-01T00:00:00.000Z"}, {"sighting_of_ref": "no--id"}):
        broken = json.loads(json.dumps(document))
        broken["objects"][-1] |= wrong
        with pytest.raises((stix2.exceptions.STIXError, ValueError)):
            check_stix(broken)


@pytest.mark.parametrize(
    ("entity", "maker"),
    [
        ("10.0.1.17", stix2.v21.IPv4Address),
        ("2001:DB8::0:17", stix2.v21.IPv6Address),
        ("AA-BB-CC-00-11-22", stix2.v21.MACAddress),
    ],
)
def test_an_addresss_id_is_the_one_that_everybody_derives(entity: str, maker: Any) -> None:
    observable = stix.bundle(an_alert(entity=entity))["objects"][3]
    assert observable["id"] == maker(value=observable["value"]).id


def test_stix_ids_are_the_same_again_and_differ_by_message() -> None:
    first, again, later = (stix.bundle(a) for a in (an_alert(), an_alert(), an_alert(seq=1)))
    assert first == again
    shared = {o["id"] for o in first["objects"]} & {o["id"] for o in later["objects"]}
    assert {i.split("--")[0] for i in shared} == {"identity", "indicator", "ipv4-addr"}
    by_id = {o["id"]: o for o in first["objects"]}
    assert all(by_id[o["id"]] == o for o in later["objects"] if o["id"] in shared)


def test_the_end_of_an_alert_is_a_summary_with_a_count() -> None:
    opened, closed = (stix.bundle(SAMPLES[name])["objects"][-1] for name in ("opened", "closed"))
    assert (closed["summary"], closed["count"]) == (True, 9)
    assert "count" not in opened
    assert "observed_data_refs" not in closed


# --- syslog ---


def test_a_syslog_parser_reads_the_header() -> None:
    alert = an_alert()
    found = read_syslog(rfc5424.message(alert, b"body", 41, VERSION))
    assert (found.facility.name, found.severity.name) == ("local0", "err")
    assert (found.timestamp, found.hostname) == (alert.time, "gw-01")
    assert (found.appname, found.procid, found.msgid, found.msg) == ("vedette", None, "network", "body")
    assert found.sd == {"meta": {"sequenceId": "42"}, "origin": {"software": "vedette", "swVersion": VERSION}}


def test_what_is_not_ascii_is_marked_as_utf_8() -> None:
    plain, marked = (rfc5424.message(an_alert(), body, 0, VERSION) for body in (b"a", "ä".encode()))
    assert plain.endswith(b'"] a')
    assert marked.endswith(b'"] ' + rfc5424.BOM + "ä".encode())


def test_syslog_severities() -> None:
    levels = [rfc5424.message(an_alert(severity=s), b"", 0, VERSION)[:5] for s in Severity]
    assert levels == [b"<133>", b"<132>", b"<131>", b"<130>"]
    assert rfc5424.message(SAMPLES["closed"], b"", 0, VERSION).startswith(b"<134>")


def test_a_parameters_value_cannot_end_its_element() -> None:
    assert rfc5424.escape_parameter('a"]\\') == 'a\\"\\]\\\\'
    found = read_syslog(rfc5424.message(an_alert(), b"x", 0, '1"] [evil a="'))
    assert set(found.sd) == {"meta", "origin"}


def test_the_running_number_starts_anew_before_it_is_too_large() -> None:
    last, first = (rfc5424.message(an_alert(), b"", n, VERSION) for n in (2**31 - 2, 2**31 - 1))
    assert b'sequenceId="2147483647"' in last
    assert b'sequenceId="1"' in first


def test_counted_octets_not_characters() -> None:
    assert rfc5424.counted("ä".encode()) == b"2 " + "ä".encode()
