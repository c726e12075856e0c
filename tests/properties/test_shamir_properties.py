"""Laws of sharing, against a field and an interpolation of its own and those of SLIP-39."""

from __future__ import annotations

from functools import cache, reduce
from operator import xor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]
from shamir_mnemonic.shamir import RawShare, _interpolate  # type: ignore[import-untyped]

from vedette_core.crypto.shamir import PRODUCTS, combine, share_at, split

ELEMENT = st.integers(0, 255)
INDICES = st.lists(st.integers(1, 255), min_size=1, max_size=12, unique=True)


def product(a: int, b: int) -> int:
    """Carry-less multiplication bit by bit, then division by the polynomial."""
    long = reduce(xor, (a << bit for bit in range(8) if b >> bit & 1), 0)
    for bit in reversed(range(8, 15)):
        if long >> bit & 1:
            long ^= 0x11B << (bit - 8)
    return long


@cache
def inverse(a: int) -> int:
    """a^254, since a^255 = 1."""
    return reduce(product, [a] * 254)


def value_at(points: dict[int, int], x: int) -> int:
    """Lagrange's formula, term by term."""
    total = 0
    for xi, yi in points.items():
        term = yi
        for xj in points:
            if xj != xi:
                term = product(product(term, x ^ xj), inverse(xi ^ xj))
        total ^= term
    return total


@st.composite
def sharings(draw: st.DrawFn) -> tuple[bytes, int, int, np.random.Generator]:
    """A secret, a threshold, a number of members, and chance."""
    secret = draw(st.binary(min_size=1, max_size=40))
    members = draw(st.integers(1, 20) | st.just(255))
    threshold = draw(st.integers(1, min(members, 20)))
    return secret, threshold, members, np.random.default_rng(draw(st.integers(0, 2**32)))


def test_the_table_is_the_field() -> None:
    assert PRODUCTS.tolist() == [[product(a, b) for b in range(256)] for a in range(256)]


@given(a=ELEMENT, b=ELEMENT, c=ELEMENT)
@settings(max_examples=500)
def test_the_table_keeps_the_laws_of_a_field(a: int, b: int, c: int) -> None:
    assert PRODUCTS[a, b] == PRODUCTS[b, a]
    assert PRODUCTS[PRODUCTS[a, b], c] == PRODUCTS[a, PRODUCTS[b, c]]
    assert PRODUCTS[a, b ^ c] == PRODUCTS[a, b] ^ PRODUCTS[a, c]
    assert PRODUCTS[a, 1] == a
    assert PRODUCTS[a, 0] == 0


def test_every_element_but_zero_has_one_inverse() -> None:
    assert np.count_nonzero(PRODUCTS[1:, 1:] == 1, axis=1).tolist() == [1] * 255
    assert np.count_nonzero(PRODUCTS[1:, 1:] == 0) == 0


@given(case=sharings(), data=st.data())
@settings(max_examples=100)
def test_any_threshold_of_shares_gives_the_secret(
    case: tuple[bytes, int, int, np.random.Generator], data: st.DataObject
) -> None:
    secret, threshold, members, rng = case
    shares = split(secret, threshold, members, rng.bytes)
    assert len(shares) == members
    assert {len(s) for s in shares} == {len(secret)}
    chosen = data.draw(st.permutations(range(1, members + 1)))
    right = {x: shares[x - 1] for x in chosen[:threshold]}
    assert combine(right) == secret
    assert combine({x: shares[x - 1] for x in chosen[: threshold + 2]}) == secret
    assert [share_at(right, x) for x in range(1, members + 1)] == list(shares)


@given(indices=INDICES, length=st.integers(1, 5), x=ELEMENT, seed=st.integers(0, 2**32))
@settings(max_examples=100)
def test_interpolation_is_that_of_a_slow_field(indices: list[int], length: int, x: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shares = {i: rng.bytes(length) for i in indices}
    expected = bytes(value_at({i: s[at] for i, s in shares.items()}, x) for at in range(length))
    assert (combine(shares) if x == 0 else share_at(shares, x)) == expected


@given(indices=INDICES, length=st.integers(1, 60), x=ELEMENT, seed=st.integers(0, 2**32))
@settings(max_examples=200)
def test_interpolation_is_that_of_slip_39(indices: list[int], length: int, x: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shares = {i: rng.bytes(length) for i in indices}
    expected = _interpolate([RawShare(i, s) for i, s in shares.items()], x)
    assert (combine(shares) if x == 0 else share_at(shares, x)) == expected


@given(case=sharings())
@settings(max_examples=50)
def test_slip_39_finds_the_secret_in_our_shares(case: tuple[bytes, int, int, np.random.Generator]) -> None:
    secret, threshold, members, rng = case
    shares = split(secret, threshold, members, rng.bytes)
    last = range(members - threshold + 1, members + 1)
    assert _interpolate([RawShare(x, shares[x - 1]) for x in last], 0) == secret


@given(secrets=st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=6), seed=st.integers(0, 2**32))
@settings(max_examples=50)
def test_secrets_in_a_row_are_secrets_one_by_one(secrets: list[bytes], seed: int) -> None:
    rng = np.random.default_rng(seed)
    sharings = [split(secret, 3, 5, rng.bytes) for secret in secrets]
    joined = {x: b"".join(shares[x - 1] for shares in sharings) for x in (2, 3, 5)}
    assert combine(joined) == b"".join(secrets)


@given(pair=st.integers(1, 30).flatmap(lambda n: st.tuples(*[st.binary(min_size=n, max_size=n)] * 2)))
@settings(max_examples=50)
def test_sums_of_shares_are_shares_of_the_sum(pair: tuple[bytes, bytes]) -> None:
    def plus(a: bytes, b: bytes) -> bytes:
        return bytes(x ^ y for x, y in zip(a, b, strict=True))

    rng = np.random.default_rng(5)
    a, b = (split(secret, 3, 4, rng.bytes) for secret in pair)
    assert combine({x: plus(a[x - 1], b[x - 1]) for x in (1, 2, 4)}) == plus(*pair)


@pytest.mark.parametrize("secret", [0x00, 0x01, 0x2A, 0xFF])
@pytest.mark.parametrize("members", [(1, 2), (2, 7), (3, 255)])
def test_two_shares_of_three_are_independent_of_the_secret(secret: int, members: tuple[int, int]) -> None:
    """Not by chance but by counting: over all 65,536 polynomials, each pair of shares occurs exactly once."""
    first, second = np.divmod(np.arange(65_536), 256)
    shares = split(bytes([secret]) * 65_536, 3, 255, lambda _: np.append(first, second).astype(np.uint8).tobytes())
    a, b = (np.frombuffer(shares[x - 1], np.uint8).astype(np.int64) for x in members)
    assert np.array_equal(np.bincount(a * 256 + b, minlength=65_536), np.ones(65_536))


@pytest.mark.parametrize(("threshold", "members"), [(2, 3), (5, 9), (10, 15)])
@pytest.mark.parametrize("secret", [0x00, 0x2A])
def test_shares_of_a_constant_secret_are_uniform(secret: int, threshold: int, members: int) -> None:
    """A hundred thousand splits of one byte: each share, and what fewer than the threshold combine to."""
    shares = split(bytes([secret]) * 100_000, threshold, members, np.random.default_rng(6).bytes)
    too_few = combine({x: shares[x - 1] for x in range(2, threshold + 1)})
    for found in (*shares, too_few):
        counts = np.bincount(np.frombuffer(found, np.uint8), minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-4
