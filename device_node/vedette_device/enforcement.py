"""The policy's shell: takes alerts that are on their way already, carries out what the machine asks for, audits it.

Detection never waits for it: `take` puts an alert into a queue and returns. Whatever fails in here is said in the log
and in the audit, and stays in here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from vedette_core.machine import Count, Effect, Event, Note, Persist, Tick
from vedette_core.runtime.metrics import Metrics
from vedette_core.runtime.storage import StateStore
from vedette_device.alert_record import rfc3339
from vedette_device.audit_log import AuditLog, FolderLock
from vedette_device.firewall import Firewall
from vedette_device.firewall_script import FirewallScript
from vedette_device.policy_calls import PolicyCalls, describe
from vedette_device.policy_effects import (
    AlertReported,
    Audit,
    Execute,
    Measure,
    MeasureFailed,
    MeasureKind,
    Protect,
    ProtectionLearned,
    PublishCommand,
    Quarantine,
    Release,
    ReleaseAsked,
    Throttle,
    Webhook,
)
from vedette_device.policy_machine import PolicyLimits, PolicyMachine
from vedette_device.policy_protection import Address
from vedette_device.policy_rules import ExecRule, Policy, PublishRule, parse_policy
from vedette_device.program_run import check_program
from vedette_device.protection_lookup import ProtectionLookup
from vedette_device.settings import DeviceSettings
from vedette_schemas import alert as alerts
from vedette_schemas.errors import ConfigError, PeerError, TransientError, VedetteError

log = logging.getLogger("vedette.policy")

LIVE: Final = "policy/live/"
DRY: Final = "policy/dry/"
"""A dry run remembers apart, so that what was only said is never put into force when it ends."""
REQUESTS: Final = "policy-request/"
"""What a person asked for while the node runs: key → address, empty for all."""
QUEUE_MAX: Final = 1000
"""Alerts that wait for the policy; a device opens 30 an hour."""
TICK_S: Final = 1.0
LEARN_S: Final = 30.0
"""Seconds between two looks at who must be protected, and at whether the table is still in force."""


class Enforcement:
    """The policy of one device.

    Args:
        settings: the device's; `[policy]` is enabled.
        store: the device's.
        metrics: the device's.

    Raises:
        ConfigError: rules, programs or the audit cannot be used, nft is missing, or another process enforces.
    """

    def __init__(self, settings: DeviceSettings, store: StateStore, metrics: Metrics) -> None:
        section = settings.policy
        self._store, self._metrics = store, metrics
        self._policy = read_policy(settings)
        self._dry_run = section.dry_run
        prefix = DRY if self._dry_run else LIVE
        limits = PolicyLimits(section.quarantine_s_max, section.hosts_max)
        self.machine = PolicyMachine(self._policy, limits, prefix)
        kept = store.all(LIVE + "measure/")
        self._live_until = max((measure.until for measure in readable(kept)), default=0.0)
        rates = {measure.kbytes_per_s for measure in readable(kept)} - {0} | self._policy.rates
        self._firewall: Firewall | None = None
        if not self._dry_run and (self._policy.needs_firewall or kept):
            self._firewall = Firewall(FirewallScript(settings.site, settings.device, rates))
        folder = policy_folder(settings)
        self._lock = FolderLock(folder)
        try:
            self._audit = AuditLog(folder, section.audit_bytes_max, section.audit_files_max)
            self._calls = PolicyCalls(self._write, section.broker)
        except VedetteError:
            self._lock.close()
            raise
        self._lookup = ProtectionLookup(settings)
        self._queue: asyncio.Queue[Event] = asyncio.Queue(QUEUE_MAX)
        self.busy = asyncio.Lock()
        self._installed = False
        self._said = ""

    @property
    def installed(self) -> bool:
        """Whether the firewall's table is in place."""
        return self._installed

    async def start(self) -> None:
        """Go on with what was in force, and put the table in place.

        Raises:
            ConfigError: nft refuses: no right to, another device's table, or a kernel without nftables.
        """
        mode = "dry run: nothing is done, it is only said and audited" if self._dry_run else "rules are enforced"
        number, head = self._audit.head
        log.info("policy: %d rules; %s; audit at line %d, %s", len(self._policy.rule), mode, number, head)
        if self._dry_run and self._live_until > time.time():
            log.warning(
                "policy: what was put into force before this dry run ends by %s; vedette policy release ends it now",
                rfc3339(self._live_until),
            )
        await self._calls.start()
        await self._carry_out(self.machine.restore(self._store.all(self.machine.prefix), time.time()))
        try:
            await self._handle(ProtectionLearned(await asyncio.to_thread(self._lookup.learn)), must_install=True)
        except TransientError as fault:
            self._say_once(str(fault))

    def take(self, payload: bytes) -> None:
        """Take an alert that was put on its way; returns at once, whatever happens.

        Args:
            payload: the alert, JSON.
        """
        try:
            self._queue.put_nowait(AlertReported(alerts.decode(payload)))
        except PeerError as fault:
            log.warning("policy: %s", fault)
        except asyncio.QueueFull:
            self._metrics.count("policy", kind="policy", outcome="dropped")
            self._say_once(f"{QUEUE_MAX} alerts wait already, expected fewer; further ones are not answered")

    async def run(self) -> None:
        """Answer alerts, end measures, look after the table; until cancelled."""
        learner = asyncio.create_task(self._learn(), name="policy-protection")
        try:
            while True:
                event: Event = Tick()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pause_s()):
                        event = await self._queue.get()
                try:
                    await self._handle(event)
                    await self._take_requests()
                except Exception:
                    log.exception("policy: %s could not be answered", type(event).__name__)
        finally:
            learner.cancel()
            await asyncio.gather(learner, return_exceptions=True)

    async def stop(self) -> None:
        """Answer what waits, then let go. What is in force stays, and ends by itself; without any, the table goes."""
        try:
            while not self._queue.empty():
                await self._handle(self._queue.get_nowait())
            if self._firewall is not None and self._installed and not self.machine.in_force:
                await self._firewall.remove()
        except VedetteError as fault:
            log.warning("policy: %s", fault)
        finally:
            await self._calls.stop()
            self._lock.close()

    # -- events -------------------------------------------------------------------------------------------------------

    def _pause_s(self) -> float:
        deadline = self.machine.next_deadline()
        return TICK_S if deadline is None else min(max(deadline - time.time(), 0.0), TICK_S)

    async def _learn(self) -> None:
        while True:
            try:
                await self._queue.put(ProtectionLearned(await asyncio.to_thread(self._lookup.learn)))
            except TransientError as fault:
                self._say_once(str(fault))
            except Exception:
                log.exception("policy: who must be protected could not be looked up")
            await asyncio.sleep(LEARN_S)

    async def _handle(self, event: Event, *, must_install: bool = False) -> None:
        async with self.busy:
            failed = await self._carry_out(self.machine.handle(event, time.time()), must_install=must_install)
            for failure in failed:
                await self._carry_out(self.machine.handle(failure, time.time()))
            if isinstance(event, ProtectionLearned) and self._firewall is not None:
                await self._look_after(self._firewall)

    async def _take_requests(self) -> None:
        for key, value in self._store.all(REQUESTS).items():
            await self._handle(ReleaseAsked(value.decode("utf-8", "replace"), "an operator's command"))
            self._store.put(key, None)

    async def _look_after(self, firewall: Firewall) -> None:
        """Others may flush the whole ruleset; then what is in force is put into force again."""
        try:
            if self._installed and await firewall.is_there():
                return
            again = self._installed
            await self._install(firewall)
            if again:
                self._write(Audit("firewall", "restored", detail="the table was gone, and was put in place again"))
        except VedetteError as fault:
            self._say_once(str(fault))

    # -- effects ------------------------------------------------------------------------------------------------------

    async def _carry_out(self, effects: Sequence[Effect], *, must_install: bool = False) -> list[MeasureFailed]:
        """Carry effects out in order; what cannot be persisted or audited is not done, except to end something."""
        failed: list[MeasureFailed] = []
        broken = ""
        for effect in effects:
            try:
                match effect:
                    case Persist(key, value):
                        self._store.put(key, value)
                    case Audit():
                        self._write(effect)
                    case Count(metric, outcome, task, kind):
                        self._metrics.count(metric, task=task, kind=kind, outcome=outcome)
                    case Note(level, text):
                        log.log(logging.getLevelNamesMapping()[level.upper()], "%s", text)
                    case Quarantine(address) | Throttle(address):
                        kind_of: MeasureKind = "quarantine" if isinstance(effect, Quarantine) else "throttle"
                        reason = broken or await self._begin(kind_of, address)
                        if reason:
                            failed.append(MeasureFailed(kind_of, address, reason))
                    case Release():
                        await self._end(effect)
                    case Protect(protection):
                        if self._firewall is not None and not self._installed:
                            await self._install(self._firewall)
                        elif self._firewall is not None:
                            await self._firewall.protect(protection)
                    case Webhook() | Execute() | PublishCommand():
                        self._call(effect, broken)
                    case _:
                        raise AssertionError(f"nobody carries out {effect!r}")
            except VedetteError as fault:
                if must_install and isinstance(effect, Protect) and isinstance(fault, ConfigError):
                    raise
                log.error("policy: %s", fault)
                if isinstance(effect, Protect):
                    self._installed = False  # it is put in place anew, with all that is known, by the next look
                elif isinstance(effect, Persist | Audit):
                    broken = broken or f"not persisted or not audited: {fault}"
        return failed

    async def _begin(self, kind: MeasureKind, address: Address) -> str:
        """Put a measure of the machine into force; returns why not."""
        measure = next(m for m in self.machine.in_force if (m.kind, m.address) == (kind, address))
        text = f"{kind} {address} for {measure.until - time.time():.0f} s (rule {measure.rule})"
        if self._firewall is None:
            log.warning("policy: dry run: would %s", text)
            return ""
        if not self._installed:
            return "the firewall's table is not in place"
        log.warning("policy: %s", text)
        try:
            try:
                await self._firewall.begin(measure, time.time())
            except ConfigError:
                await self._install(self._firewall)  # the table may be gone; this puts all in force, this one too
        except VedetteError as fault:
            log.error("policy: %s", fault)
            return str(fault)
        return ""

    async def _end(self, release: Release) -> None:
        if self._firewall is None:
            log.warning("policy: dry run: would release %s from %s", release.address, release.kind)
            return
        log.warning("policy: %s is released from %s", release.address, release.kind)
        try:
            await self._firewall.end(release.kind, release.address)
        except ConfigError as fault:
            if self._installed:
                await self._install(self._firewall)  # without what has just ended
            else:
                log.info("policy: there is nothing to be released in the firewall: %s", fault)

    async def _install(self, firewall: Firewall) -> None:
        protection = self.machine.protection
        if protection is None:
            raise TransientError("policy: it is not known yet who must be protected: nobody is cut off")
        self._installed = False
        await firewall.install(protection, self.machine.in_force, time.time())
        self._installed = True

    def _call(self, call: Webhook | Execute | PublishCommand, broken: str) -> None:
        if broken:
            log.error("policy %s: not called: %s", call.rule.name, broken)
        elif self._dry_run:
            log.warning("policy %s: dry run: would %s", call.rule.name, describe(call))
        else:
            self._calls.begin(call)

    def _write(self, entry: Audit) -> None:
        plain = {key: value for key, value in asdict(entry).items() if value not in ("", None)}
        if entry.until is not None:
            plain["until"] = rfc3339(entry.until)
        self._audit.append({**plain, "dry_run": self._dry_run})

    def _say_once(self, text: str) -> None:
        if text != self._said:
            self._said = text
            log.warning("policy: %s", text)


def policy_folder(settings: DeviceSettings) -> Path:
    """Where a device keeps its audit and its lock."""
    return settings.state_dir / "policy"


def read_policy(settings: DeviceSettings) -> Policy:
    """The rules that a device's settings name, checked against this machine.

    Raises:
        ConfigError: no file is named, it is no rules file, a program must not be run, or a broker is missing.
    """
    section = settings.policy
    if section.rules is None:
        raise ConfigError("policy: key 'rules' is missing, expected the path of a rules file: see policy.example.toml")
    policy = read_rules(section.rules)
    for rule in policy.rule:
        if isinstance(rule, ExecRule):
            check_program(Path(rule.command[0]))
        elif isinstance(rule, PublishRule) and section.broker is None:
            raise ConfigError(f"policy: rule {rule.name!r} publishes, and there is no [policy.broker] to publish to")
    return policy


def read_rules(path: Path) -> Policy:
    """The rules of a file.

    Raises:
        ConfigError: it cannot be read, or is no rules file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(f"{path}: cannot be read ({fault}), expected a rules file") from fault
    return parse_policy(text, str(path))


def readable(persisted: dict[str, bytes]) -> list[Measure]:
    """Persisted measures; what is none is left out."""
    found = []
    for value in persisted.values():
        with contextlib.suppress(PeerError):
            found.append(Measure.from_bytes(value))
    return found
