"""Windows of named counts, their schema and scaling, and the names that are found behind a column again."""

from __future__ import annotations

from collections.abc import Mapping

import behaviour_parts as b
import numpy as np
import pytest

from vedette_core.learning.hashing import FeatureHasher, signed_log1p
from vedette_device.alert_record import ScoredWindow
from vedette_device.features.behaviour import STALE_S, STEP_COUNTS, BehaviourWindower
from vedette_device.features.scaling import CLIP, COUNT_FLOOR, RobustScaler, transforms_for
from vedette_device.features.windows import Window
from vedette_device.place_names import NAMES_KEPT_MAX, WINDOWS_KEPT, WINDOWS_MIN, PlaceNames
from vedette_device.sources.count_lines import TimedCount
from vedette_device.sources.counts import NAMES_MAX, NamedCounts
from vedette_schemas.alert import AlertModel, FeatureReason
from vedette_schemas.errors import ConfigError, PeerError
from vedette_schemas.features import FLOW_LOGS, NETWORK_FLOWS, behaviour_schema, known_as

T0 = b.START_S
MODEL = AlertModel(task="behaviour", version=1, digest="0" * 16)


def windower() -> tuple[BehaviourWindower, dict[float, Mapping[str, int]]]:
    held: dict[float, Mapping[str, int]] = {}
    return BehaviourWindower("host", b.hasher(), held.__setitem__), held


def counts(*pairs: tuple[float, str, float]) -> list[TimedCount]:
    return [TimedCount(T0 + at, name, count) for at, name, count in pairs]


# --- schema ---


def test_the_schema_is_the_hashers_and_tells_keys_apart() -> None:
    hasher, other = b.hasher(), FeatureHasher(64, bytes(32))
    assert hasher.schema == behaviour_schema(64, hasher.mark)
    assert hasher.schema.columns == hasher.columns
    assert (hasher.schema.use_case, hasher.schema.window_s, hasher.schema.input_shape) == ("behaviour", 60.0, (1, 64))
    assert f"lacks columns h00.{hasher.mark}" in hasher.schema.difference(other.schema)
    assert "and 59 more" in hasher.schema.difference(other.schema)


@pytest.mark.parametrize(("width", "mark"), [(1, "abcd"), (257, "abcd"), (64, "abc"), (64, "ABCD"), (64, "abcd\n")])
def test_a_schema_that_cannot_be_is_refused(width: int, mark: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        behaviour_schema(width, mark)


def test_published_schemas_are_known_by_their_digest() -> None:
    assert (known_as(NETWORK_FLOWS.digest), known_as(FLOW_LOGS.digest)) == (" (packets)", " (flow-logs)")
    assert known_as(b.hasher().schema.digest) == ""


# --- scaling ---


def test_hashed_columns_are_scaled_in_logarithms_that_keep_the_sign() -> None:
    schema = behaviour_schema(3, "abcd")
    assert transforms_for(schema) == ("signed_log1p",) * 3
    rng = np.random.default_rng(0)
    rows = np.stack([-rng.poisson(200, 300), rng.poisson(20, 300), np.zeros(300)], axis=1).astype(np.float64)
    scaler = RobustScaler.fit(schema, rows)
    assert scaler.centre[0] == pytest.approx(-np.log1p(200), abs=0.02)
    assert scaler.scale[2] == COUNT_FLOOR
    assert np.array_equal(scaler.transform(rows), signed_log1p(rows))
    scaled = scaler.scale_rows(rows)
    assert scaler.transformed_of(scaled) == pytest.approx(scaler.transform(rows), abs=1e-5)
    assert scaler.unscale(scaled) == pytest.approx(rows, rel=1e-4, abs=1e-4)
    assert scaler.scale_rows([[200.0, 20.0, -50.0]])[0].tolist() == [CLIP, pytest.approx(0, abs=1), -CLIP]
    again = RobustScaler.from_dict(schema, scaler.to_dict())
    assert np.array_equal(again.scale_rows(rows), scaled)


# --- windows ---


def test_counts_of_a_minute_are_added_and_hashed() -> None:
    made, held = windower()
    assert made.push(counts((5, "a", 2), (50, "a", 1), (59.9, "b", 4))) == []
    (window,) = made.push(counts((60, "a", 9)))
    assert (window.entity, window.start_s, window.end_s) == ("host", T0, T0 + 60)
    assert held == {T0 + 60: {"a": 3, "b": 4}}
    assert np.array_equal(window.values, b.hasher().row({"a": 3, "b": 4}))
    assert window.values.dtype == np.float32


def test_only_the_counts_own_times_matter() -> None:
    rng = np.random.default_rng(4)
    stream = counts(*((float(t), f"n{rng.integers(9)}", 1.0) for t in np.sort(rng.uniform(0, 900, 300))))
    whole = windower()[0]
    expected = whole.push(stream) + whole.flush()
    for size in (1, 7, 64):
        cut = windower()[0]
        found = [w for i in range(0, len(stream), size) for w in cut.push(stream[i : i + size])] + cut.flush()
        assert [(w.end_s, w.values.tolist()) for w in found] == [(w.end_s, w.values.tolist()) for w in expected]


def test_a_minute_without_counts_is_no_window() -> None:
    made, _ = windower()
    ends = [w.end_s - T0 for w in made.push(counts((0, "a", 1), (200, "a", 1), (250, "a", 1)))]
    assert ends == [60, 240]
    assert made.advance(T0 + 299.9) == []
    assert [w.end_s - T0 for w in made.advance(T0 + 300)] == [300]
    assert made.advance(T0 + 900) == made.flush() == []


def test_late_counts_are_kept_and_stale_ones_left_out_until_the_clock_is_believed() -> None:
    made, held = windower()
    made.push(counts((0, "a", 1), (70, "a", 1), (59, "late", 1)))
    assert made.counters()["late"] == 1
    made.push(counts((90_000, "far", 1)))
    assert held[T0 + 120] == {"a": 1, "late": 1}
    stale = counts(*((90_000 - STALE_S - 60, "a", 1.0) for _ in range(STEP_COUNTS)))
    made.push(stale[:-1])
    assert (made.counters()["stale"], made.counters()["clock_steps"]) == (STEP_COUNTS - 1, 0)
    made.push(stale[-1:])
    assert made.counters()["clock_steps"] == 1
    assert held[T0 + 90_060] == {"far": 1}
    assert made.flush()[0].end_s < T0 + 90_000


def test_a_minute_of_endless_names_is_bounded() -> None:
    made, held = windower()
    made.push(counts(*((1.0, f"n{i}", 1.0) for i in range(NAMES_MAX + 5)), (2.0, "n0", 1.0)))
    made.flush()
    assert made.counters()["names_limit"] == 5
    assert len(held[T0 + 60]) == NAMES_MAX
    assert held[T0 + 60]["n0"] == 2


# --- names ---


def fed(names: PlaceNames, index: int, found: Mapping[str, int], p: float | None, *columns: str) -> ScoredWindow | None:
    """One window through, with a p-value if it was scored, and reasons that name these columns."""
    end_s = T0 + 60.0 * (index + 1)
    names.hold(end_s, dict(found))
    window = Window("host", end_s - 60, end_s, b.hasher().row(found).astype(np.float32))
    reasons = tuple(FeatureReason(name=c, value=-5.0, usual=(-1.0, 0.0), share=0.5) for c in columns)
    scored = ScoredWindow("host", end_s - 60, end_s, 3.0, p or 1.0, 1.0, 1.0, 0.5, 100, reasons, MODEL)
    result = names.take([window], [scored] if p is not None else [], is_armed=p is not None)
    return result[0] if result else None


def column(name: str) -> str:
    return str(b.hasher().columns[b.hasher().place(name)[0]])


def settled(windows: int = 40) -> PlaceNames:
    names, rng = PlaceNames(b.hasher()), np.random.default_rng(0)
    for i in range(windows):
        fed(names, i, b.minute(rng), None)
    return names


def test_a_reason_names_what_is_behind_its_column() -> None:
    names = settled()
    found = {"process.mosquitto": 1, "process.xmrig": 7, "topic.tank": 500}
    scored = fed(names, 50, found, 1e-3, column("process.xmrig"), column("topic.tank"), column("packets_in"))
    assert scored is not None
    new, topic, packets = scored.features
    assert (new.name, new.value, new.usual, new.share) == ("process.xmrig", 7.0, (0.0, 0.0), 0.5)
    assert (topic.name, topic.value) == ("topic.tank", 500.0)
    assert 90 < topic.usual[0] < 120 < topic.usual[1] < 150
    assert (packets.name, packets.value) == ("packets_in", 0.0)  # what is missing is a reason, too
    assert packets.usual[0] > 800


def test_of_names_that_share_a_column_the_one_that_moved_is_named() -> None:
    narrow = FeatureHasher(2, b.KEY)
    first, second = [n for n in (f"n{i}" for i in range(50)) if narrow.place(n)[0] == 0][:2]
    names = PlaceNames(narrow)
    for i in range(20):
        names.hold(float(i), {first: 100 + i % 3, second: 4})
        names.take([Window("host", i - 1.0, float(i), np.zeros(2, np.float32))], [], is_armed=False)
    names.hold(99.0, {first: 101, second: 40})
    reason = FeatureReason(name=narrow.columns[0], value=1.0, usual=(0.0, 0.0), share=1.0)
    scored = ScoredWindow("host", 39.0, 99.0, 3.0, 1e-3, 1.0, 1.0, 0.5, 100, (reason,), MODEL)
    (named,) = names.take([Window("host", 39.0, 99.0, np.zeros(2, np.float32))], [scored], is_armed=True)
    assert (named.features[0].name, named.features[0].value, named.features[0].usual) == (second, 40.0, (4.0, 4.0))


def test_what_was_remarkable_never_becomes_usual() -> None:
    names = settled()
    for i in range(2 * WINDOWS_KEPT):
        fed(names, 100 + i, {"process.mosquitto": 1, "process.xmrig": 7}, 1e-3)
    scored = fed(names, 9_000, {"process.xmrig": 7}, 1e-3, column("process.xmrig"))
    assert scored is not None
    assert scored.features[0].usual == (0.0, 0.0)
    for i in range(WINDOWS_KEPT):
        fed(names, 10_000 + i, {"process.xmrig": 7}, 0.5)
    scored = fed(names, 20_000, {"process.xmrig": 9}, 1e-3, column("process.xmrig"))
    assert scored is not None
    assert scored.features[0].usual == (7.0, 7.0)


def test_before_anything_is_known_the_column_is_named() -> None:
    names = settled(WINDOWS_MIN - 1)
    scored = fed(names, 50, {"process.xmrig": 7}, 1e-3, column("process.xmrig"))
    assert scored is not None
    assert scored.features[0].name == column("process.xmrig")


def test_names_are_bounded_and_printable() -> None:
    names = settled()
    for i in range(NAMES_KEPT_MAX + 50):
        fed(names, 100 + i, {f"flood{i}": 1, "process.mosquitto": 1}, None)
    assert len(names) == NAMES_KEPT_MAX
    hostile = "process.\x1b[31m" + "x" * 50
    scored = fed(names, 5_000, {hostile: 7}, 1e-3, column(hostile))
    assert scored is not None
    assert scored.features[0].name.isprintable()
    assert len(scored.features[0].name) <= 60
    still = fed(names, 5_001, {"process.mosquitto": 40}, 1e-3, column("process.mosquitto"))
    assert still is not None
    assert still.features[0].usual == (1.0, 1.0), "a name that is there all the time is not pushed out by a flood"


def test_names_go_on_after_a_restart() -> None:
    names = settled()
    again = PlaceNames(b.hasher())
    again.restore(names.to_state())
    found = [fed(n, 50, {"topic.tank": 500}, 1e-3, column("topic.tank")) for n in (names, again)]
    assert found[0] == found[1]
    assert found[0] is not None
    assert found[0].features[0].name == "topic.tank"


@pytest.mark.parametrize(
    "damage",
    [
        {"names": ["a", "a"]},
        {"names": ["a"] * 2000},
        {"table": b"123"},
        {"windows": -1},
        {"table": np.full((5, WINDOWS_KEPT), np.nan, "<f4").tobytes()},
    ],
)
def test_damaged_names_are_refused_and_change_nothing(damage: dict[str, object]) -> None:
    names = settled()
    before = names.to_state()
    with pytest.raises(PeerError, match="names of places"):
        names.restore({**before, **damage})
    assert names.to_state() == before


def test_a_window_of_another_source_is_left_alone() -> None:
    names = settled()
    reason = FeatureReason(name="level_m", value=1.0, usual=(0.0, 0.0), share=1.0)
    scored = ScoredWindow("host", 0.0, 1.0, 3.0, 1e-3, 1.0, 1.0, 0.5, 100, (reason,), MODEL)
    assert names.take([], [scored], is_armed=True) == [scored]


def test_what_an_armed_detector_left_out_is_not_learnt_twice() -> None:
    names = settled()
    before = names.to_state()
    names.hold(T0 + 60.0, {"topic.tank": 40})
    window = Window("host", T0, T0 + 60.0, np.zeros(64, np.float32))
    assert names.take([window], [], is_armed=True) == []
    assert names.to_state() == before
    names.hold(T0 + 60.0, {"topic.tank": 40})
    names.take([window], [], is_armed=False)
    assert names.to_state() != before


def test_a_window_of_summed_counts_is_rounded_and_capped() -> None:
    made, held = windower()
    made.window(NamedCounts(T0, T0 + 60, {"a": 2.6, "b": float(1 << 40)}))
    assert held[T0 + 60] == {"a": 3, "b": 1 << 40}
