"""Any line is a count or a refusal; no count is lost between a line and a window; names never break a score."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vedette_core.learning.hashing import FeatureHasher
from vedette_device.alert_record import ScoredWindow
from vedette_device.features.behaviour import BehaviourWindower
from vedette_device.features.windows import Window
from vedette_device.place_names import PlaceNames
from vedette_device.sources.count_lines import REFUSED, CountLines, TimedCount
from vedette_device.sources.counts import COUNT_MAX, NAME_CHARACTERS_MAX
from vedette_schemas.alert import AlertModel, FeatureReason
from vedette_schemas.errors import PeerError

HASHER = FeatureHasher(16, bytes(16))
MODEL = AlertModel(task="behaviour", version=1, digest="0" * 16)
NAMES = st.text(min_size=1, max_size=NAME_CHARACTERS_MAX)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=80),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
TEMPLATES = st.fixed_dictionaries({"time_s": JSON_VALUES, "name": JSON_VALUES, "count": JSON_VALUES})


def read(data: bytes, *, timed: bool) -> tuple[list[TimedCount], dict[str, int]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "counts"
        path.write_bytes(data)
        source = CountLines(path, timed=timed)
        found: list[TimedCount] = []
        while (counts := source.read(7)) is not None:
            found += counts
        counters = dict(source.counters())
        source.close()
    return found, counters


@settings(max_examples=150)
@given(st.binary(max_size=400) | TEMPLATES.map(lambda plain: str(plain).encode("utf-8", "replace")), st.booleans())
def test_any_bytes_are_counts_or_refusals(data: bytes, timed: bool) -> None:
    if data[:2] == b"\x1f\x8b" or data[:6] == b"\xfd7zXZ\x00":
        return  # a compressed file that is none is a fault of its own
    found, counters = read(data, timed=timed)
    assert counters["counts"] == len(found)
    blank = sum(not line.strip() for line in data.split(b"\n"))
    assert counters["lines"] - blank <= len(found) + sum(counters[reason] for reason in REFUSED) <= counters["lines"]


@settings(max_examples=150)
@given(st.lists(TEMPLATES, max_size=6))
def test_any_json_is_counts_or_refusals(documents: list[dict[str, object]]) -> None:
    data = "".join(json.dumps(d) + "\n" for d in documents).encode()
    found, counters = read(data, timed=True)
    assert len(found) + sum(counters[reason] for reason in REFUSED) == counters["lines"] == len(documents)
    for count in found:
        assert 0 < len(count.name) <= NAME_CHARACTERS_MAX
        assert count.name.encode()
        assert 0 <= count.count <= COUNT_MAX
        assert np.isfinite(count.time_s)


STREAM = st.lists(st.tuples(st.floats(0, 1_000), NAMES, st.integers(0, 1 << 20)), max_size=40)


@settings(max_examples=150)
@given(STREAM)
def test_every_count_is_in_exactly_one_window(stream: list[tuple[float, str, int]]) -> None:
    held: dict[float, dict[str, int]] = {}
    windower = BehaviourWindower("host", HASHER, lambda end_s, counts: held.__setitem__(end_s, dict(counts)))
    windows = windower.push(TimedCount(*each) for each in stream) + windower.flush()
    totals: dict[str, int] = {}
    for counts in held.values():
        for name, count in counts.items():
            totals[name] = totals.get(name, 0) + count
    expected: dict[str, int] = {}
    for _, name, count in stream:
        expected[name] = expected.get(name, 0) + count
    assert totals == expected
    ends = [window.end_s for window in windows]
    assert ends == sorted(set(ends))
    for window in windows:
        assert window.end_s - window.start_s == HASHER.schema.window_s
        assert np.array_equal(window.values, HASHER.row(held[window.end_s]).astype(np.float32))


COUNTS = st.dictionaries(NAMES, st.integers(0, 1 << 40), max_size=12)


@settings(max_examples=100)
@given(st.lists(COUNTS, min_size=9, max_size=14), st.lists(st.integers(0, 15), min_size=1, max_size=3, unique=True))
def test_names_never_break_a_score(past: list[dict[str, int]], places: list[int]) -> None:
    names = PlaceNames(HASHER)
    for i, counts in enumerate(past[:-1]):
        names.hold(60.0 * i, counts)
        names.take([Window("host", 60.0 * i - 60, 60.0 * i, HASHER.row(counts).astype(np.float32))], [], is_armed=False)
    last = past[-1]
    names.hold(9_000.0, last)
    reasons = tuple(FeatureReason(name=HASHER.columns[p], value=1.0, usual=(0.0, 1.0), share=0.3) for p in places)
    scored = ScoredWindow("host", 8_940.0, 9_000.0, 3.0, 0.01, 1.0, 1.0, 0.5, 100, reasons, MODEL)
    window = Window("host", 8_940.0, 9_000.0, np.zeros(16, np.float32))
    (named,) = names.take([window], [scored], is_armed=True)
    assert len(named.features) == len(reasons)
    for place, before, after in zip(places, reasons, named.features, strict=True):
        assert after.share == before.share
        assert after.name.isprintable()
        low, high = after.usual
        assert low <= high
        if after is not before:
            behind = [n for n in {*last, *(n for c in past for n in c)} if HASHER.place(n)[0] == place]
            shown = {"".join(c if c.isprintable() else "?" for c in n[:60]) for n in behind}
            assert after.name in shown


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from(["names", "table", "windows"]), JSON_VALUES | st.binary(max_size=64)))
def test_any_state_is_restored_or_refused(state: dict[str, object]) -> None:
    names = PlaceNames(HASHER)
    before = names.to_state()
    try:
        names.restore(state)
    except PeerError:
        assert names.to_state() == before
