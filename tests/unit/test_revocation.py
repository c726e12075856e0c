"""Revocation lists: made, believed, refused; and who is no longer believed because of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from vedette_core.crypto import revocation
from vedette_core.crypto.certificate_chain import der
from vedette_core.crypto.certificates import CertificateRole, Issuer, Purpose, make_intermediate, make_leaf, make_root
from vedette_core.crypto.published_list import LIST_BYTES_MAX, join_der, join_pem
from vedette_core.crypto.revocation import (
    ENTRIES_MAX,
    LIST_DAYS,
    Revocation,
    RevocationReason,
    Revocations,
    make_list,
    read_list,
)
from vedette_core.crypto.signing import Ed25519Signer, KeyRing
from vedette_schemas.errors import PeerError, RefusedError

NOW = 1_800_000_000.0
DAY_S = 86_400.0


class Authority:
    """A site's root and online authority; each one made anew is somebody else's."""

    def __init__(self, site: str = "lab") -> None:
        self.root_key, online_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        self.root = make_root(self.root_key, site, now=NOW, serial=x509.random_serial_number())
        root = Issuer(self.root, self.root_key)
        online = make_intermediate(root, online_key.public_key(), site, now=NOW, serial=x509.random_serial_number())
        self.issuer, self.site = Issuer(online, online_key), site

    def list(self, number: int, *serials: int, **changes: Any) -> bytes:
        entries = [Revocation(serial, NOW, RevocationReason.KEY_COMPROMISE) for serial in serials]
        return make_list(self.issuer, number, entries, **{"now": NOW, **changes})

    def read(self, data: bytes) -> revocation.RevocationList:
        return read_list(data, self.root, [self.issuer.certificate])

    def ring(self) -> KeyRing:
        return KeyRing(self.root, self.site, [self.issuer.certificate])

    def revocations(self) -> Revocations:
        return Revocations(self.root, [self.issuer.certificate])

    def node(self, name: str = "dev-1") -> tuple[Ed25519PrivateKey, bytes, int]:
        key = Ed25519PrivateKey.generate()
        leaf = make_leaf(
            self.issuer,
            key.public_key(),
            holder=name,
            role=CertificateRole.DEVICE,
            site=self.site,
            purpose=Purpose.SIGNING,
            now=NOW,
            serial=x509.random_serial_number(),
        )
        return key, der(leaf), leaf.serial_number


@pytest.fixture(scope="module")
def site() -> Authority:
    return Authority()


def refused(act: Any, *arguments: Any) -> str:
    with pytest.raises(PeerError) as caught:
        act(*arguments)
    return caught.value.reason


def test_a_list_says_what_was_put_into_it(site: Authority) -> None:
    entries = [Revocation(7, NOW - 5, RevocationReason.SUPERSEDED), Revocation(2**158, NOW)]
    made = make_list(site.issuer, 3, entries, now=NOW)
    found = site.read(made)
    assert (found.number, found.issued_at) == (3, NOW - 300)
    assert found.next_update == NOW + LIST_DAYS * DAY_S
    assert list(found.entries.values()) == entries
    assert found.der == made
    assert site.read(found.pem) == found, "the same list in the form that brokers load"
    assert found.pem.startswith(b"-----BEGIN X509 CRL-----")


def test_an_empty_list_is_one(site: Authority) -> None:
    assert site.read(site.list(1)).entries == {}


@pytest.mark.parametrize("reason", RevocationReason)
def test_every_reason_survives(site: Authority, reason: RevocationReason) -> None:
    made = make_list(site.issuer, 1, [Revocation(5, NOW, reason)], now=NOW)
    assert site.read(made).entries[5].reason is reason


def test_a_full_list_fits_a_message_and_one_more_entry_is_refused(site: Authority) -> None:
    serials = [2**158 + i for i in range(ENTRIES_MAX)]
    made = site.list(2**62, *serials)
    assert len(made) <= LIST_BYTES_MAX
    assert len(site.read(made).entries) == ENTRIES_MAX
    with pytest.raises(RefusedError, match=str(ENTRIES_MAX)):
        site.list(1, *serials, 5)


def test_only_the_site_s_own_authority_makes_lists(site: Authority) -> None:
    other = Authority()
    assert refused(site.read, other.list(1)) == "signature"
    # Of the same names, under another root: the name alone does not make an authority.
    assert refused(read_list, site.list(1), other.root, [site.issuer.certificate]) == "signature"
    # A node's certificate signs no list, and neither does the root itself.
    assert refused(site.read, make_list(Issuer(site.root, site.root_key), 1, [], now=NOW)) == "signature"
    assert refused(read_list, site.list(1), site.root, []) == "signature"


def _built(site: Authority, *extensions: tuple[x509.ExtensionType, bool], entry: Any = None) -> bytes:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(site.issuer.certificate.subject)
        .last_update(datetime.fromtimestamp(NOW, UTC))
        .next_update(datetime.fromtimestamp(NOW, UTC) + timedelta(days=1))
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    if entry is not None:
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(site.issuer.key, hashes.SHA256()).public_bytes(Encoding.DER)


def test_a_list_of_another_shape_is_refused_although_the_authority_signed_it(site: Authority) -> None:
    number = (x509.CRLNumber(4), False)
    identifier = (x509.AuthorityKeyIdentifier.from_issuer_public_key(site.issuer.key.public_key()), False)
    assert site.read(_built(site, number, identifier)).number == 4
    delta = (x509.DeltaCRLIndicator(1), True)
    for extensions in ((number,), (identifier,), (number, identifier, delta), ((x509.CRLNumber(0), False), identifier)):
        assert refused(site.read, _built(site, *extensions)) == "list"
    plain = x509.RevokedCertificateBuilder().serial_number(9).revocation_date(datetime.fromtimestamp(NOW, UTC))
    for odd in (
        x509.CRLReason(x509.ReasonFlags.remove_from_crl),
        x509.InvalidityDate(datetime(2026, 1, 1, tzinfo=UTC)),
    ):
        entry = plain.add_extension(odd, critical=False).build()
        assert refused(site.read, _built(site, number, identifier, entry=entry)) == "list"


def test_what_is_too_large_is_not_looked_at(site: Authority) -> None:
    assert refused(site.read, b"\x30" * (LIST_BYTES_MAX + 1)) == "limit"
    assert refused(site.read, b"-----BEGIN X509 CRL-----" + b"A" * (LIST_BYTES_MAX * 2)) == "limit"


def test_numbers_only_rise(site: Authority) -> None:
    known, second = site.revocations(), site.list(2, 5)
    assert known.number == 0
    assert known.take(site.list(1))
    assert known.take(second)
    assert not known.take(second), "the same list again is no news"
    assert not known.take(site.read(second).pem)
    assert refused(known.take, site.list(1)) == "old-list"
    assert refused(known.take, site.list(2)) == "list", "two lists of one number"
    assert refused(known.take, b"nonsense") == "list"
    assert known.number == 2
    assert known.newest is not None
    assert set(known.newest.entries) == {5}, "what was refused changed nothing"
    assert known.take(site.list(9))


def test_an_overdue_list_is_told_and_a_missing_one_is_not(site: Authority) -> None:
    known = site.revocations()
    known.check_fresh(NOW + 100 * DAY_S)
    known.take(site.list(1))
    known.check_fresh(NOW + LIST_DAYS * DAY_S)
    with pytest.raises(RefusedError, match=r"1\.0 days overdue") as caught:
        known.check_fresh(NOW + (LIST_DAYS + 1) * DAY_S)
    assert caught.value.rule == "stale-revocations"


def test_who_is_revoked_is_neither_learnt_nor_believed_by_a_ring_and_its_forks(site: Authority) -> None:
    ring, (key, certificate, serial), (_, other, _) = site.ring(), site.node(), site.node("dev-2")
    fork = ring.fork()
    for each in (ring, fork):
        each.learn(certificate, NOW, sender="dev-1")
        each.learn(other, NOW, sender="dev-2")
        each.verify("dev-1", Ed25519Signer(key).sign(b"x"), b"x")
    assert ring.revoked() == frozenset()
    ring.revocations.take(site.list(1, serial))
    for each in (ring, fork, ring.fork()):
        assert refused(each.learn, certificate, NOW) == "revoked"
    for each in (ring, fork):
        assert refused(each.verify, "dev-1", Ed25519Signer(key).sign(b"x"), b"x") == "revoked"
        assert refused(each.verify, "dev-1", b"\0" * 64, b"x") == "signature", (
            "a forgery says nothing about who is revoked"
        )
        assert each.revoked() == {"dev-1"}
        each.learn(other, NOW)


def test_a_newer_certificate_of_the_same_node_is_believed(site: Authority) -> None:
    ring, (_, certificate, serial) = site.ring(), site.node()
    ring.learn(certificate, NOW)
    ring.revocations.take(site.list(1, serial))
    key, fresh, _ = site.node()
    ring.learn(fresh, NOW)
    ring.verify("dev-1", Ed25519Signer(key).sign(b"x"), b"x")
    assert ring.revoked() == frozenset()


def test_a_new_online_authority_counts_once_it_is_known(site: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    root = Issuer(site.root, site.root_key)
    online = make_intermediate(root, key.public_key(), "lab", now=NOW, serial=x509.random_serial_number())
    ring, made = site.ring(), make_list(Issuer(online, key), 5, [], now=NOW)
    assert refused(ring.revocations.take, made) == "signature"
    ring.learn_authorities([online])
    assert ring.revocations.take(made)
    assert ring.revocations.take(site.list(6)), "neither of the two begins later"


# -- lists that bring their authority along


def successor(site: Authority, now: float = NOW + DAY_S) -> Issuer:
    key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    made = make_intermediate(Issuer(site.root, site.root_key), key.public_key(), site.site, now=now, serial=serial)
    return Issuer(made, key)


def listed(issuer: Issuer, number: int, *along: x509.Certificate, serials: tuple[int, ...] = ()) -> bytes:
    entries = [Revocation(serial, NOW, RevocationReason.SUPERSEDED) for serial in serials]
    return join_der(make_list(issuer, number, entries, now=NOW + DAY_S), along)


def test_a_newer_authority_is_believed_by_the_list_that_brings_it(site: Authority) -> None:
    known, fresh = site.revocations(), successor(site)
    both = (fresh.certificate, site.issuer.certificate)
    made = listed(fresh, 2, *both)
    assert refused(known.take, made[: -len(b"".join(map(der, both)))]) == "signature", "without it, nobody knows it"
    assert known.take(site.list(1))
    assert known.take(made)
    assert not known.take(made)
    assert known.newest is not None
    assert known.newest.message == made
    assert set(known.intermediates) == set(both)
    again = site.revocations()
    assert again.take(known.newest.message), "as it is kept over a restart"
    assert set(again.intermediates) == set(both)
    as_file = join_pem(known.newest.der, both, (site.list(2),))
    assert site.revocations().take(as_file)


def test_the_authority_before_makes_no_list_any_more(site: Authority) -> None:
    known, fresh = site.revocations(), successor(site)
    assert known.take(listed(fresh, 2, fresh.certificate, site.issuer.certificate))
    assert refused(known.take, site.list(3)) == "old-list"
    assert refused(known.take, listed(site.issuer, 3, site.issuer.certificate)) == "old-list"
    assert known.number == 2


def test_an_authority_that_had_its_time_does_not_come_back_with_a_list(site: Authority) -> None:
    thief = successor(site, NOW - 300 * DAY_S)
    known = site.revocations()
    assert refused(known.take, listed(thief, 9, thief.certificate)) == "signature"
    assert known.newest is None
    assert thief.certificate not in known.intermediates


def test_what_is_on_the_list_is_no_authority_whoever_brings_it(site: Authority) -> None:
    ring, fresh = site.ring(), successor(site)
    before = site.issuer.certificate
    _, certificate, _ = site.node()
    ring.learn(certificate, NOW + DAY_S)
    ring.revocations.take(listed(fresh, 2, fresh.certificate, before, serials=(before.serial_number,)))
    assert ring.revocations.intermediates == (fresh.certificate,)
    ring.learn_authorities([before])
    assert ring.revocations.intermediates == (fresh.certificate,)
    for fork in (ring, ring.fork()):
        assert refused(fork.learn, certificate, NOW + DAY_S) == "revoked", "also if its chain held before"
        with pytest.raises(PeerError):
            fork.learn(certificate, NOW + DAY_S, intermediate=der(before))


def test_authorities_that_are_not_the_site_s_come_in_with_no_list(site: Authority) -> None:
    other, (_, leaf, _), fresh = Authority(), site.node(), successor(site)
    known = site.revocations()
    theirs = successor(other)
    assert refused(known.take, listed(theirs, 2, theirs.certificate)) == "chain"
    assert refused(known.take, site.list(2) + der(other.issuer.certificate)) == "chain"
    assert refused(known.take, site.list(2) + der(site.root)) == "chain"
    assert refused(known.take, site.list(2) + leaf) == "chain"
    assert refused(known.take, site.list(2) + der(fresh.certificate) * 5) == "limit"
    assert refused(known.take, site.list(2) + der(fresh.certificate)[:-1]) == "list"
    assert refused(known.take, site.list(2) + b"\x30") == "list"
    assert refused(known.take, site.list(2) + b"\x30\x82\xff\xff" + b"\0" * 65_535) == "limit"
    assert known.newest is None
    assert known.intermediates == (site.issuer.certificate,)


def test_the_same_list_is_news_if_it_brings_an_authority(site: Authority) -> None:
    known, fresh = site.revocations(), successor(site)
    bare = site.list(1)
    assert known.take(bare)
    assert known.take(bare + der(fresh.certificate))
    assert not known.take(bare), "and what it brought is not forgotten"
    assert fresh.certificate in known.intermediates


def test_a_ring_that_saw_many_authorities_still_believes_the_newest(site: Authority) -> None:
    ring, many = site.ring(), [successor(site, NOW + year * DAY_S) for year in range(1, 7)]
    for number, issuer in enumerate(many, 1):
        ring.learn_authorities([issuer.certificate])
        assert ring.revocations.take(listed(issuer, number, issuer.certificate))
        leaf = make_leaf(
            issuer,
            Ed25519PrivateKey.generate().public_key(),
            holder="dev-1",
            role=CertificateRole.DEVICE,
            site=site.site,
            purpose=Purpose.SIGNING,
            now=NOW + 8 * DAY_S,
            serial=x509.random_serial_number(),
        )
        for along in (b"", der(issuer.certificate), der(successor(site).certificate)):
            ring.fork().learn(der(leaf), NOW + 8 * DAY_S, intermediate=along)


# -- what a thief of the authority's key, or whoever carries a list, may try


def test_a_thief_s_high_number_does_not_keep_the_successor_s_lists_out(site: Authority) -> None:
    known, fresh = site.revocations(), successor(site)
    assert known.take(site.list(revocation.NUMBER_MAX, fresh.certificate.serial_number))
    assert known.take(listed(fresh, 2, fresh.certificate, site.issuer.certificate))
    assert known.number == 2
    assert known.intermediates[0] == fresh.certificate
    assert refused(known.take, site.list(revocation.NUMBER_MAX)) == "old-list"
    assert refused(known.take, listed(fresh, 1, fresh.certificate)) == "old-list"


def test_a_list_that_is_believed_can_be_read_again_in_whatever_form_it_came(site: Authority) -> None:
    known, fresh = site.revocations(), successor(site)
    made = make_list(fresh, 2, [Revocation(7, NOW)], now=NOW + DAY_S)
    along = (fresh.certificate, site.issuer.certificate)
    assert refused(known.take, join_pem(made, (fresh.certificate,) * 5)) == "limit"
    assert known.take(join_pem(made, (*along, *along)))
    assert known.newest is not None
    assert site.revocations().take(known.newest.message)


def test_authorities_of_long_ago_do_not_crowd_out_those_in_force(site: Authority) -> None:
    fresh = successor(site)
    gone = [successor(site, NOW - years * 365 * DAY_S).certificate for years in (2, 3, 4)]
    at_once, later = site.revocations(), site.revocations()
    assert at_once.take(listed(fresh, 2, *gone, fresh.certificate))
    made = make_list(fresh, 2, [], now=NOW + DAY_S)
    assert later.take(join_der(made, (fresh.certificate, gone[0], gone[1])))
    assert later.take(join_der(made, (gone[1], gone[2], fresh.certificate, site.issuer.certificate)))
    for known in (at_once, later):
        assert known.intermediates[:2] == (fresh.certificate, site.issuer.certificate)


def signing_leaf(site: Authority, issuer: Issuer, days: float) -> tuple[Ed25519Signer, x509.Certificate]:
    key = Ed25519PrivateKey.generate()
    leaf = make_leaf(
        issuer,
        key.public_key(),
        holder="dev-1",
        role=CertificateRole.DEVICE,
        site=site.site,
        purpose=Purpose.SIGNING,
        now=NOW + DAY_S,
        serial=x509.random_serial_number(),
        seconds=days * DAY_S,
    )
    return Ed25519Signer(key), leaf


def test_a_leaf_of_the_newer_authority_is_newer_however_long_a_thief_s_lasts(site: Authority) -> None:
    fresh = successor(site)
    thief, theirs = signing_leaf(site, site.issuer, 300)
    real, own = signing_leaf(site, fresh, 7)
    for order in ((theirs, own), (own, theirs)):
        ring = site.ring()
        assert ring.revocations.take(listed(fresh, 2, fresh.certificate, site.issuer.certificate))
        for certificate in order:
            ring.learn(der(certificate), NOW + DAY_S)
        ring.verify("dev-1", real.sign(b"x"), b"x")
        assert refused(ring.verify, "dev-1", thief.sign(b"x"), b"x") == "signature"


def test_a_revoked_certificate_does_not_outstay_one_that_ends_before_it(site: Authority) -> None:
    ring = site.ring()
    thief, theirs = signing_leaf(site, site.issuer, 300)
    real, own = signing_leaf(site, site.issuer, 7)
    ring.learn(der(theirs), NOW + DAY_S)
    assert ring.revocations.take(site.list(1, theirs.serial_number))
    ring.learn(der(own), NOW + DAY_S)
    ring.verify("dev-1", real.sign(b"x"), b"x")
    assert refused(ring.verify, "dev-1", thief.sign(b"x"), b"x") == "signature"
