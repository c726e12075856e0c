"""Attacks on release metadata, by the names of the TUF specification (§1.5.2): what a device refuses to believe."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import pytest
from release_site import HOUR, START, Site
from release_thief import Thief, with_releases
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root, TargetFile

from vedette_aggregator.registry_files import RepositoryState, meta_file
from vedette_device.trust import RetainedMemory
from vedette_schemas.codec import PAYLOAD_BYTES_MAX
from vedette_schemas.errors import PeerError, RefusedError, VedetteError
from vedette_schemas.model import Variant


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of synchronising is what is tested; waiting for the platters would only take time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return with_releases(tmp_path)


# --- rollback ---


def test_rollback_attack_an_older_timestamp(site: Site) -> None:
    old = RetainedMemory(site.retained)
    site.publish("network", 1)
    site.device().refresh()
    site.retained.clear()
    site.retained.update(old)
    for device in (site.device(), site.device()):  # a restart forgets nothing
        with pytest.raises(RefusedError, match="older version") as refused:
            device.refresh()
        assert refused.value.rule == "rollback"


def test_rollback_attack_a_new_timestamp_of_an_older_snapshot(site: Site) -> None:
    old = site.registry.retained()
    old_snapshot = next(n for n in reversed(old.files) if n.endswith(".snapshot.json"))
    site.publish("network", 1)
    thief = Thief(site)
    site.device().refresh()
    state = copy.deepcopy(thief.files.load())
    state.timestamp.version += 5
    state.timestamp.snapshot_meta = meta_file(int(old_snapshot.split(".")[0]), old.metadata[old_snapshot])
    thief.show({"timestamp.json": thief.files.sign(state.timestamp, "timestamp", state.root)})
    with pytest.raises(RefusedError) as refused:
        site.device().refresh()
    assert refused.value.rule == "rollback"


def test_rollback_attack_a_new_snapshot_of_an_older_release(site: Site) -> None:
    old_role = site.retained[site.file("2.network.json")]
    site.publish("network", 1)
    site.device().refresh()
    site.retained[site.file("2.network.json")] = old_role

    def back(state: RepositoryState) -> None:
        state.snapshot.meta["network.json"] = meta_file(2, old_role)

    Thief(site).sign_top(back)
    with pytest.raises(RefusedError) as refused:
        site.device().refresh()
    assert refused.value.rule == "rollback"


def test_going_back_is_possible_only_with_newer_metadata(site: Site) -> None:
    site.publish("network", 1)
    before = site.device().refresh()[0]
    site.deliver(site.registry.rollback("network", 0, START))
    after = site.device().refresh()[0]
    assert (before.version, after.version) == (1, 0)
    assert after.metadata_version > before.metadata_version


# --- freeze ---


def test_indefinite_freeze_attack(site: Site) -> None:
    device = site.device()
    device.refresh()
    site.now = START + 23 * HOUR
    device.refresh()
    assert device.contributing_allowed
    site.now = START + 25 * HOUR
    assert not device.contributing_allowed, "stale metadata stop contributing, even before the next refresh"
    with pytest.raises(RefusedError, match="expected fresh ones") as refused:
        device.refresh()
    assert refused.value.rule == "freeze"
    # Detection goes on with what was verified: a download of the release known is still possible.
    assert device.download(device.release("network").targets[Variant.INT8])


def test_indefinite_freeze_attack_with_the_clock_set_back(site: Site) -> None:
    device = site.device()
    device.refresh()
    site.now = START + 25 * HOUR
    with pytest.raises(RefusedError):
        device.refresh()
    site.now = START - 1000 * HOUR  # a gateway without a battery clock starts in the past
    again = site.device()
    assert not again.contributing_allowed
    with pytest.raises(RefusedError) as refused:
        again.refresh()
    assert refused.value.rule == "freeze"


def test_a_clock_that_ran_wild_once_does_not_lock_the_device_out(site: Site) -> None:
    device = site.device()
    device.refresh()
    site.now = START + 10 * 365 * 24 * HOUR
    with pytest.raises(RefusedError):
        device.refresh()
    site.now = START + 13 * HOUR
    site.deliver(site.registry.refresh_timestamp(site.now))
    device = site.device()
    assert device.refresh()[0].version == 0
    assert device.contributing_allowed


# --- mix and match ---


@pytest.mark.parametrize("kind", ["snapshot", "network"])
def test_mix_and_match_attack(site: Site, kind: str) -> None:
    version = 3 if kind == "snapshot" else 2
    old = site.retained[site.file(f"{version}.{kind}.json")]
    site.publish("network", 1)
    device = site.device()
    new = f"{version + 1}.{kind}.json"
    assert site.file(new) in site.retained
    site.retained[site.file(new)] = old
    if kind == "snapshot":
        with pytest.raises(RefusedError) as refused:
            device.refresh()
        assert refused.value.rule == "mix-and-match"
    else:
        assert [r.task for r in device.refresh()] == ["sensor"], "the other task's release is not held up"
        with pytest.raises(RefusedError) as refused:
            device.release("network")
        assert refused.value.rule == "mix-and-match"


# --- endless data ---


@pytest.mark.parametrize("name", ["timestamp.json", "3.snapshot.json", "1.targets.json", "2.root.json"])
def test_endless_data_attack_on_metadata(site: Site, name: str) -> None:
    site.retained[site.file(name)] = b" " * PAYLOAD_BYTES_MAX
    if name == "2.root.json":
        site.retained[site.file("index.json")] = json.dumps({"files": [name]}).encode()
    with pytest.raises(PeerError, match="more bytes") as refused:
        site.device().refresh()
    assert refused.value.reason == "limit"


# --- arbitrary installation ---


def test_arbitrary_installation_attack_with_keys_of_ones_own(site: Site, tmp_path: Path) -> None:
    foreign = Site(tmp_path / "foreign")
    foreign.publish("network", 0)
    foreign.publish("sensor", 0)
    device = site.device()
    site.retained.update(foreign.retained)
    with pytest.raises(PeerError, match="too few valid signatures") as refused:
        device.refresh()
    assert refused.value.reason == "signature"


def test_arbitrary_installation_attack_with_one_altered_release(site: Site) -> None:
    topic = site.file("2.network.json")
    site.retained[topic] = site.retained[topic].replace(b'"version":0', b'"version":9')
    device = site.device()
    assert [r.task for r in device.refresh()] == ["sensor"]
    with pytest.raises(VedetteError):
        device.release("network")


def test_arbitrary_installation_attack_outside_of_a_roles_own_paths(site: Site) -> None:
    """The release key of one task says something about another task's model."""

    def reach_out(targets: dict[str, TargetFile]) -> None:
        stolen = copy.deepcopy(targets["network/0/int8"])
        stolen.path = "sensor/0/int8"
        targets[stolen.path] = stolen

    Thief(site).sign_role("network", reach_out)
    device = site.device()
    device.refresh()
    with pytest.raises(RefusedError, match="expected only paths below network/") as refused:
        device.release("network")
    assert refused.value.rule == "arbitrary-installation"
    assert device.release("sensor").targets[Variant.INT8].custom.task == "sensor"


@pytest.mark.parametrize("keep_old_signature", [True, False])
def test_arbitrary_installation_attack_with_a_root_of_ones_own(site: Site, keep_old_signature: bool) -> None:
    """A root that names the attacker's key is signed by it, but not by the threshold of the root before."""
    document = Metadata[Root].from_bytes(site.registry.root)
    mine = CryptoSigner.generate_ed25519()
    old = dict(document.signatures)
    document.signed.version = 2
    for role in ("root", "timestamp"):
        document.signed.add_key(mine.public_key, role)
    document.sign(mine)
    if keep_old_signature:
        document.signatures.update(old)
    site.retained[site.file("2.root.json")] = document.to_bytes()
    site.retained[site.file("index.json")] = b'{"files":["2.root.json"]}'
    with pytest.raises(PeerError) as refused:
        site.device().refresh()
    assert refused.value.reason == "signature"


def test_a_root_below_its_threshold_is_refused(tmp_path: Path) -> None:
    site = Site(tmp_path, root_keys=3, threshold=2)
    site.deliver(site.registry.renew(site.repository / "root-keys", START))
    topic = site.file("2.root.json")
    document = json.loads(site.retained[topic])
    assert len(document["signatures"]) == 3
    document["signatures"] = document["signatures"][:1]
    site.retained[topic] = json.dumps(document).encode()
    with pytest.raises(PeerError, match="too few valid signatures"):
        site.device().refresh()
    document["signatures"] = document["signatures"] * 2  # the same one twice is still one
    site.retained[topic] = json.dumps(document).encode()
    with pytest.raises(PeerError):
        site.device().refresh()


# --- unknown role ---


def test_unknown_role(site: Site) -> None:
    """A role that is signed and listed in the snapshot, but that nobody delegated to, counts for nothing."""
    thief = Thief(site)
    state = thief.files.load()
    evil = site.retained[site.file("2.network.json")]

    def add(changed: RepositoryState) -> None:
        changed.snapshot.meta["evil.json"] = meta_file(2, evil)

    thief.sign_top(add)
    thief.show({"2.evil.json": evil})
    device = site.device(tasks=["network", "evil"])
    assert [r.task for r in device.refresh()] == ["network"]
    with pytest.raises(RefusedError, match="found no role") as refused:
        device.release("evil")
    assert refused.value.rule == "unknown-role"
    assert "evil" not in state.roles


# --- fast forward ---


def test_fast_forward_attack_is_undone_by_replacing_the_keys(site: Site) -> None:
    thief, far = Thief(site), 10**6
    state = thief.files.load()
    role = state.roles["network"]
    role.version = far
    role_bytes = thief.files.sign(role, "network", state.targets)
    thief.show({f"{far}.network.json": role_bytes})

    def ahead(changed: RepositoryState) -> None:
        changed.snapshot.version = changed.timestamp.version = far
        changed.snapshot.meta["network.json"] = meta_file(far, role_bytes)

    thief.sign_top(ahead)
    before = site.device().refresh()[0]
    assert before.metadata_version == (1, far)
    site.deliver(site.registry.retained())
    with pytest.raises(RefusedError):  # the honest metadata look old now
        site.device().refresh()
    rotate = ["timestamp", "snapshot", "release"]
    site.deliver(site.registry.renew(site.repository / "root-keys", site.now, rotate))
    after = site.device().refresh()[0]
    assert after.metadata_version[1] < 100
    assert after.metadata_version > before.metadata_version, "the update machine must be able to tell that it is newer"


def test_stolen_keys_are_worth_nothing_after_they_were_replaced(site: Site) -> None:
    thief = Thief(site)
    device = site.device()
    device.refresh()
    site.deliver(site.registry.renew(site.repository / "root-keys", site.now, ["timestamp", "snapshot", "release"]))
    device.refresh()
    thief.sign_role("network", lambda targets: None)
    with pytest.raises(PeerError) as refused:
        device.refresh()
    assert refused.value.reason == "signature"
