"""Carries out what a node's attestation machine asks for: measure beside everything else, and tell who waits."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from pydantic import BaseModel

from vedette_core.machine import Connected, Effect, Event, Tick
from vedette_core.runtime.identity import AGGREGATOR_ID, NodeIdentity
from vedette_core.runtime.jobs import Jobs
from vedette_core.runtime.shell import Shell
from vedette_core.runtime.storage import StateStore
from vedette_device.attestation_machine import (
    Answered,
    AttestationMachine,
    Attested,
    Challenged,
    EvidenceMade,
    MakeEvidence,
    ResultRejected,
)
from vedette_device.attester import Attester, Models, proof_of, settings_digest
from vedette_device.settings import AttestationSection
from vedette_schemas.attestation import (
    ANSWER_TYPE,
    CHALLENGE_TYPE,
    RESULT_S_MAX,
    RPC_NAME,
    AttestationAnswer,
    Challenge,
)
from vedette_schemas.envelope import Verifier, kind_of, unseal
from vedette_schemas.errors import ConfigError, PeerError, VedetteError
from vedette_schemas.telemetry import Receipt
from vedette_schemas.topics import Topics

log = logging.getLogger("vedette.attestation")

BOOTS_KEY = "attestation/boots"
REJECTED = "attestation:"
"""How the reason of a receipt begins for a check-in whose passport was refused."""
TIER_REJECTED = "attestation: passport-tier"
Told = Callable[[], Awaitable[None]]


class AttestationSession:
    """One node's attestation.

    Args:
        node: who this is.
        section: what stands behind its word.
        settings: its settings, for the measurement of the configuration.
        topics: the site's topics.
        shell: carries effects out.
        store: where starts are counted.
        peers: knows the aggregator's key.
        told: called when there is a passport.
        models: what scores here.

    Raises:
        ConfigError: a boot chain that cannot be used, or a store that holds something else.
    """

    def __init__(
        self,
        node: NodeIdentity,
        section: AttestationSection,
        settings: BaseModel | None,
        topics: Topics,
        shell: Shell,
        store: StateStore,
        peers: Verifier,
        told: Told,
        models: Models = tuple,
    ) -> None:
        self._node, self._topics, self._shell, self._peers = node, topics, shell, peers
        self._told, self._jobs, self._turn = told, Jobs(), asyncio.Lock()
        self._attester = Attester(node, proof_of(section), count_start(store), settings_digest(settings), models)
        self._machine = AttestationMachine(topics, node.id, node.certificate, node.intermediate, node.signer)

    @property
    def topic(self) -> str:
        """What to subscribe to."""
        return self._topics.rpc_down(self._node.id, RPC_NAME)

    def passport(self) -> bytes:
        """The result to check in with; empty if there is none that holds."""
        return self._machine.passport(time.time())

    async def connected(self) -> None:
        """A session with the broker has begun."""
        await self.handle(Connected())

    async def tick(self, overdue: bool = False) -> None:
        """To be called every now and then; `overdue` once a minute, whatever the deadline."""
        deadline = self._machine.next_deadline()
        if overdue or (deadline is not None and not time.time() < deadline <= time.time() + RESULT_S_MAX):
            await self.handle(Tick())

    async def heard(self, receipt: Receipt) -> None:
        """A receipt came: see whether a check-in was rejected for its passport."""
        reasons = [item.reason for item in receipt.items if item.outcome == "rejected"]
        # Of a tier that is too low, another result of the same would be refused as well.
        if any(r.startswith(REJECTED) and not r.startswith(TIER_REJECTED) for r in reasons):
            await self.handle(ResultRejected())

    async def take(self, topic: str, payload: bytes) -> None:
        """Take a message of the verifier.

        Raises:
            PeerError: it is not what may be said there.
        """
        parsed = self._topics.parse(topic)
        if (parsed.device, parsed.key) != (self._node.id, RPC_NAME):
            raise PeerError(f"topic {topic[:120]!r}: found a call that this node did not make", reason="topic")
        event: Challenged | Answered
        if kind_of(payload) == CHALLENGE_TYPE:
            event = Challenged(unseal(Challenge, payload, CHALLENGE_TYPE, self._peers, sender=AGGREGATOR_ID)[0])
        else:
            answer, _ = unseal(AttestationAnswer, payload, ANSWER_TYPE, self._peers, sender=AGGREGATOR_ID)
            event = Answered(answer)
        if event.body.device != self._node.id:
            found = f"attestation: found a message for {event.body.device}, expected one for {self._node.id}"
            raise PeerError(found, reason="device")
        await self.handle(event)

    async def handle(self, event: Event) -> None:
        """Give the machine an event, and carry out what it answers."""
        async with self._turn:
            effects: Sequence[Effect] = self._machine.handle(event, time.time())
            await self._shell.carry_out(effects, self._special)

    def renewed(self, node: NodeIdentity) -> None:
        """The node has newer certificates, of the same signing key: its passport still holds."""
        self._attester = replace(self._attester, node=node)
        self._machine.take_certificate(node.certificate, node.intermediate)

    async def stop(self) -> None:
        """End what is being measured."""
        await self._jobs.cancel()

    async def _special(self, effect: Effect) -> None:
        match effect:
            case MakeEvidence(nonce):
                self._jobs.start(self._measure(nonce), "measure")
            case Attested():
                self._jobs.start(self._tell(), "attested")
            case _:
                raise AssertionError(f"nobody carries out {effect!r}")

    async def _tell(self) -> None:
        await self._told()

    async def _measure(self, nonce: bytes) -> None:
        try:
            sealed, fault = await asyncio.to_thread(self._attester.evidence, nonce), ""
        except VedetteError as error:
            sealed, fault = b"", str(error)
        await self.handle(EvidenceMade(nonce, sealed, fault))


def count_start(store: StateStore) -> int:
    """Count this start of the node, and return its number.

    Raises:
        ConfigError: the store holds something else than a number.
    """
    stored = store.get(BOOTS_KEY) or b"0"
    if not stored.isdigit():
        raise ConfigError(f"{BOOTS_KEY}: found {stored[:20]!r} in the state, expected a number; restore it")
    number = int(stored) + 1
    store.put(BOOTS_KEY, str(number).encode())
    return number
