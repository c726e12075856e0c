"""The shell's part of a revocation: what is revoked stops running first, whatever the disk then says."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_slots import data, install, model

from vedette_device import model_slots, updates
from vedette_device.model_slots import ModelSlots
from vedette_device.update_events import DropRevoked
from vedette_device.updates import Updates
from vedette_device.verified_release import Revocation
from vedette_schemas.errors import TransientError


class Detector:
    """A pipeline that only says which release it scores with."""

    task = "network"
    schema = SimpleNamespace(digest="5c" * 32)
    waits = False

    def __init__(self) -> None:
        self.runs: list[int | None] = []

    def install(self, loaded: Any, version: int) -> None:
        self.runs.append(version)

    def uninstall(self) -> None:
        self.runs.append(None)


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> Detector:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    backend = SimpleNamespace(name="fake")
    fake = lambda content, sha256: SimpleNamespace(sha256=sha256, variant="int8", backend=backend)  # noqa: E731
    monkeypatch.setattr(updates, "open_model", fake)
    return Detector()


async def nothing(effects: Any) -> None:
    """What the machine asks for at the start is not looked at here."""


def trusting(*revoked: int) -> Any:
    """What signed metadata on disk say: which releases are revoked."""
    digests = frozenset(model(v).sha256 for v in revoked)
    return SimpleNamespace(revoked=lambda task: Revocation(task, (1, 7), digests))


def started(folder: Path, detector: Detector) -> Updates:
    slots = ModelSlots(folder)
    install(slots, 1)
    install(slots, 2)
    made = Updates("gw", detector, folder, None, trusting(), lambda: None)  # type: ignore[arg-type]
    asyncio.run(made.start(nothing))
    assert detector.runs == [2]
    return made


def drop(made: Updates, *versions: int, successor: int | None = None) -> None:
    gone = frozenset(model(v).sha256 for v in versions)
    effect = DropRevoked("network", gone, "" if successor is None else model(successor).sha256)
    asyncio.run(made.special(effect))


def test_the_last_good_one_runs_afterwards(tmp_path: Path, detector: Detector) -> None:
    drop(started(tmp_path, detector), 2, successor=1)
    assert detector.runs == [2, None, 1]
    assert ModelSlots(tmp_path).view().active == model(1)


def test_nothing_runs_where_nothing_is_left(tmp_path: Path, detector: Detector) -> None:
    drop(started(tmp_path, detector), 1, 2)
    assert detector.runs == [2, None]
    assert ModelSlots(tmp_path).view().active is None


def test_what_is_only_kept_goes_without_disturbing_what_runs(tmp_path: Path, detector: Detector) -> None:
    drop(started(tmp_path, detector), 1, successor=2)
    assert detector.runs == [2]
    assert ModelSlots(tmp_path).held(model(1).sha256) is None
    assert ModelSlots(tmp_path).held(model(2).sha256) == data(2)


def test_a_full_disk_keeps_nothing_revoked_running(
    tmp_path: Path, detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = started(tmp_path, detector)

    def full(path: Path, content: bytes, mode: int = 0) -> None:
        raise TransientError(f"{path}: no space left")

    monkeypatch.setattr(model_slots, "write_durable", full)
    drop(made, 2, successor=1)
    assert detector.runs == [2, None, 1], "the last good one runs from its slot; the slots are mended at the next start"
    assert ModelSlots(tmp_path).view().active == model(2)


def test_what_was_revoked_before_a_power_cut_does_not_run_at_an_offline_start(
    tmp_path: Path, detector: Detector
) -> None:
    """The metadata were on disk already; the machine, busy with a download, had not heard of it."""
    slots = ModelSlots(tmp_path)
    install(slots, 1)
    install(slots, 2)
    made = Updates("gw", detector, tmp_path, None, trusting(2), lambda: None)  # type: ignore[arg-type]

    async def carry_out(effects: Any) -> None:
        for effect in effects:
            if isinstance(effect, DropRevoked):
                await made.special(effect)

    asyncio.run(made.start(carry_out))
    assert set(detector.runs) == {1}
    assert ModelSlots(tmp_path).view().active == model(1)
