"""The A/B slots on a real disk."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from power_cut import count_steps, run_until_cut

from vedette_device.model_slots import ModelSlots
from vedette_device.update_events import InstalledModel, SlotsView
from vedette_schemas.errors import PeerError, RefusedError, TransientError
from vedette_schemas.model import Variant


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of synchronising is what is tested; waiting for the platters would only take time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def data(version: int) -> bytes:
    return f"model {version}".encode() * 50


def model(version: int) -> InstalledModel:
    return InstalledModel(
        task="network",
        version=version,
        variant=Variant.INT8,
        backend="litert",
        sha256=hashlib.sha256(data(version)).hexdigest(),
        length=len(data(version)),
        metadata_version=(1, version),
    )


def install(slots: ModelSlots, version: int) -> None:
    slots.stage(model(version), data(version))
    slots.activate(model(version))
    slots.confirm(model(version))


@pytest.fixture
def slots(tmp_path: Path) -> ModelSlots:
    return ModelSlots(tmp_path / "network")


def reopened(slots: ModelSlots) -> ModelSlots:
    return ModelSlots(slots._directory)


def test_a_model_goes_through_the_slots(slots: ModelSlots) -> None:
    assert slots.view() == SlotsView()
    slots.stage(model(0), data(0))
    assert reopened(slots).view() == SlotsView(spare=model(0))
    assert slots.load(model(0)) == data(0)
    slots.activate(model(0))
    assert reopened(slots).view() == SlotsView(active=model(0), trial=True)
    slots.confirm(model(0))
    assert reopened(slots).view() == SlotsView(active=model(0))
    slots.stage(model(1), data(1))
    slots.activate(model(1))
    assert reopened(slots).view() == SlotsView(active=model(1), spare=model(0), trial=True, spare_good=True)
    assert slots.fall_back() == model(0)
    assert reopened(slots).view() == SlotsView(active=model(0))
    assert slots.load(model(0)) == data(0)


def test_two_model_files_at_most(slots: ModelSlots) -> None:
    for version in range(6):
        install(slots, version)
        assert len(list(slots._directory.rglob("*.model"))) <= 2
    assert slots.view() == SlotsView(active=model(5), spare=model(4), spare_good=True)


def test_other_bytes_are_not_staged(slots: ModelSlots) -> None:
    install(slots, 0)
    for wrong in (data(1)[:-1], data(1)[:-1] + b"!", b""):
        with pytest.raises(PeerError, match="expected"):
            slots.stage(model(1), wrong)
    assert slots.view() == SlotsView(active=model(0))


def test_the_last_good_model_is_not_overwritten_during_a_trial(slots: ModelSlots) -> None:
    install(slots, 0)
    slots.stage(model(1), data(1))
    slots.activate(model(1))
    with pytest.raises(RefusedError, match="during a trial"):
        slots.stage(model(2), data(2))
    assert slots.fall_back() == model(0)


def test_a_damaged_slot_counts_as_empty(slots: ModelSlots) -> None:
    install(slots, 0)
    install(slots, 1)
    path = next(slots._directory.rglob(f"{model(1).sha256}.model"))
    path.write_bytes(data(1)[:-1] + b"!")
    assert reopened(slots).view() == SlotsView(spare=model(0), spare_good=True)
    with pytest.raises(RefusedError, match="damaged"):
        slots.load(model(1))
    assert slots.fall_back() == model(0)
    assert reopened(slots).view() == SlotsView(active=model(0))


def test_a_first_model_that_is_damaged_during_its_trial_is_replaced(slots: ModelSlots) -> None:
    slots.stage(model(0), data(0))
    slots.activate(model(0))
    next(slots._directory.rglob("*.model")).write_bytes(b"")
    again = reopened(slots)
    assert again.view() == SlotsView()
    install(again, 0)
    assert again.load(model(0)) == data(0)


def test_a_damaged_spare_is_not_activated(slots: ModelSlots) -> None:
    install(slots, 0)
    slots.stage(model(1), data(1))
    next(slots._directory.rglob(f"{model(1).sha256}.model")).unlink()
    assert not slots.holds(model(1))
    with pytest.raises(RefusedError):
        slots.activate(model(1))
    assert slots.view() == SlotsView(active=model(0))


def test_going_back_to_the_spare_needs_no_download(slots: ModelSlots) -> None:
    install(slots, 0)
    install(slots, 1)
    again = model(0).model_copy(update={"metadata_version": (1, 9)})
    assert slots.holds(again)
    slots.stage_again(again)
    slots.activate(again)
    assert slots.view() == SlotsView(active=again, spare=model(1), trial=True, spare_good=True)
    with pytest.raises(RefusedError):
        slots.stage_again(model(7))


def test_falling_back_from_a_confirmed_model_changes_nothing(slots: ModelSlots) -> None:
    install(slots, 0)
    install(slots, 1)
    assert slots.fall_back() == model(1)
    assert slots.view().active == model(1)


def test_without_a_good_spare_there_is_nothing_to_fall_back_to(slots: ModelSlots) -> None:
    slots.stage(model(0), data(0))
    slots.activate(model(0))
    assert slots.fall_back() is None
    assert reopened(slots).view() == SlotsView()
    with pytest.raises(RefusedError):
        slots.confirm(model(0))


def test_a_model_that_was_only_staged_is_not_fallen_back_to(slots: ModelSlots) -> None:
    install(slots, 0)
    slots.stage(model(1), data(1))
    next(slots._directory.rglob(f"{model(0).sha256}.model")).unlink()
    assert slots.view() == SlotsView(spare=model(1))
    assert slots.fall_back() is None
    assert reopened(slots).view().active is None


def test_a_damaged_state_file_starts_empty_and_says_so(slots: ModelSlots) -> None:
    install(slots, 0)
    (slots._directory / "state.json").write_bytes(b'{"v":1,"active":"c"}')
    again = reopened(slots)
    assert again.view() == SlotsView()
    assert "starting with empty slots" in again.damaged
    install(again, 1)
    assert reopened(slots).damaged == ""


@pytest.mark.parametrize("space", [0, 10, 500])
def test_a_full_disk_keeps_the_old_slot(slots: ModelSlots, monkeypatch: pytest.MonkeyPatch, space: int) -> None:
    """With room for `space` bytes: none, a piece of the model, or the model but not the state."""
    install(slots, 0)
    install(slots, 1)
    before, write, left = slots.view(), os.write, [space]

    def full(handle: int, chunk: memoryview) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = write(handle, bytes(chunk[: left[0]]))
        left[0] -= done
        return done

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(TransientError, match="free space"):
            slots.stage(model(2), data(2))
    assert slots.view() == before
    assert reopened(slots).view() == before
    assert len(list(slots._directory.rglob("*.model"))) == 2
    install(slots, 2)


def change(name: str) -> Callable[[ModelSlots], object]:
    return {
        "stage": lambda s: s.stage(model(2), data(2)),
        "activate": lambda s: s.activate(model(1)),
        "confirm": lambda s: s.confirm(model(1)),
        "fall_back": lambda s: s.fall_back(),
    }[name]


@pytest.mark.parametrize("name", ["stage", "activate", "confirm", "fall_back"])
def test_a_crash_at_any_step_leaves_the_old_slots_or_the_new(tmp_path: Path, name: str) -> None:
    origin = ModelSlots(tmp_path / "origin")
    install(origin, 0)
    origin.stage(model(1), data(1))
    if name != "activate":
        origin.activate(model(1))
    if name == "stage":
        origin.confirm(model(1))
    old = origin.view()
    shutil.copytree(tmp_path / "origin", tmp_path / "reference")
    reference = ModelSlots(tmp_path / "reference")
    steps = count_steps(lambda: change(name)(reference))
    new = reference.view()
    assert steps >= 4
    assert old != new
    for step in range(steps):
        directory = tmp_path / f"crash-{step}"
        shutil.copytree(tmp_path / "origin", directory)
        run_until_cut(lambda d=directory: change(name)(ModelSlots(d)), step)  # type: ignore[misc]
        after = ModelSlots(directory)
        assert after.damaged == ""
        assert after.view() in (old, new), f"step {step}"
        if after.view() == old:
            change(name)(after)
        assert after.view() == new
