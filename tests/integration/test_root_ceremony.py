"""The root ceremony: keys made apart, a proposal that travels, thresholds of the old and of the new root."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from release_site import START, TASKS, describe, release_files
from tuf.api.metadata import TargetFile

from vedette.exit_codes import ExitCode
from vedette.main import main
from vedette_aggregator.ceremony_keys import make_key, read_passphrase, read_public, read_signer
from vedette_aggregator.publication import retained_messages
from vedette_aggregator.registry import Registry
from vedette_aggregator.registry_draft import OfflineKeys
from vedette_aggregator.registry_proposal import Proposal, propose_first, propose_next, publish
from vedette_device.trust import RetainedMemory, TrustClient
from vedette_schemas.errors import ConfigError, PeerError, RefusedError
from vedette_schemas.topics import Topics

PASSPHRASE = "correct horse battery staple"


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of synchronising is what is tested; waiting for the platters would only take time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class People:
    """Holders of keys, each with a folder of their own, and the aggregator's repository."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder, self.repository = folder, folder / "repository"
        for name in names:
            self.join(name)

    def join(self, name: str) -> None:
        (self.folder / name).mkdir()
        make_key(self.folder / name / "key.pem", PASSPHRASE)

    def public(self, name: str) -> Path:
        return self.folder / name / "key.pem.pub"

    def keys(self, names: str, threshold: int, targets: str = "t", validator: str = "") -> OfflineKeys:
        return OfflineKeys(
            tuple(read_public(self.public(n)) for n in names),
            threshold,
            tuple(read_public(self.public(n)) for n in targets),
            1,
            read_public(self.public(validator)) if validator else None,
        )

    def sign(self, proposal: Proposal, names: str) -> Proposal:
        """The proposal as a file, from hand to hand."""
        path = self.folder / "travelling.json"
        proposal.write(path)
        for name in names:
            found = Proposal.read(path)
            found.sign(read_signer(self.folder / name / "key.pem", PASSPHRASE))
            found.write(path)
        return Proposal.read(path)

    def found(self, names: str = "ab", threshold: int = 2) -> Registry:
        first = propose_first(self.repository, "plant", TASKS, self.keys("abc", threshold), START)
        publish(self.repository, self.sign(first, names + "t"), START)
        registry = Registry(self.repository)
        (self.folder / "root.json").write_bytes(registry.root)
        return registry

    def device(self, registry: Registry, name: str = "gw") -> TrustClient:
        topics, retained = Topics("plant"), RetainedMemory()
        retained.update({t: p for t, p in retained_messages(topics, registry.retained()) if p})
        return TrustClient(self.folder / name, self.folder / "root.json", topics, TASKS, retained, lambda: START)


@pytest.fixture
def people(tmp_path: Path) -> People:
    return People(tmp_path, *"abctdv")


def test_two_of_three_found_a_site_that_devices_believe(people: People) -> None:
    registry = people.found("ac")
    files = release_files("network", 0)
    registry.publish("network", 0, files, describe("network", 0, files), START)
    assert [r.version for r in people.device(registry).refresh()] == [0]
    assert not list(people.repository.rglob("root-keys")), "no offline key was ever on the aggregator"
    root = registry.roles()[0]
    assert (root.threshold, len(root.keys), root.online) == (2, 3, False)


@pytest.mark.parametrize("names", ["t", "at", "ab", "aat", "advt"])
def test_below_the_threshold_nothing_counts(people: People, names: str) -> None:
    first = propose_first(people.repository, "plant", TASKS, people.keys("abc", 2), START)
    signed = people.sign(first, [n for n in names if n not in "dv"])  # type: ignore[arg-type]
    with pytest.raises(RefusedError, match="signatures of") as refused:
        publish(people.repository, signed, START)
    assert refused.value.rule == "signature"
    assert not (people.repository / "metadata" / "1.root.json").exists()


def test_who_is_no_holder_signs_nothing(people: People) -> None:
    first = propose_first(people.repository, "plant", TASKS, people.keys("abc", 2), START)
    with pytest.raises(RefusedError, match="no file in this proposal"):
        people.sign(first, "d")


def test_copies_that_went_different_ways_are_merged(people: People) -> None:
    first = propose_first(people.repository, "plant", TASKS, people.keys("abc", 2), START)
    one, two = people.sign(first, "at"), people.sign(Proposal.of(_draft(first), None), "b")
    one.merge(two)
    publish(people.repository, one, START)
    other = propose_first(people.folder / "other", "plant", TASKS, people.keys("abc", 2), START)
    with pytest.raises(RefusedError, match="not copies of one proposal"):
        one.merge(other)


def _draft(proposal: Proposal) -> object:
    from vedette_aggregator.registry_draft import Draft

    return Draft(proposal.root.signed, proposal.targets.signed, {})


def test_a_rotation_needs_the_old_and_the_new_threshold(people: People) -> None:
    registry = people.found()
    device = people.device(registry)
    device.refresh()
    keys = people.keys("cd", 2)  # a and b leave, d comes
    for names, enough in (("cdt", False), ("abt", False), ("abct", False), ("acdt", True)):
        proposal = people.sign(propose_next(people.repository, keys, START, ["release", "timestamp"]), names)
        if not enough:
            with pytest.raises(RefusedError, match="signatures of root"):
                registry.adopt(proposal, START)
            assert registry.roles()[0].version == 1
    registry.adopt(proposal, START)
    root = registry.roles()[0]
    assert (root.version, root.keys) == (2, tuple(k.keyid for k in keys.root))
    again = people.device(registry)
    again.refresh()
    assert again.contributing_allowed, "the device followed without being touched"
    late = people.device(registry, "enrolled-long-ago")
    late.refresh()
    assert late.contributing_allowed


def test_thresholds_change(people: People) -> None:
    registry = people.found()
    registry.adopt(people.sign(propose_next(people.repository, people.keys("abcd", 4), START), "abcdt"), START)
    assert registry.roles()[0].threshold == 4
    lower = propose_next(people.repository, people.keys("a", 1), START)
    with pytest.raises(RefusedError, match="3 of 4 signatures of root"):
        registry.adopt(people.sign(lower, "abct"), START)
    registry.adopt(people.sign(lower, "abcdt"), START)
    people.device(registry).refresh()


def test_a_proposal_of_another_state_is_refused(people: People) -> None:
    registry = people.found()
    old = people.sign(propose_next(people.repository, people.keys("abc", 2), START), "abt")
    registry.adopt(people.sign(propose_next(people.repository, people.keys("abc", 2), START), "abt"), START)
    with pytest.raises(RefusedError, match="moved on"):
        registry.adopt(old, START)
    (people.folder / "elsewhere").mkdir()
    elsewhere = People(people.folder / "elsewhere", *"abct")
    foreign = elsewhere.found()
    theirs = elsewhere.sign(propose_next(elsewhere.repository, elsewhere.keys("abc", 2), START), "abt")
    with pytest.raises(RefusedError):
        registry.adopt(theirs, START)
    assert foreign.roles()[0].version == 1


def test_a_proposal_that_was_changed_on_its_way_is_worth_nothing(people: People) -> None:
    registry = people.found()
    proposal = people.sign(propose_next(people.repository, people.keys("abc", 2), START), "abt")
    before = proposal.fingerprint
    proposal.root.signed.roles["root"].threshold = 1
    assert proposal.fingerprint != before, "holders who compare it notice"
    with pytest.raises(RefusedError, match="0 of"):
        registry.adopt(proposal, START)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.targets.signed.delegations.roles["network"].paths.append("sensor/*/*"),
        lambda p: setattr(p.targets.signed.delegations.roles["network"], "terminating", False),
        lambda p: p.targets.signed.targets.update(x=TargetFile(1, {"sha256": "00" * 32}, "x")),
        lambda p: setattr(p.root.signed, "consistent_snapshot", False),
    ],
)
def test_what_a_holder_would_not_see_is_refused(people: People, change: Callable[[Proposal], object]) -> None:
    """A stolen aggregator proposes more than `show` prints: neither holders nor the repository take it."""
    registry = people.found()
    proposal = propose_next(people.repository, people.keys("abc", 2), START)
    change(proposal)
    for name in "abt":
        proposal.sign(read_signer(people.folder / name / "key.pem", PASSPHRASE))
    with pytest.raises(RefusedError) as refused:
        registry.adopt(proposal, START)
    assert refused.value.rule == "shape"
    proposal.write(people.folder / "p.json")
    with pytest.raises(PeerError):
        Proposal.read(people.folder / "p.json")


def test_online_keys_that_were_replaced_are_gone(people: People) -> None:
    registry = people.found()
    before = {p.name for p in (people.repository / "keys").iterdir()}
    rotate = ["timestamp", "snapshot", "release", "beacon"]
    propose_next(people.repository, people.keys("abc", 2), START, rotate)  # given up: nobody signs it
    proposal = people.sign(propose_next(people.repository, people.keys("abc", 2), START, rotate), "abt")
    registry.adopt(proposal, START)
    after = {p.name for p in (people.repository / "keys").iterdir()}
    assert not before & after
    assert len(after) == len(before) == 4
    files = release_files("network", 0)
    registry.publish("network", 0, files, describe("network", 0, files), START)
    assert [r.version for r in people.device(registry).refresh()] == [0]


# --- keys ---


def test_a_key_is_private_encrypted_and_never_replaced(people: People) -> None:
    path = people.folder / "a" / "key.pem"
    assert path.stat().st_mode & 0o777 == 0o600
    assert b"ENCRYPTED" in path.read_bytes()
    for wrong in (None, "another passphrase that is long"):
        with pytest.raises(ConfigError, match="passphrase"):
            read_signer(path, wrong)
    with pytest.raises(ConfigError, match="never replaced"):
        make_key(path, PASSPHRASE)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="expected 600"):
        read_signer(path, PASSPHRASE)
    with pytest.raises(ConfigError, match="16 or more"):
        make_key(people.folder / "short.pem", "short")
    plain = people.folder / "plain.pem"
    make_key(plain, None)
    assert plain.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="not encrypted"):
        read_signer(plain, PASSPHRASE)


def test_a_passphrase_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "passphrase"
    path.write_text(PASSPHRASE + "\n")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="others can read it"):
        read_passphrase(path)
    path.chmod(0o600)
    assert read_passphrase(path) == PASSPHRASE
    path.write_text("\n")
    with pytest.raises(ConfigError, match="no passphrase"):
        read_passphrase(path)


@pytest.mark.parametrize("content", [b"", b"garbage", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_a_file_that_is_no_key(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.pub"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError):
        read_public(path)
    with pytest.raises(ConfigError):
        read_signer(path, None)


# --- the file ---


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_a_damaged_proposal_raises_only_what_is_declared(people: People, data: st.DataObject) -> None:
    path = people.folder / "proposal.json"
    if not path.exists():
        propose_first(people.repository, "plant", TASKS, people.keys("abc", 2), START).write(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 9))] = data.draw(st.sampled_from([b"", b"x", b"null", b"[", b"9"]))
    try:
        found = Proposal.parse(bytes(content))
    except PeerError:
        return
    assert not all(s.done for s in found.signings())


def test_what_cannot_be_signed_is_no_proposal(people: People) -> None:
    """Canonical JSON has no fractions: found by fuzzing."""
    path = people.folder / "proposal.json"
    propose_first(people.repository, "plant", TASKS, people.keys("abc", 2), START).write(path)
    content = path.read_bytes().replace(b'"consistent_snapshot": true', b'"consistent_snapshot": true, "x": 0.5')
    assert b"0.5" in content
    with pytest.raises(PeerError):
        Proposal.parse(content)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"null", b"[" * 10_000, b'{"type":"vedette-root-proposal-1"}'])
def test_what_is_no_proposal(content: bytes) -> None:
    with pytest.raises(PeerError):
        Proposal.parse(content)


# --- the commands ---

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def vedette(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vedette", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out, said.err

    return run


def test_the_ceremony_on_the_command_line(tmp_path: Path, vedette: Run) -> None:
    secret = tmp_path / "passphrase"
    secret.write_text(PASSPHRASE)
    secret.chmod(0o600)
    for name in "abt":
        code, out, _ = vedette("trust", "key", "new", tmp_path / f"{name}.pem", "--passphrase-file", secret)
        assert code == 0
        assert PASSPHRASE not in out
    proposal, repository = tmp_path / "proposal.json", tmp_path / "trust"
    roots = [x for n in "ab" for x in ("--root-key", tmp_path / f"{n}.pem.pub")]
    code, out, _ = vedette(
        "trust", "root", "init", "--trust-dir", repository, "--site", "plant", "--task", "network", *roots,
        "--threshold", "2", "--targets-key", tmp_path / "t.pem.pub", "--out", proposal,
    )  # fmt: skip
    assert (code, "needs 2 more signatures of root" in out) == (0, True)
    _, out, _ = vedette("trust", "root", "show", proposal, "--json")
    fingerprint = json.loads(out)["fingerprint"]
    sign = ("trust", "root", "sign", proposal, "--passphrase-file", secret, "--key")
    assert vedette(*sign, tmp_path / "a.pem", "--fingerprint", "00" * 32)[0] != 0
    for name in "abt":
        assert vedette(*sign, tmp_path / f"{name}.pem", "--fingerprint", fingerprint)[0] == 0
    assert vedette("trust", "root", "publish", proposal, "--trust-dir", repository)[0] == 0
    _, out, _ = vedette("trust", "show", "--trust-dir", repository, "--json")
    roles = {row["role"]: row for row in json.loads(out)["roles"]}
    assert roles["root"]["threshold"] == 2
    assert 364 < roles["root"]["days_left"] <= 365
    assert roles["network"]["signed_by"] == "the aggregator"
    code, _, _ = vedette(
        "trust", "root", "rotate", "--trust-dir", repository, "--out", proposal, "--rotate", "release",
        "--remove-root-key", roles["root"]["keys"][0][:12], "--threshold", "1",
    )  # fmt: skip
    assert code == 0
    code, _, err = vedette("trust", "root", "publish", proposal, "--trust-dir", repository)
    assert (code, "0 of 1 signatures of root" in err) == (ExitCode.CONFIGURATION, True)
    for name in "abt":
        assert vedette(*sign, tmp_path / f"{name}.pem")[0] == 0
    assert vedette("trust", "root", "publish", proposal, "--trust-dir", repository)[0] == 0
    assert Registry(repository).roles()[0].threshold == 1


def test_people_give_the_site_a_longer_beacon_chain(tmp_path: Path, vedette: Run) -> None:
    for name in "at":
        assert vedette("trust", "key", "new", tmp_path / f"{name}.pem")[0] == 0
    proposal, repository = tmp_path / "proposal.json", tmp_path / "trust"
    assert vedette(
        "trust", "root", "init", "--trust-dir", repository, "--site", "plant", "--task", "network",
        "--root-key", tmp_path / "a.pem.pub", "--targets-key", tmp_path / "t.pem.pub", "--out", proposal,
    )[0] == 0  # fmt: skip

    def sign_and_publish() -> None:
        for name in "at":
            assert vedette("trust", "root", "sign", proposal, "--key", tmp_path / f"{name}.pem")[0] == 0
        assert vedette("trust", "root", "publish", proposal, "--trust-dir", repository)[0] == 0

    sign_and_publish()
    rotate = ("trust", "root", "rotate", "--trust-dir", repository, "--out", proposal)
    code, _, err = vedette(*rotate, "--beacon-epochs", "8192")
    assert (code, "without rotating 'beacon'" in err) == (ExitCode.CONFIGURATION, True)
    before = Registry(repository).beacon(7)
    assert vedette(*rotate, "--rotate", "beacon", "--beacon-epochs", "8192")[0] == 0
    assert "beacon epochs: 8192" in vedette("trust", "root", "show", proposal)[1]
    assert Registry(repository).beacon_anchor.length == 4096, "nothing counts before it is signed"
    sign_and_publish()
    assert Registry(repository).beacon_anchor.length == 8192
    assert Registry(repository).beacon(7) != before
    assert len(Registry(repository).beacon(8192)) == 32
    assert "beacon: 8192 epochs\n" in vedette("trust", "show", "--trust-dir", repository)[1]
