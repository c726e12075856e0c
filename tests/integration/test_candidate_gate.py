"""The gate in a real release: a bad round changes nothing, and everybody can see why."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tank_recording import RECORDINGS, Tank

from vedette import toml_writer
from vedette.main import main
from vedette_aggregator.aggregation import Candidate
from vedette_aggregator.gate_watch import watch_gate
from vedette_aggregator.lineage import Lineage
from vedette_aggregator.registry import Registry
from vedette_aggregator.releases import Releases, TaskModel, server_optimiser
from vedette_aggregator.round_settings import RoundSettings
from vedette_aggregator.settings import TaskSection
from vedette_aggregator.validation_settings import AttackSection, HoldoutSection, ValidationSection
from vedette_core.learning.layout import Float32
from vedette_core.learning.local_training import train
from vedette_core.runtime.metrics import AGGREGATOR_METRICS, Metrics
from vedette_device.root_windows import save_windows
from vedette_schemas.errors import RefusedError
from vedette_schemas.round import plan_bytes

NOW = 1_800_000_000.0
TASK = "sensor"
pytestmark = pytest.mark.skipif(
    not (RECORDINGS / "labels.csv").is_file(), reason="the recordings are not in this checkout"
)


class Site:
    """A repository and a record; the gate measures on a tank that no device trains on."""

    def __init__(self, folder: Path, mode: str = "enforce", *, holdouts: bool = True) -> None:
        held, self.tanks = Tank("gw-05"), [Tank("gw-01"), Tank("gw-02")]
        benign, trace = folder / "benign.npz", folder / "tampering.npz"
        save_windows(np.concatenate([held.held_out, held.usual]), held.schema, benign)
        save_windows(held.tampered, held.schema, trace)
        validation = ValidationSection(
            mode=mode,  # type: ignore[arg-type]
            holdouts=(HoldoutSection(cohort="tank", path=benign),) if holdouts else (),
            attacks=(AttackSection(name="tampering", cohort="tank", path=trace),) if holdouts else (),
        )
        channels = tuple(c for c in held.schema.columns if not c.startswith("d_"))[: len(held.schema.columns) // 2]
        self.section = TaskSection(task=TASK, use_case="sensor", channels=channels, validation=validation)
        self.model = TaskModel.of(self.section)
        assert self.model.schema.digest == held.schema.digest
        self.registry = self.make_registry(folder)
        self.state = folder / "state" / "aggregator.db"
        self.metrics = Metrics(AGGREGATOR_METRICS)
        self.config = folder / "aggregator.toml"
        tables = {
            "site": "plant",
            "state_dir": folder / "state",
            "trust_dir": folder / "trust",
            "identity": {"bundle": folder / "bundle"},
            "tasks": [self.section.model_dump(include={"task", "use_case", "channels"})],
        }
        self.config.write_text(toml_writer.dumps(tables))
        settings = RoundSettings(
            **self.section.round.model_dump(),
            **self.section.training.model_dump(),
            **self.section.privacy.model_dump(),
            masked=False,
        )
        self.plan = self.model.plan(settings, TASK)
        self.releases = self.open()

    def make_registry(self, folder: Path) -> Registry:
        """Without a second signer."""
        return Registry.create(folder / "trust", "plant", (TASK,), NOW)

    def open(self) -> Releases:
        """As an aggregator does when it starts."""
        releases = Releases(self.registry, self.section, self.model)

        def no_rounds() -> None:
            raise AssertionError("nothing asks the rounds here")

        watch_gate(releases.gate, Lineage(self.state), self.metrics, no_rounds)  # type: ignore[arg-type]
        releases.gate.spent = lambda: 2.5
        self.start = releases.initial(self.plan, NOW)
        return releases

    def trained(self, weights: Float32, seed: int) -> Float32:
        """The change that a round of the two tanks makes."""
        network = self.model.network
        deltas = [
            train(
                network,
                weights,
                tank.training.reshape(len(tank.training), *network.input_shape),
                epochs=1,
                batch_size=32,
                learning_rate=2e-3,
                prox_mu=0.0,
                rng=np.random.default_rng(seed),
            ).delta
            for tank in self.tanks
        ]
        return np.mean(deltas, axis=0).astype(np.float32)

    def candidate(self, number: int, parent: int, weights: Float32) -> Candidate:
        known = np.concatenate([t.training for t in self.tanks])
        shaped = known.reshape(len(known), *self.model.network.input_shape)
        return Candidate(
            task=TASK,
            round=number,
            attempt=1,
            parent_version=parent,
            parent_sha256="",
            plan=plan_bytes(self.plan)[1],
            weights=weights,
            ranges=self.model.network.activation_ranges(shaped, weights),
            contributors=("gw-01", "gw-02"),
            transcript=bytes([number]) * 32,
            metrics={"loss_before": 1.0, "loss_after": 0.5},
            optimiser=server_optimiser(self.section).initial_state(len(weights)),
        )

    def release(self, candidate: Candidate) -> int:
        return self.releases.release(candidate, plan_bytes(self.plan)[0], NOW + candidate.round)[0].version

    def count(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"vedette_{name}_total", {"task": TASK, **labels})


@pytest.fixture
def vedette(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    def run(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["vedette", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "220")
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code in (0, None), capsys.readouterr().err
        return capsys.readouterr().out

    return run


def test_a_poisoned_round_is_stopped_and_the_next_starts_from_the_same_model(
    tmp_path: Path, vedette: Callable[..., str]
) -> None:
    site = Site(tmp_path)
    first = site.start.weights + site.trained(site.start.weights, 1)
    assert site.release(site.candidate(1, 0, first)) == 1
    before = site.registry.retained()
    step = site.trained(first, 2)
    with pytest.raises(RefusedError, match=r"validation: .*loss \(tank\): found a loss of") as refused:
        site.release(site.candidate(2, 1, first - 8.0 * step))
    assert refused.value.rule == "validation"
    with pytest.raises(RefusedError, match="validation: "):
        site.release(site.candidate(2, 1, first - 8.0 * step))
    assert site.registry.versions(TASK) == (0, 1)
    assert site.registry.active(TASK) == 1
    assert site.registry.retained() == before, "not a byte of what devices see has changed"
    assert site.release(site.candidate(3, 1, first + step)) == 2

    record = Lineage(site.state)
    assert [(d.round, d.outcome, d.version) for d in record.all(TASK)] == [
        (0, "released", 0),
        (1, "released", 1),
        (2, "rejected", None),
        (3, "released", 2),
    ]
    assert site.count("candidates", outcome="rejected") == 1.0
    assert site.count("candidates", outcome="accepted") == 2.0
    assert site.count("candidate_rejections", kind="loss") == 1.0
    assert record.ancestors(TASK, 2) == (1, 0)

    shown = vedette("model", "candidates", "-c", site.config)
    assert "rejected" in shown
    assert "sensor round 2: loss (tank): found a loss of" in shown
    rows = json.loads(vedette("model", "candidates", "-c", site.config, "--rejected", "--json"))
    assert [row["round"] for row in rows] == [2]
    assert {v["validator"] for v in rows[0]["verdicts"]} >= {"loss", "detection"}
    assert rows[0]["epsilon"] == 2.5
    everything = json.loads(vedette("model", "list", "-c", site.config, "--all", "--json"))
    assert [row["version"] for row in everything] == [0, 1, None, 2]
    record.record(TASK, 2, "rollout started", NOW + 9, "stage 1 of 4")
    text = vedette("model", "show", "-c", site.config, "-t", TASK)
    assert "parents: 1 ← 0; round 3, attempt 1; privacy: ε 2.5" in text
    assert "rollout started  stage 1 of 4" in text
    assert "rollout started" in vedette("model", "list", "-c", site.config, "--all")
    vedette("model", "revoke", TASK, "2", "-c", site.config, "--reason", "floods alerts")
    assert "revoked  floods alerts" in vedette("model", "show", "-c", site.config, "-t", TASK, "-v", "2")
    last = json.loads(vedette("model", "list", "-c", site.config, "--all", "--json"))[-1]["history"]
    assert [event["what"] for event in last] == ["rollout started", "revoked"]


def test_the_record_outlives_the_files(tmp_path: Path, vedette: Callable[..., str]) -> None:
    site = Site(tmp_path, holdouts=False)
    weights = site.start.weights
    for number in range(1, 5):
        weights = weights + site.trained(weights, number)
        assert site.release(site.candidate(number, number - 1, weights)) == number
    assert site.registry.versions(TASK) == (2, 3, 4)
    shown = json.loads(vedette("model", "show", "-c", site.config, "-t", TASK, "-v", "1", "--json"))
    assert shown["lineage"]["files"].keys() == {"weights", "plan", "int8", "float32"}
    assert "no longer kept" in vedette("model", "show", "-c", site.config, "-t", TASK, "-v", "1")
    found = json.loads(
        vedette("model", "diff", "0", "4", "-c", site.config, "-t", TASK, "--json",
                "--holdout", tmp_path / "benign.npz", "--attack", tmp_path / "tampering.npz")
    )  # fmt: skip
    assert found["holdout"]["loss"]["b"] < found["holdout"]["loss"]["a"]
    assert found["holdout"]["detected"]["b"] > found["holdout"]["detected"]["a"]
    assert 0.0 < found["weights"]["relative"] < 2.0
    assert found["metrics"]["loss_after"] == {"a": None, "b": 0.5}
    text = vedette("model", "diff", "round-3", "4", "-c", site.config, "-t", TASK)
    assert "round-3 → 4: 16837 weights, relative L2" in text


def test_a_restart_between_release_and_record_loses_neither(tmp_path: Path) -> None:
    site = Site(tmp_path, holdouts=False)
    candidate = site.candidate(1, 0, site.start.weights + site.trained(site.start.weights, 1))
    site.releases._record = lambda *_: None  # type: ignore[method-assign]  # the process dies behind the publication
    site.release(candidate)
    assert Lineage(site.state).of_version(TASK, 1) is None
    site.releases = site.open()
    assert site.release(candidate) == 1, "the machine hands the same candidate over again"
    assert site.registry.versions(TASK) == (0, 1)
    found = Lineage(site.state).all(TASK)
    assert [(d.version, d.outcome) for d in found] == [(0, "released"), (1, "released")]
    assert found[1].digest == candidate.digest().hex()
    assert len(found[1].verdicts) == 7


def test_a_child_of_what_was_gone_back_from_is_not_released(tmp_path: Path) -> None:
    """The gate holds it against its parent, which is the bad one: a rollback must not be undone by its child."""
    site = Site(tmp_path, holdouts=False)
    first = site.start.weights + site.trained(site.start.weights, 1)
    assert site.release(site.candidate(1, 0, first)) == 1
    child = site.candidate(2, 1, first + site.trained(first, 2))
    site.registry.rollback(TASK, 0, NOW + 5)
    with pytest.raises(RefusedError, match="found release 0 active, expected its parent 1") as refused:
        site.release(child)
    assert refused.value.rule == "parent"
    assert (site.registry.active(TASK), site.registry.versions(TASK)) == (0, (0, 1))
    assert [(d.round, d.outcome) for d in Lineage(site.state).all(TASK)][-1] == (2, "failed")
    assert site.release(site.candidate(3, 0, first + site.trained(first, 3))) == 2


@pytest.mark.parametrize(("mode", "verdicts"), [("watch", 7), ("off", 0)])
def test_where_the_gate_does_not_enforce_the_release_is_made(tmp_path: Path, mode: str, verdicts: int) -> None:
    site = Site(tmp_path, mode)
    step = site.trained(site.start.weights, 1)
    assert site.release(site.candidate(1, 0, site.start.weights - 5.0 * step)) == 1
    found = Lineage(site.state).of_version(TASK, 1)
    assert found is not None
    assert len(found.verdicts) == verdicts
    assert any(v["outcome"] == "reject" for v in found.verdicts) is (mode == "watch")
    assert site.count("candidates", outcome="rejected") == 0.0, "nothing was rejected"
    assert site.count("candidates", outcome="watched") == (1.0 if mode == "watch" else None)


def test_a_candidate_that_cannot_be_built_is_on_record(tmp_path: Path) -> None:
    site = Site(tmp_path, holdouts=False)
    broken = site.start.weights.copy()
    broken[3] = np.nan
    with pytest.raises(Exception, match="not finite"):
        site.release(site.candidate(1, 0, broken))
    (found,) = Lineage(site.state).all(TASK)[1:]
    assert (found.outcome, found.version) == ("failed", None)
    assert "not finite" in found.reason


def test_what_was_measured_stays_on_record_when_a_candidate_s_parent_is_left(tmp_path: Path) -> None:
    site = Site(tmp_path)
    weights = site.start.weights
    candidate = site.candidate(1, site.start.version, weights + site.trained(weights, 1))
    built = site.releases._build(candidate, NOW)
    site.releases.gate.check(candidate, weights, {v: a.data for v, a in built.items()}, NOW)
    assert site.releases._build(candidate, NOW) is built, "made once, however often it is tried"
    before = Lineage(site.state).of_digest(TASK, candidate.digest().hex())
    site.releases.gate.failed(candidate, RefusedError("its parent was left", rule="parent"), NOW)
    after = Lineage(site.state).of_digest(TASK, candidate.digest().hex())
    assert before is not None
    assert after is not None
    assert before.verdicts
    assert (after.verdicts, after.figures, after.weights_sha256) == (
        before.verdicts,
        before.figures,
        before.weights_sha256,
    )
    assert (after.outcome, after.reason) == ("failed", "its parent was left")
