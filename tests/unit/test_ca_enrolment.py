"""Tokens and enrolment at the authority, and the node's side of them."""

from __future__ import annotations

import json
import secrets
import stat
from pathlib import Path
from typing import Any

import pytest
from ca_parts import DAY_S, NOW, an_authority, anchors_for, enrolled, invited, request_of, rule_of
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vedette_broker import ca, ca_enrolment, ca_tokens
from vedette_broker.allow_list import AllowList
from vedette_broker.ca_store import pem, read_index
from vedette_core.crypto.certificate_chain import der, load_certificates
from vedette_core.crypto.certificates import CertificateRole
from vedette_core.crypto.enrolment_token import EnrolmentToken, parse_token
from vedette_core.crypto.requests import make_request
from vedette_core.runtime.bundle_requests import (
    enrolment_request,
    install,
    read_ticket,
)
from vedette_core.runtime.identity import Bundle, key_ring, learn_aggregator, load_node
from vedette_schemas.enrolment import CertificateReply
from vedette_schemas.errors import ConfigError, PeerError, RefusedError, TransientError


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    return an_authority(tmp_path)


# -- tokens


def test_a_token_is_one_line_and_is_stored_nowhere(authority: Path) -> None:
    made = invited(authority)
    assert parse_token(f"  {made.token.text.upper()}\n") == made.token
    everything = b"".join(p.read_bytes() for p in authority.rglob("*") if p.is_file())
    assert made.token.text.encode() not in everything
    assert made.token.secret.hex().encode() not in everything
    assert made.token.text not in repr(made.token)
    assert made.token.secret.hex() not in repr(made)


def test_every_token_is_another_one(authority: Path) -> None:
    tokens = [invited(authority).token for _ in range(20)]
    assert len({t.text for t in tokens}) == len({t.id for t in tokens}) == 20
    assert {t.pin for t in tokens} == {tokens[0].pin}


@pytest.mark.parametrize("text", ["", "a", "a" * 51, "a" * 53, "1" * 52, "ä" * 52, "b" * 52, "a" * 10_000])
def test_what_is_no_token_is_told_without_repeating_it(text: str) -> None:
    with pytest.raises(PeerError) as caught:
        parse_token(text)
    assert caught.value.reason == "token"
    assert len(text) < 2 or text not in str(caught.value)


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        ({"holder": "broker"}, RefusedError),
        ({"holder": "enrol-1"}, RefusedError),
        ({"holder": "Gw/1"}, ConfigError),
        ({"role": CertificateRole.BROKER}, RefusedError),
        ({"role": CertificateRole.BOOTSTRAP}, RefusedError),
        ({"role": CertificateRole.AGGREGATOR, "holder": "gw-1"}, RefusedError),
        ({"ttl_s": 86_401.0}, ConfigError),
        ({"ttl_s": 1.0}, ConfigError),
    ],
)
def test_what_nobody_is_invited_as(authority: Path, wanted: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        invited(authority, **wanted)
    assert ca_tokens.list_tokens(authority, now=NOW) == ()


def test_there_are_so_many_tokens_and_those_that_ended_do_not_count(
    authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ca_tokens, "TOKENS_MAX", 2)
    first = invited(authority)
    invited(authority)
    with pytest.raises(RefusedError, match="open"):
        invited(authority)
    invited(authority, now=NOW + 2 * DAY_S)
    assert not first.ticket.exists(), "the ticket of a token that has ended is of no use"


# -- enrolment


def test_a_node_enrols_and_its_keys_never_leave_it(authority: Path, tmp_path: Path) -> None:
    node = enrolled(authority, tmp_path / "node")
    assert node.role is CertificateRole.DEVICE
    assert node.id.startswith("device-")
    learn_aggregator(key_ring(node.bundle, "lab"), node.bundle, NOW)
    for path in (tmp_path / "node").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == (0 if path.is_dir() or path.suffix == ".key" else 0o044)
    keys = [(tmp_path / "node" / name).read_bytes().split(b"\n")[1] for name in ("tls.key", "signing.key")]
    held = b"".join(p.read_bytes() for p in authority.rglob("*") if p.is_file())
    assert not any(key in held for key in keys)
    assert not (authority / "bundles" / node.id).exists()


def test_the_id_is_the_authority_s_to_give(authority: Path, tmp_path: Path) -> None:
    assert enrolled(authority, tmp_path / "a", holder="gw-07").id == "gw-07"
    helper = enrolled(authority, tmp_path / "b", holder="h-1", role=CertificateRole.COMMITTEE)
    assert (helper.id, helper.role) == ("h-1", CertificateRole.COMMITTEE)
    assert enrolled(authority, tmp_path / "c", role=CertificateRole.ANALYTICS).id == "analytics"


def test_an_aggregator_that_enrols_is_the_one_that_nodes_believe(authority: Path, tmp_path: Path) -> None:
    aggregator = enrolled(authority, tmp_path / "agg", role=CertificateRole.AGGREGATOR)
    node = enrolled(authority, tmp_path / "node")
    ring = key_ring(node.bundle, "lab")
    learn_aggregator(ring, node.bundle, NOW)
    ring.verify("aggregator", aggregator.signer.sign(b"x"), b"x")


def test_the_same_request_gets_the_same_answer_and_other_keys_none(authority: Path, tmp_path: Path) -> None:
    made = invited(authority)
    sealed = enrolment_request(tmp_path / "node", made.token)
    assert enrolment_request(tmp_path / "node", made.token) == sealed, "after a crash the same bytes are sent"
    first = ca_enrolment.enrol(authority, sealed, now=NOW)
    assert ca_enrolment.enrol(authority, sealed, now=NOW + 60) == first
    assert len(ca.list_issued(authority)) == 2
    assert rule_of(lambda: ca_enrolment.enrol(authority, request_of(made.token), now=NOW)) == "token-used"


def test_a_token_of_another_time_site_or_person_is_refused(authority: Path, tmp_path: Path) -> None:
    made = invited(authority, ttl_s=3600.0)
    assert rule_of(lambda: ca_enrolment.enrol(authority, request_of(made.token), now=NOW + 3601)) == "token-unknown"
    forged = EnrolmentToken(b"x" * 16, made.token.pin)
    assert rule_of(lambda: ca_enrolment.enrol(authority, request_of(forged), now=NOW)) == "token-unknown"
    signed = request_of(made.token, forged.signer)
    assert rule_of(lambda: ca_enrolment.enrol(authority, signed, now=NOW)) == "signature"
    other = request_of(made.token, token="enrol-0000")
    assert rule_of(lambda: ca_enrolment.enrol(authority, other, now=NOW)) == "token"
    ca.init(tmp_path / "other", "lab", now=NOW)
    elsewhere = invited(tmp_path / "other")
    with pytest.raises(PeerError, match="not those of the site"):
        read_ticket(elsewhere.ticket.read_bytes(), made.token)
    mine = invited(authority)
    with pytest.raises(PeerError, match="another token"):
        read_ticket(mine.ticket.read_bytes(), made.token)
    with pytest.raises(PeerError, match="expected 3"):
        read_ticket((authority / "online" / "ca.crt").read_bytes(), made.token)
    leaf, *chain = load_certificates(mine.ticket.read_bytes())
    curve = bytes.fromhex("2a8648ce3d030107")  # P-256, of the leaf's key
    place = der(leaf).index(curve) + len(curve)
    unknown = x509.load_der_x509_certificate(der(leaf)[: place - 1] + b"\x2f" + der(leaf)[place:])
    with pytest.raises(PeerError, match="cannot be read"):
        read_ticket(pem(unknown, *chain), mine.token)


def test_a_key_needs_its_proof(authority: Path) -> None:
    made, number = invited(authority), secrets.token_hex(16)
    whole = make_request(Ed25519PrivateKey.generate(), number)
    cases = {
        "another curve": {"tls": make_request(generate_private_key(SECP384R1()), number)},
        "the wrong kind": {"tls": whole},
        "both of one kind": {"signing": make_request(generate_private_key(SECP256R1()), number)},
        "another message's": {"signing": make_request(Ed25519PrivateKey.generate(), secrets.token_hex(16))},
        "nonsense": {"signing": b"nonsense"},
        "not signed by its key": {"signing": whole[:-1] + bytes([whole[-1] ^ 1])},
    }
    for what, changes in cases.items():
        sealed = request_of(made.token, id=number, **changes)
        found = rule_of(lambda sealed=sealed: ca_enrolment.enrol(authority, sealed, now=NOW))
        assert found in ("request", "signature"), what
    assert not read_index(authority).tokens[made.token.id].used_for, "a bad request does not use a token up"


def test_a_token_may_be_bound_to_hardware(authority: Path) -> None:
    made = invited(authority, serial="HW-1")
    for claimed in ("", "HW-2"):
        sealed = request_of(made.token, serial=claimed)
        assert rule_of(lambda sealed=sealed: ca_enrolment.enrol(authority, sealed, now=NOW)) == "token-serial"
    assert ca_enrolment.enrol(authority, request_of(made.token, serial="HW-1"), now=NOW).outcome == "issued"


def test_the_allow_list_has_the_last_word(authority: Path, tmp_path: Path) -> None:
    listed = tmp_path / "allowed"
    listed.write_text("# ours\ngw-01\nHW-9   # a spare one\n")
    allow = AllowList(listed)

    def enrol(holder: str, serial: str, allow: AllowList = allow) -> str:
        made = invited(authority, holder=holder)
        return ca_enrolment.enrol(authority, request_of(made.token, serial=serial), now=NOW, allow=allow).holder

    assert enrol("gw-01", "") == "gw-01"
    assert enrol("gw-02", "HW-9") == "gw-02"
    for serial in ("", "HW-8"):
        assert rule_of(lambda serial=serial: enrol("gw-03", serial)) == "not-allowed"
    asked = tmp_path / "asked.json"
    program = tmp_path / "may-enrol"
    program.write_text(f"#!/bin/sh\ncat > {asked}\ngrep -q gw-04 {asked}\n")
    program.chmod(0o700)
    assert enrol("gw-04", "HW-1", AllowList(program=program)) == "gw-04"
    said = json.loads(asked.read_text())
    assert (said["id"], said["serial"], said["role"], said["site"]) == ("gw-04", "HW-1", "device", "lab")
    assert rule_of(lambda: enrol("gw-05", "", AllowList(program=program))) == "not-allowed"
    with pytest.raises(ConfigError, match="cannot be run"):
        enrol("gw-06", "", AllowList(program=tmp_path / "missing"))
    with pytest.raises(ConfigError, match="allow-list"):
        enrol("gw-06", "", AllowList(file=tmp_path / "missing"))
    assert {line.id for line in ca.list_issued(authority)} == {"aggregator", "gw-01", "gw-02", "gw-04"}


def test_a_node_installs_only_certificates_of_its_own_keys_and_site(authority: Path, tmp_path: Path) -> None:
    made = invited(authority)
    reply = ca_enrolment.enrol(authority, enrolment_request(tmp_path / "node", made.token), now=NOW)
    theirs = ca_enrolment.enrol(authority, request_of(invited(authority).token), now=NOW)
    ca.init(tmp_path / "other", "lab", now=NOW)
    foreign = ca_enrolment.enrol(tmp_path / "other", request_of(invited(tmp_path / "other").token), now=NOW)
    cases: dict[str, CertificateReply] = {
        "other keys": theirs,
        "one other key": reply.model_copy(update={"signing": theirs.signing}),
        "a foreign authority": foreign,
        "another name": reply.model_copy(update={"holder": "gw-99"}),
        "purposes exchanged": reply.model_copy(update={"tls": reply.signing, "signing": reply.tls}),
        "a device as aggregator": reply.model_copy(update={"aggregator": theirs.signing}),
        "nonsense": reply.model_copy(update={"tls": b"nonsense"}),
        "another issuer along with it": reply.model_copy(update={"intermediate": foreign.intermediate}),
        "another issuer of the aggregator": reply.model_copy(update={"aggregator_intermediate": foreign.intermediate}),
        "no issuer of the aggregator": reply.model_copy(update={"aggregator_intermediate": b""}),
        "nothing": reply.model_copy(update={"intermediate": b""}),
    }
    for what, wrong in cases.items():
        with pytest.raises(PeerError):
            install(tmp_path / "node", wrong, anchors_for(made), now=NOW)
        assert not Bundle(tmp_path / "node").tls_certificate.exists(), what
    for outcome, error in (("refused", RefusedError), ("later", TransientError)):
        with pytest.raises(error):
            install(tmp_path / "node", CertificateReply(request="0" * 32, outcome=outcome), anchors_for(made), now=NOW)
    install(tmp_path / "node", reply, anchors_for(made), now=NOW)
    with pytest.raises(ConfigError, match="found a bundle there"):
        enrolment_request(tmp_path / "node", made.token)


def test_another_token_begins_anew(authority: Path, tmp_path: Path) -> None:
    first, second = invited(authority), invited(authority)
    one = enrolment_request(tmp_path / "node", first.token)
    two = enrolment_request(tmp_path / "node", second.token)
    ca_enrolment.enrol(authority, one, now=NOW)
    install(tmp_path / "node", ca_enrolment.enrol(authority, two, now=NOW), anchors_for(second), now=NOW)
    load_node(tmp_path / "node", NOW)
