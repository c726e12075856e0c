"""The policy's shell: what it does in a dry run, when something fails, and that an alert never waits for it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from policy_parts import QUARANTINE, THROTTLE, alert, device_settings
from typer.testing import CliRunner

from vedette.main import app
from vedette_core.runtime.metrics import DEVICE_METRICS, Metrics
from vedette_core.runtime.storage import Database, StateStore
from vedette_device import enforcement as shell
from vedette_device import policy_operator
from vedette_device.audit_log import verify_audit
from vedette_device.enforcement import QUEUE_MAX, Enforcement
from vedette_device.policy_effects import AlertReported, Measure, MeasureKind
from vedette_device.policy_protection import Address, Protection
from vedette_device.protection_lookup import ProtectionLookup
from vedette_device.service import DeviceService
from vedette_schemas import alert as alerts
from vedette_schemas.errors import ConfigError, TransientError

RULES = f"[[rule]]\n{QUARANTINE}\n[[rule]]\n{THROTTLE}\n"
CALLS = """
[[rule]]
name = "hook"
action = "webhook"
url = "http://127.0.0.1:9/"
[[rule]]
name = "say"
action = "log"
"""
HOST = "192.168.10.20"


class Kernel:
    """A firewall that is only remembered, and fails when it is told to."""

    def __init__(self) -> None:
        self.in_force: set[tuple[str, str]] = set()
        self.calls: list[str] = []
        self.failing: dict[str, Exception] = {}
        self.there = False

    async def install(self, protection: Protection, measures: Iterable[Measure], now: float) -> None:
        self._called("install")
        self.in_force, self.there = {(m.kind, str(m.address)) for m in measures}, True

    async def begin(self, measure: Measure, now: float) -> None:
        self._called("begin")
        if not self.there:
            raise ConfigError("no such table")
        self.in_force.add((measure.kind, str(measure.address)))

    async def end(self, kind: MeasureKind, address: Address) -> None:
        self._called("end")
        if not self.there:
            raise ConfigError("no such table")
        self.in_force.discard((kind, str(address)))

    async def protect(self, protection: Protection) -> None:
        self._called("protect")

    async def is_there(self) -> bool:
        return self.there

    async def remove(self) -> None:
        self._called("remove")
        self.there = False

    def _called(self, what: str) -> None:
        self.calls.append(what)
        if what in self.failing:
            raise self.failing[what]


def made(folder: Path, rules: str = RULES, kernel: Kernel | None = None, **policy: Any) -> Enforcement:
    if kernel is not None:
        policy["dry_run"] = False
    settings = device_settings(folder, rules, **policy)
    found = Enforcement(settings, StateStore(Database(folder / "device.db")), Metrics(DEVICE_METRICS))
    if kernel is not None:
        found._firewall = kernel  # type: ignore[assignment]
    return found


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr(shell, "Firewall", lambda script: None)
    return Kernel()


def told(folder: Path) -> list[tuple[str, str]]:
    path = folder / "policy" / "audit.jsonl"
    verify_audit([path])
    return [(e["event"], e["outcome"]) for e in map(json.loads, path.read_text().splitlines())]


def test_a_dry_run_says_and_audits_and_does_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        policy = made(tmp_path, RULES + CALLS)
        await policy.start()
        await policy._handle(AlertReported(alert()))
        assert policy._firewall is None
        assert policy._calls.waiting == 0
        await policy.stop()

    asyncio.run(scenario())
    assert told(tmp_path) == [("quarantine", "begun"), ("throttle", "begun"), ("webhook", "asked"), ("log", "asked")]
    lines = (tmp_path / "policy" / "audit.jsonl").read_text().splitlines()
    assert all(json.loads(line)["dry_run"] is True for line in lines)
    assert "dry run: would quarantine 192.168.10.20 for 60 s (rule cut)" in caplog.text
    assert "dry run: would POST http://127.0.0.1:9/" in caplog.text


def test_dry_is_the_default_and_what_it_said_is_never_put_into_force(tmp_path: Path, kernel: Kernel) -> None:
    async def scenario() -> None:
        dry = made(tmp_path)
        await dry.start()
        await dry._handle(AlertReported(alert()))
        assert len(dry.machine.in_force) == 2
        await dry.stop()
        live = made(tmp_path, kernel=kernel)
        await live.start()
        assert live.machine.in_force == ()
        assert kernel.in_force == set()
        await live._handle(AlertReported(alert()))
        assert kernel.in_force == {("quarantine", HOST), ("throttle", HOST)}
        await live.stop()

    asyncio.run(scenario())
    assert kernel.there, "what is in force stays when the node stops"


def test_without_anything_in_force_the_table_goes_with_the_node(tmp_path: Path, kernel: Kernel) -> None:
    async def scenario() -> None:
        policy = made(tmp_path, kernel=kernel)
        await policy.start()
        await policy.stop()

    asyncio.run(scenario())
    assert kernel.calls == ["install", "remove"]


def test_an_alert_never_waits_and_nothing_it_holds_can_raise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    policy = made(tmp_path)
    payload = alerts.encode(alert())
    for _ in range(QUEUE_MAX + 5):
        policy.take(payload)
    policy.take(b"{")
    policy.take(b"x" * 5000)
    assert policy._queue.qsize() == QUEUE_MAX
    assert caplog.text.count("alerts wait already") == 1


def test_the_service_hands_an_alert_on_after_it_was_published() -> None:
    from vedette_core.machine import Effect, Persist, Publish

    order: list[object] = []

    class Shell:
        async def carry_out(self, effects: list[Effect], **_: Any) -> None:
            order.append("published")

    class Policy:
        def take(self, payload: bytes) -> None:
            order.append(payload)

    class Device(DeviceService):
        def __init__(self) -> None:
            self._shell, self._policy = Shell(), Policy()  # type: ignore[assignment]

    asyncio.run(Device()._carry_out_quickly([Persist("k", b"v"), Publish("t", b"alert")]))
    assert order == ["published", b"alert"]


def test_what_the_firewall_refuses_is_not_in_force_and_is_tried_again(tmp_path: Path, kernel: Kernel) -> None:
    async def scenario() -> None:
        policy = made(tmp_path, f"[[rule]]\n{QUARANTINE}", kernel=kernel)
        await policy.start()
        kernel.failing = {"begin": ConfigError("nft refused"), "install": ConfigError("nft refused")}
        await policy._handle(AlertReported(alert()))
        assert policy.machine.in_force == ()
        assert policy._store.all("policy/live/measure/") == {}
        kernel.failing = {}
        await policy._look_after(kernel)  # type: ignore[arg-type]
        await policy._handle(AlertReported(alert(seq=1, state="updated")))
        assert kernel.in_force == {("quarantine", HOST)}
        await policy.stop()

    asyncio.run(scenario())
    assert told(tmp_path) == [("quarantine", "begun"), ("quarantine", "failed"), ("quarantine", "begun")]


def test_a_table_that_is_gone_is_put_in_place_with_all_that_is_in_force(tmp_path: Path, kernel: Kernel) -> None:
    async def scenario() -> None:
        policy = made(tmp_path, kernel=kernel)
        await policy.start()
        await policy._handle(AlertReported(alert()))
        kernel.there, kernel.in_force = False, set()
        await policy._handle(AlertReported(alert("192.168.10.21", 2)))
        assert kernel.in_force == {(k, h) for k in ("quarantine", "throttle") for h in (HOST, "192.168.10.21")}
        await policy.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize("what", ["audit", "store"])
def test_what_cannot_be_audited_or_persisted_is_not_done(
    tmp_path: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def full(*_: object) -> None:
        raise TransientError("the disk is full")

    async def scenario() -> None:
        policy = made(tmp_path, RULES + CALLS, kernel=kernel)
        await policy.start()
        with monkeypatch.context() as patch:
            if what == "audit":
                patch.setattr(policy._audit, "append", full)
            else:
                patch.setattr(policy._store, "put", full)
            await policy._handle(AlertReported(alert()))
            assert policy._calls.waiting == 0
        assert kernel.in_force == set()
        assert policy.machine.in_force == ()
        await policy._handle(AlertReported(alert(number=2)))
        assert kernel.in_force == {("quarantine", HOST), ("throttle", HOST)}
        # An end is an end, also without a line about it.
        with monkeypatch.context() as patch:
            patch.setattr(policy._audit, "append", full)
            patch.setattr(policy._store, "put", full)
            later = time.time() + 3600
            patch.setattr(time, "time", lambda: later)
            await policy._handle(shell.Tick())
        assert kernel.in_force == set()
        await policy.stop()

    asyncio.run(scenario())


def test_before_the_brokers_name_is_resolved_nobody_is_cut_off(
    tmp_path: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = device_settings(tmp_path, RULES, broker="broker.invalid")
    with pytest.raises(TransientError, match="cannot resolve broker.invalid"):
        ProtectionLookup(settings).learn()

    async def scenario() -> None:
        policy = made(tmp_path, kernel=kernel, broker="broker.invalid")
        await policy.start()
        await policy._handle(AlertReported(alert()))
        assert not policy.installed
        await policy.stop()

    asyncio.run(scenario())
    assert kernel.calls == []
    assert told(tmp_path) == [("quarantine", "refused"), ("throttle", "refused")]


def test_an_error_in_an_answer_does_not_end_the_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        policy = made(tmp_path, CALLS)
        await policy.start()
        real, fails = policy.machine.handle, [True]

        def handle(event: Any, now: float) -> Any:
            if isinstance(event, AlertReported) and fails:
                fails.clear()
                raise ValueError("a fault of the program")
            return real(event, now)

        monkeypatch.setattr(policy.machine, "handle", handle)
        runner = asyncio.create_task(policy.run())
        policy.take(alerts.encode(alert()))
        policy.take(alerts.encode(alert(number=2)))
        async with asyncio.timeout(30):
            while policy._audit.head[0] < 2:
                await asyncio.sleep(0.02)
        assert not runner.done()
        runner.cancel()
        await asyncio.gather(runner, return_exceptions=True)
        await policy.stop()

    asyncio.run(scenario())
    assert told(tmp_path) == [("webhook", "asked"), ("log", "asked")]


def test_one_process_enforces(tmp_path: Path) -> None:
    first = made(tmp_path)
    with pytest.raises(ConfigError, match="another process"):
        made(tmp_path)
    first._lock.close()


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ('[[rule]]\nname = "p"\naction = "publish"\ntopic = "a"', "no [policy.broker]"),
        ('[[rule]]\nname = "x"\naction = "exec"\ncommand = ["/nonexistent/x"]', "cannot be found"),
    ],
)
def test_rules_that_cannot_be_carried_out_are_refused_at_the_start(tmp_path: Path, rules: str, said: str) -> None:
    with pytest.raises(ConfigError) as fault:
        made(tmp_path, rules)
    assert said in str(fault.value)


def test_a_missing_rules_file_is_told_of(tmp_path: Path) -> None:
    settings = device_settings(tmp_path, RULES)
    without = settings.model_copy(update={"policy": settings.policy.model_copy(update={"rules": None})})
    with pytest.raises(ConfigError, match="key 'rules' is missing"):
        Enforcement(without, StateStore(Database(tmp_path / "device.db")), Metrics(DEVICE_METRICS))
    with pytest.raises(ConfigError, match="cannot be read"):
        shell.read_rules(tmp_path / "nothing.toml")


# -- commands ---------------------------------------------------------------------------------------------------------


def command(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["policy", *words])
    return done.exit_code, done.output + (str(done.exception) if done.exception else "")


def test_the_commands_check_and_test_rules(tmp_path: Path) -> None:
    settings = device_settings(tmp_path, RULES + CALLS)
    config = tmp_path / "device.toml"
    config.write_text(
        f'site = "plant-1"\ndevice = "gw-01"\nstate_dir = "{tmp_path}"\n'
        f'[identity]\nbundle = "{tmp_path}"\ntrust_root = "{tmp_path}/root.json"\n'
        f'[policy]\nenabled = true\nrules = "{settings.policy.rules}"\nallow = ["{HOST}"]\n'
        '[network]\nsource = "file"\npath = "x.pcap"\nlocal_networks = ["192.168.10.0/24"]\n'
    )
    rules, document = str(settings.policy.rules), tmp_path / "alert.json"
    document.write_bytes(alerts.encode(alert()) + b"\n")
    assert command("check", rules) == (0, f"{rules}: ok, 4 rules\n")
    (tmp_path / "wrong.toml").write_text("[[rule]]\n")
    code, output = command("check", str(tmp_path / "wrong.toml"))
    assert code
    assert "key 'action' is missing" in output
    code, output = command("test", rules, "--alert", str(document))
    assert (code, output.splitlines()[0].split(maxsplit=2)) == (
        0,
        ["cut", "quarantine", "quarantine 192.168.10.20 for 60 s unless it is protected"],
    )
    assert "POST http://127.0.0.1:9/" in output
    code, output = command("test", rules, "--alert", str(document), "-c", str(config))
    assert "refused: 192.168.10.20 is protected (the allow list)" in output
    code, output = command("status", "-c", str(config))
    assert "expected that of a device node that has run" in output

    async def scenario() -> None:
        policy = made(tmp_path)
        await policy.start()
        await policy._handle(AlertReported(alert()))
        # While it runs, it is asked; and it answers.
        runner = asyncio.create_task(policy.run())
        asked = await asyncio.to_thread(command, "release", "-c", str(config), HOST)
        assert asked == (0, f"{HOST}: released by the running node\n")
        await policy._handle(AlertReported(alert(number=2)))
        runner.cancel()
        await asyncio.gather(runner, return_exceptions=True)
        await policy.stop()

    asyncio.run(scenario())
    code, output = command("status", "-c", str(config))
    assert code == 0
    assert output.count("192.168.10.20") == 2
    assert "throttle 16 kB/s" in output
    assert "(dry run)" in output
    assert command("release", "-c", str(config))[0] != 0
    assert "found nothing in force" in command("release", "-c", str(config), "10.9.9.9")[1]
    assert "found no address" in command("release", "-c", str(config), "tank-1")[1]
    code, output = command("release", "-c", str(config), "--all")
    assert sorted(output.splitlines()) == [
        "ended: quarantine of 192.168.10.20 (dry run)",
        "ended: throttle of 192.168.10.20 (dry run)",
    ]
    found = policy_operator.status(settings)
    assert found["measures"] == []
    path = tmp_path / "policy" / "audit.jsonl"
    code, output = command("audit", "verify", str(path))
    assert output == f"ok: 8 lines, 1 to 8, from the beginning; newest digest {found['audit']['head']}\n"
    path.write_bytes(path.read_bytes().replace(b"begun", b"ended", 1))
    code, output = command("audit", "verify", str(path))
    assert code
    assert "line 2" in output
