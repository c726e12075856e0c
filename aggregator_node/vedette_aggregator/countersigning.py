"""Role files that wait for an independent validator's signature: how they are proposed, and how it answers.

``proposals/`` in the repository holds a task's next role, signed with the release key: ``{version}.{task}.json``. The
validator puts its verdict beside it: ``….signature.json`` or ``….refused.json``. Nobody needs to trust this folder: a
signature counts if it verifies, and a refusal only delays.

Source: The Update Framework specification 1.0.34, §4.5 (delegations with a threshold).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field
from securesystemslib.signer import Signature
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Targets

from vedette_aggregator.registry_files import PUBLIC_FILE, RELEASE_LIFETIME, RepositoryFiles, RepositoryState, expiry
from vedette_aggregator.release_listing import active_version, lengths_of, releases_of, revoked_of
from vedette_core.runtime.durable import make_directory, remove_durable, write_durable
from vedette_schemas import codec
from vedette_schemas.codec import Message
from vedette_schemas.errors import ConfigError, PeerError, RefusedError, TransientError
from vedette_schemas.model import Digest
from vedette_schemas.trust import TARGETS_BYTES_MAX

FOLDER: Final = "proposals"
_PROPOSAL: Final = re.compile(r"([1-9][0-9]{0,9})\.([a-z0-9-]{1,40})\.json")


class AwaitsValidatorError(TransientError):
    """Everything is signed but for the validator's part; the same call again finds it once it is there."""


class Verdict(Message):
    """What a validator says of one proposal.

    Attributes:
        sha256: of the bytes that it looked at; about others it says nothing.
        keyid: of its key; empty in a refusal.
        signature: hex; empty in a refusal.
        reason: why it refuses; empty in a signature.
    """

    sha256: Digest
    keyid: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    signature: Annotated[str, Field(pattern=r"^([0-9a-f]{128})?$")] = ""
    reason: Annotated[str, Field(max_length=500)] = ""


class Countersigning:
    """The folder of proposals of a repository.

    Args:
        files: the repository.
    """

    def __init__(self, files: RepositoryFiles) -> None:
        self._files, self._folder = files, files.directory / FOLDER

    def needed(self, state: RepositoryState, task: str) -> bool:
        """Whether the online keys alone do not reach a task's threshold."""
        return state.targets.get_delegated_role(task).threshold > 1

    def settle(self, state: RepositoryState, task: str, contents: Targets, now: float) -> bytes:
        """A task's next role with every signature that it needs.

        Raises:
            AwaitsValidatorError: the validator has not answered; it is proposed, and stays so.
            RefusedError: the validator refuses it.
            TransientError, ConfigError: as `RepositoryFiles.commit`.
        """
        version = state.roles[task].version + 1
        path = self._folder / f"{version}.{task}.json"
        document = self._proposed(path, version)
        if document is None or _plain(document.signed) != _plain(contents):
            if document is not None:
                self._give_way(path, document.signed, contents)
            document = self._propose(path, state, task, contents, version, now)
        data = _read(path)
        refusal = self.verdict(path, "refused")
        if refusal is not None and refusal.sha256 == _digest(data):
            raise RefusedError(f"{task}: the validator refuses it: {refusal.reason}", rule="validator")
        return self._signed(state, task, document, path, data)

    def ready(self, state: RepositoryState) -> Iterator[tuple[str, bytes]]:
        """Proposals of this state that a validator signed: task and bytes."""
        for path, version, task in self.waiting():
            if task in state.roles and version == state.roles[task].version + 1:
                document = self._proposed(path, version)
                with suppress(AwaitsValidatorError, OSError):
                    if document is not None:
                        yield task, self._signed(state, task, document, path, _read(path))

    def waiting(self) -> list[tuple[Path, int, str]]:
        """Every proposal that is there: its file, version and task."""
        paths = sorted(self._folder.iterdir()) if self._folder.is_dir() else []
        found = ((path, _PROPOSAL.fullmatch(path.name)) for path in paths)
        return [(path, int(match[1]), match[2]) for path, match in found if match is not None]

    def artifacts(self) -> set[str]:
        """Digests of what proposals speak of: their files must not be tidied away."""
        found: set[str] = set()
        for path, _, _ in self.waiting():
            with suppress(RepositoryError, ValueError, ConfigError, PeerError, OSError):
                role = Metadata[Targets].from_bytes(_read(path)).signed
                found |= {digest for release in releases_of(role).values() for digest in lengths_of(release)}
        return found

    def tidy(self, state: RepositoryState) -> None:
        """Remove proposals of earlier states, with what was said of them."""
        for path, version, task in self.waiting():
            if task not in state.roles or version <= state.roles[task].version:
                self._remove(path)

    def take_back(self, state: RepositoryState, task: str, active: int) -> None:
        """Remove a task's proposal if it only makes another release active; its signature then counts no more.

        One that revokes something stays, and so does one of a new release.
        """
        path, proposed = self._next(state, task)
        if proposed is None or active_version(releases_of(proposed)) == active:
            return
        if self._adds(state.roles[task], proposed) is False:
            self._remove(path)

    def take_back_release(self, state: RepositoryState, task: str) -> None:
        """Remove a task's proposal if it is that of a new release, and revokes nothing."""
        path, proposed = self._next(state, task)
        if proposed is not None and self._adds(state.roles[task], proposed):
            self._remove(path)

    def _next(self, state: RepositoryState, task: str) -> tuple[Path, Targets | None]:
        version = state.roles[task].version + 1
        path = self._folder / f"{version}.{task}.json"
        document = self._proposed(path, version)
        return path, None if document is None else document.signed

    def _adds(self, now: Targets, proposed: Targets) -> bool | None:
        """Whether a proposal adds a release; None if it revokes anything: that is nobody's to take back."""
        if revoked_of(now) != revoked_of(proposed):
            return None
        return bool(releases_of(proposed).keys() - releases_of(now).keys())

    def verdict(self, path: Path, kind: str) -> Verdict | None:
        """What was said of a proposal; None if nothing readable was."""
        with suppress(OSError, PeerError), _beside(path, kind).open("rb") as file:
            return codec.unpack_json(Verdict, file.read(4096))
        return None

    def answer(self, path: Path, verdict: Verdict) -> None:
        """Put a verdict beside a proposal.

        Raises:
            TransientError: the disk is full.
        """
        kind = "signature" if verdict.signature else "refused"
        write_durable(_beside(path, kind), codec.pack_json(verdict), PUBLIC_FILE)

    def _remove(self, path: Path) -> None:
        for each in (path, _beside(path, "signature"), _beside(path, "refused")):
            remove_durable(each)

    def _proposed(self, path: Path, version: int) -> Metadata[Targets] | None:
        """What is proposed already as this version of a role; None for anything else that lies there.

        The name of a file says nothing: an older role has signatures of both, too, and must not become the next one.
        """
        with suppress(OSError, RepositoryError, ValueError):
            document = Metadata[Targets].from_bytes(_read(path))
            if isinstance(document.signed, Targets) and document.signed.version == version:
                return document
        return None

    def _give_way(self, path: Path, waiting: Targets, contents: Targets) -> None:
        """Whether another change may take the place of one that waits: if that was refused, or this revokes more.

        Raises:
            AwaitsValidatorError: it may not; else a release would push a revocation out that nobody repeats.
        """
        refusal = self.verdict(path, "refused")
        refused = refusal is not None and refusal.sha256 == _digest(_read(path))
        if not refused and len(revoked_of(contents)) <= len(revoked_of(waiting)):
            raise AwaitsValidatorError(
                f"{path}: waits for the validator's answer; what comes after it is proposed then"
            )

    def _propose(
        self, path: Path, state: RepositoryState, task: str, contents: Targets, version: int, now: float
    ) -> Metadata[Targets]:
        contents.version, contents.expires = version, expiry(now, RELEASE_LIFETIME)
        document: Metadata[Targets] = Metadata(contents)
        self._files.add_signatures(document, state.targets.get_delegated_role(task))
        if not document.signatures:
            raise ConfigError(f"{self._files.keys}: found no release key of task {task!r}, expected it; restore it")
        data = document.to_bytes()
        if len(data) > TARGETS_BYTES_MAX:
            raise RefusedError(f"{task}: found {len(data)} bytes, expected at most {TARGETS_BYTES_MAX}", rule="limit")
        make_directory(self._folder, 0o755)
        write_durable(path, data, PUBLIC_FILE)
        return document

    def _signed(self, state: RepositoryState, task: str, document: Metadata[Targets], path: Path, data: bytes) -> bytes:
        said = self.verdict(path, "signature")
        if said is not None and said.sha256 == _digest(data):
            document.signatures[said.keyid] = Signature(said.keyid, said.signature)
        try:
            state.targets.verify_delegate(task, document.signed_bytes, document.signatures)
        except RepositoryError as fault:
            raise AwaitsValidatorError(
                f"{task}: waits for the validator's signature of {path} ({fault}); see `vedette validator run`. A "
                "running aggregator goes on by itself once it is there"
            ) from fault
        return bytes(document.to_bytes())


def _plain(role: Targets) -> Any:
    """What a role says, but for its number and date."""
    plain = role.to_dict()
    return json.dumps({k: v for k, v in plain.items() if k not in ("version", "expires")}, sort_keys=True)


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f"{path.name.removesuffix('.json')}.{kind}.json")


def _read(path: Path) -> bytes:
    """A proposal's bytes, and never more of a file than one can have: others write into the folder, too."""
    with path.open("rb") as file:
        return file.read(TARGETS_BYTES_MAX + 1)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
