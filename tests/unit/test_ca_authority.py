"""Another online authority in the place of the one before: what is issued when, crashes, and what is refused."""

from __future__ import annotations

import shutil
import ssl
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ca_parts import DAY_S, NOW, an_authority, anchors_for, enrolled, invited, renewal_by, rule_of
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from vedette_broker import ca, ca_authority, ca_enrolment, ca_revocation, ca_store
from vedette_broker.ca_authority import State
from vedette_broker.ca_store import load_chain, pem, read_index
from vedette_core.crypto.certificate_chain import der, load_certificates
from vedette_core.crypto.certificates import CertificateRole, Issuer, make_intermediate, make_root
from vedette_core.crypto.revocation import RevocationReason, Revocations
from vedette_core.runtime.bundle_requests import anchors_of, enrolment_request, install, renewal_request
from vedette_core.runtime.identity import Bundle, client_context, key_ring, learn_aggregator, load_node, server_context
from vedette_schemas.errors import ConfigError, PeerError

WEEK_S = 7 * DAY_S
LATER = NOW + 300 * DAY_S
"""When the authority is replaced."""


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    directory = an_authority(tmp_path)
    ca.issue(directory, "aggregator", CertificateRole.AGGREGATOR, now=LATER, replace=True)
    return directory


def states(authority: Path) -> list[State]:
    return [each.state for each in ca_authority.standings(authority)]


def issuer_of(bundle: Bundle) -> int:
    leaf, issuer, *_ = load_certificates(bundle.signing_certificate.read_bytes())
    leaf.verify_directly_issued_by(issuer)
    return issuer.serial_number


def told(bundle: Bundle) -> tuple[x509.Certificate, ...]:
    return load_certificates(bundle.ca.read_bytes())


def test_the_newer_one_issues_and_both_are_known_until_the_last_leaf_has_ended(authority: Path) -> None:
    root, (old,) = load_chain(authority)
    first = ca_revocation.refresh(authority, now=LATER).number
    made = ca_authority.renew(authority, now=LATER)
    assert made.state is State.ISSUES
    assert states(authority) == [State.ISSUES, State.EARLIER]
    new = load_chain(authority)[1][0]
    assert load_chain(authority) == (root, (new, old))
    assert told(Bundle(authority / "bundles" / "aggregator")) == (root, new, old)
    listed = ca_revocation.newest_list(authority)
    assert (listed.number, listed.issuer, listed.authorities) == (first + 1, new, (new, old))
    node = Bundle(ca.issue(authority, "gw-01", CertificateRole.DEVICE, now=LATER + DAY_S))
    assert issuer_of(node) == new.serial_number
    assert told(node) == (root, new, old)
    ends = LATER + WEEK_S
    before = ca_revocation.refresh_if_due(authority, now=ends - 1)
    assert ca_revocation.refresh_if_due(authority, now=ends - 1).number == before.number, "nothing is due yet"
    assert old.serial_number not in before.entries
    last = ca_revocation.refresh_if_due(authority, now=ends)
    assert last.entries[old.serial_number].reason is RevocationReason.SUPERSEDED
    assert last.authorities == (new,)
    assert load_chain(authority) == (root, (new,))
    assert told(node) == (root, new)
    assert states(authority) == [State.ISSUES]
    assert sorted(p.name for p in (authority / "online").iterdir()) == ["ca.crt", "ca.key"]
    assert ca_revocation.refresh_if_due(authority, now=ends + 60).number == last.number
    much_later = ca_revocation.refresh(authority, now=ends + 50 * DAY_S)
    assert old.serial_number in much_later.entries, "it stays on the list until it has ended itself"
    assert old.serial_number not in ca_revocation.refresh(authority, now=NOW + 366 * DAY_S).entries


def test_a_restored_authority_takes_over_who_is_out_of_service(authority: Path, tmp_path: Path) -> None:
    ca_authority.renew(authority, now=LATER)
    shutil.copytree(authority, tmp_path / "backup")
    old = load_chain(authority)[1][1]
    ca_authority.retire(authority, now=LATER + 1)
    shutil.copy(authority / "crl.pem", tmp_path / "backup" / "crl.pem")
    backup = tmp_path / "backup"
    ca_revocation.refresh(backup, now=LATER + 2)
    assert old not in load_chain(backup)[1]
    assert old.serial_number in ca_revocation.refresh(backup, now=LATER + 30 * DAY_S).entries


def test_an_authority_that_was_restored_from_before_its_replacement_is_replaced_again(
    authority: Path, tmp_path: Path
) -> None:
    backup = Path(shutil.copytree(authority, tmp_path / "backup"))
    root, told = load_chain(backup)
    known = Revocations(root, told)
    ca_authority.renew(authority, now=LATER)
    for minute in range(1, 5):
        assert known.take(ca_revocation.refresh(authority, now=LATER + 60 * minute).message)
    with pytest.raises(PeerError, match="authority that was replaced"):
        known.take(ca_revocation.refresh(backup, now=LATER + 600).message)
    ca_authority.renew(backup, now=LATER + 900)
    assert known.take(ca_revocation.newest_list(backup).message)


def test_the_root_may_sign_on_a_machine_that_has_nothing_else(authority: Path, tmp_path: Path) -> None:
    offline = tmp_path / "offline"
    shutil.move(authority / "root", offline)
    with pytest.raises(ConfigError, match=r"root\.crt"):
        ca_authority.renew(authority, now=LATER)
    asked = ca_authority.request(authority)
    shown = ca_authority.fingerprint_in(asked)
    assert ca_authority.fingerprint_in(ca_authority.request(authority)) == shown, "asked again, for the same key"
    assert b"PRIVATE" not in asked
    assert rule_of(lambda: ca_authority.sign(offline, asked, now=LATER, fingerprint="0" * 64)) == "fingerprint"
    signed = ca_authority.sign(offline, asked, now=LATER, fingerprint=shown.upper())
    made = ca_authority.install(authority, pem(signed), now=LATER)
    assert (made.state, made.fingerprint) == (State.ISSUES, shown)
    assert ca_authority.install(authority, pem(signed), now=LATER) == made, "the same call again"
    for name in ("ca.key", "earlier.key"):
        assert stat.S_IMODE((authority / "online" / name).stat().st_mode) == 0o600


def test_what_is_announced_is_known_everywhere_and_does_not_issue(authority: Path) -> None:
    old = load_chain(authority)[1][0]
    assert ca_authority.renew(authority, now=LATER, announce=True).state is State.KNOWN
    assert states(authority) == [State.KNOWN, State.ISSUES]
    assert stat.S_IMODE((authority / "online" / "next.key").stat().st_mode) == 0o600
    new = load_chain(authority)[1][0]
    assert ca_revocation.newest_list(authority).issuer == new
    assert issuer_of(Bundle(ca.issue(authority, "gw-01", CertificateRole.DEVICE, now=LATER))) == old.serial_number
    much_later = LATER + 2 * WEEK_S
    assert ca_revocation.refresh(authority, now=much_later).authorities == (new, old), "it issues: it is not retired"
    assert rule_of(lambda: ca_authority.request(authority)) == "known"
    assert ca_authority.renew(authority, now=much_later).state is State.ISSUES
    assert load_chain(authority)[1] == (new, old), "the one that was announced, and no third"
    assert ca_revocation.refresh(authority, now=much_later + WEEK_S - 1).authorities == (new, old)


def test_one_replacement_at_a_time(authority: Path) -> None:
    ca_authority.renew(authority, now=LATER)
    for act in (ca_authority.renew, lambda directory, **_: ca_authority.request(directory)):
        assert rule_of(lambda act=act: act(authority, now=LATER + DAY_S)) == "in-progress"  # type: ignore[misc]
    ca_revocation.refresh_if_due(authority, now=LATER + WEEK_S)
    ca_authority.renew(authority, now=LATER + WEEK_S)
    assert states(authority) == [State.ISSUES, State.EARLIER]


def test_an_authority_that_has_ended_can_still_be_replaced(authority: Path) -> None:
    late = NOW + 400 * DAY_S
    with pytest.raises(ConfigError, match="vedette ca intermediate renew"):
        ca.issue(authority, "gw-01", CertificateRole.DEVICE, now=late)
    ca_authority.renew(authority, now=late)
    assert load_node(ca.issue(authority, "gw-01", CertificateRole.DEVICE, now=late), late).id == "gw-01"


class PowerLostError(Exception):
    """The machine lost its power."""


def dies_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the process end before its n-th change of the disk, counted from 0."""
    left = [step]

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def one(*arguments: Any, **named: Any) -> Any:
            if left[0] == 0:
                raise PowerLostError
            left[0] -= 1
            return change(*arguments, **named)

        return one

    for module, names in (
        (ca_authority, ("replace_file", "write_index", "synchronise_directory")),
        (ca_revocation, ("replace_file", "write_index", "remove_durable")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, counted(getattr(module, name)))


STEPS = 10
"""Changes of the disk that a replacement makes; more than these are tried below."""


@pytest.mark.parametrize("step", range(STEPS + 2))
def test_after_a_crash_the_same_call_goes_on(
    authority: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    node = enrolled(authority, tmp_path / "gw-01", now=LATER, holder="gw-01")
    ring = key_ring(node.bundle, "lab")
    ring.revocations.take(ca_revocation.refresh(authority, now=LATER).message)
    with monkeypatch.context() as patched:
        dies_at(patched, step)
        try:
            ca_authority.renew(authority, now=LATER)
        except PowerLostError:
            assert step < STEPS
        else:
            assert step >= STEPS
    # Whatever was done, the authority serves, and what it says is believed by who knows the one before only.
    other = enrolled(authority, tmp_path / "gw-02", now=LATER + 1, holder="gw-02")
    ring.revocations.take(ca_revocation.refresh_if_due(authority, now=LATER + 1).message)
    assert ring.learn(other.certificate, LATER + 1).id == "gw-02"
    for bundle in (authority / "bundles").iterdir():
        assert told(Bundle(bundle))[1:] == load_chain(authority)[1]
    made = ca_authority.renew(authority, now=LATER + 2) if states(authority)[-1] is not State.EARLIER else None
    assert made is None or made.state is State.ISSUES
    assert states(authority) == [State.ISSUES, State.EARLIER]
    assert len(load_chain(authority)[1]) == 2
    last = enrolled(authority, tmp_path / "gw-03", now=LATER + 3, holder="gw-03")
    ring.revocations.take(ca_revocation.refresh_if_due(authority, now=LATER + 3).message)
    for each in (node, other, last):
        assert ring.learn(each.certificate, LATER + 3).id == each.id
    index = read_index(authority)
    (retires,) = index.retiring.values()
    assert LATER + WEEK_S <= retires <= LATER + 3 + WEEK_S, "never before the last leaf of it has ended"
    numbers = ca_revocation.newest_list(authority).number
    assert ca_revocation.refresh(authority, now=LATER + 4).number > numbers


def test_a_retirement_goes_on_after_a_crash(authority: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca_authority.renew(authority, now=LATER)
    new, old = load_chain(authority)[1]
    listed = None
    for step in range(20):
        with monkeypatch.context() as patched:
            dies_at(patched, step)
            try:
                listed = ca_revocation.refresh_if_due(authority, now=LATER + WEEK_S)
            except PowerLostError:
                continue
        if step:
            break
    assert listed is not None
    assert step >= 4, "it was cut off at each of its steps"
    assert old.serial_number in listed.entries
    assert listed.authorities == load_chain(authority)[1] == (new,)
    assert told(Bundle(authority / "bundles" / "aggregator"))[1:] == (new,)
    assert not (authority / "online" / "earlier.key").exists()


def foreign(authority: Path) -> x509.Certificate:
    """An intermediate for the key that was asked for, signed by somebody who is not the site's root."""
    key = ec.generate_private_key(ec.SECP256R1())
    root = Issuer(make_root(key, "lab", now=NOW, serial=x509.random_serial_number()), key)
    public = ca_store.read_authority_key(authority / "online" / "next.key").public_key()
    return make_intermediate(root, public, "lab", now=LATER, serial=x509.random_serial_number())


def test_only_the_root_s_newest_for_the_key_that_is_here_is_installed(authority: Path, tmp_path: Path) -> None:
    asked = ca_authority.request(authority)
    root = authority / "root"
    before = load_chain(authority)
    wrong = {
        "not issue": pem(foreign(authority)),
        "begins after": pem(ca_authority.sign(root, asked, now=NOW - DAY_S)),
        "has begun": pem(ca_authority.sign(root, asked, now=LATER + DAY_S)),
        "not ended": pem(ca_authority.sign(root, asked, now=LATER - 500 * DAY_S)),
        "expected what": b"nonsense",
        "found 2": pem(*before[1], before[0]),
    }
    for message, signed in wrong.items():
        with pytest.raises(ConfigError, match=message):
            ca_authority.install(authority, signed, now=LATER)
    other = tmp_path / "other"
    ca.init(other, "lab", now=NOW)
    with pytest.raises(ConfigError, match="not in"):
        ca_authority.install(authority, pem(ca_authority.sign(root, ca_authority.request(other), now=LATER)), now=LATER)
    assert load_chain(authority) == before
    assert states(authority) == [State.ISSUES]


def test_what_the_root_does_not_sign(authority: Path, tmp_path: Path) -> None:
    ca.init(tmp_path / "other", "elsewhere", now=NOW)
    asked, root = ca_authority.request(authority), authority / "root"
    flipped = bytearray(asked)
    flipped[len(asked) // 2] ^= 1
    for message, request in (
        ("of site 'elsewhere'", ca_authority.request(tmp_path / "other")),
        ("request", bytes(flipped)),
        ("ask again", b"nonsense"),
        ("ask again", pem(load_chain(authority)[0])),
    ):
        with pytest.raises(ConfigError, match=message):
            ca_authority.sign(root, request, now=LATER)
    with pytest.raises(ConfigError, match="has ended"):
        ca_authority.sign(root, asked, now=NOW + 3651 * DAY_S)
    shutil.copy(tmp_path / "other" / "root" / "root.key", root / "root.key")
    with pytest.raises(ConfigError, match=r"not that of root\.crt"):
        ca_authority.sign(root, asked, now=LATER)


# -- nodes


def test_a_node_of_the_older_one_renews_and_has_both(authority: Path, tmp_path: Path) -> None:
    node = enrolled(authority, tmp_path / "node", now=LATER, holder="gw-01")
    root, (old,) = load_chain(authority)
    ca_authority.renew(authority, now=LATER)
    at = LATER + 4 * DAY_S
    reply = ca_enrolment.renew(authority, renewal_request(node), now=at)
    install(node.bundle.directory, reply, anchors_of(node.bundle), now=at, expected=node)
    assert told(node.bundle) == (root, load_chain(authority)[1][0], old)
    fresh = load_node(node.bundle.directory, at)
    ring = key_ring(fresh.bundle, "lab")
    assert learn_aggregator(ring, fresh.bundle, at).id == "aggregator", "whose leaf is the older one's still"
    over = LATER + WEEK_S
    ca_revocation.refresh_if_due(authority, now=over)
    reply = ca_enrolment.renew(authority, renewal_request(fresh), now=over)
    assert reply.outcome == "issued"


def test_a_ticket_of_the_older_one_still_admits(authority: Path, tmp_path: Path) -> None:
    made = invited(authority, now=LATER, holder="gw-05")
    sealed = enrolment_request(tmp_path / "node", made.token)
    ca_authority.renew(authority, now=LATER)
    reply = ca_enrolment.enrol(authority, sealed, now=LATER + 1)
    install(tmp_path / "node", reply, anchors_for(made), now=LATER + 1)
    assert load_node(tmp_path / "node", LATER + 1).id == "gw-05"


def test_an_answer_with_an_authority_that_is_not_the_root_s_is_not_installed(authority: Path, tmp_path: Path) -> None:
    node = enrolled(authority, tmp_path / "node", now=LATER, holder="gw-01")
    sealed = renewal_request(node)
    reply = ca_enrolment.renew(authority, sealed, now=LATER)
    ca_authority.request(authority)
    bad = reply.model_copy(update={"intermediate": der(foreign(authority))})
    before = node.bundle.ca.read_bytes()
    with pytest.raises(PeerError):
        install(node.bundle.directory, bad, anchors_of(node.bundle), now=LATER, expected=node)
    assert node.bundle.ca.read_bytes() == before


def test_a_leaf_of_the_older_one_is_revoked_by_the_newer_and_refused_once_that_is_retired(
    authority: Path, tmp_path: Path
) -> None:
    gone, kept = (enrolled(authority, tmp_path / n, now=LATER, holder=n) for n in ("gw-01", "gw-02"))
    ring = key_ring(kept.bundle, "lab")
    for node in (gone, kept):
        ring.learn(node.certificate, LATER)
    ca_authority.renew(authority, now=LATER)
    ring.revocations.take(ca_revocation.revoke(authority, "gw-01", RevocationReason.KEY_COMPROMISE, now=LATER).message)
    assert ring.revoked() == {"gw-01"}
    fork = ring.fork()
    with pytest.raises(PeerError, match="revoked"):
        fork.learn(gone.certificate, LATER)
    fork.learn(kept.certificate, LATER)
    with pytest.raises(PeerError, match="revoked"):
        ca_enrolment.renew(authority, renewal_by(gone), now=LATER)
    ca_authority.retire(authority, now=LATER + 1)
    ring.revocations.take(ca_revocation.newest_list(authority).message)
    for intermediate in (b"", kept.intermediate):
        with pytest.raises(PeerError):
            ring.fork().learn(kept.certificate, LATER + 1, intermediate=intermediate)
    ring.learn_authorities(load_certificates(kept.intermediate))
    with pytest.raises(PeerError):
        ring.fork().learn(kept.certificate, LATER + 1)
    with pytest.raises(PeerError):
        ca_enrolment.renew(authority, renewal_by(kept), now=LATER + 1)
    with pytest.raises(ConfigError, match="no earlier authority"):
        ca_authority.retire(authority, now=LATER + 2)


def let_in(server: ssl.SSLContext, client: Bundle) -> bool:
    """Whether a TLS server takes a client, by a handshake in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    served = server.wrap_bio(to_server, to_client, server_side=True)
    asking = client_context(client).wrap_bio(to_client, to_server, server_hostname="localhost")
    for side in (asking, served, asking, served):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError:
            return False
    return True


def test_openssl_has_a_list_of_each_issuer_while_there_are_two(tmp_path: Path) -> None:
    """It refuses a leaf for whose issuer it has none: so Mosquitto would."""
    authority, now = tmp_path / "ca", time.time()
    ca.init(authority, "lab", now=now)
    broker = Bundle(ca.issue(authority, "broker", CertificateRole.BROKER, now=now))
    old, gone = (Bundle(ca.issue(authority, n, CertificateRole.DEVICE, now=now)) for n in ("gw-01", "gw-03"))
    before = broker.crl.read_bytes()
    ca_authority.renew(authority, now=now)
    new, gone_too = (Bundle(ca.issue(authority, n, CertificateRole.DEVICE, now=now)) for n in ("gw-02", "gw-04"))
    for name in ("gw-03", "gw-04"):
        ca_revocation.revoke(authority, name, RevocationReason.UNSPECIFIED, now=now)

    def server() -> ssl.SSLContext:
        context = server_context(broker)
        context.load_verify_locations(broker.crl)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        return context

    assert [let_in(server(), each) for each in (old, new, gone, gone_too)] == [True, True, False, False]
    both = broker.crl.read_bytes()
    broker.crl.write_bytes(before)
    assert [let_in(server(), each) for each in (old, new)] == [True, False], "without the newer one's list"
    broker.crl.write_bytes(both)
    ca_authority.retire(authority, now=now)
    assert [let_in(server(), each) for each in (old, new)] == [False, True]


@pytest.mark.parametrize(("left_days", "said"), [(31, False), (30, True), (1, True), (-1, True)])
def test_the_end_is_told_thirty_days_before(left_days: int, said: bool) -> None:
    assert bool(ca_authority.warning(NOW, NOW - left_days * DAY_S)) is said
