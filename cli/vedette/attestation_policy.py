"""Policies of attestation from what is installed here and what an operator says; and files, described."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vedette_aggregator.attestation_keys import load_public, load_signer, make_key
from vedette_core.attestation.policy import read_policy
from vedette_core.attestation.references import references
from vedette_core.runtime.config import load
from vedette_core.runtime.durable import write_durable
from vedette_core.runtime.software import measure_software
from vedette_device.settings import DeviceSettings
from vedette_device.tpm import Tpm
from vedette_schemas import attestation as messages
from vedette_schemas import codec
from vedette_schemas.attestation import POLICY_ID, POLICY_TYPE, AttestationPolicy, Claims, Measurement, Reference
from vedette_schemas.envelope import Envelope, seal
from vedette_schemas.errors import ConfigError, PeerError

FILE_BYTES_MAX: Final = 256 * 1024
KINDS: Final[dict[str, type[codec.Message]]] = {
    messages.POLICY_TYPE: messages.AttestationPolicy,
    messages.PASSPORT_TYPE: messages.Passport,
    messages.EVIDENCE_TYPE: messages.Evidence,
    messages.ENROLMENT_TYPE: messages.EnrolmentRequest,
    messages.STATEMENT_TYPE: messages.AggregatorStatement,
    messages.REQUEST_TYPE: messages.AttestationRequest,
    messages.CHALLENGE_TYPE: messages.Challenge,
    messages.ANSWER_TYPE: messages.AttestationAnswer,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyWishes:
    """What an operator wants of a policy; see `vedette attest reference --help`."""

    site: str
    verifiers: tuple[Path, ...]
    earlier: Path | None = None
    nodes: tuple[Path, ...] = ()
    tier_contribute: int | None = None
    tier_unmask: int | None = None
    boot: tuple[str, ...] = ()
    pcr: tuple[str, ...] = ()
    pcrs_of: Path | None = None
    deny: tuple[str, ...] = ()
    version_min: tuple[str, ...] = ()
    deny_version: tuple[str, ...] = ()
    result_s: float = messages.RESULT_S_MAX


def write_policy(wishes: PolicyWishes, key: Path, out: Path | None) -> AttestationPolicy:
    """Measure what is installed here, or take what good nodes measured, and sign a policy that wants it.

    Args:
        wishes: what the operator says.
        key: private key of whoever signs policies.
        out: file to write; None only checks.

    Raises:
        ConfigError: a key, file or wish that cannot be used.
    """
    signer = load_signer(key)
    before = None
    if wishes.earlier is not None:
        own = signer.public_key.public_bytes_raw()
        before = read_policy(_read(wishes.earlier), own, wishes.site)
    found = [m for path in wishes.nodes for m in measured_by(path)] or list(measure_software())
    measured = [*found, *_hardware(wishes)]
    try:
        policy = AttestationPolicy(
            site=wishes.site,
            version=1 if before is None else before.version + 1,
            verifiers=tuple(load_public(path) for path in wishes.verifiers),
            tier_contribute=_tier(wishes.tier_contribute, before.tier_contribute if before else 0),
            tier_unmask=_tier(wishes.tier_unmask, before.tier_unmask if before else 0),
            result_s=float(wishes.result_s),
            denied=_denied(wishes.deny, before),
            references=_with_versions(references(measured, before.references if before else ()), wishes),
        )
    except ValueError as fault:
        raise ConfigError(f"attestation policy: {fault}") from fault
    sealed = seal(policy, POLICY_TYPE, POLICY_ID, signer)
    if out is not None:
        write_durable(out, sealed, 0o644)
    return policy


def _tier(wished: int | None, before: int) -> int:
    """An update of the software must not lower what is asked for, unless somebody says so."""
    return before if wished is None else wished


def described(path: Path) -> dict[str, Any]:
    """What a sealed file of attestation says; nothing is verified.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    try:
        envelope = codec.unpack(Envelope, _read(path))
        if envelope.type not in KINDS:
            raise ConfigError(f"{path}: found a message {envelope.type!r}, expected one of {', '.join(sorted(KINDS))}")
        body = codec.unpack(KINDS[envelope.type], envelope.body)
        plain = _plain(body.model_dump(mode="python"))
        if isinstance(body, messages.Evidence):
            plain["claims"] = _plain(codec.unpack(Claims, body.claims).model_dump(mode="python"))
    except PeerError as fault:
        raise ConfigError(f"{path}: {fault}; expected a file of `vedette attest`") from fault
    return {"type": envelope.type, "sender": envelope.sender, **plain}


def measured_by(path: Path) -> list[Measurement]:
    """Everything that evidence says was measured, registers and boot layers included; nothing is verified.

    Raises:
        ConfigError: it cannot be read, or is no evidence.
    """
    try:
        evidence = codec.unpack(messages.Evidence, codec.unpack(Envelope, _read(path)).body)
        claims = codec.unpack(Claims, evidence.claims)
    except PeerError as fault:
        raise ConfigError(f"{path}: {fault}; expected a file of `vedette attest evidence`") from fault
    return [
        *claims.measurements,
        *(Measurement(component=f"pcr/{pcr.index}", digest=pcr.value) for pcr in evidence.pcrs),
        *(Measurement(component=f"boot/{layer.name}", digest=layer.measurement) for layer in evidence.chain),
    ]


def named_digests(pairs: Iterable[str]) -> list[tuple[str, bytes]]:
    """(name, SHA-256 of the file) of each ``NAME=FILE``.

    Raises:
        ConfigError: another form, or a file that cannot be read.
    """
    found = []
    for pair in pairs:
        name, path = _split(pair, "NAME=FILE")
        try:
            with Path(path).open("rb") as file:
                found.append((name, hashlib.file_digest(file, "sha256").digest()))
        except OSError as fault:
            raise ConfigError(f"{path}: cannot be read ({fault.strerror}), expected what {name} starts") from fault
    return found


def hexadecimal(text: str, size: int) -> bytes:
    """Bytes from hexadecimal digits.

    Raises:
        ConfigError: something else, or another number of them.
    """
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != size:
        raise ConfigError(f"found {text[:80]!r}, expected {2 * size} hexadecimal digits")
    return found


def _hardware(wishes: PolicyWishes) -> list[Measurement]:
    found = [(f"boot/{name}", digest) for name, digest in named_digests(wishes.boot)]
    for pair in wishes.pcr:
        index, value = _split(pair, "INDEX=HEX")
        found.append((f"pcr/{index}", hexadecimal(value, 32)))
    if wishes.pcrs_of is not None:
        section = load(DeviceSettings, wishes.pcrs_of).attestation
        registers = Tpm(section.tcti, section.ak_handle, section.pcrs).registers()
        found += [(f"pcr/{index}", value) for index, value in registers.items()]
    try:
        return [Measurement(component=component, digest=digest) for component, digest in found]
    except ValueError as fault:
        raise ConfigError(f"attestation policy: {fault}") from fault


def _denied(fresh: Sequence[str], before: AttestationPolicy | None) -> tuple[bytes, ...]:
    found = (*(hexadecimal(text, 32) for text in fresh), *(before.denied if before else ()))
    return tuple(dict.fromkeys(found))


def _with_versions(found: tuple[Reference, ...], wishes: PolicyWishes) -> tuple[Reference, ...]:
    least = dict(_split(pair, "COMPONENT=VERSION") for pair in wishes.version_min)
    denied: dict[str, list[str]] = {}
    for pair in wishes.deny_version:
        component, version = _split(pair, "COMPONENT=VERSION")
        denied.setdefault(component, []).append(version)
    unknown = (least.keys() | denied.keys()) - {r.component for r in found}
    if unknown:
        raise ConfigError(f"versions: found {', '.join(sorted(unknown))}, expected components that are measured")

    def with_wishes(r: Reference) -> Reference:
        versions = tuple(dict.fromkeys((*denied.get(r.component, ()), *r.versions_denied)))
        least_of = least.get(r.component, r.version_min)
        return Reference(**{**r.model_dump(), "version_min": least_of, "versions_denied": versions})

    return tuple(with_wishes(r) for r in found)


def _split(pair: str, form: str) -> tuple[str, str]:
    name, separator, value = pair.partition("=")
    if not (name and separator and value):
        raise ConfigError(f"found {pair[:120]!r}, expected {form}")
    return name, value


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as fault:
        raise ConfigError(f"{path}: cannot be read ({fault.strerror}), expected a file of `vedette attest`") from fault
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(f"{path}: found more than {FILE_BYTES_MAX} bytes, expected a file of `vedette attest`")
    return data


def _plain(value: Any) -> Any:
    match value:
        case bytes():
            return value.hex()
        case dict():
            return {key: _plain(inner) for key, inner in value.items()}
        case tuple() | list():
            return [_plain(inner) for inner in value]
    return value


def site_policy(directory: Path, site: str) -> dict[str, dict[str, Any]]:
    """Keys and a policy of tier 0 for a new site, from what is installed here.

    Returns:
        The tables ``attestation`` of the aggregator's settings and of the nodes'.
    """
    directory.mkdir(mode=0o700)
    make_key(directory / "policy.key")
    verifier = make_key(directory / "verifier.key")
    wishes = PolicyWishes(site=site, verifiers=(verifier,))
    write_policy(wishes, directory / "policy.key", directory / "attestation.policy")
    return {
        "aggregator": {
            "policy": directory / "attestation.policy",
            "policy_key": directory / "policy.key.pub",
            "verifier_key": directory / "verifier.key",
            "publish_own": True,
        },
        "node": {"enabled": True},
    }
