"""Whether a round has what it waits for: enough check-ins to form groups, enough uploads to close them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from vedette_aggregator.round_book import RoundBook
from vedette_aggregator.round_settings import RoundSettings
from vedette_aggregator.schedule import collect_deadline
from vedette_core.secagg.parameters import votes_needed
from vedette_schemas.round import Plan

COLLECT_SHARE_MIN: Final = 0.1
"""An adapted deadline waits at least this part of the operator's: one fast round must not lock slow devices out."""


class Readiness:
    """Looks at one task's book.

    Args:
        book: what is there.
        settings: what is wanted.

    Attributes:
        quarantined: devices that a person keeps out until further notice.
    """

    def __init__(self, book: RoundBook, settings: RoundSettings) -> None:
        self._book, self._settings = book, settings
        self.quarantined: Collection[str] = frozenset()
        self._waits_from: float | None = None

    def begin(self, now: float) -> None:
        """Check-ins are waited for from now on."""
        self._waits_from = now

    def gives_up(self, plan: Plan, now: float) -> bool:
        """Whether check-ins that a budget may hold back were waited for long enough.

        A period is counted in rounds: a round that waited for ever would keep the budget used up for ever.
        """
        if self._waits_from is None or self._waits_from > now:  # after a restart, or the clock went back
            self._waits_from = now
        patience_s = max(self._settings.interval_s, self._settings.checkin_s)
        return plan.privacy.participations_max > 0 and now - self._waits_from >= patience_s

    def candidates(self) -> list[str]:
        """Devices that wait, without those that this round or a person excludes."""
        excluded = {*self.quarantined, *self._book.record.excluded}
        return [device for device in self._book.waiting if device not in excluded]

    def possible(self, plan: Plan) -> bool:
        """Whether enough devices are known at all, without those that are to blame in this epoch."""
        known = {d for d, record in self._book.devices.items() if record.checkin.role == "contribute"}
        left = known.difference(self._book.record.excluded)
        return not self._book.record.excluded or len(left) >= max(plan.groups.quorum, plan.groups.survivors_min)

    def enough(self, plan: Plan) -> bool:
        """Whether forming groups has a point: devices, and helpers where helpers open the sums."""
        groups = plan.groups
        if len(self.candidates()) < max(groups.quorum, groups.survivors_min):
            return False
        if groups.committee != "helpers":
            return True
        return len(self._book.helpers) >= votes_needed(groups, groups.committee_size)

    def wait_max_s(self, now: float) -> float:
        """Longest that the next opening can be away: what the schedule says now."""
        begun = self._book.record.round > 0
        return self._settings.schedule.next_open(now, now) - now if begun else self._settings.interval_s

    def collect_s(self) -> float:
        """How long uploads are waited for: what lately was enough, if the operator wants it."""
        most, k = self._settings.collect_s, self._settings.deadline_mads
        times = self._book.record.upload_times
        return collect_deadline(times, k, COLLECT_SHARE_MIN * most, most) if k else most

    def collected(self, plan: Plan) -> bool:
        """Whether nothing more is waited for: every upload is there, or as many as were wanted."""
        uploads = len(self._book.contributions)
        if uploads == sum(len(roster.members) for roster in self._book.rosters):
            return True
        wanted = self._settings.uploads_wanted
        open_all = len(self._book.surviving(plan.groups.survivors_min)) == len(self._book.rosters)
        return 0 < wanted <= uploads and open_all
