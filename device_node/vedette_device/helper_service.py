"""A committee helper's shell: gives its machines what comes in, and carries out what they ask for."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from vedette_core.crypto.certificates import CertificateRole
from vedette_core.machine import Event
from vedette_core.runtime.identity import NodeIdentity, load_node
from vedette_core.runtime.jobs import run_until_signal
from vedette_core.runtime.metrics import serve_configured
from vedette_device.helper_machine import HelperMachine
from vedette_device.helper_settings import CommitteeSettings
from vedette_device.participant_events import ReleaseVerified
from vedette_device.participant_messages import DeviceIdentity
from vedette_device.participation import new_key
from vedette_device.round_session import RoundSession, SessionParts
from vedette_device.verified_release import VerifiedRelease
from vedette_schemas.errors import ConfigError
from vedette_schemas.model import Variant
from vedette_schemas.round import read_plan

log = logging.getLogger("vedette.committee")

_NO_SCHEMA: Final = "0" * 64


class HelperService:
    """One committee helper.

    Args:
        settings: its settings.

    Raises:
        ConfigError: a bundle, root of trust or state directory that cannot be used.
    """

    def __init__(self, settings: CommitteeSettings) -> None:
        self._settings = settings
        node = load_node(settings.identity.bundle, time.time())
        found = (node.id, node.site, node.role)
        if found != (settings.member, settings.site, CertificateRole.COMMITTEE):
            raise ConfigError(
                f"identity: found a bundle of {node.id} ({node.role}) at {node.site}, expected {settings.member} "
                f"(committee) at {settings.site}; make one with `vedette ca issue {settings.member} --role committee`"
            )
        self._session = session = RoundSession(
            node,
            SessionParts(
                broker=settings.broker,
                spool=settings.spool,
                trust_root=settings.identity.trust_root,
                database=settings.state_dir / "committee.db",
                trust_dir=settings.state_dir / "trust",
                tasks=settings.tasks,
                attestation=settings.attestation,
                settings=settings,
            ),
        )
        self._turns = {task: asyncio.Lock() for task in settings.tasks}
        identity = DeviceIdentity(
            node.id,
            node.certificate,
            node.intermediate,
            node.signer,
            _NO_SCHEMA,
            role="unmask",
            passport=None if session.attestation is None else session.attestation.passport,
        )
        self._newest: dict[str, ReleaseVerified] = {}
        restored = {
            task: HelperMachine.restore(
                session.store.all(f"participant/{task}/") | session.store.all(f"committee/{task}/"),
                topics=session.topics,
                task=task,
                identity=identity,
                new_key=new_key,
                peers=session.peers,
            )
            for task in settings.tasks
        }
        self.machines = {task: machine for task, (machine, _) in restored.items()}
        self._resume = {task: effects for task, (_, effects) in restored.items()}

    async def run(self, stop: asyncio.Event) -> None:
        """Help until `stop` is set."""
        stop_serving = serve_configured(self._session.metrics, self._settings.metrics)
        try:
            await self._session.run(self, stop)
        finally:
            stop_serving()

    async def start(self) -> None:
        """See `RoundMember.start`."""
        for effects in self._resume.values():
            await self._session.shell.carry_out(effects)

    async def handle(self, task: str, event: Event) -> None:
        """See `RoundMember.handle`."""
        # A write that waits for room on the disk must not be overtaken by the next event's.
        async with self._turns[task]:
            await self._session.shell.carry_out(self.machines[task].handle(event, time.time()))

    def next_deadline(self, task: str) -> float | None:
        """See `RoundMember.next_deadline`."""
        return self.machines[task].next_deadline()

    def renewed(self, node: NodeIdentity) -> None:
        """See `RoundMember.renewed`."""
        for machine in self.machines.values():
            machine.take_certificate(node.certificate, node.intermediate)

    async def take_release(self, release: VerifiedRelease) -> None:
        """See `RoundMember.take_release`."""
        weights, plan = release.targets.get(Variant.WEIGHTS), release.targets.get(Variant.PLAN)
        if weights is None or plan is None:
            return
        trust = self._session.trust
        packed = await asyncio.to_thread(trust.download, plan)
        event = ReleaseVerified(release.version, weights.sha256, plan.sha256, read_plan(packed), trust.beacon_anchor)
        self._newest[release.task] = event
        await self.handle(release.task, event)

    async def attested(self) -> None:
        """See `RoundMember.attested`."""
        # The machine follows its round again with the release that it has.
        for task, event in list(self._newest.items()):
            await self.handle(task, event)


def serve(settings: CommitteeSettings) -> None:
    """Run a helper until SIGTERM or SIGINT.

    Raises:
        VedetteError: it cannot start, or cannot go on.
    """
    run_until_signal(lambda stop: HelperService(settings).run(stop))
