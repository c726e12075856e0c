"""What a task's rounds keep, in memory and on disk alike, and the writes that keep it so.

Writing the round's own record (`RoundBook.commit`) is what commits a transition. What a transition needs is written
before it, what it makes superfluous is erased after it; `RoundBook.load` repairs whatever a crash left in between.

Of an accepted upload its vector goes into its group's sum at once and is kept on disk only, so that memory grows with
groups and not with devices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from vedette_aggregator.aggregation import Candidate, GlobalModel, OpenedGroup
from vedette_aggregator.round_state import (
    DeviceRecord,
    RoundKeys,
    RoundRecord,
    RoundState,
    below,
    candidate_from_bytes,
    candidate_to_bytes,
    model_from_bytes,
    model_to_bytes,
)
from vedette_aggregator.selection import Applicant
from vedette_core.learning.round_vector import layout_of, ring_of
from vedette_core.learning.update_vector import add_vector, vector_from_bytes, zero_vector
from vedette_core.machine import Effect, Persist
from vedette_core.secagg.aggregator import UploadEvidence
from vedette_schemas import codec
from vedette_schemas.envelope import Envelope
from vedette_schemas.errors import ConfigError
from vedette_schemas.round import CheckIn, Plan, Roster, Upload, read_plan

Ring = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True, slots=True)
class Contribution:
    """An accepted upload without its vector, and the sha256 of the sealed message that it came in."""

    gid: int
    evidence: UploadEvidence
    digest: bytes


class RoundBook:
    """The records of one task.

    Args:
        task: the task.
        model: what the first round starts from.

    Attributes:
        record: the round.
        model: what the next round starts from.
        devices: a record a device that ever checked in, helpers included.
        contributions: accepted uploads of the current attempt, by device.
        sums: sum of the accepted vectors of each group of the current attempt, masked as they are, by gid.
        rosters: the groups of the current attempt, by gid.
        candidate: what is being released.
    """

    def __init__(self, task: str, model: GlobalModel) -> None:
        self.keys = RoundKeys(task)
        self._model_stored = False
        self.model = model
        self.record = RoundRecord(
            RoundState.INTERVAL, model.round, 0, 0.0, model.plan, model.version, model.sha256, model.version
        )
        self.devices: dict[str, DeviceRecord] = {}
        self._key_owners: dict[bytes, str] = {}
        self.contributions: dict[str, Contribution] = {}
        self.sums: dict[int, Ring] = {}
        self.rosters: tuple[Roster, ...] = ()
        self.candidate: Candidate | None = None

    @property
    def offered(self) -> Candidate:
        """What is being released now."""
        assert self.candidate is not None, "there is one while it is being released"
        return self.candidate

    def key_owner(self, epk: bytes) -> str | None:
        """Whose newest check-in offers a key; None if nobody's does."""
        return self._key_owners.get(epk)

    @property
    def waiting(self) -> list[str]:
        """Devices whose newest check-in has been in no roster yet."""
        return [d for d, record in self.devices.items() if not record.used and record.checkin.role == "contribute"]

    @property
    def helpers(self) -> list[str]:
        """Helpers whose newest check-in has been in no roster yet."""
        return [d for d, record in self.devices.items() if not record.used and record.checkin.role == "unmask"]

    def expected(self, since: int) -> list[str]:
        """Devices that the next rounds can count on: they offer to take part, or did after a round."""
        return [
            device
            for device, record in self.devices.items()
            if record.checkin.role == "contribute" and (not record.used or record.last_round > since)
        ]

    def applicant(self, device: str) -> Applicant:
        """A waiting device as selection sees it."""
        record = self.devices[device]
        return Applicant(
            device,
            record.checkin.examples_bucket,
            record.checkin.cohort,
            record.checkin.sketch,
            record.selected,
            record.completed,
            record.last_round,
            record.joined_round,
        )

    def roster_of(self, device: str) -> Roster | None:
        """The current group that a device is a member of."""
        return next((r for r in self.rosters if r.member(device) is not None), None)

    def roster(self, gid: int) -> Roster | None:
        """A current group."""
        return next((r for r in self.rosters if r.gid == gid), None)

    def survivors_of(self, gid: int) -> tuple[str, ...]:
        """Members of a group whose upload was accepted, sorted."""
        return tuple(sorted(device for device, c in self.contributions.items() if c.gid == gid))

    def surviving(self, least: int) -> dict[int, tuple[str, ...]]:
        """Groups with so many accepted uploads or more, by gid, with whose they are."""
        found = {roster.gid: self.survivors_of(roster.gid) for roster in self.rosters}
        return {gid: devices for gid, devices in found.items() if len(devices) >= least}

    def opened(self, gid: int, total: Ring) -> OpenedGroup:
        """A group whose sum is open."""
        roster = self.roster(gid)
        assert roster is not None, "only current groups are opened"
        digests = {device: self.contributions[device].digest for device in self.survivors_of(gid)}
        return OpenedGroup(roster, digests, total)

    def load(self, persisted: Mapping[str, bytes]) -> list[Effect]:
        """Take over what was persisted; return the writes that finish what a crash interrupted.

        Raises:
            ConfigError: the store holds something else than these records.
        """
        keys, out = self.keys, list[Effect]()
        self.devices = {
            device: DeviceRecord.from_bytes(data, keys.device(device))
            for device, data in below(persisted, keys.devices).items()
        }
        self._key_owners = {record.checkin.epk: device for device, record in self.devices.items()}
        if keys.state not in persisted:
            return out
        self.record = RoundRecord.from_bytes(persisted[keys.state], keys.state)
        base = keys.model(self.record.base_version)
        if base not in persisted:
            raise ConfigError(f"stored {base}: found nothing; restore the state database from its backup")
        self.model, self._model_stored = model_from_bytes(persisted[base], base), True
        self.rosters = tuple(codec.unpack(Roster, data) for data in self.record.rosters)
        out += [Persist(key, None) for key in persisted if key.startswith(keys.models) and key != base]
        self.mark_used(out)
        self._load_uploads(persisted, out)
        if self.record.state is RoundState.RELEASING:
            if keys.candidate not in persisted:
                raise ConfigError(
                    f"stored {keys.candidate}: found nothing while a candidate is being released; "
                    "restore the state database from its backup"
                )
            self.candidate = candidate_from_bytes(persisted[keys.candidate], keys.candidate)
        elif keys.candidate in persisted:
            out.append(Persist(keys.candidate, None))
        return out

    def _load_uploads(self, persisted: Mapping[str, bytes], out: list[Effect]) -> None:
        keys = self.keys
        collecting = self.record.state in (RoundState.COLLECT, RoundState.UNMASK)
        current = (self.record.round, self.record.attempt)
        plan = read_plan(self.record.plan)
        for device, sealed in below(persisted, keys.uploads).items():
            upload = codec.unpack(Upload, codec.unpack(Envelope, sealed).body)
            if collecting and (upload.round, upload.attempt) == current:
                self._add(upload, hashlib.sha256(sealed).digest(), plan)
            else:
                out.append(Persist(keys.upload(device), None))
        if self.record.state is not RoundState.UNMASK:
            out += [Persist(key, None) for key in persisted if key.startswith((keys.votes, keys.shares))]

    # -- writes -------------------------------------------------------------------------------------------------------

    def commit(self, record: RoundRecord, out: list[Effect]) -> None:
        """Write the round's record: the transition has happened."""
        self.record = record
        out.append(Persist(self.keys.state, record.to_bytes()))

    def bring_forward(self, opening_s: float, out: list[Effect]) -> None:
        """Let the next round open at another time, if that is sooner."""
        if self.record.deadline is None or opening_s < self.record.deadline:
            self.commit(replace(self.record, deadline=opening_s, next_round_s=opening_s), out)

    def add_checkin(self, body: CheckIn, out: list[Effect]) -> None:
        """Keep a device's newest check-in."""
        known = self.devices.get(body.device)
        record = (
            replace(known, checkin=body, used=False) if known else DeviceRecord(body, joined_round=self.record.round)
        )
        self._put_device(record, out)

    def add_upload(self, body: Upload, sealed: bytes, plan: Plan, out: list[Effect]) -> None:
        """Keep an accepted upload, as it came, and add its vector to its group's sum."""
        self._add(body, hashlib.sha256(sealed).digest(), plan)
        out.append(Persist(self.keys.upload(body.device), sealed))

    def _add(self, body: Upload, digest: bytes, plan: Plan) -> None:
        layout, ring = layout_of(plan), ring_of(plan)
        total = self.sums.setdefault(body.gid, zero_vector(layout, ring))
        add_vector(total, vector_from_bytes(body.vector, layout, ring))
        self.contributions[body.device] = Contribution(body.gid, UploadEvidence.of(body), digest)

    def mark_used(self, out: list[Effect]) -> None:
        """No key that is in a roster is rostered again."""
        for roster in self.rosters:
            for member in (*roster.members, *roster.committee):
                record = self.devices[member.device]
                if record.checkin.epk == member.epk and not record.used:
                    used = replace(record, used=True, selected=record.selected + 1, last_round=roster.round)
                    self._put_device(used, out)

    def settle(self, out: list[Effect]) -> list[Effect]:
        """The attempt is over: remember who was accepted; return what erases the uploads, for behind the commit."""
        gone: list[Effect] = []
        place = (self.record.round, self.record.attempt)
        for device in sorted(self.contributions):
            record = self.devices[device]
            if record.accepted != place:
                self._put_device(replace(record, accepted=place, completed=record.completed + 1), out)
            gone.append(Persist(self.keys.upload(device), None))
        self.contributions, self.sums = {}, {}
        return gone

    def keep_candidate(self, candidate: Candidate, out: list[Effect]) -> None:
        """Write a candidate down: with noise in it, it is drawn once, and handed out again after a crash."""
        self.candidate = candidate
        out.append(Persist(self.keys.candidate, candidate_to_bytes(candidate)))

    def drop_candidate(self) -> list[Effect]:
        """Forget the candidate; returns what erases it, for behind the commit."""
        if self.candidate is None:
            return []
        self.candidate = None
        return [Persist(self.keys.candidate, None)]

    def store_model(self, out: list[Effect]) -> None:
        """Write the model down, if it is not yet."""
        if not self._model_stored:
            out.append(Persist(self.keys.model(self.model.version), model_to_bytes(self.model)))
            self._model_stored = True

    def take_model(self, model: GlobalModel, out: list[Effect]) -> list[Effect]:
        """Write the next rounds' model down; return what erases the old one, for behind the commit."""
        before, self.model, self._model_stored = self.model.version, model, False
        self.store_model(out)
        self.record = replace(self.record, base_version=model.version)
        return [] if before == model.version else [Persist(self.keys.model(before), None)]

    def _put_device(self, record: DeviceRecord, out: list[Effect]) -> None:
        device = record.checkin.device
        if (before := self.devices.get(device)) is not None:
            self._key_owners.pop(before.checkin.epk, None)
        self._key_owners[record.checkin.epk] = device
        self.devices[device] = record
        out.append(Persist(self.keys.device(record.checkin.device), record.to_bytes()))
