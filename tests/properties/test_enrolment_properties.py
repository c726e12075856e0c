"""Whatever arrives where certificates are asked for: refused with a declared error, and nothing else happens."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vedette_broker import ca, ca_enrolment, ca_tokens
from vedette_broker.ca_store import load_issuer, read_index
from vedette_core.crypto.certificate_chain import der
from vedette_core.crypto.certificates import CertificateRole, Purpose
from vedette_core.crypto.enrolment_token import EnrolmentToken, parse_token
from vedette_core.crypto.requests import make_request, read_request
from vedette_core.crypto.revocation import Revocation, Revocations, make_list, read_list
from vedette_core.runtime.bundle_requests import Anchors, enrolment_request, install, read_ticket, renewal_request
from vedette_core.runtime.identity import Bundle, NodeIdentity, load_authorities, load_node
from vedette_schemas import codec
from vedette_schemas.enrolment import CertificateReply
from vedette_schemas.errors import PeerError, RefusedError, TransientError

NOW = 1_800_000_000.0
ID = "0123456789abcdef0123456789abcdef"


class Office:
    """An authority, an invitation with its request and answer, a node that could renew, and a list."""

    def __init__(self, base: Path) -> None:
        self.directory = base / "ca"
        ca.init(self.directory, "lab", now=NOW)
        ca.issue(self.directory, "aggregator", CertificateRole.AGGREGATOR, now=NOW)
        self.node: NodeIdentity = load_node(ca.issue(self.directory, "gw-01", CertificateRole.DEVICE, now=NOW), NOW)
        self.renewal = renewal_request(self.node)
        self.made = ca_tokens.make_token(self.directory, now=NOW)
        self.request = enrolment_request(base / "node", self.made.token)
        self.reply = codec.pack(ca_enrolment.enrol(self.directory, self.request, now=NOW))
        self.bundle = base / "node"
        self.ticket = self.made.ticket.read_bytes()
        self.anchors: Anchors = read_ticket(self.ticket, self.made.token)[0]
        self.root, self.intermediates = load_authorities(Bundle(self.node.bundle.directory))
        issuer, _ = load_issuer(self.directory, NOW)
        self.list = make_list(issuer, 7, [Revocation(5 + i, NOW) for i in range(3)], now=NOW)


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Office:
    return Office(tmp_path_factory.mktemp("office"))


def damaged(draw: st.DataObject, whole: bytes) -> bytes:
    """Some bytes changed, cut out, doubled or put in."""
    found = bytearray(whole)
    for _ in range(draw.draw(st.integers(1, 4))):
        place, kind = draw.draw(st.integers(0, max(0, len(found) - 1))), draw.draw(st.integers(0, 3))
        if kind == 0 and found:
            found[place] = draw.draw(st.integers(0, 255))
        elif kind == 1:
            del found[place : place + draw.draw(st.integers(1, 40))]
        elif kind == 2:
            found[place:place] = found[place : place + draw.draw(st.integers(1, 40))]
        else:
            found[place:place] = draw.draw(st.binary(max_size=40))
    return bytes(found)


SUPPRESSED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
MANY = settings(max_examples=200, suppress_health_check=SUPPRESSED)
SOME = settings(max_examples=80, suppress_health_check=SUPPRESSED)


@MANY
@given(data=st.data())
def test_a_damaged_list_is_refused_and_changes_nothing(office: Office, data: st.DataObject) -> None:
    known = Revocations(office.root, office.intermediates)
    assert known.take(office.list)
    wrong = damaged(data, office.list)
    if wrong == office.list:
        assert not known.take(wrong), "the very list that is known is no news"
    else:
        with pytest.raises(PeerError) as caught:
            known.take(wrong)
        assert caught.value.reason in {"list", "signature", "limit", "old-list"}
    assert known.newest is not None
    assert known.newest.der == office.list


@MANY
@given(data=st.data())
def test_what_is_damaged_behind_a_list_brings_no_authority(office: Office, data: st.DataObject) -> None:
    known = Revocations(office.root, office.intermediates)
    whole = office.list + b"".join(map(der, office.intermediates))
    wrong, refused = damaged(data, whole), ""
    try:
        known.take(wrong)
    except PeerError as fault:
        refused = fault.reason
    assert refused in {"", "list", "signature", "limit", "chain"}
    assert (known.newest is None) == bool(refused)
    assert refused or wrong.startswith(office.list)
    assert known.intermediates == office.intermediates


@MANY
@given(data=st.binary(max_size=400))
def test_bytes_that_are_no_list(office: Office, data: bytes) -> None:
    for each in (data, b"-----BEGIN X509 CRL-----\n" + data, office.list[:20] + data):
        with pytest.raises(PeerError):
            read_list(each, office.root, office.intermediates)


@MANY
@given(data=st.data())
def test_a_damaged_pkcs10_request_is_refused(office: Office, data: st.DataObject) -> None:
    whole = make_request(office.made.token.signing_key, ID)
    assert read_request(whole, Purpose.SIGNING, ID) == office.made.token.signing_key.public_key()
    wrong = damaged(data, whole)
    if wrong == whole:
        return
    with pytest.raises(PeerError) as caught:
        read_request(wrong, Purpose.SIGNING, ID)
    assert caught.value.reason in {"request", "signature", "limit"}


@MANY
@given(data=st.binary(max_size=1100))
def test_bytes_that_are_no_pkcs10_request(data: bytes) -> None:
    for purpose in (Purpose.SIGNING, Purpose.TLS_CLIENT):
        with pytest.raises(PeerError):
            read_request(data, purpose, ID)


@MANY
@given(
    text=st.one_of(st.text(max_size=80), st.text(alphabet="abcdefghijklmnopqrstuvwxyz234567", min_size=52, max_size=52))
)
def test_a_token_is_read_as_it_was_written_or_not_at_all(text: str) -> None:
    try:
        token = parse_token(text)
    except PeerError:
        return
    assert token.text == text.strip().lower()


@given(secret=st.binary(min_size=16, max_size=16), pin=st.binary(min_size=16, max_size=16))
def test_every_token_survives_being_carried_and_gives_its_keys(secret: bytes, pin: bytes) -> None:
    token = EnrolmentToken(secret, pin)
    again = parse_token(token.text)
    assert again == token
    assert again.id == token.id
    assert again.tls_key.private_numbers() == token.tls_key.private_numbers()
    assert again.signer.public_key == token.signer.public_key


@SOME
@given(data=st.data())
def test_a_damaged_request_issues_nothing(office: Office, data: st.DataObject) -> None:
    before = read_index(office.directory)
    for whole, act in ((office.request, ca_enrolment.enrol), (office.renewal, ca_enrolment.renew)):
        wrong = damaged(data, whole)
        if wrong == whole:
            continue
        with pytest.raises((PeerError, RefusedError)):
            act(office.directory, wrong, now=NOW)
    after = read_index(office.directory)
    assert (after.issued, after.tokens) == (before.issued, before.tokens)


@SOME
@given(data=st.binary(max_size=600))
def test_bytes_that_are_no_request(office: Office, data: bytes) -> None:
    for act in (ca_enrolment.enrol, ca_enrolment.renew):
        with pytest.raises((PeerError, RefusedError)):
            act(office.directory, data, now=NOW)
    with pytest.raises(PeerError):
        ca_enrolment.request_id(data)


@SOME
@given(data=st.data())
def test_a_damaged_answer_installs_nothing(office: Office, data: st.DataObject) -> None:
    wrong = damaged(data, office.reply)
    try:
        reply = codec.unpack(CertificateReply, wrong)
    except PeerError:
        return
    whole = codec.unpack(CertificateReply, office.reply)
    # Which request it answers is checked before, and what is said in words is nothing that is installed.
    if (reply.outcome, reply.holder, reply.tls, reply.signing, reply.intermediate, reply.aggregator,
            reply.aggregator_intermediate) == (whole.outcome, whole.holder, whole.tls, whole.signing,
            whole.intermediate, whole.aggregator, whole.aggregator_intermediate):  # fmt: skip
        return
    with pytest.raises((PeerError, RefusedError, TransientError)):
        install(office.bundle, reply, office.anchors, now=NOW)
    assert not Bundle(office.bundle).tls_certificate.exists()


@SOME
@given(data=st.data())
def test_a_damaged_ticket_is_refused(office: Office, data: st.DataObject) -> None:
    wrong = damaged(data, office.ticket)
    try:
        anchors, leaf = read_ticket(wrong, office.made.token)
    except PeerError:
        return
    assert anchors.root == office.anchors.root
    assert leaf.public_key() == office.made.token.tls_key.public_key()
