"""Reference values: from what one trusted node measured, and an earlier policy, to the next policy's list."""

from __future__ import annotations

from collections.abc import Iterable

from vedette_core.attestation.policy import REPORTED_ONLY
from vedette_schemas.attestation import Measurement, Reference

DIGESTS_KEPT = 8
"""Of one component: a fleet that is being updated runs two or three versions side by side."""


def references(measured: Iterable[Measurement], earlier: Iterable[Reference] = ()) -> tuple[Reference, ...]:
    """Reference values for a policy, sorted by component.

    What an earlier policy took is still taken, newest first and eight at most, so that a fleet can be updated step by
    step; a component that is no longer measured is no longer asked for.

    Args:
        measured: what good devices have; several digests of one component are all good.
        earlier: of the policy before.
    """
    digests: dict[str, list[bytes]] = {}
    for found in measured:
        if not found.component.startswith(REPORTED_ONLY):
            digests.setdefault(found.component, []).append(found.digest)
    before = {r.component: r for r in earlier}
    made = []
    for component, fresh in sorted(digests.items()):
        old = before.get(component)
        good = tuple(dict.fromkeys((*fresh, *(old.digests if old else ()))))[:DIGESTS_KEPT]
        made.append(
            Reference(component=component, digests=good) if old is None else old.model_copy(update={"digests": good})
        )
    return tuple(made)
