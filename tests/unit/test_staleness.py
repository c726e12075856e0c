"""Late updates: kept, discounted by their age, refused when they are too old, and summed with the fresh ones."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import msgpack
import numpy as np
import pytest

from vedette_core.learning.staleness import BufferedDelta, discount, discounted, usable
from vedette_schemas.errors import ConfigError, RefusedError

NETWORK = "ab" * 32


def late(norm: float = 1.0, version: int = 7) -> BufferedDelta:
    delta = np.random.default_rng(5).normal(size=300)
    delta *= norm / np.linalg.norm(delta)
    ranges = (("dense_1", -1.5, 2.0), ("input", 0.0, 1.0))
    return BufferedDelta(NETWORK, version, delta.astype(np.float32), 640, 0.5, 0.25, ranges)


def test_a_discount_is_the_square_root_of_the_age() -> None:
    assert [discount(tau) for tau in (0, 3, 8, 99)] == pytest.approx([1.0, 0.5, 1 / 3, 0.1])
    with pytest.raises(ValueError, match="-1"):
        discount(-1)


@pytest.mark.parametrize(
    ("version", "staleness_max", "expected"),
    [(7, 4, True), (8, 4, True), (11, 4, True), (12, 4, False), (6, 4, False), (7, 0, False), (8, 1, True)],
)
def test_only_a_release_that_is_not_too_far_on_has_it(version: int, staleness_max: int, expected: bool) -> None:
    assert usable(late(version=7), version, staleness_max) is expected


def test_a_late_update_counts_by_its_age() -> None:
    given = {"network": NETWORK, "staleness_max": 10, "clip_norm": 10.0}
    for version, factor in ((7, 1.0), (10, 0.5), (15, 1 / 3)):
        found = discounted(late(), model_version=version, **given)  # type: ignore[arg-type]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, late().delta * factor, rtol=1e-6)


def test_clipping_comes_before_the_discount() -> None:
    found = discounted(late(norm=40.0), network=NETWORK, model_version=10, staleness_max=4, clip_norm=2.0)
    assert np.linalg.norm(found) == pytest.approx(1.0, rel=1e-6), "2 · ½, and not the clip norm"
    np.testing.assert_allclose(found / np.linalg.norm(found), late(norm=1.0).delta, rtol=1e-4, atol=1e-6)


def test_what_no_round_may_have_is_refused_with_its_rule() -> None:
    given = {"staleness_max": 4, "clip_norm": 1.0}
    with pytest.raises(RefusedError, match="release 7, expected at most 4 releases before 12") as caught:
        discounted(late(), network=NETWORK, model_version=12, **given)  # type: ignore[arg-type]
    assert caught.value.rule == "stale"
    with pytest.raises(RefusedError, match="abababababab, expected cdcdcdcdcdcd") as caught:
        discounted(late(), network="cd" * 32, model_version=8, **given)  # type: ignore[arg-type]
    assert caught.value.rule == "model"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_not_kept(bad: float) -> None:
    for change in (
        {"delta": np.array([0.0, bad], np.float32)},
        {"loss_after": bad},
        {"loss_before": bad},
        {"ranges": (("input", 0.0, bad),)},
    ):
        with pytest.raises(RefusedError, match="not finite"):
            replace(late(), **change)


def test_it_survives_a_restart() -> None:
    kept = late()
    again = BufferedDelta.from_bytes(kept.to_bytes())
    np.testing.assert_array_equal(again.delta, kept.delta)
    others = [f.name for f in fields(BufferedDelta) if f.name != "delta"]
    assert [getattr(again, name) for name in others] == [getattr(kept, name) for name in others]
    assert again.norm == pytest.approx(1.0)


def _changed(**fields: object) -> bytes:
    plain = msgpack.unpackb(late().to_bytes())
    plain.update(fields)
    return bytes(msgpack.packb({key: value for key, value in plain.items() if value is not None}))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x01",
        msgpack.packb([1, 2]),
        late().to_bytes()[:-1],
        late().to_bytes() + b"\x00",
        _changed(format=2),
        _changed(format=None),
        _changed(more=1),
        _changed(delta=b"123"),
        _changed(delta=np.array([math.nan], "<f4").tobytes()),
        _changed(delta="text"),
        _changed(model_version=-1),
        _changed(model_version=True),
        _changed(num_examples=0),
        _changed(network=7),
        _changed(loss_after="much"),
        _changed(ranges=[["input", 0.0]]),
        _changed(ranges=[["input", 0.0, "high"]]),
        _changed(ranges=5),
    ],
)
def test_another_content_of_the_store_is_said_to_be_that(data: bytes) -> None:
    with pytest.raises(ConfigError, match=r"stored late update: found .*expected format 1; delete it"):
        BufferedDelta.from_bytes(data)
