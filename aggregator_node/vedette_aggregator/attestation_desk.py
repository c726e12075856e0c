"""The verifier inside the aggregator, with a key of its own, and the check of passports at check-in and at grouping.

Off without a policy: then nothing is asked of devices, as the settings say.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from importlib.metadata import version
from typing import Final, TypeVar

from vedette_aggregator.attestation_files import read_policy_file
from vedette_aggregator.attestation_keys import load_signer
from vedette_aggregator.attestation_machine import (
    ChallengeAsked,
    EvidenceReceived,
    PolicyTaken,
    VerifierMachine,
)
from vedette_aggregator.claimed_identity import learn, raw_key, unseal_claimed
from vedette_aggregator.enrolments import COUNTERS_PREFIX, PASSPORT_PREFIX, WITHDRAWN, Enrolments
from vedette_aggregator.settings import AttestationSection
from vedette_core.attestation.passport import PassportCheck
from vedette_core.attestation.rules import refusal
from vedette_core.crypto.signing import KeyRing
from vedette_core.machine import Count, Event, Publish
from vedette_core.runtime.identity import NodeIdentity
from vedette_core.runtime.shell import Shell
from vedette_core.runtime.software import DISTRIBUTION, measure_software
from vedette_core.runtime.storage import StateStore
from vedette_schemas.attestation import (
    EVIDENCE_TYPE,
    REQUEST_TYPE,
    RPC_NAME,
    STATEMENT_TYPE,
    AggregatorStatement,
    AttestationPolicy,
    AttestationRequest,
    Evidence,
)
from vedette_schemas.envelope import kind_of, seal
from vedette_schemas.errors import ConfigError, PeerError, RefusedError, VedetteError
from vedette_schemas.round import CheckIn
from vedette_schemas.topics import Parsed, Topics

log = logging.getLogger("vedette.attestation")

POLICY_KEY: Final = "attest/policy"
"""Newest version of a policy that was in force, and SHA-256 of its file: an older file is a roll-back, and another one
of the same version would leave the passports of the first in force."""
REASON: Final = "attestation"
"""Of a check-in without a good passport; devices know it by this word."""
OUTDATED: Final = frozenset({"passport-expired", "passport-policy"})
"""Rules for which a newer result of the same device and key makes up."""
POLICY_LOOK_S: Final = 2.0
"""How soon a policy that a person put there is seen."""
M = TypeVar("M", AttestationRequest, Evidence)


class AttestationDesk:
    """Asks devices what runs there, and says who may take part.

    Args:
        section: the settings.
        node: the aggregator.
        topics: the site's topics.
        shell: carries effects out.
        store: where counters, enrolments and the newest policy's version are.
        keys: knows the site's authorities.

    Raises:
        ConfigError: a key or policy that cannot be used.
        RefusedError: an older policy than was in force.
    """

    def __init__(
        self,
        section: AttestationSection,
        node: NodeIdentity,
        topics: Topics,
        shell: Shell,
        store: StateStore,
        keys: KeyRing,
    ) -> None:
        self._section, self._node, self._topics = section, node, topics
        self._shell, self._store, self._keys = shell, store, keys
        self._enrolments = Enrolments(store)
        self._machine: VerifierMachine | None = None
        self._check: PassportCheck | None = None
        self._look_at, self._stamp = 0.0, (0.0, 0)
        if section.policy is None:
            return
        if section.policy_key is None or section.verifier_key is None:
            raise ConfigError("attestation: found a policy without policy_key or verifier_key, expected both beside it")
        signer = load_signer(section.verifier_key)
        policy, digest = self._read()
        if signer.public_key.public_bytes_raw() not in policy.verifiers:
            raise ConfigError(
                f"{section.verifier_key}: found a key that policy {policy.version} does not list as a verifier's; "
                "name its public key in `vedette attest reference --verifier`"
            )
        self._machine = VerifierMachine.restore(
            store.all(COUNTERS_PREFIX) | store.all(PASSPORT_PREFIX),
            topics,
            node.id,
            node.signer,
            verifier=signer,
            policy=policy,
            entropy=os.urandom,
        )
        self._put_in_force(policy, digest)

    @property
    def policy(self) -> AttestationPolicy | None:
        """The policy in force; None without one."""
        return None if self._check is None else self._check.policy

    def admit(self, body: CheckIn, now: float) -> None:
        """Check the passport in a check-in whose signature holds, under the policy in force.

        A check-in may have come hours ago: where its passport has run out, the newest one of the device counts; and
        where newer evidence was refused, none does.

        Raises:
            RefusedError: by one of the rules for passports.
            PeerError: its certificate no longer holds.
        """
        if self._check is None:
            return
        key = raw_key(learn(self._keys.fork(), body.device, body.certificate, body.intermediate, now))
        newest = self._store.get(PASSPORT_PREFIX + body.device)
        if newest == WITHDRAWN:
            raise refusal("passport-withdrawn", body.device, "newer evidence that was refused", "some that holds")
        try:
            self._check.check(body.attestation, body.device, key, body.role, now)
        except RefusedError as fault:
            if newest is None or fault.rule not in OUTDATED:
                raise
            self._check.check(newest, body.device, key, body.role, now)

    async def receive(self, body: CheckIn, now: float) -> None:
        """Check the passport in a check-in that just came; see `admit`.

        Raises:
            PeerError: it is refused; the reason ``attestation`` is answered, and the rule stands first in the words.
        """
        try:
            self.admit(body, now)
        except RefusedError as fault:
            await self._shell.carry_out([Count("attestations", fault.rule)])
            raise PeerError(str(fault).partition(": ")[2], reason=REASON) from fault

    async def take(self, parsed: Parsed, payload: bytes, now: float) -> None:
        """Take a device's call, if it is one for a verifier.

        Raises:
            PeerError: it is not what may be said there.
        """
        if parsed.key != RPC_NAME or parsed.device is None:
            return
        if self._machine is None:
            raise PeerError("attestation: found evidence or a request, expected none: no policy is set", reason="topic")
        device = parsed.device
        event: Event
        if kind_of(payload) == REQUEST_TYPE:
            request, _ = unseal_claimed(AttestationRequest, payload, REQUEST_TYPE, self._keys, now, device=device)
            if request.device != device:
                found = f"attestation: found a request for {request.device}, expected {device}"
                raise PeerError(found, reason="device")
            event = ChallengeAsked(device)
        else:
            evidence, key = unseal_claimed(Evidence, payload, EVIDENCE_TYPE, self._keys, now, device=device)
            event = EvidenceReceived(device, key, evidence, self._enrolments.get(device))
        await self._shell.carry_out(self._machine.handle(event, now))

    async def follow_policy(self) -> None:
        """See whether another policy was put there; a bad one is logged, and the old one stays in force."""
        if self._machine is None or time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + POLICY_LOOK_S
        try:
            if self._stamp != self._file_stamp():
                policy, digest = self._read()
                self._put_in_force(policy, digest)
                await self._shell.carry_out(self._machine.handle(PolicyTaken(policy), time.time()))
                log.warning("attestation policy %d is in force", policy.version)
        except VedetteError as fault:
            log.error("%s; policy %d stays in force", fault, self.policy.version if self.policy else 0)

    async def publish_own(self) -> None:
        """Retain what the aggregator says of its own software, if the settings want it."""
        if not self._section.publish_own:
            return
        try:
            self._shell.publish(await asyncio.to_thread(self.statement))
        except VedetteError as fault:
            log.error("own measurement: %s", fault)

    def statement(self) -> Publish:
        """What the aggregator says of its own software, to be retained; takes about a second.

        An enclave's evidence would stand in `AggregatorStatement.evidence`: there is none, and the tier says so.

        Raises:
            ConfigError: software that cannot be read.
        """
        body = AggregatorStatement(
            aggregator=self._node.id,
            swname=DISTRIBUTION,
            swversion=version(DISTRIBUTION),
            measurements=measure_software(),
            policy=self.policy.version if self.policy else 0,
            time_s=time.time(),
        )
        return Publish(
            self._topics.attestation, seal(body, STATEMENT_TYPE, self._node.id, self._node.signer), retain=True
        )

    # -- the policy ---------------------------------------------------------------------------------------------------

    def _read(self) -> tuple[AttestationPolicy, str]:
        self._stamp = self._file_stamp()
        stored, _, known = (self._store.get(POLICY_KEY) or b"0").decode(errors="replace").partition(" ")
        floor = int(stored) if stored.isdigit() else 0
        policy, digest = read_policy_file(self._section, self._topics.site, version_min=floor)
        if policy.version == floor and known not in ("", digest):
            raise RefusedError(
                f"attestation policy: found another one of version {floor}, expected {floor + 1} or newer: passports "
                "of the one that was in force would count on; name it to `vedette attest reference --earlier`",
                rule="older-policy",
            )
        return policy, digest

    def _file_stamp(self) -> tuple[float, int]:
        assert self._section.policy is not None
        try:
            status = self._section.policy.stat()
        except OSError:
            return (0.0, -1)
        return (status.st_mtime, status.st_size)

    def _put_in_force(self, policy: AttestationPolicy, digest: str) -> None:
        self._store.put(POLICY_KEY, f"{policy.version} {digest}".encode())
        self._check = PassportCheck(policy)
