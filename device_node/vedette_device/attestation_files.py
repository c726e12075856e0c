"""A device's side of attestation by files: evidence for a look, and the enrolment of its attesting keys."""

from __future__ import annotations

import time

from vedette_core.runtime.identity import NodeIdentity, load_node
from vedette_core.runtime.storage import Database, StateStore
from vedette_device.attestation_session import BOOTS_KEY
from vedette_device.attester import Attester, proof_of, settings_digest
from vedette_device.boot_keys import BootKeys
from vedette_device.settings import DeviceSettings
from vedette_device.tpm import Tpm, fingerprint
from vedette_schemas.attestation import ENROLMENT_TYPE, EnrolmentRequest
from vedette_schemas.envelope import seal
from vedette_schemas.errors import ConfigError


def make_evidence(settings: DeviceSettings, nonce: bytes) -> bytes:
    """What this device would answer to a challenge; it need not run, and no start is counted.

    Raises:
        ConfigError: a bundle, TPM or boot chain that cannot be used.
        TransientError: the TPM does not answer just now.
    """
    node = load_node(settings.identity.bundle, time.time())
    attester = Attester(node, proof_of(settings.attestation), _starts(settings), settings_digest(settings))
    return attester.evidence(nonce)


def make_request(settings: DeviceSettings) -> tuple[bytes, str]:
    """A request for the keys of the settings' tier, and what a person compares at the verifier.

    Raises:
        ConfigError: tier 0 has no keys to enrol; or a bundle, TPM or boot chain that cannot be used.
        TransientError: the TPM does not answer just now.
    """
    node, section = load_node(settings.identity.bundle, time.time()), settings.attestation
    match section.tier:
        case 1:
            root = BootKeys.load(section.boot_dir).boot.root
            return _sealed(node, tier=1, boot_root=root), f"boot chain's root {root.hex()}"
        case 2:
            ek, ak = Tpm(section.tcti, section.ak_handle, section.pcrs).make_keys()
            return _sealed(node, tier=2, ek_public=ek, ak_public=ak), f"endorsement key {fingerprint(ek)}"
    raise ConfigError("attestation: found tier 0, expected [attestation] tier 1 or 2: tier 0 has no keys of its own")


def open_credential(settings: DeviceSettings, credential: bytes) -> bytes:
    """Let the TPM open what the verifier wrapped.

    Raises:
        ConfigError: it was wrapped for another TPM or key, or the settings have another tier.
        TransientError: the TPM does not answer just now.
    """
    section = settings.attestation
    if section.tier != 2:
        raise ConfigError(f"attestation: found tier {section.tier}, expected [attestation] tier 2")
    return Tpm(section.tcti, section.ak_handle, section.pcrs).open_credential(credential)


def _sealed(node: NodeIdentity, tier: int, **keys: bytes) -> bytes:
    request = EnrolmentRequest(
        device=node.id, tier=tier, certificate=node.certificate, intermediate=node.intermediate, **keys
    )
    return seal(request, ENROLMENT_TYPE, node.id, node.signer)


def _starts(settings: DeviceSettings) -> int:
    path = settings.state_dir / "device.db"
    if not path.exists():
        return 0
    database = Database(path)
    try:
        stored = StateStore(database).get(BOOTS_KEY) or b"0"
    finally:
        database.close()
    return int(stored) if stored.isdigit() else 0
