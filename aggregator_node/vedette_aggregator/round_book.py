"""What a task's rounds keep, in memory and on disk alike, and the writes that keep it so.

Writing the round's own record (`RoundBook.commit`) is what commits a transition. What a transition needs is written
before it, what it makes superfluous is erased after it; `RoundBook.load` repairs whatever a crash left in between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

from vedette_aggregator.aggregation import Contribution, GlobalModel
from vedette_aggregator.round_state import (
    DeviceRecord,
    RoundKeys,
    RoundRecord,
    RoundState,
    below,
    model_from_bytes,
    model_to_bytes,
)
from vedette_core.machine import Effect, Persist
from vedette_schemas import codec
from vedette_schemas.envelope import Envelope
from vedette_schemas.errors import ConfigError
from vedette_schemas.round import CheckIn, Roster, Upload


class RoundBook:
    """The records of one task.

    Args:
        task: the task.
        model: what the first round starts from.

    Attributes:
        record: the round.
        model: what the next round starts from.
        devices: a record a device that ever checked in.
        contributions: accepted uploads of the current attempt, by device.
        rosters: the groups of the current attempt, by gid.
    """

    def __init__(self, task: str, model: GlobalModel) -> None:
        self._keys = RoundKeys(task)
        self._model_stored = False
        self.model = model
        self.record = RoundRecord(
            RoundState.INTERVAL, model.round, 0, 0.0, model.plan, model.version, model.sha256, model.version
        )
        self.devices: dict[str, DeviceRecord] = {}
        self.contributions: dict[str, Contribution] = {}
        self.rosters: tuple[Roster, ...] = ()

    @property
    def waiting(self) -> list[str]:
        """Devices whose newest check-in has been in no roster yet."""
        return [device for device, record in self.devices.items() if not record.used]

    @property
    def surviving(self) -> list[Roster]:
        """The groups that are in the candidate."""
        contributors = set(self.record.contributors)
        return [r for r in self.rosters if any(m.device in contributors for m in r.members)]

    def roster_of(self, device: str) -> Roster | None:
        """The current group that a device is a member of."""
        return next((r for r in self.rosters if any(m.device == device for m in r.members)), None)

    def load(self, persisted: Mapping[str, bytes]) -> list[Effect]:
        """Take over what was persisted; return the writes that finish what a crash interrupted.

        Raises:
            ConfigError: the store holds something else than these records.
        """
        keys, out = self._keys, list[Effect]()
        self.devices = {
            device: DeviceRecord.from_bytes(data, keys.device(device))
            for device, data in below(persisted, keys.devices).items()
        }
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
        collecting = self.record.state in (RoundState.COLLECT, RoundState.RELEASING)
        current = (self.record.round, self.record.attempt)
        for device, sealed in below(persisted, keys.uploads).items():
            upload = codec.unpack(Upload, codec.unpack(Envelope, sealed).body)
            if collecting and (upload.round, upload.attempt) == current:
                self.contributions[device] = Contribution(upload, hashlib.sha256(sealed).digest())
            else:
                out.append(Persist(keys.upload(device), None))
        return out

    def commit(self, record: RoundRecord, out: list[Effect]) -> None:
        """Write the round's record: from here on the transition has happened."""
        self.record = record
        out.append(Persist(self._keys.state, record.to_bytes()))

    def add_checkin(self, body: CheckIn, out: list[Effect]) -> None:
        """Keep a device's newest check-in."""
        known = self.devices.get(body.device)
        self._put_device(DeviceRecord(body, accepted=known.accepted if known else (0, 0)), out)

    def add_upload(self, body: Upload, sealed: bytes, out: list[Effect]) -> None:
        """Keep an accepted upload, as it came."""
        self.contributions[body.device] = Contribution(body, hashlib.sha256(sealed).digest())
        out.append(Persist(self._keys.upload(body.device), sealed))

    def mark_used(self, out: list[Effect]) -> None:
        """No key that is in a roster is rostered again."""
        for roster in self.rosters:
            for member in roster.members:
                record = self.devices[member.device]
                if record.checkin.epk == member.epk and not record.used:
                    self._put_device(replace(record, used=True), out)

    def settle(self, out: list[Effect]) -> list[Effect]:
        """The attempt is over: remember who was accepted; return what erases the uploads, for behind the commit."""
        gone: list[Effect] = []
        place = (self.record.round, self.record.attempt)
        for device in sorted(self.contributions):
            self._put_device(replace(self.devices[device], accepted=place), out)
            gone.append(Persist(self._keys.upload(device), None))
        self.contributions = {}
        return gone

    def store_model(self, out: list[Effect]) -> None:
        """Write the model down, if it is not yet."""
        if not self._model_stored:
            out.append(Persist(self._keys.model(self.model.version), model_to_bytes(self.model)))
            self._model_stored = True

    def take_model(self, model: GlobalModel, out: list[Effect]) -> list[Effect]:
        """Write the next rounds' model down; return what erases the old one, for behind the commit."""
        before, self.model, self._model_stored = self.model.version, model, False
        self.store_model(out)
        self.record = replace(self.record, base_version=model.version)
        return [] if before == model.version else [Persist(self._keys.model(before), None)]

    def _put_device(self, record: DeviceRecord, out: list[Effect]) -> None:
        self.devices[record.checkin.device] = record
        out.append(Persist(self._keys.device(record.checkin.device), record.to_bytes()))
