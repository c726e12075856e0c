"""Cohorts are exact, disjoint, drawn anew by each salt, and the same on both sides."""

from __future__ import annotations

import hashlib
import hmac

from hypothesis import given
from hypothesis import strategies as st

from vedette_core.crypto.cohorts import bucket, cohort, control_of, share_of
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
