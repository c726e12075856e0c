"""`vedette alerts export` without a broker: targets as they are written, files in, lines and syslog out."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from export_parts import SAMPLES, VERSION, an_alert
from export_validators import check_ocsf, check_stix, read_cef, read_syslog
from syslog_receiver import WAIT_S, StreamReceiver, make_authority
from typer.testing import CliRunner

from vedette import __version__
from vedette.alert_export import Export, run
from vedette.alert_sinks import FORMATS, Lines, home_assistant_lines
from vedette.alert_sources import LINE_BYTES_MAX, FileAlerts
from vedette.alert_targets import Receiver, Scheme, parse, read_password
from vedette.commands.alerts import Format
from vedette.exit_codes import ExitCode
from vedette.main import app
from vedette_core.export import cef, home_assistant
from vedette_schemas import alert as alerts
from vedette_schemas.alert import Alert, AlertState, Severity
from vedette_schemas.errors import ConfigError, PeerError, TransientError


def export(tmp_path: Path, **changes: Any) -> Export:
    fields: dict[str, Any] = {
        "form": "jsonl", "bundle": None, "host": "127.0.0.1", "port": 8883, "source": tmp_path / "alerts.jsonl",
        "follow": False, "to": str(tmp_path / "out"), "ca": None, "certificate": None, "key": None,
        "password_file": None, "wait_s": WAIT_S,
    }  # fmt: skip
    return Export(**{**fields, **changes})


def write_alerts(path: Path, several: list[Alert]) -> Path:
    path.write_bytes(b"".join(alerts.encode(a) + b"\n" for a in several))
    return path


# --- targets ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-", None),
        ("out.jsonl", Path("out.jsonl")),
        ("/var/log/a:b", Path("/var/log/a:b")),
        ("syslog+tls://siem.example", Receiver(Scheme.SYSLOG_TLS, "siem.example", 6514)),
        ("tls://siem.example:10514", Receiver(Scheme.SYSLOG_TLS, "siem.example", 10514)),
        ("tcp://10.0.0.1", Receiver(Scheme.SYSLOG_TCP, "10.0.0.1", 601)),
        ("udp://[::1]:514", Receiver(Scheme.SYSLOG_UDP, "::1", 514)),
        ("mqtt://ha@home", Receiver(Scheme.MQTT, "home", 1883, "ha")),
        ("mqtts://home/", Receiver(Scheme.MQTTS, "home", 8883)),
    ],
)
def test_targets(text: str, expected: Receiver | Path | None) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "http://siem",
        "tcp://",
        "tcp://h:99999",
        "tcp://h:x",
        "tls://h/path",
        "tls://h?x=1",
        "udp://me@h",
        "mqtt://u:secret@h",
    ],
)
def test_targets_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="--to") as caught:
        parse(text)
    assert "secret" not in str(caught.value)


def test_a_password_file_is_private_and_not_empty(tmp_path: Path) -> None:
    path = tmp_path / "password"
    with pytest.raises(ConfigError, match="cannot be read"):
        read_password(path)
    path.write_text("s3cret\n")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_password(path)
    path.chmod(0o600)
    assert read_password(path) == "s3cret"
    path.write_text("\n")
    with pytest.raises(ConfigError, match="empty first line"):
        read_password(path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"to": "mqtt://h"}, "for format jsonl"),
        ({"to": "tcp://h", "form": "homeassistant"}, "for format homeassistant"),
        ({"to": "tcp://h", "ca": Path("ca.pem")}, "without TLS"),
        ({"to": "tls://h", "key": Path("k.pem")}, "key without a certificate"),
        ({"to": "tls://h", "ca": Path("absent.pem")}, "absent.pem"),
        ({"to": "mqtt://ha@h", "form": "homeassistant"}, "--password-file"),
        ({"to": "mqtt://h", "form": "homeassistant", "password_file": Path("p")}, "--password-file"),
        ({"source": Path("/absent/alerts.jsonl")}, "/absent/alerts.jsonl"),
        ({"to": "/absent/out"}, "/absent/out"),
    ],
)
def test_what_does_not_fit_together_is_said(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    write_alerts(tmp_path / "alerts.jsonl", [an_alert()])
    with pytest.raises(ConfigError, match=re.escape(says)):
        asyncio.run(run(export(tmp_path, **changes)))


# --- files ---


def read_file(path: Path, **options: Any) -> tuple[list[Alert], FileAlerts]:
    source = FileAlerts(path, **options)

    async def collect() -> list[Alert]:
        return [alert async for alert in source]

    return asyncio.run(collect()), source


def test_a_file_is_read_line_by_line_and_the_last_may_lack_its_end(tmp_path: Path) -> None:
    path = write_alerts(tmp_path / "a", list(SAMPLES.values()))
    path.write_bytes(path.read_bytes().rstrip(b"\n").replace(b"\n", b"\n\n\r\n", 1))
    read, source = read_file(path)
    assert read == list(SAMPLES.values())
    assert (source.lines, source.refused) == (5, 0)


def test_lines_that_are_no_alerts_are_counted_and_the_others_go_on(tmp_path: Path) -> None:
    path = write_alerts(tmp_path / "a", [an_alert(), an_alert(seq=1)])
    first, second = path.read_bytes().splitlines()
    long = b"x" * (LINE_BYTES_MAX + 10)
    path.write_bytes(b"\n".join((first, b"{}", b'{"v":1', b"\xff", long, second)))
    read, source = read_file(path)
    assert [a.seq for a in read] == [0, 1]
    assert (source.lines, source.refused) == (7, 5)  # the long line counts twice


def test_a_followed_file_goes_on(tmp_path: Path) -> None:
    path = write_alerts(tmp_path / "a", [an_alert()])

    async def test() -> None:
        source = aiter(FileAlerts(path, follow=True))
        assert (await anext(source)).seq == 0
        with path.open("ab") as file:
            line = alerts.encode(an_alert(seq=1)) + b"\n"
            file.write(line[:50])
            file.flush()
            await asyncio.sleep(0.05)
            file.write(line[50:])
        async with asyncio.timeout(WAIT_S):
            assert (await anext(source)).seq == 1

    asyncio.run(test())


# --- lines out ---


@pytest.mark.parametrize("form", Format)
def test_every_format_goes_to_a_file(tmp_path: Path, form: Format) -> None:
    write_alerts(tmp_path / "alerts.jsonl", list(SAMPLES.values()))
    asyncio.run(run(export(tmp_path, form=form.value)))
    lines = (tmp_path / "out").read_text().splitlines()
    if form is Format.HOMEASSISTANT:
        assert len(lines) == 2 * len(SAMPLES) + 3  # three gateways are announced
        assert all(set(json.loads(line)) == {"topic", "retain", "qos", "payload"} for line in lines)
        return
    assert len(lines) == len(SAMPLES)
    match form:
        case Format.OCSF:
            for line in lines:
                check_ocsf(json.loads(line))
        case Format.STIX:
            for line in lines:
                check_stix(json.loads(line))
        case Format.CEF:
            assert [read_cef(line)["alertId"] for line in lines] == [a.id for a in SAMPLES.values()]
        case Format.JSONL:
            assert [alerts.decode(line.encode()) for line in lines] == list(SAMPLES.values())
        case Format.EVE:
            assert [json.loads(line)["vedette"]["id"] for line in lines] == [a.id for a in SAMPLES.values()]


def test_every_format_of_the_command_has_a_conversion() -> None:
    assert {f.value for f in Format} == {*FORMATS, "homeassistant"}
    assert __version__.startswith(VERSION[:1])


def test_a_file_is_appended_to(tmp_path: Path) -> None:
    write_alerts(tmp_path / "alerts.jsonl", [an_alert()])
    for _ in range(2):
        asyncio.run(run(export(tmp_path)))
    assert len((tmp_path / "out").read_text().splitlines()) == 2


def test_refused_lines_are_an_error_in_the_end(tmp_path: Path) -> None:
    path = write_alerts(tmp_path / "alerts.jsonl", [an_alert(), an_alert(time="2026-02-30T00:00:00Z"), an_alert(seq=1)])
    with path.open("a") as file:
        file.write("no alert\n")
    with pytest.raises(PeerError, match="found 2 of 4 lines"):
        asyncio.run(run(export(tmp_path, form="ocsf")))
    assert len((tmp_path / "out").read_text().splitlines()) == 2


# --- syslog out ---


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_file_goes_to_a_syslog_receiver(tmp_path: Path, encrypted: bool) -> None:
    authority = make_authority(tmp_path / "authority")
    several = [an_alert(seq=n, state=AlertState.UPDATED) for n in range(200)]
    write_alerts(tmp_path / "alerts.jsonl", several)

    async def test() -> None:
        receiver = StreamReceiver(authority.server() if encrypted else None)
        await receiver.start()
        scheme = "syslog+tls" if encrypted else "tcp"
        to = f"{scheme}://localhost:{receiver.port}"
        await run(export(tmp_path, form="cef", to=to, ca=authority.ca if encrypted else None))
        await receiver.until(lambda: len(receiver.messages) == 200)
        read = [read_syslog(m) for m in receiver.messages]
        assert [r.msg for r in read] == [cef.line(a, __version__) for a in several]
        assert [int(r.sd["meta"]["sequenceId"]) for r in read] == list(range(1, 201))
        await receiver.stop()

    asyncio.run(test())


def test_a_receiver_that_never_comes_is_an_error_with_a_count(tmp_path: Path) -> None:
    write_alerts(tmp_path / "alerts.jsonl", [an_alert(), an_alert(seq=1)])
    with pytest.raises(TransientError, match="2 alerts were not delivered"):
        asyncio.run(run(export(tmp_path, form="eve", to="tcp://127.0.0.1:9", wait_s=0.3)))


# --- Home Assistant's board ---


def publications(several: list[Alert]) -> list[home_assistant.Publication]:
    board = home_assistant.Board(VERSION)
    return [p for alert in several for p in board.take(alert)]


def states(several: list[Alert]) -> list[tuple[str, int, str]]:
    found = [json.loads(p.payload) for p in publications(several) if p.topic.endswith("/state")]
    return [(s["problem"], s["open"], s["severity"]) for s in found]


def test_a_gateway_has_a_problem_while_an_alert_is_open() -> None:
    one, two = an_alert(id="one", severity=Severity.HIGH), an_alert(id="two", severity=Severity.CRITICAL)
    story = [
        one,
        two,
        an_alert(id="two", seq=1, state=AlertState.CLOSED),
        an_alert(id="two", seq=0),  # late: an older report opens nothing
        an_alert(id="one", seq=1, state=AlertState.CLOSED),
        an_alert(id="two", seq=2, state=AlertState.UPDATED, severity=Severity.LOW),  # within its cool-down
    ]
    assert states(story) == [
        ("ON", 1, "high"),
        ("ON", 2, "critical"),
        ("ON", 1, "high"),
        ("ON", 1, "high"),
        ("OFF", 0, "none"),
        ("ON", 1, "low"),
    ]


def test_what_is_retained_and_what_is_not() -> None:
    found = publications([an_alert(), an_alert(seq=1, state=AlertState.CLOSED)])
    assert [(p.topic, p.retain) for p in found] == [
        ("homeassistant/device/vedette_plant-1_gw-01/config", True),
        ("vedette-alerts/plant-1/gw-01/state", True),
        ("vedette-alerts/plant-1/gw-01/event", False),
        ("vedette-alerts/plant-1/gw-01/state", True),
        ("vedette-alerts/plant-1/gw-01/event", False),
    ]


REQUIRED = {"binary_sensor": {"state_topic"}, "sensor": {"state_topic"}, "event": {"state_topic", "event_types"}}
KNOWN = {
    "binary_sensor": {"device_class", "payload_on", "payload_off", "value_template"},
    "sensor": {
        "device_class", "options", "state_class", "icon", "value_template",
        "json_attributes_topic", "json_attributes_template",
    },
    "event": {"event_types"},
}  # fmt: skip
"""Fields of the documentation of each platform; every entity has those of all: name, unique_id, qos, platform."""


def test_discovery_has_the_documented_fields() -> None:
    document = json.loads(home_assistant.discovery("plant-1", "gw-01", VERSION).payload)
    assert set(document) == {"device", "origin", "components", "availability_topic"}
    assert document["device"]["identifiers"] == ["vedette_plant-1_gw-01"]
    assert document["origin"]["name"] == "Vedette"
    unique = [c["unique_id"] for c in document["components"].values()]
    assert len(set(unique)) == len(unique) == 5
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]+", u) for u in unique)
    for component in document["components"].values():
        platform = component["platform"]
        assert REQUIRED[platform] <= set(component)
        assert set(component) <= KNOWN[platform] | REQUIRED[platform] | {"platform", "name", "unique_id", "qos"}
        if component.get("device_class") == "enum":
            assert {"none", *(s.value for s in Severity)} == set(component["options"])
            assert "state_class" not in component  # not allowed together
    bare = json.loads(home_assistant.discovery("s", "d", VERSION, availability=False).payload)
    assert "availability_topic" not in bare


def test_the_templates_find_what_they_read_in_the_state() -> None:
    state = json.loads(publications([an_alert()])[1].payload)
    document = json.loads(home_assistant.discovery("plant-1", "gw-01", VERSION).payload)
    for component in document["components"].values():
        template = component.get("value_template")
        if template is None:
            continue
        value: Any = state
        for step in re.fullmatch(r"\{\{ value_json\.([a-z_.]+) \}\}", template)[1].split("."):  # type: ignore[index]
            value = value[step]
        if component["platform"] == "binary_sensor":
            assert value in (component["payload_on"], component["payload_off"])
        if "options" in component:
            assert value in component["options"]
        assert len(str(value)) <= 255  # Home Assistant's longest state


def test_two_pairs_of_site_and_gateway_never_share_a_topic() -> None:
    first, second = home_assistant.discovery("a-b", "c", VERSION), home_assistant.discovery("a", "b-c", VERSION)
    assert first.topic != second.topic


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home_assistant, "ALERTS_MAX", 3)
    monkeypatch.setattr(home_assistant, "GATEWAYS_MAX", 2)
    assert states([an_alert(id=f"a-{n}") for n in range(5)])[-1] == ("ON", 3, "high")
    found = publications([an_alert(device=d) for d in ("a", "b", "c", "a")])
    announced = [p.topic.split("_")[-1] for p in found if p.topic.endswith("/config")]
    assert announced == ["a/config", "b/config", "c/config", "a/config"]


def test_lines_for_home_assistant_can_be_published_as_they_are(tmp_path: Path) -> None:
    async def test() -> None:
        async with Lines(tmp_path / "out", home_assistant_lines(availability=False)) as sink:
            await sink.take(an_alert())

    asyncio.run(test())
    first = json.loads((tmp_path / "out").read_text().splitlines()[0])
    assert "availability_topic" not in json.loads(first["payload"])


# --- the command ---


@pytest.mark.parametrize("arguments", [[], ["--bundle", "b", "--from", "f"]])
def test_one_source_is_expected(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, ["alerts", "export", "--format", "cef", *arguments])
    assert done.exit_code == ExitCode.USAGE


def vedette(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "vedette.main", "alerts", "export", *arguments],
        input=stdin, capture_output=True, timeout=60, check=False, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip


def test_as_a_filter_between_two_programs() -> None:
    lines = b"".join(alerts.encode(a) + b"\n" for a in SAMPLES.values())
    done = vedette("--format", "cef", "--from", "-", stdin=lines)
    assert (done.returncode, done.stderr) == (ExitCode.OK, b"")
    assert done.stdout.decode().splitlines() == [cef.line(a, __version__) for a in SAMPLES.values()]
    broken = vedette("--format", "cef", "--from", "-", stdin=b"no alert\n" + lines)
    assert broken.returncode == ExitCode.INTEGRITY
    assert broken.stdout == done.stdout
    assert b"1 of 6 lines" in broken.stderr
    assert b"Traceback" not in broken.stderr
