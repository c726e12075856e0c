"""What `fuzz.py` is aimed at where certificates are believed: certificates, requests, lists, tokens, answers.

A damaged one of them may only be accepted where nothing was damaged that counts: what comes out must be what the sound
one says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vedette_core.crypto.certificate_chain import der, load_certificates
from vedette_core.crypto.certificates import CertificateRole, Purpose
from vedette_core.crypto.requests import make_request, read_request
from vedette_core.crypto.revocation import read_list
from vedette_core.runtime.bundle_requests import enrolment_request, install, read_ticket, renewal_request
from vedette_core.runtime.identity import Bundle, key_ring, load_authorities, load_node
from vedette_schemas import codec
from vedette_schemas.enrolment import CertificateReply
from vedette_schemas.errors import PeerError, RefusedError, TransientError

if TYPE_CHECKING or __package__:
    from bench.fuzz_wire import Target
else:
    from fuzz_wire import Target

NOW_S: Final = 1_800_000_000.0
REQUEST_ID: Final = "0123456789abcdef0123456789abcdef"


@dataclass(frozen=True, slots=True)
class _Office:
    directory: Path
    node: Path
    invited: Path


def _office(folder: Path) -> _Office:
    from vedette_broker import ca

    directory = folder / "ca"
    ca.init(directory, "plant-1", now=NOW_S)
    ca.issue(directory, "aggregator", CertificateRole.AGGREGATOR, now=NOW_S)
    return _Office(directory, ca.issue(directory, "gw-01", CertificateRole.DEVICE, now=NOW_S), folder / "invited")


def certificate_target(folder: Path) -> Target:
    """A signing certificate, on its way into a key ring."""
    office = _office(folder)
    leaf, intermediate = load_certificates(Bundle(office.node).signing_certificate.read_bytes())
    sound = der(leaf)

    def run(data: bytes) -> bool:
        ring = key_ring(Bundle(office.node), "plant-1")
        who = ring.learn(data, NOW_S, intermediate=der(intermediate))
        # Around the certificates PEM may say anything.
        assert der(load_certificates(data)[0]) == sound, "a changed certificate held"
        return who.id == "gw-01"

    return Target((sound, Bundle(office.node).signing_certificate.read_bytes()), run)


def list_target(folder: Path) -> Target:
    """A revocation list, DER, PEM, and with its authority behind it."""
    from vedette_broker import ca_revocation
    from vedette_core.crypto.revocation import RevocationReason

    office = _office(folder)
    made = ca_revocation.revoke(office.directory, "gw-01", RevocationReason.KEY_COMPROMISE, now=NOW_S)
    root, intermediates = load_authorities(Bundle(office.node))

    def run(data: bytes) -> bool:
        assert read_list(data, root, intermediates).der == made.der, "a changed list held"
        return True

    return Target((made.der, made.pem, made.message), run)


def request_target(folder: Path) -> Target:
    """A PKCS #10 request."""
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    tls, signing = generate_private_key(SECP256R1()), Ed25519PrivateKey.generate()
    seeds = (make_request(signing, REQUEST_ID), make_request(tls, REQUEST_ID))

    def run(data: bytes) -> bool:
        try:
            return read_request(data, Purpose.SIGNING, REQUEST_ID) == signing.public_key()
        except PeerError:
            return read_request(data, Purpose.TLS_CLIENT, REQUEST_ID) == tls.public_key()

    return Target(seeds, run)


def token_target(folder: Path) -> Target:
    """A token as somebody types it."""
    from vedette_core.crypto.enrolment_token import EnrolmentToken, parse_token

    seeds = tuple(EnrolmentToken(bytes([i]) * 16, bytes(range(16))).text.encode() for i in range(3))

    def run(data: bytes) -> bool:
        text = data.decode("ascii", "replace")
        assert parse_token(text).text == text.strip().lower()
        return True

    return Target(seeds, run)


def enrolment_target(folder: Path) -> Target:
    """Sealed requests at the authority: with a token, and for a renewal."""
    from vedette_broker import ca_enrolment, ca_tokens
    from vedette_broker.ca_store import read_index

    office = _office(folder)
    made = ca_tokens.make_token(office.directory, now=NOW_S)
    sealed = enrolment_request(office.invited, made.token)
    renewal = renewal_request(load_node(office.node, NOW_S))
    ca_enrolment.enrol(office.directory, sealed, now=NOW_S)
    ca_enrolment.renew(office.directory, renewal, now=NOW_S)
    issued = read_index(office.directory).issued

    def run(data: bytes) -> bool:
        try:
            reply = ca_enrolment.enrol(office.directory, data, now=NOW_S)
        except (PeerError, RefusedError):
            reply = ca_enrolment.renew(office.directory, data, now=NOW_S)
        assert read_index(office.directory).issued == issued, "a damaged request issued something"
        return reply.outcome == "issued"

    return Target((sealed, renewal), run, (PeerError, RefusedError, TransientError))


def answer_target(folder: Path) -> Target:
    """The authority's answer, on its way into a bundle."""
    from vedette_broker import ca_enrolment, ca_tokens

    office = _office(folder)
    made = ca_tokens.make_token(office.directory, now=NOW_S)
    sealed = enrolment_request(office.invited, made.token)
    sound = ca_enrolment.enrol(office.directory, sealed, now=NOW_S)
    anchors, _ = read_ticket(made.ticket.read_bytes(), made.token)
    counts = ("holder", "tls", "signing", "intermediate")

    def run(data: bytes) -> bool:
        reply = codec.unpack(CertificateReply, data)
        if reply == sound:
            return True
        install(office.invited, reply, anchors, now=NOW_S)
        assert all(getattr(reply, name) == getattr(sound, name) for name in counts), "a changed answer was installed"
        return True

    return Target((codec.pack(sound),), run, (PeerError, RefusedError, TransientError))


CERTIFICATES: Final[dict[str, Callable[[Path], Target]]] = {
    "certificate": certificate_target,
    "revocations": list_target,
    "pkcs10": request_target,
    "token": token_target,
    "enrolment": enrolment_target,
    "certificate_answer": answer_target,
}
"""Name of a parser → how its target is made; the folder is for the authority's files."""
