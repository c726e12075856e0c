"""The fuzzing campaign: a few inputs for every parser, and the proof that it finds what it is there to find."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vedette_schemas.errors import ConfigError, PeerError

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))
try:
    import fuzz
    import fuzz_damage
    import fuzz_targets
    import fuzz_wire
finally:
    sys.path.remove(str(BENCH))

INPUTS = 200
FOUND = sorted((Path(__file__).parents[1] / "vectors" / "found").glob("*.hex"))
"""Inputs that a campaign once found a fault with (``--corpus``): parser, digest of the input."""


@pytest.mark.parametrize("name", list(fuzz_targets.TARGETS))
def test_every_parser_answers_damage_with_what_it_declares(name: str, tmp_path: Path) -> None:
    if name == "mqtt":
        pytest.importorskip("amqtt", reason="the embedded broker's packets are amqtt's")
    target = fuzz_targets.TARGETS[name](tmp_path)
    assert target.run(target.seeds[0]), "the first seed is sound"
    outcome = fuzz.campaign(target, np.random.default_rng(5), inputs_max=INPUTS)
    assert outcome.plain()["faults"] == {}
    assert outcome.inputs == INPUTS + len(target.seeds) == outcome.accepted + outcome.refused


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)
def test_what_was_found_once_is_answered_with_what_is_declared(path: Path, tmp_path: Path) -> None:
    data = bytes.fromhex(path.read_text())
    name, digest = path.stem.rsplit("-", 1)
    assert hashlib.sha256(data).hexdigest().startswith(digest)
    outcome = fuzz.Outcome()
    fuzz.one_input(fuzz_targets.TARGETS[name](tmp_path), data, outcome, lambda seconds: None)
    assert outcome.plain()["faults"] == {}


def _raises(fault: BaseException) -> Callable[[bytes], bool]:
    def run(data: bytes) -> bool:
        if len(data) != 9:
            raise fault
        return True

    return run


@pytest.mark.parametrize(
    "fault", [IndexError("a"), MemoryError(), RecursionError("b"), fuzz.TooSlowError("c"), ConfigError("undeclared")]
)
def test_an_undeclared_exception_is_a_finding_with_its_input(fault: BaseException) -> None:
    target = fuzz_wire.Target((b"123456789",), _raises(fault))
    outcome = fuzz.campaign(target, np.random.default_rng(1), inputs_max=50)
    assert outcome.plain()["findings"] == 1
    ((what, count),) = outcome.faults.items()
    assert what.startswith(type(fault).__name__)
    assert count > 1
    assert len(outcome.examples[what]) != 9
    assert outcome.inputs == 51 == outcome.accepted + outcome.refused + count


def test_a_declared_exception_is_a_refusal() -> None:
    target = fuzz_wire.Target((b"123456789",), _raises(PeerError("declared")))
    outcome = fuzz.campaign(target, np.random.default_rng(1), inputs_max=50)
    assert outcome.plain()["findings"] == 0
    assert outcome.refused > 0
    assert outcome.accepted > 0


def test_a_seed_repeats_its_inputs_and_another_has_others() -> None:
    def inputs(seed: int) -> list[bytes]:
        seen: list[bytes] = []
        target = fuzz_wire.Target((bytes(60), b"{}"), lambda data: True)
        fuzz.campaign(target, np.random.default_rng(seed), inputs_max=100, note=seen.append)
        return seen

    assert inputs(1) == inputs(1) != inputs(2)
    assert max(map(len, inputs(1))) <= fuzz_damage.INPUT_BYTES_MAX


BROKEN = """
import os, sys
sys.path.insert(0, {bench!r})
import fuzz, fuzz_targets, fuzz_wire
calls = []
def run(data):
    calls.append(data)  # the first two are of the seed
    return len(calls) < 3 or {fault}
fuzz_targets.TARGETS["broken"] = lambda _: fuzz_wire.Target((b"123456789",), run)
sys.argv[0] = fuzz.__file__
fuzz.main()
"""


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """Supervises a campaign against a parser that does something bad, in a process of its own as always."""

    def supervised(fault: str) -> dict[str, Any]:
        script = tmp_path / "broken.py"
        script.write_text(BROKEN.format(bench=str(BENCH), fault=fault))
        monkeypatch.setattr(fuzz, "__file__", str(script))
        result: dict[str, Any] = fuzz.supervise("broken", 0.2, 1, tmp_path / "corpus")
        return result

    return supervised


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("bool(bytearray(1 << 30))", "MemoryError"),
        ("os.abort()", "the process ended with -6"),
        ("{}[0]", "KeyError"),
    ],
)
def test_a_broken_parser_fails_the_campaign(
    broken: Callable[[str], dict[str, Any]], tmp_path: Path, fault: str, says: str
) -> None:
    result = broken(fault)
    assert result["findings"] == 1
    (what,) = result["faults"]
    assert what.startswith(says)
    (kept,) = (tmp_path / "corpus").iterdir()
    assert kept.name.startswith("broken-")
    bytes.fromhex(kept.read_text())


def test_the_command_prints_the_figures_of_each_parser_and_their_sum() -> None:
    command = [sys.executable, str(BENCH / "fuzz.py"), "--json", "--seconds", "0.1", "--jobs", "2"]
    ended = subprocess.run(
        [*command, "--parser", "sketch", "--parser", "modbus"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert set(result["parsers"]) == {"sketch", "modbus"}
    for figures in result["parsers"].values():
        assert {"inputs", "accepted", "refused", "findings", "rss_growth_mb", "seconds"} <= set(figures)
        assert figures["inputs"] == figures["accepted"] + figures["refused"] > 0
    assert result["inputs"] == sum(p["inputs"] for p in result["parsers"].values())
    assert result["findings"] == 0
