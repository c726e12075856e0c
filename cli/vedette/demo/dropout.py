"""The scenario ``dropout``: a fifth of the devices vanish in the middle of every round, and rounds complete."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from vedette.demo.diary import Diary
from vedette.demo.recordings import load
from vedette.demo.stage import ReleaseFacts, ScenarioOptions, StagePlan, names, staged

NAME: Final = "dropout"
DEVICES: Final = 30
VANISH_SHARE: Final = 0.2
ROUNDS: Final = 5
VANISHED_MIN: Final = 0.18
"""Least part of the rostered devices that must have vanished for the scenario to show what it promises: who is drawn
to vanish may happen to be in no roster."""
TRAINING: Final = {"local_epochs": 5, "batch_size": 32, "learning_rate": 0.003, "examples_min": 32}


def stage_plan(options: ScenarioOptions) -> StagePlan:
    """Two groups of 15 devices on average, each of which opens with a quarter of its members away."""
    return StagePlan(
        devices=names(DEVICES),
        task={
            "training": TRAINING,
            "round": {
                "checkin_s": 3.0,
                "collect_s": 12.0,
                "unmask_s": 8.0,
                "interval_s": 0.2,
                "rounds_max": ROUNDS,
                "quorum": 9,
                "group_size": 18,
                "groups": 2,
                "survivors_min": 9,
                "epoch_rounds": 1,
                # Most that can come: the collection does not wait for those who do not.
                "uploads_wanted": DEVICES - round(VANISH_SHARE * DEVICES),
                "clip_norm": 3.0,
            },
        },
        rows={"data": options.data},
        vanish={"share": VANISH_SHARE, "seed": 1},
    )


async def run_dropout(options: ScenarioOptions) -> dict[str, Any]:
    """Run the scenario; returns its figures.

    Raises:
        ConfigError: recordings that cannot be used.
        TransientError: a process ended early, or the time was up.
    """
    started = time.monotonic()
    load(options.data)  # what is wrong with it shows before anything starts
    acts = stage_plan(options)
    async with staged(options, lambda _: acts) as stage:

        def tell(number: int) -> None:
            place = (number, stage.observer.attempts.get(("network", number), 1))
            facts, diary = stage.releases[number], stage.diary
            options.on_line(
                f"round {number}: {len(diary.rostered(place))} devices in {len(diary.joined.get(place, {}))} groups, "
                f"{len(diary.vanished.get(place, ()))} vanished, {facts.participants} updates in release "
                f"{facts.version}"
            )

        stage.on_released = tell
        await stage.until("rounds", lambda: stage.ended >= ROUNDS)
        newest = max((facts.version for facts in stage.releases.values()), default=0)
        have_it = await stage.drain(newest, acts.devices)
        attempts = {number: tries for (_, number), tries in stage.observer.attempts.items()}
        figures = dropout_figures(stage.diary, stage.releases, attempts)
    return {
        "scenario": NAME,
        "devices": DEVICES,
        "protection": "none" if options.plain else "masked",
        "rounds_wanted": ROUNDS,
        **figures,
        "devices_with_newest_release": have_it,
        "seconds": round(time.monotonic() - started, 1),
    }


def dropout_figures(diary: Diary, releases: Mapping[int, ReleaseFacts], attempts: Mapping[int, int]) -> dict[str, Any]:
    """The figures of the rounds that were released, in their order.

    Args:
        diary: what the nodes said.
        releases: what each round's release says, by round.
        attempts: highest attempt of each round, released or not.
    """
    places = [(number, attempts.get(number, 1)) for number in sorted(releases)]
    rostered = [len(diary.rostered(place)) for place in places]
    vanished = [len(diary.vanished.get(place, ())) for place in places]
    own, pairs = (sum(each) for each in zip(*map(diary.secrets_opened, places), strict=True)) if places else (0, 0)
    asked = [len(diary.survivors.get(place, {})) for place in places]
    opened = [releases[number].groups for number, _ in places]
    return {
        "rounds_completed": len(places),
        "attempts": sum(attempts.values()),
        "rostered_per_round": rostered,
        "vanished_per_round": vanished,
        "vanished_share": round(sum(vanished) / sum(rostered), 3) if sum(rostered) else 0.0,
        "came_back": diary.returns,
        "uploads_per_round": [len(diary.uploaded.get(place, ())) for place in places],
        "updates_in_release": [releases[number].participants for number, _ in places],
        "groups": [len(diary.joined.get(place, {})) for place in places],
        "groups_opened": opened,
        # Only where every group that was asked about was opened: of the others nobody outside knows what was released.
        "own_masks_opened": own if asked == opened else None,
        "pair_masks_opened": pairs if asked == opened else None,
    }


def broken_dropout(figures: Mapping[str, Any]) -> list[str]:
    """What was promised and did not happen; empty if all is well."""
    broken = []
    if figures["rounds_completed"] < figures["rounds_wanted"]:
        broken.append(f"{figures['rounds_completed']} of {figures['rounds_wanted']} rounds completed")
    if figures["vanished_share"] < VANISHED_MIN:
        broken.append(f"{figures['vanished_share']:.0%} of the rostered devices vanished, expected {VANISH_SHARE:.0%}")
    lost = figures["devices"] - figures["devices_with_newest_release"]
    if lost:
        broken.append(f"{lost} devices do not have the newest release")
    return broken
