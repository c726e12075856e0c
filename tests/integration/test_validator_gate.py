"""The validator's own gate: a bad round that the aggregator lets pass is not signed, and everybody can see why."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tank_recording import RECORDINGS
from test_candidate_gate import NOW, TASK
from test_candidate_gate import Site as GateSite

from vedette import toml_writer
from vedette.main import main
from vedette_aggregator.aggregation import Candidate
from vedette_aggregator.ceremony_keys import make_key, read_public, read_signer
from vedette_aggregator.countersigning import AwaitsValidatorError
from vedette_aggregator.lineage import Lineage
from vedette_aggregator.registry import Registry
from vedette_aggregator.registry_draft import OfflineKeys
from vedette_aggregator.registry_proposal import propose_first, publish
from vedette_aggregator.releases import Releases
from vedette_aggregator.validator import Validator
from vedette_aggregator.validator_gate import UnpreparedError
from vedette_aggregator.validator_settings import ValidatorSettings
from vedette_core.learning.layout import Float32
from vedette_core.runtime.config import load
from vedette_schemas.errors import RefusedError
from vedette_schemas.model import Variant

pytestmark = pytest.mark.skipif(
    not (RECORDINGS / "labels.csv").is_file(), reason="the recordings are not in this checkout"
)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of synchronising is what is tested; waiting for the platters would only take time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class Site(GateSite):
    """The aggregator's own gate measures nothing; the validator has windows, and looks when it is told to."""

    def __init__(self, folder: Path, mode: str = "enforce") -> None:
        for name in ("root", "targets", "validator"):
            make_key(folder / name, None)
        self.folder = folder
        self.validator_config = folder / "validator.toml"
        section = {
            "mode": mode,
            "holdouts": [{"cohort": "tank", "path": folder / "benign.npz"}],
            "attacks": [{"name": "tampering", "cohort": "tank", "path": folder / "tampering.npz"}],
        }
        self.validator_config.write_text(toml_writer.dumps({"tasks": [{"task": TASK, "validation": section}]}))
        super().__init__(folder, "off", holdouts=False)

    def make_registry(self, folder: Path) -> Registry:
        keys = OfflineKeys(
            (read_public(folder / "root.pub"),), 1, (read_public(folder / "targets.pub"),), 1,
            read_public(folder / "validator.pub"),
        )  # fmt: skip
        first = propose_first(folder / "trust", "plant", (TASK,), keys, NOW)
        for name in ("root", "targets", "validator"):
            first.sign(read_signer(folder / name, None))
        publish(folder / "trust", first, NOW)
        registry = Registry(folder / "trust")
        (folder / "root.json").write_bytes(registry.root)
        self.validator = Validator(
            folder / "trust", folder / "root.json", folder / "validator-state", read_signer(folder / "validator", None),
            load(ValidatorSettings, self.validator_config),
        )  # fmt: skip
        return registry

    def open(self) -> Releases:
        with pytest.raises(AwaitsValidatorError):
            super().open()
        self.look()
        return super().open()

    def look(self) -> str:
        """The validator looks; returns why it refuses what is proposed."""
        (looked,) = self.validator.look(NOW + 100)
        if not looked.refused:
            assert self.registry.complete(NOW + 100)
        return looked.refused

    def candidate(self, number: int, parent: int, weights: Float32) -> Candidate:
        digest = self.registry.listed(TASK, parent)[Variant.WEIGHTS].sha256
        return replace(super().candidate(number, parent, weights), parent_sha256=digest)

    def propose(self, number: int, parent: int, weights: Float32) -> None:
        with pytest.raises(AwaitsValidatorError):
            self.release(self.candidate(number, parent, weights))


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


def test_a_bad_candidate_is_not_signed_and_the_next_one_is(tmp_path: Path, vedette: Callable[..., str]) -> None:
    site = Site(tmp_path)
    first = site.start.weights + site.trained(site.start.weights, 1)
    site.propose(1, 0, first)
    assert site.look() == ""
    step = site.trained(first, 2)
    bad = first - 8.0 * step
    site.propose(2, 1, bad)
    refused = site.look()
    assert "loss (tank): found a loss of" in refused
    assert not site.registry.complete(NOW + 100)
    with pytest.raises(RefusedError, match="the validator refuses it") as fault:
        site.release(site.candidate(2, 1, bad))
    assert fault.value.rule == "validator"
    assert site.registry.active(TASK) == 1
    assert site.count("candidate_rejections", kind="independent-validator") == 1.0
    rejected = Lineage(site.state).of_round(TASK, 2)
    assert rejected is not None
    assert (rejected.outcome, rejected.version) == ("rejected", None)
    assert "loss (tank)" in rejected.reason
    shown = vedette("model", "candidates", "-c", site.config, "--rejected")
    assert "sensor round 2: sensor: the validator refuses it: release sensor 2: " in shown

    site.propose(3, 1, first + step)
    assert site.look() == ""
    assert site.release(site.candidate(3, 1, first + step)) == 2

    said = site.validator.record.all()
    assert [(bool(s.refused), list(s.releases)) for s in said] == [
        (False, []),
        (False, ["sensor 1"]),
        (True, ["sensor 2"]),
        (False, ["sensor 2"]),
    ]
    assert {v["validator"] for v in said[1].releases["sensor 1"]} >= {"loss", "detection", "quantisation"}
    text = vedette("validator", "list", "--state-dir", tmp_path / "validator-state", "--refused")
    assert text.count("role") == 1
    assert "sensor 2: reject  loss (tank)" in text
    rows = json.loads(vedette("validator", "list", "--state-dir", tmp_path / "validator-state", "--json"))
    assert [row["role_version"] for row in rows] == [2, 3, 4, 4]


def test_a_candidate_that_nobody_answers_is_given_up(tmp_path: Path) -> None:
    site = Site(tmp_path)
    step = site.trained(site.start.weights, 1)
    site.propose(1, 0, site.start.weights + step)
    assert site.releases.give_up(site.candidate(1, 0, site.start.weights + step), "it said nothing") is None
    assert site.validator.look(NOW + 100) == [], "nothing is proposed any more"
    found = Lineage(site.state).of_round(TASK, 1)
    assert found is not None
    assert (found.outcome, found.reason) == ("rejected", "it said nothing")
    again = site.candidate(2, 0, site.start.weights + 0.5 * step)
    site.propose(2, 0, again.weights)
    site.look()
    made = site.releases.give_up(again, "a moment too late")
    assert made is not None
    assert made[0].version == 1, "it was signed in the last moment"


def test_a_validator_without_its_windows_says_nothing_about_others(tmp_path: Path) -> None:
    site = Site(tmp_path)
    step = site.trained(site.start.weights, 1)
    (tmp_path / "benign.npz").rename(tmp_path / "away")
    site.propose(1, 0, site.start.weights + step)
    with pytest.raises(UnpreparedError, match=r"no verdict is given: holdout .*benign\.npz"):
        site.validator.look(NOW + 100)
    (tmp_path / "away").rename(tmp_path / "benign.npz")
    assert site.look() == "", "the file is back, and so is the validator"


@pytest.mark.parametrize("parent", ["", "ab" * 32])
def test_nobody_gets_past_the_gate_by_naming_no_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parent: str
) -> None:
    site = Site(tmp_path)
    describe = site.releases._describe

    def orphaned(variant: Variant, *about: object) -> object:
        return describe(variant, *about).model_copy(update={"parent": parent})  # type: ignore[arg-type]

    monkeypatch.setattr(site.releases, "_describe", orphaned)
    site.propose(1, 0, site.start.weights - 9.0 * site.trained(site.start.weights, 1))
    assert "expected the weights of an older release that stays listed" in site.look()


def test_a_validator_that_only_watches_signs_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    site = Site(tmp_path, "watch")
    site.propose(1, 0, site.start.weights - 5.0 * site.trained(site.start.weights, 1))
    assert site.look() == ""
    assert "release sensor 1: would be refused: " in caplog.text
    assert any(v["outcome"] == "reject" for v in site.validator.record.all()[-1].releases["sensor 1"])
