"""Files that are either there whole or not at all, also after the power failed.

Write beside, synchronise, rename over, synchronise the directory: the one order in which a reader after a crash finds
the old bytes or the new ones.

Source: POSIX.1-2017 rename(), fsync(); Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014, §4.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Final

from vedette_schemas.errors import ConfigError, TransientError, VedetteError

PRIVATE_FILE: Final = 0o600
PRIVATE_DIRECTORY: Final = 0o700
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EIO, errno.EMFILE, errno.ENFILE})


def write_durable(path: Path, data: bytes, mode: int = PRIVATE_FILE) -> None:
    """Put `data` at `path`, atomically and durably: on any failure the old file stays as it was.

    Raises:
        TransientError: the disk is full or does not answer.
        ConfigError: the directory is missing or not writable.
    """
    try:
        replace_file(path, data, mode)
    except OSError as fault:
        raise file_error(fault, f"write {len(data)} bytes to {path}") from fault


def replace_file(path: Path, data: bytes, mode: int) -> None:
    """`write_durable` for whoever has words of its own for what the file system refuses: an `OSError` stays one."""
    beside = path.with_name(f".{path.name}.new")
    try:
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            os.fchmod(handle, mode)
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(handle, rest) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        beside.replace(path)
        synchronise_directory(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def remove_durable(path: Path) -> None:
    """Remove a file if it is there; the removal survives a power failure.

    Raises:
        TransientError: the disk does not answer.
        ConfigError: the directory is not writable.
    """
    try:
        path.unlink()
        synchronise_directory(path.parent)
    except FileNotFoundError:
        return
    except OSError as fault:
        raise file_error(fault, f"remove {path}") from fault


def synchronise_directory(directory: Path) -> None:
    """Make renames and removals in a directory durable."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def synchronise_tree(directory: Path) -> None:
    """Make every file and directory below `directory` durable, for files that a library wrote without doing so.

    Raises:
        TransientError: the disk does not answer.
    """
    try:
        for parent, _, files in os.walk(directory):
            for name in files:
                handle = os.open(Path(parent) / name, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)
            synchronise_directory(Path(parent))
    except OSError as fault:
        raise file_error(fault, f"synchronise {directory}") from fault


def make_directory(directory: Path, mode: int = PRIVATE_DIRECTORY) -> None:
    """Make a directory (and what is above it) if it is missing.

    Raises:
        TransientError: the disk is full.
        ConfigError: it cannot be made there.
    """
    try:
        directory.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as fault:
        raise file_error(fault, f"make directory {directory}") from fault


def file_error(fault: OSError, what: str) -> VedetteError:
    """The error for a failed file operation: `TransientError` for a full disk, else `ConfigError`."""
    if fault.errno in _FULL:
        return TransientError(f"could not {what}: found {fault.strerror}; free space, it is tried again")
    return ConfigError(f"could not {what}: found {fault.strerror}; check that the path exists and is writable")
