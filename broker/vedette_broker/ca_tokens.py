"""Invitations: one-time tokens, and the bootstrap certificates that let their holders speak to the authority."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from vedette_broker.ca_store import Token, load_issuer, locked, pem, read_index, write_index, writing
from vedette_core.crypto.certificates import BOOTSTRAP_S, MANY, CertificateRole, Purpose, check_holder, make_leaf
from vedette_core.crypto.enrolment_token import SECRET_BYTES, EnrolmentToken
from vedette_core.runtime.durable import replace_file
from vedette_schemas.errors import ConfigError, PeerError, RefusedError

TOKENS_MAX: Final = 10_000
"""Open invitations: as many as a site has devices at most."""
TTL_MIN_S: Final = 60.0
UNINVITED: Final = frozenset({CertificateRole.BROKER, CertificateRole.BOOTSTRAP})
"""The broker's names are given by hand (`vedette ca issue broker --host`); a token's certificate comes with it."""


@dataclass(frozen=True, slots=True)
class Invitation:
    """A token that was made.

    Attributes:
        token: the secret; it is stored nowhere.
        ticket: file with the bootstrap certificate and its chain; nothing in it is secret.
        not_after: epoch seconds at which both end.
    """

    token: EnrolmentToken
    ticket: Path
    not_after: float


def make_token(
    directory: Path,
    *,
    now: float,
    role: CertificateRole = CertificateRole.DEVICE,
    holder: str = "",
    serial: str = "",
    ttl_s: float = BOOTSTRAP_S,
) -> Invitation:
    """Invite a node.

    Args:
        directory: the certificate authority's.
        now: epoch seconds.
        role: what the node will be.
        holder: the id that it will get; empty: the authority makes one. An id that has certificates already gets new
            ones: the way back for a node that lost its keys or was away for too long.
        serial: the only hardware that may use the token; empty: any.
        ttl_s: seconds until the token ends, 60 to 86,400.

    Raises:
        ConfigError: no certificate authority there, or an invalid id or time.
        RefusedError: the id is reserved, the role is not invited, or there are too many open tokens.
    """
    holder = holder or ("" if role in MANY else role.value)
    if role in UNINVITED:
        raise RefusedError(f"token: found role {role}, expected one that is invited", rule="role")
    if not TTL_MIN_S <= ttl_s <= BOOTSTRAP_S:
        raise ConfigError(f"token: found a life of {ttl_s:g} s, expected {TTL_MIN_S:g} to {BOOTSTRAP_S:g}")
    if holder:
        try:
            check_holder(holder, role)
        except PeerError as fault:
            raise (
                RefusedError(str(fault), rule="reserved-id") if fault.reason == "role" else ConfigError(str(fault))
            ) from fault
    with writing(directory), locked(directory):
        index = read_index(directory)
        index.forget_ended(now)
        if len(index.tokens) >= TOKENS_MAX:
            raise RefusedError(f"token: found {TOKENS_MAX} open ones, expected fewer; revoke some", rule="tokens")
        issuer, root = load_issuer(directory, now)
        token = EnrolmentToken.make(os.urandom(SECRET_BYTES), root)
        leaf = make_leaf(
            issuer,
            token.tls_key.public_key(),
            holder=token.id,
            role=CertificateRole.BOOTSTRAP,
            site=index.site,
            purpose=Purpose.TLS_CLIENT,
            now=now,
            serial=x509.random_serial_number(),
            seconds=ttl_s,
        )
        not_after = leaf.not_valid_after_utc.timestamp()
        index.tokens[token.id] = Token(
            token.id,
            token.digest,
            token.signing_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex(),
            not_after,
            role.value,
            holder,
            serial,
            f"{leaf.serial_number:x}",
        )
        tickets = directory / "tickets"
        tickets.mkdir(mode=0o700, exist_ok=True)
        for old in tickets.glob("*.pem"):
            if old.stem not in index.tokens:
                old.unlink()
        ticket = tickets / f"{token.id}.pem"
        write_index(directory, index)
        replace_file(ticket, pem(leaf, issuer.certificate, root), 0o644)
    return Invitation(token, ticket, not_after)


def list_tokens(directory: Path, *, now: float) -> tuple[Token, ...]:
    """Every token that has not ended, sorted by id.

    Raises:
        ConfigError: no certificate authority there, or unreadable.
    """
    index = read_index(directory)
    index.forget_ended(now)
    return tuple(index.tokens[key] for key in sorted(index.tokens))
