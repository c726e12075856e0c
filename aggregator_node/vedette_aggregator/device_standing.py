"""What a device may do now, as the aggregator's state says: its pins, its attestation, its certificate."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from cryptography import x509

from vedette_aggregator.enrolments import PASSPORT_PREFIX, REFUSAL_PREFIX, WITHDRAWN
from vedette_aggregator.rollout_state import read_record, record_key
from vedette_core.runtime.storage import StateStore
from vedette_schemas import codec
from vedette_schemas.attestation import Passport
from vedette_schemas.envelope import Envelope
from vedette_schemas.errors import ConfigError, PeerError

NOTHING: Final[Mapping[str, Any]] = {"tier": None, "until": None, "withdrawn": False, "last_refusal": None}


def pins(store: StateStore, tasks: Iterable[str]) -> dict[str, dict[str, int]]:
    """Release by task of every pinned device.

    Raises:
        ConfigError: a damaged record of rollouts.
    """
    found: dict[str, dict[str, int]] = {}
    for task in tasks:
        for pin in read_record(store.get(record_key(task)), task).pins:
            found.setdefault(pin.device, {})[task] = pin.version
    return found


def attestations(store: StateStore) -> dict[str, dict[str, Any]]:
    """Tier and end of every device's newest passport, whether it was withdrawn, and the newest refusal.

    Nothing is checked again: these are this verifier's own results, from its own disk.

    Raises:
        ConfigError: the store holds something else.
    """
    found: dict[str, dict[str, Any]] = {}
    for key, stored in store.all(PASSPORT_PREFIX).items():
        about = found.setdefault(key.removeprefix(PASSPORT_PREFIX), dict(NOTHING))
        if stored == WITHDRAWN:
            about["withdrawn"] = True
            continue
        try:
            passport = codec.unpack(Passport, codec.unpack(Envelope, stored).body)
        except PeerError as fault:
            raise ConfigError(f"{key}: {fault}; restore the state") from fault
        about["tier"], about["until"] = passport.tier, moment(passport.exp)
    for key, stored in store.all(REFUSAL_PREFIX).items():
        try:
            plain = json.loads(stored)
            refused = {"at": moment(float(plain["at_s"])), "rule": str(plain["rule"]), "detail": str(plain["detail"])}
        except (ValueError, KeyError, TypeError) as fault:
            raise ConfigError(f"{key}: found {fault!r}, expected a refusal; restore the state") from fault
        found.setdefault(key.removeprefix(REFUSAL_PREFIX), dict(NOTHING))["last_refusal"] = refused
    return found


def certificate_end(certificates: Iterable[bytes]) -> str | None:
    """When the newest of some DER certificates ends; None without any that can be read."""
    ends = []
    for der in certificates:
        try:
            ends.append(x509.load_der_x509_certificate(der).not_valid_after_utc.timestamp())
        except ValueError:
            continue  # it was checked when it came; a newer library may see it otherwise
    return moment(max(ends)) if ends else None


def moment(at_s: float) -> str:
    """An instant for people: UTC, to the second."""
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
