"""How the groups of an epoch agreed with its rounds, gathered for the suspicion of their members.

Groups stay through an epoch, so that its rounds are one observation of each group, and not many of each device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vedette_aggregator.aggregation import Judged
from vedette_core.learning.layout import Float32
from vedette_core.learning.robust.rule import cosines_to
from vedette_core.learning.suspicion import Suspicions

UNREADABLE: float = -1.0
"""Cosine of a group whose sum no honest members can have: as bad as the opposite direction."""


@dataclass
class Company:
    """The groups of one epoch.

    Attributes:
        epoch: its number; 0 before the first.
        cosines: sum of a group's cosines, and over how many rounds, by gid.
        members: everybody who was in a group's sum, by gid.
    """

    epoch: int
    cosines: dict[int, tuple[float, int]] = field(default_factory=dict)
    members: dict[int, set[str]] = field(default_factory=dict)

    def add(self, groups: Mapping[int, Judged], reference: Float32) -> None:
        """Add what a round says: each group's mean against the root update, or against the round's result."""
        for gid, judged in groups.items():
            if judged.mean is not None:
                cosine = float(cosines_to(judged.mean[None].astype(np.float64), reference.astype(np.float64))[0])
            elif judged.dropped:
                cosine = UNREADABLE
            else:
                continue  # noised as a whole: nobody looked at its mean
            total, rounds = self.cosines.get(gid, (0.0, 0))
            self.cosines[gid] = (total + cosine, rounds + 1)
            self.members.setdefault(gid, set()).update(judged.members)

    def folded(self, suspicions: Suspicions) -> Suspicions:
        """The suspicions with this epoch."""
        if not self.cosines:
            return suspicions
        gids = sorted(self.cosines)
        means = np.array([self.cosines[gid][0] / self.cosines[gid][1] for gid in gids])
        seen = set[str]()
        groups = []
        for gid in gids:
            groups.append(sorted(self.members[gid] - seen))  # after the fleet grew somebody may have been in two
            seen |= self.members[gid]
        return suspicions.after(groups, means)

    def to_plain(self) -> list[Any]:
        """Plain form for msgpack."""
        rows = [[gid, *self.cosines[gid], sorted(self.members[gid])] for gid in sorted(self.cosines)]
        return [self.epoch, rows]

    @classmethod
    def from_plain(cls, plain: Any) -> Company:
        """Read `to_plain`'s form back; raises ValueError or TypeError for another."""
        epoch, rows = plain
        company = cls(int(epoch))
        for gid, total, rounds, members in rows:
            company.cosines[int(gid)] = (float(total), int(rounds))
            company.members[int(gid)] = {str(m) for m in members}
        return company
