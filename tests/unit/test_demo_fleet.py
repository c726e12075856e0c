"""What the demo's processes are started with."""

from __future__ import annotations

import subprocess
import sys

from vedette.demo.fleet import free_port

MANY = 150
"""So many, that a port would be given twice if nobody remembered."""


def test_no_port_is_given_twice_also_to_processes_beside_each_other() -> None:
    code = f"""
import sys
from vedette.demo.fleet import free_port
print(*(free_port() for _ in range({MANY})), flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as beside:
        assert beside.stdout is not None
        theirs = [int(port) for port in beside.stdout.readline().split()]
        ours = [free_port() for _ in range(MANY)]
        beside.communicate()
    assert len({*theirs, *ours}) == 2 * MANY
