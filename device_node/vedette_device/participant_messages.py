"""What a device says in a round, sealed and addressed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from vedette_core.crypto.agreement import KeyPair
from vedette_core.machine import Publish
from vedette_device.training import Contribution
from vedette_schemas import codec
from vedette_schemas.envelope import Signer, pre_authentication_encoding, seal
from vedette_schemas.round import (
    CHECKIN_TYPE,
    HEADER_TYPE,
    OFFER_TYPE,
    UPLOAD_TYPE,
    CheckIn,
    Roster,
    Upload,
    checkin_id,
    header_of,
    offer_statement,
    transcript_hash,
    upload_id,
)
from vedette_schemas.topics import FlStep, Topics

SEVERITY: Final = 20
"""Below every alert: a full outbox gives up learning before it gives up detecting."""


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """Who takes part.

    Attributes:
        device: own id.
        certificate: DER of the signing certificate.
        intermediate: DER of the certificate that issued it.
        signer: holder of the signing key.
        feature_schema: digest of the feature schema that this device computes for the task.
        role: ``contribute``, or ``unmask`` for a helper.
        cohort: what kind of device it is, in the operator's words.
        passport: the attestation result that holds now, empty if there is none yet; None where none is asked for.
    """

    device: str
    certificate: bytes = field(repr=False)
    intermediate: bytes = field(repr=False)
    signer: Signer = field(repr=False)
    feature_schema: str
    role: Literal["contribute", "unmask"] = "contribute"
    cohort: str = ""
    passport: Callable[[], bytes] | None = field(default=None, repr=False, compare=False)

    @property
    def awaits_attestation(self) -> bool:
        """Whether a check-in would lack a result that this node is about to get."""
        return self.passport is not None and not self.passport()


@dataclass(frozen=True, slots=True)
class ParticipantMessages:
    """Builds the messages of one device in one task.

    Attributes:
        topics: the site's topics.
        task: the task.
        identity: who speaks.
    """

    topics: Topics
    task: str
    identity: DeviceIdentity

    def checkin(
        self, pair: KeyPair, *, seq: int, examples: int, model_version: int, sketch: bytes = b""
    ) -> tuple[str, bytes]:
        """A check-in with a fresh key: its id, and its sealed bytes."""
        who = self.identity
        statement = offer_statement(self.task, who.device, seq, pair.public, who.role)
        body = CheckIn(
            id=checkin_id(self.task, pair.public),
            task=self.task,
            device=self.identity.device,
            seq=seq,
            certificate=self.identity.certificate,
            intermediate=self.identity.intermediate,
            epk=pair.public,
            offer=who.signer.sign(pre_authentication_encoding(OFFER_TYPE, who.device, statement)),
            role=who.role,
            examples_bucket=max(0, examples.bit_length() - 1),
            feature_schema=self.identity.feature_schema,
            model_version=model_version,
            cohort=who.cohort,
            sketch=sketch,
            attestation=b"" if who.passport is None else who.passport(),
        )
        return body.id, seal(body, CHECKIN_TYPE, self.identity.device, self.identity.signer)

    def upload(self, roster: Roster, made: Contribution) -> tuple[str, bytes]:
        """An upload for a group: its id, and its sealed bytes."""
        body = Upload(
            id=upload_id(self.task, roster.round, roster.attempt, self.identity.device),
            task=self.task,
            round=roster.round,
            attempt=roster.attempt,
            gid=roster.gid,
            device=self.identity.device,
            transcript=transcript_hash(roster),
            vector=made.vector,
            boxes=made.boxes,
            commitments=made.commitments,
            header=bytes(64),
        )
        encoded = pre_authentication_encoding(HEADER_TYPE, body.device, codec.pack(header_of(body)))
        body = body.model_copy(update={"header": self.identity.signer.sign(encoded)})
        return body.id, seal(body, UPLOAD_TYPE, self.identity.device, self.identity.signer)

    def publication(self, step: FlStep, message_id: str, sealed: bytes) -> Publish:
        """A sealed message on its way: it is sent again until its receipt has come."""
        topic = self.topics.fl(self.identity.device, self.task, step)
        return Publish(topic, sealed, receipt_id=message_id, severity=SEVERITY)
