"""Which release a node takes part with, while another one is active."""

from __future__ import annotations

import pytest
from test_update_machine import release

from vedette_device.round_models import RoundModels
from vedette_device.verified_release import VerifiedRelease, VerifiedTarget
from vedette_schemas.model import Variant
from vedette_schemas.round import Phase, RoundOpen


def weights(version: int) -> str:
    return f"{version:064x}"


def listed(*versions: int) -> dict[int, VerifiedRelease]:
    """Releases of which each was made from the one below."""
    found = {}
    for version in versions:
        plain = release(version, 9)
        of = next(iter(plain.targets.values()))
        custom = of.custom.model_copy(update={"parent": weights(version - 1), "variant": Variant.WEIGHTS})
        target = VerifiedTarget(f"network/{version}/weights", 10, weights(version), custom)
        found[version] = VerifiedRelease("network", version, (1, 9), {Variant.WEIGHTS: target})
    return found


def opened(version: int) -> RoundOpen:
    return RoundOpen(
        task="network",
        round=version + 1,
        attempt=1,
        model=weights(version),
        model_version=version,
        plan="00" * 32,
        phase=Phase.CHECKIN,
        checkin_until_s=0.0,
        deadline_s=0.0,
        groups=0,
    )


@pytest.fixture
def models() -> RoundModels:
    return RoundModels()


def test_before_any_round_it_is_the_active_release(models: RoundModels) -> None:
    known = listed(1, 2)
    assert models.choose(known[1], known).version == 1


def test_a_round_from_a_candidate_is_looked_for(models: RoundModels) -> None:
    known = listed(1, 2)
    models.choose(known[1], known)
    assert models.opened(opened(2))
    assert models.choose(known[1], known).version == 2
    assert not models.opened(opened(2))


def test_what_came_of_the_round_is_the_next_ones_model(models: RoundModels) -> None:
    models.opened(opened(1))
    known = listed(1, 2)
    assert models.choose(known[1], known).version == 2, "without waiting for the next round's state"
    assert not models.opened(opened(2))


def test_a_withdrawn_candidate_is_not_chosen_again(models: RoundModels) -> None:
    models.opened(opened(1))
    known = listed(1, 2)
    models.choose(known[1], known)
    assert models.opened(opened(1)), "the rounds went back"
    for _ in range(2):
        assert models.choose(known[1], known).version == 1
    assert not models.opened(opened(1))


def test_an_unlisted_model_leaves_the_active_one(models: RoundModels) -> None:
    models.opened(opened(7))
    known = listed(1, 2)
    assert models.choose(known[2], known).version == 2
