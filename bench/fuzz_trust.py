"""What `fuzz.py` is aimed at of releases: diffs, TUF files through a device's client, and root proposals.

A damaged metadata file fails at its signature; so there is a second target, in which whoever has the online keys signs
what was damaged, and the client looks at all of it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

import numpy as np
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Targets

from vedette_aggregator.publication import retained_messages
from vedette_aggregator.registry import Registry
from vedette_aggregator.registry_ceremony import OFFLINE_DIRECTORY
from vedette_aggregator.registry_files import RepositoryFiles, load_keys, meta_file
from vedette_aggregator.registry_proposal import Proposal, propose_next
from vedette_core.learning.artifact_diff import apply_diff, make_diff
from vedette_device.trust import RetainedMemory, TrustClient
from vedette_schemas.codec import PAYLOAD_BYTES_MAX
from vedette_schemas.errors import PeerError, RefusedError, TransientError
from vedette_schemas.model import ReleaseTarget, Variant
from vedette_schemas.topics import Topics

if TYPE_CHECKING or __package__:
    from bench.fuzz_wire import Target
else:
    from fuzz_wire import Target

TASK: Final = "network"
REFUSALS: Final = (PeerError, RefusedError, TransientError)


def diff_target(_: Path) -> Target:
    """Diffs of release files; the declared length is that of the child, whatever the diff would give."""
    rng = np.random.default_rng(3)
    parent = rng.integers(0, 256, 6000, dtype=np.uint8)
    child = (parent + rng.integers(-2, 3, 6000)).astype(np.uint8)
    floats = rng.standard_normal(1500).astype("<f4")
    moved = (floats * (1 + 1e-4 * rng.standard_normal(1500))).astype("<f4")
    old, lengths = parent.tobytes(), (6000, 5999, 100_000)

    def run(data: bytes) -> bool:
        accepted = False
        for length in lengths:
            try:
                found = apply_diff(old, data, length)
            except PeerError:
                continue
            if len(found) != length:
                raise AssertionError("a result of another length than the declared one")
            accepted = True
        return accepted

    seeds = (make_diff(old, child.tobytes()), make_diff(old, moved.tobytes()), make_diff(b"", old[:6000]))
    return Target(seeds, run)


class _Site:
    """A site with two releases and one that is revoked, its retained topics, and a device that is new each time."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now = folder, time.time()
        self.registry = Registry.create(folder / "trust", "fuzz", [TASK], self.now)
        (folder / "root.json").write_bytes(self.registry.root)
        for version in range(3):
            files = {v: f"{v} {version}".encode() * 40 for v in (Variant.WEIGHTS, Variant.INT8)}
            self._publish(version, {**files, Variant.PLAN: b"plan"})
        self.registry.revoke(TASK, 0, "for the list", self.now)
        self.topics = Topics("fuzz")
        self.retained = {t: p for t, p in retained_messages(self.topics, self.registry.retained()) if p}
        self.files = RepositoryFiles(folder / "trust")

    def refresh(self, changed: dict[str, bytes]) -> bool:
        """A device's first refresh, with some files replaced; whether it found a release."""
        retained = RetainedMemory(self.retained | {self.topics.trust(n): d for n, d in changed.items()})
        own = self.folder / "device"
        shutil.rmtree(own, ignore_errors=True)
        with mock.patch.object(os, "fsync"):
            device = TrustClient(own, self.folder / "root.json", self.topics, [TASK], retained, lambda: self.now)
            for release in device.refresh():
                for target in release.targets.values():
                    device.download(target)
                return True
        return False

    def _publish(self, version: int, files: dict[Variant, bytes]) -> None:
        forms = {Variant.WEIGHTS: "weights", Variant.PLAN: "plan"}
        custom = {
            variant: ReleaseTarget.model_validate(
                {
                    "task": TASK, "version": version, "parent": "", "round": 0, "variant": variant,
                    "format": forms.get(variant, "tflite"), "feature_schema": "5c" * 32, "runtime_min": "",
                    "contributors": 0, "transcript": "", "plan": hashlib.sha256(files[Variant.PLAN]).hexdigest(),
                    "metrics": {}, "active": True,
                }
            )
            for variant in files
        }  # fmt: skip
        self.registry.publish(TASK, version, files, custom, self.now)


def tuf_target(folder: Path) -> Target:
    """TUF files as a broker may show them: the first byte says which of them is replaced by the rest."""
    site = _Site(folder)
    names = (*sorted(site.registry.retained().files), "index.json")

    def run(data: bytes) -> bool:
        return bool(data) and site.refresh({names[data[0] % len(names)]: data[1:PAYLOAD_BYTES_MAX]})

    whole = [bytes([i]) + site.retained[site.topics.trust(name)] for i, name in enumerate(names)]
    return Target(tuple(whole), run, REFUSALS)


def signed_tuf_target(folder: Path) -> Target:
    """A task's role as somebody signs it who has every online key."""
    site = _Site(folder)
    state = site.files.load()
    plain = state.roles[TASK].to_dict()

    def run(data: bytes) -> bool:
        try:
            document: Metadata[Any] = Metadata.from_dict({"signed": json.loads(data), "signatures": []})
            if not isinstance(document.signed, Targets):
                return False
            for signer in load_keys(site.files.keys, state.targets.get_delegated_role(TASK).keyids):
                document.sign(signer)
            role = document.to_bytes()
        except (RepositoryError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            return False  # the thief's own tools fail
        number = document.signed.version
        if not isinstance(number, int) or not 0 < number < 2**31:
            return False
        snapshot, timestamp = copy.deepcopy(state.snapshot), copy.deepcopy(state.timestamp)
        snapshot.version, timestamp.version = snapshot.version + 1, timestamp.version + 1
        snapshot.meta[f"{TASK}.json"] = meta_file(number, role)
        packed = site.files.sign(snapshot, "snapshot", state.root)
        timestamp.snapshot_meta = meta_file(snapshot.version, packed)
        return site.refresh(
            {
                f"{number}.{TASK}.json": role,
                f"{snapshot.version}.snapshot.json": packed,
                "timestamp.json": site.files.sign(timestamp, "timestamp", state.root),
            }
        )

    return Target((json.dumps(plain).encode(),), run, REFUSALS)


def proposal_target(folder: Path) -> Target:
    """Root proposals, as they come back from their way."""
    site = _Site(folder)
    proposal = propose_next(folder / "trust", site.registry.offline_keys(), site.now, ["release"])
    keys = [*proposal.root.signed.keys]
    for signer in load_keys(folder / "trust" / OFFLINE_DIRECTORY, keys):
        proposal.sign(signer)
    path = folder / "proposal.json"
    proposal.write(path)

    def run(data: bytes) -> bool:
        found = Proposal.parse(data)
        found.signings()
        return bool(found.fingerprint)

    return Target((path.read_bytes(),), run)


TRUST: Final[dict[str, Callable[[Path], Target]]] = {
    "release_diff": diff_target,
    "tuf": tuf_target,
    "tuf_signed": signed_tuf_target,
    "root_proposal": proposal_target,
}
"""Name of a parser → how its target is made in a folder for its files."""
