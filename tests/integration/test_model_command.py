"""`vedette model` on a real repository: what it says of sound releases, and of every way in which one is not."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vedette import toml_writer
from vedette.exit_codes import ExitCode
from vedette.main import main
from vedette_aggregator import release_check
from vedette_aggregator.aggregation import Candidate
from vedette_aggregator.artifacts import TFLITE_VARIANTS, assumed_ranges, build_artifacts
from vedette_aggregator.registry import Registry
from vedette_aggregator.release_check import Finding, check_release
from vedette_aggregator.release_source import ReleaseSource
from vedette_aggregator.releases import Releases, TaskModel, server_optimiser
from vedette_aggregator.round_settings import RoundSettings
from vedette_aggregator.round_state import RoundKeys, RoundRecord, RoundState
from vedette_aggregator.settings import TaskSection
from vedette_core.learning.weights_file import WeightsFile, write_weights
from vedette_core.runtime.storage import Database, StateStore
from vedette_schemas.errors import RefusedError
from vedette_schemas.model import Variant
from vedette_schemas.round import Plan, plan_bytes

NOW = 1_800_000_000.0
TASKS = {
    "network": TaskSection(task="network", use_case="network", preset="tiny"),
    "sensor": TaskSection(task="sensor", use_case="sensor", channels=("level_m", "inflow_l_s"), preset="small"),
}


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command gave back."""

    code: int
    out: str
    err: str


Vedette = Callable[..., Ran]


@pytest.fixture
def vedette(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Vedette:
    def run(*arguments: str | Path) -> Ran:
        monkeypatch.setattr(sys, "argv", ["vedette", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        return Ran(int(left.value.code or 0), said.out, said.err)

    return run


class Site:
    """A repository with release 0 of two tasks, and one that a round made of the first."""

    def __init__(self, folder: Path) -> None:
        self.trust = folder / "trust"
        self.registry = Registry.create(self.trust, "plant", tuple(TASKS), NOW)
        self.config = folder / "aggregator.toml"
        tables = {
            "site": "plant",
            "state_dir": folder / "state",
            "trust_dir": self.trust,
            "identity": {"bundle": folder / "bundle"},
            "tasks": [
                section.model_dump(include={"task", "use_case", "channels", "preset"}) for section in TASKS.values()
            ],
        }
        self.config.write_text(toml_writer.dumps(tables))
        self.models = {name: TaskModel.of(section) for name, section in TASKS.items()}
        self.plans = {name: self._plan(name) for name in TASKS}
        start = {name: self._releases(name).initial(self.plans[name], NOW) for name in TASKS}
        parent = start["network"]
        network = self.models["network"].network
        self.weights = parent.weights + np.float32(0.01)
        candidate = Candidate(
            task="network",
            round=1,
            attempt=1,
            parent_version=0,
            parent_sha256=parent.sha256,
            plan=plan_bytes(self.plans["network"])[1],
            weights=self.weights,
            ranges=assumed_ranges(network, self.weights),
            contributors=("gw-1", "gw-2", "gw-3"),
            transcript=bytes(range(32)),
            metrics={"loss_after": 0.25},
            optimiser=server_optimiser(TASKS["network"]).initial_state(len(self.weights)),
        )
        self._releases("network").release(candidate, plan_bytes(self.plans["network"])[0], NOW)

    def _releases(self, task: str) -> Releases:
        return Releases(self.registry, TASKS[task], self.models[task])

    def _plan(self, task: str) -> Plan:
        model, section = self.models[task], TASKS[task]
        settings = RoundSettings(
            **section.round.model_dump(), **section.training.model_dump(), **section.privacy.model_dump(), masked=False
        )
        return model.plan(settings, task)

    def publish(self, version: int, change: Callable[[dict[Variant, bytes]], None]) -> None:
        """Sign another release of the first task, with files that were changed before they were signed."""
        model = self.models["network"]
        ranges = assumed_ranges(model.network, self.weights)
        built = build_artifacts(
            model.network, self.weights, task="network", schema=model.schema, ranges=ranges, variants=TFLITE_VARIANTS
        )
        files = {variant: artifact.data for variant, artifact in built.items()}
        files[Variant.WEIGHTS] = write_weights(WeightsFile(model.network, self.weights, model.schema))
        files[Variant.PLAN] = plan_bytes(self.plans["network"])[0]
        change(files)
        plan = hashlib.sha256(files[Variant.PLAN]).hexdigest()
        custom = {
            variant: self.registry.listed("network", 1)[Variant.WEIGHTS].custom.model_copy(
                update={
                    "version": version,
                    "variant": variant,
                    "plan": plan,
                    "format": {Variant.WEIGHTS: "weights", Variant.PLAN: "plan"}.get(variant, "tflite"),
                }
            )
            for variant in files
        }
        self.registry.publish("network", version, files, custom, NOW)

    def artifact(self, version: int, variant: Variant) -> Path:
        return self.trust / "artifacts" / self.registry.listed("network", version)[variant].sha256


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_releases_are_listed_with_sizes_digests_and_metrics(site: Site, vedette: Vedette) -> None:
    ran = vedette("model", "list", "-c", site.config, "--json")
    assert ran.code == ExitCode.OK, ran.err
    rows = {(row["task"], row["version"]): row for row in json.loads(ran.out)}
    assert set(rows) == {("network", 0), ("network", 1), ("sensor", 0)}
    newest = rows["network", 1]
    assert (newest["active"], newest["round"], newest["devices"]) == (True, 1, 3)
    assert newest["metrics"] == {"loss_after": "0.25"}
    assert not rows["network", 0]["active"]
    for variant in ("weights", "int8", "float32", "plan"):
        data = (site.trust / "artifacts" / newest["files"][variant]["sha256"]).read_bytes()
        assert newest["files"][variant]["bytes"] == len(data)
        assert hashlib.sha256(data).hexdigest() == newest["files"][variant]["sha256"]
    assert newest["files"]["int8"]["bytes"] <= 4_000, "the task's preset is tiny"
    shown = vedette("model", "list", "-c", site.config, "--task", "sensor").out
    assert "sensor" in shown
    assert "network" not in shown


def test_a_release_is_shown_with_its_network_and_what_a_board_needs(site: Site, vedette: Vedette) -> None:
    plain = json.loads(vedette("model", "show", "-c", site.config, "--task", "network", "--json").out)
    assert plain["version"] == 1
    assert plain["network"]["weights"] == site.models["network"].network.layout.size
    assert plain["columns"] == list(site.models["network"].schema.columns)
    assert plain["files"]["int8"]["arena_bytes"] > 0
    text = vedette("model", "show", "-c", site.config, "--task", "network", "--version", "0").out
    assert "network 0: round 0, 0 devices" in text
    assert "int8" not in text


def test_sound_releases_are_verified(site: Site, vedette: Vedette) -> None:
    site.publish(2, lambda files: None)
    ran = vedette("model", "verify", "-c", site.config)
    assert ran.code == ExitCode.OK, ran.out
    assert "signatures hold; 14 files, 0 with a fault" in ran.out
    found = {f.variant: f for f in check_release(site.registry, "network", 2)}
    assert set(found) == set(Variant)
    assert 0 < found[Variant.FLOAT32].error < found[Variant.INT16X8].error < found[Variant.INT8].error < 0.05


def other_weights(site: Site) -> bytes:
    model = site.models["network"]
    weights = model.network.initial_weights(np.random.default_rng(77))
    ranges = assumed_ranges(model.network, weights)
    built = build_artifacts(
        model.network, weights, task="network", schema=model.schema, ranges=ranges, variants=[Variant.INT8]
    )
    return built[Variant.INT8].data


def test_a_signed_artifact_of_other_weights_is_found_out(site: Site, vedette: Vedette) -> None:
    site.publish(2, lambda files: files.update({Variant.INT8: other_weights(site)}))
    ran = vedette("model", "verify", "-c", site.config, "--json")
    assert ran.code == ExitCode.INTEGRITY
    faults = {(f["version"], f["variant"]): f["fault"] for f in json.loads(ran.out) if f["fault"]}
    assert set(faults) == {(2, "int8")}
    assert "found results off by" in faults[2, "int8"]


def swapped(files: dict[Variant, bytes]) -> None:
    files[Variant.INT8], files[Variant.FLOAT32] = files[Variant.FLOAT32], files[Variant.INT8]


def cut(files: dict[Variant, bytes]) -> None:
    files[Variant.INT8] = files[Variant.INT8][:200]


def no_weights(files: dict[Variant, bytes]) -> None:
    files[Variant.WEIGHTS] = b"none"


def no_plan(files: dict[Variant, bytes]) -> None:
    files[Variant.PLAN] = b"none"


@pytest.mark.parametrize(
    ("change", "faulty", "message"),
    [
        (swapped, {"int8", "float32"}, "found float32 of task 'network', expected int8"),
        (cut, {"int8"}, "model: found"),
        (no_weights, {"weights", "int8", "int16x8", "float16", "float32"}, "no readable weights file"),
        (no_plan, {"plan"}, "found"),
    ],
)
def test_what_was_signed_by_mistake_is_found_out(
    site: Site, change: Callable[[dict[Variant, bytes]], None], faulty: set[str], message: str
) -> None:
    site.publish(2, change)
    faults = {f.variant.value: f.fault for f in check_release(site.registry, "network", 2) if f.fault}
    assert set(faults) == faulty
    assert message in " ".join(faults.values())


def test_a_file_that_rotted_is_named_and_never_exported(site: Site, vedette: Vedette, tmp_path: Path) -> None:
    path = site.artifact(1, Variant.INT8)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    ran = vedette("model", "verify", "-c", site.config)
    assert ran.code == ExitCode.INTEGRITY
    assert f"{path}: found bytes with digest" in ran.out
    assert "8 files, 1 with a fault" in ran.out
    ran = vedette("model", "export", "-c", site.config, "-t", "network", "-o", tmp_path / "out")
    assert ran.code == ExitCode.CONFIGURATION
    assert "restore a backup" in ran.err
    assert not (tmp_path / "out").exists()
    assert vedette("model", "list", "-c", site.config).code == ExitCode.OK, "it reads no file"


def test_a_release_that_is_revoked_while_it_is_verified_is_no_finding(
    site: Site, vedette: Vedette, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(source: ReleaseSource, task: str, version: int) -> tuple[Finding, ...]:
        site.registry.revoke("network", 1, "floods alerts", NOW)  # a running aggregator tidies its files away
        return check_release(source, task, version)

    monkeypatch.setattr(release_check, "check_release", slow)
    ran = vedette("model", "verify", "-c", site.config)
    assert ran.code == ExitCode.OK, ran.out
    assert "network 0 weights" in ran.out
    assert "int8" not in ran.out


def test_metadata_that_somebody_edited_stop_everything(site: Site, vedette: Vedette) -> None:
    path = site.trust / "metadata" / "timestamp.json"
    edited = json.loads(path.read_bytes())
    edited["signed"]["version"] += 1
    path.write_text(json.dumps(edited))
    for command in ("list", "verify"):
        ran = vedette("model", command, "-c", site.config)
        assert ran.code == ExitCode.CONFIGURATION
        assert "expected metadata that verifies" in ran.err


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("tflm", {"vedette_network.h", "vedette_network.cc", "vedette_network_ops.h", "README.md"}),
        ("c-array", {"vedette_network.h", "vedette_network.c"}),
        ("tflite", {"vedette_network.tflite"}),
    ],
)
def test_a_release_is_exported(site: Site, vedette: Vedette, tmp_path: Path, target: str, names: set[str]) -> None:
    out = tmp_path / "deep" / "out"
    ran = vedette("model", "export", "-c", site.config, "-t", "network", "--target", target, "-o", out)
    assert ran.code == ExitCode.OK, ran.err
    assert {p.name for p in out.iterdir()} == names
    digest = site.registry.listed("network", 1)[Variant.INT8].sha256
    assert digest in ran.out
    again = ("model", "export", "-c", site.config, "-t", "network", "--target", target, "-o", out)
    refused = vedette(*again)
    assert refused.code == ExitCode.CONFIGURATION
    assert "--replace" in refused.err
    assert vedette(*again, "--replace").code == ExitCode.OK
    if target == "tflite":
        assert hashlib.sha256((out / "vedette_network.tflite").read_bytes()).hexdigest() == digest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-t", "network", "--version", "9"), "release network 9: found no int8 target"),
        (("-t", "network", "--variant", "float16"), "release network 1: found no float16 target"),
        (("-t", "sensor"), "release sensor 0: found no int8 target"),
        (("-t", "windmill"), "found no task 'windmill'"),
    ],
)
def test_what_is_not_in_the_repository_is_not_exported(
    site: Site, vedette: Vedette, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    ran = vedette("model", "export", "-c", site.config, *arguments, "-o", tmp_path / "out")
    assert ran.code == ExitCode.CONFIGURATION
    assert message in ran.err
    assert not (tmp_path / "out").exists()


def test_a_file_is_exported_with_and_without_a_digest(site: Site, vedette: Vedette, tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(site.artifact(1, Variant.INT8).read_bytes())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    ran = vedette("model", "export", "--file", path, "-o", tmp_path / "one")
    assert ran.code == ExitCode.OK
    assert "nothing vouches for this file" in ran.err
    ran = vedette("model", "export", "--file", path, "--sha256", digest.upper(), "-o", tmp_path / "two")
    assert (ran.code, ran.err) == (ExitCode.OK, "")
    ran = vedette("model", "export", "--file", path, "--sha256", "00" * 32, "-o", tmp_path / "three")
    assert ran.code == ExitCode.INTEGRITY
    assert f"found sha256 {digest}" in ran.err
    path.write_bytes(path.read_bytes()[:-700])
    ran = vedette("model", "export", "--file", path, "-o", tmp_path / "four")
    assert ran.code == ExitCode.INTEGRITY
    assert "model: found" in ran.err
    assert not (tmp_path / "four").exists()
    ran = vedette("model", "export", "--file", tmp_path / "missing", "-o", tmp_path / "five")
    assert ran.code == ExitCode.CONFIGURATION
    assert "missing" in ran.err


def test_neither_or_both_sources_are_a_usage_error(site: Site, vedette: Vedette, tmp_path: Path) -> None:
    for arguments in ((), ("-c", site.config), ("-c", site.config, "-t", "network", "--file", site.config)):
        assert vedette("model", "export", *arguments, "-o", tmp_path / "out").code == ExitCode.USAGE
    assert vedette("model", "export", "--target", "onnx", "-o", tmp_path / "out").code == ExitCode.USAGE


def test_a_release_that_is_not_kept_is_named_with_those_that_are(site: Site, vedette: Vedette) -> None:
    with pytest.raises(RefusedError, match="release network 9: not found, expected one of those kept: 0, 1"):
        check_release(site.registry, "network", 9)
    ran = vedette("model", "show", "-c", site.config, "-t", "network", "--version", "9")
    assert ran.code == ExitCode.CONFIGURATION
    assert "expected one of those kept: 0, 1" in ran.err


def test_a_release_is_revoked_on_the_command_line(site: Site, vedette: Vedette) -> None:
    revoke = ("model", "revoke", "network", "1", "-c", site.config, "--reason", "floods alerts")
    ran = vedette(*revoke, "--dry-run")
    assert (ran.code, "active would be 0; nothing was changed" in ran.out) == (ExitCode.OK, True)
    assert site.registry.active("network") == 1
    ran = vedette(*revoke)
    assert (ran.code, "active is 0" in ran.out) == (ExitCode.OK, True)
    assert [(r.version, r.reason) for r in site.registry.revoked("network")] == [(1, "floods alerts")]
    assert vedette(*revoke).code == ExitCode.OK, "done already"
    assert "network 1 is revoked already; active would be 0" in vedette(*revoke, "--dry-run").out
    ran = vedette("model", "revoke", "network", "7", "-c", site.config, "--reason", "x", "--sha256", "ab" * 32)
    assert (ran.code, len(site.registry.revoked("network"))) == (ExitCode.OK, 2)


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_what_cannot_be_revoked_is_refused_by_a_dry_run_as_well(
    site: Site, vedette: Vedette, dry: tuple[str, ...]
) -> None:
    weights = site.registry.listed("network", 0)[Variant.WEIGHTS].sha256
    before = site.registry.mark()
    for arguments, said in (
        (("network", "9", "--reason", "x"), "release network 9: not found"),
        (("network", "1", "--reason", "x" * 201), "found 201 characters, expected 1 to 200"),
        (("network", "7", "--reason", "x", "--sha256", "short"), "expected 64 hex digits"),
        (("network", "7", "--reason", "x", "--sha256", weights), "expected only its own files"),
        (("network", "5000", "--reason", "x", "--sha256", "ab" * 32), "far from the newest"),
        (("nobody", "1", "--reason", "x"), "found no task 'nobody'"),
    ):
        ran = vedette("model", "revoke", *arguments, "-c", site.config, *dry)
        assert (ran.code, said in " ".join(ran.err.split())) == (ExitCode.CONFIGURATION, True), arguments
    assert site.registry.mark() == before
    site.registry.revoke("network", 1, "floods alerts", time.time())
    ran = vedette("model", "revoke", "network", "0", "-c", site.config, "--reason", "x", *dry)
    assert (ran.code, "no other release to go to" in ran.err) == (ExitCode.CONFIGURATION, True)


def test_one_person_renews_root_and_targets(site: Site, vedette: Vedette, tmp_path: Path) -> None:
    keys = site.trust / "root-keys"
    ran = vedette("trust", "renew", "-c", site.config, "--offline-keys", keys, "--rotate", "release")
    assert (ran.code, "root 2 holds for" in ran.out) == (ExitCode.OK, True)
    ran = vedette("trust", "renew", "-c", site.config, "--offline-keys", tmp_path / "nowhere")
    assert (ran.code, "found 0 keys of role 'root'" in ran.err) == (ExitCode.CONFIGURATION, True)
    assert vedette("trust", "renew", "-c", site.config, "--offline-keys", keys, "--rotate", "root").code != 0
    assert site.registry.roles()[0].version == 2


def test_a_chain_that_is_used_up_is_seen_and_replaced_on_the_command_line(site: Site, vedette: Vedette) -> None:
    def shown() -> Any:
        return json.loads(vedette("trust", "show", "-c", site.config, "--json").out)["beacon"]

    assert shown() == {"epochs": 4096, "left": {}}, "it never ran"
    number = 4096 * TASKS["network"].round.epoch_rounds + 1
    record = RoundRecord(RoundState.INTERVAL, number, 0, 0.0, b"", 0, "", 0)
    (site.trust.parent / "state").mkdir()
    database = Database(site.trust.parent / "state" / "aggregator.db")
    StateStore(database).put(RoundKeys("network").state, record.to_bytes())
    database.close()
    said = vedette("trust", "show", "-c", site.config).out
    assert "beacon: 4096 epochs; 0 left for network, 4096 left for sensor" in said
    renew = ("trust", "renew", "-c", site.config, "--offline-keys", site.trust / "root-keys", "--rotate", "beacon")
    assert vedette(*renew).code == ExitCode.OK
    assert shown() == {"epochs": 4096, "left": {"network": 0, "sensor": 4096}}
    assert vedette(*renew, "--beacon-epochs", "5000").code == ExitCode.OK
    assert shown() == {"epochs": 5000, "left": {"network": 903, "sensor": 5000}}
    ran = vedette(*renew, "--beacon-epochs", "4096")
    assert (ran.code, "expected 5000 to 65536" in " ".join(ran.err.split())) == (ExitCode.CONFIGURATION, True)
