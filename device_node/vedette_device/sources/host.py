"""What this host does, in counts, read from ``/proc`` and the login records.

Source: proc(5), utmp(5), and ``Documentation/filesystems/proc.rst`` of Linux. A count that cannot be read (no
permission, no such file) is left out, never guessed.
"""

from __future__ import annotations

import contextlib
import math
import os
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from vedette_device.sources.counts import COUNT_MAX, NamedCounts

PROCESSES_MAX: Final = 16_384
"""Most processes that are looked at: a gateway has some hundred, a fork bomb any number."""

NAMES_MAX: Final = 1_024
"""Most process names that are told apart; a program may call itself as it likes."""

NAME_CHARACTERS_MAX: Final = 15
"""Longest name of a process (``TASK_COMM_LEN`` less its zero); a kernel thread's may be shown longer."""

LINES_MAX: Final = 262_144
"""Most lines of one table in ``/proc/net``."""

FILE_BYTES_MAX: Final = 1 << 20
"""Most bytes of a small file that are read."""

LOGIN_RECORD: Final = struct.Struct("=h2xi32s4s32s256shhiii16s20x")
"""One record of utmp and btmp on Linux, 384 bytes: type, process, line, id, user, host, exit, session, time (seconds
and microseconds), address."""

LOGIN_RECORDS_MAX: Final = 1_024
USER_PROCESS: Final = 7

TCP_STATES: Final = {1: "established", 2: "syn_sent", 3: "syn_received", 6: "time_wait", 8: "close_wait", 10: "listen"}
"""States that are counted by name; the rest are *other*. Source: ``include/net/tcp_states.h`` of Linux."""

_MB: Final = 1024
"""Kilobytes in a megabyte: ``/proc/meminfo`` counts in kB."""


class HostBehaviour:
    """Counts of one host between two looks at it.

    Things that exist (processes, sockets, open files, memory) are counted as they are at the look; things that happen
    (forks, context switches, bytes) as the difference to the look before. ``process.<name>`` says how many processes
    have that name; it is an open set, meant to be hashed into a fixed width.

    Args:
        proc: the process file system.
        utmp: who is logged in.
        btmp: failed logins; usually readable for root only.
    """

    def __init__(
        self,
        proc: Path | str = "/proc",
        *,
        utmp: Path | str = "/run/utmp",
        btmp: Path | str = "/var/log/btmp",
    ) -> None:
        self._proc, self._utmp, self._btmp = Path(proc), Path(utmp), Path(btmp)
        self._before: dict[str, int] | None = None
        self._sessions: frozenset[tuple[int, bytes, int]] | None = None
        self._before_s = -math.inf

    def look(self, now_s: float) -> NamedCounts | None:
        """Count what there is and what happened since the last look.

        Args:
            now_s: seconds since the epoch; the caller looks once a window (60 s).

        Returns:
            None at the first look, which has nothing to compare with, and where time did not go forward.
        """
        counts: dict[str, float] = {}
        self._count_processes(counts)
        self._count_sockets(counts)
        self._count_state(counts)
        sessions = self._read_sessions()
        totals = self._totals()
        before, before_s, sessions_before = self._before, self._before_s, self._sessions
        self._before, self._before_s, self._sessions = totals, now_s, sessions
        if before is None or now_s <= before_s:
            return None
        happened: Counter[str] = Counter()
        for key, total in totals.items():
            name, _, _ = key.partition("@")
            happened[name] += _since(before.get(key), total, new_is_all="@" in key)
        counts.update(happened)
        if sessions is not None:
            counts["sessions"] = len(sessions)
            counts["logins"] = len(sessions - sessions_before) if sessions_before is not None else 0
        # A driver that reports nonsense must not end the looking: its count then says «far too much».
        return NamedCounts(before_s, now_s, {name: min(count, COUNT_MAX) for name, count in counts.items()})

    def _count_processes(self, counts: dict[str, float]) -> None:
        processes = threads = 0
        names: Counter[str] = Counter()
        for number in self._process_numbers():
            text = _small(self._proc / number / "stat")
            # The name is in brackets and may hold brackets itself: the last one ends it.
            start, end = text.find("("), text.rfind(")")
            fields = text[end + 2 :].split()
            if start < 0 or end < start or len(fields) < 18:
                continue  # ended while we looked
            processes += 1
            threads += _number(fields[17])
            name = "process." + _printable(text[start + 1 : end])
            if name in names or len(names) < NAMES_MAX:
                names[name] += 1
        if processes:
            counts.update({"processes": processes, "threads": threads, "process_names": len(names), **names})

    def _process_numbers(self) -> Iterator[str]:
        try:
            with os.scandir(self._proc) as entries:
                found = 0
                for entry in entries:
                    if entry.name.isascii() and entry.name.isdigit():
                        found += 1
                        if found > PROCESSES_MAX:
                            return
                        yield entry.name
        except OSError:
            return

    def _count_sockets(self, counts: dict[str, float]) -> None:
        for protocol in ("tcp", "udp"):
            states: Counter[str] = Counter()
            readable = False
            for name in (protocol, protocol + "6"):
                for line in _lines(self._proc / "net" / name):
                    readable = True
                    fields = line.split()
                    if len(fields) > 3 and fields[0].endswith(":"):
                        state = TCP_STATES.get(_number(fields[3], base=16), "other")
                        states["udp_sockets" if protocol == "udp" else f"tcp_{state}"] += 1
            if readable:
                known = ["udp_sockets"] if protocol == "udp" else [f"tcp_{s}" for s in (*TCP_STATES.values(), "other")]
                counts.update({name: states[name] for name in known})

    def _count_state(self, counts: dict[str, float]) -> None:
        open_files = _small(self._proc / "sys" / "fs" / "file-nr").split()
        if open_files:
            counts["open_files"] = _number(open_files[0])
        memory = _table(_small(self._proc / "meminfo"))
        if "MemTotal:" in memory and "MemAvailable:" in memory:
            counts["memory_used_mb"] = max(memory["MemTotal:"] - memory["MemAvailable:"], 0) // _MB
        load = _small(self._proc / "loadavg").split()
        if load:
            try:
                hundredths = round(float(load[0]) * 100)
            except (ValueError, OverflowError):
                return
            if hundredths >= 0:
                counts["load_hundredths"] = hundredths

    def _totals(self) -> dict[str, int]:
        """Counters that only grow, by name; those of one of several parts as ``name@part``."""
        totals: dict[str, int] = {}
        for line in _lines(self._proc / "stat"):
            fields = line.split()
            if len(fields) > 1 and fields[0] in ("processes", "ctxt", "intr"):
                name = {"processes": "processes_new", "ctxt": "context_switches", "intr": "interrupts"}[fields[0]]
                totals[name] = _number(fields[1])
            elif len(fields) > 4 and fields[0] == "cpu":
                # user, nice and system; idle and waiting are not work
                totals["cpu_busy_ticks"] = sum(_number(field) for field in fields[1:4])
        for line in _lines(self._proc / "net" / "dev"):
            interface, colon, rest = line.rpartition(":")
            fields = rest.split()
            if colon and len(fields) >= 16 and interface.strip() != "lo":
                columns = {"bytes_in": 0, "packets_in": 1, "receive_errors": 2, "bytes_out": 8, "packets_out": 9}
                for name, column in columns.items():
                    totals[f"{name}@{interface.strip()}"] = _number(fields[column])
        with contextlib.suppress(OSError):
            # Reading needs a permission that asking for the size does not; the records themselves say nothing more.
            totals["logins_failed"] = self._btmp.stat().st_size // LOGIN_RECORD.size
        return totals

    def _read_sessions(self) -> frozenset[tuple[int, bytes, int]] | None:
        """Who is logged in, as (process, line, time); None where the record cannot be read."""
        try:
            with self._utmp.open("rb") as file:
                data = file.read(LOGIN_RECORDS_MAX * LOGIN_RECORD.size)
        except OSError:
            return None
        whole = len(data) // LOGIN_RECORD.size * LOGIN_RECORD.size
        records = LOGIN_RECORD.iter_unpack(data[:whole])
        return frozenset((r[1], r[2].rstrip(b"\0"), r[9]) for r in records if r[0] == USER_PROCESS)


def _printable(name: str) -> str:
    """A process's name; the kernel's workers are named after what they do at the moment, and are all one kind."""
    if name.startswith("kworker/"):
        return "kworker"
    return "".join(c if c.isprintable() else "?" for c in name[:NAME_CHARACTERS_MAX])


def _since(before: int | None, now: int, *, new_is_all: bool) -> int:
    """Growth of a counter; one that became smaller began anew, and so did that of a new part."""
    if before is None:
        return now if new_is_all else 0
    return now - before if now >= before else now


def _number(text: str, *, base: int = 10) -> int:
    """A number of at most 20 digits, 0 for anything else."""
    try:
        return max(int(text, base), 0) if len(text) <= 20 else 0
    except ValueError:
        return 0


def _small(path: Path) -> str:
    """Text of a small file, empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(FILE_BYTES_MAX).decode("utf-8", "replace")
    except OSError:
        return ""


def _lines(path: Path) -> Iterator[str]:
    """Lines of a table, none where it cannot be read. A very long one (the interrupts) comes in pieces."""
    try:
        with path.open("rb") as file:
            for _ in range(LINES_MAX):
                line = file.readline(FILE_BYTES_MAX)
                if not line:
                    return
                yield line.decode("utf-8", "replace")
    except OSError:
        return


def _table(text: str) -> Mapping[str, int]:
    """First word of each line → its second as a number."""
    return {fields[0]: _number(fields[1]) for line in text.splitlines() if len(fields := line.split()) >= 2}
