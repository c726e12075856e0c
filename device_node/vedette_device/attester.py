"""Makes a device's evidence: what runs here, and what stands behind the word of it."""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Protocol

from pydantic import BaseModel

from vedette_core.runtime.identity import NodeIdentity
from vedette_core.runtime.software import DISTRIBUTION, measure_software
from vedette_device.boot_keys import BootKeys
from vedette_device.settings import AttestationSection
from vedette_device.tpm import Tpm
from vedette_schemas import codec
from vedette_schemas.attestation import EVIDENCE_TYPE, Claims, Evidence, Measurement, binding
from vedette_schemas.envelope import seal
from vedette_schemas.telemetry import ActiveModel

DEBUG_ENABLED: Final = 0
DEBUG_DISABLED: Final = 1
STATUS_FILE: Final = Path("/proc/self/status")
Models = Callable[[], Sequence[ActiveModel]]


class Proof(Protocol):
    """What stands behind claims, beside the identity key."""

    @property
    def tier(self) -> int:
        """What it is worth: 0 nothing, 1 a boot chain, 2 a TPM."""

    def prove(self, bound: bytes) -> dict[str, Any]:
        """Fields of `Evidence` about 32 bytes; may take a second, and raise what a TPM's tools raise."""


class SoftwareProof:
    """Tier 0: nothing but the identity key. Whoever has the gateway can let it say anything."""

    tier = 0

    def prove(self, bound: bytes) -> dict[str, Any]:
        """Nothing."""
        return {}


@dataclass(frozen=True, slots=True)
class Attester:
    """Makes evidence.

    Attributes:
        node: who this is.
        proof: what stands behind it.
        bootcount: this start's number.
        settings: SHA-256 of the settings that are in force.
        models: what scores here.
    """

    node: NodeIdentity = field(repr=False)
    proof: Proof
    bootcount: int
    settings: bytes = field(repr=False)
    models: Models = tuple

    def evidence(self, nonce: bytes) -> bytes:
        """Measure now, and seal what was found for a challenge; takes about a second.

        Raises:
            ConfigError: software that cannot be read, or a TPM or boot chain that is not there.
            TransientError: the TPM does not answer just now.
        """
        claims = codec.pack(self.claims(nonce))
        evidence = Evidence(
            tier=self.proof.tier,
            claims=claims,
            certificate=self.node.certificate,
            intermediate=self.node.intermediate,
            **self.proof.prove(binding(self.node.id, claims)),
        )
        return seal(evidence, EVIDENCE_TYPE, self.node.id, self.node.signer)

    def claims(self, nonce: bytes) -> Claims:
        """What this node says of itself.

        Raises:
            ConfigError: software that cannot be read.
        """
        measured = [
            *measure_software(),
            Measurement(component="configuration", digest=self.settings),
            *(
                Measurement(
                    component=f"model/{model.task}", version=str(model.version), digest=bytes.fromhex(model.digest)
                )
                for model in self.models()
            ),
        ]
        return Claims(
            eat_nonce=nonce,
            ueid=self.node.id,
            cnf=self.node.signer.public_key.public_bytes_raw(),
            hwmodel=platform.machine()[:60],
            swname=DISTRIBUTION,
            swversion=version(DISTRIBUTION)[:60],
            dbgstat=DEBUG_ENABLED if is_debugged() else DEBUG_DISABLED,
            bootcount=self.bootcount,
            measurements=tuple(sorted(measured, key=lambda m: m.component)),
        )


def proof_of(section: AttestationSection) -> Proof:
    """What the settings say that stands behind this node's word.

    Raises:
        ConfigError: a boot chain that is not there, or cannot be used.
    """
    match section.tier:
        case 1:
            return BootKeys.load(section.boot_dir)
        case 2:
            return Tpm(section.tcti, section.ak_handle, section.pcrs)
    return SoftwareProof()


def settings_digest(settings: BaseModel | None) -> bytes:
    """SHA-256 of settings as they are in force, wherever each of them came from."""
    return hashlib.sha256(b"" if settings is None else settings.model_dump_json().encode()).digest()


def is_debugged() -> bool:
    """Whether somebody looks into this process, or it was started so that one can."""
    if sys.gettrace() is not None or sys.flags.inspect or sys.flags.dev_mode:
        return True
    try:
        status = STATUS_FILE.read_text()
    except OSError:
        return False  # no such file on this system
    return any(line.startswith("TracerPid:") and line.split()[1:] != ["0"] for line in status.splitlines())
