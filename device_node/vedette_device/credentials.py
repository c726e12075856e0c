"""A node's credentials while it runs: its own certificates, renewed in time, and the list of those that are revoked."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from vedette_core.crypto.signing import KeyRing
from vedette_core.machine import Effect, Event, Tick
from vedette_core.runtime.bundle_requests import anchors_of, install, renewal_request
from vedette_core.runtime.identity import NodeIdentity, learn_aggregator, load_authorities
from vedette_core.runtime.metrics import Metrics
from vedette_core.runtime.mqtt import MqttLink, MqttMessage
from vedette_core.runtime.own_certificate import OwnCertificate
from vedette_core.runtime.revocation_store import RevocationStore
from vedette_core.runtime.shell import Shell
from vedette_core.runtime.storage import StateStore
from vedette_device.renewal_machine import (
    Answered,
    Install,
    MakeRequest,
    RenewalFailed,
    RenewalMachine,
    Renewed,
    RequestMade,
)
from vedette_schemas import codec
from vedette_schemas.enrolment import CertificateReply, RenewRequest
from vedette_schemas.envelope import Envelope
from vedette_schemas.errors import ConfigError, VedetteError
from vedette_schemas.topics import RENEW, Topics

log = logging.getLogger("vedette.identity")

LOOK_S: Final = 5.0
"""How often the clock and the bundle are looked at."""


class Credentials:
    """One node's.

    Args:
        node: who it is, as it was loaded.
        ring: believes others' certificates; the newest list counts for it and its forks.
        topics: the site's topics.
        link: the session; its TLS context takes the new certificate.
        shell: carries out what the machine asks for.
        store: keeps the newest list.
        metrics: the node's.
        on_renewed: called when the node has newer certificates.

    Attributes:
        on_list: called with the number of each newer revocation list.

    Raises:
        ConfigError: the bundle's revocation list cannot be read.
    """

    def __init__(
        self,
        node: NodeIdentity,
        ring: KeyRing,
        topics: Topics,
        link: MqttLink,
        shell: Shell,
        store: StateStore,
        metrics: Metrics,
        on_renewed: Callable[[NodeIdentity], None],
    ) -> None:
        self._ring, self._topics, self._link, self._shell, self._metrics = ring, topics, link, shell, metrics
        self._own = OwnCertificate(node, link, metrics)
        self._on_renewed = on_renewed
        self._machine = RenewalMachine(topics, node.id, node.tls_not_before, node.tls_not_after)
        self._turn = asyncio.Lock()
        self._lists = RevocationStore(ring.revocations, store, node.bundle)
        self._told: int | None = None
        self.on_list: Callable[[int], None] | None = None
        self._look_at_list()

    async def subscribe(self) -> None:
        """Ask for what comes in here."""
        await self._link.subscribe(self._topics.revoked)
        await self._link.subscribe(self._topics.renewal_reply(self._own.node.id))

    async def take(self, message: MqttMessage) -> bool:
        """Take a message, if it is for here; tells whether it was.

        Raises:
            PeerError: a list that is older or not the authority's, or bytes that are no answer.
        """
        if message.topic == self._topics.revoked:
            if self._lists.take(message.payload):
                self._look_at_list()
                if self.on_list is not None:
                    self.on_list(self._ring.revocations.number)
            return True
        parsed = self._topics.parse(message.topic)
        if parsed.kind == "rpc" and parsed.key == RENEW:
            await self._handle(Answered(codec.unpack(CertificateReply, message.payload)))
            return True
        return False

    async def run(self) -> None:
        """Look after the certificates until cancelled."""
        while True:
            fresh = self._own.look()
            if fresh is not None:
                await self._adopt(fresh)
            deadline = self._machine.next_deadline()
            if deadline is not None and deadline <= time.time():
                await self._handle(Tick())
            await asyncio.sleep(LOOK_S)

    async def _handle(self, event: Event) -> None:
        async with self._turn:
            await self._step(event)

    async def _step(self, event: Event) -> None:
        await self._shell.carry_out(self._machine.handle(event, time.time()), self._special)

    async def _special(self, effect: Effect) -> None:
        node = self._own.node
        try:
            match effect:
                case MakeRequest():
                    sealed = await asyncio.to_thread(renewal_request, node)
                    request = codec.unpack(RenewRequest, codec.unpack(Envelope, sealed).body).id
                    await self._step(RequestMade(request, sealed))
                case Install(body):
                    await asyncio.to_thread(
                        install,
                        node.bundle.directory,
                        body,
                        anchors_of(node.bundle),
                        now=time.time(),
                        expected=node,
                    )
                    fresh = self._own.look()
                    if fresh is not None:
                        await self._take_over(fresh)
                case _:
                    raise AssertionError(f"nobody carries out {effect!r}")
        except VedetteError as fault:
            await self._step(RenewalFailed(str(fault)[:300]))

    async def _adopt(self, fresh: NodeIdentity) -> None:
        async with self._turn:
            await self._take_over(fresh)

    async def _take_over(self, fresh: NodeIdentity) -> None:
        """Go on with certificates that are in the bundle."""
        try:
            self._ring.learn_authorities(load_authorities(fresh.bundle)[1])
            learn_aggregator(self._ring, fresh.bundle, time.time())
        except ConfigError as fault:
            log.error("%s; going on with what is known of the aggregator", fault)
        await self._step(Renewed(fresh.tls_not_before, fresh.tls_not_after))
        self._on_renewed(fresh)

    def _look_at_list(self) -> None:
        newest = self._ring.revocations.newest
        self._metrics.set("revocation_list_number", value=self._ring.revocations.number)
        if newest is not None and self._own.node.serials & newest.entries.keys() and self._told != newest.number:
            self._told = newest.number
            log.error(
                "%s: this node's certificate is revoked (list %d): nobody listens to it; detection goes on",
                self._own.node.id,
                newest.number,
            )
