"""One run of a rule's program: no shell, a fixed environment, an end at its deadline, with everything it started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
from pathlib import Path
from typing import Final

from vedette_device.firewall import SYSTEM_PATH
from vedette_device.policy_effects import Execute
from vedette_schemas.errors import ConfigError, TransientError

OUTPUT_BYTES_MAX: Final = 1024
"""What is kept of what a program says; the rest is read and thrown away."""
PIPE_S: Final = 0.5
"""How long the output is read on after the program ended: a process that it left behind may hold the pipe open."""


def check_program(path: Path) -> None:
    """Check that a program may be run by a rule: nobody but root and this user can have changed it.

    Raises:
        ConfigError: no absolute path, no executable file, or others may write to it or its folder.
    """
    if not path.is_absolute():
        raise ConfigError(f"exec {path}: found a relative path, expected an absolute one")
    try:
        real = path.resolve(strict=True)
        found, folder = real.stat(), real.parent.stat()
    except (OSError, RuntimeError) as fault:
        raise ConfigError(f"exec {path}: cannot be found ({fault}), expected a program") from fault
    if not stat.S_ISREG(found.st_mode) or not os.access(real, os.X_OK):
        raise ConfigError(f"exec {path}: found no executable file, expected a program")
    for what, status in ((real, found), (real.parent, folder)):
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            mode = stat.S_IMODE(status.st_mode)
            raise ConfigError(
                f"exec {path}: found {what} with mode {mode:o}, expected one that only its owner can write: chmod go-w"
            )
        if status.st_uid not in (0, os.geteuid()):
            raise ConfigError(f"exec {path}: found {what} owned by user {status.st_uid}, expected root or this user")


async def run_program(effect: Execute) -> str:
    """Run it; returns the first of what it said, for the audit.

    Raises:
        ConfigError: it may not be run, see `check_program`.
        TransientError: it could not be started, ended with another status than 0, or was killed at its deadline.
    """
    rule = effect.rule
    check_program(Path(rule.command[0]))
    environment = {"PATH": SYSTEM_PATH, "LANG": "C.UTF-8", **dict(effect.environment)}
    # A pipe of our own: asyncio's would make `wait` wait for everybody who holds it.
    out, into = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *rule.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=into,
            stderr=into,
            env=environment,
            cwd="/",
            start_new_session=True,
            close_fds=True,
        )
    except OSError as fault:
        os.close(out)
        raise TransientError(f"exec {rule.command[0]}: cannot be started ({fault.strerror})") from fault
    finally:
        os.close(into)
    said = bytearray()
    reader = asyncio.create_task(_read(out, said))
    try:
        async with asyncio.timeout(rule.timeout_s):
            await _feed(process, effect.stdin)
            status = await process.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PIPE_S):
                    await asyncio.shield(reader)
    except TimeoutError as fault:
        raise TransientError(f"exec {rule.command[0]}: did not end within {rule.timeout_s:g} s; killed") from fault
    finally:
        # Its session is its own, so that this reaches what it started, and nothing else. Once it has ended and nobody
        # holds its pipe any more, the number may be somebody else's.
        if process.returncode is None or not reader.done():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        reader.cancel()
        await asyncio.gather(reader, process.wait(), return_exceptions=True)
    words = "".join(c if c.isprintable() else " " for c in said.decode("utf-8", "replace")).strip()
    if status:
        raise TransientError(f"exec {rule.command[0]}: ended with status {status}: {words[:300]}")
    return words


async def _feed(process: asyncio.subprocess.Process, data: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(data)
        await process.stdin.drain()
    process.stdin.close()


async def _read(out: int, said: bytearray) -> None:
    """Read a pipe to its end, which takes it over, and keep the first of it."""
    stream = asyncio.StreamReader()
    file = os.fdopen(out, "rb", buffering=0)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stream), file
    )
    try:
        while chunk := await stream.read(64 * 1024):
            said += chunk[: OUTPUT_BYTES_MAX - len(said)]
    finally:
        transport.close()
