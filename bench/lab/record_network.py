"""Records the network lab: eight gateways, sixteen devices, real programs, real attacks, labels from the attacker.

Needs root and the Debian packages named in README.md. Run from the project's root:
``python -m bench.lab.record_network [--trial] [--out FOLDER]``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from bench.lab import attacks, captures, plan, shipping, site, topology
from bench.lab.agenda import TAKE_VARIABLE
from bench.lab.programs import Programs

PROGRAMS = (
    "ip", "ethtool", "tcpdump", "mosquitto", "mosquitto_pub", "mosquitto_sub", "mosquitto_passwd", "dnsmasq",
    "lighttpd", "chronyd", "coap-server-notls", "coap-client-notls", "ffmpeg", "mbpoll", "dropbear", "dropbearkey",
    "curl", "dig", "ntpdig", "ping", "nmap", "hping3", "hydra", "ncrack", "slowhttptest",
)  # fmt: skip

SETTLE_S = 8.0
"""Devices run this long before capturing starts, so that no recording starts with an empty site."""


class Pace:
    """Times of a recording, in seconds."""

    def __init__(self, trial: bool) -> None:
        self.benign_s = 40.0 if trial else 1020.0
        self.slot_s = 30.0 if trial else 175.0
        self.stagger_s = 1.0 if trial else 8.0
        self.tail_s = 10.0 if trial else 150.0
        self.factor = 0.35 if trial else 1.0


def _stop_on_request(number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt(f"signal {number}")


def _wait(seconds: float, check: Callable[[], None]) -> None:
    until_s = time.monotonic() + seconds
    while (left_s := until_s - time.monotonic()) > 0:
        time.sleep(min(left_s, 5.0))
        check()


def record(work: Path, pace: Pace, take: int) -> list[shipping.Label]:
    """Runs the lab once.

    Args:
        work: Empty folder for assets, logs and raw captures.
        pace: Times.
        take: Number of the recording.

    Returns:
        Labels of all episodes; ``work`` then holds ``gw-NN.pcap`` for each gateway.

    Raises:
        RuntimeError: A program that should run all the time has ended.
    """
    os.environ[TAKE_VARIABLE] = str(take)  # inherited by every device
    programs = Programs(work / "logs", work)
    hunters = Programs(work / "logs", work)
    assets = work / "assets"
    assets.mkdir()
    site.make_assets(assets)
    attacks.write_word_lists(work)

    def check() -> None:
        if dead := programs.dead():
            raise RuntimeError(f"ended before its time: {dead}; see {work / 'logs'}")

    with topology.network():
        try:
            site.start_servers(programs, assets)
            time.sleep(1.0)
            site.start_devices(programs, assets)
            time.sleep(2.0)
            site.start_operations(programs)
            _wait(SETTLE_S, check)
            for gateway in plan.GATEWAYS:
                target = ["-U", "-Z", "root", "-w", str(work / f"{shipping.gateway_id(gateway)}.pcap")]
                command = ["tcpdump", "-i", topology.BRIDGE, "-n", "-s", str(captures.SNAPLEN), *target]
                programs.start(plan.gateway_namespace(gateway), f"tcpdump-{gateway}", command)
            print(f"capturing; attacks in {pace.benign_s:.0f} s", flush=True)
            runner = attacks.Runner(hunters, work)
            start_s = time.time() + pace.benign_s
            threads = runner.schedule(start_s, pace.slot_s, pace.stagger_s, pace.factor, take)
            while any(thread.is_alive() for thread in threads):
                _wait(1.0, check)
            print(f"attacks done, {len(runner.labels)} labels; {pace.tail_s:.0f} s to go", flush=True)
            _wait(pace.tail_s, check)
            return runner.labels
        finally:
            hunters.stop_all()
            programs.stop_all()


def ship(work: Path, out: Path, labels: list[shipping.Label]) -> None:
    """Trims, compresses and registers what was recorded.

    Args:
        work: Folder with the raw captures.
        out: The recordings' folder.
        labels: Labels of all episodes.
    """
    entries: dict[str, dict[str, Any]] = {}
    for gateway in plan.GATEWAYS:
        name = shipping.gateway_id(gateway)
        capture = captures.trim((work / f"{name}.pcap").read_bytes())
        file = f"network/{name}.pcap.xz"
        digest = shipping.write_compressed(out / file, capture.content)
        starts = [label.start_s for label in labels if label.gateway == name]
        entries[name] = {
            "local_networks": [plan.local_network(gateway)],
            "network": {
                "file": file,
                "sha256": digest,
                "bytes": len(capture.content),
                "packets": capture.packets,
                "snaplen": captures.SNAPLEN,
                "start_s": round(capture.start_s, 6),
                "end_s": round(capture.end_s, 6),
                "benign_until_s": round(min(starts), 3),
            },
            "devices": [
                {"name": one.name, "kind": one.kind, "ip": one.ip, "mac": one.mac}
                for one in plan.DEVICES
                if one.gateway == gateway
            ],
        }
        print(f"{file}: {capture.packets} packets, {(out / file).stat().st_size} bytes", flush=True)
    shipping.update_manifest(out, entries)
    shipping.update_labels(out, "network", labels)


def main() -> None:
    parser = argparse.ArgumentParser(description="record the network lab (needs root)")
    parser.add_argument("--trial", action="store_true", help="three minutes, to see that everything talks")
    parser.add_argument("--take", type=int, default=1, help="number of the recording: other pauses, another order")
    parser.add_argument("--work", type=Path, help="keep logs and raw captures in this new folder")
    parser.add_argument("--out", type=Path, default=shipping.RECORDINGS)
    arguments = parser.parse_args()
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        sys.exit(f"programs not found: {', '.join(missing)}; README.md names their Debian packages")
    if os.geteuid() != 0:
        sys.exit("not root: network namespaces need it; nothing outside of them is touched")
    signal.signal(signal.SIGTERM, _stop_on_request)
    with tempfile.TemporaryDirectory(prefix="vedette-lab-") as scratch:
        work = Path(scratch)
        if arguments.work is not None:
            work = arguments.work.absolute()
            work.mkdir(parents=True)
        labels = record(work, Pace(arguments.trial), arguments.take)
        ship(work, arguments.out, labels)


if __name__ == "__main__":
    main()
