"""An authority, invitations and nodes that enrol, for the tests of certificates."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from vedette_broker import ca, ca_authority, ca_enrolment, ca_tokens
from vedette_broker.ca_store import load_chain
from vedette_broker.ca_tokens import Invitation
from vedette_core.crypto.certificates import CertificateRole
from vedette_core.crypto.enrolment_token import EnrolmentToken
from vedette_core.crypto.requests import make_request
from vedette_core.runtime.bundle_requests import (
    Anchors,
    enrolment_request,
    install,
    read_ticket,
)
from vedette_core.runtime.identity import NodeIdentity, load_node
from vedette_schemas.enrolment import ENROL_TYPE, RENEW_TYPE, EnrolRequest, RenewRequest
from vedette_schemas.envelope import seal
from vedette_schemas.errors import PeerError, RefusedError

NOW = 1_800_000_000.0
DAY_S = 86_400.0
HALF_S = 3.5 * DAY_S


def an_authority(tmp_path: Path) -> Path:
    """A certificate authority with an aggregator."""
    ca.init(tmp_path / "ca", "lab", now=NOW)
    ca.issue(tmp_path / "ca", "aggregator", CertificateRole.AGGREGATOR, now=NOW)
    return tmp_path / "ca"


def invited(authority: Path, **wanted: Any) -> Invitation:
    return ca_tokens.make_token(authority, **{"now": NOW, **wanted})


def anchors_for(made: Invitation) -> Anchors:
    return read_ticket(made.ticket.read_bytes(), made.token)[0]


def enrolled(authority: Path, directory: Path, now: float = NOW, **wanted: Any) -> NodeIdentity:
    made = invited(authority, now=now, **wanted)
    sealed = enrolment_request(directory, made.token)
    reply = ca_enrolment.enrol(authority, sealed, now=now)
    install(directory, reply, anchors_for(made), now=now)
    return load_node(directory, now)


def request_of(token: EnrolmentToken, /, signer: Any = None, **changes: Any) -> bytes:
    number = secrets.token_hex(16)
    fields: dict[str, Any] = {
        "id": number,
        "token": token.id,
        "tls": make_request(generate_private_key(SECP256R1()), number),
        "signing": make_request(Ed25519PrivateKey.generate(), number),
    }
    return seal(EnrolRequest(**{**fields, **changes}), ENROL_TYPE, token.id, signer or token.signer)


def new_tls(number: str) -> bytes:
    return make_request(generate_private_key(SECP256R1()), number)


def signing_key(node: NodeIdentity) -> Ed25519PrivateKey:
    key = load_pem_private_key(node.bundle.signing_key.read_bytes(), password=None)
    assert isinstance(key, Ed25519PrivateKey)
    return key


def renewal_by(node: NodeIdentity, signer: Any = None, **changes: Any) -> bytes:
    number = secrets.token_hex(16)
    fields: dict[str, Any] = {
        "id": number,
        "device": node.id,
        "certificate": node.certificate,
        "tls": new_tls(number),
        "signing": make_request(signing_key(node), number),
    }
    return seal(RenewRequest(**{**fields, **changes}), RENEW_TYPE, node.id, signer or node.signer)


def replace_authority(authority: Path, now: float) -> list[x509.Certificate]:
    """Let the root sign another online authority, which issues from now on; returns the one before and the new one."""
    before = load_chain(authority)[1][0]
    ca_authority.renew(authority, now=now)
    return [before, load_chain(authority)[1][0]]


def rule_of(act: Callable[[], object]) -> str:
    with pytest.raises((PeerError, RefusedError)) as caught:
        act()
    return caught.value.rule if isinstance(caught.value, RefusedError) else caught.value.reason
