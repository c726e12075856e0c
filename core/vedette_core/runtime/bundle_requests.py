"""A node's own side of its certificates: keys that never leave it, requests for them, and answers that are checked.

Keys are staged before the request leaves, with the request itself: a node that loses its power, or an answer, asks with
the same bytes again, and gets the same answer.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from vedette_core.crypto.certificate_chain import damaged_is_refused, load_certificates, verify_chain
from vedette_core.crypto.certificates import CertificateRole, Identity, Purpose
from vedette_core.crypto.enrolment_token import EnrolmentToken
from vedette_core.crypto.requests import make_request
from vedette_core.runtime.bundle_swap import BUNDLE_FILES, stage_of, swap_in
from vedette_core.runtime.durable import remove_durable, write_durable
from vedette_core.runtime.identity import (
    Bundle,
    NodeIdentity,
    load_authorities,
    read_file,
    read_private_key,
    read_secret,
    read_signing_key,
)
from vedette_schemas.enrolment import ENROL_TYPE, RENEW_TYPE, CertificateReply, EnrolRequest, RenewRequest
from vedette_schemas.envelope import seal
from vedette_schemas.errors import ConfigError, PeerError, RefusedError, TransientError

REQUEST_FILE: Final = "request"
AUTHORITIES_MAX: Final = 2
"""Online authorities in a bundle: the one that issued it, and the one before while it is being replaced."""

_Key = EllipticCurvePrivateKey | Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class Anchors:
    """What a node knows of its site before it has certificates.

    Attributes:
        root: the site's root certificate.
        intermediates: online authorities.
    """

    root: x509.Certificate
    intermediates: tuple[x509.Certificate, ...]


def read_ticket(data: bytes, token: EnrolmentToken) -> tuple[Anchors, x509.Certificate]:
    """A token's ticket: the anchors that the token itself pins, and the bootstrap certificate.

    Args:
        data: the ticket, PEM.
        token: the token that it belongs to.

    Raises:
        PeerError: another site's, another token's, or damaged.
    """
    found = load_certificates(data, "ticket")
    if len(found) != 3:
        raise PeerError(f"ticket: found {len(found)} certificates, expected 3", reason="certificate")
    leaf, intermediate, root = found
    token.check_root(root)
    with damaged_is_refused("ticket"):
        shown = leaf.public_key()
    if shown != token.tls_key.public_key():
        raise PeerError(f"ticket: found that of another token, expected that of {token.id}", reason="token")
    return Anchors(root, (intermediate,)), leaf


def enrolment_request(directory: Path, token: EnrolmentToken, serial: str = "") -> bytes:
    """Make keys for a new bundle and ask for its certificates; or say the same as before.

    Args:
        directory: the bundle's, new or empty but for an earlier attempt.
        token: the invitation.
        serial: hardware serial number, if the node knows one.

    Returns:
        A sealed `EnrolRequest`.

    Raises:
        ConfigError: there is a bundle already, or the folder cannot be written.
        TransientError: the disk is full.
    """
    if Bundle(directory).tls_certificate.exists():
        raise ConfigError(f"{directory}: found a bundle there, expected a new folder; remove it if it is of no use")
    stage = stage_of(directory)
    before = stage / f"{REQUEST_FILE}-{token.id}"
    if before.exists():
        return read_secret(before)
    for path in stage.iterdir():
        remove_durable(path)
    tls, signing = generate_private_key(SECP256R1()), Ed25519PrivateKey.generate()
    request_id = secrets.token_hex(16)
    body = EnrolRequest(
        id=request_id,
        token=token.id,
        tls=make_request(tls, request_id),
        signing=make_request(signing, request_id),
        serial=serial,
    )
    sealed = seal(body, ENROL_TYPE, token.id, token.signer)
    _write_key(stage / "tls.key", tls)
    _write_key(stage / "signing.key", signing)
    write_durable(before, sealed)
    return sealed


def renewal_request(node: NodeIdentity) -> bytes:
    """Make a new TLS key and ask for certificates of it and of the signing key; or say the same as before.

    The signing key stays: rosters and outboxes hold signatures of it, and its new certificate makes them no worse.

    Returns:
        A sealed `RenewRequest`.

    Raises:
        ConfigError: the bundle's folder cannot be written.
        TransientError: the disk is full.
    """
    directory = node.bundle.directory
    stage = stage_of(directory)
    before = stage / f"{REQUEST_FILE}-{min(node.serials):x}"
    if before.exists():
        return read_secret(before)
    for path in stage.iterdir():
        remove_durable(path)
    tls, signing = generate_private_key(SECP256R1()), read_signing_key(node.bundle.signing_key)
    request_id = secrets.token_hex(16)
    body = RenewRequest(
        id=request_id,
        device=node.id,
        certificate=node.certificate,
        tls=make_request(tls, request_id),
        signing=make_request(signing, request_id),
    )
    sealed = seal(body, RENEW_TYPE, node.id, node.signer)
    _write_key(stage / "tls.key", tls)
    write_durable(before, sealed)
    return sealed


def install(
    directory: Path, reply: CertificateReply, anchors: Anchors, *, now: float, expected: NodeIdentity | None = None
) -> Identity:
    """Check an answer and put it into the bundle's place, with the staged keys.

    Args:
        directory: the bundle's.
        reply: the authority's answer.
        anchors: what the node knows of its site.
        now: epoch seconds.
        expected: who the node is, if it is somebody already.

    Returns:
        Who the node is now.

    Raises:
        PeerError: a certificate that does not hold, is not for the staged keys, or is somebody else's.
        RefusedError: the authority refused.
        TransientError: the authority asks to try again later, or the disk is full.
        ConfigError: the folder cannot be written.
    """
    if reply.outcome == "refused":
        raise RefusedError(f"the authority refused: {reply.reason}", rule="enrolment")
    if reply.outcome == "later":
        raise TransientError(f"the authority asks to try again later: {reply.reason}")
    stage = stage_of(directory)
    (intermediate,) = load_certificates(reply.intermediate, "intermediate")
    # The issuer that came along must be the one, although another that is known might do: both go into the bundle.
    authorities = list(dict.fromkeys((intermediate, *anchors.intermediates)))[:AUTHORITIES_MAX]
    files, found = {}, []
    for name, data, purpose in (
        ("tls", reply.tls, Purpose.TLS_CLIENT),
        ("signing", reply.signing, Purpose.SIGNING),
    ):
        (leaf,) = load_certificates(data, f"{name} certificate")
        identity = verify_chain(leaf, [intermediate], anchors.root, now, purpose=purpose)
        path = stage / f"{name}.key" if (stage / f"{name}.key").exists() else directory / f"{name}.key"
        if read_private_key(path).public_key() != identity.public_key:
            raise PeerError(f"{name} certificate of {identity.id}: found one for another key", reason="certificate")
        files[f"{name}.crt"] = _pem(leaf, intermediate)
        found.append(identity)
    tls, signing = found
    if (tls.id, tls.role, tls.site) != (signing.id, signing.role, signing.site) or tls.id != reply.holder:
        raise PeerError(f"answer: found certificates of {tls.id!r} and {signing.id!r}", reason="identity")
    if expected is not None and (tls.id, tls.role, tls.site) != (expected.id, expected.role, expected.site):
        raise PeerError(f"answer: found certificates of {tls.id!r}, expected {expected.id!r}", reason="identity")
    files["ca.crt"] = _pem(anchors.root, *authorities)
    if reply.aggregator:
        files["aggregator.crt"] = _aggregator(reply, anchors.root, now, tls.site)
    swap_in(directory, {name: files[name] for name in BUNDLE_FILES if name in files})
    return tls


def anchors_of(bundle: Bundle) -> Anchors:
    """What a bundle knows of its site.

    Raises:
        ConfigError: ``ca.crt`` is missing or damaged.
    """
    return Anchors(*load_authorities(bundle))


def _aggregator(reply: CertificateReply, root: x509.Certificate, now: float, site: str) -> bytes:
    (leaf,) = load_certificates(reply.aggregator, "the aggregator's certificate")
    (issuer,) = load_certificates(reply.aggregator_intermediate, "the aggregator's issuer")
    who = verify_chain(leaf, [issuer], root, now, purpose=Purpose.SIGNING, site=site)
    if who.role is not CertificateRole.AGGREGATOR:
        raise PeerError(f"answer: found a certificate of {who.id} as the aggregator's", reason="role")
    return _pem(leaf, issuer)


def _write_key(path: Path, key: _Key) -> None:
    write_durable(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(c.public_bytes(Encoding.PEM) for c in certificates)


def bundle_changed(bundle: Bundle, node: NodeIdentity) -> bool:
    """Tell whether somebody else renewed a bundle: its TLS leaf is another one than the node has loaded.

    Raises:
        ConfigError: the certificate is missing or damaged.
    """
    leaf, *_ = load_certificates(read_file(bundle.tls_certificate), bundle.tls_certificate.name)
    return leaf.serial_number not in node.serials
