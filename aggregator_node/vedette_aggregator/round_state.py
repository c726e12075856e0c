"""What the round machine keeps on disk: one record for the round, one a device, one an upload, and the global model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any, Final

import msgpack
import numpy as np

from vedette_aggregator.aggregation import GlobalModel
from vedette_core.learning.optimiser import Moments
from vedette_schemas import codec
from vedette_schemas.errors import ConfigError, VedetteError
from vedette_schemas.round import CheckIn, Phase, Roster

FORMAT: Final = 1


class RoundState(StrEnum):
    """Where the machine is. What devices see of it is `vedette_schemas.round.Phase`."""

    INTERVAL = "interval"
    CHECKIN = "checkin"
    COLLECT = "collect"
    RELEASING = "releasing"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class RoundKeys:
    """Where a task's records are."""

    task: str

    @property
    def state(self) -> str:
        """The round's own record: writing it is what commits a transition."""
        return f"round/{self.task}/state"

    @property
    def uploads(self) -> str:
        """Prefix of the accepted uploads."""
        return f"round/{self.task}/upload/"

    @property
    def devices(self) -> str:
        """Prefix of the devices' records."""
        return f"round/{self.task}/device/"

    @property
    def models(self) -> str:
        """Prefix of the global models by release version; one, or two within a transition."""
        return f"round/{self.task}/model/"

    def upload(self, device: str) -> str:
        """The sealed upload of a device in the current attempt."""
        return self.uploads + device

    def device(self, device: str) -> str:
        """A device's record."""
        return self.devices + device

    def model(self, version: int) -> str:
        """A global model."""
        return f"{self.models}{version}"


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """The round, as it is written down.

    Attributes:
        state: where the machine is.
        round: current round, or the last one; 0 before the first.
        attempt: current attempt.
        deadline: epoch seconds at which the state ends by itself; None if it waits for something else.
        plan: the current round's plan, as its artifact.
        model_version: release version that the current round started from.
        model_sha256: its weights file.
        base_version: release version that the next round starts from.
        checkin_until_s: as published.
        deadline_s: as published.
        next_round_s: as published.
        phase: as published.
        beacon: 32 bytes once groups are formed, else empty.
        groups: number of groups, 0 before.
        rosters: the groups that were opened, packed, by gid.
        contributors: devices in the candidate, while it is being released.
        offered_plan: the plan that is being released with the candidate.
        transcript: of the last released round; 32 zero bytes before the first.
        reason: why the last round or attempt failed.
        rounds: rounds that have ended.
    """

    state: RoundState
    round: int
    attempt: int
    deadline: float | None
    plan: bytes
    model_version: int
    model_sha256: str
    base_version: int
    checkin_until_s: float = 0.0
    deadline_s: float = 0.0
    next_round_s: float = 0.0
    phase: str = ""
    beacon: bytes = b""
    groups: int = 0
    rosters: tuple[bytes, ...] = ()
    contributors: tuple[str, ...] = ()
    offered_plan: bytes = b""
    transcript: bytes = bytes(32)
    reason: str = ""
    rounds: int = 0

    def checking_in(self, attempt: int, until: float | None) -> RoundRecord:
        """An attempt begins; `until` is None as long as too few devices have checked in."""
        return replace(
            self,
            state=RoundState.CHECKIN,
            attempt=attempt,
            deadline=until,
            checkin_until_s=until or 0.0,
            deadline_s=0.0,
            next_round_s=0.0,
            phase=Phase.CHECKIN.value,
            beacon=b"",
            groups=0,
            rosters=(),
            contributors=(),
        )

    def collecting(self, until: float, beacon: bytes, groups: int, rosters: Sequence[Roster]) -> RoundRecord:
        """Groups are formed."""
        return replace(
            self,
            state=RoundState.COLLECT,
            deadline=until,
            deadline_s=until,
            phase=Phase.COLLECT.value,
            beacon=beacon,
            groups=groups,
            rosters=tuple(codec.pack(roster) for roster in rosters),
        )

    def releasing(self, contributors: tuple[str, ...], plan: bytes) -> RoundRecord:
        """A candidate is handed over, with the plan to release with it."""
        return replace(self, state=RoundState.RELEASING, deadline=None, contributors=contributors, offered_plan=plan)

    def ended(self, phase: Phase, reason: str, next_s: float | None) -> RoundRecord:
        """The round is over; `next_s` is None if there is no other."""
        return replace(
            self,
            state=RoundState.FINISHED if next_s is None else RoundState.INTERVAL,
            deadline=next_s,
            next_round_s=next_s or 0.0,
            phase=phase.value,
            contributors=(),
            offered_plan=b"",
            reason=reason,
            rounds=self.rounds + 1,
        )

    def to_bytes(self) -> bytes:
        """msgpack."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)} | {"state": self.state.value, "format": FORMAT}
        return bytes(msgpack.packb(plain))

    @classmethod
    def from_bytes(cls, data: bytes, key: str) -> RoundRecord:
        """Read it back.

        Raises:
            ConfigError: the store holds something else.
        """
        plain = _read(data, key)
        try:
            plain["state"] = RoundState(plain["state"])
            return cls(**plain)
        except (KeyError, TypeError, ValueError) as fault:
            raise _unreadable(key, str(fault)) from fault


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """What is remembered of a device, for ever: a few hundred bytes.

    Attributes:
        checkin: its newest check-in.
        used: whether that check-in has been in a roster; its key is then never rostered again.
        accepted: (round, attempt) of its last accepted upload; (0, 0) before.
    """

    checkin: CheckIn
    used: bool = False
    accepted: tuple[int, int] = (0, 0)

    def to_bytes(self) -> bytes:
        """msgpack."""
        plain = {"format": FORMAT, "checkin": codec.pack(self.checkin), "used": self.used, "accepted": self.accepted}
        return bytes(msgpack.packb(plain))

    @classmethod
    def from_bytes(cls, data: bytes, key: str) -> DeviceRecord:
        """Read it back.

        Raises:
            ConfigError: the store holds something else.
        """
        plain = _read(data, key)
        try:
            number, attempt = plain["accepted"]
            return cls(codec.unpack(CheckIn, plain["checkin"]), plain["used"], (number, attempt))
        except (KeyError, TypeError, ValueError, VedetteError) as fault:
            raise _unreadable(key, str(fault)) from fault


def model_to_bytes(model: GlobalModel) -> bytes:
    """A global model as it is stored: msgpack, weights as little-endian float32."""
    return bytes(
        msgpack.packb(
            {
                "format": FORMAT,
                "version": model.version,
                "sha256": model.sha256,
                "plan": model.plan,
                "round": model.round,
                "weights": model.weights.astype("<f4").tobytes(),
                "optimiser": model.optimiser.to_bytes(),
            }
        )
    )


def model_from_bytes(data: bytes, key: str) -> GlobalModel:
    """Read `model_to_bytes`'s form.

    Raises:
        ConfigError: the store holds something else.
    """
    plain = _read(data, key)
    try:
        return GlobalModel(
            plain["version"],
            plain["sha256"],
            plain["plan"],
            plain["round"],
            np.frombuffer(plain["weights"], "<f4").astype(np.float32),
            Moments.from_bytes(plain["optimiser"]),
        )
    except (KeyError, TypeError, ValueError, VedetteError) as fault:
        raise _unreadable(key, str(fault)) from fault


def below(persisted: Mapping[str, bytes], prefix: str) -> dict[str, bytes]:
    """The entries whose key starts with `prefix`, by the rest of the key, sorted."""
    return {key.removeprefix(prefix): persisted[key] for key in sorted(persisted) if key.startswith(prefix)}


def _read(data: bytes, key: str) -> dict[str, Any]:
    try:
        plain = msgpack.unpackb(data, use_list=False)
    except (msgpack.UnpackException, ValueError, TypeError) as fault:
        raise _unreadable(key, str(fault)) from fault
    if not isinstance(plain, dict) or plain.pop("format", None) != FORMAT:
        raise _unreadable(key, "another format")
    return plain


def _unreadable(key: str, found: str) -> ConfigError:
    return ConfigError(
        f"stored {key}: found {found}, expected format {FORMAT}; restore the state database from its backup"
    )
