"""The beacon's chain in the release repository: its seed, its renewal, and repositories that have none."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from beacon_roots import anchor_of, change_root, renew
from power_cut import count_steps, run_until_cut
from release_site import START, Site
from release_thief import with_releases
from tuf.api.metadata import Root

from vedette_aggregator.registry import Registry
from vedette_aggregator.registry_ceremony import ONLINE_SECRETS
from vedette_core.crypto.beacon import BEACON_EPOCHS, verify_beacon
from vedette_schemas.errors import ConfigError, PeerError, RefusedError
from vedette_schemas.trust import BEACON_EPOCHS_MAX, BEACON_FIELD


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of synchronising is what is tested; waiting for the platters would only take time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return with_releases(tmp_path)


def seeds(repository: Path) -> list[Path]:
    return sorted((repository / "keys").glob("*.seed"))


# --- renewal ---


def test_a_ceremony_replaces_the_chain_and_devices_follow(site: Site) -> None:
    device = site.device()
    device.refresh()
    before, leaked = anchor_of(device), site.registry.beacon(9)
    renew(site, *ONLINE_SECRETS)
    assert site.registry.beacon_anchor != before
    device.refresh()
    assert anchor_of(device) == site.registry.beacon_anchor
    verify_beacon(site.registry.beacon(9), 9, anchor_of(device))
    with pytest.raises(PeerError):
        verify_beacon(leaked, 9, anchor_of(device))
    assert [p.name for p in seeds(site.repository)] == [f"beacon.{anchor_of(device).anchor[:16]}.seed"]


def test_a_ceremony_for_other_reasons_keeps_the_chain(site: Site) -> None:
    before, value = site.registry.beacon_anchor, site.registry.beacon(3)
    renew(site, "timestamp", "snapshot", "release")
    assert (site.registry.beacon_anchor, site.registry.beacon(3)) == (before, value)


def test_a_chain_that_is_used_up_is_followed_by_a_longer_one(site: Site) -> None:
    last = BEACON_EPOCHS + 1
    with pytest.raises(ConfigError, match="used up; a new ceremony"):
        site.registry.beacon(last)
    renew(site, "beacon", beacon_epochs=2 * BEACON_EPOCHS)
    device = site.device()
    device.refresh()
    verify_beacon(site.registry.beacon(last), last, anchor_of(device))
    renew(site, "beacon")
    assert site.registry.beacon_anchor.length == 2 * BEACON_EPOCHS, "a rotation after a theft shortens nothing"
    for wrong in (0, BEACON_EPOCHS, BEACON_EPOCHS_MAX + 1):
        with pytest.raises(ConfigError, match=f"epochs of the beacon: found {wrong}, expected {2 * BEACON_EPOCHS} to"):
            renew(site, "beacon", beacon_epochs=wrong)
    with pytest.raises(ConfigError, match="without rotating 'beacon'"):
        renew(site, "release", beacon_epochs=BEACON_EPOCHS_MAX)


def test_without_the_offline_keys_there_is_no_other_chain(site: Site, tmp_path: Path) -> None:
    shutil.move(site.repository / "root-keys", tmp_path / "vault")
    before, value = site.registry.beacon_anchor, site.registry.beacon(5)
    for offline in (site.repository / "root-keys", site.repository / "keys"):
        with pytest.raises(ConfigError, match="found 0 keys of role 'root'"):
            site.registry.renew(offline, START, ["beacon"])
    assert (site.registry.beacon_anchor, site.registry.beacon(5)) == (before, value)


def test_a_ceremony_that_was_cut_short_leaves_a_chain_that_works(tmp_path: Path) -> None:
    site = Site(tmp_path / "origin")
    vault = site.repository / "root-keys"
    old = site.registry.beacon_anchor
    reference = tmp_path / "reference"
    shutil.copytree(site.repository, reference)
    steps = count_steps(lambda: Registry(reference).renew(vault, START, ["beacon"]))
    kept = replaced = 0
    for step in range(steps):
        directory = tmp_path / f"crash-{step}"
        shutil.copytree(site.repository, directory)
        run_until_cut(lambda d=directory: Registry(d).renew(vault, START, ["beacon"]), step)  # type: ignore[misc]
        registry = Registry(directory)
        verify_beacon(registry.beacon(11), 11, registry.beacon_anchor)
        kept, replaced = kept + (registry.beacon_anchor == old), replaced + (registry.beacon_anchor != old)
        registry.renew(vault, START, ["beacon"])
        verify_beacon(registry.beacon(11), 11, registry.beacon_anchor)
        assert len(seeds(directory)) == 1, f"step {step}: a seed was left over"
    assert kept
    assert replaced


# --- the seed ---


def test_the_seed_is_for_its_owner_only(site: Site) -> None:
    (seed,) = seeds(site.repository)
    assert seed.stat().st_mode & 0o777 == 0o600
    assert len(seed.read_bytes()) == 32
    shown = [*site.retained.values(), *(p.read_bytes() for p in (site.repository / "metadata").iterdir())]
    assert not any(seed.read_bytes() in data or seed.read_bytes().hex().encode() in data for data in shown)
    seed.chmod(0o644)
    with pytest.raises(ConfigError, match="found mode 644, expected 600"):
        site.registry.beacon(1)


@pytest.mark.parametrize("content", [None, b"", bytes(32), bytes(31)])
def test_a_lost_or_damaged_seed_says_what_to_do(site: Site, content: bytes | None) -> None:
    (seed,) = seeds(site.repository)
    if content is None:
        seed.unlink()
    else:
        seed.write_bytes(content)
    with pytest.raises(ConfigError, match="replace the beacon with the offline keys"):
        site.registry.beacon(1)
    site.publish("network", 1)  # releases do not hang on it
    renew(site, "beacon")
    verify_beacon(site.registry.beacon(1), 1, site.registry.beacon_anchor)


# --- a repository from before there was a beacon ---


def without_anchor(site: Site) -> None:
    """Make the site one whose repository was made before: its root says nothing of a beacon."""

    def forget(root: Root) -> None:
        del root.unrecognized_fields[BEACON_FIELD]

    data = change_root(site, forget, "root-keys")
    (site.repository / "metadata" / "2.root.json").write_bytes(data)
    for seed in seeds(site.repository):
        seed.unlink()
    site.registry = Registry(site.repository)


def test_a_repository_without_an_anchor_works_until_the_beacon_is_asked_for(site: Site) -> None:
    without_anchor(site)
    site.publish("network", 1)
    for ask in (lambda: site.registry.beacon(1), lambda: site.registry.beacon_anchor):
        with pytest.raises(ConfigError, match="renew it with the offline keys and rotate 'beacon'"):
            ask()
    device = site.device()
    assert device.refresh()[0].version == 1
    assert device.beacon_anchor is None
    assert isinstance(device.beacon_fault, RefusedError)
    assert device.beacon_fault.rule == "no-beacon"
    assert site.device().beacon_anchor is None
    assert site.device().beacon_fault is not None, "a restart knows it too"
    renew(site, "beacon")
    device.refresh()
    assert anchor_of(device) == site.registry.beacon_anchor
