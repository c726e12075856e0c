"""Bundles that are renewed where the authority is, and the nodes that run from copies of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from ca_parts import DAY_S, HALF_S, NOW, an_authority, enrolled, renewal_by, rule_of

from vedette_broker import ca, ca_enrolment, ca_revocation
from vedette_broker.ca_store import read_index
from vedette_core.crypto.certificate_chain import load_certificates
from vedette_core.crypto.certificates import CertificateRole
from vedette_core.crypto.revocation import RevocationReason
from vedette_core.runtime.bundle_requests import anchors_of, install, renewal_request
from vedette_core.runtime.identity import NodeIdentity, load_node
from vedette_schemas.errors import ConfigError, RefusedError


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    return an_authority(tmp_path)


def serials_of(node: NodeIdentity) -> tuple[str, ...]:
    """As the index has them."""
    files = (node.bundle.tls_certificate, node.bundle.signing_certificate)
    return tuple(f"{load_certificates(each.read_bytes(), each.name)[0].serial_number:x}" for each in files)


def test_a_bundle_at_the_authority_is_renewed_in_place(authority: Path) -> None:
    old = load_node(ca.issue(authority, "gw-01", CertificateRole.DEVICE, now=NOW), NOW)
    new = load_node(ca.renew(authority, "gw-01", now=NOW + HALF_S), NOW + HALF_S)
    assert new.signer.public_key == old.signer.public_key
    assert not new.serials & old.serials
    ca.issue(authority, "broker", CertificateRole.BROKER, now=NOW, hosts=["broker.example"])
    ca.renew(authority, "broker", now=NOW + 1)
    assert read_index(authority).issued["broker"].hosts == ("broker.example",), "its names stay"
    with pytest.raises(ConfigError, match="no bundle"):
        ca.renew(authority, "gw-99", now=NOW)
    ca_revocation.revoke(authority, "gw-01", RevocationReason.UNSPECIFIED, now=NOW + HALF_S)
    with pytest.raises(RefusedError, match="revoked"):
        ca.renew(authority, "gw-01", now=NOW + HALF_S)


def copied(authority: Path, to: Path) -> NodeIdentity:
    """A bundle that was made at the authority and copied, not moved, to its node."""
    shutil.copytree(ca.issue(authority, "gw-01", CertificateRole.DEVICE, now=NOW), to)
    return load_node(to, NOW)


def renewed_by_itself(authority: Path, node: NodeIdentity, now: float) -> NodeIdentity:
    reply = ca_enrolment.renew(authority, renewal_request(node), now=now)
    install(node.bundle.directory, reply, anchors_of(node.bundle), now=now, expected=node)
    return load_node(node.bundle.directory, now)


@pytest.mark.parametrize("times", [1, 4])
def test_a_node_whose_bundle_was_copied_is_not_locked_out(authority: Path, tmp_path: Path, times: int) -> None:
    node = copied(authority, tmp_path / "gateway")
    for n in range(times):  # more leaves than a node may have replaced by itself
        ca.renew(authority, node.id, now=NOW + HALF_S + n)
    now = NOW + HALF_S + 60
    fresh = renewed_by_itself(authority, node, now)
    assert fresh.signer.public_key == node.signer.public_key
    assert fresh.tls_not_after > node.tls_not_after
    assert renewed_by_itself(authority, fresh, now + DAY_S).serials != fresh.serials
    made = ca_revocation.revoke(authority, node.id, RevocationReason.KEY_COMPROMISE, now=now + DAY_S)
    assert len(made.entries) == 2 * (times + 3), "none of them is forgotten"


def test_a_renewal_at_the_authority_hides_no_thief(authority: Path, tmp_path: Path) -> None:
    """However often a bundle is renewed here: of those who hold its keys one gets newer ones, once."""
    node = copied(authority, tmp_path / "gateway")
    theft, replaced = renewal_by(node), [node]
    node = renewed_by_itself(authority, node, NOW + HALF_S)
    shutil.rmtree(authority / "bundles" / node.id)
    shutil.copytree(node.bundle.directory, authority / "bundles" / node.id)
    replaced.append(load_node(ca.renew(authority, node.id, now=NOW + HALF_S + 1), NOW + HALF_S + 1))
    assert rule_of(lambda: ca_enrolment.renew(authority, theft, now=NOW + HALF_S + 2)) == "superseded"
    replaced.append(node)
    renewed_by_itself(authority, node, NOW + HALF_S + 3)
    for each in replaced:
        stolen = renewal_by(each)
        assert (
            rule_of(lambda stolen=stolen: ca_enrolment.renew(authority, stolen, now=NOW + HALF_S + 4)) == "superseded"
        )


def test_an_old_copy_does_not_bring_keys_back(authority: Path, tmp_path: Path) -> None:
    node = copied(authority, tmp_path / "gateway")
    renewed_by_itself(authority, node, NOW + HALF_S)
    assert rule_of(lambda: ca.renew(authority, node.id, now=NOW + HALF_S + 1)) == "old-copy"
    ca_revocation.revoke(authority, node.id, RevocationReason.KEY_COMPROMISE, now=NOW + HALF_S + 2)
    joined = enrolled(authority, tmp_path / "again", now=NOW + HALF_S + 3, holder=node.id)
    much_later = NOW + 2 * HALF_S - 60
    renewed = renewed_by_itself(authority, joined, much_later)
    for now in (NOW + HALF_S + 4, much_later + 1, much_later + 30 * DAY_S):
        assert rule_of(lambda now=now: ca.renew(authority, node.id, now=now)) == "old-copy"
    assert read_index(authority).issued[node.id].serials == serials_of(renewed)


def test_a_bundle_that_an_older_index_does_not_know_is_renewed(authority: Path) -> None:
    """The aggregator must not get another signing key because the index came from a backup."""
    backup = (authority / "index.json").read_bytes()
    ca.renew(authority, "aggregator", now=NOW + HALF_S)
    (authority / "index.json").write_bytes(backup)
    before = load_node(authority / "bundles" / "aggregator", NOW + HALF_S)
    after = load_node(ca.renew(authority, "aggregator", now=NOW + HALF_S + 1), NOW + HALF_S + 1)
    assert after.signer.public_key == before.signer.public_key


def test_a_renewal_that_lost_its_power_before_the_bundle_moved_is_done_again(
    authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ca, "swap", crash)
        with pytest.raises(KeyboardInterrupt):
            ca.renew(authority, "aggregator", now=NOW + HALF_S)
    fresh = load_node(ca.renew(authority, "aggregator", now=NOW + HALF_S + 1), NOW + HALF_S + 1)
    assert read_index(authority).issued["aggregator"].serials == serials_of(fresh)


def test_new_keys_from_the_authority_end_what_was_renewed_before(authority: Path, tmp_path: Path) -> None:
    node = copied(authority, tmp_path / "gateway")
    ca.renew(authority, node.id, now=NOW + 1)
    ca.issue(authority, node.id, CertificateRole.DEVICE, now=NOW + 2, replace=True)
    assert rule_of(lambda: ca_enrolment.renew(authority, renewal_by(node), now=NOW + 3)) == "superseded"


def test_revoked_keys_are_not_renewed_when_their_certificates_have_ended_either(authority: Path) -> None:
    ca_revocation.revoke(authority, "aggregator", RevocationReason.KEY_COMPROMISE, now=NOW)
    later = NOW + 9 * DAY_S
    made = ca_revocation.refresh(authority, now=later)
    assert not made.entries, "what has ended needs no place in the list"
    assert not ca.due(authority, now=later), "a daily renewal must not bring them back"
    assert rule_of(lambda: ca.renew(authority, "aggregator", now=later)) == "revoked"
    ca.issue(authority, "aggregator", CertificateRole.AGGREGATOR, now=later, replace=True)
    assert not read_index(authority).revoked, "fresh keys end it"
    ca.renew(authority, "aggregator", now=later + HALF_S)
