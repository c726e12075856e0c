"""What a device says about its own software, how it is asked, and what a verifier makes of it.

Roles are those of RFC 9334: the attester (device) gives evidence, the verifier appraises it under a signed policy, the
relying party (aggregator) reads the result. Names of claims are those of RFC 9711 where it has one; they travel as
msgpack in the signed envelope. See `docs/protocol.md` §4.

Source: RFC 9334 (roles, passport model, nonces), RFC 9711 (names of claims, values of ``dbgstat``).
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from vedette_schemas.codec import Message
from vedette_schemas.round import Certificate, Id, Key32, Seconds, hash_parts

REQUEST_TYPE: Final = "attest.request"
CHALLENGE_TYPE: Final = "attest.challenge"
EVIDENCE_TYPE: Final = "attest.evidence"
ANSWER_TYPE: Final = "attest.answer"
PASSPORT_TYPE: Final = "attest.passport"
POLICY_TYPE: Final = "attest.policy"
ENROLMENT_TYPE: Final = "attest.enrolment"
STATEMENT_TYPE: Final = "attest.statement"
"""Envelope types of the messages below."""
RPC_NAME: Final = "attest"
"""Last level of ``device/{id}/up/rpc/{name}`` and ``down/rpc/{name}``."""
VERIFIER_ID: Final = "verifier"
POLICY_ID: Final = "policy"
"""Senders of passports and of policies: their keys are of their own, and no node has these ids."""

PROFILE: Final = "tag:vedette,2026:attestation-1"
MEASUREMENTS_MAX: Final = 256
CLAIMS_BYTES_MAX: Final = 48 * 1024
LAYERS_MAX: Final = 8
PCRS_MAX: Final = 24
REFERENCES_MAX: Final = 512
PASSPORT_BYTES_MAX: Final = 1024
RESULT_S_MAX: Final = 86_400
"""A result lives a day at most: longer, and nobody would notice what happened since."""
TIER_MAX: Final = 2

Tier = Annotated[int, Field(ge=0, le=TIER_MAX)]
Component = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._/+-]{0,79}$")]
Version = Annotated[str, Field(max_length=60)]
DebugStatus = Annotated[int, Field(ge=0, le=4)]
TpmBytes = Annotated[bytes, Field(max_length=1024)]


class Measurement(Message):
    """One measured thing.

    Attributes:
        component: what it is: ``vedette``, ``dependency/{name}``, ``startup``, ``boot/{layer}``, ``configuration``,
            ``model/{task}``.
        version: as it says of itself; empty if it has none.
        digest: SHA-256 over it.
    """

    component: Component
    version: Version = ""
    digest: Key32


class Claims(Message):
    """What a device says; signed as bytes by everything that signs evidence.

    Attributes:
        eat_profile: names this set of claims.
        eat_nonce: of the challenge that it answers.
        ueid: the device's id: the site gives it, in the place of RFC 9711's universal one.
        cnf: raw Ed25519 public key whose signatures make this device's check-ins (RFC 8747, proof of possession).
        hwmodel: the hardware, as the operating system calls it.
        swname: name of the software.
        swversion: its version.
        dbgstat: 0 enabled, 1 disabled, 2 since boot, 3 permanently, 4 fully and permanently.
        bootcount: starts of this node since its state was made; only goes up.
        measurements: sorted by component, each once.
    """

    eat_profile: Literal["tag:vedette,2026:attestation-1"] = PROFILE
    eat_nonce: Key32
    ueid: Id
    cnf: Key32
    hwmodel: Annotated[str, Field(max_length=60)] = ""
    swname: Annotated[str, Field(min_length=1, max_length=60)]
    swversion: Version
    dbgstat: DebugStatus
    bootcount: Annotated[int, Field(ge=0, le=2**53)]
    measurements: Annotated[tuple[Measurement, ...], Field(min_length=1, max_length=MEASUREMENTS_MAX)]

    @model_validator(mode="after")
    def _sorted(self) -> Claims:
        _check_sorted("measurements", [m.component for m in self.measurements])
        return self


class BootLayer(Message):
    """A layer of a boot chain: the layer before measured it and vouches for its key.

    Attributes:
        name: of the layer, for example ``kernel``.
        measurement: SHA-256 of what was started.
        key: raw Ed25519 public key derived for it.
        signature: of the layer before, over `layer_statement`.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,40}$")]
    measurement: Key32
    key: Key32
    signature: Annotated[bytes, Field(min_length=64, max_length=64)]


class Pcr(Message):
    """A platform configuration register of the SHA-256 bank, as the device read it."""

    index: Annotated[int, Field(ge=0, lt=24)]
    value: Key32


class Evidence(Message):
    """A device's evidence; sealed by its identity key, whatever the tier.

    Attributes:
        tier: 0 software only, 1 a chained boot key, 2 a TPM's quote.
        claims: msgpack of `Claims`, exactly the bytes that quote and boot key sign (`binding`).
        certificate: DER of the device's signing certificate.
        intermediate: DER of the certificate that issued it.
        chain: layers of the boot chain, first one first; tier 1 only.
        boot_signature: of the last layer's key over the binding; tier 1 only.
        quote: ``TPMS_ATTEST``; tier 2 only.
        quote_signature: ``TPMT_SIGNATURE`` of the attestation key; tier 2 only.
        pcrs: registers that the quote is about, by index; tier 2 only.
    """

    tier: Tier
    claims: Annotated[bytes, Field(max_length=CLAIMS_BYTES_MAX)]
    certificate: Certificate
    intermediate: Certificate
    chain: Annotated[tuple[BootLayer, ...], Field(max_length=LAYERS_MAX)] = ()
    boot_signature: Annotated[bytes, Field(max_length=64)] = b""
    quote: TpmBytes = b""
    quote_signature: TpmBytes = b""
    pcrs: Annotated[tuple[Pcr, ...], Field(max_length=PCRS_MAX)] = ()

    @model_validator(mode="after")
    def _sorted(self) -> Evidence:
        _check_sorted("pcrs", [pcr.index for pcr in self.pcrs])
        return self


class AttestationRequest(Message):
    """A device asks for a challenge.

    Attributes:
        device: its id.
        certificate: DER of its signing certificate.
        intermediate: DER of the certificate that issued it.
    """

    device: Id
    certificate: Certificate
    intermediate: Certificate


class Challenge(Message):
    """A verifier asks for fresh evidence.

    Attributes:
        device: whose.
        nonce: unpredictable; good for one answer of this device.
        expires_s: epoch seconds after which evidence is stale.
    """

    device: Id
    nonce: Key32
    expires_s: Seconds


class AttestationAnswer(Message):
    """What became of evidence.

    Attributes:
        device: whose.
        nonce: that the evidence answered.
        passport: sealed `Passport`; empty if it was refused.
        rule: the rule that refused it; empty if it was not.
        detail: what was found and what was expected.
    """

    device: Id
    nonce: Key32
    passport: Annotated[bytes, Field(max_length=PASSPORT_BYTES_MAX)] = b""
    rule: Annotated[str, Field(pattern=r"^[a-z-]{0,40}$")] = ""
    detail: Annotated[str, Field(max_length=300)] = ""


class Passport(Message):
    """A verifier's result, which the device shows with its check-ins.

    Attributes:
        device: whose.
        key: SHA-256 of the raw identity key that the evidence was about.
        tier: what the evidence was.
        verdict: there is one; what is refused gets no passport.
        policy: version of the policy that it was appraised under.
        bootcount: that the device had.
        iat: epoch seconds at which it was issued.
        exp: epoch seconds at which it ends, a day later at most.
    """

    device: Id
    key: Key32
    tier: Tier
    verdict: Literal["affirming"] = "affirming"
    policy: Annotated[int, Field(ge=1, le=2**31 - 1)]
    bootcount: Annotated[int, Field(ge=0, le=2**53)]
    iat: Seconds
    exp: Seconds

    @model_validator(mode="after")
    def _short(self) -> Passport:
        if not self.iat < self.exp <= self.iat + RESULT_S_MAX:
            raise ValueError(f"lives {self.exp - self.iat:.0f} s, expected more than 0 and at most {RESULT_S_MAX}")
        return self


class Reference(Message):
    """What a policy wants of one component.

    Attributes:
        component: as in `Measurement`; ``pcr/{index}`` for a register.
        digests: the digests that are good.
        version_min: oldest version that is good, numbers with dots; empty for any.
        versions_denied: versions that are not, whatever their digest.
    """

    component: Component
    digests: Annotated[tuple[Key32, ...], Field(min_length=1, max_length=64)]
    version_min: Annotated[str, Field(pattern=r"^([0-9]+(\.[0-9]+)*)?$", max_length=60)] = ""
    versions_denied: Annotated[tuple[Version, ...], Field(max_length=64)] = ()


class AttestationPolicy(Message):
    """What evidence must hold; signed by a key that stays offline.

    Attributes:
        site: the site that it is for.
        version: only goes up.
        verifiers: raw Ed25519 public keys whose passports count.
        tier_contribute: least tier of a device that contributes.
        tier_unmask: least tier of a committee helper.
        dbgstat_min: least `Claims.dbgstat`: 1 refuses debugging.
        evidence_s: seconds from challenge to evidence, at most.
        result_s: seconds that a passport lives.
        clock_safe: whether a TPM's clock must be safe, which it is not for a while after a crash.
        denied: digests that are bad wherever they stand.
        references: sorted by component, each once.
    """

    site: Id
    version: Annotated[int, Field(ge=1, le=2**31 - 1)]
    verifiers: Annotated[tuple[Key32, ...], Field(min_length=1, max_length=4)]
    tier_contribute: Tier = 0
    tier_unmask: Tier = 0
    dbgstat_min: DebugStatus = 1
    evidence_s: Annotated[float, Field(ge=1, le=600)] = 120.0
    result_s: Annotated[float, Field(ge=10, le=RESULT_S_MAX)] = float(RESULT_S_MAX)
    clock_safe: bool = False
    denied: Annotated[tuple[Key32, ...], Field(max_length=1024)] = ()
    references: Annotated[tuple[Reference, ...], Field(min_length=1, max_length=REFERENCES_MAX)]

    @model_validator(mode="after")
    def _sorted(self) -> AttestationPolicy:
        _check_sorted("references", [r.component for r in self.references])
        return self


class EnrolmentRequest(Message):
    """A device shows the keys that its hardware or boot chain attests with; carried to the verifier by hand.

    Attributes:
        device: its id.
        tier: 1 or 2.
        certificate: DER of its signing certificate.
        intermediate: DER of the certificate that issued it.
        boot_root: raw Ed25519 public key at the root of its boot chain; tier 1.
        ek_public: ``TPM2B_PUBLIC`` of the TPM's endorsement key; tier 2.
        ak_public: ``TPM2B_PUBLIC`` of its attestation key; tier 2.
    """

    device: Id
    tier: Annotated[int, Field(ge=1, le=TIER_MAX)]
    certificate: Certificate
    intermediate: Certificate
    boot_root: Annotated[bytes, Field(max_length=32)] = b""
    ek_public: TpmBytes = b""
    ak_public: TpmBytes = b""


class Enrolment(Message):
    """What a verifier keeps of a device's attesting keys.

    Attributes:
        device: whose.
        tier: 1 or 2.
        boot_root: as in the request.
        ak_public: as in the request.
        ek: SHA-256 of the endorsement key's ``TPM2B_PUBLIC``; tier 2.
        secret: SHA-256 of what the TPM must decrypt (`activated` is false until it did).
        activated: whether its keys are believed.
        since_s: epoch seconds.
    """

    device: Id
    tier: Annotated[int, Field(ge=1, le=TIER_MAX)]
    boot_root: Annotated[bytes, Field(max_length=32)] = b""
    ak_public: TpmBytes = b""
    ek: Annotated[bytes, Field(max_length=32)] = b""
    secret: Annotated[bytes, Field(max_length=32)] = b""
    activated: bool = False
    since_s: Seconds


class AggregatorStatement(Message):
    """The aggregator's own measurement, retained for everybody: what it says of itself, and no more.

    Attributes:
        aggregator: its id.
        swname: name of the software.
        swversion: its version.
        measurements: sorted by component, each once.
        policy: version of the attestation policy that it holds devices to; 0 for none.
        tier: 0: nothing but its own word stands behind it.
        evidence: what an enclave around the aggregator gives; empty without one.
        time_s: epoch seconds.
    """

    aggregator: Id
    swname: Annotated[str, Field(min_length=1, max_length=60)]
    swversion: Version
    measurements: Annotated[tuple[Measurement, ...], Field(min_length=1, max_length=MEASUREMENTS_MAX)]
    policy: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    tier: Literal[0] = 0
    evidence: Annotated[bytes, Field(max_length=64 * 1024)] = b""
    time_s: Seconds

    @model_validator(mode="after")
    def _sorted(self) -> AggregatorStatement:
        _check_sorted("measurements", [m.component for m in self.measurements])
        return self


def binding(device: str, claims: bytes) -> bytes:
    """What a quote's extra data and a boot key's signature are over: these claims of this device, 32 bytes.

    The claims hold nonce, identity key and every measurement, so that none of them can be exchanged.
    """
    return hash_parts(b"vedette-attestation-1", device.encode(), claims)


def layer_statement(name: str, measurement: bytes, key: bytes) -> bytes:
    """What a boot layer signs about the next one."""
    return hash_parts(b"vedette-boot-layer-1", name.encode(), measurement, key)


def _check_sorted(what: str, found: list[Any]) -> None:
    if found != sorted(set(found)):
        raise ValueError(f"{what} are not sorted and unique")
