"""Devices that deal wrong shares, boxes or commitments, and the search among shares: who is to blame, who never."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import pytest
from secagg_adversary import Adversary
from secagg_closing import exact, helpers_group, play, wrong
from secagg_parts import (
    Group,
    sign_header,
)
from secagg_site import entropy_of

from vedette_core.crypto.agreement import NONCE_BYTES, seal_box
from vedette_core.crypto.shamir import PRODUCTS, combine, split
from vedette_core.secagg import reconstruction
from vedette_core.secagg.reconstruction import Claim, Reconstruction
from vedette_core.secagg.secrets import box_context, box_key, commitment
from vedette_schemas.round import Upload, header_of


def dealt(
    group: Group,
    device: str,
    *,
    shares: Callable[[int, bytes], bytes] | None = None,
    box: Callable[[int, bytes], bytes] | None = None,
    commitments: Callable[[int, bytes], bytes] | None = None,
) -> Upload:
    """A corrupt device's upload: its shares, boxes or commitments are altered before it signs them."""
    who = group.devices[device]
    upload = group.uploads[device]
    secrets = secrets_of(group, device)
    random = entropy_of(f"dealer {device}")
    pieces = split(b"".join(secrets), group.plan.groups.threshold, len(group.committee), random)
    boxes = []
    for number, (name, piece) in enumerate(zip(group.committee, pieces, strict=True), start=1):
        altered = shares(number, piece) if shares else piece
        key = box_key(who.pair, group.people[name].pair.public, group.transcript, sealing=True)
        sealed = seal_box(key, altered, box_context(group.transcript, device, number), random(NONCE_BYTES))
        boxes.append(box(number, sealed) if box else sealed)
    commits = tuple(commitments(i, c) if commitments else c for i, c in enumerate(upload.commitments))
    made = upload.model_copy(update={"boxes": tuple(boxes), "commitments": commits})
    return made.model_copy(update={"header": sign_header(header_of(made), who)})


def secrets_of(group: Group, device: str) -> list[bytes]:
    """A device's secrets, computed by an adversary that has the whole committee."""
    adversary = Adversary([group.people[m] for m in group.committee if m != device])
    adversary.see(group)
    found = dict(adversary._from_shares(group, group.uploads[device]))
    assert len(found) == len(group.roster.members)
    return [found[i] for i in range(len(found))]


def flipped(value: bytes) -> bytes:
    """Other bytes of the same length, that nothing else agrees with."""
    return bytes(entropy_of(f"other {value.hex()}")(len(value)))


def test_a_dealer_of_right_shares_is_one_like_any_other() -> None:
    """The corrupt device of these tests, when it does nothing wrong."""
    group = helpers_group(6)
    cheat = list(group.uploads)[2]
    group.uploads[cheat] = dealt(group, cheat)
    unmasking = play(group)
    assert exact(group, unmasking)
    assert unmasking.blamed == ()


@pytest.mark.parametrize("members", [1, 4, 5, 15])
def test_garbage_boxes(members: int) -> None:
    """More than four complaints name the device; with up to five it is opened all the same."""
    group = helpers_group(6)
    cheat = list(group.uploads)[2]
    group.uploads[cheat] = dealt(group, cheat, box=lambda n, b: flipped(b) if n <= members else b)
    unmasking = play(group)
    assert unmasking.blamed == (() if members <= 4 else (cheat,))
    assert exact(group, unmasking) == (members <= 5)
    assert unmasking.liars == ()


@pytest.mark.parametrize("members", [1, 4, 5, 6, 15])
def test_wrong_shares_in_good_boxes(members: int) -> None:
    """No honest member is named a liar for what a device dealt to it; past four, the device is to blame."""
    group = helpers_group(6)
    cheat = next(iter(group.uploads))
    group.uploads[cheat] = dealt(group, cheat, shares=lambda n, s: flipped(s) if n <= members else s)
    unmasking = play(group)
    assert unmasking.liars == ()
    if 0 < members <= 5:
        assert exact(group, unmasking)
    assert set(unmasking.blamed) <= {cheat}
    if members == 5:
        assert unmasking.blamed == (cheat,)
    if members == 6:
        assert not unmasking.opened
        assert unmasking.blamed == (cheat,), "ten of eleven honest shares would do: all subsets were tried"


def test_garbage_for_four_and_wrong_shares_for_two() -> None:
    """Four complaints alone prove nothing, nor do two wrong shares; together they are six of at most four."""
    group = helpers_group(6)
    cheat = next(iter(group.uploads))
    group.uploads[cheat] = dealt(
        group,
        cheat,
        box=lambda n, b: flipped(b) if n <= 4 else b,
        shares=lambda n, s: flipped(s) if n in (5, 6) else s,
    )
    unmasking = play(group)
    assert not unmasking.opened
    assert unmasking.blamed == (cheat,)
    assert unmasking.liars == ()


def test_wrong_shares_of_several_secrets_to_several_members() -> None:
    """Four wrong for one secret, four others for another one: each could be liars, so that it is exact and no more."""
    group = helpers_group(6)
    cheat = next(iter(group.uploads))

    def alter(number: int, share: bytes) -> bytes:
        if number <= 4:
            return flipped(share[:16]) + share[16:]
        return share[:-16] + flipped(share[-16:]) if number <= 8 else share

    group.uploads[cheat] = dealt(group, cheat, shares=alter)
    unmasking = play(group)
    assert exact(group, unmasking)
    assert unmasking.blamed == ()
    assert unmasking.liars == ()


def test_wrong_commitments() -> None:
    """All shares agree on something else: the device is to blame, at no cost."""
    group = helpers_group(6)
    cheat = list(group.uploads)[1]
    group.uploads[cheat] = dealt(group, cheat, commitments=lambda i, c: flipped(c) if i == 0 else c)
    unmasking = play(group)
    assert not unmasking.opened
    assert unmasking.hopeless
    assert unmasking.blamed == (cheat,)
    assert unmasking.liars == ()


def test_wrong_commitments_and_liars() -> None:
    """One member lies as well: all subsets are tried, and none opens, so that it still is the device."""
    group = helpers_group(6)
    cheat = list(group.uploads)[1]
    group.uploads[cheat] = dealt(group, cheat, commitments=lambda i, c: flipped(c) if i == 0 else c)
    unmasking = play(group, lying={group.committee[14]: wrong})
    assert not unmasking.opened
    assert unmasking.blamed == (cheat,)


def test_two_honest_members_cannot_be_framed_for_others() -> None:
    """A corrupt device deals wrong to five; the honest devices' secrets are opened with these members' shares."""
    group = helpers_group(6)
    cheat = next(iter(group.uploads))
    group.uploads[cheat] = dealt(group, cheat, shares=lambda n, s: flipped(s) if n <= 5 else s)
    offline = group.committee[13:]
    unmasking = play(group, offline=offline)
    assert not unmasking.opened, "eight right shares of the corrupt one are too few"
    opened = Reconstruction(group.transcript, 10, 4).open([unmasking._claim(d) for d in group.uploads])
    assert set(opened) == set(group.uploads) - {cheat}


def claim_of(secrets: list[bytes], threshold: int, members: int, wrong_at: dict[int, set[int]], name: str) -> Claim:
    """A device's claim with wrong shares at these members for these places."""
    pieces = split(b"".join(secrets), threshold, members, entropy_of(name))
    shares = {}
    for number, piece in enumerate(pieces, start=1):
        cut = [piece[i : i + 16] for i in range(0, len(piece), 16)]
        shares[number] = b"".join(flipped(c) if p in wrong_at.get(number, ()) else c for p, c in enumerate(cut))
    commits = tuple(commitment(bytes(32), name, i, s) for i, s in enumerate(secrets))
    return Claim(name, tuple(range(len(secrets))), commits, shares)


def test_four_liars_of_fifteen_are_found_wherever_they_sit() -> None:
    """A hundred of the 1,365 choices, lying about everything: opened, named."""
    secrets = [bytes([i]) * 16 for i in range(2)]
    for lying in list(combinations(range(1, 16), 4))[::13]:
        claim = claim_of(secrets, 10, 15, {x: {0, 1} for x in lying}, "gw-000")
        found = Reconstruction(bytes(32), 10, 4)
        assert found.open([claim]) == {"gw-000": tuple(secrets)}
        assert found.liars == set(lying)


def test_exactly_as_many_right_shares_as_are_needed() -> None:
    """Five of fifteen lie about two secrets each: after the first is found, the ten right ones are no subset short."""
    claim = claim_of([b"a" * 16, b"b" * 16, b"c" * 16], 10, 15, {x: {0, 2} for x in range(1, 6)}, "gw-000")
    found = Reconstruction(bytes(32), 10, 5)
    assert found.open([claim])["gw-000"] == (b"a" * 16, b"b" * 16, b"c" * 16)
    assert found.liars == {1, 2, 3, 4, 5}


def test_the_search_is_bounded_over_all_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A committee of 64 in which everybody lies, and 64 devices: the subsets that are tried do not multiply."""
    tried = 0

    def counted(shares: dict[int, bytes]) -> bytes:
        nonlocal tried
        tried += 1
        return combine(shares)

    monkeypatch.setattr(reconstruction, "combine", counted)
    monkeypatch.setattr(reconstruction, "SUBSETS_MAX", 200)
    claims = [
        claim_of([bytes([d]) * 16], 43, 64, {x: {0} for x in range(1 + d % 2, 65, 2)}, f"gw-{d:03}") for d in range(64)
    ]
    found = Reconstruction(bytes(32), 43, 21, _left=1000)
    assert found.open(claims) == {}
    assert len(found.failed) == 64
    assert tried <= 1000 + 64
    assert found.dealt_wrong == set(), "nothing was proven"


def test_liars_that_conspire_cannot_spoil_the_sum_or_blame_a_device() -> None:
    """Four add a polynomial that is zero at the secret and at seven honest members: eleven agree, four honest ones are
    beside it. What comes out is right; who lied cannot be told from secrets' commitments alone."""
    secrets = [b"a" * 16]
    lying, agreeing = (1, 2, 3, 4), range(5, 12)
    claim = claim_of(secrets, 10, 15, {}, "gw-000")

    def shift(x: int) -> int:
        value = x
        for zero in agreeing:
            value = int(PRODUCTS[value, x ^ zero])
        return value

    shares = {x: bytes(b ^ shift(x) for b in s) if x in lying else s for x, s in claim.shares.items()}
    found = Reconstruction(bytes(32), 10, 4)
    assert found.open([Claim(claim.device, claim.indices, claim.commitments, shares)]) == {"gw-000": tuple(secrets)}
    assert found.dealt_wrong == set()
    assert found.liars in ({1, 2, 3, 4}, {12, 13, 14, 15})


def test_wrong_shares_that_happen_to_add_up() -> None:
    """The same error at all liars opens to the right secret with one subset in 256: the device is not to blame."""
    secrets = [b"a" * 16]
    for lying in list(combinations(range(1, 16), 4))[::9]:
        claim = claim_of(secrets, 10, 15, {}, "gw-000")
        shares = {x: bytes(b ^ 0x21 for b in s) if x in lying else s for x, s in claim.shares.items()}
        found = Reconstruction(bytes(32), 10, 4)
        assert found.open([Claim("gw-000", (0,), claim.commitments, shares)]) == {"gw-000": tuple(secrets)}
        assert found.dealt_wrong == set()
        assert len(found.liars) <= 4
