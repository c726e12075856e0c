"""Any line gives a flow, nothing or a declared refusal; any file its lines, in bounded memory; any answer a declared
error.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vedette_device.features.flow_logs import FlowLogWindower
from vedette_device.sources.broker_log import CLIENTS, SessionEvent
from vedette_device.sources.counts import NamedCounts
from vedette_device.sources.errors import SourceError
from vedette_device.sources.eve import EveParser
from vedette_device.sources.flow_log import PARSERS, FlowLog
from vedette_device.sources.flow_record import FLOW_REASONS, FlowParser, FlowRecord
from vedette_device.sources.host import HostBehaviour
from vedette_device.sources.json_rows import JsonRows
from vedette_device.sources.line_follower import (
    BUFFER_BYTES_MAX,
    LINE_BYTES_MAX,
    LineFollower,
    LinePosition,
)
from vedette_device.sources.log_lines import PLACES, LogLineCounts
from vedette_device.sources.modbus_frames import BODY_BYTES_MAX, HEADER_BYTES, HOLDING, INPUT, Request
from vedette_device.sources.netflow_csv import NetflowCsvParser
from vedette_device.sources.zeek import ZeekParser
from vedette_schemas.errors import PeerError

ZEEK = (
    b"#separator \\x09\n#unset_field\t-\n#path\tconn\n"
    b"#fields\tts\tid.orig_h\tid.orig_p\tid.resp_h\tid.resp_p\tproto\tduration\torig_bytes\tconn_state\torig_pkts\n"
    b"1700000000.5\t192.168.1.5\t40000\t203.0.113.7\t443\ttcp\t1.5\t100\tSF\t4\n"
    b'{"ts":"2023-11-14T22:13:20.5Z","id.orig_h":"fe80::1","id.resp_h":"ff02::fb","proto":"udp","orig_pkts":3}\n'
)
EVE = (
    b'{"event_type":"flow","src_ip":"192.168.1.5","src_port":4,"dest_ip":"::1","dest_port":5,"proto":"TCP","flow":'
    b'{"start":"2023-11-14T22:13:20.25+0100","end":"2023-11-14T22:13:21.25+0100","pkts_toserver":1,"age":1},'
    b'"tcp":{"tcp_flags_ts":"1b","tcp_flags_tc":"1b"}}\n{"event_type":"dns"}\n'
)
NETFLOW = (
    b"ts,te,td,sa,da,sp,dp,pr,flg,ipkt,ibyt,opkt,obyt\n"
    b"2023-11-14 22:13:20.250,2023-11-14 22:13:21,1.5,192.168.1.5,::1,40000,1883,TCP,...AP.SF,6,600,4,400\n"
    b"1700000000,1700000001,1.5,192.168.1.5,203.0.113.7,0,8.0,ICMP,0x1b,6,600.0,4,400\n"
)
SOUND: dict[str, bytes] = {"zeek": ZEEK, "eve": EVE, "netflow": NETFLOW}

PIECES = st.sampled_from(
    [
        b"",
        b"-",
        b"\t",
        b",",
        b'"',
        b"\xff",
        b"\0",
        b"\r",
        b"nan",
        b"1e999",
        b"-1",
        b"9" * 25,
        b"9" * 5_000,
        b"#fields\t",
        b"#path\tdns",
        b"#separator \\x",
        b"{",
        b"}",
        b"[" * 2_000,
        b"null",
        b"true",
        b"0x",
        b"2023-02-31",
        b"\xe2\x80\xa8",
    ]
)
CHANGES = st.lists(st.tuples(st.integers(0, 4_000), st.integers(0, 12), PIECES), max_size=6)


def damaged(data: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    changed = bytearray(data)
    for place, gone, piece in changes:
        at = place % (len(changed) + 1)
        changed[at : at + gone] = piece
    return bytes(changed)


def parse_all(parser: FlowParser, data: bytes) -> list[FlowRecord]:
    """Every line on its own; nothing but what is declared may come out."""
    flows: list[FlowRecord] = []
    refused: list[PeerError | SourceError] = []
    for line in data.split(b"\n"):
        try:
            flow = parser.parse(line)
        except PeerError as error:
            refused.append(error)
        except SourceError as error:
            refused.append(error)
            break
        else:
            flows += [flow] if flow is not None else []
    assert {error.reason for error in refused if isinstance(error, PeerError)} <= set(FLOW_REASONS)
    assert max([len(str(error)) for error in refused], default=0) < 1_000
    return flows


def test_what_is_damaged_here_is_sound() -> None:
    assert [len(parse_all(PARSERS[kind](), data)) for kind, data in SOUND.items()] == [2, 1, 2]


@pytest.mark.parametrize("kind", list(SOUND))
@settings(max_examples=400)
@given(changes=CHANGES)
def test_any_damage_to_a_log_gives_flows_or_declared_refusals(kind: str, changes: list[tuple[int, int, bytes]]) -> None:
    flows = parse_all(PARSERS[kind](), damaged(SOUND[kind], changes))
    windower = FlowLogWindower()
    for window in windower.push(flows) + windower.flush():
        assert abs(window.values).max() < float("inf")


@settings(max_examples=300)
@given(st.one_of(st.binary(max_size=300), st.text(max_size=200).map(str.encode)))
def test_any_line_at_all(line: bytes) -> None:
    zeek, netflow = ZeekParser(), NetflowCsvParser()
    for header in ZEEK.split(b"\n")[:4]:
        zeek.parse(header)
    netflow.parse(NETFLOW.split(b"\n")[0])
    for parser in (zeek, netflow, EveParser(), ZeekParser()):
        parse_all(parser, line)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)
KEYS = [
    "ts",
    "id.orig_h",
    "id.resp_h",
    "id.orig_p",
    "proto",
    "duration",
    "orig_pkts",
    "conn_state",
    "src_ip",
    "dest_ip",
]
KEYS += ["src_port", "tcp", "flow", "a", "time_s", "MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER"]
EVENTS = st.dictionaries(st.sampled_from(KEYS), JSON, max_size=len(KEYS))
FLOW_OBJECTS = st.dictionaries(
    st.sampled_from(["start", "end", "age", "pkts_toclient", "bytes_toserver", "state"]), JSON
)


@settings(max_examples=300)
@given(EVENTS, FLOW_OBJECTS)
def test_json_of_the_right_keys_and_any_values(event: dict[str, object], flow: dict[str, object]) -> None:
    sound = json.loads(EVE.split(b"\n")[0])
    parse_all(ZeekParser(), json.dumps(event).encode())
    parse_all(EveParser(), json.dumps({**sound, **event}).encode())
    parse_all(EveParser(), json.dumps({**sound, "flow": {**sound["flow"], **flow}}).encode())


@settings(max_examples=60)
@given(
    st.lists(st.one_of(st.binary(max_size=40), st.integers(0, 3 * LINE_BYTES_MAX)), max_size=8),
    st.integers(1, 5),
    st.lists(st.integers(0, 12), max_size=4),
)
def test_a_followed_file_gives_each_line_once_whatever_it_holds_and_however_often_it_is_reopened(
    parts: list[bytes | int], at_a_time: int, restarts: list[int]
) -> None:
    data = b"\n".join(b"x" * part if isinstance(part, int) else part for part in parts) + b"\n"
    expected = [line.rstrip(b"\r") for line in data.split(b"\n")[:-1] if len(line) < LINE_BYTES_MAX]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.log"
        path.write_bytes(data)
        source, found = LineFollower(path, follow=True), []
        for reads in [*restarts, 10_000]:
            for _ in range(reads):
                batch = source.read(at_a_time)
                assert batch is not None
                if not batch:
                    break
                found += batch
                assert sum(size for size, _ in source._pieces) + len(source._tail) <= BUFFER_BYTES_MAX
            position = LinePosition.from_bytes(source.position().to_bytes())
            source.close()
            source = LineFollower(path, follow=True, position=position)
            assert source.counters()["position_lost"] == 0
        source.close()
    assert found == expected


@settings(max_examples=200)
@given(st.one_of(st.binary(max_size=200), JSON.map(lambda plain: json.dumps(plain).encode())), CHANGES)
def test_any_stored_position_is_read_or_refused(data: bytes, changes: list[tuple[int, int, bytes]]) -> None:
    sound = LinePosition(5, 10, 3, "0" * 64, json.dumps(["\t", "-", "", "ts"])).to_bytes()
    for stored in (data, damaged(sound, changes)):
        with contextlib.suppress(SourceError):
            position = LinePosition.from_bytes(stored)
            assert LinePosition.from_bytes(position.to_bytes()) == position
        for kind in PARSERS.values():
            with contextlib.suppress(SourceError):
                kind().restore(stored.decode("utf-8", "replace"))


@pytest.mark.parametrize("kind", list(SOUND))
@settings(max_examples=40)
@given(changes=CHANGES)
def test_a_damaged_log_file_ends(kind: str, changes: list[tuple[int, int, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        path.write_bytes(damaged(SOUND[kind] * 20, changes))
        source, make_rows = FlowLog(path, PARSERS[kind]), JsonRows(path, ["a"])
        with contextlib.suppress(SourceError):
            while source.read(7) is not None:
                pass
        while make_rows.read(7) is not None:
            pass
        assert source.counters()["flows"] <= 40


REQUESTS = st.builds(Request, st.sampled_from([HOLDING, INPUT]), st.integers(0, 65_000), st.integers(1, 125))


@settings(max_examples=500)
@given(REQUESTS, st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES), st.binary(max_size=300))
def test_any_modbus_answer_is_registers_or_a_declared_error(request: Request, header: bytes, body: bytes) -> None:
    reasons: set[str] = set()
    sound = (7).to_bytes(2, "big") + b"\0\0"
    for start in (header, sound + header[4:6] + b"\x11"):
        try:
            size = request.body_bytes(start, 7, 17)
        except PeerError as error:
            reasons.add(error.reason)
        else:
            assert 1 <= size <= BODY_BYTES_MAX
    for answer in (body, bytes([request.function]) + body, bytes([request.function | 0x80]) + body[:1]):
        try:
            words = request.decode(answer)
        except PeerError as error:
            reasons.add(error.reason)
        else:
            assert len(words) == request.count
    assert reasons <= {"malformed", "transaction", "exception"}


BROKER_WORDS = st.one_of(
    st.sampled_from(
        [
            "1795800145: ",
            "2026-11-27T17:23:39: ",
            "17:29:46 info    vedette.broker: session ",
            "opened: ",
            "taken over: ",
            "refused: ",
            "New client connected from ",
            " as ",
            " (p2, c1, k60, u'x').",
            "Client ",
            "Client connection from ",
            "<unknown>",
            " disconnected",
            ": ",
            " due to ",
            ".",
            " closed its connection.",
            " already connected, closing old connection.",
            "[1] 2026/11/27 17:22:57.8 ",
            "[ERR] ",
            "[DBG] ",
            "a:1 - mid:5 - ",
            '"dev-a" - ',
            '"\\" - ',
            "Client connected",
            "Client connection closed: ",
            "Read Error",
            "Replacing old client ",
        ]
    ),
    st.text(max_size=12),
)


@settings(max_examples=300)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=200),
            st.text(max_size=100).map(str.encode),
            EVENTS.map(lambda event: json.dumps(event).encode()),
            st.tuples(st.sampled_from([b"<34>1 ", b"<0>Nov 27 06:12:33 h "]), st.binary(max_size=60)).map(b"".join),
            st.lists(BROKER_WORDS, max_size=8).map(lambda words: "".join(words).encode()),
        ),
        max_size=20,
    )
)
def test_any_log_line_is_counted_as_one_of_few_kinds_or_as_one_session_event(lines: list[bytes]) -> None:
    counter = LogLineCounts()
    for line in lines:
        counter.push(line)
    counts = counter.take()
    assert counts["log_lines"] == sum(bool(line.strip()) for line in lines)
    events = sum(counts.get(event.value, 0) for event in SessionEvent)
    assert sum(n for name, n in counts.items() if name.startswith("log_kind_")) + events == counts["log_lines"]
    assert counts.get(CLIENTS, 0) <= events
    assert len(counts) <= PLACES + 2 + len(SessionEvent) + 1
    NamedCounts(0.0, 1.0, counts)


PROC_FILES: dict[str, bytes] = {
    "stat": b"cpu  10 0 5 1000\nintr 50 1\nctxt 700\nprocesses 40\n",
    "net/dev": b"a|b\n eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n",
    "net/tcp": b"  sl\n   1: 0100007F:1F90 00000000:0000 0A 0\n",
    "net/udp6": b"  sl\n   1: 0100007F:1F90 00000000:0000 07 0\n",
    "sys/fs/file-nr": b"2624 0 9\n",
    "meminfo": b"MemTotal: 9 kB\nMemAvailable: 4 kB\n",
    "loadavg": b"0.52 0.40 0.30\n",
    "7/stat": b"7 (a) b) S 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 3 0 0\n",
    "utmp": b"\7\0\0\0" + b"\1" * 380,
}


@settings(max_examples=80)
@given(st.dictionaries(st.sampled_from(list(PROC_FILES)), CHANGES, max_size=5))
def test_any_process_file_system_gives_counts_that_can_be(changes: dict[str, list[tuple[int, int, bytes]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name, data in PROC_FILES.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
        behaviour = HostBehaviour(root, utmp=root / "utmp", btmp=root / "stat")
        behaviour.look(0.0)
        for name, how in changes.items():
            (root / name).write_bytes(damaged(PROC_FILES[name], how))
        assert behaviour.look(60.0) is not None


MAKERS: list[Callable[[], FlowParser]] = [ZeekParser, EveParser, NetflowCsvParser]


@pytest.mark.parametrize("make", MAKERS)
def test_nesting_and_long_numbers_are_refused_not_run_into(make: Callable[[], FlowParser]) -> None:
    for line in (b'{"flow":' + b"[" * 60_000, b'{"flow": 1' + b"0" * 60_000 + b"}", b"1," * 30_000, b"\t" * 60_000):
        parse_all(make(), line)
