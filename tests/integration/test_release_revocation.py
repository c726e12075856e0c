"""A release is revoked: what the registry signs then, and what a device does that hears of it, or that runs it."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
from power_cut import count_steps, run_until_cut
from release_site import Site, describe, release_files
from release_thief import Thief
from test_slots import data, install, model
from tuf.api.metadata import Targets

from vedette_aggregator.registry import Registry
from vedette_device.model_slots import ModelSlots
from vedette_schemas.errors import PeerError, RefusedError, TransientError
from vedette_schemas.model import Variant
from vedette_schemas.trust import REVOKED_FIELD, REVOKED_MAX


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of synchronising is what is tested; waiting for the platters would only take time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path, ["network"])
    for version in range(3):
        site.publish("network", version)
    return site


def test_the_active_release_goes_to_the_newest_that_is_left(site: Site) -> None:
    before = site.device().refresh()[0]
    site.deliver(site.registry.revoke("network", 2, "floods alerts", site.now))
    device = site.device()
    (after,) = device.refresh()
    assert (before.version, after.version) == (2, 1)
    assert after.metadata_version > before.metadata_version, "a device may go back only with newer metadata"
    assert device.revoked("network").sha256 == {t.sha256 for v, t in before.targets.items() if v is not Variant.PLAN}, (
        "the plan is shared with sound releases"
    )
    assert site.registry.versions("network") == (0, 1)
    assert [(r.version, r.reason) for r in site.registry.revoked("network")] == [(2, "floods alerts")]
    for target in before.targets.values():
        assert (site.topics.artifact(target.sha256) in site.retained) == (target.custom.variant is Variant.PLAN)


def test_an_older_one_leaves_the_active_release(site: Site) -> None:
    site.deliver(site.registry.revoke("network", 1, "wrong data", site.now))
    assert site.device().refresh()[0].version == 2
    assert site.registry.versions("network") == (0, 2)


def test_it_is_done_once(site: Site) -> None:
    site.registry.revoke("network", 2, "floods alerts", site.now)
    version = site.registry.expires()
    site.registry.revoke("network", 2, "again", site.now + 1)
    assert site.registry.expires() == version, "nothing was signed anew"
    assert len(site.registry.revoked("network")) == 1


def test_numbers_are_not_used_again_and_bytes_do_not_come_back(site: Site) -> None:
    site.registry.revoke("network", 2, "floods alerts", site.now)
    assert site.registry.next_version("network") == 3
    files = release_files("network", 2)  # the bytes that were revoked
    with pytest.raises(RefusedError, match="was revoked") as refused:
        site.registry.publish("network", 3, files, describe("network", 3, files), site.now)
    assert refused.value.rule == "revoked"
    site.publish("network", 3)
    assert site.registry.active("network") == 3
    assert len(site.registry.revoked("network")) == 1, "the list outlives the next release"
    with pytest.raises(RefusedError, match="found no release 2"):
        site.registry.rollback("network", 2, site.now)
    site.registry.rollback("network", 1, site.now)
    assert len(site.registry.revoked("network")) == 1


def test_the_last_release_stays(site: Site) -> None:
    site.registry.revoke("network", 2, "bad", site.now)
    site.registry.revoke("network", 1, "bad", site.now)
    with pytest.raises(RefusedError, match="no other release to go to") as refused:
        site.registry.revoke("network", 0, "bad", site.now)
    assert refused.value.rule == "last-release"


@pytest.mark.parametrize(
    ("version", "reason", "digests", "rule"),
    [
        (9, "no such", (), "version"),
        (2, "", (), "reason"),
        (2, "x" * 201, (), "reason"),
        (9, "short", ("ab",), "digest"),
        (9, "upper", ("AB" * 32,), "digest"),
        (9, "too many", tuple(f"{n:064x}" for n in range(9)), "digest"),
        (-1, "no number", ("ab" * 32,), "digest"),
        (2**53, "a device says so", ("ab" * 32,), "version"),
    ],
)
def test_what_cannot_be_revoked(site: Site, version: int, reason: str, digests: tuple[str, ...], rule: str) -> None:
    with pytest.raises(RefusedError) as refused:
        site.registry.revoke("network", version, reason, site.now, digests)
    assert refused.value.rule == rule


def test_digests_of_what_stays_are_refused(site: Site) -> None:
    listed = site.registry.listed("network", 1)
    for variant in (Variant.PLAN, Variant.INT8):
        with pytest.raises(RefusedError, match="expected only its own files"):
            site.registry.revoke("network", 7, "a slip", site.now, [listed[variant].sha256])


def test_a_release_that_is_not_ours_goes_by_its_digests(site: Site) -> None:
    site.registry.revoke("network", 3, "a thief signed it", site.now, ["ab" * 32])
    assert site.registry.active("network") == 2
    assert site.registry.revoked("network")[0].sha256 == ("ab" * 32,)
    assert site.registry.next_version("network") == 4


def test_the_list_stays_bounded(site: Site) -> None:
    for n in range(REVOKED_MAX + 3):
        site.deliver(site.registry.revoke("network", 3 + n, "a thief signed it", site.now, [f"{n:064x}"]))
    found = site.registry.revoked("network")
    assert [r.version for r in found] == [3 + n for n in range(3, REVOKED_MAX + 3)]
    assert len(site.device().refresh()) == 1


def test_a_crash_at_any_step_leaves_it_revoked_or_not(site: Site, tmp_path: Path) -> None:
    import shutil

    def revoke(folder: Path) -> None:
        Registry(folder).revoke("network", 2, "bad", site.now)

    first = tmp_path / "first"
    shutil.copytree(site.repository, first)
    steps = count_steps(lambda: revoke(first))
    seen = set()
    for step in range(steps):
        folder = tmp_path / f"cut-{step}"
        shutil.copytree(site.repository, folder)
        run_until_cut(lambda folder=folder: revoke(folder), step)  # type: ignore[misc]
        registry = Registry(folder)
        registry.retained()
        seen.add((registry.active("network"), len(registry.revoked("network"))))
        revoke(folder)
        assert Registry(folder).active("network") == 1
    assert seen == {(2, 0), (1, 1)}


# --- what a device makes of it ---


@pytest.mark.parametrize(
    "field",
    [{}, "x", [[]], [{"version": 1}], [{"version": 1, "sha256": ["zz"], "reason": "x"}], [None] * (REVOKED_MAX + 1)],
)
def test_a_list_that_cannot_be_read_is_refused(site: Site, field: Any) -> None:
    thief = Thief(site)
    state = thief.files.load()
    contents = Targets(targets=state.roles["network"].targets, unrecognized_fields={REVOKED_FIELD: field})
    thief.show(thief.files.commit(state, site.now, {"network": contents}))
    device = site.device()
    assert device.refresh() == []
    with pytest.raises(PeerError):
        device.release("network")


def test_a_release_that_is_active_and_revoked_is_refused(site: Site) -> None:
    site.registry.revoke("network", 3, "a thief signed it", site.now, ["ab" * 32])
    thief = Thief(site)
    state = thief.files.load()
    role = copy.deepcopy(state.roles["network"])
    weights = role.targets["network/2/weights"].hashes["sha256"]
    role.unrecognized_fields[REVOKED_FIELD][0]["sha256"] = [weights]
    thief.show(thief.files.commit(state, site.now, {"network": role}))
    device = site.device()
    assert device.refresh() == []
    with pytest.raises(RefusedError, match="active and revoked"):
        device.release("network")
    assert weights in device.revoked("network").sha256, "the revocation counts all the same"


def test_slots_never_fall_back_to_a_revoked_release(tmp_path: Path) -> None:
    slots = ModelSlots(tmp_path / "slots")
    install(slots, 1)
    install(slots, 2)
    first, second = model(1), model(2)
    assert slots.held(first.sha256) == data(1)
    assert slots.drop({second.sha256}, first.sha256) == first
    again = ModelSlots(tmp_path / "slots")
    assert (again.view().active, again.view().spare) == (first, None)
    assert again.held(second.sha256) is None
    assert not list((tmp_path / "slots").rglob(f"{second.sha256}.model")), "its bytes are gone from the disk"
    assert again.drop({first.sha256}, "") is None
    assert again.fall_back() is None


def test_the_successor_must_have_been_confirmed_and_not_be_revoked_itself(tmp_path: Path) -> None:
    slots = ModelSlots(tmp_path / "slots")
    install(slots, 1)
    slots.stage(model(2), data(2))
    assert slots.drop({model(1).sha256}, model(2).sha256) is None, "never tested, never confirmed"
    install(slots, 3)
    install(slots, 4)
    assert slots.drop({model(3).sha256, model(4).sha256}, model(3).sha256) is None


def test_what_is_revoked_is_known_after_a_restart_without_a_broker(site: Site) -> None:
    site.deliver(site.registry.revoke("network", 2, "floods alerts", site.now))
    device = site.device()
    device.refresh()
    known = device.revoked("network")
    assert len(known.sha256) == 2
    site.retained.clear()
    again = site.device()
    assert again.revoked("network") == known
    with pytest.raises(TransientError):
        again.refresh()
    assert again.revoked("network") == known
    assert site.device("new").revoked("network").sha256 == frozenset()
