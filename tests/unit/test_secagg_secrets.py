"""How secrets, boxes and commitments are derived: the same from both sides, and bound to all that they belong to."""

from __future__ import annotations

import pytest
from secagg_parts import Group
from secagg_site import digest, person

from vedette_core.crypto.agreement import NONCE_BYTES, open_box, seal_box
from vedette_core.secagg.secrets import box_context, box_key, commitment, others, pair_secret
from vedette_schemas.errors import PeerError

ANNA, BERT, CARL = (person(name).pair for name in ("gw-anna", "gw-bert", "gw-carl"))
HERE, THERE = digest("here"), digest("there")


def test_a_pairs_secret_is_the_same_from_both_sides_and_in_no_other_place() -> None:
    """Another transcript, another peer: unrelated."""
    secret = pair_secret(ANNA, BERT.public, HERE)
    assert len(secret) == 16
    assert secret == pair_secret(BERT, ANNA.public, HERE)
    other = [pair_secret(ANNA, BERT.public, THERE), pair_secret(ANNA, CARL.public, HERE)]
    assert len({secret, *other}) == 3


def test_secrets_that_came_out_in_one_attempt_say_nothing_in_the_next() -> None:
    """The same keys in two attempts, against the rules: the pairs' secrets are still others."""
    first, second = Group(attempt=1), Group(attempt=2)
    keys = [p.pair for p in first.devices.values()]
    assert [p.pair for p in second.devices.values()] == keys
    assert pair_secret(keys[0], keys[1].public, first.transcript) != pair_secret(
        keys[0], keys[1].public, second.transcript
    )


def test_a_boxs_key_is_for_one_direction_and_one_place() -> None:
    """What a device seals to a member is not what that member seals to it as a device, nor is it the pair's secret."""
    key = box_key(ANNA, BERT.public, HERE, sealing=True)
    assert key == box_key(BERT, ANNA.public, HERE, sealing=False)
    back = box_key(BERT, ANNA.public, HERE, sealing=True)
    assert len({key, back, box_key(ANNA, BERT.public, THERE, sealing=True)}) == 3
    assert pair_secret(ANNA, BERT.public, HERE) not in (key[:16], key[16:])


@pytest.mark.parametrize("other", [(THERE, "gw-1", 1), (HERE, "gw-2", 1), (HERE, "gw-1", 2), (HERE, "gw-", 11)])
def test_a_box_opens_for_its_group_device_and_number_only(other: tuple[bytes, str, int]) -> None:
    """Even under the same key."""
    key = box_key(ANNA, BERT.public, HERE, sealing=True)
    sealed = seal_box(key, b"shares", box_context(HERE, "gw-1", 1), bytes(NONCE_BYTES))
    assert open_box(key, sealed, box_context(HERE, "gw-1", 1)) == b"shares"
    with pytest.raises(PeerError, match="do not open"):
        open_box(key, sealed, box_context(*other))


def test_a_commitment_is_to_one_secret_in_one_place() -> None:
    """Another group, device, index or secret: another commitment."""
    places = [(HERE, "gw-1", 0), (THERE, "gw-1", 0), (HERE, "gw-2", 0), (HERE, "gw-1", 1), (HERE, "gw-", 10)]
    made = {commitment(t, d, i, b"s" * 16) for t, d, i in places} | {commitment(HERE, "gw-1", 0, b"t" * 16)}
    assert len(made) == len(places) + 1
    assert {len(c) for c in made} == {16}


def test_a_device_counts_the_others_by_id() -> None:
    """Its own is left out; the order is the roster's."""
    group = Group()
    names = list(group.devices)
    assert others(group.roster, names[2]) == tuple(n for n in names if n != names[2])
    assert others(group.roster, "gw-nobody") == tuple(names)
