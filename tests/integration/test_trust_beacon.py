"""The beacon: only the offline keys can replace its anchor, and no value is believed that does not lead to it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from beacon_roots import anchor_of, change_root, hide_root, renew, show_root
from release_site import HOUR, Site
from release_thief import Thief, with_releases
from tuf.api.metadata import Root

from vedette_aggregator.registry import Registry
from vedette_aggregator.registry_ceremony import ONLINE_SECRETS
from vedette_aggregator.registry_files import RepositoryState, meta_file
from vedette_core.crypto.beacon import BEACON_EPOCHS, BeaconChain, verify_beacon
from vedette_schemas.errors import PeerError, RefusedError, TransientError
from vedette_schemas.trust import BEACON_FIELD, BeaconAnchor


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of synchronising is what is tested; waiting for the platters would only take time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return with_releases(tmp_path)


def my_anchor() -> BeaconAnchor:
    """The attacker's own chain, of which he knows every value and chose the best."""
    return BeaconChain(b"I like this one best".ljust(32), BEACON_EPOCHS).anchor


# --- what works ---


def test_a_device_checks_what_the_aggregator_opens(site: Site) -> None:
    device = site.device()
    assert (device.beacon_anchor, device.beacon_fault) == (None, None), "nothing is known before the first refresh"
    device.refresh()
    anchor = anchor_of(device)
    assert anchor == site.registry.beacon_anchor
    assert anchor.length == BEACON_EPOCHS
    for epoch in (1, 2, 1000, BEACON_EPOCHS):
        verify_beacon(site.registry.beacon(epoch), epoch, anchor)
    assert Registry(site.repository).beacon(7) == site.registry.beacon(7)


def test_the_anchor_survives_a_restart_without_a_broker(site: Site) -> None:
    site.device().refresh()
    renew(site, "beacon")
    site.device().refresh()
    site.retained.clear()
    device = site.device()
    assert anchor_of(device) == site.registry.beacon_anchor
    with pytest.raises(TransientError):
        device.refresh()
    assert anchor_of(device) == site.registry.beacon_anchor
    site.now += 400 * 24 * HOUR  # everything has expired: rounds are over, and what is known stays known
    device = site.device()
    assert not device.contributing_allowed
    assert anchor_of(device) == site.registry.beacon_anchor


def test_each_site_has_its_own_chain(site: Site, tmp_path: Path) -> None:
    assert Site(tmp_path / "other").registry.beacon_anchor.anchor != site.registry.beacon_anchor.anchor


def test_an_anchor_that_cannot_be_read_stops_no_release(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Signed by mistake, or by a later version of the program."""
    device = site.device()
    device.refresh()
    change_root(site, lambda root: root.unrecognized_fields[BEACON_FIELD].update(scheme="later"), "root-keys")
    assert len(device.refresh()) == 2
    assert device.beacon_anchor is None, "the old anchor was taken away by the offline keys"
    assert isinstance(device.beacon_fault, PeerError)
    assert device.beacon_fault.reason == "schema"
    device.refresh()
    assert [r.getMessage() for r in caplog.records if r.name == "vedette.trust"] == [str(device.beacon_fault)], "once"


# --- attacks on the anchor ---


def test_an_online_key_replaces_the_anchor_in_the_root(site: Site) -> None:
    device = site.device()
    device.refresh()
    before = anchor_of(device)

    def replace(root: Root) -> None:
        root.unrecognized_fields[BEACON_FIELD] = my_anchor().model_dump(mode="json")

    change_root(site, replace, "keys")
    for asked in (device, site.device()):
        with pytest.raises(PeerError, match="too few valid signatures") as refused:
            asked.refresh()
        assert refused.value.reason == "signature"
        assert anchor_of(asked) == before
    fresh = site.device("gw-new")
    with pytest.raises(PeerError):
        fresh.refresh()
    assert fresh.beacon_anchor is None


@pytest.mark.parametrize("place", ["timestamp", "snapshot", "network"])
def test_an_online_key_puts_an_anchor_where_it_may_sign(site: Site, place: str) -> None:
    field = {BEACON_FIELD: my_anchor().model_dump(mode="json")}
    thief = Thief(site)

    def put(state: RepositoryState) -> None:
        if place == "network":
            role = state.roles["network"]
            role.unrecognized_fields.update(field)
            role.version += 1
            data = thief.files.sign(role, "network", state.targets)
            thief.show({f"{role.version}.network.json": data})
            state.snapshot.meta["network.json"] = meta_file(role.version, data)
        else:
            getattr(state, place).unrecognized_fields.update(field)

    thief.sign_top(put)
    device = site.device()
    device.refresh()
    newest = json.loads((site.folder / "gw-01" / "metadata" / f"{place}.json").read_bytes())
    assert BEACON_FIELD in newest["signed"], "the device did not take the file: the test shows nothing"
    assert anchor_of(device) == site.registry.beacon_anchor


def test_an_online_key_replaces_the_top_level_targets(site: Site) -> None:
    """They are signed offline, too; and an anchor in them would not count."""
    device = site.device()
    device.refresh()
    thief = Thief(site)
    document = json.loads(site.retained[site.file("1.targets.json")])
    document["signed"][BEACON_FIELD] = my_anchor().model_dump(mode="json")
    document["signed"]["version"] = 2
    data = json.dumps(document).encode()
    thief.show({"2.targets.json": data})
    thief.sign_top(lambda state: state.snapshot.meta.update({"targets.json": meta_file(2, data)}))
    with pytest.raises(PeerError) as refused:
        device.refresh()
    assert refused.value.reason == "signature"
    assert anchor_of(device) == site.registry.beacon_anchor


@pytest.mark.parametrize("shown_as", [2, 3, 4])
def test_an_old_root_with_another_anchor_is_replayed(site: Site, shown_as: int) -> None:
    old = site.registry.root
    renew(site, "beacon")
    renew(site)
    device = site.device()
    device.refresh()
    show_root(site, shown_as, old)
    for asked in (device, site.device()):  # a restart forgets nothing
        if shown_as == 4:
            with pytest.raises(RefusedError) as refused:
                asked.refresh()
            assert refused.value.rule == "rollback"
        else:
            asked.refresh()  # follows what it has stored, and does not even look
        assert anchor_of(asked) == site.registry.beacon_anchor
    if shown_as < 4:
        with pytest.raises(RefusedError) as refused:
            site.device("gw-new").refresh()
        assert refused.value.rule == "rollback"


def test_old_targets_are_replayed_after_the_online_keys_were_replaced(site: Site) -> None:
    """With new keys devices forget what they saw of snapshot and targets; the root they keep, and so the anchor."""
    device = site.device()
    device.refresh()
    old_root, old_targets = site.registry.root, site.retained[site.file("1.targets.json")]
    renew(site, "beacon")
    device.refresh()
    renew(site, "timestamp", "snapshot", "release", deliver=False)
    site.deliver(site.registry.retained())
    thief = Thief(site)  # has the new online keys
    hide_root(site, 2)
    thief.show({"1.root.json": old_root, "1.targets.json": old_targets})
    thief.sign_top(lambda state: state.snapshot.meta.update({"targets.json": meta_file(1, old_targets)}))
    for asked in (device, site.device()):
        asked.refresh()
        believed = json.loads((site.folder / "gw-01" / "metadata" / "targets.json").read_bytes())
        assert believed["signed"]["version"] == 1, "the targets were not rolled back: the test shows nothing"
        assert anchor_of(asked) == site.registry.beacon_anchor


def test_an_old_state_is_shown_whole(site: Site) -> None:
    old = dict(site.retained)
    renew(site, "beacon")
    site.device().refresh()
    site.retained.clear()
    site.retained.update(old)
    for device in (site.device(), site.device()):
        with pytest.raises(RefusedError) as refused:
            device.refresh()
        assert refused.value.rule == "rollback"
        assert anchor_of(device) == site.registry.beacon_anchor


def test_a_new_anchor_counts_although_its_sibling_files_are_withheld(site: Site) -> None:
    """A thief with the old seed holds back everything but what he cannot: the device drops the old chain at once."""
    device = site.device()
    device.refresh()
    renew(site, *ONLINE_SECRETS)
    del site.retained[site.file("timestamp.json")]
    with pytest.raises(TransientError):
        device.refresh()
    assert anchor_of(device) == site.registry.beacon_anchor


def test_an_old_root_after_the_newer_one_was_lost_from_the_disk(site: Site) -> None:
    device = site.device()
    renew(site, "beacon")
    device.refresh()
    (site.folder / "gw-01" / "metadata" / "root_history" / "2.root.json").write_bytes(b"")
    hide_root(site, 2)
    assert device.refresh()[0].metadata_version[0] == 1, "it has its newer root still: the test shows nothing"
    assert anchor_of(device) == site.registry.beacon_anchor


def test_a_root_below_its_threshold_brings_no_anchor(tmp_path: Path) -> None:
    site = Site(tmp_path, root_keys=3, threshold=2)
    device = site.device()
    device.refresh()
    before = anchor_of(device)
    renew(site, "beacon")
    topic = site.file("2.root.json")
    good = site.retained[topic]
    document = json.loads(good)
    document["signatures"] = document["signatures"][:1]
    site.retained[topic] = json.dumps(document).encode()
    with pytest.raises(PeerError, match="too few valid signatures"):
        device.refresh()
    assert anchor_of(device) == before
    site.retained[topic] = good
    device.refresh()
    assert anchor_of(device) == site.registry.beacon_anchor != before


def test_a_root_out_of_turn_brings_no_anchor(site: Site) -> None:
    device = site.device()
    device.refresh()
    before = anchor_of(device)
    renew(site, "beacon", deliver=False)
    renew(site, "beacon", deliver=False)
    third = site.registry.retained().metadata["3.root.json"]
    show_root(site, 2, third)
    with pytest.raises(RefusedError) as refused:
        device.refresh()
    assert refused.value.rule == "rollback"
    assert anchor_of(device) == before


def test_one_altered_digit_of_the_anchor(site: Site) -> None:
    device = site.device()
    device.refresh()
    before = anchor_of(device)
    renew(site, "beacon")
    topic, digit = site.file("2.root.json"), site.registry.beacon_anchor.anchor[0]
    altered = site.registry.beacon_anchor.anchor.replace(digit, "0" if digit != "0" else "1", 1)
    data = site.retained[topic].replace(site.registry.beacon_anchor.anchor.encode(), altered.encode())
    assert data != site.retained[topic]
    site.retained[topic] = data
    with pytest.raises(PeerError):
        device.refresh()
    assert anchor_of(device) == before


def test_the_anchor_of_another_site(site: Site, tmp_path: Path) -> None:
    foreign = Site(tmp_path / "foreign")
    renew(foreign, "beacon")
    device = site.device()
    device.refresh()
    before = anchor_of(device)
    show_root(site, 2, foreign.retained[foreign.file("2.root.json")])
    with pytest.raises(PeerError) as refused:
        device.refresh()
    assert refused.value.reason == "signature"
    assert anchor_of(device) == before
    with pytest.raises(PeerError):
        verify_beacon(foreign.registry.beacon(4), 4, before)


# --- attacks on a value ---


def test_a_value_of_another_epoch(site: Site) -> None:
    device = site.device()
    device.refresh()
    for other in (1, 99, 101, BEACON_EPOCHS):
        with pytest.raises(PeerError, match="opened another value") as refused:
            verify_beacon(site.registry.beacon(other), 100, anchor_of(device))
        assert refused.value.reason == "beacon"


def test_a_forged_value(site: Site) -> None:
    device = site.device()
    device.refresh()
    anchor = anchor_of(device)
    forgeries = (bytes(32), os.urandom(32), bytes.fromhex(anchor.anchor), site.registry.beacon(100)[:-1] + b"!")
    for forged in forgeries:
        with pytest.raises(PeerError) as refused:
            verify_beacon(forged, 100, anchor)
        assert refused.value.reason == "beacon"
