"""Starting and ending programs inside the lab's namespaces."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Programs:
    """The programs that one recording started; ends these and no others.

    Args:
        logs: Folder for what they print.
        folder: Working and home folder, for programs that leave files behind.
    """

    def __init__(self, logs: Path, folder: Path) -> None:
        self._logs = logs
        self._folder = folder
        self._running: list[subprocess.Popen[bytes]] = []
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, namespace: str, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Starts a program in its own session.

        Args:
            namespace: Network namespace to run it in.
            name: Name of its log file.
            command: Program and arguments.

        Returns:
            The running program.
        """
        with (self._logs / f"{name}.log").open("ab") as log:
            program = subprocess.Popen(
                ["ip", "netns", "exec", namespace, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(self._folder)},
                start_new_session=True,
            )
        self._running.append(program)
        return program

    def stop(self, program: subprocess.Popen[bytes], patience_s: float = 3.0) -> None:
        """Ends a program and everything in its session, gently first.

        Args:
            program: What :meth:`start` gave.
            patience_s: How long it may take before it is killed.
        """
        _signal(program, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(patience_s)
        # Children may outlive the leader of their session.
        _signal(program, signal.SIGKILL)
        program.wait()
        if program in self._running:
            self._running.remove(program)

    def dead(self) -> list[str]:
        """Programs that ended although nobody stopped them, as ``arguments (exit status)``."""
        return [
            f"{' '.join(map(str, list(program.args)[3:]))} ({program.returncode})"  # type: ignore[arg-type]
            for program in self._running
            if program.poll() is not None
        ]

    def stop_all(self) -> None:
        """Ends everything that still runs."""
        for program in self._running:
            _signal(program, signal.SIGTERM)
        for program in list(self._running):
            self.stop(program)


def _signal(program: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(program.pid, number)
