"""Whatever happens in whatever order, a device runs only what was verified and tested, and never goes back by itself.

Hypothesis plays the registry, the network, the disk and the power; the machine and the slots are the real ones.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vedette_core.machine import Effect, Event, Persist, Tick
from vedette_device.model_slots import ModelSlots
from vedette_device.update_events import (
    Activate,
    Activated,
    ActivationFailed,
    ArtifactStaged,
    BootedWith,
    Confirm,
    DropRevoked,
    FallBack,
    FetchFailed,
    InstalledModel,
    ReleaseAnnounced,
    ReleasesRevoked,
    ReportState,
    SelfTest,
    SelfTestFailed,
    SelfTestPassed,
    Stage,
    TrialConfirmed,
    TrialFailed,
)
from vedette_device.update_machine import UpdateMachine
from vedette_device.update_state import ATTEMPTS_MAX, Phase
from vedette_device.verified_release import Revocation, VerifiedRelease, VerifiedTarget
from vedette_schemas.errors import PeerError, RefusedError
from vedette_schemas.model import ReleaseTarget, Variant

SCHEMA = "5c" * 32


def content(version: int) -> bytes:
    return f"model {version}".encode()


def digest(version: int) -> str:
    return hashlib.sha256(content(version)).hexdigest()


def release(version: int, metadata: int, schema: str = SCHEMA) -> VerifiedRelease:
    custom = ReleaseTarget.model_validate(
        {
            "task": "network", "version": version, "parent": "", "round": 0, "variant": Variant.INT8,
            "format": "tflite", "feature_schema": schema, "runtime_min": "", "contributors": 0, "transcript": "",
            "plan": "00" * 32, "metrics": {}, "active": True,
        }
    )  # fmt: skip
    target = VerifiedTarget(f"network/{version}/int8", len(content(version)), digest(version), custom)
    return VerifiedRelease("network", version, (1, metadata), {Variant.INT8: target})


class Device(RuleBasedStateMachine):
    """A device, its disk, and the registry that it hears of."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="vedette-update-"))
        self.patch = mock.patch.object(os, "fsync", return_value=None)  # power cuts are tested elsewhere
        self.patch.start()
        self.now, self.metadata, self.newest = 0.0, 0, -1
        self.saved: bytes | None = None
        self.announced: list[VerifiedRelease] = []
        self.queue: list[Effect] = []
        self.tested: set[str] = set()
        self.confirmed: set[str] = set()
        self.tried_in_a_row: list[str] = []
        self.was: InstalledModel | None = None
        self.back_allowed = False
        self.boot()

    def teardown(self) -> None:
        try:
            self.all_is_well_again()
        finally:
            self.patch.stop()
            shutil.rmtree(self.folder)

    # -- the shell

    def boot(self) -> None:
        self.slots = ModelSlots(self.folder)
        self.machine = UpdateMachine("network", "gw-01", ["litert"], SCHEMA, self.saved)
        self.queue, self.heard = [], False
        self.feed(BootedWith(self.slots.view()))
        while self.queue:  # nothing is loaded before what the boot asks for is done
            self.carry_out("well")
        if self.machine.phase is Phase.TRIAL and self.machine.active is not None:
            self.load(self.machine.active)

    def feed(self, event: Event) -> None:
        effects = self.machine.handle(event, self.now)
        for effect in effects:
            if isinstance(effect, Stage | SelfTest | Activate):
                assert effect.model.version == self.announced[-1].version, "not what the newest metadata name"
        self.queue += effects

    def load(self, model: InstalledModel) -> None:
        self.tried_in_a_row.append(model.sha256)
        mine = [sha for sha in self.tried_in_a_row if sha == model.sha256]
        assert len(mine) <= ATTEMPTS_MAX, "loaded more often than a release may be tried"

    def carry_out(self, luck: str) -> None:
        effect = self.queue.pop(0)
        match effect:
            case Persist(_, value):
                self.saved = value
            case Stage(model, target) if luck == "well":
                assert target.sha256 == model.sha256
                if self.slots.holds(model):
                    self.slots.stage_again(model)
                else:
                    self.slots.stage(model, content(model.version))
                self.feed(ArtifactStaged(model.sha256))
            case Stage(model, target):
                try:
                    self.slots.stage(model, b"other bytes")
                    raise AssertionError("staged bytes with another digest")
                except PeerError as fault:
                    self.feed(FetchFailed(model.sha256, str(fault), transient=luck == "later"))
            case SelfTest(model):
                self.load(model)
                try:
                    data = self.slots.load(model)
                except RefusedError as fault:  # an earlier announcement was staged over it meanwhile
                    self.feed(SelfTestFailed(model.sha256, str(fault)))
                    return
                assert data == content(model.version)
                if luck == "well":
                    self.tested.add(model.sha256)
                    self.feed(SelfTestPassed(model.sha256))
                else:
                    self.feed(SelfTestFailed(model.sha256, "scores"))
            case Activate(model) if luck == "well":
                before = self.slots.view().active
                self.back_allowed |= before is None or model.metadata_version > before.metadata_version
                self.slots.activate(model)
                self.feed(Activated(model.sha256))
            case Activate(model):
                if luck == "later":  # the slots were switched, but the model did not load
                    self.back_allowed = True
                    self.slots.activate(model)
                self.feed(ActivationFailed(model.sha256, "disk full"))
            case Confirm(model):
                self.slots.confirm(model)
                self.confirmed.add(model.sha256)
                self.tried_in_a_row.clear()
            case FallBack(_):
                self.back_allowed = True
                self.slots.fall_back()
            case DropRevoked(_, digests, successor):
                self.back_allowed = True
                self.slots.drop(digests, successor)
            case ReportState(_, active, _):
                assert active == self.machine.active or self.queue
            case _:
                pass

    # -- what can happen

    @initialize()
    def first_release(self) -> None:
        self.announce_newer()

    @rule()
    def announce_newer(self) -> None:
        self.newest, self.metadata = self.newest + 1, self.metadata + 1
        self.announce(release(self.newest, self.metadata))

    @rule()
    def announce_one_for_other_features(self) -> None:
        self.newest, self.metadata = self.newest + 1, self.metadata + 1
        self.announce(release(self.newest, self.metadata, schema="ab" * 32))

    @rule(back=st.integers(1, 3))
    def announce_rollback(self, back: int) -> None:
        self.metadata += 1
        self.announce(release(max(0, self.newest - back), self.metadata))

    @rule()
    def sign_the_same_again(self) -> None:
        self.metadata += 1
        last = self.announced[-1]
        self.announce(VerifiedRelease(last.task, last.version, (1, self.metadata), last.targets))

    @rule(back=st.sets(st.integers(0, 3), max_size=3))
    def revoke(self, back: set[int]) -> None:
        """Newer metadata revoke releases (and only those), and name one that is not among them."""
        self.metadata += 1
        versions = {self.newest - n for n in back if self.newest >= n}
        gone = frozenset(digest(v) for v in versions)
        self.feed(ReleasesRevoked(Revocation("network", (1, self.metadata), gone)))
        if versions & {self.newest, self.announced[-1].version}:
            self.announce_newer()
        else:
            self.sign_the_same_again()

    def announce(self, found: VerifiedRelease) -> None:
        if not self.announced or found.version != self.announced[-1].version:
            self.tried_in_a_row.clear()  # newer metadata name another release: what is tried counts anew
        self.announced.append(found)
        self.hear(found)

    @precondition(lambda self: self.heard)
    @rule(data=st.data())
    def an_old_announcement_comes_again(self, data: st.DataObject) -> None:
        self.feed(ReleaseAnnounced(data.draw(st.sampled_from(self.announced))))

    @rule()
    def the_current_announcement_comes_again(self) -> None:
        self.hear(self.announced[-1])

    def hear(self, found: VerifiedRelease) -> None:
        self.heard = True  # from here on the machine itself must tell older announcements; before, TUF does
        self.feed(ReleaseAnnounced(found))

    @precondition(lambda self: self.queue)
    @rule(luck=st.sampled_from(["well", "well", "well", "badly", "later"]), steps=st.integers(1, 6))
    def effects_are_carried_out(self, luck: str, steps: int) -> None:
        for _ in range(steps):
            if self.queue:
                self.carry_out(luck)

    @rule()
    def time_passes(self) -> None:
        deadline = self.machine.next_deadline()
        self.now = self.now + 1.0 if deadline is None else max(self.now, deadline)
        self.feed(Tick())

    @precondition(lambda self: self.machine.phase is Phase.TRIAL)
    @rule(good=st.booleans())
    def the_trial_ends(self, good: bool) -> None:
        assert self.machine.active is not None
        sha256 = self.machine.active.sha256
        self.feed(TrialConfirmed(sha256) if good else TrialFailed(sha256, "false alerts"))

    @rule(version=st.integers(0, 5), which=st.integers(0, 6))
    def a_late_answer(self, version: int, which: int) -> None:
        """Of something that is not under way: discarded. (Answers to what is under way come from its effect.)"""
        if any(r.version == version for r in self.announced[-1:]) or self.machine.phase is Phase.TRIAL:
            return
        sha256 = digest(version + 100)
        late = [
            ArtifactStaged(sha256), FetchFailed(sha256, "", False), SelfTestPassed(sha256), SelfTestFailed(sha256, ""),
            Activated(sha256), TrialConfirmed(sha256), TrialFailed(sha256, ""),
        ]  # fmt: skip
        phase = self.machine.phase
        self.feed(late[which])
        assert self.machine.phase is phase

    @rule()
    def the_process_ends(self) -> None:
        self.boot()

    @precondition(lambda self: not self.queue)
    @rule()
    def the_active_file_is_damaged(self) -> None:
        active = self.slots.view().active
        if active is None:
            return
        for path in self.folder.rglob(f"{active.sha256}.model"):
            path.write_bytes(b"damaged")
        self.back_allowed = True
        self.boot()

    # -- what always holds

    @invariant()
    def what_is_active_was_verified_and_tested(self) -> None:
        active = self.slots.view().active
        if active is not None:
            assert any(r.version == active.version for r in self.announced)
            assert active.sha256 in self.tested
            assert self.slots.load(active) == content(active.version)

    @invariant()
    def it_never_goes_back_without_newer_metadata_or_a_fall_back(self) -> None:
        active = self.slots.view().active
        if self.was is not None and active is not None and active.version < self.was.version:
            assert self.back_allowed
        if active is not None:
            self.was = active
        self.back_allowed = False

    @invariant()
    def machine_and_slots_agree_when_nothing_is_pending(self) -> None:
        if not self.queue and self.machine.phase is not Phase.BOOTING:
            assert self.machine.active == self.slots.view().active

    @invariant()
    def nothing_revoked_is_in_use_when_nothing_is_pending(self) -> None:
        if not self.queue and self.machine.phase is not Phase.BOOTING:
            view = self.slots.view()
            in_use = [m.sha256 for m in (view.active, view.spare if view.spare_good else None) if m is not None]
            assert not self.machine.revoked.intersection(in_use)

    @invariant()
    def the_spare_that_counts_as_good_was_confirmed(self) -> None:
        view = self.slots.view()
        if view.spare_good and view.spare is not None:
            assert view.spare.sha256 in self.confirmed

    def all_is_well_again(self) -> None:
        """When nothing fails any more, a new release gets through."""
        self.announce_newer()
        for _ in range(60):
            while self.queue:
                self.carry_out("well")
            active = self.machine.active
            if active is not None and active.version == self.newest and self.machine.phase is Phase.IDLE:
                return
            if self.machine.phase is Phase.TRIAL and active is not None:
                self.feed(TrialConfirmed(active.sha256))
            else:
                self.time_passes()
        raise AssertionError(f"release {self.newest} was not reached: {self.machine.phase}, {self.machine.active}")


TestUpdates = Device.TestCase
TestUpdates.settings = settings(max_examples=50, stateful_step_count=30)
