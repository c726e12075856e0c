"""What the round machine keeps on disk: one record for the round, one a device, one an upload, and the global model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Final

import msgpack
import numpy as np

from vedette_aggregator.aggregation import Candidate, GlobalModel
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
    UNMASK = "unmask"
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
    def votes(self) -> str:
        """Prefix of the committees' votes, by group and member."""
        return f"round/{self.task}/vote/"

    @property
    def shares(self) -> str:
        """Prefix of the committees' shares, by group and member."""
        return f"round/{self.task}/shares/"

    @property
    def candidate(self) -> str:
        """The candidate, while it is being released."""
        return f"round/{self.task}/candidate"

    @property
    def memory(self) -> str:
        """What the defence remembers."""
        return f"round/{self.task}/memory"

    @property
    def events(self) -> str:
        """Prefix of the privacy ledger's events, by round and attempt."""
        return f"privacy/{self.task}/event/"

    @property
    def history(self) -> str:
        """The privacy ledger's periods that are over."""
        return f"privacy/{self.task}/history"

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
        survivors: ids of the survivor set of every group that is being opened, by gid.
        excluded: devices that the rest of the epoch does without: they dealt wrong shares.
        collect_from_s: epoch seconds at which the groups were opened.
        upload_times: seconds that the last uploads took from then, for the next deadline.
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
    survivors: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    excluded: tuple[str, ...] = ()
    collect_from_s: float = 0.0
    upload_times: tuple[float, ...] = ()
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
            survivors={},
        )

    def collecting(
        self, now: float, until: float, beacon: bytes, groups: int, rosters: Sequence[Roster]
    ) -> RoundRecord:
        """Groups are formed."""
        return replace(
            self,
            state=RoundState.COLLECT,
            deadline=until,
            deadline_s=until,
            phase=Phase.COLLECT.value,
            collect_from_s=now,
            beacon=beacon,
            groups=groups,
            rosters=tuple(codec.pack(roster) for roster in rosters),
        )

    def unmasking(self, until: float, survivors: Mapping[int, tuple[str, ...]]) -> RoundRecord:
        """No upload is taken any more; the committees are asked to open these survivors' sums, and no others."""
        return replace(
            self, state=RoundState.UNMASK, deadline=until, phase=Phase.UNMASK.value, survivors=dict(survivors)
        )

    def releasing(self, plan: bytes) -> RoundRecord:
        """A candidate is handed over, with the plan to release with it."""
        return replace(self, state=RoundState.RELEASING, deadline=None, offered_plan=plan)

    def ended(self, phase: Phase, reason: str, next_s: float | None) -> RoundRecord:
        """The round is over; `next_s` is None if there is no other."""
        return replace(
            self,
            state=RoundState.FINISHED if next_s is None else RoundState.INTERVAL,
            deadline=next_s,
            next_round_s=next_s or 0.0,
            phase=phase.value,
            survivors={},
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
        plain = read_record(data, key)
        try:
            plain["state"] = RoundState(plain["state"])
            return cls(**plain)
        except (KeyError, TypeError, ValueError) as fault:
            raise unreadable(key, str(fault)) from fault


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """What is remembered of a device, for ever: a few hundred bytes.

    Attributes:
        checkin: its newest check-in.
        used: whether that check-in has been in a roster; its key is then never rostered again.
        accepted: (round, attempt) of its last accepted upload; (0, 0) before.
        selected: rosters that it has been in.
        completed: of those, how many had its upload accepted.
        last_round: round of its last roster; 0 before.
        joined_round: round at which it first checked in.
    """

    checkin: CheckIn
    used: bool = False
    accepted: tuple[int, int] = (0, 0)
    selected: int = 0
    completed: int = 0
    last_round: int = 0
    joined_round: int = 0

    def to_bytes(self) -> bytes:
        """msgpack."""
        counts = {name: getattr(self, name) for name in _COUNTS}
        plain = {"format": FORMAT, "checkin": codec.pack(self.checkin), "used": self.used, "accepted": self.accepted}
        return bytes(msgpack.packb(plain | counts))

    @classmethod
    def from_bytes(cls, data: bytes, key: str) -> DeviceRecord:
        """Read it back.

        Raises:
            ConfigError: the store holds something else.
        """
        plain = read_record(data, key)
        try:
            number, attempt = plain["accepted"]
            counts = {name: int(plain[name]) for name in _COUNTS}
            return cls(codec.unpack(CheckIn, plain["checkin"]), plain["used"], (number, attempt), **counts)
        except (KeyError, TypeError, ValueError, VedetteError) as fault:
            raise unreadable(key, str(fault)) from fault


_COUNTS: Final = ("selected", "completed", "last_round", "joined_round")


def candidate_to_bytes(candidate: Candidate) -> bytes:
    """A candidate as it is stored: msgpack, weights as little-endian float32."""
    plain = {f.name: getattr(candidate, f.name) for f in fields(candidate)} | {
        "format": FORMAT,
        "weights": candidate.weights.astype("<f4").tobytes(),
        "ranges": {name: list(edges) for name, edges in candidate.ranges.items()},
        "metrics": dict(candidate.metrics),
        "optimiser": candidate.optimiser.to_bytes(),
    }
    return bytes(msgpack.packb(plain))


def candidate_from_bytes(data: bytes, key: str) -> Candidate:
    """Read `candidate_to_bytes`'s form.

    Raises:
        ConfigError: the store holds something else.
    """
    plain = read_record(data, key)
    try:
        plain |= {
            "weights": np.frombuffer(plain["weights"], "<f4").astype(np.float32),
            "ranges": {name: (low, high) for name, (low, high) in plain["ranges"].items()},
            "optimiser": Moments.from_bytes(plain["optimiser"]),
        }
        return Candidate(**plain)
    except (KeyError, TypeError, ValueError, VedetteError) as fault:
        raise unreadable(key, str(fault)) from fault


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
    plain = read_record(data, key)
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
        raise unreadable(key, str(fault)) from fault


def below(persisted: Mapping[str, bytes], prefix: str) -> dict[str, bytes]:
    """The entries whose key starts with `prefix`, by the rest of the key, sorted."""
    return {key.removeprefix(prefix): persisted[key] for key in sorted(persisted) if key.startswith(prefix)}


def read_record(data: bytes, key: str) -> dict[str, Any]:
    """A stored map of this format.

    Raises:
        ConfigError: the store holds something else.
    """
    try:
        plain = msgpack.unpackb(data, use_list=False, strict_map_key=False)
    except (msgpack.UnpackException, ValueError, TypeError) as fault:
        raise unreadable(key, str(fault)) from fault
    if not isinstance(plain, dict) or plain.pop("format", None) != FORMAT:
        raise unreadable(key, "another format")
    return plain


def unreadable(key: str, found: str) -> ConfigError:
    """What is said of a record that cannot be read."""
    return ConfigError(
        f"stored {key}: found {found}, expected format {FORMAT}; restore the state database from its backup"
    )
