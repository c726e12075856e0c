"""An independent validator: looks at each proposed release, and signs it if it is what it should be.

It runs as a process of its own, best on a machine of its own, over the repository's folder or a synchronised copy of
it. It believes nobody but the root that it was given: it follows newer roots by their signatures, checks that a
proposal changes what it may and nothing else, and runs the new release through `ReleaseGate`. Each verdict is written
down before it is given.

Where the task's role needs two signatures, a stolen release key alone makes no release; nor does the validator alone.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, TargetFile, Targets

from vedette_aggregator.countersigning import Countersigning, Verdict
from vedette_aggregator.listed_releases import ListedReleases
from vedette_aggregator.registry_files import RELEASE_LIFETIME, RepositoryFiles, RepositoryState
from vedette_aggregator.release_listing import Releases, active_version, releases_of, revoked_of
from vedette_aggregator.release_source import ReleaseSource
from vedette_aggregator.validation import GateVerdict
from vedette_aggregator.validator_gate import ReleaseGate, UnpreparedError
from vedette_aggregator.validator_record import Said, ValidatorRecord
from vedette_aggregator.validator_settings import ValidatorSettings
from vedette_core.runtime.durable import file_error, make_directory, write_durable
from vedette_schemas.errors import ConfigError, PeerError, RefusedError, TransientError, VedetteError
from vedette_schemas.model import Variant, parse_custom, target_path
from vedette_schemas.trust import (
    REVOKED_FIELD,
    REVOKED_MAX,
    ROOT_BYTES_MAX,
    ROOT_ROTATIONS_MAX,
    TARGETS_BYTES_MAX,
    RevokedRelease,
)

log = logging.getLogger("vedette.validator")

CLOCKS_S: Final = 24 * 3600.0
"""How far the aggregator's clock may be ahead: the date of expiry is its own."""
REASON_CHARACTERS_MAX: Final = 500


class Validate(Protocol):
    """Checks of a proposed release; `ReleaseGate` is the one that ships."""

    def __call__(self, source: ReleaseSource, task: str, version: int) -> Sequence[str]:
        """What is wrong with a release; empty if nothing is.

        Args:
            source: the proposed state: the new release, and the ones that stay (its parent among them).
            task: the task.
            version: the new release.
        """


@dataclass(frozen=True, slots=True)
class Looked:
    """What became of one proposal: its task and version of the role, and why it was refused, if it was."""

    task: str
    role_version: int
    refused: str


class Validator:
    """One validator.

    Args:
        directory: the repository, or a synchronised copy of it.
        root: the root file that it was given.
        state_dir: where it remembers the newest root that it has followed.
        signer: its key.
        settings: what a new release must hold.
        validate: other checks of a new release than those of `ReleaseGate`.

    Raises:
        ConfigError: a root that cannot be read, or a folder that cannot be used.
    """

    def __init__(
        self,
        directory: Path,
        root: Path,
        state_dir: Path,
        signer: CryptoSigner,
        settings: ValidatorSettings | None = None,
        validate: Validate | None = None,
    ) -> None:
        self._files, self._signer = RepositoryFiles(directory), signer
        self._validate = validate or ReleaseGate(settings or ValidatorSettings(), self._measured)
        self._countersigning = Countersigning(self._files)
        make_directory(state_dir)
        self.record: Final = ValidatorRecord(state_dir)
        self._figures: dict[str, list[dict[str, str]]] = {}
        self._known_path = state_dir / "root.json"
        self._known = self._first(root)

    def look(self, now: float) -> list[Looked]:
        """Look at every proposal that has no verdict yet, and give one.

        Raises:
            RefusedError: the repository shows roots that do not follow from the one that is known.
            ConfigError: the repository is damaged, or own windows cannot be used (`UnpreparedError`).
            TransientError: the disk is full.
        """
        waiting = self._countersigning.waiting()
        if not waiting:
            return []
        state = self._files.load()  # without the lock: of a repository that is being changed it is tried again
        self._follow(state)
        found = []
        for path, version, task in waiting:
            if task not in state.roles or version != state.roles[task].version + 1:
                continue
            try:
                with path.open("rb") as file:
                    data = file.read(TARGETS_BYTES_MAX + 1)
            except FileNotFoundError:
                continue  # it was taken back, or came into force, since it was listed
            digest = hashlib.sha256(data).hexdigest()
            verdicts = [self._countersigning.verdict(path, kind) for kind in ("signature", "refused")]
            if any(v is not None and v.sha256 == digest for v in verdicts):
                continue
            refused, self._figures = "", {}
            try:
                document = self._checked(state, task, version, data, now)
            except (TransientError, UnpreparedError):
                raise  # nothing that the proposal could help: it is looked at again
            except VedetteError as fault:
                refused = str(fault)[:REASON_CHARACTERS_MAX]
            # Written down first: a signature that this record does not know must not be anywhere.
            self.record.add(Said(now, task, version, digest, refused, dict(self._figures)))
            if refused:
                self._countersigning.answer(path, Verdict(sha256=digest, reason=refused))
                log.warning("%s, role %d: refused: %s", task, version, refused)
            else:
                signature = document.sign(self._signer, append=True)
                said = Verdict(sha256=digest, keyid=signature.keyid, signature=signature.signature)
                self._countersigning.answer(path, said)
                log.info("%s, role %d: signed", task, version)
            found.append(Looked(task, version, refused))
        return found

    def _measured(self, task: str, version: int, verdict: GateVerdict) -> None:
        self._figures[f"{task} {version}"] = verdict.to_plain()

    def _checked(self, state: RepositoryState, task: str, version: int, data: bytes, now: float) -> Metadata[Targets]:
        """A proposal that may be signed.

        Raises:
            RefusedError, PeerError, ConfigError: it may not.
        """
        role = state.targets.get_delegated_role(task)
        mine = self._signer.public_key.keyid
        if mine not in role.keyids:
            raise RefusedError(f"{task}: found no place for key {mine[:16]}… in its role, expected one", rule="key")
        try:
            document = Metadata[Targets].from_bytes(data)
            if not isinstance(document.signed, Targets):
                raise ValueError("no targets metadata")
            others = [k for k in role.keyids if k != mine and k in document.signatures]
            keys = state.delegations.keys
            for keyid in others:
                keys[keyid].verify_signature(document.signatures[keyid], document.signed_bytes)
        except Exception as fault:  # securesystemslib's own kinds among them; whatever it is, it is not signed
            raise PeerError(f"{task}: found a proposal that does not hold ({fault})", reason="signature") from fault
        if len(others) < role.threshold - 1:
            raise PeerError(f"{task}: found no signature of the release key, expected it", reason="signature")
        signed = document.signed
        latest = now + RELEASE_LIFETIME.total_seconds() + CLOCKS_S
        if signed.version != version or not now < signed.expires.timestamp() <= latest:
            raise RefusedError(
                f"{task}: found role {signed.version} until {signed.expires:%F}, expected {version} and at most "
                f"{RELEASE_LIFETIME.days} days",
                rule="version",
            )
        self._check_change(task, state.roles[task], signed)
        return document

    def _check_change(self, task: str, before: Targets, after: Targets) -> None:
        old, new = releases_of(before), releases_of(after)
        for version, release in new.items():
            for variant, target in release.items():
                said = parse_custom(target.custom)
                if target.path != target_path(task, version, variant) or said.task != task:
                    raise RefusedError(
                        f"{task}: found target {target.path[:120]!r}, expected its own path", rule="path"
                    )
                if set(target.hashes) != {"sha256"}:
                    raise RefusedError(
                        f"{task}: found digests {sorted(target.hashes)} of {target.path}, expected sha256",
                        rule="digest",
                    )
        changed = [v for v in old.keys() & new.keys() if _apart_from_active(old[v]) != _apart_from_active(new[v])]
        if changed:
            raise RefusedError(f"{task}: found other files in releases {changed}, expected none", rule="changed")
        _check_nothing_else(task, after)
        _check_revoked(task, revoked_of(before), revoked_of(after), new)
        if old and not new:
            raise RefusedError(f"{task}: found no release left, expected one to go to", rule="last-release")
        active = [v for v, r in new.items() if any(t.custom["active"] for t in r.values())]
        if len(active) != (1 if new else 0):
            raise RefusedError(f"{task}: found active releases {active}, expected one", rule="active")
        added = sorted(new.keys() - old.keys())
        known = [*old, *(each.version for each in revoked_of(before))]
        if len(added) > 1 or (added and added[0] != max(known, default=-1) + 1):
            raise RefusedError(f"{task}: found new releases {added}, expected the next one only", rule="version")
        before_it = active_version(old)
        if added and active_version(new) not in (added[0], before_it):
            raise RefusedError(
                f"{task}: found a new release and {active_version(new)} active, expected the new one, or as before "
                f"{before_it} where it is a rollout's candidate",
                rule="active",
            )
        proposed = ListedReleases(self._files, {task: after})
        for version in added:
            if not {Variant.WEIGHTS, Variant.PLAN} <= set(new[version]):
                raise RefusedError(
                    f"release {task} {version}: found no weights or no plan, expected both", rule="variants"
                )
            faults = self._validate(proposed, task, version)
            if faults:
                raise RefusedError(f"release {task} {version}: {'; '.join(faults)}", rule="validation")

    def _first(self, root: Path) -> Metadata[Root]:
        path = self._known_path if self._known_path.exists() else root
        try:
            with path.open("rb") as file:
                data = file.read(ROOT_BYTES_MAX + 1)
        except OSError as fault:
            raise file_error(fault, f"read {path}") from fault
        try:
            found = Metadata[Root].from_bytes(data)
            found.signed.verify_delegate("root", found.signed_bytes, found.signatures)
        except (RepositoryError, ValueError, KeyError, AttributeError) as fault:
            raise ConfigError(f"{path}: found no root metadata ({fault}), expected the site's root.json") from fault
        return found

    def _follow(self, state: RepositoryState) -> None:
        """Walk from the root that is known to the repository's newest, by signatures."""
        for _ in range(ROOT_ROTATIONS_MAX):
            if self._known.signed.version >= state.root.version:
                break
            data = self._files.read(f"{self._known.signed.version + 1}.root.json")
            try:
                found = Metadata[Root].from_bytes(data)
                self._known.signed.verify_delegate("root", found.signed_bytes, found.signatures)
                found.signed.verify_delegate("root", found.signed_bytes, found.signatures)
                if found.signed.version != self._known.signed.version + 1:
                    raise ValueError(f"found version {found.signed.version}")
            except (RepositoryError, ValueError, KeyError) as fault:
                raise RefusedError(f"root: found one that does not follow ({fault})", rule="root") from fault
            write_durable(self._known_path, data)
            self._known = found
        if self._known.signed != state.root:
            raise RefusedError(
                f"root: found version {state.root.version} in the repository, expected {self._known.signed.version} as "
                "this validator knows it",
                rule="root",
            )


def _check_nothing_else(task: str, after: Targets) -> None:
    """A task's role delegates to nobody, and says nothing that was not looked at."""
    unknown = sorted(set(after.unrecognized_fields) - {REVOKED_FIELD})
    if after.delegations is not None:
        unknown = ["delegations", *unknown]
    if unknown:
        found = ", ".join(unknown)[:120]
        raise RefusedError(
            f"{task}: found {found} in its role, expected releases and revocations only", rule="contents"
        )


def _check_revoked(
    task: str, before: Sequence[RevokedRelease], after: Sequence[RevokedRelease], listed: Releases
) -> None:
    """One revocation more at a time, the oldest forgotten only for room, and nothing listed that is revoked.

    A list that is new from end to end would let every release come back that ever was revoked.
    """
    added = [each for each in after if each not in before]
    if len(added) > 1 or list(after) != [*before, *added][-REVOKED_MAX:]:
        gone = sum(each not in after for each in before)
        raise RefusedError(
            f"{task}: found {gone} revocations taken back and {len(added)} new ones, expected the same and one more at "
            "most",
            rule="revoked",
        )
    known = {digest for each in after for digest in each.sha256}
    back = sorted(v for v, release in listed.items() if known & {t.hashes["sha256"] for t in release.values()})
    if back:
        raise RefusedError(
            f"{task}: found files of releases {back} listed and revoked, expected one of it", rule="revoked"
        )


def _apart_from_active(release: Mapping[Variant, TargetFile]) -> dict[Variant, object]:
    return {v: (t.length, t.hashes, {k: x for k, x in t.custom.items() if k != "active"}) for v, t in release.items()}
