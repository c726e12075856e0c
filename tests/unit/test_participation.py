"""What carries trainings out: late updates are kept and given once, costs are counted, nothing happens twice."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from group_parts import Rest
from participant_parts import (
    NOW,
    TASK,
    checkins,
    of_step,
    upload_body,
    uploads,
)
from participation_parts import LATE, NETWORK, NO_LIMITS, OUTLINE, ROWS, TENSORS, PickyStore, World, a_plan

from vedette_core.learning.local_training import TrainingResult
from vedette_core.learning.staleness import BufferedDelta, discount
from vedette_core.runtime.storage import Database, StateStore
from vedette_core.secagg.committee import CloseReceived, OpeningReceived
from vedette_device import participation
from vedette_device.budget_book import KEY
from vedette_device.participation import WEIGHTS_KEPT, new_key
from vedette_device.participation_budget import ParticipationBudget, ParticipationLimits
from vedette_device.verified_release import VerifiedRelease
from vedette_schemas.errors import ConfigError, RefusedError
from vedette_schemas.round import Phase


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The site's certificates are of another day than this one."""
    monkeypatch.setattr(participation, "time", SimpleNamespace(time=lambda: NOW, thread_time=time.thread_time))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PickyStore]:
    database = Database(tmp_path / "state.db")
    yield PickyStore(database)
    database.close()


def near(found: np.ndarray, expected: np.ndarray) -> bool:
    """The same but for rounding to 8 bits: a few hundredths of it at these sizes."""
    return bool(np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected))


# -- in time ----------------------------------------------------------------------------------------------------------


def test_what_came_in_time_is_given_and_never_kept(store: PickyStore) -> None:
    async def scenario() -> World:
        world = await World(store).begin()
        await world.give(1)
        await world.open(Phase.UNMASK, 1)
        await world.open(Phase.DONE, 1)
        return world

    world = asyncio.run(scenario())
    assert len(uploads(world.effects)) == 1
    assert world.kept() is None
    assert checkins(world.effects)[0].cohort == "line-a"
    assert checkins(world.effects)[0].sketch == OUTLINE


def test_an_upload_that_is_written_while_its_round_ends_is_not_kept_as_late(store: PickyStore) -> None:
    """The machine took it: were it kept, too, a later round would have the same training a second time."""

    async def scenario() -> World:
        world = await World(store).begin()
        train = await world.to_training(1)
        world.go_on = asyncio.Event()
        training = asyncio.create_task(world.participation.train(train))
        await world.before_write.wait()
        over = asyncio.create_task(world.open(Phase.DONE, 1))
        world.go_on.set()
        await asyncio.gather(training, over)
        return world

    world = asyncio.run(scenario())
    assert len(uploads(world.effects)) == 1
    assert world.participation.machine.used == (1, 1)
    assert world.kept() is None


def test_a_masked_contribution_has_boxes_for_everybody(store: PickyStore) -> None:
    async def scenario() -> World:
        world = await World(store, a_plan(masked=True)).begin()
        await world.participation.train(await world.to_training(1))
        return world

    body = upload_body(uploads(asyncio.run(scenario()).effects)[0])
    assert (len(body.boxes), len(body.commitments)) == (8, 8)


def test_weights_are_handed_on_with_their_release_and_fetched_once(store: PickyStore) -> None:
    async def scenario() -> None:
        world = await World(store).begin()
        await world.release(0)
        await world.release(1)
        assert [version for version, _ in world.weights_seen] == [0, 0, 1]
        assert hashlib.sha256(world.weights_seen[-1][1]).hexdigest() == world.model
        assert sum(path.endswith("/weights") for path in world.trust.downloads) == 2

    asyncio.run(scenario())


def test_keys_are_never_the_same() -> None:
    made = [new_key() for _ in range(20)]
    assert len({k.private for k in made} | {k.public for k in made}) == 40


# -- late -------------------------------------------------------------------------------------------------------------


def test_what_came_too_late_is_given_to_a_later_round_once_and_counts_less(store: PickyStore) -> None:
    async def scenario() -> tuple[World, BufferedDelta | None, np.ndarray]:
        world = await World(store).begin()
        await world.miss(1)
        assert uploads(world.effects) == []
        kept = world.kept()
        await world.release(1)
        given = await world.give(2)
        return world, kept, given

    world, kept, given = asyncio.run(scenario())
    assert kept is not None
    assert (kept.model_version, kept.num_examples, kept.network) == (0, 128, NETWORK.spec.digest)
    assert kept.norm < world.plan.update.clip_norm
    assert near(given, discount(1) * kept.delta)
    assert world.detector.asked == 1, "round 2 cost no training"
    assert world.kept() is None, "it is given once"


def test_what_came_behind_the_release_of_the_own_shares_is_kept_too(store: PickyStore) -> None:
    """A device that opened its group's sum gives no upload for it any more, whatever round state it has seen."""

    def trained(seed: int) -> TrainingResult:
        return TrainingResult(
            np.zeros(NETWORK.layout.size, np.float32), 2.0, 1.0, 128, dict.fromkeys(TENSORS, (0.0, 1.0))
        )

    async def scenario() -> World:
        world = await World(store, a_plan(masked=True)).begin()
        train = await world.to_training(1)
        rest = Rest(train.roster, train.plan, None, made_of=trained)
        await world.participation.handle(CloseReceived(rest.close()))
        rest.take(of_step(world.effects, "vote")[0].payload)
        rest.vote()
        await world.participation.handle(OpeningReceived(rest.opening()))
        assert len(of_step(world.effects, "shares")) == 1
        await world.participation.train(train)
        return world

    world = asyncio.run(scenario())
    assert uploads(world.effects) == []
    assert world.kept() is not None


def test_after_a_late_update_a_device_trains_anew(store: PickyStore) -> None:
    async def scenario() -> World:
        world = await World(store).begin()
        await world.miss(1)
        await world.give(2)
        await world.open(Phase.DONE, 2)
        await world.give(3)
        return world

    world = asyncio.run(scenario())
    assert world.detector.asked == 2
    assert len(uploads(world.effects)) == 2


def test_a_late_update_survives_a_restart(store: PickyStore) -> None:
    async def before() -> None:
        await (await World(store).begin()).miss(1)

    async def after() -> World:
        world = await World(store).begin(1)
        await world.give(2)
        return world

    asyncio.run(before())
    world = asyncio.run(after())
    assert world.detector.asked == 0
    assert len(uploads(world.effects)) == 1
    assert world.kept() is None


def test_an_update_that_is_late_twice_does_not_become_younger(store: PickyStore) -> None:
    """It is kept as it was: of its release, and discounted for all of its age when it is given at last."""

    async def scenario() -> tuple[World, BufferedDelta, np.ndarray]:
        world = await World(store).begin()
        await world.miss(1)
        first = world.kept()
        await world.release(1)
        await world.miss(2)
        second = world.kept()
        assert first is not None
        assert second is not None
        assert second.to_bytes() == first.to_bytes()
        await world.release(2)
        return world, first, await world.give(3)

    world, kept, given = asyncio.run(scenario())
    assert near(given, discount(2) * kept.delta)
    assert world.detector.asked == 1


def test_an_update_that_is_too_old_is_thrown_away(store: PickyStore) -> None:
    async def scenario() -> World:
        world = await World(store, a_plan(staleness_max=1)).begin()
        await world.miss(1)
        await world.release(2)
        await world.give(2)
        return world

    world = asyncio.run(scenario())
    assert world.detector.asked == 2
    assert world.kept() is None


def test_an_update_of_another_network_is_thrown_away(store: PickyStore) -> None:
    other = BufferedDelta("0" * 64, 0, np.ones(NETWORK.layout.size, np.float32), 128, 2.0, 1.0)
    store.put(LATE, other.to_bytes())

    async def scenario() -> World:
        world = await World(store).begin()
        await world.give(1)
        return world

    world = asyncio.run(scenario())
    assert world.detector.asked == 1
    assert world.kept() is None


def test_where_the_plan_wants_no_late_updates_none_is_kept(store: PickyStore) -> None:
    async def scenario() -> World:
        world = await World(store, a_plan(staleness_max=0)).begin()
        await world.miss(1)
        return world

    assert asyncio.run(scenario()).kept() is None


def test_a_full_disk_does_not_lose_a_late_update_while_the_device_runs(store: PickyStore) -> None:
    async def scenario() -> World:
        world = await World(store).begin()
        store.full = (LATE,)
        await world.miss(1)
        store.full = ()
        assert world.kept() is None
        await world.give(2)
        return world

    assert asyncio.run(scenario()).detector.asked == 1


def test_a_late_update_that_cannot_be_erased_is_not_given(store: PickyStore) -> None:
    """A crash behind the upload would find it on disk again, and give it a second time."""

    async def scenario() -> World:
        world = await World(store).begin()
        await world.miss(1)
        store.full = (LATE,)
        train = await world.to_training(2)
        await world.participation.train(train)
        return world

    world = asyncio.run(scenario())
    assert uploads(world.effects) == []
    assert world.kept() is not None


def test_a_damaged_late_update_is_the_operators_to_mend(store: PickyStore) -> None:
    store.put(LATE, b"\x93 not it")
    with pytest.raises(ConfigError, match="stored late update"):
        asyncio.run(World(store).begin())


# -- costs and refusals -----------------------------------------------------------------------------------------------


def spent(store: StateStore) -> ParticipationBudget:
    stored = store.get(KEY)
    return ParticipationBudget(NO_LIMITS) if stored is None else ParticipationBudget.from_bytes(stored, NO_LIMITS)


def test_what_a_training_cost_is_counted(store: PickyStore) -> None:
    async def scenario() -> None:
        await (await World(store).begin()).give(4)

    asyncio.run(scenario())
    budget = spent(store)
    assert budget.last[TASK][0] == 4
    assert budget.last[TASK][1].cpu_s > 0


def test_what_a_training_cost_that_came_to_nothing_is_counted_too(store: PickyStore) -> None:
    rows = ROWS.copy()
    rows[3, 3] = np.nan

    async def scenario() -> World:
        world = await World(store, rows=rows).begin()
        await world.participation.train(await world.to_training(1))
        return world

    world = asyncio.run(scenario())
    assert uploads(world.effects) == []
    assert world.participation.machine.used == (1, 1), "it sits the attempt out"
    assert len(spent(store).spendings) == 1
    assert world.kept() is None


def test_a_device_whose_budget_is_spent_does_not_offer_itself(store: PickyStore) -> None:
    async def scenario() -> World:
        assert datetime.fromtimestamp(NOW, UTC).hour == 17
        world = await World(store, limits=ParticipationLimits(quiet_hours=("17:30-18:00",))).begin()
        await world.open(Phase.CHECKIN, 1)
        return world

    assert checkins(asyncio.run(scenario()).effects) == []


def test_with_metadata_that_have_expired_nothing_is_contributed(store: PickyStore) -> None:
    async def scenario() -> World:
        world = await World(store).begin()
        train = await world.to_training(1)
        world.trust.contributing_allowed = False
        await world.participation.train(train)
        return world

    world = asyncio.run(scenario())
    assert uploads(world.effects) == []
    assert world.detector.asked == 0


def test_a_release_without_plan_or_weights_is_refused(store: PickyStore) -> None:
    async def scenario() -> None:
        world = await World(store).begin()
        await world.participation.take_release(VerifiedRelease(TASK, 1, (1, 1), {}))

    with pytest.raises(RefusedError, match="found no weights or no plan"):
        asyncio.run(scenario())


def test_weights_of_old_releases_do_not_pile_up(store: PickyStore) -> None:
    async def scenario() -> World:
        world = await World(store).begin()
        for version in (1, 2, 3, 3):
            await world.release(version)
        return world

    world = asyncio.run(scenario())
    assert len(world.participation._weights) == WEIGHTS_KEPT
    assert world.trust.downloads.count(f"{TASK}/3/weights") == 1
