"""The scenario ``poisoned-device``: some devices lie, and nobody sees a single update.

The defence weighs groups by a root set of one trusted gateway; groups are drawn anew every round, so that suspicion
gathers on those who carry it from group to group; a person confirms what is proposed.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from vedette.demo.light_rows import cut, recorded
from vedette.demo.plain_mean import plain_mean
from vedette.demo.poisoned_figures import group_figures, proposed, round_at, seen_groups, suspicion_figures
from vedette.demo.stage import TASK, ScenarioOptions, Stage, StagePlan, names, staged
from vedette_aggregator.company import Company
from vedette_aggregator.round_state import RoundKeys, read_record
from vedette_core.learning.layout import Float32
from vedette_core.runtime.storage import Database, StateStore
from vedette_device.root_windows import save_windows
from vedette_schemas.errors import TransientError
from vedette_schemas.features import NETWORK_FLOWS

NAME: Final = "poisoned-device"
DEVICES: Final = 32
ATTACKS: Final[Mapping[str, str]] = {"light-04": "boost", "light-11": "sign-flip", "light-20": "sign-flip"}
"""One that does not clip, with its update turned round and twenty times too long, and two with theirs turned round."""
ROUNDS_WATCHED: Final = 12
"""Rounds before a person looks at the suspicions."""
ROUNDS_WATCHED_MAX: Final = 16
"""Rounds after which the person stops waiting for a proposal."""
ROUNDS_AFTER: Final = 2
SUSPICION_MIN: Final = 3.0


def stage_plan(options: ScenarioOptions, root: Path) -> StagePlan:
    """Five groups of six or seven devices, drawn anew for every round."""
    return StagePlan(
        devices=names(DEVICES),
        task={
            "training": {"local_epochs": 5, "batch_size": 32, "learning_rate": 0.003, "examples_min": 32},
            "round": {
                "checkin_s": 1.0,
                "collect_s": 15.0,
                "unmask_s": 10.0,
                "interval_s": 0.1,
                "quorum": 10,
                "group_size": 12,
                "groups": 5,
                "survivors_min": 5,
                "epoch_rounds": 1,
                "clip_norm": 3.0,
            },
            "defence": {"rule": "fltrust", "root_set": root, "suspicion_min": SUSPICION_MIN},
        },
        rows={"data": options.data},
        attacks=ATTACKS,
    )


async def run_poisoned(options: ScenarioOptions) -> dict[str, Any]:
    """Run the scenario; returns its figures.

    Raises:
        ConfigError: recordings that cannot be used.
        TransientError: a process ended early, or the time was up.
    """
    started = time.monotonic()
    windows = await asyncio.to_thread(recorded, options.data)
    rows, root_rows = cut(windows, DEVICES)

    def prepare(base: Path) -> StagePlan:
        save_windows(root_rows, NETWORK_FLOWS, base / "root.npz")
        return stage_plan(options, base / "root.npz")

    async with staged(options, prepare) as stage:
        companies: dict[int, Company] = {}

        def released(number: int) -> None:
            _remember(stage, companies)
            facts = stage.releases[number]
            options.on_line(
                f"round {number}: {facts.participants} updates in {facts.groups} groups, {facts.dropped} dropped"
            )

        def rounds(count: int) -> Callable[[], bool]:
            return lambda: stage.ended >= count

        stage.on_released = released
        await stage.until("rounds", rounds(ROUNDS_WATCHED))
        compared = max(stage.releases)
        undefended = asyncio.create_task(_undefended(stage, rows, len(stage.releases)))
        suspects = await _suspects(stage)
        while not _confirmed(suspects) and stage.ended < ROUNDS_WATCHED_MAX:
            await stage.until("rounds", rounds(stage.ended + 1))
            suspects = await _suspects(stage)
        confirmed = _confirmed(suspects)
        for device in confirmed:
            options.on_line(f"{device} is proposed and truly poisoned: a person confirms it")
            await _vedette(stage, "device", "quarantine", "add", device, "--reason", "poisoned updates")
        await stage.until("quarantine", lambda: all(_is_quarantined(stage, device) for device in confirmed))
        # The round that is under way may have its rosters already.
        last = round_at(stage.aggregator_log, "quarantined: ") or stage.ended
        await stage.until("rounds after", rounds(last + ROUNDS_AFTER))
        after = [stage.diary.last_round_of(device) for device in confirmed]
        groups = seen_groups(companies, ATTACKS, stage.aggregator_log)
        held_out = np.concatenate(windows.held_out)
        model = stage.models[stage.releases[compared].version]
        plain, clean = await undefended
        losses = {
            "before_the_first_round": model.network.loss(held_out, stage.models[0].weights),
            "defended": model.network.loss(held_out, model.weights),
            "plain_mean": model.network.loss(held_out, plain),
            "plain_mean_if_nobody_lied": model.network.loss(held_out, clean),
        }
        completed = stage.completed
    return {
        "scenario": NAME,
        "devices": DEVICES,
        "protection": "none" if options.plain else "masked",
        "poisoned": dict(ATTACKS),
        "rounds_completed": completed,
        "rounds_compared": compared,
        **group_figures(groups),
        "benign_loss": {name: round(loss, 4) for name, loss in losses.items()},
        **suspicion_figures(suspects, ATTACKS, SUSPICION_MIN),
        "confirmed_by_a_person": confirmed,
        "in_a_roster_afterwards": [d for d, number in zip(confirmed, after, strict=True) if number > last],
        "seconds": round(time.monotonic() - started, 1),
    }


def _remember(stage: Stage, companies: dict[int, Company]) -> None:
    """Keep what the aggregator remembers of the newest round, by round: an epoch is a round here."""
    database = Database(stage.site.directory / "state" / "aggregator" / "aggregator.db")
    try:
        key = RoundKeys(TASK).memory
        stored = StateStore(database).get(key)
    finally:
        database.close()
    if stored is not None:
        company = Company.from_plain(read_record(stored, key)["company"])
        companies[company.epoch] = company


async def _undefended(stage: Stage, rows: Sequence[Float32], rounds: int) -> tuple[Float32, Float32]:
    """The weights that plain averaging makes of the same fleet in so many rounds, and of one in which nobody lies."""
    start, plan = stage.models[0], stage.plans[0]
    attacks = [ATTACKS.get(device, "none") for device in names(DEVICES)]
    mean = partial(plain_mean, plan, start.network, start.weights, rows)
    poisoned = await asyncio.to_thread(mean, attacks, rounds)
    return poisoned, await asyncio.to_thread(mean, ["none"] * DEVICES, rounds)


async def _suspects(stage: Stage) -> list[dict[str, Any]]:
    """What ``vedette device quarantine list --json`` says."""
    listed: dict[str, Any] = json.loads(await _vedette(stage, "device", "quarantine", "list", "--json"))
    return list(listed["suspects"])


def _confirmed(suspects: Sequence[Mapping[str, Any]]) -> list[str]:
    """Who is proposed and truly poisoned: the scenario knows what a person would have to find out."""
    return [device for device in proposed(suspects, SUSPICION_MIN) if device in ATTACKS]


def _is_quarantined(stage: Stage, device: str) -> bool:
    said = [line for line in stage.aggregator_log.splitlines() if "quarantined: " in line]
    return bool(said) and device in said[-1]


async def _vedette(stage: Stage, *arguments: str) -> str:
    """Run a command about the stage's aggregator; returns what it prints."""
    command = (sys.executable, "-m", "vedette.main", *arguments, "-c", str(stage.site.aggregator_config))
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, error = await process.communicate()
    if process.returncode:
        raise TransientError(f"vedette {' '.join(arguments)}: {error.decode(errors='replace').strip()}")
    return out.decode()
