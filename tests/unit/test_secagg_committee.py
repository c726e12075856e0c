"""Committees with members that are away, that lie or complain: the exact sum, or a clean end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from secagg_adversary import Adversary
from secagg_closing import Distort, exact, helpers_group, noise, play, wrong
from secagg_parts import (
    Group,
    Node,
    make_plan,
    make_upload,
    plain_vector,
)

from vedette_core.secagg.committee import CloseReceived, OpeningReceived
from vedette_core.secagg.reconstruction import Reconstruction
from vedette_schemas.errors import PeerError
from vedette_schemas.secagg import Shares


def wrong_pairs(shares: Shares) -> Shares:
    """Other shares of the last pair of every device."""
    rows = tuple(
        r.model_copy(update={"pairs": (*r.pairs[:-1], noise(shares.member, r.device, "pair"))}) for r in shares.shares
    )
    return shares.model_copy(update={"shares": rows})


@pytest.mark.parametrize("uploads", [8, 6, 5])
@pytest.mark.parametrize("offline", range(6))
def test_up_to_five_of_fifteen_away(offline: int, uploads: int) -> None:
    """The sum is exact."""
    group = helpers_group(uploads)
    unmasking = play(group, offline=group.committee[:offline])
    assert exact(group, unmasking)
    assert (unmasking.liars, unmasking.blamed) == ((), ())


def test_six_of_fifteen_away_end_it_cleanly() -> None:
    """Nine votes: nobody releases anything, and nothing is raised."""
    group = helpers_group(6)
    unmasking = play(group, offline=group.committee[:6])
    assert not unmasking.certified
    assert not unmasking.try_open()
    assert set(unmasking.silent) == set(group.committee[:6])
    adversary = Adversary()
    adversary.see(group)
    nodes = group.nodes(group.committee[6:])
    for name, node in nodes.items():
        node.tell(CloseReceived(unmasking.close_for(name)))
        adversary.hear(node.tell(OpeningReceived(unmasking.opening())))
    assert adversary.released(group) == {}


@pytest.mark.parametrize("offline", range(4))
def test_inline_members_away(offline: int) -> None:
    """Six of eight suffice; with five it ends."""
    group = Group()
    unmasking = play(group, offline=group.committee[:offline])
    assert exact(group, unmasking) == (offline <= 2)


@pytest.mark.parametrize("mode", ["inline", "helpers"])
def test_members_that_dropped_out_as_devices_still_open(mode: Any) -> None:
    """Devices whose upload is late sit in the committee all the same."""
    group = Group(make_plan()) if mode == "inline" else helpers_group()
    group.uploads = dict(list(group.uploads.items())[:5])
    assert exact(group, play(group))


@pytest.mark.parametrize("liars", [(0, 1, 2, 3), (11, 12, 13, 14), (0, 5, 10, 14), (2,), ()])
@pytest.mark.parametrize("distort", [wrong, wrong_pairs], ids=["own", "pairs"])
def test_four_liars_of_fifteen(liars: tuple[int, ...], distort: Distort) -> None:
    """The sum is exact, and they are named, wherever they sit."""
    group = helpers_group(6)
    names = [group.committee[i] for i in liars]
    unmasking = play(group, lying=dict.fromkeys(names, distort))
    assert exact(group, unmasking)
    assert set(unmasking.liars) <= set(names)
    assert unmasking.blamed == ()
    # With everybody's shares there, all are looked at.
    full = Reconstruction(group.transcript, 10, 4)
    full.open([unmasking._claim(d) for d in group.uploads])
    assert {group.committee[i - 1] for i in full.liars} == set(names)


@pytest.mark.parametrize("seed", range(12))
def test_liars_and_absent_members_up_to_the_limit(seed: int) -> None:
    """Ten of fifteen are there and right; of the rest, some lie about everything and some are away."""
    rng = np.random.default_rng(seed)
    group = helpers_group(6)
    order = [group.committee[i] for i in rng.permutation(15)]
    lying = int(rng.integers(0, 5))
    names, offline = order[:lying], order[lying:5]
    unmasking = play(group, offline=offline, lying=dict.fromkeys(names, lambda s: wrong_pairs(wrong(s))))
    assert exact(group, unmasking)
    assert set(unmasking.liars) == set(names), "nobody else is left, so that all of them had to be found"


@pytest.mark.parametrize("seed", range(6))
def test_liars_that_lie_about_some_secrets_only(seed: int) -> None:
    """Each about other devices: exact, and no honest member is named."""
    rng = np.random.default_rng(seed)
    group = helpers_group(6)
    devices = list(group.uploads)

    def some(chosen: list[str]) -> Distort:
        return lambda s: wrong(s, chosen)

    lying = {
        group.committee[i]: some([str(d) for d in rng.choice(devices, 2, replace=False)])
        for i in rng.choice(15, 4, replace=False)
    }
    unmasking = play(group, lying=lying)
    assert exact(group, unmasking)
    assert set(unmasking.liars) <= set(lying)
    assert unmasking.blamed == ()


def test_more_liars_than_can_be_end_it_without_blaming_a_device() -> None:
    """Six of fifteen lie, each something else: nine right shares are one too few."""
    group = helpers_group(8)

    def other(number: int) -> Distort:
        return lambda s: s.model_copy(
            update={"shares": tuple(r.model_copy(update={"own": bytes([number]) * 16}) for r in s.shares)}
        )

    unmasking = play(group, lying={m: other(i) for i, m in enumerate(group.committee[:6])})
    assert not unmasking.opened
    assert unmasking.hopeless


def test_members_that_give_nothing_of_some_devices() -> None:
    """Rows that are left out count as absent for those devices only."""
    group = helpers_group(6)
    left_out = dict.fromkeys(group.committee[:5], lambda s: s.model_copy(update={"shares": s.shares[2:]}))
    assert exact(group, play(group, lying=left_out))


@pytest.mark.parametrize("complaining", range(6))
def test_complaints_of_as_many_as_can_be_corrupt_blame_nobody(complaining: int) -> None:
    """Four can be invented; five cannot."""
    group = helpers_group(6)
    victim = next(iter(group.uploads))
    unmasking = play(group, complaining=dict.fromkeys(group.committee[:complaining], (victim,)))
    assert unmasking.blamed == (() if complaining <= 4 else (victim,))
    assert unmasking.opened


def test_complaints_of_strangers_and_twice_count_once() -> None:
    """What a complaint names must be a survivor, and counts once a member."""
    group = helpers_group(6)
    victim = next(iter(group.uploads))
    dropped = next(d for d in group.devices if d not in group.uploads)
    unmasking = play(group, complaining={group.committee[0]: (victim,) * 9 + (dropped,) * 9 + ("nobody",)})
    assert unmasking.blamed == ()
    assert exact(group, unmasking)


def test_shares_of_another_shape_are_refused() -> None:
    """Rows of devices that are not in the set, or with another number of pairs."""
    group = helpers_group(6)
    unmasking = group.unmasking()
    node = group.nodes([group.committee[0]])[group.committee[0]]
    node.tell(CloseReceived(unmasking.close_for(group.committee[0])))
    votes = [group.vote(group.people[m]) for m in group.committee[:10]]
    (shares,) = node.tell(OpeningReceived(group.opening(votes))).shares
    row = shares.shares[0]
    short = (row.model_copy(update={"pairs": row.pairs[:-1]}), *shares.shares[1:])
    dropped = next(d for d in group.devices if d not in group.uploads)
    other = (*shares.shares[:-1], row.model_copy(update={"device": dropped}))
    for rows in (short, other):
        with pytest.raises(PeerError, match="pairs of"):
            unmasking.take_shares(shares.model_copy(update={"shares": rows}))
    for changes in ({"survivors": bytes(32)}, {"transcript": bytes(32)}, {"id": "sh-other"}):
        with pytest.raises(PeerError, match="another group or survivor set"):
            unmasking.take_shares(shares.model_copy(update=changes))
    with pytest.raises(PeerError, match="not in the committee"):
        unmasking.take_shares(shares.model_copy(update={"member": "gw-000"}))


def test_who_missed_the_vote_can_still_vote_and_release() -> None:
    """A member that comes back after the others had voted takes the place of one that went away since."""
    group = helpers_group(6)
    unmasking = group.unmasking()
    nodes = group.nodes()
    late = group.committee[-1]
    for name in group.committee[:10]:
        (sealed,) = nodes[name].tell(CloseReceived(unmasking.close_for(name))).messages
        vote = nodes[name].tell(CloseReceived(unmasking.close_for(name))).votes[0]
        unmasking.take_vote(vote, sealed)
    assert unmasking.certified
    assert late in unmasking.silent
    assert not unmasking.has_voted(late)
    assert nodes[late].tell(OpeningReceived(unmasking.opening())).messages == []
    assert len(nodes[late].tell(CloseReceived(unmasking.close_for(late))).votes) == 1
    for name in [*group.committee[:9], late]:
        unmasking.take_shares(nodes[name].tell(OpeningReceived(unmasking.opening())).shares[0])
    assert unmasking.try_open()
    assert exact(group, unmasking)


def test_an_unmasking_is_made_again_from_what_was_kept() -> None:
    """The same votes and shares give the same secrets."""
    group = helpers_group(6)
    first = play(group)
    again = group.unmasking()
    for name in group.committee:
        again.take_shares(first._shares[name])
    assert again.try_open()
    assert exact(group, again)


def test_another_key_than_in_the_roster_masks_nothing() -> None:
    """A caller's mistake must not become an upload that nobody can open."""
    group = helpers_group()
    first, second = list(group.devices.values())[:2]
    mixed = type(first)(first.name, first.role, first.signer, first.certificate, second.pair)
    with pytest.raises(ValueError, match="with this key"):
        make_upload(group.roster, group.plan, mixed, vector=plain_vector("x", group.plan))
    assert isinstance(Node(first), Node)
