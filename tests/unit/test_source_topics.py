"""Readings from MQTT messages: what they decode to, and how they line up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vedette_device.sources.topics import (
    BACKWARDS_SAMPLES_MAX,
    CHANNELS_MAX,
    PAYLOAD_BYTES_MAX,
    ROWS_MAX,
    ChannelTopic,
    Sample,
    SampleAligner,
    TopicDecoder,
)
from vedette_schemas.errors import ConfigError

DECODER = [
    ChannelTopic("level", "plant/tank/+", "$.level"),
    ChannelTopic("flow", "plant/#", '$.meter[1]["flow m³/h"]', "$.at"),
    ChannelTopic("valve", "plant/valve", "$"),
]


def test_paths_times_and_bare_numbers() -> None:
    decoder = TopicDecoder(DECODER)
    assert decoder.channels == ("level", "flow", "valve")
    payload = '{"level": 1.5, "meter": [0, {"flow m³/h": 7}], "at": 90}'.encode()
    assert decoder.decode("plant/tank/1", payload, 100.0) == [Sample("level", 100.0, 1.5), Sample("flow", 90.0, 7.0)]
    assert decoder.decode("plant/valve", b"true", 101.0) == [Sample("valve", 101.0, 1.0)]
    assert decoder.counters()["samples"] == 3
    assert decoder.counters()["path_missing"] == 2  # the valve's message has no flow and no time of it


@pytest.mark.parametrize(
    ("topic", "payload", "reason"),
    [
        ("other", b"1", "unmatched_topic"),
        ("plant/tank/1/x/$", b"\xff", "not_json"),
        ("plant/valve", b"[" * 60_000, "not_json"),
        ("plant/valve", b" " * (PAYLOAD_BYTES_MAX + 1), "payload_too_large"),
        ("plant/valve", b'"open"', "not_a_number"),
        ("plant/valve", b"NaN", "not_finite"),
        ("plant/valve", b"1e999", "not_finite"),
        ("plant/valve", b"1" + b"0" * 400, "not_finite"),
        ("plant/tank/1", b'{"level": null}', "not_a_number"),
        ("plant/tank/1", b"{}", "path_missing"),
        ("plant/tank/1", b"[]", "path_missing"),
    ],
)
def test_what_cannot_be_read_is_counted(topic: str, payload: bytes, reason: str) -> None:
    decoder = TopicDecoder(DECODER)
    assert decoder.decode(topic, payload, 1.0) == []
    assert decoder.counters()[reason] >= 1


@pytest.mark.parametrize("moment", ["1e308", "-1e308", "-1", "253402300800", "1700000000000"])
def test_a_sensors_time_that_no_calendar_has_is_counted_and_reaches_no_grid(moment: str) -> None:
    """Found by ``bench/fuzz.py``: the number of the row at 1e308 s overflowed."""
    decoder = TopicDecoder([ChannelTopic("level", "a", "$.v", "$.t")])
    samples = decoder.decode("a", f'{{"v": 1, "t": {moment}}}'.encode(), 5.0)
    assert samples == []
    assert decoder.counters()["time"] == 1
    (last,) = decoder.decode("a", b'{"v": 1, "t": 253402300799}', 5.0)
    assert len(SampleAligner(["level"], period_s=0.001, age_max_s=1.0).push([last])) == 0


@given(st.binary(max_size=64), st.text(max_size=20))
def test_no_message_breaks_the_decoder(payload: bytes, topic: str) -> None:
    decoder = TopicDecoder([ChannelTopic("a", "#", "$.a[0]"), ChannelTopic("b", "+", "$")])
    for sample in decoder.decode(topic, payload, 1.0):
        assert abs(sample.value) < float("inf")


@pytest.mark.parametrize(
    ("topic_filter", "topic", "matches"),
    [
        ("a/+/c", "a/b/c", True),
        ("a/+/c", "a/b/d", False),
        ("a/+", "a/b/c", False),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("#", "a/b", True),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("$SYS/+", "$SYS/x", True),
        ("a", "a/", False),
    ],
)
def test_topic_filters(topic_filter: str, topic: str, matches: bool) -> None:
    decoder = TopicDecoder([ChannelTopic("a", topic_filter)])
    assert bool(decoder.decode(topic, b"1", 0.0)) is matches


@pytest.mark.parametrize(
    "channels",
    [
        [],
        [ChannelTopic("a", "x"), ChannelTopic("a", "y")],
        [ChannelTopic("a", "x/#/y")],
        [ChannelTopic("a", "x+")],
        [ChannelTopic("a", "")],
        [ChannelTopic("a", "x", "level")],
        [ChannelTopic("a", "x", "$.")],
        [ChannelTopic("a", "x", "$[x]")],
        [ChannelTopic("a", "x", "$", "when")],
        [ChannelTopic(str(i), "x") for i in range(CHANNELS_MAX + 1)],
    ],
)
def test_settings_that_cannot_be(channels: list[ChannelTopic]) -> None:
    with pytest.raises(ConfigError):
        TopicDecoder(channels)


def aligner(age_max_s: float = 3.0) -> SampleAligner:
    return SampleAligner(["a", "b"], period_s=1.0, age_max_s=age_max_s)


def test_rows_stand_on_the_grid_and_hold_the_last_value() -> None:
    subject = aligner()
    batch = subject.push([Sample("a", 0.2, 1), Sample("b", 0.4, 10), Sample("a", 2.1, 2)])
    assert batch.time_s.tolist() == [1.0, 2.0]
    assert batch.values.tolist() == [[1, 10], [1, 10]]
    batch = subject.push([Sample("b", 3.0, 30), Sample("a", 3.0, 3), Sample("b", 3.5, 40)])
    assert (batch.time_s.tolist(), batch.values.tolist()) == ([3.0], [[3, 30]])


def test_a_value_that_is_too_old_gives_a_hole_and_no_guess() -> None:
    subject = aligner(age_max_s=2.0)
    subject.push([Sample("a", 0.5, 1), Sample("b", 0.5, 10)])
    batch = subject.push([Sample("a", float(i), i) for i in range(1, 8)])
    assert batch.time_s.tolist() == [1.0, 2.0]
    assert subject.counters()["stale_rows"] == 4
    batch = subject.push([Sample("b", 7.5, 70), Sample("a", 8.5, 80)])
    assert (batch.time_s.tolist(), batch.values.tolist()) == ([8.0], [[7, 70]])


def test_no_row_before_every_channel_has_spoken_and_silence_can_be_passed() -> None:
    subject = aligner()
    assert len(subject.push([Sample("a", float(i), i) for i in range(5)])) == 0
    subject.push([Sample("b", 4.5, 9)])
    assert subject.advance(6.5).time_s.tolist() == [5.0, 6.0]
    assert subject.advance(1e9).time_s.tolist() == [7.0]  # then a (from 4.0) is too old
    assert subject.counters()["late_samples"] == 0


def test_late_and_unknown_samples_are_counted_and_a_clock_set_back_starts_anew() -> None:
    subject = aligner()
    subject.push([Sample("a", 100.0, 1), Sample("b", 100.0, 1), Sample("a", 101.5, 1), Sample("c", 1.0, 1)])
    assert len(subject.push([Sample("b", 99.0, 5)])) == 0
    assert (subject.counters()["late_samples"], subject.counters()["unknown_channel"]) == (1, 1)
    assert len(subject.push([Sample("a", 10.0, 2)] * BACKWARDS_SAMPLES_MAX)) == 0
    batch = subject.push([Sample("b", 10.5, 3), Sample("a", 11.5, 4)])
    assert subject.counters()["clock_steps"] == 1
    assert (batch.time_s.tolist(), batch.values.tolist()) == ([11.0], [[2, 3]])


def test_a_long_gap_is_cut_to_a_bounded_number_of_rows() -> None:
    subject = SampleAligner(["a"], period_s=0.001, age_max_s=1e6)
    subject.push([Sample("a", 0.0, 1)])
    assert len(subject.push([Sample("a", 1e3, 2)])) == ROWS_MAX
    assert subject.counters()["rows_cut"] > 0


@pytest.mark.parametrize(("period_s", "age_max_s"), [(0, 1), (-1, 1), (float("nan"), 1), (1, -1), (1, float("inf"))])
def test_numbers_that_cannot_be(period_s: float, age_max_s: float) -> None:
    with pytest.raises(ConfigError):
        SampleAligner(["a"], period_s=period_s, age_max_s=age_max_s)
