"""Which listed release a task's rounds start from, as far as this node can tell: not always the one that it runs.

Rounds go on from the newest candidate while a rollout still tries it. The round's signed state names it; between the
end of a round and the next state, it is the release that came of the round (its parent is what the round started from).
"""

from __future__ import annotations

from collections.abc import Mapping

from vedette_device.verified_release import VerifiedRelease
from vedette_schemas.model import Variant
from vedette_schemas.round import RoundOpen

_Reference = tuple[int, str]


class RoundModels:
    """The model references of the rounds of a node's tasks."""

    def __init__(self) -> None:
        self._wanted: dict[str, _Reference] = {}
        self._given: dict[str, _Reference] = {}
        self._declined: dict[str, _Reference] = {}

    def opened(self, body: RoundOpen) -> bool:
        """A round's state came in; tells whether it starts from another release than the node was given last."""
        wanted = (body.model_version, body.model)
        self._wanted[body.task] = wanted
        given = self._given.get(body.task)
        if given is None or given == wanted:
            return False
        if given > wanted:
            self._declined[body.task] = given
        return True

    def choose(self, active: VerifiedRelease, listed: Mapping[int, VerifiedRelease]) -> VerifiedRelease:
        """The release to take part with.

        Args:
            active: the metadata's active release.
            listed: every release that they list, by version.
        """
        task, chosen = active.task, active
        wanted = self._wanted.get(task)
        if wanted is not None:
            chosen = next((r for r in listed.values() if _reference(r) == wanted), active)
            after = [r for r in listed.values() if r.version > chosen.version and _parent(r) == _reference(chosen)[1]]
            newest = max(after, key=lambda r: r.version, default=chosen)
            if _reference(newest) != self._declined.get(task):
                chosen = newest
        self._given[task] = _reference(chosen)
        return chosen


def _reference(release: VerifiedRelease) -> _Reference:
    weights = release.targets.get(Variant.WEIGHTS)
    return (release.version, "" if weights is None else weights.sha256)


def _parent(release: VerifiedRelease) -> str:
    weights = release.targets.get(Variant.WEIGHTS)
    return "" if weights is None else weights.custom.parent
