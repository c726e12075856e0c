"""Host behaviour and log lines as named counts."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vedette_device.sources import host
from vedette_device.sources.counts import COUNT_MAX, NAMES_MAX, NamedCounts
from vedette_device.sources.host import LOGIN_RECORD, USER_PROCESS, HostBehaviour
from vedette_device.sources.log_lines import PLACES, LogLineCounts, place_of, template
from vedette_schemas.errors import PeerError

TCP_LINE = "   {n}: 0100007F:1F90 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 0 0 1 1\n"
DEV = (
    "Inter-|   Receive                                                |  Transmit\n"
    " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls\n"
    "    lo: 999999 9999 0 0 0 0 0 0 999999 9999 0 0 0 0 0 0\n"
    "  eth0:{0} {1} 0 0 0 0 0 0 {2} {3} 0 0 0 0 0 0\n"
)


def process(proc: Path, number: int, name: str, threads: int = 1) -> None:
    (proc / str(number)).mkdir(exist_ok=True)
    fields = " ".join(["S", *["1"] * 16, str(threads), *["0"] * 20])
    (proc / str(number) / "stat").write_text(f"{number} ({name}) {fields}\n")


def fake(tmp_path: Path) -> Path:
    proc = tmp_path / "proc"
    (proc / "net").mkdir(parents=True)
    (proc / "sys" / "fs").mkdir(parents=True)
    process(proc, 1, "init")
    process(proc, 20, "a (strange) b) name", 3)
    process(proc, 21, "kworker/0:1-events", 1)
    process(proc, 22, "kworker/1:1", 1)
    (proc / "stat").write_text("cpu  10 0 5 1000 0 0 0\ncpu0 10 0 5 1000\nintr 50 1 2\nctxt 700\nprocesses 40\n")
    (proc / "net" / "dev").write_text(DEV.format(1000, 10, 2000, 20))
    states = ["01", "01", "0A", "06", "04", "ZZ"]
    head = "  sl  local_address rem_address   st tx_queue\n"
    (proc / "net" / "tcp").write_text(head + "".join(TCP_LINE.format(n=n, state=s) for n, s in enumerate(states)))
    (proc / "net" / "udp").write_text(head + TCP_LINE.format(n=1, state="07"))
    (proc / "sys" / "fs" / "file-nr").write_text("2624\t0\t9223372036854775807\n")
    (proc / "meminfo").write_text("MemTotal:       2048000 kB\nMemFree: 1 kB\nMemAvailable:   1024000 kB\n")
    (proc / "loadavg").write_text("0.52 0.40 0.30 1/200 4711\n")
    return proc


def login(number: int, line: str, moment: int, kind: int = USER_PROCESS) -> bytes:
    return LOGIN_RECORD.pack(kind, number, line.encode(), b"", b"ann", b"", 0, 0, 0, moment, 0, b"")


def test_counts_by_hand(tmp_path: Path) -> None:
    proc, utmp, btmp = fake(tmp_path), tmp_path / "utmp", tmp_path / "btmp"
    utmp.write_bytes(login(1, "tty1", 100) + login(2, "pts/0", 100, kind=8) + b"cut off")
    btmp.write_bytes(b"\0" * LOGIN_RECORD.size * 2)
    behaviour = HostBehaviour(proc, utmp=utmp, btmp=btmp)
    assert behaviour.look(1_000.0) is None
    process(proc, 30, "new")
    (proc / "stat").write_text("cpu  17 1 6 1050 0 0 0\nintr 90 1\nctxt 1000\nprocesses 45\n")
    (proc / "net" / "dev").write_text(DEV.format(1500, 15, 2600, 26))
    utmp.write_bytes(login(1, "tty1", 100) + login(9, "pts/1", 500))
    btmp.write_bytes(b"\0" * LOGIN_RECORD.size * 5)
    found = behaviour.look(1_060.0)
    assert found is not None
    assert (found.start_s, found.end_s) == (1_000.0, 1_060.0)
    assert found.counts == {
        "processes": 5,
        "threads": 7,
        "process_names": 4,
        "process.init": 1,
        "process.a (strange) b) ": 1,
        "process.kworker": 2,
        "process.new": 1,
        "tcp_established": 2,
        "tcp_syn_sent": 0,
        "tcp_syn_received": 0,
        "tcp_time_wait": 1,
        "tcp_close_wait": 0,
        "tcp_listen": 1,
        "tcp_other": 2,
        "udp_sockets": 1,
        "open_files": 2624,
        "memory_used_mb": 1000,
        "load_hundredths": 52,
        "cpu_busy_ticks": 9,
        "interrupts": 40,
        "context_switches": 300,
        "processes_new": 5,
        "bytes_in": 500,
        "packets_in": 5,
        "receive_errors": 0,
        "bytes_out": 600,
        "packets_out": 6,
        "logins_failed": 3,
        "sessions": 2,
        "logins": 1,
    }


def test_counters_that_begin_anew_and_interfaces_that_come_and_go(tmp_path: Path) -> None:
    proc = fake(tmp_path)
    behaviour = HostBehaviour(proc, utmp=tmp_path / "none", btmp=tmp_path / "none")
    behaviour.look(0.0)
    (proc / "net" / "dev").write_text(DEV.format(300, 3, 2000, 20) + " tun0: 70 7 0 0 0 0 0 0 80 8 0 0 0 0 0 0\n")
    (proc / "stat").write_text("ctxt 5\n")
    found = behaviour.look(60.0)
    assert found is not None
    assert found.counts["bytes_in"] == 300 + 70
    assert found.counts["bytes_out"] == 80
    assert found.counts["context_switches"] == 5
    assert not {"logins", "sessions", "logins_failed", "processes_new"} & set(found.counts)
    (proc / "net" / "dev").write_text(DEV.format(310, 3, 2000, 20))
    again = behaviour.look(120.0)
    assert again is not None
    assert again.counts["bytes_in"] == 10
    assert behaviour.look(120.0) is None


def test_a_driver_that_reports_nonsense_is_far_too_much(tmp_path: Path) -> None:
    proc = fake(tmp_path)
    behaviour = HostBehaviour(proc, utmp=proc, btmp=proc / "no")
    behaviour.look(0.0)
    (proc / "net" / "dev").write_text(DEV.format("9" * 20, "9" * 30, 2000, 20))
    found = behaviour.look(60.0)
    assert found is not None
    assert (found.counts["bytes_in"], found.counts["packets_in"]) == (COUNT_MAX, 0)


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    behaviour = HostBehaviour(tmp_path / "no", utmp=tmp_path / "no", btmp=tmp_path / "no")
    behaviour.look(0.0)
    found = behaviour.look(60.0)
    assert found is not None
    assert found.counts == {}


def test_limits_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc = fake(tmp_path)
    for number in range(100, 150):
        process(proc, number, f"forged-{number}")
    monkeypatch.setattr(host, "NAMES_MAX", 10)
    monkeypatch.setattr(host, "LINES_MAX", 3)
    behaviour = HostBehaviour(proc, utmp=proc, btmp=proc / "no")
    behaviour.look(0.0)
    found = behaviour.look(1.0)
    assert found is not None
    assert found.counts["processes"] == 54
    assert found.counts["process_names"] == 10
    assert found.counts["tcp_established"] == 2
    monkeypatch.setattr(host, "PROCESSES_MAX", 7)
    found = behaviour.look(2.0)
    assert found is not None
    assert found.counts["processes"] == 7


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc on this system")
def test_this_host() -> None:
    behaviour = HostBehaviour()
    behaviour.look(time.time() - 1.0)
    subprocess.run([sys.executable, "-c", ""], check=True)
    found = behaviour.look(time.time())
    assert found is not None
    assert found.counts["processes"] >= 1
    assert found.counts["threads"] >= found.counts["processes"]
    assert found.counts["processes_new"] >= 1
    assert found.counts["open_files"] > 0


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ({"": 1}, "limit"),
        ({"x" * 65: 1}, "limit"),
        ({str(k): 1 for k in range(NAMES_MAX + 1)}, "limit"),
        ({"a": -1}, "count"),
        ({"a": math.nan}, "count"),
        ({"a": 1e30}, "count"),
    ],
)
def test_counts_that_cannot_be_are_refused(counts: dict[str, float], reason: str) -> None:
    with pytest.raises(PeerError) as caught:
        NamedCounts(0.0, 1.0, counts)
    assert caught.value.reason == reason


SAME_KIND = [
    b"<38>Nov 27 06:12:33 gw-01 sshd[4711]: Failed password for root from 192.168.1.77 port 40022 ssh2",
    b"Nov  7 06:12:33 gw-02 sshd[1]: Failed password for root from 10.0.0.3 port 1 ssh2",
    b"<34>1 2026-11-27T06:12:33.003Z gw-01 sshd 4711 - - Failed password for root from 10.0.0.3 port 1 ssh2",
    b'<34>1 2026-11-27T06:12:33.003Z gw-01 sshd - ID47 [a@1 b="c"] Failed password for root from ::1 port 1 ssh2',
    b"2026-11-27T06:12:33+0100 gw-01 sshd[4711]: Failed password for root from 10.0.0.3 port 1 ssh2",
    b"sshd: Failed password for root from fe80::1 port 99 ssh2",
    json.dumps(
        {"MESSAGE": "Failed password for root from 1.2.3.4 port 7 ssh2", "SYSLOG_IDENTIFIER": "sshd", "PRIORITY": "3"}
    ).encode(),
]


def test_the_same_kind_of_line_in_every_form() -> None:
    counter = LogLineCounts()
    for line in SAME_KIND:
        counter.push(line)
    counts = counter.take()
    kind = place_of("sshd", "Failed password for root from 10.0.0.3 port 1 ssh2")
    assert counts == {"log_lines": 7, "log_errors": 3, f"log_kind_{kind:03d}": 7}
    assert counter.take() == {"log_lines": 0, "log_errors": 0}


def test_what_changes_is_taken_out_and_what_does_not_stays() -> None:
    assert template('user "ann": 3 of 0x1f blocks, done.') == "user ann # of # blocks done"
    assert template("opened door") != template("closed door")
    assert place_of("a", "x") != place_of("b", "x")
    # Pinned: a place that moved would make every model that was learnt on counts wrong without a word.
    assert place_of("cron", "job started") == 97


def test_any_line_counts_and_the_names_are_bounded() -> None:
    counter = LogLineCounts()
    lines = [b"", b"  ", b"\xff\xfe", b"{", b'{"MESSAGE": [1]}', b"x" * 1_000_000, b"<999>", b"<3>", b"[" * 5_000]
    for line in lines:
        counter.push(line)
    for number in range(5_000):
        counter.push(b"word" * (number % 7 + 1) + "".join(chr(97 + int(d)) for d in str(number)).encode())
    counts = counter.take()
    assert counts["log_lines"] == 5_000 + len(lines) - 2
    assert len(counts) <= PLACES + 2
    NamedCounts(0.0, 60.0, counts)
