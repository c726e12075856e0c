"""A device that loses power at every step of an update: disk, slots, memory and machine are the real ones."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from power_cut import PowerCutError, count_steps, run_until_cut
from release_site import SCHEMA, Site

from vedette_core.machine import Effect, Event, Persist, Tick
from vedette_core.runtime.durable import write_durable
from vedette_device.model_slots import ModelSlots
from vedette_device.update_events import (
    Activate,
    Activated,
    ArtifactStaged,
    BootedWith,
    Confirm,
    FallBack,
    FetchFailed,
    InstalledModel,
    ReleaseAnnounced,
    ReportState,
    SelfTest,
    SelfTestPassed,
    Stage,
    TrialConfirmed,
    TrialFailed,
)
from vedette_device.update_machine import UpdateMachine
from vedette_device.update_state import Phase
from vedette_schemas.errors import VedetteError


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of synchronising is what is tested; waiting for the platters would only take time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class Gateway:
    """A device's shell for one task, reduced to what an update needs."""

    def __init__(self, site: Site, folder: Path, bad: frozenset[int] = frozenset()) -> None:
        self.site, self.folder, self.bad = site, folder, bad
        self.deadly: frozenset[int] = frozenset()
        self.loaded: list[tuple[int, str]] = []
        self.reported: InstalledModel | None = None
        self.now = 0.0

    @property
    def version(self) -> int | None:
        return None if self.machine.active is None else self.machine.active.version

    def start(self) -> None:
        self.slots = ModelSlots(self.folder / "slots")
        memory = self.folder / "memory"
        saved = memory.read_bytes() if memory.exists() else None
        self.trust = self.site.device(str(self.folder.relative_to(self.site.folder) / "trust"), ["network"])
        self.machine = UpdateMachine("network", "gw", ["litert", "numpy"], SCHEMA, saved)
        self.feed(BootedWith(self.slots.view()))

    def refresh(self) -> None:
        for release in self.trust.refresh():
            self.feed(ReleaseAnnounced(release))

    def feed(self, event: Event) -> None:
        queue = list(self.machine.handle(event, self.now))
        while queue:
            answer = self.carry_out(queue.pop(0))
            if answer is not None:
                queue += self.machine.handle(answer, self.now)

    def carry_out(self, effect: Effect) -> Event | None:
        match effect:
            case Persist(_, value):
                assert value is not None
                write_durable(self.folder / "memory", value)
            case Stage(model, target):
                try:
                    if self.slots.holds(model):
                        self.slots.stage_again(model)
                    else:
                        self.slots.stage(model, self.trust.download(target))
                except VedetteError as fault:
                    return FetchFailed(model.sha256, str(fault), transient=True)
                return ArtifactStaged(model.sha256)
            case SelfTest(model):
                self.slots.load(model)
                return SelfTestPassed(model.sha256)
            case Activate(model):
                self.slots.activate(model)
                return Activated(model.sha256)
            case Confirm(model):
                self.slots.confirm(model)
            case FallBack(_):
                self.slots.fall_back()
            case ReportState(_, active, trial):
                self.reported = active
                if active is not None and trial:
                    self.slots.load(active)
                    self.loaded.append((active.version, active.sha256))
                    if active.version in self.deadly:
                        raise PowerCutError
                    if active.version in self.bad:
                        return TrialFailed(active.sha256, "bad on live windows")
                    return TrialConfirmed(active.sha256)
        return None

    def settle(self) -> None:
        self.refresh()
        for _ in range(50):
            if self.machine.phase is Phase.IDLE:
                return
            deadline = self.machine.next_deadline()
            assert deadline is not None
            self.now = max(self.now, deadline)
            self.feed(Tick())
        raise AssertionError(f"still {self.machine.phase}")

    def update(self) -> None:
        self.start()
        self.settle()


@pytest.mark.parametrize("bad", [False, True])
def test_power_is_cut_at_every_step_of_an_update(tmp_path: Path, bad: bool) -> None:
    """From release 0 to release 1: it ends on 1, or back on 0 where 1 turns out bad, and never without a model."""
    site = Site(tmp_path, ["network"])
    site.publish("network", 0)
    failing = frozenset({1}) if bad else frozenset[int]()
    origin = Gateway(site, tmp_path / "origin")
    origin.folder.mkdir()
    origin.start()
    origin.settle()
    site.publish("network", 1)

    def copy(name: str) -> Gateway:
        shutil.copytree(origin.folder, tmp_path / name, symlinks=True)
        return Gateway(site, tmp_path / name, failing)

    reference, wanted = copy("reference"), 0 if bad else 1
    steps = count_steps(reference.update)
    assert steps > 25
    assert reference.version == wanted
    for step in range(steps):
        gateway = copy(f"crash-{step}")
        run_until_cut(gateway.update, step)
        gateway.start()
        assert gateway.slots.view().active is not None, f"step {step}: no model runs"
        gateway.settle()
        assert gateway.machine.active == gateway.slots.view().active == gateway.reported
        assert gateway.version == wanted, f"step {step}"
        assert not gateway.slots.view().trial
        assert not [p for p in (gateway.folder / "trust").rglob("*") if p.suffix == "" and p.is_file()]
        shutil.rmtree(gateway.folder)


def test_a_release_that_kills_the_process_is_left_after_three_times(tmp_path: Path) -> None:
    site = Site(tmp_path, ["network"])
    site.publish("network", 0)
    gateway = Gateway(site, tmp_path / "gw")
    gateway.folder.mkdir()
    gateway.start()
    gateway.settle()
    site.publish("network", 1)
    gateway.deadly = frozenset({1})
    for _ in range(10):
        try:
            gateway.start()
            gateway.settle()
        except PowerCutError:
            continue
        break
    assert gateway.version == 0
    assert [version for version, _ in gateway.loaded] == [0, 1, 1, 1]
    site.publish("network", 2)
    gateway.settle()
    assert gateway.version == 2


def test_a_rollback_needs_no_download_of_what_is_still_in_the_spare_slot(tmp_path: Path) -> None:
    site = Site(tmp_path, ["network"])
    gateway = Gateway(site, tmp_path / "gw")
    gateway.folder.mkdir()
    for version in range(2):
        site.publish("network", version)
        gateway.start()
        gateway.settle()
    site.deliver(site.registry.rollback("network", 0, site.now))
    for topic in [t for t in site.retained if "/artifact/" in t]:
        del site.retained[topic]
    gateway.settle()
    assert gateway.version == 0
