"""The benchmark of brokers runs end to end and tells what it measured."""

from __future__ import annotations

import json

import pytest
from bench import broker


@pytest.mark.timeout(120)
@pytest.mark.parametrize("engine", ["embedded ram", "embedded power"])
def test_an_engine_is_measured(
    capsys: pytest.CaptureFixture[str], engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "DEVICES", 3)
    broker.main(["--messages", "60", "--engine", engine, "--json"])
    said = json.loads(capsys.readouterr().out)
    figures = said["engines"][engine]
    assert set(figures) == {
        "qos1_200b", "qos1_200b_kept_session", "qos1_50kb", "qos1_50kb_kept_session", "fan_in_3_200b",
        "kb_a_connection", "base_mb",
    }  # fmt: skip
    assert all(figures[name]["per_s"] > 0 for name in figures if name.startswith(("qos1", "fan_in")))
