"""The release registry on a real disk: versions, what is retained, crashes at every step, keys."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from power_cut import count_steps, run_until_cut
from release_site import HOUR, START, TASKS, Site, describe, release_files

from vedette_aggregator.listed_releases import ListedReleases
from vedette_aggregator.publication import Publication, retained_messages
from vedette_aggregator.registry import RELEASES_KEPT, Registry
from vedette_aggregator.registry_ceremony import renew
from vedette_aggregator.registry_files import RepositoryFiles, RepositoryState
from vedette_schemas.errors import ConfigError, RefusedError, TransientError
from vedette_schemas.model import CHUNK_BYTES, MODEL_BYTES_MAX, Variant
from vedette_schemas.topics import Topics


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of synchronising is what is tested; waiting for the platters would only take time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_versions_go_up_by_one(site: Site) -> None:
    for version in range(3):
        site.publish("network", version)
        assert site.registry.active("network") == version
    for wrong in (1, 4, 17):
        files = release_files("network", wrong, "other")
        with pytest.raises(RefusedError, match="expected version 3") as refused:
            site.registry.publish("network", wrong, files, describe("network", wrong, files), START)
        assert refused.value.rule == "version"
    assert site.registry.active("sensor") is None


def test_a_state_answers_of_one_moment_and_the_next_of_now(site: Site) -> None:
    site.publish("network", 0)
    before = site.registry.state()
    site.publish("network", 1)
    assert (before.active("network"), before.versions("network"), before.next_version("network")) == (0, (0,), 1)
    with pytest.raises(RefusedError, match="expected one of those kept: 0$"):
        before.listed("network", 1)
    after = site.registry.state()
    assert (after.active("network"), after.versions("network"), after.next_version("network")) == (1, (0, 1), 2)
    Registry(site.repository).revoke("network", 1, "floods alerts", START)  # beside this process
    now = site.registry.state()
    assert (now.active("network"), [each.version for each in now.revoked("network")]) == (0, [1])
    assert after.revoked("network") == ()
    with pytest.raises(ConfigError, match="found no task 'host', expected one of network, sensor"):
        now.versions("host")


def test_a_file_of_another_length_than_its_role_says_is_none(site: Site) -> None:
    site.publish("network", 0)
    files = RepositoryFiles(site.repository)
    roles = files.load().roles
    found = roles["network"].targets["network/0/plan"]
    found.length += 1
    listed = ListedReleases(files, roles)
    assert listed.target("network", 0, Variant.WEIGHTS)[0].version == 0
    with pytest.raises(ConfigError, match="network/0/plan: found 15 bytes, expected 16"):
        listed.target("network", 0, Variant.PLAN)


def test_many_questions_verify_a_repository_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[RepositoryFiles] = []
    load = RepositoryFiles.load

    def counted(files: RepositoryFiles, *, verify: bool = True) -> RepositoryState:
        loaded.append(files)
        return load(files, verify=verify)

    monkeypatch.setattr(RepositoryFiles, "load", counted)
    site.publish("network", 0)
    assert len(loaded) == 2, "what it starts from, and what came of it"
    registry = Registry(site.repository)
    assert len(loaded) == 3
    for _ in range(2):
        assert (registry.active("network"), registry.versions("network")) == (0, (0,))
        assert registry.target("network", 0, Variant.PLAN)[1] == b"plan of network"
        assert registry.expires().keys() == {"root", "targets", "snapshot", "timestamp", *TASKS}
    assert len(loaded) == 3
    site.registry.refresh_timestamp(START + 13 * HOUR)
    loaded.clear()
    assert registry.expires()["timestamp"] == START + 13 * HOUR + 24 * HOUR
    assert registry.active("network") == 0
    assert len(loaded) == 1, "another process signed"


def test_who_signs_while_it_is_read_does_not_make_it_look_damaged(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in range(3):
        site.publish("network", version)
    asked, beside, read = Registry(site.repository), Registry(site.repository), RepositoryFiles.read
    waiting = [1, 0]

    def overtaken(files: RepositoryFiles, name: str) -> bytes:
        data = read(files, name)
        if name == "timestamp.json" and files is asked._files and overtaking.pop(0):
            while waiting:
                beside.activate("network", waiting.pop(0), START)
        return data

    overtaking = [False, True, *[False] * 9]  # the mark, then the state behind it
    site.registry.refresh_timestamp(START + 13 * HOUR)
    monkeypatch.setattr(RepositoryFiles, "read", overtaken)
    assert asked.active("network") == 0
    assert not waiting
    timestamp = site.repository / "metadata" / "timestamp.json"
    timestamp.write_bytes(timestamp.read_bytes().replace(b'"version"', b'"versiom"'))
    with pytest.raises(ConfigError, match="damaged"):
        asked.active("network")


def test_a_damaged_file_is_found_by_whoever_writes_or_puts_out(site: Site) -> None:
    site.publish("network", 0)
    path = site.repository / "metadata" / "2.network.json"
    path.write_bytes(path.read_bytes().replace(b"0.125", b"0.124"))
    for write in (site.registry.retained, lambda: site.registry.refresh_timestamp(START)):
        with pytest.raises(ConfigError, match="damaged release repository"):
            write()


def test_publishing_the_same_release_again_changes_nothing(site: Site) -> None:
    first = site.publish("network", 0)
    again = site.publish("network", 0)
    assert dict(again.metadata) == {n: d for n, d in first.metadata.items() if n in again.metadata}
    assert set(again.metadata) == {"2.network.json", "2.snapshot.json", "timestamp.json"}
    assert again.artifacts == first.artifacts


def test_a_release_without_weights_or_plan_is_refused(site: Site) -> None:
    for missing in (Variant.WEIGHTS, Variant.PLAN):
        files = release_files("network", 0)
        custom = describe("network", 0, files)
        del files[missing], custom[missing]
        with pytest.raises(RefusedError, match="weights and plan"):
            site.registry.publish("network", 0, files, custom, START)


def test_a_description_of_something_else_is_refused(site: Site) -> None:
    files = release_files("network", 0)
    for task, version in (("sensor", 0), ("network", 1)):
        with pytest.raises(RefusedError, match="found a description of"):
            site.registry.publish("network", 0, files, describe(task, version, files), START)
    custom = describe("network", 0, files)
    with pytest.raises(RefusedError, match="expected 1 to"):
        site.registry.publish("network", 0, files | {Variant.INT8: bytes(MODEL_BYTES_MAX + 1)}, custom, START)
    with pytest.raises(ConfigError, match="found no task 'host'"):
        site.registry.publish("host", 0, files, describe("host", 0, files), START)


def diff_digests(version: int, site: Site) -> list[str]:
    """Digests of a release's diffs."""
    listed = site.registry.listed("network", version).values()
    return [each.custom.diff.sha256 for each in listed if each.custom.diff is not None]


def test_disk_and_broker_stay_bounded(site: Site) -> None:
    for version in range(8):
        site.publish("network", version)
    assert site.registry.versions("network") == tuple(range(8 - RELEASES_KEPT, 8))
    on_disk = {p.name for p in (site.repository / "artifacts").iterdir()}
    diffs = {v: set(diff_digests(v, site)) for v in site.registry.versions("network")}
    assert all(diffs.values()), "no diffs were made: the test shows less than it says"
    assert len(on_disk) == 1 + 2 * RELEASES_KEPT + len(set().union(*diffs.values()))  # one plan; weights, int8, diffs
    assert len(list((site.repository / "metadata").iterdir())) < 12
    retained = site.registry.retained()
    shown = diffs[6] | diffs[7]
    assert len(retained.artifacts) == 1 + 2 * 2 + len(shown)  # the active release and the one before, with their diffs
    assert shown < set(retained.artifacts)
    # What devices were offered release by release is what a freshly connected aggregator retains: no leak.
    fresh = {t: p for t, p in retained_messages(site.topics, retained) if p}
    assert site.retained == fresh


def test_a_broker_that_was_away_is_cleaned_up_at_the_next_connection(site: Site) -> None:
    site.publish("network", 0)
    before = set(site.retained)
    for version in range(1, 5):  # none of these reaches the broker
        files = release_files("network", version)
        site.registry.publish("network", version, files, describe("network", version, files), START)
    site.deliver(site.registry.retained())
    fresh = {t for t, p in retained_messages(site.topics, site.registry.retained()) if p}
    assert set(site.retained) == fresh
    assert before - fresh, "nothing had to be withdrawn: the test shows nothing"


def test_everything_a_message_speaks_of_is_published_before_it(site: Site) -> None:
    big = release_files("network", 0) | {Variant.INT8: os.urandom(2 * CHUNK_BYTES + 1)}
    publication = site.registry.publish("network", 0, big, describe("network", 0, big), START)
    topics = [t for t, payload in retained_messages(site.topics, publication) if payload]
    digest = hashlib.sha256(big[Variant.INT8]).hexdigest()
    chunks = [site.topics.artifact(digest, i) for i in range(3)]
    assert [t for t in topics if digest in t] == chunks
    names = ["2.network.json", "2.snapshot.json", "index.json", "timestamp.json"]
    assert topics[-4:] == [site.topics.trust(n) for n in names]
    assert all(len(p) <= CHUNK_BYTES for _, p in retained_messages(site.topics, publication))


def test_a_rollback_is_new_metadata_with_an_older_active_release(site: Site) -> None:
    for version in range(3):
        site.publish("network", version)
    before = set(site.registry.retained().files)
    publication = site.registry.rollback("network", 1, START)
    assert site.registry.active("network") == 1
    assert "5.network.json" in publication.metadata
    assert "5.network.json" not in before
    site.deliver(publication)
    assert site.retained == {t: p for t, p in retained_messages(site.topics, site.registry.retained()) if p}
    with pytest.raises(RefusedError, match="found no release 7"):
        site.registry.rollback("network", 7, START)
    site.publish("network", 3)  # goes on after the newest, not after the active
    assert site.registry.active("network") == 3
    assert 1 in site.registry.versions("network"), "the release that was good enough to go back to is kept"


def test_the_timestamp_is_signed_again_before_it_expires(site: Site) -> None:
    assert not site.registry.refresh_timestamp(START + HOUR)
    renewed = site.registry.refresh_timestamp(START + 13 * HOUR)
    assert set(renewed.metadata) == {"timestamp.json"}
    assert site.registry.expires()["timestamp"] == START + 37 * HOUR
    later = site.registry.refresh_timestamp(START + 100 * 24 * HOUR)
    assert {n.split(".", 1)[1] for n in later.metadata} == {"network.json", "sensor.json", "snapshot.json", "json"}


@pytest.mark.parametrize("what", ["publish", "publish-first", "rollback", "refresh"])
def test_a_crash_at_any_step_leaves_the_old_state_or_the_new(tmp_path: Path, what: str) -> None:
    site = Site(tmp_path / "origin")
    for version in range(0 if what == "publish-first" else 3):
        site.publish("network", version)
    next_version = 0 if what == "publish-first" else 3
    old = site.registry.active("network")

    def act(directory: Path) -> Publication:
        registry = Registry(directory)
        if what == "rollback":
            return registry.rollback("network", 1, START + 1)
        if what == "refresh":
            return registry.refresh_timestamp(START + 60 * 24 * HOUR)
        files = release_files("network", next_version)
        return registry.publish("network", next_version, files, describe("network", next_version, files), START + 1)

    reference = tmp_path / "reference"
    shutil.copytree(site.repository, reference)
    steps = count_steps(lambda: act(reference))
    assert steps > 10
    new = Registry(reference).active("network")
    seen = set()
    for step in range(steps):
        directory = tmp_path / f"crash-{step}"
        shutil.copytree(site.repository, directory)
        run_until_cut(lambda d=directory: act(d), step)  # type: ignore[misc]
        registry = Registry(directory)  # verifies every signature, length and digest
        registry.retained()  # and every artifact
        assert registry.active("network") in (old, new)
        seen.add(registry.active("network"))
        again = act(directory)
        assert registry.active("network") == new
        # Repeating it gives the same releases; a caller that publishes what it returns misses nothing.
        if what.startswith("publish"):
            files = {hashlib.sha256(d).hexdigest() for d in release_files("network", next_version).values()}
            listed = registry.listed("network", next_version).values()
            assert set(again.artifacts) == files | {x.custom.diff.sha256 for x in listed if x.custom.diff is not None}
            assert f"{registry.versions('network')[-1] + 2}.network.json" in again.metadata
        broker = dict(site.retained)
        for publication in (again, registry.retained()):
            for topic, payload in retained_messages(site.topics, publication):
                broker[topic] = payload
        left = {t for t, p in broker.items() if p}
        wanted = {t for t, p in retained_messages(site.topics, registry.retained()) if p}
        assert left == wanted, f"step {step}: the broker keeps what nobody needs"
        shutil.rmtree(directory)
    if what != "refresh":
        assert seen == {old, new}


def test_a_crash_while_it_is_created_leaves_nothing_behind(tmp_path: Path) -> None:
    steps = count_steps(lambda: Registry.create(tmp_path / "reference", "plant", TASKS, START))
    for step in range(0, steps, 3):
        directory = tmp_path / f"repository-{step}"
        run_until_cut(lambda d=directory: Registry.create(d, "plant", TASKS, START), step)  # type: ignore[misc]
        if directory.exists():
            Registry(directory)
        else:
            Registry.create(directory, "plant", TASKS, START)


def test_a_full_disk_keeps_the_old_release(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.publish("network", 0)
    files = release_files("network", 1)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(TransientError, match="free space"):
            site.registry.publish("network", 1, files, describe("network", 1, files), START)
    assert Registry(site.repository).active("network") == 0
    site.publish("network", 1)
    assert not list(site.repository.rglob(".*.new"))


def test_it_works_without_the_offline_keys(site: Site, tmp_path: Path) -> None:
    shutil.move(site.repository / "root-keys", tmp_path / "vault")
    site.registry = Registry(site.repository)
    site.publish("network", 0)
    site.deliver(site.registry.refresh_timestamp(START + 20 * HOUR))
    with pytest.raises(ConfigError, match="found 0 keys of role 'root', expected 1"):
        site.registry.renew(site.repository / "root-keys", START)
    site.deliver(site.registry.renew(tmp_path / "vault", START + HOUR))
    assert site.device().refresh()[0].metadata_version[0] == 2


def test_private_keys_are_for_their_owner_only(site: Site) -> None:
    keys = [*(site.repository / "keys").iterdir(), *(site.repository / "root-keys").iterdir()]
    assert len(keys) == 6, "three online keys and the beacon's seed, two offline keys"
    assert {p.stat().st_mode & 0o777 for p in keys} == {0o600}
    next(p for p in keys if p.suffix == ".pem" and p.parent.name == "keys").chmod(0o640)
    with pytest.raises(ConfigError, match="found mode 640, expected 600"):
        site.publish("network", 0)


def test_a_missing_key_says_which_and_what_to_do(site: Site) -> None:
    next((site.repository / "keys").glob("release.*")).unlink()
    with pytest.raises(ConfigError, match="found 0 keys of role 'network', expected 1"):
        site.publish("network", 0)


def test_a_root_of_two_of_three_keys(tmp_path: Path) -> None:
    site = Site(tmp_path, root_keys=3, threshold=2)
    vault = tmp_path / "vault"
    shutil.move(site.repository / "root-keys", vault)
    roots = sorted(vault.glob("root-*"))
    away = [p.rename(tmp_path / p.name) for p in roots[:2]]
    with pytest.raises(ConfigError, match="found 1 keys of role 'root', expected 2"):
        site.registry.renew(vault, START)
    away[0].rename(vault / away[0].name)
    site.publish("network", 0)
    site.deliver(site.registry.renew(vault, START, ["timestamp", "snapshot", "release"]))
    assert site.device().refresh()[0].version == 0
    with pytest.raises(ConfigError, match="threshold of 3 of 2"):
        Registry.create(tmp_path / "other", "plant", TASKS, START, root_keys=2, root_threshold=3)


def test_a_renewal_that_was_cut_short_is_repeated(tmp_path: Path) -> None:
    site = Site(tmp_path / "origin")
    site.publish("network", 0)
    vault = tmp_path / "vault"
    shutil.move(site.repository / "root-keys", vault)
    rotate = ["timestamp", "snapshot", "release"]
    reference = tmp_path / "reference"
    shutil.copytree(site.repository, reference)
    steps = count_steps(lambda: Registry(reference).renew(vault, START, rotate))
    for step in range(0, steps, 2):
        directory = tmp_path / f"crash-{step}"
        shutil.copytree(site.repository, directory)
        run_until_cut(lambda d=directory: Registry(d).renew(vault, START, rotate), step)  # type: ignore[misc]
        try:
            Registry(directory)
        except ConfigError:
            with pytest.raises(ConfigError, match="renew it with the offline keys"):
                Registry(directory)
            renew(directory, vault, START, rotate)
        registry = Registry(directory)
        assert registry.active("network") == 0
        files = release_files("network", 1)
        registry.publish("network", 1, files, describe("network", 1, files), START)


def test_a_taken_directory_and_unusable_names_are_refused(site: Site, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a new directory"):
        Registry.create(site.repository, "plant", TASKS, START)
    for tasks in ((), ("root",), ("Network",), ("a", "a"), tuple(f"t{i}" for i in range(9))):
        with pytest.raises(ConfigError, match="tasks: found"):
            Registry.create(tmp_path / "new", "plant", tasks, START)
    with pytest.raises(ConfigError, match="create one"):
        Registry(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["timestamp.json", "2.snapshot.json", "2.network.json", "1.root.json"])
def test_a_damaged_repository_is_noticed(site: Site, name: str) -> None:
    site.publish("network", 0)
    path = site.repository / "metadata" / name
    document = json.loads(path.read_bytes())
    document["signed"]["expires"] = "2099-01-01T00:00:00Z"
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="restore a backup"):
        Registry(site.repository)


def test_a_damaged_artifact_is_noticed(site: Site) -> None:
    site.publish("network", 0)
    path = next((site.repository / "artifacts").iterdir())
    path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(ConfigError, match="found bytes with digest"):
        site.registry.retained()


def test_the_index_hint_names_what_is_retained(site: Site) -> None:
    site.publish("network", 0)
    index = json.loads(site.retained[Topics("plant").trust("index.json")])
    names = {Topics("plant").parse(t).key for t in site.retained if "/trust/" in t}
    assert set(index["files"]) | {"index.json"} == names


def test_the_weights_that_a_restarted_aggregator_needs_are_here(site: Site) -> None:
    site.publish("network", 0)
    custom, data = site.registry.target("network", 0, Variant.WEIGHTS)
    assert data == release_files("network", 0)[Variant.WEIGHTS]
    assert custom.variant is Variant.WEIGHTS
    assert custom.active
    with pytest.raises(RefusedError, match="found no float16"):
        site.registry.target("network", 0, Variant.FLOAT16)


def test_a_candidate_is_listed_and_not_active(site: Site) -> None:
    site.publish("network", 0)
    site.publish("network", 1)
    files = release_files("network", 2)
    publication = site.registry.publish("network", 2, files, describe("network", 2, files), START, is_active=False)
    site.deliver(publication)
    assert site.registry.active("network") == 1
    device = site.device()
    (active,) = (release for release in device.refresh() if release.task == "network")
    assert active.version == 1
    assert sorted(device.listed("network")) == [0, 1, 2]
    candidate = device.listed("network")[2]
    assert device.download(candidate.targets[Variant.INT8]) == files[Variant.INT8], "a device can fetch it all the same"
    assert site.retained == {t: p for t, p in retained_messages(site.topics, site.registry.retained()) if p}
    site.deliver(site.registry.activate("network", 2, START))
    assert [release.version for release in site.device().refresh() if release.task == "network"] == [2]


def test_the_first_release_is_active_whatever_is_asked(site: Site) -> None:
    files = release_files("network", 0)
    site.registry.publish("network", 0, files, describe("network", 0, files), START, is_active=False)
    assert site.registry.active("network") == 0


def test_what_devices_are_told_of_stays_listed(site: Site) -> None:
    site.publish("network", 0)
    for version in range(1, 7):
        files = release_files("network", version)
        described = describe("network", version, files)
        site.registry.publish("network", version, files, described, START, is_active=False, keep={1, 2})
    assert site.registry.active("network") == 0
    assert site.registry.versions("network") == (0, 1, 2, 6)


def test_a_release_made_after_another_is_refused_once_that_is_left(tmp_path: Path) -> None:
    """The check is under the lock: a rollback may come between the gate and the signature."""
    site = Site(tmp_path, ["network"])
    site.publish("network", 0)
    site.publish("network", 1)
    site.registry.rollback("network", 0, START)
    files = release_files("network", 2)
    with pytest.raises(RefusedError, match="expected its parent 1"):
        site.registry.publish("network", 2, files, describe("network", 2, files), START, after=1)
    site.registry.publish("network", 2, files, describe("network", 2, files), START, after=0)
    assert site.registry.active("network") == 2
