"""A closing phase as an honest aggregator plays it, with members that are away, lie or complain."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from secagg_parts import (
    Group,
    checked_body,
    make_plan,
)
from secagg_site import digest, the_ring

from vedette_core.secagg.aggregator import Unmasking
from vedette_core.secagg.committee import CloseReceived, OpeningReceived
from vedette_core.secagg.membership import learn_members
from vedette_schemas.secagg import Shares, Vote

Distort = Callable[[Shares], Shares]


def helpers_group(uploads: int = 8) -> Group:
    """Eight devices, fifteen helpers: ten votes, four corrupt or five away."""
    group = Group(make_plan(committee="helpers", size=15))
    group.uploads = dict(list(group.uploads.items())[:uploads])
    return group


def noise(*about: object) -> bytes:
    """16 bytes that nothing else agrees with."""
    return digest(f"wrong {about}")[:16]


def wrong(shares: Shares, devices: Iterable[str] | None = None) -> Shares:
    """Other shares of these devices' own masks; of all by default."""
    chosen = {r.device for r in shares.shares} if devices is None else set(devices)
    rows = tuple(
        r.model_copy(update={"own": noise(shares.member, r.device)}) if r.device in chosen else r for r in shares.shares
    )
    return shares.model_copy(update={"shares": rows})


def play(
    group: Group,
    *,
    offline: Iterable[str] = (),
    lying: dict[str, Distort] | None = None,
    complaining: dict[str, tuple[str, ...]] | None = None,
) -> Unmasking:
    """An honest aggregator plays the closing phase; who is offline says nothing at all."""
    unmasking = group.unmasking()
    ring = the_ring().fork()
    learn_members(group.roster, ring, 1_900_000_000.0)
    nodes = {n: node for n, node in group.nodes().items() if n not in set(offline)}
    for name, node in nodes.items():
        for sealed in node.tell(CloseReceived(unmasking.close_for(name))).messages:
            if complaining and name in complaining:
                sealed = group.vote(group.people[name], complaints=complaining[name])
            vote = checked_body(sealed, name, ring)
            assert isinstance(vote, Vote)
            assert unmasking.take_vote(vote, sealed)
            assert not unmasking.take_vote(vote, sealed), "once"
    if not unmasking.certified:
        for node in nodes.values():
            if unmasking.opening().votes:
                assert node.tell(OpeningReceived(unmasking.opening())).messages == []
        return unmasking
    for name, node in nodes.items():
        for sealed in node.tell(OpeningReceived(unmasking.opening())).messages:
            shares = checked_body(sealed, name, ring)
            assert isinstance(shares, Shares)
            distort = lying.get(name) if lying else None
            unmasking.take_shares(distort(shares) if distort else shares)
            unmasking.try_open()
    return unmasking


def exact(group: Group, unmasking: Unmasking) -> bool:
    """Whether it is open, and its sum that of the plain vectors."""
    if not unmasking.opened:
        return False
    total = group.masked_sum()
    unmasking.unmask(total)
    assert np.array_equal(total, group.plain_sum())
    return True
