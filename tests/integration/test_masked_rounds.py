"""Masked rounds of real processes over MQTT: devices vanish, helpers and aggregators are killed, people step in."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vedette.demo.diary import Diary, DiaryReader
from vedette.demo.fleet import Fleet, free_port
from vedette.demo.poisoned_figures import round_at
from vedette.demo.stage import FLAG, StagePlan, make_site, names, start_swarm
from vedette.observer import Observer
from vedette.site import Site
from vedette_aggregator.registry import Registry
from vedette_schemas.model import Variant
from vedette_schemas.round import Phase

LIMIT_S = 120.0
SMALL: dict[str, Any] = {
    "checkin_s": 4.0,
    "collect_s": 30.0,
    "unmask_s": 30.0,
    "interval_s": 0.2,
    "rounds_max": 1,
    "quorum": 5,
    "group_size": 8,
    "survivors_min": 5,
    "epoch_rounds": 1,
    "clip_norm": 3.0,
}
"""One group of eight whose members open its sum: six votes, five uploads at least."""


@dataclass
class Cast:
    """A site whose processes a test starts and ends one by one.

    Attributes:
        rest: everything that runs until the end.
        aggregator: the aggregator, to be killed.
    """

    site: Site
    swarm: Path
    port: int
    rest: Fleet
    aggregator: Fleet
    lines: DiaryReader

    @property
    def diary(self) -> Diary:
        return self.lines.read()

    @property
    def observer(self) -> Observer:
        return Observer(self.site.analytics_bundle, "127.0.0.1", self.port)

    def log(self, name: str) -> str:
        return (self.rest.logs / f"{name}.log").read_text(errors="replace")

    def start_aggregator(self, *flags: str) -> None:
        self.aggregator.start("aggregator", "aggregator", "run", "-c", str(self.site.aggregator_config), *flags)

    def start_swarm(self) -> None:
        start_swarm(self.rest, self.swarm, self.rest.logs / "swarm.jsonl")

    def vedette(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "vedette.main", *arguments, "-c", str(self.site.aggregator_config)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    async def until(self, what: str, condition: Callable[[], bool]) -> None:
        limit = time.monotonic() + LIMIT_S
        while not condition():
            self.rest.check()
            self.aggregator.check()
            assert time.monotonic() < limit, f"{what}: not within {LIMIT_S:.0f} s; aggregator: {self.log('aggregator')}"
            await asyncio.sleep(0.05)


def cast(
    stack: ExitStack,
    folder: Path,
    devices: int,
    rounds: Mapping[str, Any],
    *,
    vanish_share: float = 0.0,
    helpers: tuple[str, ...] = (),
) -> Cast:
    """A site with a running broker; rows are made up, and there is little to train."""
    acts = StagePlan(
        devices=names(devices),
        task={
            "training": {"local_epochs": 1, "batch_size": 32, "learning_rate": 0.003, "examples_min": 32},
            "round": dict(rounds),
        },
        rows={"source": "synthetic", "count": 32},
        vanish={"share": vanish_share, "seed": 1},
        helpers=helpers,
    )
    port = free_port()
    site, swarm = make_site(folder, port, acts)
    rest, aggregator = stack.enter_context(Fleet(folder / "logs")), stack.enter_context(Fleet(folder / "logs"))
    rest.start("broker", "broker", "run", "-c", str(site.broker_config))
    rest.wait_for_port(port)
    return Cast(site, swarm, port, rest, aggregator, DiaryReader(folder / "logs" / "swarm.jsonl"))


def contributors(site: Site, version: int) -> int:
    return Registry(site.directory / "trust").target("network", version, Variant.WEIGHTS)[0].contributors


def waiting(site: Site, devices: set[str]) -> int:
    """Messages of some devices that have no receipt."""
    found = 0
    for device in devices:
        database = sqlite3.connect(site.directory / "state" / device / "node.db")
        found += int(database.execute("SELECT COUNT(*) FROM outbox").fetchone()[0])
        database.close()
    return found


@pytest.mark.timeout(240)
def test_a_round_of_64_devices_of_which_a_fifth_vanish_completes(tmp_path: Path) -> None:
    # Two groups of 32 on average; of so many, eight may vanish.
    rounds = SMALL | {
        "checkin_s": 10.0,
        "quorum": 17,
        "group_size": 48,
        "groups": 2,
        "survivors_min": 17,
        "uploads_wanted": 51,
    }

    async def scenario() -> None:
        with ExitStack() as stack:
            site = cast(stack, tmp_path, 64, rounds, vanish_share=0.2)
            async with site.observer as observer:
                site.start_aggregator()
                site.start_swarm()
                await site.until("round", lambda: bool(observer.completed | observer.failed))
                assert observer.completed == {("network", 1)}
                await site.until("everybody is back", lambda: len(site.diary.versions) == 64)
                await site.until("releases", lambda: set(site.diary.versions.values()) == {1})
                place = (1, observer.attempts[("network", 1)])
                diary = site.diary
                vanished, rostered = diary.vanished[place], diary.rostered(place)
                # 13 are drawn to vanish; whoever was late for the check-in is in no roster and cannot.
                assert len(rostered) >= 60
                assert len(vanished) >= 12
                assert len(rostered) + 13 - len(vanished) <= 64
                assert not vanished & diary.uploaded[place]
                # Everybody else's update is in the release, unless a group lost more than its committee could bear.
                opened = contributors(site.site, 1)
                assert opened in {sum(map(len, sets)) for sets in _subsets(diary.survivors[place])}
                assert opened >= 17

    asyncio.run(scenario())


def _subsets(survivors: dict[int, tuple[str, ...]]) -> list[list[tuple[str, ...]]]:
    """Every choice of one group or more."""
    sets: list[list[tuple[str, ...]]] = [[]]
    for group in survivors.values():
        sets += [[*chosen, group] for chosen in sets]
    return sets[1:]


@pytest.mark.timeout(240)
def test_helpers_open_a_sum_although_one_of_them_is_killed(tmp_path: Path) -> None:
    helpers = tuple(f"helper-{number}" for number in range(1, 6))
    rounds = SMALL | {"committee": "helpers", "committee_size": 5, "collect_s": 8.0}

    async def scenario() -> None:
        with ExitStack() as stack:
            site = cast(stack, tmp_path, 8, rounds, vanish_share=0.2, helpers=helpers)
            killed = stack.enter_context(Fleet(tmp_path / "logs"))
            async with site.observer as observer:
                site.start_aggregator()
                for helper, config in site.site.helper_configs.items():
                    home = killed if helper == helpers[0] else site.rest
                    home.start(helper, "committee", "run", "-c", str(config))
                site.start_swarm()
                # Two devices vanish, so that uploads are waited for until the deadline: nothing is open before it.
                await site.until("groups", lambda: observer.phase("network") is Phase.COLLECT)
                killed.kill()
                await site.until("round", lambda: bool(observer.completed | observer.failed))
                assert observer.completed == {("network", 1)}
                assert contributors(site.site, 1) == 6
                assert len(site.diary.vanished[(1, 1)]) == 2
                assert site.diary.survivors == {}, "members are asked for nothing where helpers open the sum"
        joined = [json.loads(line) for line in (tmp_path / "logs" / "swarm.jsonl").read_text().splitlines()]
        assert {entry["committee"] for entry in joined if entry["what"] == "joined"} == {5}

    asyncio.run(scenario())


@pytest.mark.timeout(240)
def test_no_round_happens_if_devices_were_not_told_to_send_what_can_be_read(tmp_path: Path) -> None:
    async def scenario() -> None:
        with ExitStack() as stack:
            site = cast(stack, tmp_path, 6, SMALL)
            async with site.observer as observer:
                site.start_aggregator(FLAG)
                site.start_swarm()
                refusal = "found a plan without masking, under which the aggregator would read this device's update"
                await site.until("refusals", lambda: site.log("swarm").count(refusal) >= 6)
                await site.until("releases", lambda: len(site.diary.versions) == 6)
                # The devices may have read the announcement before the observer has.
                await site.until("announcement", lambda: observer.phase("network") is not None)
                assert observer.phase("network") is Phase.CHECKIN
                assert site.diary.joined == {}
                assert waiting(site.site, set(names(6))) == 0
                assert Registry(site.site.directory / "trust").versions("network") == (0,)
                assert "INSECURE" in site.log("aggregator")

    asyncio.run(scenario())


@pytest.mark.timeout(240)
def test_an_aggregator_that_is_killed_while_sums_are_opened_ends_its_round(tmp_path: Path) -> None:
    # Six uploads, and their receipts, must come before this is over.
    rounds = SMALL | {"collect_s": 10.0}

    async def scenario() -> None:
        with ExitStack() as stack:
            site = cast(stack, tmp_path, 8, rounds, vanish_share=0.2)
            async with site.observer as observer:
                site.start_aggregator()
                site.start_swarm()
                await site.until("uploads", lambda: len(site.diary.uploaded.get((1, 1), ())) == 6)
                uploaders = site.diary.uploaded[(1, 1)]
                await site.until("receipts", lambda: waiting(site.site, uploaders) == 0)
                # Nobody votes now: the aggregator is in the middle of the opening when it is killed.
                site.rest.signal("swarm", signal.SIGSTOP)
                await site.until("opening", lambda: observer.phase("network") is Phase.UNMASK)
                site.aggregator.kill()
                site.start_aggregator()
                site.rest.signal("swarm", signal.SIGCONT)
                await site.until("round", lambda: bool(observer.completed | observer.failed))
                assert observer.completed == {("network", 1)}
                assert observer.attempts == {("network", 1): 1}
                assert Registry(site.site.directory / "trust").versions("network") == (0, 1)
                assert contributors(site.site, 1) == 6

    asyncio.run(scenario())


@pytest.mark.timeout(240)
def test_a_person_quarantines_and_releases_beside_a_running_aggregator(tmp_path: Path) -> None:
    rounds = SMALL | {"rounds_max": 0, "checkin_s": 1.0}
    suspect = names(8)[2]

    async def scenario() -> None:
        with ExitStack() as stack:
            site = cast(stack, tmp_path, 8, rounds)
            async with site.observer as observer:
                site.start_aggregator()
                site.start_swarm()
                await site.until("rosters", lambda: site.diary.last_round_of(suspect) > 0 and bool(observer.completed))

                rows = json.loads(site.vedette("privacy", "show", "--json"))
                assert [row["task"] for row in rows] == ["network"]
                assert rows[0]["releases"] >= 1
                assert rows[0]["participations_ever"] >= 1
                assert rows[0]["most_exposed_ever"] in names(8)

                assert "would be kept out" in site.vedette("device", "quarantine", "add", suspect, "--dry-run")
                assert json.loads(site.vedette("device", "quarantine", "list", "--json"))["quarantined"] == []
                site.vedette("device", "quarantine", "add", suspect, "--reason", "a test")
                listed = json.loads(site.vedette("device", "quarantine", "list", "--json"))["quarantined"]
                assert [(entry["device"], entry["reason"]) for entry in listed] == [(suspect, "a test")]
                notice = f"quarantined: {suspect}"
                await site.until("notice", lambda: notice in site.log("aggregator"))
                out_from = round_at(site.log("aggregator"), notice)  # its rosters may have been there already
                assert out_from is not None
                others = set(names(8)) - {suspect}
                # A round may begin without a device that is slow to check in again: one that has all the others comes.
                await site.until(
                    "rounds of all the others",
                    lambda: any(
                        number >= out_from + 2 and others <= site.diary.rostered((number, attempt))
                        for number, attempt in site.diary.joined
                        if ("network", number) in observer.completed
                    ),
                )
                assert site.diary.last_round_of(suspect) <= out_from
                ended = max(number for _, number in observer.completed)

                site.vedette("device", "quarantine", "release", suspect)
                await site.until("return", lambda: site.diary.last_round_of(suspect) > ended)

    asyncio.run(scenario())
