"""What is put on retained topics when a release is published, and in which order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from vedette_schemas import codec
from vedette_schemas.model import CHUNK_BYTES
from vedette_schemas.topics import Topics
from vedette_schemas.trust import INDEX_FILE, TIMESTAMP_FILE, TrustIndex

WITHDRAWN: Final = b""
"""An empty retained payload removes what was retained (MQTT 3.1.1 §3.3.1.3)."""


@dataclass(frozen=True, slots=True)
class Publication:
    """Bytes that belong on retained topics, and names that no longer do.

    Attributes:
        metadata: TUF metadata files by name.
        artifacts: release files by the hex SHA-256 of their bytes.
        files: every metadata file that is retained once this is published; goes into the index hint.
        withdrawn_metadata: metadata files that were retained and are not any more.
        withdrawn_artifacts: the same for release files, with their length in bytes.
        follows: mark of the state that it replaced (`Registry.mark`); empty if it changed nothing.
    """

    metadata: Mapping[str, bytes] = field(repr=False)
    artifacts: Mapping[str, bytes] = field(repr=False)
    files: tuple[str, ...] = ()
    withdrawn_metadata: tuple[str, ...] = ()
    withdrawn_artifacts: Mapping[str, int] = field(default_factory=dict)
    follows: str = ""

    def __bool__(self) -> bool:
        return bool(self.metadata or self.artifacts)


def retained_messages(topics: Topics, publication: Publication) -> list[tuple[str, bytes]]:
    """The (topic, payload) pairs of a publication, in the order in which they must be published.

    Whatever a file speaks of is there before the file: artifacts, metadata, the index hint, the timestamp. Withdrawals
    (empty payloads) follow, because until the new timestamp is out a device may still ask for what they remove.
    """
    messages: list[tuple[str, bytes]] = []
    for sha256, data in publication.artifacts.items():
        messages += _artifact(topics, sha256, data)
    for name, data in publication.metadata.items():
        if name != TIMESTAMP_FILE:
            messages.append((topics.trust(name), data))
    index = codec.pack_json(TrustIndex(files=tuple(sorted(publication.files))))
    messages.append((topics.trust(INDEX_FILE), index))
    if TIMESTAMP_FILE in publication.metadata:
        messages.append((topics.trust(TIMESTAMP_FILE), publication.metadata[TIMESTAMP_FILE]))
    messages += [(topics.trust(name), WITHDRAWN) for name in publication.withdrawn_metadata]
    for sha256, length in publication.withdrawn_artifacts.items():
        messages += [(topic, WITHDRAWN) for topic in _artifact_topics(topics, sha256, length)]
    return messages


def _artifact(topics: Topics, sha256: str, data: bytes) -> list[tuple[str, bytes]]:
    names = _artifact_topics(topics, sha256, len(data))
    return [(topic, data[i * CHUNK_BYTES : (i + 1) * CHUNK_BYTES]) for i, topic in enumerate(names)]


def _artifact_topics(topics: Topics, sha256: str, length: int) -> list[str]:
    if length <= CHUNK_BYTES:
        return [topics.artifact(sha256)]
    return [topics.artifact(sha256, i) for i in range(-(-length // CHUNK_BYTES))]
