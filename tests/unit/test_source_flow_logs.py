"""Flow logs of three kinds: the same flow from each, and what is refused with which reason."""

from __future__ import annotations

import ipaddress
import json
import math
from typing import Any

import pytest

from vedette_device.sources.errors import RowsError, SourceError
from vedette_device.sources.eve import EveParser
from vedette_device.sources.flow_record import (
    COUNT_MAX,
    DURATION_S_MAX,
    FLOW_REASONS,
    PROTOCOL_UNKNOWN,
    TIME_S_MAX,
    FlowParser,
    FlowRecord,
    FlowState,
    address_number,
    state_of_flags,
)
from vedette_device.sources.netflow_csv import NetflowCsvParser
from vedette_device.sources.zeek import ZeekParser
from vedette_schemas.errors import PeerError

START_S = 1_700_000_000.25
FLOW = FlowRecord(
    start_s=START_S,
    duration_s=1.5,
    originator=address_number("192.168.1.5"),
    responder=address_number("203.0.113.7"),
    originator_port=40_000,
    responder_port=1883,
    protocol=6,
    originator_bytes=600,
    responder_bytes=400,
    originator_packets=6,
    responder_packets=4,
    state=FlowState.ESTABLISHED,
)

ZEEK_HEADER = [
    b"#separator \\x09",
    b"#set_separator\t,",
    b"#empty_field\t(empty)",
    b"#unset_field\t-",
    b"#path\tconn",
    b"#open\t2023-11-14-22-13-20",
    b"#fields\tts\tuid\tid.orig_h\tid.orig_p\tid.resp_h\tid.resp_p\tproto\tservice\tduration\torig_bytes\tresp_bytes"
    b"\tconn_state\torig_pkts\torig_ip_bytes\tresp_pkts\tresp_ip_bytes",
    b"#types\ttime\tstring\taddr\tport\taddr\tport\tenum\tstring\tinterval\tcount\tcount\tstring\tcount\tcount\tcount"
    b"\tcount",
]
ZEEK_CELLS = {
    "ts": "1700000000.250000",
    "uid": "CtTmR31",
    "id.orig_h": "192.168.1.5",
    "id.orig_p": "40000",
    "id.resp_h": "203.0.113.7",
    "id.resp_p": "1883",
    "proto": "tcp",
    "service": "-",
    "duration": "1.500000",
    "orig_bytes": "300",
    "resp_bytes": "200",
    "conn_state": "SF",
    "orig_pkts": "6",
    "orig_ip_bytes": "600",
    "resp_pkts": "4",
    "resp_ip_bytes": "400",
}
ZEEK_JSON: dict[str, Any] = {
    "ts": START_S,
    "uid": "CtTmR31",
    "id.orig_h": "192.168.1.5",
    "id.orig_p": 40_000,
    "id.resp_h": "203.0.113.7",
    "id.resp_p": 1883,
    "proto": "tcp",
    "duration": 1.5,
    "conn_state": "SF",
    "local_orig": True,
    "tunnel_parents": ["x"],
    "orig_pkts": 6,
    "orig_ip_bytes": 600,
    "resp_pkts": 4,
    "resp_ip_bytes": 400,
}
EVE: dict[str, Any] = {
    "timestamp": "2023-11-14T22:14:00.000000+0000",
    "event_type": "flow",
    "src_ip": "192.168.1.5",
    "src_port": 40_000,
    "dest_ip": "203.0.113.7",
    "dest_port": 1883,
    "proto": "TCP",
    "flow": {
        "pkts_toserver": 6,
        "pkts_toclient": 4,
        "bytes_toserver": 600,
        "bytes_toclient": 400,
        "start": "2023-11-14T23:13:20.250000+0100",
        "end": "2023-11-14T23:13:21.750000+0100",
        "age": 1,
        "state": "closed",
        "reason": "timeout",
    },
    "tcp": {"tcp_flags": "1b", "tcp_flags_ts": "1b", "tcp_flags_tc": "1b"},
}
NFDUMP_HEADER = b"ts,te,td,sa,da,sp,dp,pr,flg,ipkt,ibyt,opkt,obyt"
NFDUMP = (
    "2023-11-14 22:13:20.250,2023-11-14 22:13:21.750,1.5,192.168.1.5,203.0.113.7,40000,1883,TCP,...AP.SF,6,600,4,400"
)
V9_HEADER = (
    b"IPV4_SRC_ADDR,L4_SRC_PORT,IPV4_DST_ADDR,L4_DST_PORT,PROTOCOL,L7_PROTO,IN_BYTES,IN_PKTS,OUT_BYTES,OUT_PKTS,"
    b"TCP_FLAGS,CLIENT_TCP_FLAGS,SERVER_TCP_FLAGS,FLOW_DURATION_MILLISECONDS,FLOW_START_MILLISECONDS"
)
V9 = "192.168.1.5,40000,203.0.113.7,1883,6,7.0,600,6,400,4,27,27,27,1500,1700000000250"


def zeek(**changes: str | None) -> bytes:
    cells = {**ZEEK_CELLS, **{name.replace("__", "."): value for name, value in changes.items()}}
    return "\t".join(str(cell) for cell in cells.values() if cell is not None).encode()


def zeek_parser() -> ZeekParser:
    parser = ZeekParser()
    assert [parser.parse(line) for line in ZEEK_HEADER] == [None] * len(ZEEK_HEADER)
    return parser


def eve(**changes: Any) -> bytes:
    event = json.loads(json.dumps(EVE))
    for name, value in changes.items():
        event["flow" if name in EVE["flow"] else name] = (
            {**event["flow"], name: value} if name in EVE["flow"] else value
        )
    return json.dumps(event).encode()


def csv_parser(header: bytes = NFDUMP_HEADER, *, untimed: bool = False) -> NetflowCsvParser:
    parser = NetflowCsvParser(untimed=untimed)
    assert parser.parse(header) is None
    return parser


def refusal(parser: ZeekParser | EveParser | NetflowCsvParser, line: bytes) -> str:
    with pytest.raises(PeerError) as caught:
        parser.parse(line)
    assert caught.value.reason in FLOW_REASONS
    return caught.value.reason


def test_all_logs_tell_of_the_same_flow() -> None:
    assert zeek_parser().parse(zeek()) == FLOW
    assert ZeekParser().parse(json.dumps(ZEEK_JSON).encode()) == FLOW
    assert EveParser().parse(json.dumps(EVE).encode()) == FLOW
    assert csv_parser().parse(NFDUMP.encode()) == FLOW
    assert csv_parser(V9_HEADER).parse(V9.encode()) == FLOW


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"start_s": -1.0}, "time"),
        ({"start_s": math.nan}, "time"),
        ({"start_s": TIME_S_MAX * 1.001}, "time"),
        ({"duration_s": -0.1}, "duration"),
        ({"duration_s": math.inf}, "duration"),
        ({"duration_s": DURATION_S_MAX + 1}, "duration"),
        ({"originator": 1 << 128}, "address"),
        ({"responder_port": 65_536}, "port"),
        ({"protocol": 256}, "protocol"),
        ({"responder_bytes": -1}, "count"),
        ({"originator_packets": COUNT_MAX + 1}, "count"),
    ],
)
def test_a_record_out_of_range_is_refused(changes: dict[str, Any], reason: str) -> None:
    fields = {name: getattr(FLOW, name) for name in FlowRecord.__slots__}
    with pytest.raises(PeerError) as caught:
        FlowRecord(**{**fields, **changes})
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (zeek(uid=None), "field_count"),
        (zeek(ts="yesterday"), "not_a_number"),
        (zeek(ts="nan"), "not_a_number"),
        (zeek(ts="-"), "missing"),
        (zeek(id__orig_h="192.168.1.256"), "address"),
        (zeek(id__orig_p="70000"), "port"),
        (zeek(id__resp_p="http"), "port"),
        (zeek(proto="300"), "protocol"),
        (zeek(duration="-1"), "duration"),
        (zeek(orig_ip_bytes="1e3"), "not_a_number"),
        (zeek(orig_ip_bytes="9" * 20), "count"),
        (zeek(orig_ip_bytes="9" * 5_000), "not_a_number"),
        (zeek(resp_pkts="-4"), "not_a_number"),
        (b"\xff\xfe", "not_text"),
        (b'{"ts": 1', "not_json"),
        (b"{" * 100_000, "not_json"),
        (b'{"ts": 1.0}', "missing"),
        (json.dumps({**ZEEK_JSON, "ts": "2023-99-99T00:00:00Z"}).encode(), "time"),
        (json.dumps({**ZEEK_JSON, "orig_pkts": True}).encode(), "not_a_number"),
    ],
)
def test_broken_zeek_lines_are_refused_and_the_next_is_read(line: bytes, reason: str) -> None:
    parser = zeek_parser()
    assert refusal(parser, line) == reason
    assert parser.parse(zeek()) == FLOW


def test_zeeks_marks_are_taken_from_its_header() -> None:
    parser = ZeekParser()
    header = [line.replace(b"\t", b"|").replace(b"\\x09", b"\\x7c") for line in ZEEK_HEADER]
    header[3] = b"#unset_field|NONE"
    for line in header:
        parser.parse(line)
    line = zeek(duration="NONE", orig_ip_bytes="(empty)", conn_state="NONE").replace(b"\t", b"|")
    flow = parser.parse(line)
    assert flow is not None
    assert (flow.duration_s, flow.originator_bytes, flow.state) == (0.0, 300, FlowState.OTHER)


def test_a_zeek_line_before_its_header_and_another_log_are_refused() -> None:
    assert refusal(ZeekParser(), zeek()) == "no_header"
    with pytest.raises(RowsError, match=r"dns\.log, expected conn\.log"):
        zeek_parser().parse(b"#path\tdns")
    with pytest.raises(RowsError, match=r"lacks id\.resp_h, proto"):
        ZeekParser().parse(b"#fields\tts\tid.orig_h")


def test_zeeks_iso_times_are_utc_with_or_without_a_zone() -> None:
    for text in ("2023-11-14T22:13:20.250000Z", "2023-11-14T22:13:20.250000"):
        flow = ZeekParser().parse(json.dumps({**ZEEK_JSON, "ts": text}).encode())
        assert flow == FLOW


def test_an_icmp_type_is_no_port() -> None:
    flow = zeek_parser().parse(zeek(proto="icmp", id__orig_p="8", id__resp_p="0"))
    assert flow is not None
    assert (flow.protocol, flow.originator_port, flow.responder_port) == (1, 0, 0)
    flow = zeek_parser().parse(zeek(proto="icmp", id__orig_h="fe80::1%eth0", id__orig_p="135"))
    assert flow is not None
    assert (flow.protocol, flow.originator) == (58, int(ipaddress.ip_address("fe80::1")))
    flow = csv_parser().parse(NFDUMP.replace("TCP", "ICMP").replace("1883", "8.0").encode())
    assert flow is not None
    assert (flow.protocol, flow.originator_port, flow.responder_port) == (1, 0, 0)


@pytest.mark.parametrize(
    ("state", "expected"),
    [("S0", FlowState.ATTEMPT), ("REJ", FlowState.REJECTED), ("RSTO", FlowState.RESET), ("??", FlowState.OTHER)],
)
def test_zeeks_states(state: str, expected: FlowState) -> None:
    flow = zeek_parser().parse(zeek(conn_state=state))
    assert flow is not None
    assert flow.state is expected


def test_only_tcp_has_a_state() -> None:
    flows = zeek_parser().parse(zeek(proto="udp", conn_state="S0")), EveParser().parse(eve(proto="UDP"))
    for flow in (*flows, csv_parser().parse(NFDUMP.replace("TCP", "UDP").encode())):
        assert flow is not None
        assert (flow.protocol, flow.state) == (17, FlowState.OTHER)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (eve(flow=None), "missing"),
        (eve(src_ip=None), "missing"),
        (eve(src_ip="host"), "address"),
        (eve(src_port="40000"), "port"),
        (eve(dest_port=-1), "port"),
        (eve(pkts_toserver=1.5), "not_a_number"),
        (eve(bytes_toclient=10**30), "not_a_number"),
        (eve(bytes_toclient=True), "not_a_number"),
        (eve(start="2023-11-14T23:13:20"), "time"),
        (eve(start="now"), "time"),
        (b'{"event_type": "flow", ', "not_json"),
        (b'["flow"]', "not_json"),
        (b'\xff"flow"', "not_text"),
    ],
)
def test_broken_eve_lines_are_refused(line: bytes, reason: str) -> None:
    assert refusal(EveParser(), line) == reason


def test_other_eve_events_are_passed_over() -> None:
    assert EveParser().parse(eve(event_type="alert")) is None
    assert EveParser().parse(b'{"event_type": "dns", "dns": {}}') is None
    assert EveParser().parse(b"  ") is None


def test_eve_without_an_end_or_flags() -> None:
    event = json.loads(json.dumps(EVE))
    del event["flow"]["end"], event["tcp"]
    flow = EveParser().parse(json.dumps(event).encode())
    assert flow is not None
    assert (flow.duration_s, flow.state) == (1.0, FlowState.ESTABLISHED)
    flow = EveParser().parse(eve(end="2023-11-14T23:13:19.000000+0100"))
    assert flow is not None
    assert flow.duration_s == 0.0


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (NFDUMP + ",1", "field_count"),
        (NFDUMP.replace("2023-11-14 22:13:20.250", ""), "missing"),
        (NFDUMP.replace("2023-11-14 22:13:20.250", "2023-13-14 22:13:20"), "time"),
        (NFDUMP.replace("192.168.1.5", "gateway"), "address"),
        (NFDUMP.replace(",1883,", ",x,"), "port"),
        (NFDUMP.replace(",600,", ",6 M,"), "not_a_number"),
        ("Summary", "field_count"),
        ('"' + "a" * 200_000 + '"', "not_text"),
    ],
)
def test_broken_netflow_lines_are_refused(line: str, reason: str) -> None:
    assert refusal(csv_parser(), line.encode()) == reason


def test_a_repeated_header_is_passed_over() -> None:
    parser = csv_parser()
    assert parser.parse(NFDUMP_HEADER + b"\r") is None
    assert parser.parse(NFDUMP.encode() + b"\r") == FLOW


def test_a_table_without_what_is_needed_is_refused_as_a_whole() -> None:
    with pytest.raises(RowsError, match="responder, protocol"):
        csv_parser(b"ts,sa,x")
    untimed = V9_HEADER.removesuffix(b",FLOW_START_MILLISECONDS")
    with pytest.raises(RowsError, match="start time"):
        csv_parser(untimed)
    flow = csv_parser(untimed, untimed=True).parse(V9.rpartition(",")[0].encode())
    assert flow is not None
    assert (flow.start_s, flow.duration_s) == (0.0, 1.5)


def test_a_flow_whose_ends_are_the_wrong_way_round_is_turned() -> None:
    """As in NF-BoT-IoT: the server's RST-ACK was exported first, the client's SYN as the answer."""
    line = "192.168.1.5,80,192.168.1.9,20820,6,7.0,40,1,140,2,22,20,2,0,1700000000250"
    flow = csv_parser(V9_HEADER).parse(line.encode())
    assert flow is not None
    assert flow.originator == address_number("192.168.1.9")
    assert (flow.originator_port, flow.responder_port) == (20_820, 80)
    assert (flow.originator_bytes, flow.responder_bytes) == (140, 40)
    assert (flow.originator_packets, flow.responder_packets) == (2, 1)
    assert flow.state is FlowState.REJECTED


@pytest.mark.parametrize(
    ("originator", "responder", "state"),
    [
        (0x02, 0x00, FlowState.ATTEMPT),
        (0x06, 0x00, FlowState.ATTEMPT),
        (0x02, 0x14, FlowState.REJECTED),
        (0x1B, 0x1B, FlowState.ESTABLISHED),
        (0x1F, 0x1B, FlowState.RESET),
        (0x18, 0x18, FlowState.OTHER),
        (0x00, 0x00, FlowState.OTHER),
    ],
)
def test_states_by_flags(originator: int, responder: int, state: FlowState) -> None:
    assert state_of_flags(originator, responder) is state


def test_flags_of_a_flow_of_one_direction() -> None:
    for text, state in (("......S.", FlowState.ATTEMPT), ("0x02", FlowState.ATTEMPT), ("2", FlowState.ATTEMPT)):
        flow = csv_parser().parse(NFDUMP.replace("...AP.SF", text).encode())
        assert flow is not None
        assert flow.state is state


def test_a_protocol_that_is_not_known_is_no_fault() -> None:
    flow = zeek_parser().parse(zeek(proto="unknown_transport"))
    assert flow is not None
    assert flow.protocol == PROTOCOL_UNKNOWN


def test_a_header_is_kept_over_a_restart() -> None:
    parsers: list[tuple[FlowParser, FlowParser, bytes]]
    parsers = [(zeek_parser(), ZeekParser(), zeek()), (csv_parser(), NetflowCsvParser(), NFDUMP.encode())]
    for before, after, line in parsers:
        after.restore(before.context())
        assert after.parse(line) == FLOW
        assert after.context() == before.context()


@pytest.mark.parametrize("context", ["{", "[1, 2, 3, 4, 5]", '["", "", "", ""]', "[" * 50_000, '"' + "a" * 40_000])
def test_a_damaged_header_is_refused(context: str) -> None:
    for parser in (ZeekParser(), NetflowCsvParser()):
        with pytest.raises(SourceError):
            parser.restore(context)
