"""How a device moves to a release: stage, self-test, trial, confirm; or fall back to the last good one.

One machine a task. The slots on disk are the truth about which model runs; what is persisted here is what the slots
cannot tell: how often a release was tried, which ones failed, and the newest metadata that was seen. So a crash at any
step leaves one of the states that `BootedWith` knows.

* Attempts are counted **before** a model is loaded: a model that kills the process cannot be tried for ever.
* A broker that is away or a full disk is nobody's fault: it delays (with back-off) and is not counted.
* A revoked release is dropped in every phase, also when it is active and confirmed, and never runs again while the
  newest metadata revoke it.
* Never an older version unless newer metadata name it; falling back to the last good one is no update.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, Literal

from vedette_core.machine import Count, Effect, Event, Note, Persist, Tick
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
from vedette_device.update_state import (
    ANSWER_S_MAX,
    ATTEMPTS_MAX,
    FAILED_MAX,
    RETRY_S,
    RETRY_S_MAX,
    TRIAL_S_MAX,
    FailedRelease,
    Phase,
    UpdateState,
)
from vedette_device.verified_release import Backend, VerifiedRelease, VerifiedTarget, choose_variant
from vedette_schemas import codec
from vedette_schemas.errors import PeerError, RefusedError
from vedette_schemas.features import known_as


class UpdateMachine:
    """Applies the releases of one task.

    Args:
        task: the task.
        device: the device's id; spreads a fleet's retries.
        backends: what can run models here.
        feature_schema: digest of this device's feature schema; a release for another one is refused.
        saved: what was persisted under `key`, if anything.
        trial_s_max: longest trial, seconds.
        model_bytes_max: largest artifact that this device has memory for; 0 is no limit.
    """

    def __init__(
        self,
        task: str,
        device: str,
        backends: Collection[Backend],
        feature_schema: str,
        saved: bytes | None = None,
        *,
        trial_s_max: float = TRIAL_S_MAX,
        model_bytes_max: int = 0,
    ) -> None:
        self.task: Final = task
        self._device, self._backends, self._feature_schema = device, tuple(backends), feature_schema
        self._trial_s_max, self._model_bytes_max = trial_s_max, model_bytes_max
        self._saved, self._damaged = UpdateState(), ""
        if saved is not None:
            try:
                self._saved = codec.unpack_json(UpdateState, saved)
            except PeerError as fault:
                self._damaged = str(fault)
        self._phase = Phase.BOOTING
        self._deadline: float | None = None
        self._candidate: tuple[InstalledModel, VerifiedTarget | None] | None = None
        self._pending: VerifiedRelease | None = None
        self._active: InstalledModel | None = None
        self._fallback: InstalledModel | None = None
        self._delays = 0

    @property
    def key(self) -> str:
        """Where the state is persisted."""
        return f"update/{self.task}"

    @property
    def phase(self) -> Phase:
        """Where the update is."""
        return self._phase

    @property
    def active(self) -> InstalledModel | None:
        """The model that runs."""
        return self._active

    @property
    def revoked(self) -> frozenset[str]:
        """Digests of files that are not run here."""
        return frozenset(self._saved.revoked)

    def outcome(self, version: int) -> Literal["none", "pending", "trial", "confirmed", "failed"]:
        """How far this device is with a release, as `RolloutProgress` says it."""
        if self._active is not None and self._active.version == version:
            return "trial" if self._phase is Phase.TRIAL else "confirmed"
        if any(f.version == version for f in self._saved.failed):
            return "failed"
        under_way = self._candidate is not None and self._candidate[0].version == version
        return "pending" if under_way else "none"

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event; return the effects in the order in which they must happen.

        Args:
            event: what happened.
            now: seconds of the shell's clock.
        """
        rule = TABLE[self._phase].get(type(event))
        if rule is None:
            return [self._count("discarded")]
        sha256 = getattr(event, "sha256", None)
        if sha256 is not None and (self._candidate is None or self._candidate[0].sha256 != sha256):
            return [self._count("discarded")]  # the answer to something that was given up since
        return rule(self, event, now)

    def next_deadline(self) -> float | None:
        """When to send a `Tick`."""
        return self._deadline

    # -- boot ---------------------------------------------------------------------------------------------------------

    def _boot(self, event: BootedWith, now: float) -> list[Effect]:
        slots = event.slots
        effects: list[Effect] = []
        if self._damaged:
            effects.append(self._note("warning", f"forgot attempts and failures: saved state {self._damaged}"))
        self._active = slots.active
        self._fallback = slots.spare if slots.spare_good else None
        self._enter(Phase.IDLE)
        dropped = self._drop_revoked(now)
        if slots.active is not None and self._is_revoked(slots.active):
            return [*effects, *dropped]  # the process ended between remembering it and emptying the slot
        effects += dropped
        if slots.active is None and self._fallback is not None:
            return [*effects, *self._fall_back("its bytes are damaged", "damaged")]
        if slots.active is None or not slots.trial:
            return [*effects, self._report()]
        model = slots.active
        self._candidate = (model, None)
        if any(f.sha256 == model.sha256 for f in self._saved.failed):
            return [*effects, *self._fall_back("its trial had failed", "resumed")]
        if self._attempts(model) >= ATTEMPTS_MAX:
            return [*effects, *self._give_up(f"the process ended {ATTEMPTS_MAX} times while it was tried", now)]
        # The process ended during the trial, by its fault or not: that was an attempt, and this is the next.
        effects += [*self._save(tried=model.sha256, attempts=self._attempts(model) + 1), self._count("trial_resumed")]
        self._enter(Phase.TRIAL, now + self._trial_s_max)
        return [*effects, self._report()]

    # -- announcements ------------------------------------------------------------------------------------------------

    def _announced(self, event: ReleaseAnnounced, now: float) -> list[Effect]:
        return self._consider(event.release, now)

    def _consider(self, release: VerifiedRelease, now: float) -> list[Effect]:
        """Decide what a release means while no model is on trial."""
        if self._stale(release):
            return [self._count("stale")]
        seen = release.metadata_version
        try:
            model, target = self._choose(release)
        except RefusedError as fault:
            return [*self._save(seen=seen), *self._drop(release), *self._refusal(release, fault)]
        if self._candidate is not None and self._candidate[0].sha256 == model.sha256:
            return self._save(seen=seen)
        dropped = self._drop(release)
        if self._active is not None and model.sha256 == self._active.sha256:
            return [*self._save(seen=seen), *dropped]
        if any(f.sha256 == model.sha256 for f in self._saved.failed):
            return [*self._save(seen=seen), *dropped, self._count("failed_before")]
        self._candidate, self._delays = (model, target), 0
        saved = self._save(seen=seen, tried=model.sha256, attempts=self._attempts(model))
        return [*dropped, *saved, self._count("started"), *self._begin(now)]

    def _announced_later(self, event: ReleaseAnnounced, now: float) -> list[Effect]:
        """A model is on trial and its place is not free. Only its own withdrawal is acted upon at once."""
        release = event.release
        if self._stale(release):
            return [self._count("stale")]
        seen = release.metadata_version
        try:
            model, _ = self._choose(release)
        except RefusedError as fault:
            return [*self._save(seen=seen), *self._refusal(release, fault)]
        if model.sha256 == self._model().sha256:
            self._pending = None
            return self._save(seen=seen)
        if self._phase is Phase.TRIAL and release.version < self._model().version and self._fallback is not None:
            self._pending = None
            back = self._fall_back(f"newer metadata go back to release {release.version}", "withdrawn")
            return [*self._save(seen=seen), *back, *self._consider(release, now)]
        self._pending = release
        return [*self._save(seen=seen), self._count("queued")]

    def _stale(self, release: VerifiedRelease) -> bool:
        return release.task != self.task or release.metadata_version < self._saved.seen

    def _drop(self, release: VerifiedRelease) -> list[Effect]:
        """Give up what is under way: newer metadata name another release."""
        if self._candidate is None:
            return []
        given_up, self._candidate = self._candidate[0], None
        self._enter(Phase.IDLE)
        text = f"gave up release {given_up.version}: newer metadata name release {release.version}"
        return [self._count("superseded"), self._note("info", text)]

    def _refusal(self, release: VerifiedRelease, fault: RefusedError) -> list[Effect]:
        return [self._count("refused"), self._note("warning", f"refused release {release.version}: {fault}")]

    # -- revocation ---------------------------------------------------------------------------------------------------

    def _revoked(self, event: ReleasesRevoked, now: float) -> list[Effect]:
        """Take the newest list, whole: what a thief revoked with a stolen key comes back with newer metadata."""
        found = event.revocation
        if found.task != self.task or found.metadata_version < self._saved.revoked_at:
            return [self._count("stale")]
        digests = tuple(sorted(found.sha256))
        saved = self._save(revoked=digests, revoked_at=found.metadata_version) if digests != self._saved.revoked else []
        return [*saved, *self._drop_revoked(now)]

    def _drop_revoked(self, now: float) -> list[Effect]:
        candidate = None if self._candidate is None else self._candidate[0]
        gone = [m for m in (self._active, self._fallback, candidate) if m is not None and self._is_revoked(m)]
        if not gone:
            return []
        ran = self._active is not None and self._is_revoked(self._active)
        if self._fallback is not None and self._is_revoked(self._fallback):
            self._fallback = None
        if ran:
            self._active, self._fallback = self._fallback, None
        # While the slots are switched the candidate is in the active one already; elsewhere it needs a new start.
        if candidate is not None and (self._is_revoked(candidate) or (ran and self._phase is not Phase.ACTIVATING)):
            self._candidate = None
            self._enter(Phase.IDLE)
        successor = "" if self._active is None else self._active.sha256
        names = ", ".join(sorted({str(m.version) for m in gone}))
        text = f"dropped what signed metadata revoke: release {names}; {'it ran here' if ran else 'it did not run'}"
        effects = [DropRevoked(self.task, frozenset(self._saved.revoked), successor), self._count("revoked")]
        effects += [self._note("error" if ran else "info", text), self._report()]
        return effects if self._candidate is not None else [*effects, *self._take_pending(now)]

    def _is_revoked(self, model: InstalledModel) -> bool:
        return model.sha256 in self._saved.revoked

    def _choose(self, release: VerifiedRelease) -> tuple[InstalledModel, VerifiedTarget]:
        """The model of a release that this device may go to.

        Raises:
            RefusedError: no variant runs here, other features, or an older version without newer metadata.
        """
        limit = self._model_bytes_max
        too_large = [variant for variant, target in release.targets.items() if 0 < limit < target.length]
        choice = choose_variant(release.targets.keys(), self._backends, too_large)
        target = release.targets[choice.variant]
        self._check(release, target)
        model = InstalledModel(
            task=self.task,
            version=release.version,
            variant=choice.variant,
            backend=choice.backend,
            sha256=target.sha256,
            length=target.length,
            metadata_version=release.metadata_version,
        )
        return model, target

    def _check(self, release: VerifiedRelease, target: VerifiedTarget) -> None:
        if target.custom.feature_schema != self._feature_schema:
            raise RefusedError(
                f"found feature schema {target.custom.feature_schema[:12]}…{known_as(target.custom.feature_schema)}, "
                f"expected {self._feature_schema[:12]}…{known_as(self._feature_schema)}; update this device's "
                "software or its task's settings",
                rule="feature-schema",
            )
        if target.sha256 in self._saved.revoked:
            raise RefusedError(f"found {target.path}, which is revoked, expected another release", rule="revoked")
        active = self._active
        if active is None or target.sha256 == active.sha256 or release.metadata_version > active.metadata_version:
            return
        if release.version <= active.version:
            raise RefusedError(
                f"found version {release.version} in metadata {release.metadata_version}, expected one above "
                f"{active.version}, or metadata newer than {active.metadata_version}",
                rule="rollback",
            )

    # -- stage, test, activate ----------------------------------------------------------------------------------------

    def _begin(self, now: float) -> list[Effect]:
        assert self._candidate is not None
        model, target = self._candidate
        assert target is not None
        if self._attempts(model) >= ATTEMPTS_MAX:
            return self._give_up(f"the process ended or failed {ATTEMPTS_MAX} times while it was tried", now)
        self._enter(Phase.STAGING, now + ANSWER_S_MAX)
        return [Stage(model, target)]

    def _staged(self, event: ArtifactStaged, now: float) -> list[Effect]:
        model = self._model()
        self._fallback = None  # its slot was taken; the active model becomes the one to fall back to
        self._enter(Phase.TESTING, now + ANSWER_S_MAX)
        return [*self._save(tried=model.sha256, attempts=self._attempts(model) + 1), SelfTest(model)]

    def _fetch_failed(self, event: FetchFailed, now: float) -> list[Effect]:
        model = self._model()
        if event.transient:
            return self._retry(event.reason, now)
        saved = self._save(tried=model.sha256, attempts=self._attempts(model) + 1)
        return [*saved, *self._retry_or_give_up(event.reason, now)]

    def _test_passed(self, event: SelfTestPassed, now: float) -> list[Effect]:
        self._enter(Phase.ACTIVATING, now + ANSWER_S_MAX)
        return [Activate(self._model())]

    def _test_failed(self, event: SelfTestFailed, now: float) -> list[Effect]:
        return [self._count("self_test_failed"), *self._retry_or_give_up(f"self-test: {event.reason}", now)]

    def _activation_failed(self, event: ActivationFailed, now: float) -> list[Effect]:
        return self._not_activated(event.reason, now)

    def _not_activated(self, reason: str, now: float) -> list[Effect]:
        """The slots may have been switched all the same: they are put back first, which changes nothing if not."""
        return [FallBack(self.task), *self._retry_or_give_up(reason, now), *self._take_pending(now)]

    def _activated(self, event: Activated, now: float) -> list[Effect]:
        self._active, self._fallback = self._model(), self._active
        self._enter(Phase.TRIAL, now + self._trial_s_max)
        effects = [self._count("activated"), self._report()]
        pending, self._pending = self._pending, None
        return effects if pending is None else [*effects, *self._announced_later(ReleaseAnnounced(pending), now)]

    # -- trial --------------------------------------------------------------------------------------------------------

    def _confirmed(self, event: TrialConfirmed, now: float) -> list[Effect]:
        model = self._model()
        self._candidate = None
        self._enter(Phase.IDLE)
        # The slots first: a crash in between leaves a confirmed model and a count that nothing asks for.
        effects = [Confirm(model), *self._save(tried="", attempts=0), self._count("confirmed"), self._report()]
        return [*effects, *self._take_pending(now)]

    def _trial_failed(self, event: TrialFailed, now: float) -> list[Effect]:
        return self._give_up(event.reason, now)

    # -- time ---------------------------------------------------------------------------------------------------------

    def _tick(self, event: Tick, now: float) -> list[Effect]:
        if self._deadline is None or now < self._deadline:
            return []
        match self._phase:
            case Phase.WAITING:
                return self._begin(now)
            case Phase.STAGING:
                return self._retry(f"no answer within {ANSWER_S_MAX:g} s", now)
            case Phase.TESTING:
                return self._retry_or_give_up(f"self-test: no answer within {ANSWER_S_MAX:g} s", now)
            case Phase.ACTIVATING:
                return self._not_activated(f"no answer to the activation within {ANSWER_S_MAX:g} s", now)
            case _:
                return self._give_up(f"its trial was not confirmed within {self._trial_s_max:g} s", now)

    # -- ways out -----------------------------------------------------------------------------------------------------

    def _retry_or_give_up(self, reason: str, now: float) -> list[Effect]:
        if self._attempts(self._model()) >= ATTEMPTS_MAX:
            return self._give_up(reason, now)
        return self._retry(reason, now)

    def _retry(self, reason: str, now: float) -> list[Effect]:
        model = self._model()
        wait = min(RETRY_S * 2**self._delays, RETRY_S_MAX) * (0.5 + 0.5 * self._spread(model))
        self._delays = min(self._delays + 1, 16)
        self._enter(Phase.WAITING, now + wait)
        text = f"release {model.version} is tried again in {wait:.0f} s: {reason}"
        return [self._count("retried"), self._note("warning", text)]

    def _give_up(self, reason: str, now: float) -> list[Effect]:
        """Remember the candidate as failed; if it runs, return to the last good one."""
        model = self._model()
        on_trial = self._active is not None and self._active.sha256 == model.sha256
        failed = (*self._saved.failed, FailedRelease(version=model.version, sha256=model.sha256))[-FAILED_MAX:]
        effects = [*self._save(tried="", attempts=0, failed=failed), self._count("failed")]
        if on_trial:
            return [*effects, *self._fall_back(reason, "fell_back"), *self._take_pending(now)]
        self._candidate = None
        self._enter(Phase.IDLE)
        note = self._note("error", f"release {model.version} failed and is not tried again: {reason}")
        return [*effects, note, self._report(), *self._take_pending(now)]

    def _fall_back(self, reason: str, outcome: str) -> list[Effect]:
        left = self._active
        self._active, self._fallback, self._candidate = self._fallback, None, None
        self._enter(Phase.IDLE)
        to = "no model" if self._active is None else f"release {self._active.version}"
        text = f"left release {'?' if left is None else left.version} for {to}: {reason}"
        return [FallBack(self.task), self._count(outcome), self._note("error", text), self._report()]

    def _take_pending(self, now: float) -> list[Effect]:
        pending, self._pending = self._pending, None
        return [] if pending is None else self._consider(pending, now)

    # -- small things -------------------------------------------------------------------------------------------------

    def _enter(self, phase: Phase, deadline: float | None = None) -> None:
        self._phase, self._deadline = phase, deadline

    def _model(self) -> InstalledModel:
        assert self._candidate is not None
        return self._candidate[0]

    def _attempts(self, model: InstalledModel) -> int:
        return self._saved.attempts if self._saved.tried == model.sha256 else 0

    def _save(self, **changes: Any) -> list[Effect]:
        """Change what is persisted; no effect if it stays the same."""
        saved = self._saved.model_copy(update=changes)
        if saved == self._saved:
            return []
        self._saved = saved
        return [Persist(self.key, codec.pack_json(saved))]

    def _spread(self, model: InstalledModel) -> float:
        """0 to 1, another one for each device and try, so that a fleet does not come back all at once."""
        digest = hashlib.sha256(f"{self._device}/{model.sha256}/{self._delays}".encode()).digest()
        return int.from_bytes(digest[:4], "big") / 2**32

    def _report(self) -> Effect:
        return ReportState(self.task, self._active, self._phase is Phase.TRIAL)

    def _count(self, outcome: str) -> Effect:
        return Count("updates", outcome, self.task)

    def _note(self, level: str, text: str) -> Effect:
        return Note(level, f"task {self.task}: {text}")


Rule = Callable[[UpdateMachine, Any, float], list[Effect]]
_FREE: Final[Mapping[type[Event], Rule]] = {
    ReleaseAnnounced: UpdateMachine._announced,
    ReleasesRevoked: UpdateMachine._revoked,
    Tick: UpdateMachine._tick,
}
_BUSY: Final[Mapping[type[Event], Rule]] = {
    ReleaseAnnounced: UpdateMachine._announced_later,
    ReleasesRevoked: UpdateMachine._revoked,
    Tick: UpdateMachine._tick,
}
TABLE: Final[Mapping[Phase, Mapping[type[Event], Rule]]] = {
    Phase.BOOTING: {BootedWith: UpdateMachine._boot},
    Phase.IDLE: _FREE,
    Phase.WAITING: _FREE,
    Phase.STAGING: {
        **_FREE,
        ArtifactStaged: UpdateMachine._staged,
        FetchFailed: UpdateMachine._fetch_failed,
    },
    Phase.TESTING: {
        **_FREE,
        SelfTestPassed: UpdateMachine._test_passed,
        SelfTestFailed: UpdateMachine._test_failed,
    },
    Phase.ACTIVATING: {
        **_BUSY,
        Activated: UpdateMachine._activated,
        ActivationFailed: UpdateMachine._activation_failed,
    },
    Phase.TRIAL: {
        **_BUSY,
        TrialConfirmed: UpdateMachine._confirmed,
        TrialFailed: UpdateMachine._trial_failed,
    },
}
"""What is accepted where; everything else is discarded and counted."""
