"""What a swarm's lines say, put together: who was in which roster, who vanished, whose uploads left."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Place = tuple[int, int]
"""(round, attempt)."""


@dataclass(slots=True)
class Diary:
    """What light nodes saw and did.

    Attributes:
        joined: by place and group, the devices that believe their roster.
        uploaded: by place, whose update was written down and sent.
        vanished: by place, who left without a word.
        survivors: by place and group, the survivor set that members were asked about.
        versions: newest release that each device has.
        lists: number of the newest revocation list that each device took over the broker.
        returns: how often a device came back.
        attested: devices that were given an attestation result.
    """

    joined: dict[Place, dict[int, set[str]]] = field(default_factory=dict)
    uploaded: dict[Place, set[str]] = field(default_factory=dict)
    vanished: dict[Place, set[str]] = field(default_factory=dict)
    survivors: dict[Place, dict[int, tuple[str, ...]]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    lists: dict[str, int] = field(default_factory=dict)
    returns: int = 0
    attested: set[str] = field(default_factory=set)

    def take(self, line: str) -> None:
        """Take one line of `vedette.demo.swarm`."""
        entry: dict[str, Any] = json.loads(line)
        device = str(entry["device"])
        match entry["what"]:
            case "joined":
                self.joined.setdefault(_place(entry), {}).setdefault(int(entry["gid"]), set()).add(device)
            case "uploaded":
                self.uploaded.setdefault(_place(entry), set()).add(device)
            case "vanished":
                self.vanished.setdefault(_place(entry), set()).add(device)
            case "close":
                self.survivors.setdefault(_place(entry), {})[int(entry["gid"])] = tuple(entry["survivors"])
            case "release":
                self.versions[device] = max(int(entry["version"]), self.versions.get(device, 0))
            case "attested":
                self.attested.add(device)
            case "revocations":
                self.lists[device] = int(entry["number"])
            case "back":
                self.returns += 1

    def rostered(self, place: Place) -> set[str]:
        """Everybody in a roster of an attempt."""
        return {device for group in self.joined.get(place, {}).values() for device in group}

    def last_round_of(self, device: str) -> int:
        """The last round in whose rosters a device was; 0 if it was in none."""
        return max((place[0] for place in self.joined if device in self.rostered(place)), default=0)

    def secrets_opened(self, place: Place) -> tuple[int, int]:
        """What opening the groups of an attempt took, if all that were asked about were opened.

        Returns:
            Own masks of survivors, and masks that survivors share with members who dropped out: the protocol opens
            these two and no third kind (`docs/protocol.md` §5).
        """
        own = pairs = 0
        for gid, survivors in self.survivors.get(place, {}).items():
            members = self.joined.get(place, {}).get(gid, set())
            own += len(survivors)
            pairs += len(survivors) * len(members - set(survivors))
        return own, pairs


class DiaryReader:
    """Reads a swarm's output as it grows.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.diary = Diary()
        self._path, self._offset, self._rest = path, 0, b""

    def read(self) -> Diary:
        """Take what was added since the last time."""
        if not self._path.exists():
            return self.diary
        with self._path.open("rb") as file:
            file.seek(self._offset)
            added = file.read()
        self._offset += len(added)
        *lines, self._rest = (self._rest + added).split(b"\n")
        for line in lines:
            self.diary.take(line.decode())
        return self.diary


def _place(entry: dict[str, Any]) -> Place:
    return int(entry["round"]), int(entry["attempt"])
