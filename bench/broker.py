"""What a broker costs: the embedded one, in RAM and with its store, beside Mosquitto and NATS in the same run.

Every engine is a process with the configuration that a site gets, mutual TLS included. Messages are QoS 1; a
publisher waits for PUBACKs, 20 at a time as our sessions do, and a run ends when the last message has reached the
subscriber. The load is made by this one process, which fast brokers wait for: their rates are lower bounds, and
``cpu_us``, the broker's own processor time for a message, is what to compare.

Run: ``python bench/broker.py [--messages 2000] [--json]``
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from vedette.demo.fleet import free_port
from vedette_broker import ca, mosquitto, nats, packets
from vedette_core.crypto.certificates import CertificateRole
from vedette_core.runtime.identity import Bundle, client_context
from vedette_schemas.topics import Topics

TOPICS: Final = Topics("bench")
WINDOW: Final = 20
"""Messages without PUBACK, as in the sessions of aggregator and devices."""
DEVICES: Final = 50
SMALL, LARGE = 200, 50_000
START_S: Final = 20.0
ENGINES: Final = ("embedded ram", "embedded process", "embedded power", "mosquitto", "nats")
SERVE: Final = """
import asyncio, sys
from pathlib import Path
from vedette_broker.embedded import EmbeddedConfig, serve
from vedette_broker.store import Durability
bundle, port, state, kept = sys.argv[1:]
more = {} if kept == "ram" else {"state_dir": Path(state), "durability": Durability(kept)}
asyncio.run(serve(EmbeddedConfig(Path(bundle), port=int(port), **more)))
"""


class Client:
    """A blocking connection that knows just enough of MQTT."""

    def __init__(self, port: int, bundle: Path, *, clean: bool = True) -> None:
        plain = socket.create_connection(("127.0.0.1", port), 10)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket: ssl.SSLSocket = client_context(Bundle(bundle)).wrap_socket(plain, server_hostname="127.0.0.1")
        self.data = bytearray()
        name = bundle.name.encode()
        body = b"\x00\x04MQTT\x04" + bytes([2 * clean]) + b"\x02\x58" + struct.pack("!H", len(name)) + name
        self.socket.sendall(bytes([0x10, len(body)]) + body)
        if self.packet()[2][1] != 0:
            raise ConnectionError("the broker refuses the connection")

    def packet(self) -> tuple[int, int, bytes]:
        """Type, flags and body of the next packet."""
        while True:
            length, shift = 0, 0
            for at in range(1, min(5, len(self.data))):
                length |= (self.data[at] & 127) << shift
                shift += 7
                if self.data[at] < 128:
                    end = at + 1 + length
                    if len(self.data) >= end:
                        found = self.data[0] >> 4, self.data[0] & 15, bytes(self.data[at + 1 : end])
                        del self.data[:end]
                        return found
                    break
            part = self.socket.recv(1 << 18)
            if not part:
                raise ConnectionError("the broker ended the connection")
            self.data += part

    def subscribe(self, topic_filter: str) -> None:
        """Subscribe with QoS 1."""
        name = topic_filter.encode()
        body = b"\x00\x01" + struct.pack("!H", len(name)) + name + b"\x01"
        self.socket.sendall(bytes([0x82, len(body)]) + body)
        while self.packet()[0] != 9:
            continue

    def publish(self, topic: str, payload_bytes: int, first: int, count: int) -> None:
        """Publish `count` numbered messages, `WINDOW` at a time."""
        sent = acknowledged = 0
        while acknowledged < count:
            while sent < count and sent - acknowledged < WINDOW:
                payload = (first + sent).to_bytes(8, "big") + bytes(payload_bytes - 8)
                self.socket.sendall(packets.publish(topic, payload, 1, packet_id=sent % 65535 + 1))
                sent += 1
            acknowledged += self.packet()[0] == packets.PUBACK

    def take(self, numbers: set[int]) -> None:
        """Receive and acknowledge until every number was seen."""
        while numbers:
            kind, flags, body = self.packet()
            if kind == packets.PUBLISH:
                at = 2 + int.from_bytes(body[:2], "big")
                if flags & 6:
                    self.socket.sendall(packets.puback(int.from_bytes(body[at : at + 2], "big")))
                    at += 2
                numbers.discard(int.from_bytes(body[at : at + 8], "big"))


def cpu_s(pid: int) -> float:
    """Processor time that a process has used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_kb(pid: int) -> int:
    """Its resident memory in KB."""
    line = next(each for each in Path(f"/proc/{pid}/status").read_text().splitlines() if each.startswith("VmRSS"))
    return int(line.split()[1])


def command(engine: str, folder: Path, authority: Path, port: int) -> list[str] | None:
    """How an engine is started; None where it is not installed."""
    bundle = str(authority / "bundles" / "broker")
    if engine.startswith("embedded"):
        return [sys.executable, "-c", SERVE, bundle, str(port), str(folder / "state"), engine.split()[1]]
    program = shutil.which({"nats": "nats-server"}.get(engine, engine), path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        return None
    (folder / "state").mkdir()
    if engine == "mosquitto":
        user = "root" if os.geteuid() == 0 else ""
        config = mosquitto.MosquittoConfig("bench", bundle, str(folder), str(folder / "state"), port=port, run_as=user)
        for name, text in mosquitto.render(config).items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o600)
        return [program, "-c", str(folder / mosquitto.CONF)]
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    major, minor = said.split(":")[1].strip().removeprefix("v").split(".")[:2]
    settings = nats.NatsConfig(
        "bench", bundle, str(folder / "state"), port=port, client_port=free_port(), version=(int(major), int(minor))
    )
    (folder / nats.CONF).write_text(nats.render(settings))
    issued = [(each.id, CertificateRole(each.role)) for each in ca.list_issued(authority)]
    (folder / nats.USERS).write_text(nats.render_users("bench", issued))
    return [program, "-c", str(folder / nats.CONF)]


@contextmanager
def running(arguments: Sequence[str], folder: Path, port: int) -> Iterator[int]:
    """An engine's process; gives its id."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=log)
    try:
        limit = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > limit:
                    raise SystemExit(
                        f"{arguments[0]}: does not listen: {(folder / 'log').read_text()[-500:]}"
                    ) from None
                time.sleep(0.05)
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


def transfer(
    pid: int, port: int, bundles: Path, senders: int, payload_bytes: int, messages: int, *, kept: bool = False
) -> dict[str, float]:
    """Messages from `senders` devices to the aggregator."""
    with ExitStack() as stack:
        subscriber = Client(port, bundles / "aggregator", clean=not kept)
        stack.callback(subscriber.socket.close)
        subscriber.subscribe(f"{TOPICS.root}/device/+/up/alert")
        devices = [Client(port, bundles / f"dev-{number}") for number in range(senders)]
        for device in devices:
            stack.callback(device.socket.close)
        each = messages // senders
        numbers = {number * 1_000_000 + i for number in range(senders) for i in range(each)}
        threads = [
            threading.Thread(
                target=device.publish, args=(TOPICS.alert(f"dev-{number}"), payload_bytes, number * 1_000_000, each)
            )
            for number, device in enumerate(devices)
        ]
        cpu, began, count = cpu_s(pid), time.perf_counter(), len(numbers)
        for thread in threads:
            thread.start()
        subscriber.take(numbers)
        for thread in threads:
            thread.join()
        took = time.perf_counter() - began
        return {"per_s": round(count / took), "cpu_us": round((cpu_s(pid) - cpu) / count * 1e6)}


def measure(engine: str, authority: Path, messages: int) -> dict[str, Any] | None:
    """One engine's figures; None where it is not installed."""
    with tempfile.TemporaryDirectory() as name:
        folder, port, bundles = Path(name), free_port(), authority / "bundles"
        arguments = command(engine, folder, authority, port)
        if arguments is None:
            return None
        with running(arguments, folder, port) as pid:
            transfer(pid, port, bundles, 1, SMALL, max(100, messages // 10))
            figures: dict[str, Any] = {
                "qos1_200b": transfer(pid, port, bundles, 1, SMALL, messages),
                "qos1_200b_kept_session": transfer(pid, port, bundles, 1, SMALL, messages, kept=True),
                "qos1_50kb": transfer(pid, port, bundles, 1, LARGE, messages // 2),
                "qos1_50kb_kept_session": transfer(pid, port, bundles, 1, LARGE, messages // 2, kept=True),
                f"fan_in_{DEVICES}_200b": transfer(pid, port, bundles, DEVICES, SMALL, messages),
            }
        with running(arguments, folder, port) as pid, ExitStack() as stack:
            Client(port, bundles / "dev-0").socket.close()
            before = resident_kb(pid)
            for number in range(DEVICES):
                stack.callback(Client(port, bundles / f"dev-{number}").socket.close)
            figures["kb_a_connection"] = round((resident_kb(pid) - before) / DEVICES)
            figures["base_mb"] = round(before / 1024)
        return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every engine that is installed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--messages", type=int, default=2000, help="of 200 B a measurement, half as many of 50 KB")
    parser.add_argument("--engine", action="append", choices=ENGINES, help="only this one; may be repeated")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        authority, now = Path(name) / "ca", time.time()
        ca.init(authority, "bench", now=now)
        for role in (CertificateRole.BROKER, CertificateRole.AGGREGATOR):
            ca.issue(authority, role.value, role, now=now)
        for number in range(DEVICES):
            ca.issue(authority, f"dev-{number}", CertificateRole.DEVICE, now=now)
        results = {engine: measure(engine, authority, chosen.messages) for engine in chosen.engine or ENGINES}
    if chosen.json:
        print(json.dumps({"messages": chosen.messages, "engines": results}, indent=1))
        return
    for engine, figures in results.items():
        print(engine, "is not installed" if figures is None else "")
        for what, value in (figures or {}).items():
            print(f"  {what:24s}", *(f"{k} {v:>8g}" for k, v in value.items()) if isinstance(value, dict) else [value])


if __name__ == "__main__":
    main()
