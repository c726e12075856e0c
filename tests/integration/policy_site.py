"""A site for the tests of enforcement: a gateway with three hosts, each in a network namespace of its own.

Inside of a namespace that is the gateway's, `Site` makes the hosts. A host is this file run as a program: it answers
one JSON command a line. Every host, and the gateway, serves TCP on `PORT`: it sends for as long as somebody reads.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PORT = 7000
PATIENCE_S = 1.0
"""How long is waited for a connection that should not come about."""
MEETING_S = 30.0
"""How long one that should may take: microseconds, or seconds where links have just come up or the machine is busy."""


def serve() -> None:
    """Serve bytes without end on `PORT`, over IPv4 and IPv6."""
    listener = socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=pour, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def pour(connection: socket.socket) -> None:
    with connection:
        try:
            while True:
                connection.sendall(b"x" * 1024)
        except OSError:
            return


def reach(address: str, patience_s: float = PATIENCE_S) -> bool:
    """Whether a byte of somebody's service comes back."""
    try:
        with socket.create_connection((address, PORT), patience_s) as connection:
            connection.settimeout(MEETING_S)  # for the byte: whoever serves it may have much else to do
            return bool(connection.recv(1))
    except OSError:
        return False


def meet(address: str) -> bool:
    """`reach` for what should be there."""
    return reach(address, MEETING_S)


def reach_all(addresses: list[str]) -> list[bool]:
    """`reach` several at once."""
    with ThreadPoolExecutor(len(addresses)) as pool:
        return list(pool.map(reach, addresses))


def pull(address: str, seconds: float) -> tuple[int, float]:
    """Bytes that somebody's service sends in a while, and how long it took."""
    start, got = time.monotonic(), 0
    with socket.create_connection((address, PORT), 10.0) as connection:
        while time.monotonic() - start < seconds:
            connection.settimeout(max(start + seconds - time.monotonic(), 0.01))
            try:
                got += len(connection.recv(65536))
            except TimeoutError:
                break
    return got, time.monotonic() - start


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


class Host:
    """A host behind the gateway, in another namespace."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.process = subprocess.Popen(
            ["unshare", "--net", sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.ask("ready")

    def ask(self, command: str, *words: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([command, *words]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def reach(self, address: str) -> bool:
        return bool(self.ask("reach", address))

    def meet(self, address: str) -> bool:
        return bool(self.ask("meet", address))

    def reach_all(self, *addresses: str) -> list[bool]:
        return list(self.ask("reach_all", addresses))

    def pull(self, address: str, seconds: float) -> tuple[int, float]:
        got, took = self.ask("pull", address, seconds)
        return got, took


class Site:
    """The gateway's namespace with three hosts; routed, each in a network of its own, or bridged, all in one.

    routed:  gateway 10.0.N.1 / fd00:N::1, host N 10.0.N.2 / fd00:N::2
    bridged: gateway 10.0.0.1 on br0, host N 10.0.0.(N+1)
    """

    def __init__(self, *, bridged: bool = False) -> None:
        run("ip", "link", "set", "lo", "up")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
        self.hosts = [Host(f"h{i}") for i in (1, 2, 3)]
        if bridged:
            run("ip", "link", "add", "br0", "type", "bridge")
            run("ip", "addr", "add", "10.0.0.1/24", "dev", "br0")
            run("ip", "link", "set", "br0", "up")
        for i, host in enumerate(self.hosts, start=1):
            run("ip", "link", "add", f"v{i}", "type", "veth", "peer", "name", host.name)
            run("ip", "link", "set", host.name, "netns", str(host.process.pid))
            if bridged:
                run("ip", "link", "set", f"v{i}", "master", "br0")
            else:
                run("ip", "addr", "add", f"10.0.{i}.1/24", "dev", f"v{i}")
                run("ip", "addr", "add", f"fd00:{i}::1/64", "dev", f"v{i}", "nodad")
            run("ip", "link", "set", f"v{i}", "up")
            addresses = [f"10.0.0.{i + 1}/24"] if bridged else [f"10.0.{i}.2/24", f"fd00:{i}::2/64"]
            routes = [] if bridged else [f"10.0.{i}.1", f"fd00:{i}::1"]
            host.ask("join", host.name, addresses, routes)
        serve()

    def close(self) -> None:
        for host in self.hosts:
            host.process.stdin.close()  # type: ignore[union-attr]
            host.process.wait(60)


@contextmanager
def site(*, bridged: bool = False) -> Iterator[Site]:
    made = Site(bridged=bridged)
    try:
        yield made
    finally:
        made.close()


def enforcement(folder: Path, rules: str, *, broker: str = "127.0.0.1", **policy: Any) -> Any:
    """A device's enforcement, not a dry run, on its own state; the local networks are all of the site's."""
    from policy_parts import device_settings

    from vedette_core.runtime.metrics import DEVICE_METRICS, Metrics
    from vedette_core.runtime.storage import Database, StateStore
    from vedette_device.enforcement import Enforcement

    settings = device_settings(folder, rules, broker=broker, **{"dry_run": False, **policy})
    networks = ("10.0.0.0/16", "fd00:1::/64", "fd00:2::/64", "fd00:3::/64")
    network = settings.network.model_copy(update={"local_networks": networks})  # type: ignore[union-attr]
    store = StateStore(Database(folder / "device.db"))
    return Enforcement(settings.model_copy(update={"network": network}), store, Metrics(DEVICE_METRICS))


async def answered(policy: Any, *alerts: Any) -> None:
    """Give alerts to a policy that runs, and wait until all of them were answered."""
    from vedette_schemas import alert as documents

    for alert in alerts:
        policy.take(documents.encode(alert))
    while policy._queue.qsize():
        await asyncio.sleep(0.02)
    async with policy.busy:
        pass


async def learned(policy: Any) -> None:
    """Let a policy look anew at who must be protected."""
    from vedette_device.policy_effects import ProtectionLearned

    await policy._handle(ProtectionLearned(policy._lookup.learn()))


def told(folder: Path) -> list[tuple[str, str, str]]:
    """Event, outcome and entity of every line of the audit."""
    lines = (folder / "policy" / "audit.jsonl").read_text().splitlines()
    return [(e["event"], e["outcome"], e.get("entity", "")) for e in map(json.loads, lines)]


def eventually(check: Any, patience_s: float = 60.0) -> bool:
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        if check():
            return True
        time.sleep(0.1)
    return False


CALLS: dict[str, Callable[..., Any]] = {"reach": reach, "meet": meet, "reach_all": reach_all, "pull": pull}


def _host() -> None:
    """What a host does: one command a line."""
    serve()
    for line in sys.stdin:
        command, *words = json.loads(line)
        answer: Any = True
        if command in CALLS:
            answer = CALLS[command](*words)
        elif command == "send":
            address, source, port = words
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
                udp.bind(("0.0.0.0", source))
                udp.sendto(b"x", (address, port))
        elif command == "join":
            name, addresses, routes = words
            run("ip", "link", "set", "lo", "up")
            for address in addresses:
                run("ip", "addr", "add", address, "dev", name, *(["nodad"] if ":" in address else []))
            run("ip", "link", "set", name, "up")
            for route in routes:
                run("ip", "-6" if ":" in route else "-4", "route", "add", "default", "via", route)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    try:
        _host()
    finally:
        os._exit(0)
