"""The audit: a chain that shows every change, over rotation, crashes and full disks."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from vedette_device import audit_log
from vedette_device.audit_log import BEGIN, AuditLog, FolderLock, closed_files, verify_audit
from vedette_schemas.errors import ConfigError, PeerError, TransientError

BIG = 1 << 20


def written(folder: Path, count: int, *, bytes_max: int = BIG, files_max: int = 4) -> AuditLog:
    log = AuditLog(folder, bytes_max, files_max)
    for i in range(count):
        log.append({"event": "quarantine", "outcome": "begun", "entity": f"10.0.0.{i}"})
    return log


def test_every_line_has_the_digest_of_the_line_before(tmp_path: Path) -> None:
    log = written(tmp_path, 5)
    chain = verify_audit([tmp_path / "audit.jsonl"])
    assert (chain.first, chain.last, chain.lines, chain.before) == (1, 5, 5, BEGIN)
    assert (chain.last, chain.head) == log.head
    assert (tmp_path / "audit.jsonl").stat().st_mode & 0o077 == 0


def test_the_chain_goes_on_after_a_restart(tmp_path: Path) -> None:
    written(tmp_path, 3)
    written(tmp_path, 2)
    assert verify_audit([tmp_path / "audit.jsonl"]).lines == 5


@pytest.mark.parametrize("line", range(5))
def test_a_changed_removed_doubled_or_swapped_line_is_found(tmp_path: Path, line: int) -> None:
    written(tmp_path, 6)
    path = tmp_path / "audit.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    changed = lines[line].replace(b"10.0.0.", b"10.0.1.")
    wrongs = [
        [*lines[:line], changed, *lines[line + 1 :]],
        [*lines[: line + 1], *lines[line:]],
        [*lines[:line], lines[line + 1], lines[line], *lines[line + 2 :]],
        [*lines[:line], lines[line].replace(b'"event"', b' "event"'), *lines[line + 1 :]],
        [*lines[:line], lines[line].replace(b'"begun"', b'"begun","x":1'), *lines[line + 1 :]],
    ]
    if line:
        wrongs.append([*lines[:line], *lines[line + 1 :]])
    for wrong in wrongs:
        path.write_bytes(b"".join(wrong))
        with pytest.raises(PeerError, match=r"audit.jsonl line \d"):
            verify_audit([path])
    path.write_bytes(b"".join(lines))
    verify_audit([path])


def test_a_line_that_begins_in_the_middle_says_so(tmp_path: Path) -> None:
    written(tmp_path, 4)
    path = tmp_path / "audit.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[2:]))
    chain = verify_audit([path])
    assert (chain.first, chain.lines) == (3, 2)
    assert chain.before != BEGIN
    forged = json.loads(lines[2]) | {"previous": BEGIN}
    path.write_bytes(json.dumps(forged, separators=(",", ":")).encode() + b"\n")
    with pytest.raises(PeerError, match="found number 3"):
        verify_audit([path])


def test_full_files_are_closed_and_the_chain_goes_through_them(tmp_path: Path) -> None:
    log = written(tmp_path, 60, bytes_max=1024, files_max=100)
    files = [*closed_files(tmp_path), tmp_path / "audit.jsonl"]
    assert len(files) > 5
    assert all(path.stat().st_size <= 1024 for path in files)
    chain = verify_audit(files)
    assert (chain.first, chain.last, chain.head) == (1, 60, log.head[1])
    with pytest.raises(PeerError, match="expected"):
        verify_audit([files[0], *files[2:]])


def test_only_the_newest_closed_files_are_kept(tmp_path: Path) -> None:
    written(tmp_path, 60, bytes_max=1024, files_max=3)
    files = closed_files(tmp_path)
    assert len(files) == 3
    chain = verify_audit([*files, tmp_path / "audit.jsonl"])
    assert chain.last == 60
    assert chain.before != BEGIN


def test_a_restart_right_after_the_rotation_goes_on_from_the_closed_file(tmp_path: Path) -> None:
    written(tmp_path, 3)
    (tmp_path / "audit.jsonl").rename(tmp_path / "audit.000001.jsonl")
    written(tmp_path, 1)
    assert verify_audit([tmp_path / "audit.000001.jsonl", tmp_path / "audit.jsonl"]).lines == 4


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_a_line_that_a_crash_tore_is_cut_off_and_told_of(tmp_path: Path, cut: int) -> None:
    written(tmp_path, 3)
    path = tmp_path / "audit.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    log = AuditLog(tmp_path, BIG, 4)
    last = json.loads(path.read_bytes().splitlines()[-1])
    assert (last["event"], last["outcome"]) == ("audit", "recovered")
    assert verify_audit([path]).lines == 3 == log.head[0]


def test_an_audit_that_is_torn_in_its_first_line_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").write_bytes(b'{"n":1,"ti')
    AuditLog(tmp_path, BIG, 4)
    assert verify_audit([tmp_path / "audit.jsonl"]).lines == 1


def test_an_audit_whose_last_line_is_none_is_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").write_bytes(b"hello\n")
    with pytest.raises(PeerError, match="move the file away"):
        AuditLog(tmp_path, BIG, 4)


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = written(tmp_path, 2)
    before = (tmp_path / "audit.jsonl").read_bytes()
    real = os.write

    def full(handle: int, data: memoryview) -> int:
        if len(data) < 60:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data[: len(data) // 2])

    monkeypatch.setattr(audit_log.os, "write", full)
    with pytest.raises(TransientError, match="No space left"):
        log.append({"event": "x", "outcome": "y"})
    monkeypatch.undo()
    assert (tmp_path / "audit.jsonl").read_bytes() == before
    log.append({"event": "x", "outcome": "y"})
    assert verify_audit([tmp_path / "audit.jsonl"]).lines == 3


def test_a_link_in_place_of_the_audit_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (tmp_path / "audit").mkdir()
    log = AuditLog(tmp_path / "audit", BIG, 4)
    (tmp_path / "audit" / "audit.jsonl").symlink_to(victim)
    with pytest.raises(ConfigError):
        log.append({"event": "x", "outcome": "y"})
    assert not victim.exists()


def test_one_process_holds_the_lock(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / "policy")
    with pytest.raises(ConfigError, match="another process"):
        FolderLock(tmp_path / "policy")
    lock.close()
    FolderLock(tmp_path / "policy").close()


def test_what_cannot_be_read_is_the_operators(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        verify_audit([tmp_path / "nothing.jsonl"])
    assert verify_audit([]).lines == 0
