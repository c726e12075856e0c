"""`vedette device show` and `list`: what a device runs and may do, on a terminal of 80 columns."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from attestation_parts import a_policy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vedette import toml_writer
from vedette.main import main
from vedette_aggregator import alert_store, device_book
from vedette_aggregator.device_book import DeviceBook
from vedette_aggregator.device_standing import attestations, certificate_end
from vedette_aggregator.enrolments import PASSPORT_PREFIX, REFUSAL_PREFIX, WITHDRAWN
from vedette_aggregator.quarantine import Quarantine
from vedette_aggregator.rollout_state import RolloutRecord, record_key
from vedette_broker import ca
from vedette_core.attestation.passport import issue_passport
from vedette_core.crypto.certificates import CertificateRole
from vedette_core.runtime.identity import load_node
from vedette_core.runtime.storage import Database, StateStore
from vedette_schemas import codec
from vedette_schemas.errors import ConfigError
from vedette_schemas.rollout import RolloutPin
from vedette_schemas.telemetry import ActiveModel, DeviceState, RolloutProgress

NOW, TASK = 1_800_000_000.0, "network"
LONG = "gateway-in-the-pump-house-17"


class State:
    """An aggregator's state with two devices in it."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "aggregator.toml"
        tables = {
            "site": "plant",
            "state_dir": folder / "state",
            "trust_dir": folder / "trust",
            "identity": {"bundle": folder / "bundle"},
            "tasks": [{"task": TASK, "use_case": "network"}],
        }
        self.config.write_text(toml_writer.dumps(tables))
        database = Database(folder / "state" / "aggregator.db", alert_store.TABLES + device_book.TABLES)
        self.store, book = StateStore(database), DeviceBook(database)
        model = ActiveModel(task=TASK, version=4, variant="int8", digest="a" * 64, backend="litert")
        for device in ("gw-01", LONG):
            progress = RolloutProgress(task=TASK, seq=9, candidate=5, outcome="trial")
            state = DeviceState(
                device=device, status="online", session="0" * 16, seq=1, time="2026-01-01T00:00:00Z",
                software="0.1.0", models=(model,), rollouts=(progress,),
            )  # fmt: skip
            book.take_state(state, NOW)
        book.flush(NOW, at_once=True)
        pin = RolloutPin(device="gw-01", version=3)
        self.store.put(record_key(TASK), codec.pack(RolloutRecord(pins=(pin,))))
        key: Any = SimpleNamespace(sign=Ed25519PrivateKey.generate().sign)
        passport = issue_passport(a_policy(), "gw-01", bytes(32), 1, 7, key, NOW)
        self.store.put(PASSPORT_PREFIX + "gw-01", passport)
        refusal = {"at_s": NOW - 60, "rule": "debug", "detail": "gw-01: debug: found it on"}
        self.store.put(REFUSAL_PREFIX + "gw-01", json.dumps(refusal).encode())
        self.store.put(PASSPORT_PREFIX + LONG, WITHDRAWN)
        Quarantine(self.store).add(LONG, "odd traffic")


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path)


@pytest.fixture
def vedette(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    def run(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["vedette", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "80")
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code in (0, None), capsys.readouterr().err
        return capsys.readouterr().out

    return run


def test_show_says_what_a_device_runs_and_may_do(state: State, vedette: Callable[..., str]) -> None:
    text = vedette("device", "show", "gw-01", "-c", state.config)
    assert "network: pinned to release 3, runs 4: not listed, revoked, or not reached yet" in text
    assert "network: rollout of release 5: runs it on trial" in text
    assert "attestation: tier 1 until 2027-01-" in text
    assert "last refusal 2027-01-15T07:59:00Z: debug: gw-01: debug: found it on" in text
    assert "attestation: withdrawn" in vedette("device", "show", LONG, "-c", state.config)
    row = json.loads(vedette("device", "show", "gw-01", "-c", state.config, "--json"))
    assert (row["pins"], row["rollouts"]) == ({TASK: 3}, {TASK: {"candidate": 5, "outcome": "trial"}})
    assert (row["attestation"]["tier"], row["certificate_until"]) == (1, None)


def test_the_list_fits_80_columns_and_leaves_nothing_out(state: State, vedette: Callable[..., str]) -> None:
    lines = vedette("device", "list", "-c", state.config).splitlines()
    assert lines[0].split() == ["device", "status", "seen", "releases", "alerts", "rounds"]
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:3]}
    assert rows == {name: ["online", "2027-01-15T08:00", "network:4", "0", "0"] for name in ("gw-01", LONG)}
    assert lines[3:] == [f"{LONG}: quarantined; attestation withdrawn", "gw-01: pinned to network 3"]
    assert max(map(len, lines)) <= 80


def test_a_damaged_state_is_said(state: State) -> None:
    state.store.put(REFUSAL_PREFIX + "gw-01", b"[]")
    with pytest.raises(ConfigError, match="expected a refusal"):
        attestations(state.store)
    state.store.put(REFUSAL_PREFIX + "gw-01", None)
    state.store.put(PASSPORT_PREFIX + "gw-01", b"\xc1")
    with pytest.raises(ConfigError, match="restore the state"):
        attestations(state.store)


def test_the_newest_certificate_counts(tmp_path: Path) -> None:
    ca.init(tmp_path / "ca", "plant", now=NOW)
    ends = []
    for later_s in (0.0, 3600.0):
        ca.issue(tmp_path / "ca", "gw-01", CertificateRole.DEVICE, now=NOW + later_s, replace=True)
        ends.append(load_node(tmp_path / "ca" / "bundles" / "gw-01", NOW + later_s).certificate)
    assert certificate_end(ends) == certificate_end(ends[1:]) == certificate_end(ends[::-1])
    assert certificate_end(ends[:1]) != certificate_end(ends)
    assert certificate_end([b"no certificate"]) is None
