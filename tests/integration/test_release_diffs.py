"""Diffs of releases from the registry over retained topics to a device; and what becomes of a bad one."""

from __future__ import annotations

import hashlib
import lzma
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from release_site import Site, release_files
from release_thief import Thief
from tuf.api.metadata import TargetFile

from vedette_core.learning.artifact_diff import MAGIC, _filters, make_diff
from vedette_device.trust import TrustClient
from vedette_schemas.errors import PeerError
from vedette_schemas.model import CHUNK_BYTES, MODEL_BYTES_MAX, ReleaseDiff, Variant


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of synchronising is what is tested; waiting for the platters would only take time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def files_of(version: int, size: int = 2000) -> dict[Variant, bytes]:
    """Releases of which each moves a few of the bytes of the one before."""
    dice = random.Random(1)
    data = bytearray(dice.randbytes(size))
    for n in range(version * 20):
        data[dice.randrange(size)] = (data[dice.randrange(size)] + n) % 256
    return release_files("network", version) | {Variant.INT8: bytes(data)}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path, ["network"])
    for version in range(3):
        site.publish("network", version, files_of(version))
    return site


class Downloads:
    """A device that holds some files and counts how it gets others."""

    def __init__(self, site: Site) -> None:
        self.device = site.device()
        self.device.refresh()
        self.target = self.device.release("network").targets[Variant.INT8]
        self.asked: list[str] = []
        self.seen: list[tuple[str, str, int]] = []
        self.device.downloads.on_download = lambda *what: self.seen.append(what)

    def get(self, *held: bytes) -> bytes:
        known = {hashlib.sha256(data).hexdigest(): data for data in held}
        return self.device.download(self.target, known.get)


def test_a_device_that_holds_the_parent_fetches_the_diff(site: Site) -> None:
    downloads = Downloads(site)
    diff = downloads.target.custom.diff
    assert diff is not None
    assert downloads.get(files_of(1)[Variant.INT8]) == files_of(2)[Variant.INT8]
    assert downloads.seen == [("network", "diff", diff.length)]
    assert diff.length < 200


def test_a_device_that_holds_nothing_or_another_file_fetches_it_whole(site: Site) -> None:
    downloads = Downloads(site)
    assert downloads.get() == downloads.get(files_of(0)[Variant.INT8]) == files_of(2)[Variant.INT8]
    assert downloads.seen == [("network", "full", 2000)] * 2


@pytest.mark.parametrize(
    "change",
    [
        lambda d: None,
        lambda d: b"",
        lambda d: d[:-1],
        lambda d: d + b"x",
        lambda d: bytes(len(d)),
        lambda d: d[:20] + bytes([d[20] ^ 1]) + d[21:],
    ],
)
def test_a_diff_that_is_missing_or_damaged_costs_only_the_whole_file(
    site: Site, change: Callable[[bytes], bytes | None]
) -> None:
    downloads = Downloads(site)
    diff = downloads.target.custom.diff
    assert diff is not None
    topic = site.topics.artifact(diff.sha256)
    changed = change(site.retained.pop(topic))
    if changed is not None:
        site.retained[topic] = changed
    assert downloads.get(files_of(1)[Variant.INT8]) == files_of(2)[Variant.INT8]
    assert downloads.seen == [("network", "diff-refused", diff.length + 2000)]


def sign_diff(site: Site, data: bytes, **changes: int | str) -> None:
    """Whoever holds the release key signs a diff of his own for the active release."""
    sha256 = hashlib.sha256(data).hexdigest()
    said = {"parent": hashlib.sha256(files_of(1)[Variant.INT8]).hexdigest(), "sha256": sha256, "length": len(data)}

    def change(targets: dict[str, TargetFile]) -> None:
        targets["network/2/int8"].custom["diff"] = said | changes

    Thief(site).sign_role("network", change)
    site.retained[site.topics.artifact(sha256)] = data


def test_a_bomb_that_is_signed_as_a_diff_stops_at_the_declared_size(site: Site) -> None:
    bomb = bytes((MAGIC, 0x10)) + lzma.compress(bytes(8 * 2**20), format=lzma.FORMAT_RAW, filters=_filters(2000))
    sign_diff(site, bomb)
    downloads = Downloads(site)
    assert len(bomb) < 2000, "else it is not even fetched"
    assert downloads.get(files_of(1)[Variant.INT8]) == files_of(2)[Variant.INT8]
    assert downloads.seen == [("network", "diff-refused", len(bomb) + 2000)]


def test_a_diff_that_leads_elsewhere_is_not_believed(site: Site) -> None:
    """The digest of the target decides what the bytes are, not who signed the diff."""
    sign_diff(site, make_diff(files_of(1)[Variant.INT8], files_of(1)[Variant.INT8][:-1] + b"!"))
    downloads = Downloads(site)
    assert downloads.get(files_of(1)[Variant.INT8]) == files_of(2)[Variant.INT8]
    assert [how for _, how, _ in downloads.seen] == ["diff-refused"]


def test_a_diff_that_is_as_large_as_the_file_is_not_fetched(site: Site) -> None:
    sign_diff(site, bytes(2000))
    downloads = Downloads(site)
    assert downloads.get(files_of(1)[Variant.INT8]) == files_of(2)[Variant.INT8]
    assert downloads.seen == [("network", "full", 2000)]


@pytest.mark.parametrize("changes", [{"length": 0}, {"length": MODEL_BYTES_MAX + 1}, {"sha256": "x"}, {"extra": 1}])
def test_a_description_of_a_diff_out_of_bounds_refuses_the_release(site: Site, changes: dict[str, int | str]) -> None:
    sign_diff(site, b"diff", **changes)
    device: TrustClient = site.device()
    assert device.refresh() == []
    with pytest.raises(PeerError) as refused:
        device.release("network")
    assert refused.value.reason == "schema"


def test_a_large_diff_comes_in_parts(site: Site) -> None:
    dice = random.Random(4)
    small, large = files_of(2), files_of(3)
    large[Variant.INT8] = dice.randbytes(CHUNK_BYTES * 2) + bytes(CHUNK_BYTES)
    site.publish("network", 3, large)
    downloads = Downloads(site)
    diff = downloads.target.custom.diff
    assert diff is not None
    assert diff.length > CHUNK_BYTES
    assert downloads.get(small[Variant.INT8]) == large[Variant.INT8]
    assert [how for _, how, _ in downloads.seen] == ["diff"]


def test_a_file_that_did_not_change_or_is_all_new_has_no_diff(site: Site) -> None:
    files = files_of(2) | {Variant.WEIGHTS: random.Random(7).randbytes(500)}
    site.publish("network", 3, files)
    listed = site.registry.listed("network", 3)
    assert {v for v, target in listed.items() if target.custom.diff is not None} == set()


def test_a_release_without_a_diff_reads_as_before(site: Site) -> None:
    """Devices from before refuse fields that they do not know: where there is no diff, there is no field."""
    role = site.retained[site.file("4.network.json")]
    assert b'"diff":null' not in role.replace(b" ", b"")
    assert ReleaseDiff.model_fields.keys() == {"parent", "sha256", "length"}


def test_old_diffs_leave_the_broker(site: Site) -> None:
    first = site.registry.listed("network", 1)[Variant.INT8].custom.diff
    assert first is not None
    assert site.topics.artifact(first.sha256) in site.retained
    site.publish("network", 3, files_of(3))
    assert site.topics.artifact(first.sha256) not in site.retained
