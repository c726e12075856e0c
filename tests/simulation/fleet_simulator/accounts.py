"""What the releases cost: an account of our own, from what left, which the ledger and the devices may not undercut."""

from __future__ import annotations

from collections import Counter, defaultdict

from vedette_aggregator.aggregation import Candidate
from vedette_core.privacy.events import FoldedHistory, PrivacyEvent
from vedette_device.participant_state import ParticipantRecord
from vedette_schemas.round import Plan

from .disk import Disk
from .problem import TASK
from .violation import ViolationError

Place = tuple[int, int]
_EVENTS = f"privacy/{TASK}/event/"
_HISTORY = f"privacy/{TASK}/history"
_STATE = f"participant/{TASK}/state"


class Accounts:
    """Counts the candidates that left, and the uploads that devices gave."""

    def __init__(self) -> None:
        self._left: dict[Place, Candidate] = {}
        self._given: dict[str, set[Place]] = defaultdict(set)

    def candidate(self, made: Candidate, plan: Plan, disk: Disk) -> None:
        """A candidate leaves: what it costs must be on the aggregator's disk already, and within every budget."""
        place = (made.round, made.attempt)
        self._left[place] = made
        events = [PrivacyEvent.from_bytes(data, key) for key, data in disk.below(_EVENTS).items()]
        covering = [e for e in events if e.key == place and set(made.contributors) <= set(e.devices)]
        if not any(e.noise_multiplier <= plan.privacy.noise_multiplier for e in covering):
            raise ViolationError(f"round {place[0]}.{place[1]}: a candidate left that is not in the ledger")
        history = FoldedHistory(TASK)
        if stored := disk.data.get(_HISTORY):
            history = FoldedHistory.from_bytes(stored, _HISTORY)
        self._check_ledger(events, history)
        self._check_budget(plan, made.round)

    def _check_ledger(self, events: list[PrivacyEvent], history: FoldedHistory) -> None:
        """Of every device the ledger counts as many releases as left with an update of it, or more."""
        left = Counter(device for made in self._left.values() for device in made.contributors)
        for device, count in left.items():
            folded = history.devices.get(device)
            counted = (folded.releases if folded else 0) + sum(
                device in event.devices for event in events if event.round > history.through
            )
            if counted < count:
                raise ViolationError(f"{device}: is in {count} releases that left, and {counted} in the ledger")

    def _check_budget(self, plan: Plan, number: int) -> None:
        allowed, length = plan.privacy.participations_max, plan.privacy.period_rounds
        if not allowed:
            return
        period = (number - 1) // length
        now = Counter(d for m in self._left.values() if (m.round - 1) // length == period for d in m.contributors)
        over = {device: count for device, count in now.items() if count > allowed}
        if over:
            raise ViolationError(f"released of one period: {over}, expected {allowed} a device at most")

    def upload(self, device: str, place: Place, plan: Plan, disk: Disk) -> None:
        """A device gives an upload: it must have counted it already, and not give too many."""
        length = plan.privacy.period_rounds
        period = (place[0] - 1) // length
        if place in self._given[device]:
            return
        self._given[device].add(place)
        given = [number for number, _ in self._given[device] if (number - 1) // length == period]
        own = _spent(disk.data[_STATE], plan, place[0])
        if own < len(given):
            raise ViolationError(f"{device}: gave {len(given)} updates in period {period}, and counts {own}")
        allowed = plan.privacy.participations_max
        if 0 < allowed < len(given):
            raise ViolationError(f"{device}: gave {len(given)} updates in period {period}, expected {allowed} at most")

    @staticmethod
    def spent_up(number: int, plan: Plan, disk: Disk) -> bool:
        """Whether a device has nothing left to give in the period of a round."""
        allowed, state = plan.privacy.participations_max, disk.data.get(_STATE)
        if not allowed or state is None:
            return False
        return _spent(state, plan, number) >= allowed


def _spent(state: bytes, plan: Plan, number: int) -> int:
    """What a device's own record says that it gave in the period of a round."""
    return ParticipantRecord.from_bytes(state, _STATE).count(plan, number)
