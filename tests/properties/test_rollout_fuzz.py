"""Whatever arrives as a rollout state or lies on disk as a record is read, or refused with a reason."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vedette_aggregator.rollout_requests import RequestBody
from vedette_aggregator.rollout_state import RolloutRecord, Tallies
from vedette_core.crypto.cohorts import bucket, cohort
from vedette_device.cohort_machine import CohortMachine, CohortRecord
from vedette_schemas import codec
from vedette_schemas.codec import Message
from vedette_schemas.errors import PeerError
from vedette_schemas.rollout import PPM, RolloutPhase, RolloutState

GOOD = RolloutState(
    task="network",
    rollout=1,
    seq=1,
    candidate=2,
    baseline=1,
    share_ppm=10_000,
    control_ppm=10_000,
    salt=bytes(16),
    state=RolloutPhase.RUNNING,
    issued_s=1.0,
    expires_s=2.0,
)
PLAIN = GOOD.model_dump(mode="python") | {"state": "running"}
VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.binary(max_size=20))


@settings(max_examples=300)
@given(st.sampled_from(sorted(PLAIN)), VALUES)
def test_a_field_of_anything_is_a_state_or_is_refused(name: str, value: object) -> None:
    try:
        data = msgpack.packb({**PLAIN, name: value})
    except (OverflowError, ValueError):
        return
    try:
        state = codec.unpack(RolloutState, data)
    except PeerError:
        return
    assert state.candidate > state.baseline
    assert state.share_ppm + state.control_ppm <= PPM


@pytest.mark.parametrize("cls", [RolloutState, CohortRecord, RolloutRecord, Tallies])
@given(data=st.binary(max_size=200), cut=st.integers(0, 150))
def test_any_bytes_are_refused_or_read(cls: type[Message], data: bytes, cut: int) -> None:
    for tried in (data, codec.pack(GOOD)[:cut] + data):
        try:
            codec.unpack(cls, tried)
        except PeerError:
            continue


@given(st.binary(max_size=200))
def test_a_request_of_any_bytes_is_refused_or_read(data: bytes) -> None:
    try:
        codec.unpack_json(RequestBody, data)
    except PeerError:
        return


@given(st.binary(max_size=200))
def test_a_device_with_any_record_starts(data: bytes) -> None:
    machine = CohortMachine("network", "gw-01", data)
    assert machine.key == "rollout/network"


@given(st.binary(min_size=16, max_size=16), st.from_regex(r"[a-z0-9-]{1,60}", fullmatch=True), st.integers(0, PPM // 2))
def test_a_device_is_in_one_cohort(salt: bytes, device: str, share: int) -> None:
    state = GOOD.model_copy(update={"salt": salt, "share_ppm": share, "control_ppm": share})
    place = bucket(salt, device)
    assert 0 <= place < PPM
    expected = "candidate" if place < share else "control" if place >= PPM - share else "rest"
    assert cohort(state, device) == expected
