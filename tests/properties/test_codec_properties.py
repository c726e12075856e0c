"""Whatever bytes arrive, the codec returns a message or raises `PeerError`, and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import msgpack
from hypothesis import given
from hypothesis import strategies as st

from vedette_schemas import alert, codec
from vedette_schemas.alert import Alert, AlertModel, AlertState, FeatureReason, Severity
from vedette_schemas.command import Command
from vedette_schemas.errors import PeerError
from vedette_schemas.model import ReleaseTarget, decimal
from vedette_schemas.round import CheckIn, Plan, Roster, RoundOpen, Upload
from vedette_schemas.telemetry import DeviceState, Receipt, ReceiptItem, Telemetry

BINARY = (Telemetry, Command, Receipt, Plan, RoundOpen, CheckIn, Roster, Upload)
JSON = (Alert, DeviceState, ReleaseTarget)

finite = st.floats(allow_nan=False, allow_infinity=False)
ids = st.from_regex(r"[a-z0-9-]{1,60}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)

uploads = st.builds(
    Upload,
    id=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=120),
    task=st.from_regex(r"[a-z0-9-]{1,40}", fullmatch=True),
    round=st.integers(1, 2**31 - 1),
    attempt=st.integers(1, 16),
    gid=st.integers(0, 511),
    device=ids,
    transcript=st.binary(min_size=32, max_size=32),
    vector=st.binary(max_size=300),
    boxes=st.lists(st.binary(max_size=40), max_size=5).map(tuple),
    commitments=st.lists(st.binary(min_size=16, max_size=16), max_size=5).map(tuple),
    header=st.binary(min_size=64, max_size=64),
)
receipts = st.builds(
    Receipt,
    device=ids,
    items=st.lists(
        st.builds(ReceiptItem, id=texts, outcome=st.sampled_from(["accepted", "rejected"]), reason=texts),
        min_size=1,
        max_size=4,
    ).map(tuple),
)
times = st.datetimes().map(lambda t: t.strftime("%Y").zfill(4) + t.strftime("-%m-%dT%H:%M:%SZ"))
alerts = st.builds(
    Alert,
    id=ids,
    seq=st.integers(0, 10**6),
    time=times,
    site=ids,
    device=ids,
    entity=texts,
    detector=st.sampled_from(["network", "sensor", "behaviour"]),
    kind=st.sampled_from(["magnitude", "sustained"]),
    severity=st.sampled_from(Severity),
    confidence=st.floats(0, 1),
    score=st.floats(0, allow_nan=False, allow_infinity=False),
    p_value=st.floats(0, 1, exclude_min=True),
    threshold=st.floats(0, allow_nan=False, allow_infinity=False),
    window_start=times,
    window_end=times,
    features=st.lists(
        st.builds(FeatureReason, name=texts, value=finite, usual=st.tuples(finite, finite), share=st.floats(0, 1)),
        max_size=5,
    ).map(tuple),
    model=st.builds(
        AlertModel, task=texts, version=st.integers(0, 9999), digest=st.from_regex(r"[0-9a-f]{16}", fullmatch=True)
    ),
    state=st.sampled_from(AlertState),
    count=st.integers(1, 10**6),
    summary=st.text(st.characters(exclude_categories=["Cs"]), max_size=200),
    evidence=st.none() | texts,
)


@given(uploads | receipts)
def test_msgpack_gives_back_what_it_was_given(message: codec.Message) -> None:
    assert codec.unpack(type(message), codec.pack(message)) == message


@given(alerts)
def test_an_alert_is_never_longer_than_its_limit_and_keeps_who_and_when(message: Alert) -> None:
    try:
        data = alert.encode(message)
    except PeerError as refusal:
        assert "expected at most 1024" in str(refusal)  # noqa: PT017  names of many escapes alone are too long
        return
    assert len(data) <= alert.ALERT_BYTES_MAX
    back = alert.decode(data)
    changed = {"features": back.features, "evidence": back.evidence, "summary": back.summary}
    assert back == message.model_copy(update=changed)
    assert message.features[: len(back.features)] == back.features, "the weakest go first"
    assert message.summary.startswith(back.summary)
    assert not (back.features and back.summary != message.summary), "features go before the summary is cut"


@given(st.binary(max_size=300), st.sampled_from(BINARY))
def test_random_bytes_are_refused(data: bytes, cls: type[codec.Message]) -> None:
    with contextlib.suppress(PeerError):
        codec.unpack(cls, data)


@given(
    st.binary(max_size=300) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass")),
    st.sampled_from(JSON),
)
def test_random_bytes_are_refused_as_json(data: bytes, cls: type[codec.Message]) -> None:
    with contextlib.suppress(PeerError):
        codec.unpack_json(cls, data)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(uploads, st.data())
def test_a_field_of_any_other_value_is_refused_or_fits(message: Upload, data: st.DataObject) -> None:
    fields: dict[str, Any] = message.model_dump(mode="python")
    fields[data.draw(st.sampled_from([*fields, "another"]))] = data.draw(plain)
    with contextlib.suppress(PeerError):
        codec.unpack(Upload, msgpack.packb(fields, use_bin_type=True))


@st.composite
def mutations(draw: st.DrawFn, originals: st.SearchStrategy[bytes]) -> bytes:
    """A good message with some bytes changed, cut out, doubled or put in."""
    data = bytearray(draw(originals))
    changes: list[Callable[[int], None]] = [
        lambda at: data.__setitem__(slice(at, at + 1), draw(st.binary(min_size=1, max_size=1))),
        lambda at: data.__delitem__(slice(at, at + draw(st.integers(1, 8)))),
        lambda at: data.__setitem__(slice(at, at), data[at : at + draw(st.integers(1, 32))]),
        lambda at: data.__setitem__(slice(at, at), draw(st.binary(min_size=1, max_size=6))),
    ]
    for _ in range(draw(st.integers(1, 4))):
        draw(st.sampled_from(changes))(draw(st.integers(0, len(data))))
    return bytes(data)


@given(mutations((uploads | receipts).map(codec.pack)), st.sampled_from(BINARY))
def test_mutated_messages_are_decoded_or_refused(data: bytes, cls: type[codec.Message]) -> None:
    with contextlib.suppress(PeerError):
        codec.unpack(cls, data)


@given(mutations(alerts.map(codec.pack_json)))
def test_mutated_alerts_are_decoded_or_refused(data: bytes) -> None:
    with contextlib.suppress(PeerError):
        alert.decode(data)


@given(st.floats(-1e9, 1e9))
def test_a_figure_as_text_is_the_figure_to_six_places(value: float) -> None:
    text = decimal(value)
    assert abs(float(text) - value) <= 5.1e-7 * max(1.0, abs(value) * 1e-9)
    assert "e" not in text
    assert text != "-0"
