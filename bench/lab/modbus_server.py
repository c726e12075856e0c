"""A small Modbus TCP server (Modbus Messaging on TCP/IP V1.0b): function codes 1 to 6, 15 and 16."""

from __future__ import annotations

import math
import socketserver
import struct
import threading
import time

REGISTERS = 64
PORT = 502


def _answer(registers: list[int], request: bytes) -> bytes:
    """Answers one protocol data unit (function code and data)."""
    function = request[0]
    if len(request) < 5 or function not in (1, 2, 3, 4, 5, 6, 15, 16):
        return bytes([function | 0x80, 1])
    first, value = struct.unpack(">HH", request[1:5])
    count = value if function in (1, 2, 3, 4, 15, 16) else 1
    if not 1 <= count <= REGISTERS or first + count > REGISTERS:
        return bytes([function | 0x80, 2])
    span = registers[first : first + count]
    if function in (1, 2):
        packed = bytearray((count + 7) // 8)
        for index, register in enumerate(span):
            packed[index // 8] |= (register & 1) << (index % 8)
        return bytes([function, len(packed)]) + packed
    if function in (3, 4):
        return struct.pack(f">BB{count}H", function, 2 * count, *span)
    if function in (5, 6):
        registers[first] = value
        return request[:5]
    if function == 16:
        registers[first : first + count] = struct.unpack(f">{count}H", request[6 : 6 + 2 * count])
    return request[:5]


def serve_modbus(address: str, up: threading.Event) -> None:
    """Serves for ever; while ``up`` is cleared, connections are closed at once.

    Args:
        address: Address to listen on.
        up: Whether the PLC is up.
    """
    registers = [0] * REGISTERS

    def tick() -> None:
        while True:
            for index in range(10):
                registers[index] = int(500 + 200 * math.sin(time.time() / (20.0 + 3 * index)))
            time.sleep(0.5)

    class Handler(socketserver.StreamRequestHandler):
        timeout = 60

        def handle(self) -> None:
            try:
                while up.is_set():
                    header = self.rfile.read(7)
                    if len(header) < 7:
                        return
                    transaction, protocol, length, unit = struct.unpack(">HHHB", header)
                    if protocol != 0 or not 2 <= length <= 254:
                        return
                    answer = _answer(registers, self.rfile.read(length - 1))
                    if not up.is_set():
                        return
                    self.wfile.write(struct.pack(">HHHB", transaction, 0, len(answer) + 1, unit) + answer)
            except (OSError, struct.error):
                return

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    threading.Thread(target=tick, daemon=True).start()
    with Server((address, PORT), Handler) as server:
        server.serve_forever()
