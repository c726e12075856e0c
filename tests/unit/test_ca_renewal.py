"""Renewal and revocation at the authority, and the node's side of them."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import pytest
from ca_parts import (
    DAY_S,
    HALF_S,
    NOW,
    an_authority,
    enrolled,
    invited,
    new_tls,
    renewal_by,
    request_of,
    rule_of,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vedette_broker import ca, ca_enrolment, ca_revocation
from vedette_broker.ca_store import read_index
from vedette_core.crypto.certificates import CertificateRole
from vedette_core.crypto.requests import make_request
from vedette_core.crypto.revocation import RevocationReason
from vedette_core.runtime import bundle_swap
from vedette_core.runtime.bundle_requests import (
    anchors_of,
    install,
    read_ticket,
    renewal_request,
)
from vedette_core.runtime.identity import Bundle, load_node
from vedette_schemas.errors import ConfigError, RefusedError, TransientError


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    return an_authority(tmp_path)


# -- renewal


def test_a_node_renews_and_keeps_its_signing_key(authority: Path, tmp_path: Path) -> None:
    old = enrolled(authority, tmp_path / "node")
    tls_key = old.bundle.tls_key.read_bytes()
    later = NOW + HALF_S
    sealed = renewal_request(old)
    assert renewal_request(old) == sealed, "after a crash the same bytes are sent"
    reply = ca_enrolment.renew(authority, sealed, device=old.id, now=later)
    assert old.bundle.tls_key.read_bytes() == tls_key, "nothing has changed before the answer is here"
    install(old.bundle.directory, reply, anchors_of(old.bundle), now=later, expected=old)
    new = load_node(old.bundle.directory, later)
    assert (new.id, new.role, new.site) == (old.id, old.role, old.site)
    assert new.tls_not_after == pytest.approx(later + 7 * DAY_S, abs=1)
    assert new.bundle.tls_key.read_bytes() != tls_key
    assert new.signer.public_key == old.signer.public_key
    assert not new.serials & old.serials
    assert ca_enrolment.renew(authority, sealed, now=later + 60).tls == reply.tls, "a lost answer is given again"
    install_again = renewal_request(new)
    assert ca_enrolment.renew(authority, install_again, now=later + HALF_S).outcome == "issued"


def test_two_who_hold_the_same_keys_are_found_out(authority: Path, tmp_path: Path) -> None:
    node = enrolled(authority, tmp_path / "node")
    stolen = renewal_by(node)
    ca_enrolment.renew(authority, renewal_request(node), now=NOW + 1)
    assert rule_of(lambda: ca_enrolment.renew(authority, stolen, now=NOW + 2)) == "superseded"


def test_who_may_not_renew(authority: Path, tmp_path: Path) -> None:
    node, other = enrolled(authority, tmp_path / "a"), enrolled(authority, tmp_path / "b")
    ca.init(tmp_path / "other", "lab", now=NOW)
    stranger = enrolled(tmp_path / "other", tmp_path / "c", holder=node.id)

    def renew(sealed: bytes, now: float = NOW + 1, device: str | None = node.id) -> str:
        return rule_of(lambda: ca_enrolment.renew(authority, sealed, device=device, now=now))

    assert renew(renewal_by(node, other.signer)) == "signature"
    assert renew(renewal_by(other)) == "sender", "on another node's topic"
    assert renew(renewal_by(stranger)) == "chain"
    assert renew(renewal_by(node, device=other.id)) == "sender"
    assert renew(renewal_by(node, certificate=other.certificate)) == "sender"
    assert renew(renewal_by(node), NOW + 8 * DAY_S) == "expired"
    assert renew(renewal_by(node, certificate=b"nonsense")) == "certificate"
    number = secrets.token_hex(16)
    fresh = make_request(Ed25519PrivateKey.generate(), number)
    assert renew(renewal_by(node, id=number, tls=new_tls(number), signing=fresh)) == "key", "the signing key stays"
    ca_revocation.revoke(authority, node.id, RevocationReason.KEY_COMPROMISE, now=NOW + 1)
    assert renew(renewal_by(node)) == "revoked"
    assert ca_enrolment.renew(authority, renewal_by(other), now=NOW + 1).outcome == "issued"


def test_nobody_renews_without_end(authority: Path, tmp_path: Path) -> None:
    node = enrolled(authority, tmp_path / "node")
    for _ in range(ca_enrolment.EARLIER_MAX // 2):  # two leaves each
        reply = ca_enrolment.renew(authority, renewal_request(node), now=NOW + 1)
        install(node.bundle.directory, reply, anchors_of(node.bundle), now=NOW + 1, expected=node)
        node = load_node(node.bundle.directory, NOW + 1)
    with pytest.raises(TransientError, match="try again"):
        ca_enrolment.renew(authority, renewal_request(node), now=NOW + 1)


def test_what_the_authority_must_mend_is_not_told_to_nodes() -> None:
    reply = ca_enrolment.refusal("0" * 32, ConfigError("/var/lib/ca/online/ca.key: cannot be read"))
    assert reply.outcome == "later"
    assert "/var" not in reply.reason


@pytest.mark.parametrize("moved", range(6))
def test_a_crash_in_the_middle_of_the_move_is_finished(
    authority: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    node = enrolled(authority, tmp_path / "node")
    reply = ca_enrolment.renew(authority, renewal_request(node), now=NOW + 1)
    count, replace = 0, Path.replace

    def crash(self: Path, target: Path) -> Path:
        nonlocal count
        if self.parent.name == bundle_swap.STAGE and not self.name.startswith("."):
            count += 1
            if count > moved:
                raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        if moved < 5:
            with pytest.raises(KeyboardInterrupt):
                install(node.bundle.directory, reply, anchors_of(node.bundle), now=NOW + 1, expected=node)
        else:
            install(node.bundle.directory, reply, anchors_of(node.bundle), now=NOW + 1, expected=node)
    fresh = load_node(node.bundle.directory, NOW + 1)
    assert not fresh.serials & node.serials
    assert list((node.bundle.directory / bundle_swap.STAGE).iterdir()) == []


# -- revocation


def test_revoking_reaches_every_certificate_of_a_node_that_has_not_ended(authority: Path, tmp_path: Path) -> None:
    old = enrolled(authority, tmp_path / "node", holder="gw-01")
    reply = ca_enrolment.renew(authority, renewal_request(old), now=NOW + 1)
    install(old.bundle.directory, reply, anchors_of(old.bundle), now=NOW + 1, expected=old)
    new = load_node(old.bundle.directory, NOW + 1)
    before = ca_revocation.newest_list(authority).number
    made = ca_revocation.revoke(authority, "gw-01", RevocationReason.KEY_COMPROMISE, now=NOW + 2)
    assert made.number == before + 1
    assert set(made.entries) == old.serials | new.serials
    assert (authority / "crl.pem").read_bytes().startswith(made.pem)
    assert Bundle(authority / "bundles" / "aggregator").crl.read_bytes().startswith(made.pem)
    with pytest.raises(RefusedError, match="ended or revoked"):
        ca_revocation.revoke(authority, "gw-01", RevocationReason.UNSPECIFIED, now=NOW + 3)
    with pytest.raises(ConfigError, match="no certificate"):
        ca_revocation.revoke(authority, "gw-77", RevocationReason.UNSPECIFIED, now=NOW + 3)


def test_a_revoked_node_comes_back_with_new_keys_only(authority: Path, tmp_path: Path) -> None:
    old = enrolled(authority, tmp_path / "a", holder="gw-01")
    ca_revocation.revoke(authority, "gw-01", RevocationReason.CESSATION, now=NOW)
    line = read_index(authority)
    assert ca_revocation.status_of(line.issued["gw-01"], line, NOW) == "revoked"
    new = enrolled(authority, tmp_path / "b", holder="gw-01")
    line = read_index(authority)
    assert ca_revocation.status_of(line.issued["gw-01"], line, NOW) == "valid"
    assert ca_revocation.status_of(line.issued["gw-01"], line, NOW + 8 * DAY_S) == "expired"
    assert set(ca_revocation.newest_list(authority).entries) == old.serials
    assert not old.serials & new.serials


def test_no_open_token_brings_a_revoked_node_back(authority: Path, tmp_path: Path) -> None:
    old = enrolled(authority, tmp_path / "a", holder="gw-01")
    made, other = invited(authority, holder="gw-01"), invited(authority)
    listed = ca_revocation.revoke(authority, "gw-01", RevocationReason.KEY_COMPROMISE, now=NOW)
    bootstrap = read_ticket(made.ticket.read_bytes(), made.token)[1]
    assert set(listed.entries) == old.serials | {bootstrap.serial_number}
    assert rule_of(lambda: ca_enrolment.enrol(authority, request_of(made.token), now=NOW)) == "token-unknown"
    assert ca_enrolment.enrol(authority, request_of(other.token), now=NOW).outcome == "issued"
    asked = invited(authority, holder="gw-02")
    ca_revocation.revoke(authority, "gw-02", RevocationReason.UNSPECIFIED, now=NOW)
    assert rule_of(lambda: ca_enrolment.enrol(authority, request_of(asked.token), now=NOW)) == "token-unknown"
    assert invited(authority, holder="gw-01").token.id in read_index(authority).tokens, "a later one is meant"


def test_an_index_that_was_restored_forgets_no_revocation_and_repeats_no_number(
    authority: Path, tmp_path: Path
) -> None:
    nodes = [enrolled(authority, tmp_path / name, holder=name) for name in ("gw-01", "gw-02")]
    backup = (authority / "index.json").read_bytes()
    before = ca_revocation.revoke(authority, "gw-01", RevocationReason.KEY_COMPROMISE, now=NOW)
    (authority / "index.json").write_bytes(backup)
    after = ca_revocation.revoke(authority, "gw-02", RevocationReason.CESSATION, now=NOW + 1)
    assert after.number == before.number + 1
    assert set(after.entries) == nodes[0].serials | nodes[1].serials
    index = read_index(authority)
    assert {ca_revocation.status_of(index.issued[who], index, NOW + 1) for who in ("gw-01", "gw-02")} == {"revoked"}
    assert rule_of(lambda: ca_enrolment.renew(authority, renewal_by(nodes[0]), now=NOW + 2)) == "revoked"


def test_a_token_can_be_taken_back(authority: Path) -> None:
    made = invited(authority)
    listed = ca_revocation.revoke(authority, made.token.id, RevocationReason.UNSPECIFIED, now=NOW)
    bootstrap = read_ticket(made.ticket.read_bytes(), made.token)[1]
    assert set(listed.entries) == {bootstrap.serial_number}
    assert rule_of(lambda: ca_enrolment.enrol(authority, request_of(made.token), now=NOW)) == "token-unknown"


def test_what_has_ended_leaves_the_list(authority: Path, tmp_path: Path) -> None:
    enrolled(authority, tmp_path / "node", holder="gw-01")
    first = ca_revocation.revoke(authority, "gw-01", RevocationReason.UNSPECIFIED, now=NOW)
    later = ca_revocation.refresh(authority, now=NOW + 8 * DAY_S)
    assert (first.number + 1, len(later.entries)) == (later.number, 0)


def test_a_list_is_made_anew_at_half_of_its_life(authority: Path) -> None:
    number = ca_revocation.newest_list(authority).number
    assert ca_revocation.refresh_if_due(authority, now=NOW + 3 * DAY_S).number == number
    assert ca_revocation.refresh_if_due(authority, now=NOW + 4.1 * DAY_S).number == number + 1


def test_a_crash_between_index_and_list_never_makes_two_lists_of_one_number(
    authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca.issue(authority, "gw-01", CertificateRole.DEVICE, now=NOW)
    before = ca_revocation.newest_list(authority).number

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ca_revocation, "replace_file", crash)
        with pytest.raises(KeyboardInterrupt):
            ca_revocation.revoke(authority, "gw-01", RevocationReason.UNSPECIFIED, now=NOW)
    assert ca_revocation.newest_list(authority).number == before
    made = ca_revocation.refresh_if_due(authority, now=NOW)
    assert made.number == before + 2
    assert len(made.entries) == 2, "the revocation that was recorded counts"


def test_an_index_of_version_1_is_read(authority: Path) -> None:
    ca.issue(authority, "gw-01", CertificateRole.DEVICE, now=NOW)
    plain = json.loads((authority / "index.json").read_text())
    names = ("id", "role", "serials", "not_before", "not_after")
    old = {"version": 1, "site": "lab", "issued": [{k: line[k] for k in names} for line in plain["issued"]]}
    (authority / "index.json").write_text(json.dumps(old))
    (authority / "crl.pem").unlink()
    assert ca_revocation.revoke(authority, "gw-01", RevocationReason.UNSPECIFIED, now=NOW).number == 1
    assert json.loads((authority / "index.json").read_text())["version"] == 4


@pytest.mark.parametrize(
    "line",
    [
        {"tokens": [{}]},
        {"tokens": "x"},
        {"revoked": [{"serial": "1", "id": "a", "at": 1, "reason": "whim", "not_after": 2}]},
        {"list_number": "many"},
        {"list_number": float("inf")},
        {"retiring": []},
        {"retiring": {"1f": "soon"}},
        {"retiring": {"1f": float("nan")}},
        {"retiring": {"0x1f": NOW}},
    ],
)
def test_a_damaged_index_is_told(authority: Path, line: dict[str, Any]) -> None:
    plain = json.loads((authority / "index.json").read_text())
    (authority / "index.json").write_text(json.dumps({**plain, **line}))
    with pytest.raises(ConfigError, match="not the index"):
        read_index(authority)


@pytest.mark.parametrize(
    "change",
    [
        {"id": 7},
        {"id": "../gw"},
        {"role": "guest"},
        {"serials": "abc"},
        {"serials": []},
        {"serials": [1, 2]},
        {"serials": ["0x1f"]},
        {"not_before": None},
        {"not_after": "soon"},
        {"not_after": float("nan")},
        {"earlier": [{"serial": "1f", "not_after": "soon"}]},
        {"earlier": [{"serial": 5, "not_after": NOW}]},
        {"earlier": [{"serial": "1f", "not_after": NOW, "replaced_here": "no"}]},
    ],
)
def test_a_damaged_line_is_told_before_anything_is_made_of_it(authority: Path, change: dict[str, Any]) -> None:
    plain = json.loads((authority / "index.json").read_text())
    plain["issued"][0] |= change
    (authority / "index.json").write_text(json.dumps(plain))
    with pytest.raises(ConfigError, match="not the index"):
        ca_revocation.revoke(authority, "aggregator", RevocationReason.KEY_COMPROMISE, now=NOW)


@pytest.mark.parametrize("change", [{"serial": 5}, {"serial": "one"}, {"not_after": None}, {"at": "then"}])
def test_a_damaged_revocation_is_told(authority: Path, change: dict[str, Any]) -> None:
    ca_revocation.revoke(authority, "aggregator", RevocationReason.KEY_COMPROMISE, now=NOW)
    plain = json.loads((authority / "index.json").read_text())
    plain["revoked"][0] |= change
    (authority / "index.json").write_text(json.dumps(plain))
    with pytest.raises(ConfigError, match="not the index"):
        read_index(authority)
