"""A root proposal: a file that goes from hand to hand, and comes back with signatures.

It holds the next root and top-level targets (and, where a validator signs releases, the tasks' roles) and the root
that counts today. Nothing in it is secret. Who signs sees first what changes; who publishes checks that enough of
the old and of the new keys signed, so that a proposal that somebody changed on its way is worth nothing.

Source: The Update Framework specification 1.0.34, §6.1 (root key migration: both thresholds).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Role, Root, Targets

from vedette_aggregator.registry_ceremony import check_empty, prepare_directory
from vedette_aggregator.registry_draft import (
    Draft,
    OfflineKeys,
    SignedDraft,
    beacon_of,
    check_shape,
    first_draft,
    next_draft,
    site_of,
    write_first,
    write_next,
)
from vedette_aggregator.registry_files import RepositoryFiles, checked_size
from vedette_core.runtime.durable import file_error, write_durable
from vedette_schemas.errors import PeerError, RefusedError, VedetteError
from vedette_schemas.trust import ROOT_BYTES_MAX, TARGETS_BYTES_MAX, TASKS_MAX

TYPE: Final = "vedette-root-proposal-1"
PROPOSAL_BYTES_MAX: Final = 2 * (2 * ROOT_BYTES_MAX + (1 + TASKS_MAX) * TARGETS_BYTES_MAX)
"""Two roots, the targets and every task's role at their largest, and their indentation."""
_KEYS: Final = {"type", "before", "root", "targets", "roles"}


@dataclass(frozen=True, slots=True)
class Signing:
    """How far one file of a proposal is signed by one set of keys.

    Attributes:
        what: ``root``, ``root (keys of today)``, ``targets`` or a task.
        signed: key ids that did.
        missing: key ids that may.
        threshold: how many must.
    """

    what: str
    signed: tuple[str, ...]
    missing: tuple[str, ...]
    threshold: int

    @property
    def done(self) -> bool:
        """Whether enough did."""
        return len(self.signed) >= self.threshold


class Proposal:
    """One proposal.

    Args:
        root: the next root.
        targets: the next top-level targets.
        roles: tasks' roles that need a signature from outside.
        before: the root that counts today; None for a new site.
    """

    def __init__(
        self,
        root: Metadata[Root],
        targets: Metadata[Targets],
        roles: Mapping[str, Metadata[Targets]],
        before: Metadata[Root] | None,
    ) -> None:
        self.root, self.targets, self.roles, self.before = root, targets, dict(roles), before

    @classmethod
    def of(cls, draft: Draft, before: bytes | None) -> Proposal:
        """A draft that nobody has signed yet."""
        roles = {task: Metadata(role) for task, role in draft.roles.items()}
        known = None if before is None else Metadata[Root].from_bytes(before)
        return cls(Metadata(draft.root), Metadata(draft.targets), roles, known)

    @classmethod
    def read(cls, path: Path) -> Proposal:
        """A proposal from its file.

        Raises:
            ConfigError: it cannot be read.
            PeerError: it is no proposal.
        """
        try:
            with path.open("rb") as file:
                data = file.read(PROPOSAL_BYTES_MAX + 1)
        except OSError as fault:
            raise file_error(fault, f"read {path}") from fault
        return cls.parse(data)

    @classmethod
    def parse(cls, data: bytes) -> Proposal:
        """A proposal from its bytes; signatures are not checked yet.

        Raises:
            PeerError: too large, not JSON, not this type, or metadata that cannot be read.
        """
        if len(data) > PROPOSAL_BYTES_MAX:
            raise PeerError(f"proposal: found over {PROPOSAL_BYTES_MAX} bytes, expected at most that", reason="limit")
        try:
            plain = json.loads(data)
            if not isinstance(plain, dict) or plain.get("type") != TYPE or plain.keys() != _KEYS:
                raise ValueError(f"expected an object of type {TYPE}")
            roles = dict(plain["roles"])
            if len(roles) > TASKS_MAX:
                raise ValueError(f"{len(roles)} roles")
            found = cls(
                _metadata(plain["root"], Root),
                _metadata(plain["targets"], Targets),
                {str(task): _metadata(role, Targets) for task, role in roles.items()},
                None if plain["before"] is None else _metadata(plain["before"], Root),
            )
            site_of(found.root.signed)
            beacon_of(found.root.signed)
            check_shape(found.root.signed, found.targets.signed)
            for task in roles:
                found._delegated(task)
            if not found.fingerprint:  # also finds what has no form that can be signed
                raise ValueError("nothing to sign")
        except (
            RepositoryError,
            VedetteError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as fault:
            raise PeerError(f"proposal: found a file that is none ({type(fault).__name__}: {fault})") from fault
        return found

    def write(self, path: Path) -> None:
        """Put it into a file, readable by everybody: nothing in it is secret.

        Raises:
            ConfigError: the folder is not writable.
            TransientError: the disk is full.
        """
        plain = {
            "type": TYPE,
            "before": None if self.before is None else self.before.to_dict(),
            "root": self.root.to_dict(),
            "targets": self.targets.to_dict(),
            "roles": {task: role.to_dict() for task, role in self.roles.items()},
        }
        write_durable(path, json.dumps(plain, indent=1, sort_keys=True).encode() + b"\n", 0o644)

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of what is to be signed: what holders compare, over another way than the file came."""
        digest = hashlib.sha256()
        documents: list[Metadata[Any]] = [self.root, self.targets, *(self.roles[task] for task in sorted(self.roles))]
        for document in documents:
            data = document.signed_bytes
            digest.update(len(data).to_bytes(8, "big") + data)
        return digest.hexdigest()

    def sign(self, signer: CryptoSigner) -> tuple[str, ...]:
        """Sign whatever this key may sign; returns what that is.

        Raises:
            RefusedError: nothing.
        """
        keyid = signer.public_key.keyid
        mine: dict[str, Metadata[Any]] = {
            what: document for what, document, role in self._entitled() if keyid in role.keyids
        }
        if not mine:
            raise RefusedError(
                f"key {keyid[:16]}…: found no file in this proposal that it may sign, expected a key of root, targets "
                "or validator",
                rule="key",
            )
        documents = {id(document): document for document in mine.values()}
        for document in documents.values():
            document.sign(signer, append=True)
        return tuple(mine)

    def merge(self, other: Proposal) -> None:
        """Take the signatures of another copy of the same proposal.

        Raises:
            RefusedError: it is another proposal.
        """
        if other.fingerprint != self.fingerprint:
            raise RefusedError(
                f"proposal: found fingerprint {other.fingerprint[:16]}…, expected {self.fingerprint[:16]}… of the "
                "first: they are not copies of one proposal",
                rule="proposal",
            )
        pairs: list[tuple[Metadata[Any], Metadata[Any]]] = [(self.root, other.root), (self.targets, other.targets)]
        pairs += [(role, other.roles[task]) for task, role in self.roles.items()]
        for mine, theirs in pairs:
            mine.signatures.update({k: s for k, s in theirs.signatures.items() if k not in mine.signatures})

    def signings(self) -> list[Signing]:
        """How far each file is signed; only signatures that hold count."""
        found = []
        for what, document, role in self._entitled():
            signed = [k for k in role.keyids if self._holds(document, what, k)]
            missing = tuple(k for k in role.keyids if k not in signed)
            found.append(Signing(what, tuple(signed), missing, role.threshold))
        return found

    def signed(self) -> SignedDraft:
        """The files as bytes.

        Raises:
            RefusedError: one is larger than devices accept.
        """
        roles = {task: checked_size(role, task) for task, role in self.roles.items()}
        return SignedDraft(checked_size(self.root, "root"), checked_size(self.targets, "targets"), roles)

    def _entitled(self) -> Iterator[tuple[str, Metadata[Any], Role]]:
        """What is signed, and by whose keys."""
        yield "root", self.root, self.root.signed.roles["root"]
        if self.before is not None:
            yield "root (keys of today)", self.root, self.before.signed.roles["root"]
        yield "targets", self.targets, self.root.signed.roles["targets"]
        for task in sorted(self.roles):
            yield task, self.roles[task], self._delegated(task)

    def _delegated(self, task: str) -> Role:
        return self.targets.signed.get_delegated_role(task)

    def _holds(self, document: Metadata[Any], what: str, keyid: str) -> bool:
        signature = document.signatures.get(keyid)
        keys = self.root.signed.keys
        if what == "root (keys of today)" and self.before is not None:
            keys = self.before.signed.keys
        elif what in self.roles:
            assert self.targets.signed.delegations is not None
            keys = self.targets.signed.delegations.keys
        if signature is None or keyid not in keys:
            return False
        try:
            keys[keyid].verify_signature(signature, document.signed_bytes)
        except Exception:  # securesystemslib's own two kinds; whatever the fault, it does not count
            return False
        return True


def propose_first(directory: Path, site: str, tasks: Sequence[str], offline: OfflineKeys, now: float) -> Proposal:
    """Make a repository's folders, online keys and beacon, and the proposal that turns it into one.

    Raises:
        ConfigError: the directory is taken, or a name, number or key is not usable.
        TransientError: the disk is full.
    """
    check_empty(directory)
    files = prepare_directory(directory)
    with files.locked():
        return Proposal.of(first_draft(files, site, tasks, offline, now), None)


def propose_next(
    directory: Path, offline: OfflineKeys, now: float, rotate: Sequence[str] = (), beacon_epochs: int | None = None
) -> Proposal:
    """The proposal that renews a repository: fresh dates, these offline keys, other online secrets if asked.

    Raises:
        ConfigError: the repository is damaged, or a number or name is not usable.
        TransientError: the disk is full.
    """
    files = RepositoryFiles(directory)
    with files.locked():
        before = files.load()
        proposal = Proposal.of(
            next_draft(files, before, offline, now, rotate, beacon_epochs=beacon_epochs),
            files.read(f"{before.root.version}.root.json"),
        )
        for task, role in proposal.roles.items():
            files.add_signatures(role, proposal._delegated(task))
        return proposal


def publish(directory: Path, proposal: Proposal, now: float) -> None:
    """Make a signed proposal the repository's state; devices follow.

    Raises:
        RefusedError: too few signatures by the keys of today or the new ones, or a proposal of another state.
        ConfigError: the repository is damaged, or its online keys are missing.
        TransientError: the disk is full; may be repeated.
    """
    missing = [s for s in proposal.signings() if not s.done and s.what not in proposal.roles]
    if missing:
        raise RefusedError(
            "root ceremony: found "
            + ", ".join(f"{len(s.signed)} of {s.threshold} signatures of {s.what}" for s in missing)
            + ", expected all of them; `vedette trust root show` says whose are missing",
            rule="signature",
        )
    files = RepositoryFiles(directory)
    with files.locked():
        if any(name.endswith(".root.json") for name in files.names()) and "timestamp.json" in files.names():
            write_next(files, files.load(verify=False), proposal.signed(), now)
        else:
            write_first(files, proposal.signed(), now)


def _metadata(plain: Any, kind: type[Root] | type[Targets]) -> Metadata[Any]:
    found: Metadata[Any] = Metadata.from_dict(plain)
    if not isinstance(found.signed, kind):
        raise ValueError(f"found metadata of type {found.signed.type}")
    return found
