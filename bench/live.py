"""Whether a gateway keeps up: packets sent over a virtual cable at a fixed rate, and what came out at the other end.

The cable (a veth pair) lies in a network namespace of its own. A process sends the packets of `bench/capture.py` into
one end, by a clock that catches up after a pause; the listener is the node's own path from the interface to the score:
ring, headers, windows, scaling, and its judging (INT8 model, score, p-value), a call for the windows of each read.
Nothing is pinned, and nothing else stops for it.

What was lost is what was sent and did not come out as a packet, whoever lost it.

Run: ``python bench/live.py [--json] [--seconds 100] [--rate 20000]``.
It needs `unshare`, `ip`, and root or user namespaces.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: one core means one thread

import argparse
import hashlib
import json
import resource
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgpack

from vedette_core.learning.spec import flow_spec
from vedette_device.baseline import Baseline
from vedette_device.calibrated_model import CalibratedModel
from vedette_device.features import NetworkWindower
from vedette_device.inference import open_model
from vedette_device.input_history import InputHistory
from vedette_device.sources import LiveInterface
from vedette_schemas.features import NETWORK_FLOWS
from vedette_schemas.model import Variant

if TYPE_CHECKING or __package__:
    from bench.node_scoring import IDENTITY, calibrated, judge_windows
else:
    from node_scoring import IDENTITY, calibrated, judge_windows

DEVICES: Final = 10
LOCAL_NETWORK: Final = "192.168.0.0/16"
BURST_S: Final = 0.002
"""The sender wakes up so often, and sends what is due by then."""
AFTERWARDS_S: Final = 2.0
"""The listener goes on so long when the sender is done."""
NEAR, FAR = "near", "far"


def prepare(folder: Path) -> None:
    """Write what the other two need: packets, and a calibrated model, whose making takes more memory than its use."""
    # Not above: the listener's memory is measured, and it builds no model.
    if TYPE_CHECKING or __package__:
        from bench import capture
        from bench.score import prepare as prepare_model
    else:
        import capture
        from score import prepare as prepare_model

    path = folder / "packets.pcap"
    capture.write_capture(path, DEVICES)
    subject = prepare_model(flow_spec(*NETWORK_FLOWS.input_shape), NETWORK_FLOWS, Variant.INT8)
    (folder / "model.tflite").write_bytes(subject.artifact)
    model = calibrated(subject.backend, [window for batch in capture.windows_of(path) for window in batch])
    state = {"baseline": model.baseline.to_state(), "model": model.to_state()}
    (folder / "calibration.msgpack").write_bytes(msgpack.packb(state))


def lay_cable() -> None:
    """Make the veth pair and switch its own chatter off."""
    subprocess.run(["ip", "link", "add", "name", NEAR, "type", "veth", "peer", "name", FAR], check=True)
    for name in (NEAR, FAR):
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
        subprocess.run(["ip", "link", "set", name, "up"], check=True)


def frames_of(path: Path) -> list[bytes]:
    """The frames of a capture that this benchmark wrote."""
    data, at, frames = path.read_bytes(), 24, []
    while at < len(data):
        length = struct.unpack_from("<I", data, at + 8)[0]
        frames.append(data[at + 16 : at + 16 + length])
        at += 16 + length
    return frames


def send(folder: Path, seconds: float, rate: int) -> None:
    """Send so many packets a second; prints how many went out, and the longest pause in seconds."""
    frames, cable = frames_of(folder / "packets.pcap"), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    cable.bind((FAR, 0))
    wanted, sent, start = round(rate * seconds), 0, time.perf_counter()
    last, pause = start, 0.0
    while sent < wanted:
        now = time.perf_counter()
        last, pause = now, max(pause, now - last)
        for _ in range(min(wanted, int((now - start) * rate)) - sent):
            cable.send(frames[sent % len(frames)])
            sent += 1
        time.sleep(BURST_S)
    print(json.dumps({"sent": sent, "seconds": time.perf_counter() - start, "longest_pause_s": pause}))


def listen(folder: Path, seconds: float, rate: int) -> dict[str, Any]:
    """From the interface to the score, until the sender is done."""
    lay_cable()
    data, state = (folder / "model.tflite").read_bytes(), msgpack.unpackb((folder / "calibration.msgpack").read_bytes())
    backend = open_model(data, sha256=hashlib.sha256(data).hexdigest()).backend
    baseline = Baseline.from_state(NETWORK_FLOWS, state["baseline"])
    model = CalibratedModel.from_state(backend, IDENTITY, baseline, state["model"])
    history, windower, source = InputHistory(NETWORK_FLOWS), NetworkWindower([LOCAL_NETWORK]), LiveInterface(NEAR)
    packets = windows = scores = 0
    command = [sys.executable, __file__, "--send", str(folder), "--seconds", str(seconds), "--rate", str(rate)]
    before = time.process_time()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sender:
        done_at = float("inf")
        while time.monotonic() < done_at:
            select.select([source], [], [], 0.2)
            batch = source.read()
            assert batch is not None
            packets += len(batch)
            made = windower.push(batch)
            windows += len(made)
            scores += judge_windows(model, history, made)
            if done_at == float("inf") and sender.poll() is not None:
                done_at = time.monotonic() + AFTERWARDS_S
        assert sender.stdout is not None
        facts = json.loads(sender.stdout.read())
    used = time.process_time() - before
    counters = source.counters()
    source.close()
    return {
        "sent": facts["sent"],
        "packets": packets,
        "lost": facts["sent"] - packets,
        "kernel_dropped": counters["kernel_dropped"],
        "packets_per_second": round(facts["sent"] / facts["seconds"]),
        "seconds": round(facts["seconds"], 1),
        "longest_pause_of_sender_s": round(facts["longest_pause_s"], 3),
        "windows": windows,
        "scores": scores,
        "core_share": round(used / facts["seconds"], 3),
        "memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def measure(seconds: float, rate: int) -> dict[str, Any]:
    """Everything, the listener in a fresh process inside a namespace of its own."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return {"skipped": "unshare or ip is not installed"}
    unshare = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        command = [*unshare, sys.executable, __file__, "--listen", folder, "--seconds", str(seconds)]
        found = subprocess.run([*command, "--rate", str(rate)], stdout=subprocess.PIPE, text=True, check=True).stdout
    result: dict[str, Any] = json.loads(found)
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seconds", type=float, default=100.0, help="how long packets are sent")
    parser.add_argument("--rate", type=int, default=20_000, help="packets a second")
    parser.add_argument("--send", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--listen", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.send:
        send(arguments.send, arguments.seconds, arguments.rate)
    elif arguments.listen:
        print(json.dumps(listen(arguments.listen, arguments.seconds, arguments.rate)))
    else:
        result = measure(arguments.seconds, arguments.rate)
        if arguments.json:
            print(json.dumps(result))
        else:
            width = max(map(len, result))
            print("\n".join(f"{key:<{width}}  {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
