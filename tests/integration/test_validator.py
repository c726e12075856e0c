"""Releases that need two signatures: what the validator signs, what it refuses, and what devices make of one alone."""

from __future__ import annotations

import copy
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from release_site import HOUR, START, TASKS, describe, release_files
from test_model_command import Site as ModelSite
from tuf.api.metadata import Delegations, Metadata, Targets

from vedette.exit_codes import ExitCode
from vedette_aggregator.ceremony_keys import make_key, read_public, read_signer
from vedette_aggregator.countersigning import AwaitsValidatorError, Countersigning, Verdict
from vedette_aggregator.publication import retained_messages
from vedette_aggregator.registry import Registry
from vedette_aggregator.registry_draft import OfflineKeys
from vedette_aggregator.registry_files import RepositoryFiles
from vedette_aggregator.registry_proposal import propose_first, propose_next, publish
from vedette_aggregator.release_source import ReleaseSource
from vedette_aggregator.validator import Validator
from vedette_aggregator.validator_gate import files_hold
from vedette_device.trust import RetainedMemory, TrustClient
from vedette_schemas.errors import PeerError, RefusedError
from vedette_schemas.model import Variant
from vedette_schemas.topics import Topics
from vedette_schemas.trust import REVOKED_FIELD, REVOKED_MAX


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of synchronising is what is tested; waiting for the platters would only take time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class Site:
    """A site whose releases a validator signs, too."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.repository = folder, folder / "repository"
        for name in ("root", "targets", "validator", "stranger"):
            make_key(folder / name, None)
        self.keys = OfflineKeys(
            (read_public(folder / "root.pub"),), 1, (read_public(folder / "targets.pub"),), 1,
            read_public(folder / "validator.pub"),
        )  # fmt: skip
        first = propose_first(self.repository, "plant", TASKS, self.keys, START)
        for name in ("root", "targets", "validator"):
            first.sign(read_signer(folder / name, None))
        publish(self.repository, first, START)
        self.registry = Registry(self.repository)
        self.root = folder / "root.json"
        self.root.write_bytes(self.registry.root)
        self.checked: list[tuple[str, int, bytes]] = []
        self.faults: list[str] = []
        self.validator = self.new_validator()

    def new_validator(self, key: str = "validator") -> Validator:
        signer = read_signer(self.folder / key, None)
        return Validator(self.repository, self.root, self.folder / f"{key}-state", signer, validate=self.check)

    def check(self, source: ReleaseSource, task: str, version: int) -> Sequence[str]:
        self.checked.append((task, version, source.target(task, version, Variant.WEIGHTS)[1]))
        return self.faults

    def propose(self, version: int, mark: str = "") -> None:
        files = release_files("network", version, mark)
        with pytest.raises(AwaitsValidatorError, match="waits for the validator"):
            self.registry.publish("network", version, files, describe("network", version, files), START)

    def release(self, version: int) -> None:
        self.propose(version)
        assert [(x.task, x.refused) for x in self.validator.look(START)] == [("network", "")]
        assert self.registry.complete(START)

    def device(self, name: str = "gw") -> TrustClient:
        topics, retained = Topics("plant"), RetainedMemory()
        retained.update({t: p for t, p in retained_messages(topics, self.registry.retained()) if p})
        return TrustClient(self.folder / name, self.root, topics, TASKS, retained, lambda: START)

    def proposal(self) -> Path:
        return next(p for p, _, _ in Countersigning(RepositoryFiles(self.repository)).waiting())


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_release_counts_once_both_have_signed(site: Site) -> None:
    site.propose(0)
    assert site.registry.versions("network") == ()
    assert not site.registry.complete(START), "there is nothing to complete yet"
    assert site.device().refresh() == []
    assert [x.refused for x in site.validator.look(START)] == [""]
    assert site.checked == [("network", 0, release_files("network", 0)[Variant.WEIGHTS])]
    publication = site.registry.complete(START)
    assert "2.network.json" in publication.metadata
    assert [r.version for r in site.device().refresh()] == [0]
    assert not Countersigning(RepositoryFiles(site.repository)).waiting(), "what is done is tidied away"


def test_publishing_again_finds_what_was_signed_meanwhile(site: Site) -> None:
    files = release_files("network", 0)
    again = lambda: site.registry.publish("network", 0, files, describe("network", 0, files), START + HOUR)  # noqa: E731
    site.propose(0)
    before = site.proposal().read_bytes()
    with pytest.raises(AwaitsValidatorError):
        again()
    assert site.proposal().read_bytes() == before, "the validator is not shown the same thing twice"
    site.validator.look(START)
    assert len(again().artifacts) == 3
    assert site.registry.active("network") == 0


def test_a_revocation_goes_before_a_release_that_waits(site: Site) -> None:
    site.release(0)
    site.release(1)
    site.propose(2)
    with pytest.raises(AwaitsValidatorError):
        site.registry.revoke("network", 1, "floods alerts", START)
    site.propose(2)  # as the aggregator does every few seconds: it must not push the revocation out
    assert [x.refused for x in site.validator.look(START)] == [""]
    assert site.registry.complete(START)
    assert site.registry.active("network") == 0
    assert [r.version for r in site.registry.revoked("network")] == [1]
    site.release(2)
    assert site.registry.active("network") == 2


def test_a_refused_release_changes_nothing(site: Site) -> None:
    site.release(0)
    site.faults = ["int8: found results off by 0.3"]
    site.propose(1)
    (looked,) = site.validator.look(START)
    assert "off by 0.3" in looked.refused
    files = release_files("network", 1)
    with pytest.raises(RefusedError, match="the validator refuses it") as refused:
        site.registry.publish("network", 1, files, describe("network", 1, files), START)
    assert refused.value.rule == "validator"
    assert not site.registry.complete(START)
    assert [r.version for r in site.device().refresh()] == [0]
    site.faults = []
    assert site.validator.look(START) == [], "one verdict a proposal"
    site.propose(1, "trained again")
    assert [x.refused for x in site.validator.look(START)] == [""]
    assert site.registry.complete(START)
    assert site.registry.active("network") == 1


def test_key_compromise_below_the_threshold(site: Site) -> None:
    """A thief with every online key signs a release: with one of two signatures it is none."""
    site.release(0)
    files = RepositoryFiles(site.repository)
    state = files.load()
    role = copy.deepcopy(state.roles["network"])
    role.version += 1
    document: Metadata[Targets] = Metadata(role)
    files.add_signatures(document, state.targets.get_delegated_role("network"))
    assert len(document.signatures) == 1
    shown = files.commit(state, START, {"network": role}, {"network": document.to_bytes()})
    topics, retained = Topics("plant"), RetainedMemory()
    for name in files.names():
        retained[topics.trust(name)] = files.read(name)
    retained.update({topics.trust(name): data for name, data in shown.items()})
    device = TrustClient(site.folder / "gw", site.root, topics, ["network"], retained, lambda: START)
    assert device.refresh() == []
    with pytest.raises(PeerError, match="too few valid signatures"):
        device.release("network")


def test_another_key_than_the_validators_is_no_second_signature(site: Site) -> None:
    site.propose(0)
    stranger = site.new_validator("stranger")
    (looked,) = stranger.look(START)
    assert "no place for key" in looked.refused
    data = site.proposal().read_bytes()
    forged = Verdict(sha256=hashlib.sha256(data).hexdigest(), keyid=site.keys.validator.keyid, signature="ab" * 64)
    Countersigning(RepositoryFiles(site.repository)).answer(site.proposal(), forged)
    assert not site.registry.complete(START)


def altered(site: Site, change: Callable[[Targets], None], *, sign: bool = True) -> str:
    """What the validator says of a proposal that somebody with the release key changed."""
    path, files = site.proposal(), RepositoryFiles(site.repository)
    document = Metadata[Targets].from_bytes(path.read_bytes())
    change(document.signed)
    document.signatures.clear()
    if sign:
        files.add_signatures(document, files.load().targets.get_delegated_role("network"))
    path.write_bytes(document.to_bytes())
    (looked,) = site.validator.look(START)
    assert not site.registry.complete(START)
    return looked.refused


def test_what_was_changed_about_older_releases_is_refused(site: Site) -> None:
    site.release(0)
    site.propose(1)

    def change(role: Targets) -> None:
        role.targets["network/0/int8"].hashes["sha256"] = "ab" * 32

    assert "other files in releases [0]" in altered(site, change)


def test_a_proposal_without_the_release_keys_signature_is_refused(site: Site) -> None:
    site.propose(0)
    assert "no signature of the release key" in altered(site, lambda role: None, sign=False)


def test_revocations_are_not_taken_back(site: Site) -> None:
    site.release(0)
    with pytest.raises(AwaitsValidatorError):
        site.registry.revoke("network", 7, "a thief signed it", START, ["ab" * 32])
    site.validator.look(START)
    assert site.registry.complete(START)
    assert len(site.registry.revoked("network")) == 1
    files = release_files("network", 8)
    with pytest.raises(AwaitsValidatorError):
        site.registry.publish("network", 8, files, describe("network", 8, files), START)
    assert "1 revocations taken back" in altered(site, lambda role: role.unrecognized_fields.clear())


def revoke_all(role: Targets, entries: Sequence[tuple[int, str]]) -> None:
    role.unrecognized_fields[REVOKED_FIELD] = [
        {"version": version, "sha256": [digest], "reason": "out of spite"} for version, digest in entries
    ]


def test_revocations_are_not_pushed_out_by_others(site: Site) -> None:
    """A thief with the release key fills the list, so that what was revoked is sound again."""
    site.release(0)
    site.release(1)
    with pytest.raises(AwaitsValidatorError):
        site.registry.revoke("network", 1, "floods alerts", START)
    site.validator.look(START)
    assert site.registry.complete(START)
    site.propose(2)
    flood = [(n, hashlib.sha256(str(n).encode()).hexdigest()) for n in range(REVOKED_MAX)]
    assert "1 revocations taken back and 64 new ones" in altered(site, lambda role: revoke_all(role, flood))


def test_what_was_revoked_is_not_signed_again_under_another_number(site: Site) -> None:
    site.release(0)
    site.release(1)
    with pytest.raises(AwaitsValidatorError):
        site.registry.revoke("network", 1, "floods alerts", START)
    site.validator.look(START)
    assert site.registry.complete(START)
    digest = site.registry.revoked("network")[0].sha256[0]
    site.propose(2)

    def change(role: Targets) -> None:
        role.targets["network/2/int8"].hashes["sha256"] = digest

    assert "releases [2] listed and revoked" in altered(site, change)


def test_what_devices_run_is_not_revoked_beside_it(site: Site) -> None:
    """Devices would run nothing: the release that they are to go to is revoked, too."""
    site.release(0)
    site.propose(1)
    int8 = hashlib.sha256(release_files("network", 0)[Variant.INT8]).hexdigest()
    assert "releases [0] listed and revoked" in altered(site, lambda role: revoke_all(role, [(0, int8)]))


def test_a_new_release_has_weights_and_a_plan(site: Site) -> None:
    """Else the checks themselves would fail, and with them those of every other task."""
    site.propose(0)
    assert "no weights or no plan" in altered(site, lambda role: role.targets.pop("network/0/weights"))


def test_the_last_release_stays(site: Site) -> None:
    site.release(0)
    site.propose(1)
    assert "no release left" in altered(site, lambda role: role.targets.clear())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda role: setattr(role, "version", 9), "found role 9"),
        (lambda role: setattr(role, "expires", role.expires.replace(year=2099)), "at most 90 days"),
        (lambda role: [t.custom.update(active=False) for t in role.targets.values()], "active releases"),
        (lambda role: role.targets["network/0/int8"].custom.update(version=5), "expected its own path"),
        (lambda role: setattr(role, "delegations", Delegations({}, {})), "found delegations in its role"),
        (lambda role: role.unrecognized_fields.update({"x-vedette-beacon": {}}), "found x-vedette-beacon in its role"),
        (lambda role: role.targets["network/0/int8"].hashes.update(sha512="ab" * 64), "expected sha256"),
    ],
)
def test_what_else_is_refused(site: Site, change: Callable[[Targets], None], said: str) -> None:
    site.propose(0)
    assert said in altered(site, change)


def test_missing_or_altered_bytes_are_refused(site: Site) -> None:
    site.propose(0)
    path = site.repository / "artifacts" / hashlib.sha256(release_files("network", 0)[Variant.WEIGHTS]).hexdigest()
    path.write_bytes(b"other")
    (looked,) = site.validator.look(START)
    assert "found bytes with digest" in looked.refused


def test_no_more_of_a_file_is_read_than_one_can_have(site: Site) -> None:
    """A hostile aggregator must not fill the validator's memory: 64 GB that take no room on the disk."""
    site.propose(0)
    path = site.repository / "artifacts" / hashlib.sha256(release_files("network", 0)[Variant.WEIGHTS]).hexdigest()
    with path.open("wb") as file:
        file.truncate(1 << 36)
    (looked,) = site.validator.look(START)
    assert "found bytes with digest" in looked.refused


def test_the_timestamp_goes_on_while_a_role_waits(site: Site) -> None:
    site.release(0)
    publication = site.registry.refresh_timestamp(START + 46 * 24 * HOUR)  # roles are due, and so is everything
    assert set(publication.metadata) >= {"timestamp.json"}
    assert len(Countersigning(RepositoryFiles(site.repository)).waiting()) == len(TASKS)
    assert [x.refused for x in site.validator.look(START + 46 * 24 * HOUR)] == ["", ""]
    assert site.registry.complete(START + 46 * 24 * HOUR)
    assert site.registry.expires()["network"] > START + 100 * 24 * HOUR


def test_artifacts_of_a_proposal_are_not_tidied_away(site: Site) -> None:
    site.propose(0)
    site.registry.refresh_timestamp(START + 13 * HOUR)
    assert [x.refused for x in site.validator.look(START)] == [""]
    site.registry.complete(START)
    site.registry.retained()


def test_it_follows_new_roots_and_believes_no_others(site: Site, tmp_path: Path) -> None:
    proposal = propose_next(site.repository, site.keys, START, ["release", "timestamp"])
    for name in ("root", "targets", "validator"):
        proposal.sign(read_signer(site.folder / name, None))
    site.registry.adopt(proposal, START)
    site.release(0)
    assert site.new_validator()._known.signed.version == 2, "remembered over a restart"
    (tmp_path / "elsewhere").mkdir()
    elsewhere = Site(tmp_path / "elsewhere")
    elsewhere.propose(0)
    signer = read_signer(site.folder / "validator", None)
    deceived = Validator(elsewhere.repository, site.root, tmp_path / "other-state", signer, validate=site.check)
    with pytest.raises(RefusedError, match="root: found"):
        deceived.look(START)


def test_without_a_validator_all_is_as_before(site: Site) -> None:
    site.release(0)
    keys = OfflineKeys(site.keys.root, 1, site.keys.targets, 1, None)
    proposal = propose_next(site.repository, keys, START)
    for name in ("root", "targets"):
        proposal.sign(read_signer(site.folder / name, None))
    site.registry.adopt(proposal, START)
    files = release_files("network", 1)
    assert site.registry.publish("network", 1, files, describe("network", 1, files), START)
    assert [r.version for r in site.device().refresh()] == [1]


# --- today's checks, and the command ---


def test_the_checks_that_ship_run_every_artifact(tmp_path: Path) -> None:
    models = ModelSite(tmp_path)
    assert files_hold(models.registry, "network", 1) == []

    def swap(files: dict[Variant, bytes]) -> None:
        files[Variant.INT8] = files[Variant.FLOAT32]

    models.publish(2, swap)
    assert any("int8" in fault for fault in files_hold(models.registry, "network", 2))


def test_the_command_looks_once(site: Site) -> None:
    files = release_files("network", 0)  # no models: the checks that ship say so
    with pytest.raises(AwaitsValidatorError):
        site.registry.publish("network", 0, files, describe("network", 0, files), time.time())
    arguments = ["--repository", site.repository, "--root", site.root, "--key", site.folder / "validator"]
    command = [sys.executable, "-m", "vedette.main", "validator", "run", *map(str, arguments), "--once"]
    ran = subprocess.run(
        [*command, "--state-dir", str(site.folder / "state")], capture_output=True, text=True, check=False
    )
    assert ran.returncode == ExitCode.CHECK_FAILED, ran.stderr
    assert "network, role 2: release network 0: weights:" in ran.stdout
    assert not site.registry.complete(START)


def test_a_proposal_that_is_taken_back_while_it_is_looked_at_ends_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.propose(0)
    listed = site.validator._countersigning.waiting()
    for path, _, _ in listed:
        path.unlink()
    monkeypatch.setattr(site.validator._countersigning, "waiting", lambda: listed)
    assert site.validator.look(START) == []


def kept_proposal(site: Site, path: Path) -> dict[str, bytes]:
    """What lies in the folder about one proposal: it can be copied by whoever reads the share."""
    name = path.name.removesuffix(".json")
    return {kind: path.with_name(f"{name}{kind}").read_bytes() for kind in (".json", ".signature.json")}


def test_an_old_role_that_both_signed_does_not_come_back_as_the_next_one(site: Site) -> None:
    """Whoever writes into the folder can only delay: old signatures stay good, and must not count for a new number."""
    site.release(0)
    site.propose(1)
    old = site.proposal()
    site.validator.look(START)
    kept = kept_proposal(site, old)
    assert site.registry.complete(START)
    site.release(2)
    with pytest.raises(AwaitsValidatorError):
        site.registry.revoke("network", 2, "floods alerts", START)
    site.validator.look(START)
    assert site.registry.complete(START)
    before = RepositoryFiles(site.repository).load().roles["network"].version
    for kind, data in kept.items():
        (site.repository / "proposals" / f"{before + 1}.network{kind}").write_bytes(data)
    assert not site.registry.complete(START)
    assert RepositoryFiles(site.repository).load().roles["network"].version == before
    assert [r.version for r in site.registry.revoked("network")] == [2], "nothing is taken back"
    site.release(3)
    assert [r.version for r in site.device().refresh()] == [3]


def test_a_refused_renewal_does_not_stop_the_timestamp(site: Site) -> None:
    """Else one refusal in the folder would let every file of the site run out within a day."""
    site.release(0)
    later = START + 46 * 24 * HOUR
    site.registry.refresh_timestamp(later)
    folder = Countersigning(RepositoryFiles(site.repository))
    for path, _, _ in folder.waiting():
        folder.answer(path, Verdict(sha256=hashlib.sha256(path.read_bytes()).hexdigest(), reason="out of spite"))
    assert site.registry.refresh_timestamp(later + 13 * HOUR)
