"""The update machine, event by event."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest

from vedette_core.machine import Count, Effect, Event, Persist, Tick
from vedette_device.update_events import (
    Activate,
    Activated,
    ActivationFailed,
    ArtifactStaged,
    BootedWith,
    Confirm,
    FallBack,
    FetchFailed,
    InstalledModel,
    ReleaseAnnounced,
    ReportState,
    SelfTest,
    SelfTestFailed,
    SelfTestPassed,
    SlotsView,
    Stage,
    TrialConfirmed,
    TrialFailed,
)
from vedette_device.update_machine import TABLE, UpdateMachine
from vedette_device.update_state import ANSWER_S_MAX, ATTEMPTS_MAX, RETRY_S, RETRY_S_MAX, TRIAL_S_MAX, Phase
from vedette_device.verified_release import (
    Backend,
    Choice,
    VerifiedRelease,
    VerifiedTarget,
    choose_variant,
)
from vedette_schemas.errors import RefusedError
from vedette_schemas.model import ReleaseTarget, Variant

SCHEMA = "5c" * 32


def digest(version: int, variant: Variant = Variant.INT8) -> str:
    return hashlib.sha256(f"{version} {variant}".encode()).hexdigest()


def release(version: int, metadata: int | None = None, schema: str = SCHEMA) -> VerifiedRelease:
    targets = {}
    for variant in (Variant.INT8, Variant.WEIGHTS, Variant.PLAN):
        custom = ReleaseTarget(
            task="network",
            version=version,
            parent="",
            round=version,
            variant=variant,
            format="tflite" if variant is Variant.INT8 else variant.value,  # type: ignore[arg-type]
            feature_schema=schema,
            runtime_min="",
            contributors=1,
            transcript="",
            plan="00" * 32,
            metrics={},
            active=True,
        )
        path = f"network/{version}/{variant.value}"
        targets[variant] = VerifiedTarget(path, 100, digest(version, variant), custom)
    return VerifiedRelease("network", version, (1, version + 1 if metadata is None else metadata), targets)


def model(version: int, metadata: int | None = None) -> InstalledModel:
    return InstalledModel(
        task="network",
        version=version,
        variant=Variant.INT8,
        backend="litert",
        sha256=digest(version),
        length=100,
        metadata_version=(1, version + 1 if metadata is None else metadata),
    )


class Bench:
    """A machine, its clock, and what it persisted."""

    def __init__(self, backends: Sequence[Backend] = ("litert", "numpy")) -> None:
        self.backends = backends
        self.now, self.saved = 0.0, dict[str, bytes | None]()
        self.machine = UpdateMachine("network", "gw-01", backends, SCHEMA)

    def boot(self, slots: SlotsView | None = None) -> list[Effect]:
        self.machine = UpdateMachine("network", "gw-01", self.backends, SCHEMA, self.saved.get("update/network"))
        return self.send(BootedWith(slots or SlotsView()))

    def send(self, event: Event) -> list[Effect]:
        effects = self.machine.handle(event, self.now)
        self.saved.update({e.key: e.value for e in effects if isinstance(e, Persist)})
        return effects

    def wait(self) -> list[Effect]:
        deadline = self.machine.next_deadline()
        assert deadline is not None
        self.now = deadline
        return self.send(Tick())

    def to_trial(self, version: int) -> None:
        self.send(ReleaseAnnounced(release(version)))
        self.send(ArtifactStaged(digest(version)))
        self.send(SelfTestPassed(digest(version)))
        self.send(Activated(digest(version)))
        assert self.machine.phase is Phase.TRIAL

    def to_good(self, version: int) -> None:
        self.to_trial(version)
        self.send(TrialConfirmed(digest(version)))


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.boot()
    return bench


def kinds(effects: Sequence[Effect]) -> list[str]:
    return [type(e).__name__ for e in effects if not isinstance(e, Count) and type(e).__name__ != "Note"]


def outcomes(effects: Sequence[Effect]) -> list[str]:
    return [e.outcome for e in effects if isinstance(e, Count)]


def test_the_whole_way_of_a_release(bench: Bench) -> None:
    assert kinds(bench.send(ReleaseAnnounced(release(0)))) == ["Persist", "Stage"]
    assert kinds(bench.send(ArtifactStaged(digest(0)))) == ["Persist", "SelfTest"]
    assert bench.send(SelfTestPassed(digest(0))) == [Activate(model(0))]
    assert ReportState("network", model(0), True) in bench.send(Activated(digest(0)))
    effects = bench.send(TrialConfirmed(digest(0)))
    assert effects[0] == Confirm(model(0))
    assert ReportState("network", model(0), False) in effects
    assert bench.machine.phase is Phase.IDLE
    assert bench.machine.next_deadline() is None
    assert bench.machine.active == model(0)


def test_attempts_are_persisted_before_a_model_is_loaded(bench: Bench) -> None:
    bench.send(ReleaseAnnounced(release(0)))
    first, second = bench.send(ArtifactStaged(digest(0)))
    assert isinstance(first, Persist)
    assert b'"attempts":1' in (first.value or b"")
    assert isinstance(second, SelfTest)


def test_every_event_has_an_answer_in_every_phase() -> None:
    events: list[Event] = [
        BootedWith(SlotsView()), ReleaseAnnounced(release(9)), ArtifactStaged(digest(1)),
        FetchFailed(digest(1), "x", True), SelfTestPassed(digest(1)), SelfTestFailed(digest(1), "x"),
        Activated(digest(1)), ActivationFailed(digest(1), "x"), TrialConfirmed(digest(1)),
        TrialFailed(digest(1), "x"), Tick(),
    ]  # fmt: skip
    steps: dict[Phase, list[Event]] = {Phase.BOOTING: [], Phase.IDLE: [BootedWith(SlotsView())]}
    steps[Phase.STAGING] = [*steps[Phase.IDLE], ReleaseAnnounced(release(1))]
    steps[Phase.WAITING] = [*steps[Phase.STAGING], FetchFailed(digest(1), "x", True)]
    steps[Phase.TESTING] = [*steps[Phase.STAGING], ArtifactStaged(digest(1))]
    steps[Phase.ACTIVATING] = [*steps[Phase.TESTING], SelfTestPassed(digest(1))]
    steps[Phase.TRIAL] = [*steps[Phase.ACTIVATING], Activated(digest(1))]
    assert set(steps) == set(Phase) == set(TABLE)
    for phase, path in steps.items():
        for event in events:
            machine = UpdateMachine("network", "gw-01", ["litert"], SCHEMA)
            for step in path:
                machine.handle(step, 0.0)
            assert machine.phase is phase
            effects = machine.handle(event, 1.0)
            if type(event) not in TABLE[phase]:
                assert effects == [Count("updates", "discarded", "network")], (phase, event)
                assert machine.phase is phase


def test_an_answer_to_something_given_up_is_discarded(bench: Bench) -> None:
    bench.send(ReleaseAnnounced(release(0)))
    bench.send(ReleaseAnnounced(release(1)))
    assert outcomes(bench.send(ArtifactStaged(digest(0)))) == ["discarded"]
    assert kinds(bench.send(ArtifactStaged(digest(1)))) == ["Persist", "SelfTest"]


def test_a_broker_that_is_away_is_not_counted_against_the_release(bench: Bench) -> None:
    bench.send(ReleaseAnnounced(release(0)))
    waits = []
    for _ in range(20):
        bench.send(FetchFailed(digest(0), "broker away", transient=True))
        before = bench.now
        assert kinds(bench.wait()) == ["Stage"]
        waits.append(bench.now - before)
    assert RETRY_S / 2 <= waits[0] <= RETRY_S
    assert waits[4] > 4 * waits[0]
    assert max(waits) <= RETRY_S_MAX
    bench.send(ArtifactStaged(digest(0)))
    assert bench.machine.phase is Phase.TESTING


def test_two_devices_do_not_come_back_at_the_same_moment() -> None:
    deadlines = set()
    for device in range(50):
        machine = UpdateMachine("network", f"gw-{device}", ["litert"], SCHEMA)
        for event in (
            BootedWith(SlotsView()),
            ReleaseAnnounced(release(0)),
            FetchFailed(digest(0), "broker away", transient=True),
        ):
            machine.handle(event, 0.0)
        deadlines.add(machine.next_deadline())
    assert len(deadlines) == 50


@pytest.mark.parametrize("how", ["wrong bytes", "self-test"])
def test_a_release_is_tried_three_times_and_then_remembered(bench: Bench, how: str) -> None:
    bench.to_good(0)
    bench.send(ReleaseAnnounced(release(1)))
    for attempt in range(ATTEMPTS_MAX):
        if how == "wrong bytes":
            effects = bench.send(FetchFailed(digest(1), "digest", transient=False))
        else:
            bench.send(ArtifactStaged(digest(1)))
            effects = bench.send(SelfTestFailed(digest(1), "all scores are NaN"))
        if attempt < ATTEMPTS_MAX - 1:
            assert kinds(bench.wait()) == ["Stage"]
    assert "failed" in outcomes(effects)
    assert bench.machine.phase is Phase.IDLE
    assert outcomes(bench.send(ReleaseAnnounced(release(1)))) == ["failed_before"]
    assert outcomes(bench.send(ReleaseAnnounced(release(1, metadata=40)))) == ["failed_before"]
    bench.boot(SlotsView(active=model(0)))
    assert outcomes(bench.send(ReleaseAnnounced(release(1, metadata=40)))) == ["failed_before"]
    assert kinds(bench.send(ReleaseAnnounced(release(2, metadata=41)))) == ["Persist", "Stage"]


def test_a_failed_trial_falls_back_at_once_with_no_network(bench: Bench) -> None:
    bench.to_good(0)
    bench.to_trial(1)
    effects = bench.send(TrialFailed(digest(1), "score rate exploded"))
    assert kinds(effects) == ["Persist", "FallBack", "ReportState"]
    assert bench.machine.active == model(0)
    assert outcomes(bench.send(ReleaseAnnounced(release(1)))) == ["failed_before"]


def test_a_trial_that_nobody_confirms_falls_back(bench: Bench) -> None:
    bench.to_good(0)
    bench.to_trial(1)
    assert bench.machine.next_deadline() == bench.now + TRIAL_S_MAX
    assert "FallBack" in kinds(bench.wait())
    assert bench.machine.active == model(0)


def test_a_first_release_that_fails_leaves_no_model(bench: Bench) -> None:
    bench.to_trial(0)
    effects = bench.send(TrialFailed(digest(0), "x"))
    assert ReportState("network", None, False) in effects
    assert bench.machine.active is None


def test_three_crashes_during_the_trial_fall_back(bench: Bench) -> None:
    bench.to_good(0)
    bench.to_trial(1)
    on_trial = SlotsView(active=model(1), spare=model(0), trial=True, spare_good=True)
    for _ in range(ATTEMPTS_MAX - 1):
        effects = bench.boot(on_trial)
        assert isinstance(effects[0], Persist), "counted before the model is loaded"
        assert bench.machine.phase is Phase.TRIAL
    effects = bench.boot(on_trial)
    assert kinds(effects) == ["Persist", "FallBack", "ReportState"]
    assert bench.machine.active == model(0)


def test_three_crashes_during_the_self_test_give_the_release_up(bench: Bench) -> None:
    for _ in range(ATTEMPTS_MAX):
        bench.boot()
        assert "Stage" in kinds(bench.send(ReleaseAnnounced(release(0))))
        assert kinds(bench.send(ArtifactStaged(digest(0)))) == ["Persist", "SelfTest"]
    bench.boot()
    effects = bench.send(ReleaseAnnounced(release(0)))
    assert "failed" in outcomes(effects)
    assert "Stage" not in kinds(effects)


def test_a_crash_between_remembering_and_falling_back_is_finished_at_boot(bench: Bench) -> None:
    bench.to_good(0)
    bench.to_trial(1)
    bench.send(TrialFailed(digest(1), "x"))  # persisted; the slots were not switched any more
    effects = bench.boot(SlotsView(active=model(1), spare=model(0), trial=True, spare_good=True))
    assert "FallBack" in kinds(effects)
    assert bench.machine.active == model(0)


def test_damaged_bytes_of_the_active_model_fall_back_to_the_spare(bench: Bench) -> None:
    effects = bench.boot(SlotsView(active=None, spare=model(0), spare_good=True))
    assert kinds(effects) == ["FallBack", "ReportState"]
    effects = bench.boot(SlotsView(active=None, spare=model(0), spare_good=False))
    assert kinds(effects) == ["ReportState"], "a model that was never tested is not run"
    assert bench.machine.active is None


def test_a_damaged_memory_is_noted_and_not_fatal() -> None:
    machine = UpdateMachine("network", "gw-01", ["litert"], SCHEMA, b"\x00garbage")
    effects = machine.handle(BootedWith(SlotsView(active=model(3))), 0.0)
    assert any("forgot attempts" in getattr(e, "text", "") for e in effects)
    assert machine.active == model(3)


def test_an_older_version_needs_newer_metadata(bench: Bench) -> None:
    bench.to_good(5)  # announced by metadata 6
    assert outcomes(bench.send(ReleaseAnnounced(release(4, metadata=6)))) == ["refused"]
    assert outcomes(bench.send(ReleaseAnnounced(release(6, metadata=5)))) == ["stale"]
    assert kinds(bench.send(ReleaseAnnounced(release(4, metadata=7)))) == ["Persist", "Stage"]


def test_going_back_survives_a_restart_before_it_is_done(bench: Bench) -> None:
    bench.to_good(5)
    bench.send(ReleaseAnnounced(release(4, metadata=7)))
    bench.boot(SlotsView(active=model(5)))
    assert kinds(bench.send(ReleaseAnnounced(release(4, metadata=7)))) == ["Stage"]
    bench.boot(SlotsView(active=model(5)))
    assert outcomes(bench.send(ReleaseAnnounced(release(5, metadata=6)))) == ["stale"]


def test_lower_numbers_under_a_newer_root_are_newer(bench: Bench) -> None:
    bench.to_good(5)
    after_theft = VerifiedRelease("network", 6, (2, 1), release(6).targets)
    assert "Stage" in kinds(bench.send(ReleaseAnnounced(after_theft)))


def test_a_withdrawn_release_is_left_during_its_trial(bench: Bench) -> None:
    bench.to_good(0)
    bench.to_trial(1)
    effects = bench.send(ReleaseAnnounced(release(0, metadata=9)))
    assert kinds(effects) == ["Persist", "FallBack", "ReportState"]
    assert bench.machine.active == model(0)


def test_a_release_that_comes_during_a_trial_waits_for_its_end(bench: Bench) -> None:
    bench.to_good(0)
    bench.to_trial(1)
    assert outcomes(bench.send(ReleaseAnnounced(release(2)))) == ["queued"]
    effects = bench.send(TrialConfirmed(digest(1)))
    assert kinds(effects)[0] == "Confirm"
    assert kinds(effects)[-1] == "Stage"


def test_a_withdrawal_during_the_activation_is_carried_out_after_it(bench: Bench) -> None:
    bench.to_good(0)
    for event in (ReleaseAnnounced(release(1)), ArtifactStaged(digest(1)), SelfTestPassed(digest(1))):
        bench.send(event)
    bench.send(ReleaseAnnounced(release(0, metadata=9)))
    assert "FallBack" in kinds(bench.send(Activated(digest(1))))
    assert bench.machine.active == model(0)


def test_newer_metadata_that_name_the_active_release_end_an_update(bench: Bench) -> None:
    bench.to_good(0)
    bench.send(ReleaseAnnounced(release(1)))
    bench.send(ReleaseAnnounced(release(0, metadata=9)))
    assert bench.machine.phase is Phase.IDLE
    assert outcomes(bench.send(ArtifactStaged(digest(1)))) == ["discarded"]


@pytest.mark.parametrize("why", ["other features", "failed before"])
def test_an_update_ends_when_newer_metadata_name_what_cannot_run_here(bench: Bench, why: str) -> None:
    bench.to_good(0)
    bench.to_trial(1)
    bench.send(TrialFailed(digest(1), "x"))
    bench.send(ReleaseAnnounced(release(2)))
    other = release(3, schema="ab" * 32) if why == "other features" else release(1, metadata=9)
    assert "superseded" in outcomes(bench.send(ReleaseAnnounced(other)))
    assert outcomes(bench.send(ArtifactStaged(digest(2)))) == ["discarded"]
    assert outcomes(bench.send(ReleaseAnnounced(release(2)))) == ["stale"]
    assert bench.machine.active == model(0)


def test_a_withdrawal_to_a_third_release_leaves_the_trial_first(bench: Bench) -> None:
    bench.to_good(4)
    bench.to_trial(5)
    effects = bench.send(ReleaseAnnounced(release(3, metadata=9)))
    assert kinds(effects) == ["Persist", "FallBack", "ReportState", "Persist", "Stage"]
    assert bench.machine.active == model(4)


def test_a_release_for_other_features_is_refused(bench: Bench) -> None:
    effects = bench.send(ReleaseAnnounced(release(0, schema="ab" * 32)))
    assert outcomes(effects) == ["refused"]
    assert any("found feature schema abab" in getattr(e, "text", "") for e in effects)


def test_the_same_announcement_again_changes_nothing(bench: Bench) -> None:
    bench.send(ReleaseAnnounced(release(0)))
    assert bench.send(ReleaseAnnounced(release(0))) == []
    bench.to_good(1)
    assert bench.send(ReleaseAnnounced(release(1))) == []


@pytest.mark.parametrize("phase", [Phase.STAGING, Phase.TESTING, Phase.ACTIVATING])
def test_a_lost_answer_does_not_hang_the_machine(bench: Bench, phase: Phase) -> None:
    bench.to_good(0)
    for event in (ReleaseAnnounced(release(1)), ArtifactStaged(digest(1)), SelfTestPassed(digest(1))):
        if bench.machine.phase is not phase:
            bench.send(event)
    assert bench.machine.next_deadline() == bench.now + ANSWER_S_MAX
    effects = bench.wait()
    assert bench.machine.phase is Phase.WAITING
    assert ("FallBack" in kinds(effects)) == (phase is Phase.ACTIVATING)
    assert isinstance(bench.wait()[-1], Stage)


def test_a_failed_activation_is_tried_again(bench: Bench) -> None:
    for event in (ReleaseAnnounced(release(1)), ArtifactStaged(digest(1)), SelfTestPassed(digest(1))):
        bench.send(event)
    effects = bench.send(ActivationFailed(digest(1), "disk full"))
    assert effects[0] == FallBack("network"), "the slots may have been switched before it failed"
    assert bench.machine.phase is Phase.WAITING
    assert bench.machine.active is None


def test_a_tick_before_the_deadline_does_nothing(bench: Bench) -> None:
    bench.to_trial(0)
    assert bench.send(Tick()) == []
    assert FallBack("network") not in bench.send(Tick())


@pytest.mark.parametrize(
    ("available", "backends", "wanted"),
    [
        ({Variant.INT8, Variant.WEIGHTS, Variant.PLAN}, ("litert", "numpy"), Choice(Variant.INT8, "litert")),
        ({Variant.INT8, Variant.WEIGHTS}, ("tflite",), Choice(Variant.INT8, "tflite")),
        ({Variant.INT8, Variant.WEIGHTS}, ("numpy",), Choice(Variant.WEIGHTS, "numpy")),
        ({Variant.WEIGHTS, Variant.PLAN}, ("litert", "numpy"), Choice(Variant.WEIGHTS, "numpy")),
        ({Variant.FLOAT32, Variant.INT16X8}, ("litert",), Choice(Variant.FLOAT32, "litert")),
    ],
)
def test_the_best_variant_that_runs_here(
    available: set[Variant], backends: tuple[Backend, ...], wanted: Choice
) -> None:
    assert choose_variant(available, backends) == wanted


@pytest.mark.parametrize(
    ("available", "backends"), [({Variant.PLAN}, ("litert", "numpy")), ({Variant.INT8}, ("numpy",)), (set(), ())]
)
def test_no_variant_that_runs_here(available: set[Variant], backends: tuple[Backend, ...]) -> None:
    with pytest.raises(RefusedError, match=r"variants: found .*, expected one of"):
        choose_variant(available, backends)


def test_what_there_is_no_memory_for_is_passed_over() -> None:
    available = {Variant.INT8, Variant.FLOAT32, Variant.FLOAT16, Variant.WEIGHTS}
    chosen = choose_variant(available, ("litert", "numpy"), {Variant.INT8, Variant.FLOAT32})
    assert chosen == Choice(Variant.FLOAT16, "litert")
    with pytest.raises(RefusedError, match=r"found .*, too large here: int8, weights, expected one of"):
        choose_variant({Variant.INT8, Variant.WEIGHTS}, ("litert", "numpy"), {Variant.INT8, Variant.WEIGHTS})


@pytest.mark.parametrize(("bytes_max", "outcome"), [(0, "started"), (100, "started"), (99, "refused")])
def test_a_device_takes_no_model_that_is_larger_than_its_memory(bytes_max: int, outcome: str) -> None:
    machine = UpdateMachine("network", "gw-01", ["litert", "numpy"], SCHEMA, model_bytes_max=bytes_max)
    machine.handle(BootedWith(SlotsView()), 0.0)
    effects = machine.handle(ReleaseAnnounced(release(0)), 0.0)
    assert outcomes(effects) == [outcome]
    assert any(isinstance(e, Stage) for e in effects) is (outcome == "started")


def test_a_release_that_nothing_here_can_run_is_refused() -> None:
    bench = Bench(backends=())
    bench.boot()
    effects = bench.send(ReleaseAnnounced(release(0)))
    assert outcomes(effects) == ["refused"]
    assert bench.machine.phase is Phase.IDLE
