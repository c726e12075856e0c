"""What `fuzz.py` is aimed at: every parser that reads bytes from outside, with sound inputs of its own.

Here are the sources of a gateway, as they are used: from a file or a frame through the parser into feature windows,
which must be finite. The conversations are in `fuzz_wire.py`.
"""

from __future__ import annotations

import gzip
import json
import lzma
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol

import numpy as np

from vedette_device.features import NetworkWindower, Window
from vedette_device.features.flow_logs import FlowLogWindower
from vedette_device.features.sensor import SensorWindower
from vedette_device.sources import (
    CaptureFile,
    ChannelTopic,
    CsvFile,
    FlowLog,
    JsonRows,
    LogLineCounts,
    NamedCounts,
    Register,
    SampleAligner,
    SampleSource,
    SourceError,
    TopicDecoder,
)
from vedette_device.sources.broker_log import CLIENTS, SessionEvent
from vedette_device.sources.dissect import dissect
from vedette_device.sources.flow_log import PARSERS
from vedette_device.sources.link import LINK_TYPES
from vedette_device.sources.log_lines import PLACES
from vedette_device.sources.modbus_frames import HEADER_BYTES, plan, readings
from vedette_device.sources.packets import Frames, padded
from vedette_schemas.errors import TransientError

if TYPE_CHECKING or __package__:
    from bench.fuzz_attestation import ATTESTATION
    from bench.fuzz_certificates import CERTIFICATES
    from bench.fuzz_trust import TRUST
    from bench.fuzz_wire import WIRE, Target
else:
    from fuzz_attestation import ATTESTATION
    from fuzz_certificates import CERTIFICATES
    from fuzz_trust import TRUST
    from fuzz_wire import WIRE, Target

START_S: Final = 1_700_000_000
LOCAL, REMOTE = bytes([192, 168, 1, 5]), bytes([203, 0, 113, 7])
LOCAL6, REMOTE6 = bytes.fromhex("fd00" + "00" * 13 + "05"), bytes.fromhex("20010db8" + "00" * 11 + "07")
SOURCE_FAULTS: Final = (SourceError, TransientError)

# -- frames and captures ----------------------------------------------------------------------------------------------


def _ipv4(protocol: int, body: bytes, *, fragment: int = 0, options: bytes = b"") -> bytes:
    size = 20 + len(options)
    head = struct.pack("!BBHHHBBH", 0x40 | size // 4, 0, size + len(body), 1, fragment, 64, protocol, 0)
    return head + LOCAL + REMOTE + options + body


def _ipv6(following: int, body: bytes) -> bytes:
    return struct.pack("!IHBB", 6 << 28, len(body), following, 64) + LOCAL6 + REMOTE6 + body


def _tcp(ports: tuple[int, int], flags: int, payload: bytes = b"", options: bytes = b"") -> bytes:
    return struct.pack("!HHIIBBHHH", *ports, 1, 1, (20 + len(options)) << 2, flags, 4096, 0, 0) + options + payload


def _udp(ports: tuple[int, int], payload: bytes) -> bytes:
    return struct.pack("!HHHH", *ports, 8 + len(payload), 0) + payload


def _ethernet(ethertype: int, body: bytes, tags: Sequence[int] = ()) -> bytes:
    tagged = b"".join(struct.pack("!HH", tag, 5) for tag in tags)
    return b"\x02" * 12 + tagged + struct.pack("!H", ethertype) + body


def sound_frames() -> list[bytes]:
    """One Ethernet frame of everything that is dissected."""
    query = b"\x12\x34\x01\x00\x00\x01" + bytes(6) + b"\x07example\x03net\x00\x00\x01\x00\x01"
    extended = b"\x2b\x00" + bytes(6) + b"\x2c\x00" + bytes(6) + b"\x3a\x00\x00\x01" + bytes(4) + b"\x80" + bytes(7)
    arp = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, b"\x02" * 6, LOCAL, bytes(6), REMOTE)
    publish = b"\x30\x0b\x00\x07a/b/c/d{}"
    return [
        _ethernet(0x0800, _ipv4(6, _tcp((40_000, 1883), 0x18, publish, b"\x02\x04\x05\xb4"))),
        _ethernet(0x0800, _ipv4(6, _tcp((40_000, 443), 0x02))),
        _ethernet(0x0800, _ipv4(17, _udp((40_000, 53), query))),
        _ethernet(0x0800, _ipv4(6, _tcp((40_001, 53), 0x18, struct.pack("!H", len(query)) + query))),
        _ethernet(0x0800, _ipv4(1, b"\x08\x00\x00\x00" + bytes(8), options=b"\x01" * 8), [0x8100]),
        _ethernet(0x0800, _ipv4(17, bytes(40), fragment=0x20B9)),
        _ethernet(0x86DD, _ipv6(58, b"\x80\x00\x00\x00" + bytes(8)), [0x88A8, 0x8100]),
        _ethernet(0x86DD, _ipv6(0, extended)),
        _ethernet(0x86DD, _ipv6(17, _udp((5_353, 53), query))),
        _ethernet(0x0806, arp),
    ]


def _frames_target(_: Path) -> Target:
    """One frame, taken for one of every link type at once."""
    links = np.array(sorted(LINK_TYPES), dtype=np.int64)

    def run(data: bytes) -> bool:
        n = len(links)
        row = np.full(n, len(data), dtype=np.int64)
        time_ns = START_S * 10**9 + np.arange(n, dtype=np.int64) * 10**9
        batch, _ = dissect(Frames(padded(data), np.zeros(n, np.int64), row, row + 7, time_ns, links))
        if len(batch) and (batch.size.min() < 0 or batch.payload.min() < 0 or batch.dns_name_length.min() < -1):
            raise AssertionError("a packet of negative size")
        windower = NetworkWindower()
        _check(windower.push(batch) + windower.flush())
        return len(batch) > 0

    return Target((*sound_frames(), *(frame[14:] for frame in sound_frames()[:4])), run)


def sound_pcap(order: str = "<", magic: int = 0xA1B2C3D4) -> bytes:
    """A pcap with every sound frame twice."""
    parts = [struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 262_144, 1)]
    for i, frame in enumerate(sound_frames() * 2):
        parts.append(struct.pack(order + "IIII", START_S + i, 5, len(frame), len(frame)) + frame)
    return b"".join(parts)


def sound_pcapng(order: str = "<") -> bytes:
    """A pcapng with a section, an interface in nanoseconds, and every sound frame in both kinds of packet block."""

    def block(kind: int, body: bytes) -> bytes:
        body += bytes(-len(body) % 4)
        size = struct.pack(order + "I", 12 + len(body))
        return struct.pack(order + "I", kind) + size + body + size

    options = struct.pack(order + "HHB3xHHq", 9, 1, 9, 14, 8, 0) + bytes(4)
    parts = [block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))]
    parts.append(block(1, struct.pack(order + "HHI", 1, 0, 0) + options))
    for i, frame in enumerate(sound_frames()):
        high, low = divmod((START_S + i) * 10**9, 1 << 32)
        parts.append(block(6, struct.pack(order + "IIIII", 0, high, low, len(frame), len(frame)) + frame))
        parts.append(block(3, struct.pack(order + "I", len(frame)) + frame))
    return b"".join([*parts, block(5, bytes(12))])


def _capture(seeds: Callable[[], Iterable[bytes]]) -> Callable[[Path], Target]:
    def make(folder: Path) -> Target:
        path = folder / "capture"

        def run(data: bytes) -> bool:
            path.write_bytes(data)
            source, windower, packets = CaptureFile(path), NetworkWindower(), 0
            try:
                while (batch := source.read(64)) is not None:
                    packets += len(batch)
                    _check(windower.push(batch))
            finally:
                source.close()
                _check(windower.flush())
            return packets > 0

        return Target(tuple(seeds()), run, SOURCE_FAULTS)

    return make


def _check(windows: Iterable[Window]) -> None:
    for window in windows:
        if not np.isfinite(window.values).all():
            raise AssertionError(f"a window of {window.entity[:80]} is not finite")


# -- logs and tables --------------------------------------------------------------------------------------------------

ZEEK: Final = (
    b"#separator \\x09\n#set_separator\t,\n#empty_field\t(empty)\n#unset_field\t-\n#path\tconn\n#fields\tts\tuid\t"
    b"id.orig_h\tid.orig_p\tid.resp_h\tid.resp_p\tproto\tduration\torig_bytes\tresp_bytes\tconn_state\torig_pkts\t"
    b"orig_ip_bytes\n1700000000.5\tC1\t192.168.1.5\t40000\t203.0.113.7\t443\ttcp\t1.5\t100\t900\tSF\t4\t260\n"
    b"1700000003.1\tC2\tfe80::1\t5353\tff02::fb\t5353\tudp\t-\t-\t-\tS0\t1\t90\n#close\t2023-11-14-22-13-20\n"
)
ZEEK_JSON: Final = (
    b'{"ts":1700000000.5,"id.orig_h":"192.168.1.5","id.orig_p":40000,"id.resp_h":"203.0.113.7","id.resp_p":443,'
    b'"proto":"tcp","duration":1.5,"orig_bytes":100,"conn_state":"REJ","orig_pkts":3}\n'
    b'{"ts":"2023-11-14T22:13:20.5Z","id.orig_h":"fe80::1","id.resp_h":"ff02::fb","proto":"icmp","id.orig_p":8}\n'
)
EVE: Final = (
    b'{"event_type":"flow","src_ip":"192.168.1.5","src_port":40000,"dest_ip":"203.0.113.7","dest_port":443,"proto":'
    b'"TCP","flow":{"start":"2023-11-14T22:13:20.25+0100","end":"2023-11-14T22:13:21.25+0100","pkts_toserver":6,'
    b'"pkts_toclient":4,"bytes_toserver":600,"bytes_toclient":400,"age":1,"state":"closed"},"tcp":{"tcp_flags_ts":'
    b'"1b","tcp_flags_tc":"1b"}}\n{"event_type":"dns"}\n{"event_type":"flow","src_ip":"::1","dest_ip":"::2","proto":'
    b'"UDP","flow":{"start":"2023-11-14T22:13:22Z","age":3}}\n'
)
NETFLOW: Final = (
    b"ts,te,td,sa,da,sp,dp,pr,flg,ipkt,ibyt,opkt,obyt\n"
    b"2023-11-14 22:13:20.250,2023-11-14 22:13:21,1.5,192.168.1.5,::1,40000,1883,TCP,...AP.SF,6,600,4,400\n"
    b"1700000000,1700000001,1.5,192.168.1.5,203.0.113.7,0,8.0,ICMP,0x1b,6,600.0,4,400\n"
)
NETFLOW_V9: Final = (
    b"IPV4_SRC_ADDR,L4_SRC_PORT,IPV4_DST_ADDR,L4_DST_PORT,PROTOCOL,IN_BYTES,IN_PKTS,OUT_BYTES,OUT_PKTS,"
    b"CLIENT_TCP_FLAGS,SERVER_TCP_FLAGS,FLOW_START_MILLISECONDS,FLOW_DURATION_MILLISECONDS\n"
    b"192.168.1.5,40000,203.0.113.7,443,6,600,6,400,4,27,18,1700000000000,1500\n"
)
LOG_LINES: Final = (
    b"<34>1 2023-11-14T22:13:20.5Z gw sshd 812 ID47 - Failed password for root from 203.0.113.7 port 40022 ssh2\n"
    b"<13>Nov 14 22:13:20 gw kernel: [12.5] usb 1-1: new high-speed USB device\n"
    b'{"MESSAGE":"Started session 4","SYSLOG_IDENTIFIER":"systemd","PRIORITY":"6"}\n'
    b"2023-11-14T22:13:21+00:00 gw app[7]: level=info took=12ms\n"
)
BROKER_LINES: Final = (
    b"1700000000: New client connected from 192.0.2.7:39084 as dev-a (p2, c1, k60, u'dev-a').\n"
    b"2023-11-14T22:13:20: Client dev-a disconnected: Protocol error.\n"
    b"Nov 14 22:13:20 gw mosquitto[812]: 1700000000: Client <unknown> disconnected, not authorised.\n"
    b"22:13:20 info    vedette.broker: session taken over: dev-a: by a newer connection\n"
    b'{"time": "t", "level": "info", "logger": "vedette.broker", "message": "session opened: dev-a"}\n'
    b'[812] 2023/11/14 22:13:20.883760 [DBG] 192.0.2.7:59466 - mid:5 - "dev-a" - Client connection closed: Read Error\n'
    b"[812] 2023/11/14 22:13:20.883760 [ERR] 192.0.2.7:57800 - mid:4 - TLS handshake error: EOF\n"
)
CHANNELS: Final = ("level", "flow")
CSV: Final = b'time_s,level,flow\n0.0,1.5,2\n1.0,"1.25",-3e2\n2.5,0x,1\n3.0,1e3,4\n'
CSV_ISO: Final = b"time_s,level,flow\n2023-11-14T22:13:20Z,1.5,2\n2023-11-14 22:13:21.5,1.25,3\n2023-11-14,1,2\n"
JSON_ROWS: Final = b"".join(
    json.dumps({"time_s": START_S + i, "level": 1.5 * i, "flow": bool(i % 2), "more": [None]}).encode() + b"\n"
    for i in range(4)
)


def _flow_log(kind: str, *seeds: bytes) -> Callable[[Path], Target]:
    def make(folder: Path) -> Target:
        path = folder / "log"

        def run(data: bytes) -> bool:
            path.write_bytes(data)
            source, windower, flows = FlowLog(path, PARSERS[kind]), FlowLogWindower(), 0
            try:
                while (batch := source.read()) is not None:
                    flows += len(batch)
                    _check(windower.push(batch))
            finally:
                source.close()
                _check(windower.flush())
            return flows > 0

        return Target(seeds, run, SOURCE_FAULTS)

    return make


class _Opens(Protocol):
    def __call__(self, path: Path) -> SampleSource: ...


def _rows(opened: _Opens, *seeds: bytes) -> Callable[[Path], Target]:
    def make(folder: Path) -> Target:
        path = folder / "rows"

        def run(data: bytes) -> bool:
            path.write_bytes(data)
            source, windower, rows = opened(path), SensorWindower("tank", CHANNELS), 0
            try:
                while (batch := source.read()) is not None:
                    rows += len(batch)
                    _check(windower.push(batch))
            finally:
                source.close()
            return rows > 0

        return Target(seeds, run, SOURCE_FAULTS)

    return make


def _csv(time_format: Literal["seconds", "iso8601"]) -> _Opens:
    return lambda path: CsvFile(path, CHANNELS, time_format=time_format)


def _log_lines_target(_: Path) -> Target:
    """Lines of a system's log; nothing of them is ever refused."""

    def run(data: bytes) -> bool:
        counter = LogLineCounts()
        for line in data.split(b"\n"):
            counter.push(line)
        counts = counter.take()
        events = sum(counts.get(event.value, 0) for event in SessionEvent)
        if len(counts) > PLACES + 2 + len(SessionEvent) + 1 or counts.get(CLIENTS, 0) > events:
            raise AssertionError(f"{len(counts)} kinds of lines, {events} of sessions")
        kinds = sum(count for name, count in counts.items() if name.startswith("log_kind_"))
        if kinds + events != counts["log_lines"]:
            raise AssertionError(f"{counts['log_lines']} lines, {kinds} of kinds, {events} of sessions")
        return bool(NamedCounts(0.0, 1.0, counts).counts)

    lines = LOG_LINES + BROKER_LINES
    return Target((lines, *lines.splitlines(keepends=True)), run)


# -- sensors ----------------------------------------------------------------------------------------------------------


def _readings_target(_: Path) -> Target:
    """Readings that come over MQTT, one payload a line, with the sensor's own time and with the time of arrival."""
    topic = "plant/tank"
    channels = [
        ChannelTopic("level", topic, '$.a["b c"][0]', "$.t"),
        ChannelTopic("flow", "plant/+", "$.flow"),
    ]

    def run(data: bytes) -> bool:
        decoder = TopicDecoder(channels)
        aligner = SampleAligner(decoder.channels, period_s=0.5, age_max_s=60.0)
        windower = SensorWindower("tank", CHANNELS, period_s=0.5)
        for i, payload in enumerate(data.split(b"\n")):
            _check(windower.push(aligner.push(decoder.decode(topic, payload, START_S + float(i)))))
        _check(windower.push(aligner.advance(START_S + 1_000.0)))
        float(sum(aligner.counters().values()))  # every count goes into a metric, which is a float
        return decoder.counters()["samples"] > 0

    lines = [{"t": START_S + i, "a": {"b c": [1.5 + i]}, "flow": i * 0.25} for i in range(6)]
    payload = "\n".join(map(json.dumps, lines)).encode()
    return Target((payload, json.dumps(lines[0]).encode()), run)


def _modbus_target(_: Path) -> Target:
    """Answers of a Modbus TCP device, one behind another as they come."""
    registers = (
        Register("level", 0, "holding", "float32"),
        Register("flow", 2, "holding", "int16", scale=0.1),
        Register("total", 9, "input", "uint32", "little"),
    )
    requests = plan(registers)

    def run(data: bytes) -> bool:
        answers, at = {}, 0
        for number, request in enumerate(requests, start=1):
            header = data[at : at + HEADER_BYTES]
            if len(header) < HEADER_BYTES:
                return False  # the stream ends: an error of the connection
            size = request.body_bytes(header, number, 1)
            body = data[at + HEADER_BYTES : at + HEADER_BYTES + size]
            if len(body) < size:
                return False
            answers[request] = request.decode(body)
            at += HEADER_BYTES + size
        return bool(np.isfinite(readings(registers, answers)).all())

    sound = b"".join(
        struct.pack(">HHHBBB", number, 0, 3 + 2 * r.count, 1, r.function, 2 * r.count) + b"\x41\x20" * r.count
        for number, r in enumerate(requests, start=1)
    )
    refused = struct.pack(">HHHBBB", 1, 0, 3, 1, requests[0].function | 0x80, 2)
    return Target((sound, refused), run)


TARGETS: Final[dict[str, Callable[[Path], Target]]] = {
    "frames": _frames_target,
    "pcap": _capture(lambda: (sound_pcap(), sound_pcap(">"), sound_pcap(magic=0xA1B23C4D))),
    "pcapng": _capture(lambda: (sound_pcapng(), sound_pcapng(">"), sound_pcapng() + sound_pcapng(">"))),
    "compressed": _capture(
        lambda: (
            gzip.compress(sound_pcap(), mtime=0),
            gzip.compress(sound_pcap()[:500], mtime=0) + gzip.compress(sound_pcap()[500:], mtime=0),
            lzma.compress(sound_pcapng()),
        )
    ),
    "zeek": _flow_log("zeek", ZEEK),
    "zeek_json": _flow_log("zeek", ZEEK_JSON),
    "eve": _flow_log("eve", EVE),
    "netflow": _flow_log("netflow", NETFLOW, NETFLOW_V9),
    "csv": _rows(_csv("seconds"), CSV),
    "csv_iso8601": _rows(_csv("iso8601"), CSV_ISO),
    "json_rows": _rows(lambda path: JsonRows(path, CHANNELS), JSON_ROWS),
    "log_lines": _log_lines_target,
    "readings": _readings_target,
    "modbus": _modbus_target,
    **ATTESTATION,
    **WIRE,
    **CERTIFICATES,
    **TRUST,
}
"""Name of a parser → how its target is made in a folder for its file."""
