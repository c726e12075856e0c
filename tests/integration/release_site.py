"""A site with a real release repository, a broker's retained topics in memory, and devices that read them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from vedette_aggregator.publication import Publication, retained_messages
from vedette_aggregator.registry import Registry
from vedette_device.trust import RetainedMemory, TrustClient
from vedette_schemas.model import ReleaseTarget, Variant
from vedette_schemas.topics import Topics

START = 1_800_000_000.0
HOUR = 3600.0
TASKS = ("network", "sensor")
SCHEMA = "5c" * 32
FORMATS = {Variant.PLAN: "plan", Variant.WEIGHTS: "weights"}


def release_files(task: str, version: int, mark: str = "") -> dict[Variant, bytes]:
    """The bytes of a small release; `mark` makes another one of the same version."""
    return {
        Variant.PLAN: f"plan of {task}".encode(),
        Variant.WEIGHTS: f"weights {task} {version} {mark}".encode(),
        Variant.INT8: f"int8 {task} {version} {mark}".encode() * 20,
    }


def describe(task: str, version: int, files: dict[Variant, bytes], parent: str = "") -> dict[Variant, ReleaseTarget]:
    """What such a release says of itself."""
    plan = hashlib.sha256(files[Variant.PLAN]).hexdigest()
    return {
        variant: ReleaseTarget.model_validate(
            {
                "task": task,
                "version": version,
                "parent": parent,
                "round": version,
                "variant": variant,
                "format": FORMATS.get(variant, "tflite"),
                "feature_schema": SCHEMA,
                "runtime_min": "2.1",
                "contributors": 8,
                "transcript": "",
                "plan": plan,
                "metrics": {"loss_after": "0.125"},
                "active": False,
            }
        )
        for variant in files
    }


class Site:
    """One site; `retained` is what its broker keeps."""

    def __init__(self, folder: Path, tasks: Sequence[str] = TASKS, *, root_keys: int = 1, threshold: int = 1) -> None:
        self.folder, self.tasks = folder, tuple(tasks)
        self.repository = folder / "repository"
        self.registry = Registry.create(
            self.repository, "plant", tasks, START, root_keys=root_keys, root_threshold=threshold
        )
        self.topics = Topics("plant")
        self.retained = RetainedMemory()
        self.now = START
        self.root = folder / "root.json"
        self.root.write_bytes(self.registry.root)
        self.deliver(self.registry.retained())

    def deliver(self, publication: Publication) -> None:
        for topic, payload in retained_messages(self.topics, publication):
            assert self.topics.parse(topic).kind in ("trust", "artifact")
            if payload:
                self.retained[topic] = payload
            else:
                self.retained.pop(topic, None)

    def publish(self, task: str, version: int, files: dict[Variant, bytes] | None = None) -> Publication:
        files = files or release_files(task, version)
        publication = self.registry.publish(task, version, files, describe(task, version, files), self.now)
        self.deliver(publication)
        return publication

    def device(self, name: str = "gw-01", tasks: Sequence[str] | None = None) -> TrustClient:
        """A device; the same name again is the same device after a restart."""
        return TrustClient(
            self.folder / name, self.root, self.topics, tasks or self.tasks, self.retained, lambda: self.now
        )

    def file(self, name: str) -> str:
        """Topic of a metadata file."""
        return self.topics.trust(name)
