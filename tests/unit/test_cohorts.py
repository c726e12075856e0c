"""Cohorts are exact, disjoint, drawn anew by each salt, and the same on both sides."""

from __future__ import annotations

import hashlib
import hmac

from hypothesis import given
from hypothesis import strategies as st

from vedette_core.crypto.cohorts import bucket, cohort, control_of, members_of, share_of
from vedette_schemas.rollout import PPM, RolloutPhase, RolloutPin, RolloutState

SALT = bytes(range(16))


def state(share: int, control: int, pins: tuple[str, ...] = ()) -> RolloutState:
    return RolloutState(
        task="network",
        rollout=1,
        seq=1,
        candidate=2,
        baseline=1,
        share_ppm=share,
        control_ppm=control,
        salt=SALT,
        state=RolloutPhase.RUNNING,
        issued_s=0.0,
        expires_s=1.0,
        pins=tuple(RolloutPin(device=device, version=1) for device in pins),
    )


def test_a_bucket_is_what_the_protocol_says() -> None:
    digest = hmac.digest(SALT, b"vedette-rollout-1\0gw-01", hashlib.sha256)
    assert bucket(SALT, "gw-01") == int.from_bytes(digest[:8], "big") * 1_000_000 // 2**64
    assert bucket(SALT, "gw-01") != bucket(bytes(16), "gw-01")


@given(st.integers(2, 80), st.integers(1, 40), st.binary(min_size=16, max_size=16))
def test_no_more_than_wanted_are_below_a_share(count: int, wanted: int, salt: bytes) -> None:
    devices = [f"gw-{i}" for i in range(count)]
    wanted = min(wanted, count // 2)
    share, control = share_of(salt, devices, wanted), control_of(salt, devices, wanted)
    below = {d for d in devices if bucket(salt, d) < share}
    above = {d for d in devices if bucket(salt, d) >= PPM - control}
    assert len(below) <= wanted
    assert len(above) <= wanted
    if len({bucket(salt, d) for d in devices}) == count:
        assert (len(below), len(above)) == (wanted, wanted)


def test_all_are_in_a_whole_share() -> None:
    assert share_of(SALT, ["a", "b"], 2) == PPM
    assert share_of(SALT, [], 0) == PPM, "of nobody known, everybody is"


def test_cohorts() -> None:
    devices = [f"gw-{i}" for i in range(40)]
    now = state(share_of(SALT, devices, 10), control_of(SALT, devices, 10), pins=("gw-3",))
    found = [cohort(now, device) for device in devices if device != "gw-3"]
    assert cohort(now, "gw-3") == "pinned"
    assert 9 <= found.count("candidate") <= 10
    assert 9 <= found.count("control") <= 10
    assert found.count("rest") == 39 - found.count("candidate") - found.count("control")


def test_where_members_are_named_nobody_else_below_the_share_is_one() -> None:
    devices = [f"gw-{i}" for i in range(40)]
    whole = state(PPM, 0)
    assert {cohort(whole, device) for device in devices} == {"candidate"}
    named = whole.model_copy(update={"members": ("gw-7", "gw-9")})
    assert {d for d in devices if cohort(named, d) == "candidate"} == {"gw-7", "gw-9"}
    assert cohort(named, "gw-8") == "rest"
    none = named.model_copy(update={"share_ppm": 0})
    assert cohort(none, "gw-7") == "rest", "a name gives nothing above the share"


@given(st.integers(2, 40), st.integers(0, 40), st.sets(st.integers(0, 60), max_size=10), st.integers(0, PPM))
def test_named_cohorts_grow_by_the_lowest_and_lose_nobody(count: int, wanted: int, old: set[int], below: int) -> None:
    devices, before = [f"gw-{i}" for i in range(count)], sorted(f"gw-{i}" for i in old)
    found = members_of(SALT, devices, wanted, before, below)
    assert set(before) <= set(found)
    assert len(found) <= max(wanted, len(before))
    new = set(found) - set(before)
    assert all(bucket(SALT, d) < below for d in new)
    left = {d for d in devices if d not in found and bucket(SALT, d) < below}
    assert len(found) >= wanted or not left
    assert not new or not left or max(bucket(SALT, d) for d in new) <= min(bucket(SALT, d) for d in left)
    assert found == sorted(set(found))
