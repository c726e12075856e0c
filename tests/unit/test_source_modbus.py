"""Modbus TCP: what registers mean, which requests are made, and devices that misbehave on a live loopback."""

from __future__ import annotations

import asyncio
import math
import struct
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from vedette.demo.fleet import free_port
from vedette_device.modbus_stream import SensorModbusStream
from vedette_device.settings import SensorSection
from vedette_device.sources.modbus import COUNTERS, REFUSED, ModbusPoller
from vedette_device.sources.modbus_frames import (
    BODY_BYTES_MAX,
    HEADER_BYTES,
    HOLDING,
    INPUT,
    REGISTERS_MAX,
    Register,
    Request,
    plan,
    readings,
)
from vedette_schemas.errors import ConfigError, PeerError, TransientError

UNIT = 17
Answer = Callable[[bytes], bytes | None]
"""From a request to what the device sends; None to send nothing, ``b""`` to close."""

FLOAT = struct.unpack(">HH", struct.pack(">f", -12.5))
REGISTERS = [
    Register("temperature", 0, kind="int16", scale=0.1, offset=-40.0),
    Register("level", 1),
    Register("energy", 2, kind="uint32", word_order="little"),
    Register("flow", 10, table="input", kind="float32"),
]
HOLDING_WORDS = {0: 0xFFFF, 1: 500, 2: 0x0002, 3: 0x0001}
EXPECTED = [-40.1, 500.0, 65_538.0, -12.5]


def honest(request: bytes) -> bytes:
    """What a sound device answers."""
    transaction, _, _, unit, function, first, count = struct.unpack(">HHHBBHH", request)
    table = HOLDING_WORDS if function == HOLDING else {10: FLOAT[0], 11: FLOAT[1]}
    if function not in (HOLDING, INPUT) or not all(a in table for a in range(first, first + count)):
        return struct.pack(">HHHBBB", transaction, 0, 3, unit, function | 0x80, 2)
    words = [table[a] for a in range(first, first + count)]
    return struct.pack(f">HHHBBB{count}H", transaction, 0, 3 + 2 * count, unit, function, 2 * count, *words)


def against(answer: Answer, talk: Callable[[int], Awaitable[None]], *, piece: int = 1_000) -> None:
    """Run ``talk`` with the port of a server that answers each request as told, in pieces."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                sent = answer(await reader.readexactly(12))
                if sent == b"":
                    break
                for at in range(0, len(sent or b""), piece):
                    writer.write((sent or b"")[at : at + piece])
                    await writer.drain()
                    await asyncio.sleep(0)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        try:
            await talk(server.sockets[0].getsockname()[1])
        finally:
            server.close()

    asyncio.run(run())


def poller(port: int, registers: list[Register] | None = None, timeout_s: float = 5.0) -> ModbusPoller:
    return ModbusPoller("127.0.0.1", port, UNIT, registers or REGISTERS, timeout_s=timeout_s)


@pytest.mark.parametrize(
    ("kind", "order", "words", "value"),
    [
        ("uint16", "big", (65_535,), 65_535.0),
        ("int16", "big", (65_535,), -1.0),
        ("uint32", "big", (1, 2), 65_538.0),
        ("uint32", "little", (2, 1), 65_538.0),
        ("int32", "big", (65_535, 65_535), -1.0),
        ("float32", "big", FLOAT, -12.5),
        ("float32", "little", FLOAT[::-1], -12.5),
        ("float32", "big", (0x7F80, 0), math.inf),
    ],
)
def test_what_registers_mean(kind: Any, order: Any, words: tuple[int, ...], value: float) -> None:
    assert Register("c", 0, kind=kind, word_order=order).reading(words) == value
    if math.isfinite(value):
        assert Register("c", 0, kind=kind, word_order=order, scale=-2.0, offset=3.0).reading(words) == 3 - 2 * value


def test_successive_registers_are_read_together_and_gaps_are_not_read_over() -> None:
    assert plan(REGISTERS) == (Request(HOLDING, 0, 4), Request(INPUT, 10, 2))
    gap = [Register("a", 5), Register("b", 7), Register("c", 6, table="input")]
    assert plan(gap) == (Request(HOLDING, 5, 1), Request(HOLDING, 7, 1), Request(INPUT, 6, 1))
    overlap = [Register("a", 5, kind="uint32"), Register("b", 6), Register("c", 5)]
    assert plan(overlap) == (Request(HOLDING, 5, 2),)
    assert readings(overlap, {Request(HOLDING, 5, 2): (1, 2)}) == [65_538.0, 2.0, 1.0]
    long = [Register(f"c{k}", 2 * k, kind="float32") for k in range(100)]
    requests = plan(long)
    assert [(r.first, r.count) for r in requests] == [(0, 124), (124, 76)]
    assert max(r.count for r in requests) <= REGISTERS_MAX
    with pytest.raises(ValueError, match="no answer"):
        readings(long, {})


@pytest.mark.parametrize(
    "wrong",
    [
        {"address": -1},
        {"address": 65_535, "kind": "float32"},
        {"scale": 0.0},
        {"scale": math.nan},
        {"offset": math.inf},
    ],
)
def test_registers_that_cannot_be_are_the_operators(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="register of level"):
        Register(**{"channel": "level", "address": 0, **wrong})


@pytest.mark.parametrize(
    ("registers", "unit", "timeout_s"),
    [([], 1, 1.0), ([REGISTERS[0]] * 2, 1, 1.0), (REGISTERS, 256, 1.0), (REGISTERS, 1, 0.0), (REGISTERS, 1, math.nan)],
)
def test_pollers_that_cannot_be_are_the_operators(registers: list[Register], unit: int, timeout_s: float) -> None:
    with pytest.raises(ConfigError):
        ModbusPoller("127.0.0.1", 502, unit, registers, timeout_s=timeout_s)


@pytest.mark.parametrize("piece", [1, 3, 1_000])
def test_a_sound_device_is_read_on_one_connection(piece: int) -> None:
    async def talk(port: int) -> None:
        device = poller(port)
        for _ in range(3):
            assert await device.poll() == pytest.approx(EXPECTED)
        await device.close()
        counters = device.counters()
        assert set(counters) == set(COUNTERS)
        assert {name: n for name, n in counters.items() if n} == {"rows": 3, "connects": 1}

    against(honest, talk, piece=piece)


def changed(place: int, value: int) -> Answer:
    def answer(request: bytes) -> bytes:
        sent = bytearray(honest(request))
        sent[place] = value
        return bytes(sent)

    return answer


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (changed(0, 0x55), "transaction"),
        (changed(6, UNIT + 1), "transaction"),
        (changed(2, 1), "malformed"),
        (changed(4, 0xFF), "malformed"),
        (lambda r: honest(r)[:4] + b"\0\0" + honest(r)[6:], "malformed"),
        (lambda r: honest(r)[:4] + struct.pack(">H", BODY_BYTES_MAX + 2) + honest(r)[6:], "malformed"),
        (changed(7, INPUT), "malformed"),
        (changed(8, 6), "malformed"),
        (lambda r: honest(r)[:4] + b"\0\x05" + honest(r)[6:11], "malformed"),
        (lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n", "malformed"),
        (lambda _: b"\xff" * 100_000, "malformed"),
    ],
)
def test_a_device_that_breaks_the_protocol_is_left_and_connected_anew(answer: Answer, reason: str) -> None:
    lies = [True]

    def first_wrong(request: bytes) -> bytes | None:
        return answer(request) if lies and lies.pop() else honest(request)

    async def talk(port: int) -> None:
        device = poller(port)
        with pytest.raises(PeerError) as caught:
            await device.poll()
        assert caught.value.reason == reason
        assert reason in REFUSED
        assert await device.poll() == pytest.approx(EXPECTED)
        await device.close()
        counters = device.counters()
        assert (counters[reason], counters["connects"], counters["rows"]) == (1, 2, 1)

    against(first_wrong, talk)


@pytest.mark.parametrize("code", [1, 2, 6, 99])
def test_an_exception_is_named_and_keeps_the_connection(code: int) -> None:
    def answer(request: bytes) -> bytes:
        return request[:4] + b"\0\3" + request[6:7] + bytes([request[7] | 0x80, code])

    async def talk(port: int) -> None:
        device = poller(port)
        for _ in range(2):
            with pytest.raises(PeerError, match=f"exception {code}"):
                await device.poll()
        assert device.counters()["exception"] == 2
        assert device.counters()["connects"] == 1
        await device.close()

    against(answer, talk)


def test_a_device_that_is_silent_or_closes_or_is_not_there_is_away() -> None:
    async def silent(port: int) -> None:
        device = poller(port, timeout_s=0.05)
        with pytest.raises(TransientError, match="did not answer"):
            await device.poll()
        assert device.counters()["timeout"] == 1

    against(lambda _: None, silent)

    async def closes(port: int) -> None:
        device = poller(port)
        with pytest.raises(TransientError, match="is away"):
            await device.poll()
        assert device.counters()["away"] == 1

    against(lambda _: b"", closes)
    against(lambda r: honest(r)[: HEADER_BYTES + 1], lambda port: cut(port))
    closed: list[int] = []

    async def note(port: int) -> None:
        closed.append(port)

    against(honest, note)
    with pytest.raises(TransientError, match="is away"):
        asyncio.run(poller(closed[0]).poll())


async def cut(port: int) -> None:
    device = poller(port, timeout_s=0.05)
    with pytest.raises(TransientError):
        await device.poll()


def test_a_late_answer_is_never_taken_for_the_next_one() -> None:
    """A timeout closes the connection, so the answer that comes behind it meets nobody."""
    seen: list[int] = []

    def answer(request: bytes) -> bytes | None:
        seen.append(request[1])
        return None if len(seen) == 1 else honest(request)

    async def talk(port: int) -> None:
        device = poller(port, timeout_s=0.2)
        with pytest.raises(TransientError):
            await device.poll()
        device._timeout_s = 60.0  # the next one is answered, however busy the machine is
        assert await device.poll() == pytest.approx(EXPECTED)
        await device.close()

    against(answer, talk)
    assert len(set(seen)) == len(seen)


def test_a_reading_that_is_no_number_gives_no_row() -> None:
    async def talk(port: int) -> None:
        device = poller(port, [Register("flow", 10, table="input", kind="float32", scale=1e308)])
        with pytest.raises(PeerError) as caught:
            await device.poll()
        assert caught.value.reason == "not_finite"
        await device.close()

    against(honest, talk)


def section(port: int, **changes: Any) -> SensorSection:
    registers = [
        {"channel": r.channel, "address": r.address, "table": r.table, "kind": r.kind, "word_order": r.word_order}
        for r in REGISTERS
    ]
    plain = {
        "source": "modbus",
        "channels": [r.channel for r in REGISTERS],
        "period_s": 10.0,
        "modbus": {"host": "127.0.0.1", "port": port, "unit": UNIT, "timeout_s": 5.0},
        "registers": registers,
        **changes,
    }
    return SensorSection.model_validate(plain)


def test_a_stream_polls_at_whole_periods_and_a_silent_device_leaves_a_gap() -> None:
    now = [1_000.0]
    up = [True]

    def answer(request: bytes) -> bytes:
        return honest(request) if up[0] else b""

    async def talk(port: int) -> None:
        stream = SensorModbusStream(section(port), clock=lambda: now[0])
        await stream.start()
        windows = []
        for now[0] in (1_000.0, 1_005.0, 1_010.01, 1_012.0, 1_020.0, 1_030.5):
            windows += await stream.read() or []
        assert [(w.start_s, w.end_s) for w in windows] == [(1_010.0, 1_020.0), (1_020.0, 1_030.0)]
        assert windows[0].values[:4].tolist() == pytest.approx([65_535.0 - 65_536, 500.0, 65_538.0, -12.5])
        up[0] = False
        for now[0] in (1_040.0, 1_050.0):
            assert await stream.read() == []
        up[0] = True
        for now[0] in (1_060.0, 1_070.0, 1_080.0):
            windows = await stream.read() or []
        assert [(w.start_s, w.end_s) for w in windows] == [(1_070.0, 1_080.0)]
        assert stream.counters()["away"] == 2
        assert stream.counters()["window_gaps"] == 0
        now[0] = 500.0  # a clock that was set back
        assert await stream.read() == []
        now[0] = 510.0
        await stream.read()
        assert stream.counters()["rows"] == 7
        assert stream.position() is None
        await stream.close()

    against(answer, talk)


def test_a_channel_without_a_register_is_the_operators() -> None:
    with pytest.raises(ConfigError, match="no register for more"):
        SensorModbusStream(section(1, channels=[*(r.channel for r in REGISTERS), "more"]))
    twice = [{"channel": "level", "address": 1}, {"channel": "level", "address": 2}]
    with pytest.raises(ConfigError, match="1 channels twice"):
        SensorModbusStream(section(1, channels=["level"], registers=twice))


LAB = Path(__file__).parents[2] / "bench" / "lab"
LAB_SERVER = """
import sys, threading
sys.path.insert(0, sys.argv[1])
import modbus_server
modbus_server.PORT = int(sys.argv[2])
up = threading.Event()
up.set()
modbus_server.serve_modbus("127.0.0.1", up)
"""


def test_the_labs_plc_is_read() -> None:
    port = free_port()
    server = subprocess.Popen([sys.executable, "-c", LAB_SERVER, str(LAB), str(port)])

    async def talk() -> None:
        device = poller(port, [Register(f"r{k}", k, scale=0.1) for k in range(10)])
        async with asyncio.timeout(120):
            while True:
                try:
                    values = await device.poll()
                except TransientError:
                    assert server.poll() is None
                    await asyncio.sleep(0.05)  # it is not up yet
                else:
                    if any(values):
                        break
        assert all(30.0 <= value <= 70.0 for value in values)
        beyond = poller(port, [Register("beyond", 1_000)])
        with pytest.raises(PeerError, match="illegal data address"):
            await beyond.poll()
        await beyond.close()
        await device.close()

    try:
        asyncio.run(talk())
    finally:
        server.terminate()
        server.wait(60)
