"""Certificates for nodes that keep their keys to themselves: first ones for a token, newer ones for current ones.

Whatever a request says about names is ignored: the id comes from the token or is made here, the role from the token.
A request is bound to its two keys: sent again it gets the same answer, so that a lost answer costs nothing, and with
other keys a token is used up and a certificate superseded.
"""

from __future__ import annotations

import dataclasses
import logging
import secrets
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from vedette_broker.allow_list import AllowList, Applicant
from vedette_broker.ca import record
from vedette_broker.ca_store import (
    Index,
    Issued,
    Token,
    load_chain,
    load_issuer,
    locked,
    pem,
    read_index,
    write_index,
    writing,
)
from vedette_core.attestation.keys import RawKeys
from vedette_core.crypto.certificate_chain import der, load_certificates
from vedette_core.crypto.certificates import CertificateRole, Issuer, Purpose, make_leaf
from vedette_core.crypto.requests import read_request
from vedette_core.crypto.signing import KeyRing
from vedette_core.runtime.durable import replace_file
from vedette_core.runtime.identity import read_file
from vedette_schemas import codec
from vedette_schemas.enrolment import ENROL_TYPE, RENEW_TYPE, CertificateReply, EnrolRequest, RenewRequest
from vedette_schemas.envelope import Envelope, unseal
from vedette_schemas.errors import ConfigError, PeerError, RefusedError, TransientError

log = logging.getLogger("vedette.ca")

EARLIER_MAX: Final = 8
"""Leaves that one node replaced and that have not ended: one that asks for ever more would fill the revocation list."""
REASON_CHARACTERS_MAX: Final = 400

_PublicKey = EllipticCurvePublicKey | Ed25519PublicKey


@dataclass(frozen=True, slots=True)
class _Keys:
    tls: _PublicKey
    signing: _PublicKey

    @property
    def digest(self) -> str:
        parts = (k.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for k in (self.tls, self.signing))
        return sha256(b"".join(parts)).hexdigest()


def enrol(directory: Path, sealed: bytes, *, now: float, allow: AllowList | None = None) -> CertificateReply:
    """Give a new node its first certificates.

    Args:
        directory: the certificate authority's.
        sealed: a sealed `EnrolRequest`, as it came over the bootstrap topic or in a file.
        now: epoch seconds.
        allow: who may enrol.

    Raises:
        PeerError: malformed, not sealed with the token's key, or a key without proof.
        RefusedError: the token is unknown, over, used or for other hardware; or the allow-list says no.
        ConfigError: no certificate authority there, or it cannot be written.
        TransientError: the allow-list's program did not answer.
    """
    claimed = codec.unpack(Envelope, sealed).sender
    with writing(directory), locked(directory):
        index = read_index(directory)
        token = index.tokens.get(claimed)
        if token is None or token.not_after <= now:
            raise RefusedError(
                f"token {claimed}: found none of that name in force, expected one of `vedette ca token`",
                rule="token-unknown",
            )
        known = RawKeys({token.id: (bytes.fromhex(token.key),)})
        request, _ = unseal(EnrolRequest, sealed, ENROL_TYPE, known, sender=token.id)
        if request.token != token.id:
            raise PeerError(f"request: found token {request.token!r}, expected {token.id!r}", reason="token")
        keys = _keys(request)
        if token.used_for:
            return _again(directory, index, token, keys, request)
        if token.serial and token.serial != request.serial:
            raise RefusedError(
                f"token {token.id}: found hardware {request.serial!r}, expected {token.serial!r}", rule="token-serial"
            )
        holder = token.holder or _new_id(index, token.role)
        if allow is not None:
            allow.check(Applicant(holder, token.role, request.serial, token.id, index.site))
        line, leaves = _issue(directory, index, holder, CertificateRole(token.role), keys, now)
        index.tokens[token.id] = dataclasses.replace(token, used_for=keys.digest, used_by=holder)
        _record(directory, index, dataclasses.replace(line, serial=request.serial), leaves, now)
        log.info("enrolled %s as %s with token %s", holder, token.role, token.id)
        return _reply(directory, request.id, holder, leaves)


def renew(directory: Path, sealed: bytes, *, device: str | None = None, now: float) -> CertificateReply:
    """Give a node newer certificates.

    Args:
        directory: the certificate authority's.
        sealed: a sealed `RenewRequest`.
        device: the only node that may ask, where the topic says who it is.
        now: epoch seconds.

    Raises:
        PeerError: malformed, not sealed by the current signing key or for another one (``key``), or its certificate
            has ended (``expired``), is revoked (``revoked``) or not ours.
        RefusedError: the node itself replaced the certificate already: two hold the same keys (``superseded``); or its
            id is not known any more.
        ConfigError: no certificate authority there, or it cannot be written.
        TransientError: the node was renewed too often of late.
    """
    envelope = codec.unpack(Envelope, sealed)
    with writing(directory), locked(directory):
        index = read_index(directory)
        root, authorities = load_chain(directory)
        # Its certificate is read before the signature holds, but only to learn whose key must have made it.
        certificate = codec.unpack(RenewRequest, envelope.body).certificate
        ring = KeyRing(root, index.site, authorities)
        identity = ring.learn(certificate, now, sender=device if device is not None else envelope.sender)
        request, sender = unseal(RenewRequest, sealed, RENEW_TYPE, ring, sender=identity.id)
        if request.device != sender:
            raise PeerError(f"request of {sender}: found device {request.device!r} in it", reason="sender")
        serial = f"{identity.serial:x}"
        if serial in index.revoked:
            raise PeerError(f"certificate of {sender}: found it revoked, expected one in force", reason="revoked")
        keys, line = _keys(request), index.issued.get(sender)
        if keys.signing != identity.public_key:
            # Else a stolen signing key could be exchanged for one that the node does not have.
            raise PeerError(f"request of {sender}: found another signing key, expected the current one", reason="key")
        if line is None:
            raise RefusedError(f"{sender}: found no line of it in the index, expected one", rule="unknown")
        if line.request == keys.digest:
            return _reply(directory, request.id, sender, _answered(directory, line))
        if serial not in line.renewable:
            raise RefusedError(
                f"{sender}: found a certificate that was renewed already, expected the newest: if the node did not "
                f"renew twice, somebody else has its keys: `vedette ca revoke {sender}`",
                rule="superseded",
            )
        if len([e for e in line.earlier if e.not_after > now and not e.replaced_here]) >= EARLIER_MAX:
            raise TransientError(f"{sender}: found {EARLIER_MAX} replaced certificates in force; try again in a day")
        fresh, leaves = _issue(directory, index, sender, identity.role, keys, now)
        _record(directory, index, dataclasses.replace(fresh, serial=line.serial), leaves, now)
        log.info("renewed %s", sender)
        return _reply(directory, request.id, sender, leaves)


def refusal(request: str, fault: Exception) -> CertificateReply:
    """The answer to a request that raised: refused for good, or to be tried again later."""
    later = isinstance(fault, (TransientError, ConfigError))
    # What the operator of the authority must mend is not the node's business, and may name its files.
    reason = "the authority cannot answer now" if isinstance(fault, ConfigError) else str(fault)
    return CertificateReply(
        request=request, outcome="later" if later else "refused", reason=reason[:REASON_CHARACTERS_MAX]
    )


def request_id(sealed: bytes) -> str:
    """The id that a request claims, so that it can be answered; nothing else is believed of it.

    Raises:
        PeerError: it is no request.
    """
    envelope = codec.unpack(Envelope, sealed)
    cls: type[EnrolRequest] | type[RenewRequest] = EnrolRequest if envelope.type == ENROL_TYPE else RenewRequest
    return codec.unpack(cls, envelope.body).id


def _again(directory: Path, index: Index, token: Token, keys: _Keys, request: EnrolRequest) -> CertificateReply:
    """The answer to a request whose answer was lost."""
    line = index.issued.get(token.used_by)
    if token.used_for != keys.digest or line is None or line.request != keys.digest:
        raise RefusedError(
            f"token {token.id}: found it used, by {token.used_by} with other keys, expected a fresh one; if that was "
            f"not this node: `vedette ca revoke {token.used_by}`",
            rule="token-used",
        )
    if any(serial in index.revoked for serial in line.serials):
        raise RefusedError(f"{line.id}: found its certificates revoked", rule="revoked")
    return _reply(directory, request.id, line.id, _answered(directory, line))


def _keys(request: EnrolRequest | RenewRequest) -> _Keys:
    return _Keys(
        read_request(request.tls, Purpose.TLS_CLIENT, request.id),
        read_request(request.signing, Purpose.SIGNING, request.id),
    )


def _new_id(index: Index, role: str) -> str:
    while True:
        holder = f"{role}-{secrets.token_hex(4)}"
        if holder not in index.issued:
            return holder


def _issue(
    directory: Path, index: Index, holder: str, role: CertificateRole, keys: _Keys, now: float
) -> tuple[Issued, tuple[x509.Certificate, ...]]:
    issuer, _ = load_issuer(directory, now)
    leaves = tuple(
        _leaf(issuer, key, holder, role, index.site, purpose, now)
        for key, purpose in ((keys.tls, Purpose.TLS_CLIENT), (keys.signing, Purpose.SIGNING))
    )
    line = Issued(
        id=holder,
        role=role.value,
        serials=tuple(f"{leaf.serial_number:x}" for leaf in leaves),
        not_before=now,
        not_after=min(leaf.not_valid_after_utc.timestamp() for leaf in leaves),
        request=keys.digest,
    )
    return line, (*leaves, issuer.certificate)


def _leaf(
    issuer: Issuer, key: _PublicKey, holder: str, role: CertificateRole, site: str, purpose: Purpose, now: float
) -> x509.Certificate:
    return make_leaf(
        issuer,
        key,
        holder=holder,
        role=role,
        site=site,
        purpose=purpose,
        now=now,
        serial=x509.random_serial_number(),
    )


def _record(
    directory: Path, index: Index, line: Issued, certificates: tuple[x509.Certificate, ...], now: float
) -> None:
    """Write down what was issued: the answer first, then the line that says for which request it is."""
    old = index.issued.get(line.id)
    answers = directory / "answers"
    answers.mkdir(mode=0o700, exist_ok=True)
    replace_file(answers / f"{line.request}.pem", pem(*certificates), 0o644)
    record(index, line, now)
    write_index(directory, index)
    if line.role == CertificateRole.AGGREGATOR.value:
        replace_file(directory / "aggregator.crt", pem(*certificates[1:]), 0o644)
    if old is not None and old.request not in ("", line.request):
        (answers / f"{old.request}.pem").unlink(missing_ok=True)


def _answered(directory: Path, line: Issued) -> tuple[x509.Certificate, ...]:
    return load_certificates(read_file(directory / "answers" / f"{line.request}.pem"), "answer")


def _reply(directory: Path, request: str, holder: str, certificates: tuple[x509.Certificate, ...]) -> CertificateReply:
    tls, signing, intermediate = certificates
    aggregator: tuple[x509.Certificate, ...] = ()
    path = directory / "aggregator.crt"
    if path.exists():
        aggregator = load_certificates(read_file(path), path.name)
    return CertificateReply(
        request=request,
        outcome="issued",
        holder=holder,
        tls=der(tls),
        signing=der(signing),
        intermediate=der(intermediate),
        aggregator=der(aggregator[0]) if aggregator else b"",
        aggregator_intermediate=der(aggregator[1]) if len(aggregator) > 1 else b"",
    )
