"""A device node as a process on Zeek's log: killed while it learns, and the log rotated while it is down."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_device_sources import DEVICE, NETWORK_TASK, TRAINING, Node, learning, make_node

from vedette.demo.fleet import Fleet

__all__ = ["make_node"]

START_S = 1_700_000_040
WINDOW_S = 60
OPEN_WINDOWS = 2
"""At the newest flow's own time, 40 s into a window, that one and the one before it are open (75 s of tolerance)."""


def log(first: int, windows: int) -> str:
    """Zeek's JSON lines of some windows of one device: three flows each."""
    return "".join(
        json.dumps(
            {
                "ts": START_S + WINDOW_S * i + 20 * k,
                "id.orig_h": "192.168.1.5",
                "id.orig_p": 40_000,
                "id.resp_h": f"203.0.113.{1 + (i + k) % 3}",
                "id.resp_p": 443,
                "proto": "tcp",
                "conn_state": "SF",
                "orig_pkts": 2 + i % 5,
                "orig_ip_bytes": 100 + i % 9,
            }
        )
        + "\n"
        for i in range(first, first + windows)
        for k in range(3)
    )


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


@pytest.mark.timeout(180)
def test_a_killed_node_goes_on_in_a_log_that_was_rotated_meanwhile(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    path = tmp_path / "conn.log"
    path.write_text(log(0, 20))
    network: dict[str, Any] = {
        "source": "zeek",
        "path": path,
        "local_networks": ["192.168.1.0/24"],
        "training_windows": TRAINING,
        "calibration_windows": 1_000,
    }
    node = make_node([NETWORK_TASK], network=network)
    command = ("device", "run", "-c", str(node.site.device_configs[DEVICE]))
    with Fleet(tmp_path / "logs") as first:
        first.start(DEVICE, *command, ends=True)
        node.until_counted("window_windows", 20 - OPEN_WINDOWS)
    assert learning(node.stored("network")) == 20 - OPEN_WINDOWS

    path.rename(tmp_path / "conn.1.log")
    append(tmp_path / "conn.1.log", log(20, 10))
    path.write_text(log(30, 20))
    with Fleet(tmp_path / "logs") as second:
        second.start(DEVICE, *command, ends=True)
        node.until(lambda: (node.stored("network") or {}).get("baseline") is not None, "the end of the learning phase")
        learnt = node.stored("network")
        second.kill()  # no goodbye: what counts was on the disk when the phase ended
    assert learnt is not None

    path.rename(tmp_path / "conn.2.log")
    path.write_text(log(50, 20) + "#close\n")
    node.start()
    found = node.until_counted("passed_over", 1, rotations=1)  # the last line of the newest log
    node.fleet.stop()
    assert found["rotations"] == 1
    assert not found.get("position_lost")
    again = node.stored("network")
    assert again is not None
    assert (again["baseline"], again["training"]) == (learnt["baseline"], learnt["training"])
    held_out = len(again["held_out_entities"])
    assert held_out == 70 - OPEN_WINDOWS - TRAINING, "every window behind the training stretch, each once"
