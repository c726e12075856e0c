"""What works, and attacks on artifacts, on the index, on single releases, and on whatever else a broker sends."""

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
from release_site import START, Site, describe, release_files
from release_thief import Thief, with_releases
from tuf.api.metadata import TargetFile

from vedette_aggregator.registry import Registry
from vedette_device.trust import TrustClient
from vedette_schemas.errors import ConfigError, PeerError, RefusedError, TransientError, VedetteError
from vedette_schemas.model import CHUNK_BYTES, MODEL_BYTES_MAX, Variant


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of synchronising is what is tested; waiting for the platters would only take time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return with_releases(tmp_path)


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


# --- endless data ---


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
