"""What may be on a gateway's disk: private keys in their places and as long as they are needed, and an outbox that
holds what waits for its receipt."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from vedette_core.crypto.agreement import KeyPair
from vedette_core.secagg.seat import Seat
from vedette_device.participant_state import ParticipantRecord, StoredUpload

from .problem import TASK
from .violation import ViolationError

if TYPE_CHECKING:
    from .process import Process

RECORD: Final = f"participant/{TASK}/state"
UPLOAD: Final = f"participant/{TASK}/upload"
SEATS: Final = f"committee/{TASK}/seat/"
RANK_OVER: Final = 3
"""Of a round that is done or failed, in what a participant has seen."""
KEYS_KEPT: Final = 4
"""Newest keys of a node that are looked for: a machine does not remember older ones."""

Place = tuple[int, int]


class DiskWatch:
    """Looks at every disk that was written to."""

    def __init__(self) -> None:
        self._keys: dict[str, list[KeyPair]] = {}
        self._seen: dict[str, int] = {}
        self._released: dict[str, set[tuple[Place, int]]] = {}

    def key_made(self, node: str, pair: KeyPair) -> None:
        """A node made a key."""
        self._keys.setdefault(node, []).append(pair)
        del self._keys[node][:-KEYS_KEPT]

    def released(self, node: str, place: Place, gid: int) -> None:
        """A node released its shares of a group."""
        self._released.setdefault(node, set()).add((place, gid))

    def check(self, processes: Mapping[str, Process], corrupt: Collection[str]) -> None:
        """Look at what has changed.

        Raises:
            ViolationError: a key is where it may not be, or still is; or a message waits that nobody sends.
        """
        for node, pairs in self._keys.items():
            process = processes[node]
            if node in corrupt or process.disk.writes == self._seen.get(node):
                continue
            self._seen[node] = process.disk.writes
            self._check_places(node, pairs, process.disk.data)
            if process.up:
                self._check_lives(process)
                self._check_outbox(node, process.disk.data)

    def _check_places(self, node: str, pairs: list[KeyPair], disk: Mapping[str, bytes]) -> None:
        odd = [
            key
            for key, value in disk.items()
            if key != RECORD and not key.startswith(SEATS) and any(pair.private in value for pair in pairs)
        ]
        if odd:
            raise ViolationError(f"{node}: private keys at {odd}, expected them in its record and its seats only")

    def _check_lives(self, process: Process) -> None:
        """A key is in the record until the upload, in the seat until the shares are released, nowhere afterwards."""
        node, disk = process.name, process.disk.data
        record = _record(disk[RECORD]) if RECORD in disk else ParticipantRecord()
        seats = [_seat(value) for key, value in disk.items() if key.startswith(SEATS)]
        number, attempt, rank = record.seen
        first_open = (number, attempt + 1) if rank == RANK_OVER else (number, attempt)
        released = self._released.get(node, set())
        for seat in seats:
            if seat.private and (seat.place, seat.gid) in released:
                raise ViolationError(f"{node}: still has the key of {seat.place}, whose shares it has released")
            # What a crash left over in the middle of erasing goes with the machine's next word.
            if seat.private and seat.place < first_open and seat.gid in process.machine._committee.seats:
                raise ViolationError(f"{node}: still has the key of {seat.place}, which is over")
        key = record.key
        if key is None or not key.private:
            return
        if record.used >= key.earliest:
            raise ViolationError(f"{node}: still has the key of {key.earliest} after its upload of {record.used}")
        if any((seat.place, seat.gid) in released and key.public in seat.members for seat in seats):
            raise ViolationError(f"{node}: still has a key in its record whose shares it has released")

    def _check_outbox(self, node: str, disk: Mapping[str, bytes]) -> None:
        waiting = []
        if upload := disk.get(UPLOAD):
            waiting.append(StoredUpload.from_bytes(upload, UPLOAD).id)
        if state := disk.get(RECORD):
            key = _record(state).key
            waiting += [key.id] if key is not None and key.unacknowledged else []
        missing = [message_id for message_id in waiting if f"outbox/{message_id}" not in disk]
        if missing:
            raise ViolationError(f"{node}: {missing} wait for a receipt, but nobody sends them")


@dataclass(frozen=True)
class SeatOnDisk:
    """What is looked at of a seat.

    Attributes:
        place: (round, attempt).
        gid: its group.
        private: whether the private key is in it.
        members: public keys in the roster.
    """

    place: Place
    gid: int
    private: bool
    members: frozenset[bytes]


@lru_cache(maxsize=512)
def _seat(value: bytes) -> SeatOnDisk:
    seat = Seat.from_bytes(value, SEATS)
    listed = (*seat.roster.members, *seat.roster.committee)
    return SeatOnDisk(seat.place, seat.roster.gid, seat.key is not None, frozenset(m.epk for m in listed))


@lru_cache(maxsize=512)
def _record(value: bytes) -> ParticipantRecord:
    return ParticipantRecord.from_bytes(value, RECORD)
