"""What a broker, a mirror or a thief can try on a device, by the names of the TUF specification (§1.5.2)."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from release_site import HOUR, START, Site, describe, release_files
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root, TargetFile, Targets

from vedette_aggregator.registry import Registry
from vedette_aggregator.registry_files import RepositoryFiles, RepositoryState, meta_file
from vedette_device.trust import RetainedMemory, TrustClient
from vedette_schemas.codec import PAYLOAD_BYTES_MAX
from vedette_schemas.errors import ConfigError, PeerError, RefusedError, TransientError, VedetteError
from vedette_schemas.model import CHUNK_BYTES, MODEL_BYTES_MAX, Variant


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of synchronising is what is tested; waiting for the platters would only take time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path)
    site.publish("network", 0)
    site.publish("sensor", 0)
    return site


class Thief:
    """Has the online keys of a site, and signs what he likes."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.files = RepositoryFiles(site.folder / "stolen")
        shutil.copytree(site.repository, self.files.directory)

    def show(self, files: dict[str, bytes]) -> None:
        for name, data in files.items():
            self.site.retained[self.site.file(name)] = data

    def sign_top(self, change: Callable[[RepositoryState], None]) -> None:
        """Change snapshot and timestamp, raise their versions, sign both."""
        state = copy.deepcopy(self.files.load())
        change(state)
        state.snapshot.version += 1
        snapshot = self.files.sign(state.snapshot, "snapshot", state.root)
        state.timestamp.version += 1
        state.timestamp.snapshot_meta = meta_file(state.snapshot.version, snapshot)
        timestamp = self.files.sign(state.timestamp, "timestamp", state.root)
        self.show({f"{state.snapshot.version}.snapshot.json": snapshot, "timestamp.json": timestamp})

    def sign_role(self, task: str, change: Callable[[dict[str, TargetFile]], None]) -> None:
        """Change a task's targets and sign everything that hangs on them."""
        state = self.files.load()
        targets = dict(state.roles[task].targets)
        change(targets)
        self.show(self.files.commit(state, self.site.now, {task: Targets(targets=targets)}))


# --- what works ---


def test_a_device_finds_and_downloads_the_active_release(site: Site) -> None:
    device = site.device()
    assert not device.contributing_allowed, "nothing is known to be fresh before the first refresh"
    network, sensor = device.refresh()
    assert (network.task, network.version, sensor.task) == ("network", 0, "sensor")
    assert device.contributing_allowed
    assert device.faults == {}
    assert device.release("network") == network
    for variant, data in release_files("network", 0).items():
        assert device.download(network.targets[variant]) == data
    assert network.targets[Variant.INT8].custom.metrics == {"loss_after": "0.125"}


def test_a_large_artifact_comes_in_chunks(site: Site) -> None:
    for length in (CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES):
        version = site.registry.versions("network")[-1] + 1
        files = release_files("network", version) | {Variant.INT8: random.Random(length).randbytes(length)}
        site.publish("network", version, files)
        device = site.device()
        device.refresh()
        assert device.download(device.release("network").targets[Variant.INT8]) == files[Variant.INT8]


def test_a_new_root_is_followed_without_touching_the_device(site: Site) -> None:
    device = site.device()
    device.refresh()
    for rotation in range(2, 5):
        site.deliver(site.registry.renew(site.repository / "root-keys", START, ["timestamp", "release"]))
        assert site.device().refresh()[0].metadata_version[0] == rotation
    late = site.device("gw-enrolled-long-ago")
    assert late.refresh()[0].metadata_version[0] == 4


def test_a_task_without_a_release_has_none_yet(tmp_path: Path) -> None:
    site = Site(tmp_path)
    device = site.device()
    assert device.refresh() == []
    assert device.contributing_allowed
    with pytest.raises(RefusedError, match="found no active release"):
        device.release("network")


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


@pytest.mark.parametrize("length", [100, CHUNK_BYTES + 100])
def test_endless_data_attack_on_an_artifact(site: Site, length: int) -> None:
    files = release_files("network", 1) | {Variant.INT8: bytes(range(100)) * (length // 100)}
    site.publish("network", 1, files)
    device = site.device()
    device.refresh()
    target = device.release("network").targets[Variant.INT8]
    last = site.topics.artifact(target.sha256, None if length == 100 else 1)
    site.retained[last] += b"and more"
    with pytest.raises(PeerError, match=r"found \d+ bytes in part . of ., expected \d+") as refused:
        device.download(target)
    assert refused.value.reason == "limit"


def test_a_target_that_says_it_is_huge_is_not_fetched(site: Site) -> None:
    def huge(targets: dict[str, TargetFile]) -> None:
        targets["network/0/int8"].length = MODEL_BYTES_MAX + 1

    Thief(site).sign_role("network", huge)
    device = site.device()
    device.refresh()
    with pytest.raises(PeerError, match="expected 1 to"):
        device.release("network")


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


# --- wrong digest ---


@pytest.mark.parametrize("change", [lambda d: d[:-1] + b"!", lambda d: d[:-1], lambda d: b""])
def test_wrong_digest(site: Site, change: Callable[[bytes], bytes]) -> None:
    device = site.device()
    device.refresh()
    target = device.release("network").targets[Variant.INT8]
    topic = site.topics.artifact(target.sha256)
    site.retained[topic] = change(site.retained[topic])
    with pytest.raises(PeerError) as refused:
        device.download(target)
    assert refused.value.reason in ("digest", "length")
    del site.retained[topic]
    with pytest.raises(TransientError):
        device.download(target)


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


# --- the index hint ---


def test_a_lie_in_the_index_can_only_delay(site: Site) -> None:
    topic = site.file("index.json")
    site.retained[topic] = b'{"files":["2.root.json"]}'
    with pytest.raises(TransientError):
        site.device().refresh()
    for harmless in (b'{"files":[]}', b"garbage", b'{"files":[1]}', b"[" * 5000):
        site.retained[topic] = harmless
        assert len(site.device().refresh()) == 2
    del site.retained[topic]
    assert len(site.device().refresh()) == 2


def test_with_the_index_nothing_is_waited_for(site: Site) -> None:
    asked: list[str] = []

    def fetch(topic: str, timeout_s: float) -> bytes:
        asked.append(topic)
        return site.retained(topic, timeout_s)

    TrustClient(site.folder / "gw", site.root, site.topics, site.tasks, fetch, lambda: START).refresh()
    assert [t for t in asked if t not in site.retained] == []
    assert len(asked) == len(set(asked))


# --- a faulty release does not hold up the others ---


def _twice_active(targets: dict[str, TargetFile]) -> None:
    for path, target in list(targets.items()):
        other = copy.deepcopy(target)
        other.path = path.replace("/0/", "/1/")
        other.custom["version"] = 1
        targets[other.path] = other


def _set(variant: str, **changes: Any) -> Callable[[dict[str, TargetFile]], None]:
    return lambda targets: targets[f"network/0/{variant}"].custom.update(changes)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_twice_active, "active"),
        (_set("int8", plan="00" * 32), "plan"),
        (lambda targets: targets.pop("network/0/plan"), "plan"),
        (_set("int8", unknown_field=1), "schema"),
        (_set("int8", version=7), "description"),
        (_set("int8", task="sensor"), "description"),
        (_set("int8", format="weights"), "description"),
        (lambda targets: targets["network/0/int8"].unrecognized_fields.pop("custom"), "schema"),
        (lambda targets: setattr(targets["network/0/int8"], "hashes", {"sha512": "00" * 64}), "digest"),
        (lambda targets: setattr(targets["network/0/int8"], "hashes", {"sha256": "../../etc"}), "digest"),
    ],
)
def test_a_release_that_contradicts_itself_is_refused(
    site: Site, change: Callable[[dict[str, TargetFile]], None], reason: str
) -> None:
    Thief(site).sign_role("network", change)
    device = site.device()
    assert [r.task for r in device.refresh()] == ["sensor"]
    with pytest.raises(PeerError) as refused:
        device.release("network")
    assert refused.value.reason == reason


# --- everything else that a broker can send ---


def test_garbage_raises_nothing_but_declared_errors(site: Site) -> None:
    good = dict(site.retained)
    dice = random.Random(20)
    read = ("timestamp.json", "3.snapshot.json", "1.targets.json", "2.network.json", "2.sensor.json")
    names = [site.file(name) for name in read]
    refused = 0
    for _ in range(250):
        topic = dice.choice(names)
        data = bytearray(good[topic])
        match dice.randrange(4):
            case 0:
                data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
            case 1:
                del data[dice.randrange(len(data)) :]
            case 2:
                at = dice.randrange(len(data))
                data[at:at] = dice.choice([b"[" * 3000, b"{}", b"null", b"1e999", b"-1", b'"', b"\xff", b"1.5"])
            case _:
                document = json.loads(data)
                part = document.get("signed", document)
                part[dice.choice(list(part))] = dice.choice([None, [], {}, -1, "x", 10**400, {"a": {"b": []}}, True])
                data = bytearray(json.dumps(document).encode())
        site.retained.update(good)
        site.retained[topic] = bytes(data)
        shutil.rmtree(site.folder / "gw-01", ignore_errors=True)
        device = site.device()
        try:
            device.refresh()
        except VedetteError:
            refused += 1
        else:
            refused += bool(device.faults)
    assert refused > 230


def test_without_a_broker_it_is_tried_again_later(site: Site) -> None:
    device = site.device()
    device.refresh()
    site.retained.clear()
    with pytest.raises(TransientError):
        device.refresh()
    assert device.release("network").version == 0
    assert device.contributing_allowed


@pytest.mark.parametrize("content", [None, b"", b"{}", b"not json", b'{"signed":{"_type":"root"},"signatures":[]}'])
def test_a_bad_bootstrap_root_says_what_to_do(site: Site, content: bytes | None) -> None:
    path = site.folder / "other.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"expected the site's root\.json"):
        TrustClient(site.folder / "gw", path, site.topics, site.tasks, site.retained, lambda: START)


def test_the_root_never_comes_from_the_network(site: Site, tmp_path: Path) -> None:
    """A device that was enrolled at another site believes nothing here, whatever the broker shows."""
    foreign = Site(tmp_path / "foreign")
    device = TrustClient(site.folder / "gw", foreign.root, site.topics, site.tasks, site.retained, lambda: START)
    with pytest.raises(PeerError):
        device.refresh()
    assert not device.contributing_allowed


def test_a_second_release_of_the_same_number_is_not_believed(site: Site) -> None:
    """An aggregator that was restored from an old backup signs other files under numbers that are taken."""
    shutil.copytree(site.repository, site.folder / "backup")
    site.publish("network", 1)
    first = site.device().refresh()[0]
    site.registry = Registry(site.folder / "backup")
    files = release_files("network", 1, "another")
    site.deliver(site.registry.publish("network", 1, files, describe("network", 1, files), START))
    again = site.device().refresh()[0]
    assert again.targets[Variant.WEIGHTS].sha256 == first.targets[Variant.WEIGHTS].sha256
