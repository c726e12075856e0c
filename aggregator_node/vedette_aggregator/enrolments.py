"""Which keys devices attest with, and how they came to be believed.

A boot chain's root is believed because the device's own key sealed the request and a person brought it here. A TPM's
attestation key is believed once the TPM gave back a secret that only it could open, and only with that key in it;
which TPM, the person says by the fingerprint of its endorsement key.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from vedette_aggregator.claimed_identity import unseal_claimed
from vedette_aggregator.settings import AggregatorSettings
from vedette_aggregator.state_file import state_path
from vedette_core.attestation.tpm_credential import SECRET_BYTES, make_credential
from vedette_core.attestation.tpm_public import read_attestation_key, read_endorsement_key
from vedette_core.crypto.signing import KeyRing
from vedette_core.runtime.storage import Database, StateStore
from vedette_schemas import codec
from vedette_schemas.attestation import ENROLMENT_TYPE, Enrolment, EnrolmentRequest
from vedette_schemas.errors import ConfigError, PeerError, RefusedError

PREFIX: Final = "attest/enrolment/"
COUNTERS_PREFIX: Final = "attest/counters/"
PASSPORT_PREFIX: Final = "attest/passport/"
"""The newest passport that the verifier made for a device, or `WITHDRAWN`."""
REFUSAL_PREFIX: Final = "attest/refusal/"
"""A device's newest evidence that was refused, for people: JSON with at_s, rule and detail."""
WITHDRAWN: Final = b""
"""In the place of a passport: newer evidence of the device was refused, or its keys and counters were forgotten."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """What is drawn for one credential.

    Attributes:
        secret: 32 unpredictable bytes.
        ephemeral: a fresh key on P-256.
    """

    secret: bytes
    ephemeral: EllipticCurvePrivateKey


class Enrolments:
    """The attesting keys of a site's devices.

    Args:
        store: where they are kept.
    """

    def __init__(self, store: StateStore) -> None:
        self._store = store

    def get(self, device: str) -> Enrolment | None:
        """What is known of a device's keys.

        Raises:
            ConfigError: the store holds something else.
        """
        stored = self._store.get(PREFIX + device)
        return None if stored is None else _read(PREFIX + device, stored)

    def all(self) -> tuple[Enrolment, ...]:
        """Everything that is known, by device.

        Raises:
            ConfigError: the store holds something else.
        """
        return tuple(_read(key, value) for key, value in self._store.all(PREFIX).items())

    def begin(self, request: EnrolmentRequest, ek: str, drawn: Drawn, now: float) -> bytes:
        """Begin with a TPM: its attestation key counts for nothing until `finish`.

        Args:
            request: the device's.
            ek: fingerprint of the endorsement key that a person expects, hexadecimal.
            drawn: for this credential alone.
            now: epoch seconds.

        Returns:
            The credential that the device's TPM must open.

        Raises:
            RefusedError: another endorsement key (rule ``endorsement-key``), or keys of another kind.
        """
        if request.tier != 2:
            raise ConfigError(
                f"{request.device}: found a request of tier {request.tier}, expected one with a TPM's keys"
            )
        found = hashlib.sha256(request.ek_public).digest()
        if not hmac.compare_digest(found.hex(), ek.lower()):
            raise RefusedError(
                f"{request.device}: found endorsement key {found.hex()}, expected {ek.lower()}: read it at the device",
                rule="endorsement-key",
            )
        endorsement = read_endorsement_key(request.ek_public, request.device)
        attestation = read_attestation_key(request.ak_public, request.device)
        self._put(
            Enrolment(
                device=request.device,
                tier=2,
                ak_public=request.ak_public,
                ek=found,
                secret=hashlib.sha256(drawn.secret).digest(),
                since_s=now,
            )
        )
        return make_credential(endorsement, attestation.name, drawn.secret, drawn.ephemeral)

    def finish(self, device: str, secret: bytes) -> None:
        """The TPM opened the credential: its attestation key is believed from now on.

        Raises:
            ConfigError: nothing was begun for this device.
            RefusedError: another secret (rule ``not-activated``).
        """
        known = self.get(device)
        if known is None or known.tier != 2:
            raise ConfigError(f"{device}: found no enrolment that was begun, expected `vedette attest enrol challenge`")
        digest = hashlib.sha256(secret).digest()
        if len(secret) != SECRET_BYTES or not hmac.compare_digest(digest, known.secret):
            raise RefusedError(f"{device}: found another secret than its TPM was given", rule="not-activated")
        self._put(known.model_copy(update={"activated": True}))

    def admit_boot(self, request: EnrolmentRequest, root: str, now: float) -> None:
        """Believe the root of a device's boot chain.

        Args:
            request: the device's.
            root: the public key that a person expects, hexadecimal.
            now: epoch seconds.

        Raises:
            RefusedError: another key (rule ``boot-chain``).
        """
        if request.tier != 1 or len(request.boot_root) != 32:
            raise ConfigError(
                f"{request.device}: found a request of tier {request.tier}, expected one with a boot root"
            )
        if not hmac.compare_digest(request.boot_root.hex(), root.lower()):
            raise RefusedError(
                f"{request.device}: found boot root {request.boot_root.hex()}, expected {root.lower()}",
                rule="boot-chain",
            )
        self._put(Enrolment(device=request.device, tier=1, boot_root=request.boot_root, activated=True, since_s=now))

    def forget(self, device: str) -> None:
        """Forget a device's keys and counters: after a repair it may begin again with lower ones.

        Its results end with them: it may still have a passport of the days before, of keys that are forgotten now, or
        withdrawn.
        """
        for prefix in (PREFIX, COUNTERS_PREFIX, REFUSAL_PREFIX):
            self._store.put(prefix + device, None)
        self._store.put(PASSPORT_PREFIX + device, WITHDRAWN)

    def _put(self, enrolment: Enrolment) -> None:
        self._store.put(PREFIX + enrolment.device, codec.pack(enrolment))


def read_request(data: bytes, keys: KeyRing, now: float) -> EnrolmentRequest:
    """A request whose certificate and signature hold.

    Raises:
        PeerError: they do not, or it is no request.
    """
    return unseal_claimed(EnrolmentRequest, data, ENROLMENT_TYPE, keys, now)[0]


@contextmanager
def open_enrolments(settings: AggregatorSettings) -> Iterator[Enrolments]:
    """The enrolments of an aggregator, which may be running, or not have run yet.

    Raises:
        ConfigError: its state cannot be opened.
    """
    database = Database(state_path(settings))
    try:
        yield Enrolments(StateStore(database))
    finally:
        database.close()


def _read(key: str, stored: bytes) -> Enrolment:
    try:
        return codec.unpack(Enrolment, stored)
    except PeerError as fault:
        raise ConfigError(f"{key}: {fault}; restore the state") from fault
