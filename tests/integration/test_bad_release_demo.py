"""The scenario of a bad release as real processes, and what the commands say about it afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vedette.demo.recordings import SHIPPED
from vedette_aggregator.rollout_desk import RolloutDesk, open_desk
from vedette_aggregator.rollout_events import Verb
from vedette_aggregator.settings import AggregatorSettings
from vedette_core.runtime.config import load
from vedette_schemas.errors import ConfigError, RefusedError

pytest.importorskip("ai_edge_quantizer", reason="builds the variants of a release")


def vedette(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vedette.main", *arguments], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The scenario's folder, and its figures."""
    folder = tmp_path_factory.mktemp("bad") / "release"
    options = ("--once", "--json", "--keep", str(folder), "--timeout", "250", "--data", str(SHIPPED))
    done = vedette("demo", "--scenario", "bad-release", *options)
    assert done.returncode == 0, done.stderr
    return folder / "site" / "config" / "aggregator.toml", json.loads(done.stdout)


def test_a_bad_release_undoes_itself(played: tuple[Path, dict[str, Any]]) -> None:
    figures = played[1]
    assert figures["rolled_back"]
    assert 0 < figures["devices_exposed"] <= figures["canary_stage_devices"] < figures["devices_total"]
    assert figures["alerts_flooded"] > 0
    assert figures["seconds_to_rollback"] > 0
    assert not figures["control_changed"]
    assert figures["restart_changed_nothing"]
    assert figures["aggregator_restarts"] == 2
    assert figures["on_bad_release_at_the_end"] == []


def test_the_commands_say_what_happened(played: tuple[Path, dict[str, Any]]) -> None:
    config = str(played[0])
    shown = json.loads(vedette("rollout", "show", "-c", config, "--json").stdout)
    assert (shown["phase"], shown["candidate"], shown["active"], shown["withdrawn"]) == ("rolled-back", 2, 1, [2])
    assert [entry["by"] for entry in shown["audit"]] == ["aggregator"]
    (row,) = json.loads(vedette("rollout", "list", "-c", config, "--json").stdout)
    assert row["phase"] == "rolled-back"
    assert "rolled-back" in vedette("rollout", "list", "-c", config).stdout
    assert "release 2 over 1 rolled-back" in vedette("rollout", "show", "-c", config).stdout


def test_decisions_are_checked_and_written_down(played: tuple[Path, dict[str, Any]]) -> None:
    config = str(played[0])
    refused = vedette("rollout", "pause", "-c", config)
    assert refused.returncode != 0
    assert "found the rollout rolled-back, expected it running" in refused.stderr
    assert "could be done" in vedette("rollout", "create", "--version", "2", "-c", config, "--dry-run").stdout
    waiting = vedette("rollout", "create", "--version", "2", "-c", config, "--wait", "0", "--by", "somebody")
    assert "the aggregator has not answered yet" in waiting.stdout
    with open_desk(load(AggregatorSettings, played[0])) as desk:
        assert desk.task(None) == "sensor"
        with pytest.raises(ConfigError, match="found other"):
            desk.task("other")
        with pytest.raises(RefusedError, match="found no pin of gw-1"):
            desk.ask("sensor", Verb.UNPIN, "somebody", device="gw-1")
        with pytest.raises(ConfigError, match="device"):
            desk.ask("sensor", Verb.PIN, "somebody", device="No Id", version=1)
        assert isinstance(desk, RolloutDesk)
