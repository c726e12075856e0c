"""The aggregator's revocations: from a file and from the broker, on disk, and who is kept out of rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ca_parts import an_authority, enrolled, replace_authority, rule_of

from vedette_aggregator.exclusions import Exclusions
from vedette_aggregator.quarantine import Quarantine
from vedette_aggregator.revocation_watch import RevocationWatch
from vedette_broker import ca, ca_revocation
from vedette_broker.ca_store import load_chain, pem
from vedette_core.crypto.certificate_chain import der
from vedette_core.crypto.certificates import CertificateRole
from vedette_core.crypto.revocation import RevocationReason
from vedette_core.crypto.signing import KeyRing
from vedette_core.runtime.identity import Bundle, NodeIdentity, key_ring
from vedette_core.runtime.metrics import AGGREGATOR_METRICS, Metrics
from vedette_core.runtime.storage import Database, StateStore
from vedette_schemas.errors import PeerError, TransientError
from vedette_schemas.topics import Topics

NOW = 1_800_000_000.0
DAY_S = 86_400.0


class Desk:
    """An aggregator's ring, store and watch beside an authority."""

    def __init__(self, base: Path) -> None:
        self.authority = an_authority(base)
        self.bundle = Bundle(self.authority / "bundles" / "aggregator")
        self.base, self.metrics = base, Metrics(AGGREGATOR_METRICS)
        self.start()

    def start(self, file: Path | None = None) -> None:
        self.ring: KeyRing = key_ring(self.bundle, "lab")
        self.store = StateStore(Database(self.base / "aggregator.db"))
        self.watch = RevocationWatch(self.ring, self.store, self.bundle, file, Topics("lab"), self.metrics)

    def node(self, name: str, **issued: Any) -> NodeIdentity:
        node = enrolled(self.authority, self.base / name, holder=name, **issued)
        self.ring.learn(node.certificate, NOW, intermediate=node.intermediate)
        return node

    def revoke(self, name: str) -> int:
        return ca_revocation.revoke(self.authority, name, RevocationReason.UNSPECIFIED, now=NOW).number

    def refused(self, reason: str) -> float:
        labels = {"kind": "revoked", "outcome": reason}
        return self.metrics.registry.get_sample_value("vedette_messages_total", labels) or 0.0


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_what_the_authority_writes_is_seen_published_and_kept(desk: Desk) -> None:
    desk.node("gw-01")
    before = desk.ring.revocations.number
    assert not desk.watch.poll(NOW), "nothing is new"
    number = desk.revoke("gw-01")
    assert desk.watch.poll(NOW)
    assert not desk.watch.poll(NOW)
    assert desk.ring.revocations.number == number == before + 1
    assert desk.watch.devices() == {"gw-01"}
    publication = desk.watch.publication()
    assert publication is not None
    assert (publication.topic, publication.retain, publication.qos) == ("vedette/1/lab/public/revoked", True, 1)
    assert publication.payload == ca_revocation.newest_list(desk.authority).message


def test_no_restart_and_no_older_file_brings_an_older_list_back(desk: Desk) -> None:
    old = desk.bundle.crl.read_bytes()
    desk.node("gw-01")
    number = desk.revoke("gw-01")
    desk.watch.poll(NOW)
    desk.bundle.crl.write_bytes(old)
    assert not desk.watch.poll(NOW)
    assert desk.refused("old-list") == 1
    desk.start()
    assert desk.ring.revocations.number == number
    with pytest.raises(PeerError) as caught:
        desk.watch.take(old)
    assert caught.value.reason == "old-list"


def test_a_file_that_is_none_is_counted_and_changes_nothing(desk: Desk) -> None:
    number = desk.ring.revocations.number
    for content, reason in ((b"nonsense", "list"), (b"x" * 10**6, "unreadable")):
        desk.bundle.crl.write_bytes(content)
        assert not desk.watch.poll(NOW)
        assert desk.refused(reason) == 1
    assert desk.ring.revocations.number == number
    desk.bundle.crl.unlink()
    assert not desk.watch.poll(NOW)


def test_a_list_may_come_over_the_broker_and_from_another_file(desk: Desk) -> None:
    desk.node("gw-01")
    desk.revoke("gw-01")
    made = ca_revocation.newest_list(desk.authority)
    assert desk.watch.take(made.der)
    assert not desk.watch.take(made.der), "its own echo"
    elsewhere = desk.base / "elsewhere.pem"
    desk.start(elsewhere)
    assert not desk.watch.poll(NOW)
    elsewhere.write_bytes(ca_revocation.refresh(desk.authority, now=NOW + 1).pem)
    assert desk.watch.poll(NOW)


def test_an_overdue_list_is_told_once_and_goes_on_counting(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    desk.node("gw-01")
    desk.revoke("gw-01")
    desk.watch.poll(NOW)
    for _ in range(3):
        desk.watch.poll(NOW + 30 * DAY_S)
    assert sum("overdue" in line.message for line in caplog.records) == 1
    assert desk.watch.devices() == {"gw-01"}


def test_quarantined_and_revoked_devices_are_kept_out_until_they_are_neither(desk: Desk) -> None:
    exclusions = Exclusions(quarantine := Quarantine(desk.store), desk.watch, desk.metrics)
    assert not exclusions.look()
    desk.node("gw-01")
    quarantine.add("gw-02", "a person's reason")
    desk.revoke("gw-01")
    desk.watch.poll(NOW)
    assert exclusions.look()
    assert exclusions.devices == {"gw-01", "gw-02"}
    assert not exclusions.look()
    quarantine.add("gw-01", "this one as well")
    assert not exclusions.look(), "who is kept out has not changed"
    quarantine.release("gw-01")
    quarantine.release("gw-02")
    ca.issue(desk.authority, "gw-01", CertificateRole.DEVICE, now=NOW, replace=True)
    fresh = Bundle(desk.authority / "bundles" / "gw-01").signing_certificate.read_bytes()
    desk.ring.learn(fresh, NOW)
    assert exclusions.look()
    assert exclusions.devices == frozenset(), "it came back with new keys"


def test_a_list_that_found_no_room_on_the_disk_is_written_when_it_comes_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.node("gw-01")
    old = desk.bundle.crl.read_bytes()
    number = desk.revoke("gw-01")
    newest = ca_revocation.newest_list(desk.authority).der
    with monkeypatch.context() as full:

        def put(_: StateStore, __: str, ___: bytes | None) -> None:
            raise TransientError("the disk is full")

        full.setattr(StateStore, "put", put)
        assert desk.watch.take(newest)
    assert not desk.watch.take(newest), "no news"
    desk.bundle.crl.write_bytes(old)
    desk.start()
    assert desk.ring.revocations.number == number


def test_a_list_of_another_authority_counts_at_once_and_its_publication_tells_the_others(desk: Desk) -> None:
    gone = desk.node("gw-01")
    before, fresh = replace_authority(desk.authority, NOW)
    number = desk.revoke("gw-01")
    assert desk.watch.poll(NOW)
    assert desk.ring.revocations.number == number
    assert desk.ring.revocations.intermediates == (fresh, before)
    assert desk.watch.devices() == {"gw-01"}
    publication = desk.watch.publication()
    assert publication is not None
    far = key_ring(Bundle(gone.bundle.directory), "lab")
    assert far.revocations.take(publication.payload)
    assert far.revocations.intermediates == (fresh, before)
    desk.start()
    assert desk.ring.revocations.number == number, "a restart forgets neither"
    assert desk.ring.revocations.intermediates == (fresh, before)


def test_a_list_without_its_authority_counts_once_the_own_bundle_names_it(desk: Desk) -> None:
    desk.node("gw-01")
    anchors = desk.bundle.ca.read_bytes()
    replace_authority(desk.authority, NOW)
    number = desk.revoke("gw-01")
    bare = ca_revocation.newest_list(desk.authority).pem
    desk.bundle.crl.write_bytes(bare)
    desk.bundle.ca.write_bytes(anchors)
    assert not desk.watch.poll(NOW)
    assert desk.refused("signature") == 1
    before = desk.bundle.ca.read_bytes()
    desk.bundle.ca.write_bytes(b"nonsense")
    desk.watch.follow(desk.bundle)
    assert not desk.watch.poll(NOW)
    desk.bundle.ca.write_bytes(before)
    desk.watch.follow(Bundle(ca.renew(desk.authority, "aggregator", now=NOW + 60)))
    assert desk.watch.poll(NOW), "the list that was refused"
    assert desk.ring.revocations.number >= number
    assert desk.watch.devices() == {"gw-01"}


def test_a_restart_forgets_no_list_whose_authority_has_left_ca_crt_meanwhile(desk: Desk) -> None:
    """The successor's list is withheld, and ca.crt came with a renewal."""
    gone = desk.node("gw-01")
    number = desk.revoke("gw-01")
    assert desk.watch.poll(NOW)
    root, authorities = load_chain(desk.authority)
    fresh = replace_authority(desk.authority, NOW)[1]
    desk.bundle.ca.write_bytes(pem(root, fresh))
    desk.bundle.crl.unlink()
    desk.start()
    assert desk.ring.revocations.number == number
    assert rule_of(lambda: desk.ring.learn(gone.certificate, NOW, intermediate=der(authorities[0]))) == "revoked"
    assert desk.watch.take(ca_revocation.newest_list(desk.authority).message), (
        "and it does not keep its successor's out"
    )
