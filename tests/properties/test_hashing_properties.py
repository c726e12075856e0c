"""Laws of feature hashing: linear, without order, fixed by its key, and right on the average over keys."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vedette_core.learning.hashing import COUNT_MAX, NAMES_MAX, FeatureHasher, signed_log1p
from vedette_schemas.errors import ConfigError
from vedette_schemas.features import FeatureSchema

KEY = bytes(range(32))
PLACES = [(11, 1), (54, 1), (4, -1), (1, -1), (5, 1)]
FIRST_COLUMNS = ("h00.eaa6", "h01.eaa6")
names = st.text(st.characters(), max_size=30)
counts = st.dictionaries(names, st.integers(0, 10_000), max_size=30)
hashers = st.builds(FeatureHasher, st.integers(2, 256), st.binary(min_size=16, max_size=64))


@given(hashers, counts, counts)
def test_a_row_of_sums_is_the_sum_of_rows(hasher: FeatureHasher, one: dict[str, int], other: dict[str, int]) -> None:
    both = {name: one.get(name, 0) + other.get(name, 0) for name in {*one, *other}}
    assert np.array_equal(hasher.row(both), hasher.row(one) + hasher.row(other))


@given(hashers, counts, st.randoms(use_true_random=False))
def test_the_order_of_names_plays_no_part(hasher: FeatureHasher, one: dict[str, int], rng: object) -> None:
    shuffled = list(one.items())
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    assert np.array_equal(hasher.row(dict(shuffled)), hasher.row(one))


@given(hashers, counts)
def test_a_row_holds_every_count_once(hasher: FeatureHasher, one: dict[str, int]) -> None:
    row = hasher.row(one)
    assert row.dtype == np.int64
    assert row.shape == (hasher.width,)
    total = sum(one.values())
    assert np.abs(row).sum() <= total
    assert (np.abs(row).sum() - total) % 2 == 0, "what is lost is lost in pairs that cancel"


@given(hashers, names, st.integers(1, COUNT_MAX))
def test_one_name_is_one_column(hasher: FeatureHasher, name: str, count: int) -> None:
    column, sign = hasher.place(name)
    row = hasher.row({name: count})
    assert row[column] == sign * count
    assert np.count_nonzero(row) == 1


def test_columns_and_signs_are_spread_evenly_and_independently() -> None:
    hasher = FeatureHasher(16, KEY)
    places = [hasher.place(f"process-{i}") for i in range(8000)]
    table = np.zeros((16, 2))
    for column, sign in places:
        table[column, (sign + 1) // 2] += 1
    # 31 degrees of freedom: 62 is beyond the 99.9 % quantile, and the names are fixed.
    assert ((table - 250) ** 2 / 250).sum() < 62


def test_the_inner_product_is_right_on_the_average_over_keys() -> None:
    """Weinberger et al. 2009, lemma 2: unbiased, although 40 names share 8 columns."""
    rng = np.random.default_rng(0)
    one, other = ({f"n{i}": int(n) for i, n in enumerate(rng.integers(0, 20, 40))} for _ in range(2))
    exact = sum(one[name] * other[name] for name in one)
    products = []
    for number in range(600):
        hasher = FeatureHasher(8, hashlib.sha256(bytes([number % 256, number // 256])).digest())
        products.append(int(hasher.row(one) @ hasher.row(other)))
    assert abs(np.mean(products) - exact) < 4 * np.std(products) / len(products) ** 0.5


def test_the_mapping_never_changes() -> None:
    """Models outlive versions of this program: a name must stay where it was."""
    hasher = FeatureHasher(64, KEY)
    assert [hasher.place(name) for name in ("sshd", "mosquitto", "", "größe", "\udcff")] == PLACES
    assert hasher.columns[:2] == FIRST_COLUMNS


def test_another_key_is_another_mapping_and_another_schema() -> None:
    one, other = FeatureHasher(32, KEY), FeatureHasher(32, KEY[::-1])
    assert [one.place(f"n{i}") for i in range(20)] != [other.place(f"n{i}") for i in range(20)]
    schemas = [
        FeatureSchema(use_case="network", version=1, columns=h.columns, window_s=60.0, history=1) for h in (one, other)
    ]
    assert schemas[0].digest != schemas[1].digest
    assert KEY.hex() not in repr(one)


@pytest.mark.parametrize(("width", "key"), [(1, KEY), (257, KEY), (8, KEY[:15]), (8, bytes(65)), (8, b"")])
def test_widths_and_keys_out_of_range_are_refused(width: int, key: bytes) -> None:
    with pytest.raises(ConfigError, match="feature hashing: found"):
        FeatureHasher(width, key)


@pytest.mark.parametrize("count", [-1, COUNT_MAX + 1, 1.0, True, None])
def test_what_is_no_count_is_refused(count: object) -> None:
    with pytest.raises(ValueError, match="count of 'sshd'"):
        FeatureHasher(8, KEY).row({"sshd": count})  # type: ignore[dict-item]


def test_too_many_names_are_refused() -> None:
    with pytest.raises(ValueError, match="names"):
        FeatureHasher(8, KEY).row({str(i): 1 for i in range(NAMES_MAX + 1)})


@given(st.lists(st.integers(-(2**50), 2**50), min_size=1, max_size=20))
def test_the_signed_logarithm_is_odd_and_keeps_the_order(values: list[int]) -> None:
    x = np.array(sorted(values))
    assert np.array_equal(signed_log1p(-x), -signed_log1p(x))
    assert (np.diff(signed_log1p(x)) >= 0).all()
    assert np.allclose(np.expm1(np.abs(signed_log1p(x))), np.abs(x), rtol=1e-9)
