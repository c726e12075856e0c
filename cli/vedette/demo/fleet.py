"""The demo's processes: started in order, watched, and ended by their own ids."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from vedette_schemas.errors import TransientError

START_TIMEOUT_S: Final = 60.0
"""An aggregator builds and signs its first release before it listens: seconds, and many where others work, too."""
STOP_TIMEOUT_S: Final = 20.0
"""A node without a broker takes up to 5 s to stop, on an idle machine, and what it learnt is written down then."""
PORTS_HELD_MAX: Final = 64
"""Several times what a demo needs; past it the one that was chosen first is let go."""
LOG_TAIL_LINES: Final = 12
LEAN: Final = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
}
"""As on a gateway: the models are tiny, more threads and more heaps cost memory and gain nothing."""


@dataclass(slots=True)
class _Member:
    name: str
    process: subprocess.Popen[bytes]
    log: Path
    ends: bool


@dataclass(slots=True)
class Fleet:
    """Processes of `vedette`, each with a log file of its own.

    Args:
        logs: folder for the log files.
    """

    logs: Path
    _members: list[_Member] = field(default_factory=list)

    def start(self, name: str, *arguments: str, ends: bool = False) -> None:
        """Start one ``vedette`` process.

        Args:
            name: of its log file.
            arguments: command and options.
            ends: whether it ends by itself when its work is done.
        """
        self.start_program(name, sys.executable, "-m", "vedette.main", *arguments, ends=ends)

    def start_program(
        self,
        name: str,
        *command: str,
        ends: bool = False,
        out: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start another program; see `start`.

        Args:
            name: of its log file.
            command: program and arguments.
            ends: whether it ends by itself when its work is done.
            out: file for its standard output, where that is data; else it goes to the log file.
            environment: variables of its own.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        path = self.logs / f"{name}.log"
        with path.open("ab") as log, (out or path).open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                env={**os.environ, **LEAN, **(environment or {})},
                start_new_session=True,
            )
        self._members.append(_Member(name, process, path, ends))

    def wait_for_port(self, port: int) -> None:
        """Wait until the newest member listens.

        Raises:
            TransientError: it ended, or does not listen in time.
        """
        limit = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < limit:
            self.check()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            time.sleep(0.05)
        raise TransientError(f"{self._members[-1].name}: does not listen on port {port} after {START_TIMEOUT_S:.0f} s")

    def check(self) -> None:
        """Look after the members.

        Raises:
            TransientError: one has ended; with the end of its log.
        """
        for member in self._members:
            status = member.process.poll()
            if status is not None and not (member.ends and status == 0):
                lines = member.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
                raise TransientError(
                    f"{member.name}: ended with status {status}, expected it to run; its log {member.log} ends with:\n"
                    + "\n".join(f"    {line}" for line in lines)
                )

    def finished(self) -> bool:
        """Whether every member that ends by itself has ended."""
        return all(member.process.poll() is not None for member in self._members if member.ends)

    def end(self, name: str, number: signal.Signals) -> None:
        """End one member, and forget it, so that it can be started again.

        Args:
            name: its name.
            number: ``SIGTERM`` politely, ``SIGKILL`` as a power cut would.
        """
        for member in [m for m in self._members if m.name == name]:
            member.process.send_signal(number)
            try:
                member.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                member.process.kill()
                member.process.wait()
            self._members.remove(member)

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a member: hold it up, or let it go on. Who is to be held up is, when this returns."""
        for member in self._members:
            if member.name == name:
                member.process.send_signal(number)
                if number == signal.SIGSTOP:
                    with contextlib.suppress(ChildProcessError):  # it has ended
                        os.waitid(os.P_PID, member.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def stop(self) -> None:
        """End every member, newest first: politely, then by force."""
        for member in reversed(self._members):
            with contextlib.suppress(ProcessLookupError):
                member.process.send_signal(signal.SIGTERM)
        limit = time.monotonic() + STOP_TIMEOUT_S
        for member in self._members:
            try:
                member.process.wait(max(0.1, limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                member.process.kill()
                member.process.wait()
        self._members.clear()

    def kill(self) -> None:
        """End every member at once, as a power cut would."""
        for member in self._members:
            member.process.kill()
            member.process.wait()
        self._members.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


_held: Final[deque[socket.socket]] = deque()


def free_port() -> int:
    """A TCP port on loopback that nobody uses, and that nobody else is given while this process lives.

    It stays bound, and nobody listens there: whoever names it can, as servers do (``SO_REUSEADDR``), also again after a
    restart; the system gives it to nobody who asks for any port.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    if len(_held) == PORTS_HELD_MAX:
        _held.popleft().close()
    _held.append(held)
    return int(held.getsockname()[1])
