"""Shares by example: who gives the secret, who does not, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from vedette_core.crypto.shamir import MEMBERS_MAX, PRODUCTS, combine, share_at, split
from vedette_schemas.errors import PeerError

SECRET = bytes(range(48))


def entropy(seed: int) -> Callable[[int], bytes]:
    return np.random.default_rng(seed).bytes


def test_products_of_the_published_field() -> None:
    """FIPS 197 §4.2 and §4.2.1: {57}·{83} = {c1}, {57}·{13} = {fe}."""
    assert PRODUCTS[0x57, 0x83] == 0xC1
    assert PRODUCTS[0x57, 0x13] == 0xFE
    assert not PRODUCTS.flags.writeable


def test_the_shares_are_values_of_the_polynomial() -> None:
    """By hand: f(x) = 0x2a + 0x57·x + 0x83·x² at 1, 2, 3."""
    shares = split(b"\x2a", 3, 3, lambda n: b"\x57\x83"[:n])
    assert shares[0] == bytes([0x2A ^ 0x57 ^ 0x83])
    assert shares[1] == bytes([0x2A ^ 0xAE ^ 0x3A])  # 0x57·2 = 0xae; 0x83·4 = 0x20c ^ 2·0x11b = 0x3a
    assert shares[2] == bytes([0x2A ^ (0x57 ^ 0xAE) ^ (0x83 ^ 0x3A)])  # 3 = 1 + 2 and 3² = 1 + 4


def test_any_subset_of_the_threshold_gives_the_secret() -> None:
    shares = dict(enumerate(split(SECRET, 3, 6, entropy(1)), start=1))
    for chosen in itertools.combinations(shares, 3):
        assert combine({x: shares[x] for x in chosen}) == SECRET
        assert combine({x: shares[x] for x in reversed(chosen)}) == SECRET


def test_more_than_the_threshold_give_it_too() -> None:
    shares = dict(enumerate(split(SECRET, 3, 6, entropy(1)), start=1))
    assert combine(shares) == SECRET


def test_one_less_gives_something_else() -> None:
    shares = dict(enumerate(split(SECRET, 3, 6, entropy(1)), start=1))
    for chosen in itertools.combinations(shares, 2):
        assert combine({x: shares[x] for x in chosen}) != SECRET


def test_a_threshold_of_one_hands_out_the_secret() -> None:
    asked: list[int] = []

    def none(size: int) -> bytes:
        asked.append(size)
        return bytes(size)

    assert split(SECRET, 1, 3, none) == (SECRET,) * 3
    assert combine({2: SECRET}) == SECRET
    assert sum(asked) == 0


def test_as_many_members_as_the_field_has_indices() -> None:
    shares = split(SECRET, MEMBERS_MAX, MEMBERS_MAX, entropy(2))
    assert len(set(shares)) == MEMBERS_MAX
    assert combine(dict(enumerate(shares, start=1))) == SECRET


def test_every_coefficient_byte_comes_from_the_entropy() -> None:
    """Each of the bytes asked for changes each share, and at its own place only."""
    wanted: list[int] = []

    def zeros(size: int) -> bytes:
        wanted.append(size)
        return bytes(size)

    plain = split(SECRET, 4, 5, zeros)
    assert plain == (SECRET,) * 5
    assert wanted == [3 * len(SECRET)]
    for place in range(wanted[0]):
        changed = split(SECRET, 4, 5, lambda n, at=place: bytes(at) + b"\x01" + bytes(n - at - 1))  # type: ignore[misc]
        for before, after in zip(plain, changed, strict=True):
            assert [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b] == [place % len(SECRET)]


def test_a_liar_is_found_by_the_others() -> None:
    shares = dict(enumerate(split(SECRET, 4, 7, entropy(3)), start=1))
    right = {x: shares[x] for x in (1, 3, 4, 6)}
    told = {**shares, 5: bytes([shares[5][0] ^ 1]) + shares[5][1:]}
    assert [x for x in told if share_at(right, x) != told[x]] == [5]
    assert combine({x: told[x] for x in (1, 3, 4, 5)}) != SECRET


@pytest.mark.parametrize(
    ("secret", "threshold", "members", "match"),
    [
        (b"", 2, 3, "empty secret"),
        (b"s", 0, 3, "threshold of 0"),
        (b"s", -1, 3, "threshold of -1"),
        (b"s", 4, 3, "threshold of 4"),
        (b"s", 2, 256, "256 members"),
        (b"s", 1, 0, "0 members"),
    ],
)
def test_what_cannot_be_split_is_refused(secret: bytes, threshold: int, members: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        split(secret, threshold, members, entropy(1))


@pytest.mark.parametrize("change", [-1, 1])
def test_entropy_of_another_length_is_refused(change: int) -> None:
    with pytest.raises(ValueError, match="bytes of entropy"):
        split(SECRET, 3, 5, lambda n: bytes(n + change))


BAD: dict[str, Mapping[int, bytes]] = {
    "none": {},
    "index zero": {0: b"a", 1: b"b"},
    "negative index": {-1: b"a"},
    "index too large": {256: b"a", 1: b"b"},
    "index far too large": {2**70: b"a"},
    "index of text": {"1": b"a"},  # type: ignore[dict-item]
    "index of none": {None: b"a"},  # type: ignore[dict-item]
    "index with a fraction": {1.5: b"a"},  # type: ignore[dict-item]
    "empty share": {1: b""},
    "all empty": {1: b"", 2: b""},
    "unequal": {1: b"ab", 2: b"a"},
    "one empty": {1: b"ab", 2: b""},
}


@pytest.mark.parametrize("shares", BAD.values(), ids=BAD)
def test_shares_that_are_none_are_the_other_sides_fault(shares: Mapping[int, bytes]) -> None:
    with pytest.raises(PeerError) as refused:
        combine(shares)
    assert refused.value.reason == "shares"
    with pytest.raises(PeerError) as refused:
        share_at(shares, 3)
    assert refused.value.reason == "shares"


@pytest.mark.parametrize("x", [-1, 0, 256])
def test_there_is_no_share_at_another_index(x: int) -> None:
    """Zero above all: a secret is not to be had by a slip."""
    with pytest.raises(ValueError, match=f"index {x}"):
        share_at({1: b"a", 2: b"b"}, x)
