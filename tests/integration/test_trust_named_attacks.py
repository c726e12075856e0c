"""Attacks on releases beyond TUF's own list, over the retained-topic fetcher; the threat model lists them all."""

from __future__ import annotations

import copy
import os
import random
from pathlib import Path

import pytest
from release_site import SCHEMA, Site, describe, release_files
from release_thief import Thief, with_releases
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, TargetFile, Targets

from vedette_aggregator.registry_files import RepositoryState, meta_file
from vedette_core.machine import Count, Note
from vedette_device.trust import RetainedMemory, TrustClient
from vedette_device.update_events import BootedWith, ReleaseAnnounced, SlotsView, Stage
from vedette_device.update_machine import UpdateMachine
from vedette_device.verified_release import VerifiedRelease
from vedette_schemas.errors import PeerError, RefusedError, TransientError, VedetteError
from vedette_schemas.model import Variant


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of synchronising is what is tested; waiting for the platters would only take time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return with_releases(tmp_path)


def refreshed(device: TrustClient) -> tuple[list[VerifiedRelease], VedetteError | None]:
    """What a refresh finds, or why it does not."""
    try:
        return device.refresh(), None
    except VedetteError as fault:
        return [], fault


# --- wrong device class ---


def staged(release: VerifiedRelease, backends: tuple[str, ...], schema: str = SCHEMA) -> tuple[list[Variant], str]:
    """What a device of some class stages of a release, and what it says."""
    machine = UpdateMachine("network", "gw", backends, schema)  # type: ignore[arg-type]
    machine.handle(BootedWith(SlotsView()), 0.0)
    effects = machine.handle(ReleaseAnnounced(release), 0.0)
    assert any(isinstance(e, Count) for e in effects)
    notes = " ".join(e.text for e in effects if isinstance(e, Note))
    return [e.model.variant for e in effects if isinstance(e, Stage)], notes


def test_wrong_device_class_a_release_for_other_features(site: Site) -> None:
    """Properly signed, and meant for gateways that look at something else."""
    files = release_files("network", 1)
    custom = {v: c.model_copy(update={"feature_schema": "ab" * 32}) for v, c in describe("network", 1, files).items()}
    site.deliver(site.registry.publish("network", 1, files, custom, site.now))
    release = site.device().refresh()[0]
    assert release.version == 1
    variants, notes = staged(release, ("litert", "numpy"))
    assert variants == []
    assert "found feature schema ab" in notes


def test_wrong_device_class_a_variant_that_does_not_run_here(site: Site) -> None:
    release = site.device().refresh()[0]
    assert staged(release, ("numpy",))[0] == [Variant.WEIGHTS]
    assert staged(release, ("litert",))[0] == [Variant.INT8]
    variants, notes = staged(release, ())
    assert variants == []
    assert "expected one of none" in notes


def test_wrong_device_class_another_tasks_model_under_this_tasks_name(site: Site) -> None:
    """The bytes of one task's model are listed as the other's: the description gives it away."""
    foreign = site.registry.listed("sensor", 0)[Variant.INT8]

    def swap(targets: dict[str, TargetFile]) -> None:
        said = foreign.custom.model_dump(mode="json", exclude_none=True)
        targets["network/0/int8"] = TargetFile(
            foreign.length, {"sha256": foreign.sha256}, "network/0/int8", {"custom": said}
        )

    Thief(site).sign_role("network", swap)
    device = site.device()
    device.refresh()
    with pytest.raises(PeerError) as refused:
        device.release("network")
    assert refused.value.reason == "description"


# --- replayed retained messages ---


def test_replayed_retained_messages_never_lead_back(site: Site) -> None:
    """A broker keeps every message that it ever saw, and shows any of them again, in any mixture."""
    history: dict[str, list[bytes]] = {topic: [payload] for topic, payload in site.retained.items()}
    for version in (1, 2, 3):
        site.publish("network", version)
        for topic, payload in site.retained.items():
            if history.setdefault(topic, [payload])[-1] != payload:
                history[topic].append(payload)
    newest = dict(site.retained)
    known = site.device().refresh()[0]
    assert known.version == 3
    dice = random.Random(11)
    refused = 0
    for _ in range(80):
        mixture = {topic: dice.choice(payloads) for topic, payloads in history.items() if dice.random() < 0.9}
        site.retained.clear()
        site.retained.update(mixture)
        releases, fault = refreshed(site.device())  # restarts each time: only the disk remembers
        refused += fault is not None
        found = {r.task: r for r in releases}
        if "network" in found:
            assert (found["network"].version, found["network"].metadata_version) == (3, known.metadata_version)
    assert refused > 40, "hardly anything was refused: the test shows little"
    site.retained.clear()
    site.retained.update(newest)
    assert site.device().refresh()[0].version == 3, "nothing that was shown in between does harm later"


# --- another site's metadata ---


@pytest.mark.parametrize("name", ["timestamp.json", "3.snapshot.json", "1.targets.json", "2.network.json"])
def test_another_sites_metadata_one_file_at_a_time(site: Site, tmp_path: Path, name: str) -> None:
    """The same software, the same tasks, the same versions, another owner."""
    (tmp_path / "elsewhere").mkdir()
    foreign = with_releases(tmp_path / "elsewhere")
    site.retained[site.file(name)] = foreign.retained[foreign.file(name)]
    device = site.device()
    releases, fault = refreshed(device)
    if fault is None:
        assert [r.task for r in releases] == ["sensor"], "only the task whose file it is may be without a release"
        fault = device.faults["network"]
    assert isinstance(fault, PeerError | RefusedError)


def test_another_sites_metadata_as_a_newer_root(site: Site, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    foreign = with_releases(tmp_path / "elsewhere")
    foreign.deliver(foreign.registry.renew(foreign.repository / "root-keys", foreign.now))
    for name in ("2.root.json", "index.json"):
        site.retained[site.file(name)] = foreign.retained[foreign.file(name)]
    with pytest.raises(PeerError) as refused:
        site.device().refresh()
    assert refused.value.reason == "signature"


# --- key compromise below the threshold ---


def test_key_compromise_timestamp_and_snapshot_keys_make_no_release(site: Site) -> None:
    """Both top keys, and not the release key: what they name must still be signed by it."""
    thief = Thief(site)
    for path in thief.files.keys.glob("release.*.pem"):
        path.unlink()
    state = thief.files.load()
    role = copy.deepcopy(state.roles["network"])
    role.version += 1
    role.targets["network/0/int8"].hashes["sha256"] = "ab" * 32
    data = Metadata[Targets](role).to_bytes()

    def name_it(changed: RepositoryState) -> None:
        changed.snapshot.meta["network.json"] = meta_file(role.version, data)

    thief.sign_top(name_it)
    thief.show({f"{role.version}.network.json": data})
    device = site.device()
    assert [r.task for r in device.refresh()] == ["sensor"]
    with pytest.raises(PeerError, match="too few valid signatures"):
        device.release("network")


def test_key_compromise_one_tasks_release_key_speaks_for_no_other_task(site: Site) -> None:
    """Snapshot, timestamp and one task's release key: its role delegates the name of another role to the thief.

    python-tuf before 7.0.1 took such a role for the one that the site delegated.
    """
    thief, own = Thief(site), CryptoSigner.generate_ed25519()
    state = thief.files.load()
    network, sensor = copy.deepcopy(state.roles["network"]), copy.deepcopy(state.roles["sensor"])
    role = DelegatedRole("sensor", [own.public_key.keyid], 1, True, ["network/*/*"])
    network.delegations = Delegations({own.public_key.keyid: own.public_key}, {"sensor": role})
    network.targets.clear()  # so that the search goes on into what it delegates
    network.version += 1
    sensor.version += 1
    sensor.targets["sensor/0/int8"].hashes["sha256"] = "ab" * 32
    forged: Metadata[Targets] = Metadata(sensor)
    forged.sign(own)
    data = {"network": thief.files.sign(network, "network", state.targets), "sensor": forged.to_bytes()}

    def name_them(changed: RepositoryState) -> None:
        for task, signed in data.items():
            changed.snapshot.meta[f"{task}.json"] = meta_file(sensor.version, signed)

    thief.sign_top(name_them)
    thief.show({f"{sensor.version}.{task}.json": signed for task, signed in data.items()})
    device = site.device(tasks=("network", "sensor"))
    assert device.refresh() == []
    with pytest.raises(PeerError, match="too few valid signatures"):
        device.release("sensor")


def test_key_compromise_one_of_two_root_keys_makes_no_root(tmp_path: Path) -> None:
    """With one of two root keys and every online key a thief replaces nothing."""
    site = Site(tmp_path, root_keys=3, threshold=2)
    site.publish("network", 0)
    thief = Thief(site)
    keys = sorted((site.repository / "root-keys").glob("root-*.pem"))
    for path in keys[1:]:
        path.unlink()
    state = thief.files.load()
    root = copy.deepcopy(state.root)
    root.version += 1
    root.roles["root"].threshold = 1
    document = Metadata(root)
    thief.files.add_signatures(document, state.root.roles["root"], site.repository / "root-keys")
    assert len(document.signatures) == 1
    site.retained[site.file("2.root.json")] = document.to_bytes()
    site.retained[site.file("index.json")] = b'{"files":["2.root.json"]}'
    with pytest.raises(PeerError) as refused:
        site.device().refresh()
    assert refused.value.reason == "signature"


# --- a thief's revocations ---


def test_revoking_sound_releases_ends_with_the_stolen_keys(site: Site) -> None:
    """It costs the fleet its models for as long as the keys count, and not longer."""
    sound = site.device().refresh()[0].targets[Variant.INT8].sha256
    thief = Thief(site)
    state = thief.files.load()
    contents = Targets(targets={}, unrecognized_fields={
        "x-vedette-revoked": [{"version": 0, "sha256": [sound], "reason": "spite"}]
    })  # fmt: skip
    thief.show(thief.files.commit(state, site.now, {"network": contents}))
    device = site.device()
    device.refresh()
    assert device.revoked("network").sha256 == {sound}
    site.deliver(site.registry.renew(site.repository / "root-keys", site.now, ["timestamp", "snapshot", "release"]))
    after = site.device()
    release = next(r for r in after.refresh() if r.task == "network")
    assert after.revoked("network").sha256 == frozenset()
    assert after.revoked("network").metadata_version > device.revoked("network").metadata_version
    assert release.targets[Variant.INT8].sha256 == sound


def test_a_broker_that_withholds_can_only_withhold(site: Site) -> None:
    """Without any one file there is a fault that is tried again, or what was known; never anything else."""
    device = site.device()
    known = {r.task: r.version for r in device.refresh()}
    for topic in list(site.retained):
        retained = RetainedMemory(site.retained)
        del site.retained[topic]
        releases, fault = refreshed(site.device())
        assert {r.task: r.version for r in releases}.items() <= known.items()
        assert fault is None or isinstance(fault, TransientError)
        site.retained.update(retained)
