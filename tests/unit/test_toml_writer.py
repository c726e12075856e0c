"""What is written reads back the same."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from vedette import toml_writer

keys = st.text(min_size=1, max_size=8)
scalars = (
    st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
)
values = st.recursive(
    scalars | st.lists(scalars, max_size=4),
    lambda inner: st.dictionaries(keys, inner, max_size=3) | st.lists(st.dictionaries(keys, scalars), min_size=1),
    max_leaves=12,
)


@given(st.dictionaries(keys, values, max_size=5))
def test_round_trip(table: dict[str, Any]) -> None:
    assert tomllib.loads(toml_writer.dumps(table)) == table


def test_none_is_left_out() -> None:
    assert toml_writer.dumps({"a": None, "b": 1}) == "b = 1\n"
