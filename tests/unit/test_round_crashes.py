"""A crash between any two effects: the same candidate comes of it, and no committee is asked about another set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from round_effects import every, write
from round_fleet import Fleet, garbage
from round_parts import (
    DIMENSION,
    Fresh,
    Stage,
    checkin,
    delta_of,
    devices_in,
    helper_names,
    masked_settings,
    root_answer,
    sealed,
    upload,
)

from vedette_aggregator.aggregation import Candidate
from vedette_aggregator.round_events import CheckInReceived, PublishCandidate, TrainRoot, UploadReceived
from vedette_aggregator.round_settings import RoundSettings
from vedette_aggregator.round_state import RoundState
from vedette_core.learning.round_vector import layout_of
from vedette_core.machine import Effect, Event, Persist, Tick

S = RoundState
EVENTS_MAX = 300
"""A round that goes on at all is over after fewer."""


@dataclass(frozen=True)
class Scenario:
    """What happens in a round.

    Attributes:
        sizes: members of each group.
        without: how many of the first group drop out before they upload.
        silent_at_first: how many of the first group's committee do not answer in the first attempt.
        garbage: whether a device of the last group uploads noise.
        helpers: how many helpers open the sums; 0 is the groups themselves.
        rounds: how many rounds there are; crashes happen in the last.
        has_root: whether there is a root set.
        settings: the operator's.
    """

    sizes: tuple[int, ...] = (6,)
    without: int = 0
    silent_at_first: int = 0
    garbage: bool = False
    helpers: int = 0
    rounds: int = 1
    has_root: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


NOISE = {"noise_multiplier": 1.0, "participations_max": 5, "epsilon_max": 50.0}
SCENARIOS = {
    "plain": Scenario(settings={"masked": False}),
    "plain, two rounds": Scenario(sizes=(5, 6), rounds=2, settings={"masked": False}),
    "plain with a root set": Scenario(has_root=True, settings={"masked": False}),
    "masked": Scenario(),
    "masked with drop-outs": Scenario(sizes=(8,), without=2),
    "masked, tried again": Scenario(silent_at_first=2),
    "masked, two rounds of two groups": Scenario(sizes=(5, 6), rounds=2),
    "masked with garbage": Scenario(sizes=(6, 6), garbage=True),
    "masked with a root set": Scenario(has_root=True),
    "masked with helpers": Scenario(sizes=(5, 6), helpers=5, settings={"committee": "helpers", "committee_size": 5}),
    "masked with noise": Scenario(sizes=(5, 6), settings=NOISE),
    "plain with noise": Scenario(sizes=(5, 6), settings=NOISE | {"masked": False}),
    "masked with adaptive clipping": Scenario(settings=NOISE | {"adaptive_clip": 0.5}),
}


@dataclass(frozen=True)
class Moment:
    """Before an event: what was on the disk, when, and what the event led to."""

    disk: Mapping[str, bytes]
    now: float
    place: tuple[int, int]
    effects: Sequence[Effect]


class Watched(Stage):
    """A machine whose every transition is kept."""

    moments: list[Moment]

    def handle(self, event: Any, after_s: float = 0.0) -> list[Effect]:
        """Also keep the transition."""
        disk, place = dict(self.disk), (self.machine.round, self.machine.attempt)
        effects = super().handle(event, after_s)
        self.moments.append(Moment(disk, self.now, place, effects))
        return effects


class World:
    """Everybody but the aggregator: whatever has no receipt is sent again, and says the same as before."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        groups = devices_in(scenario.sizes)
        self.devices = [device for group in groups for device in group]
        self.helpers = helper_names(scenario.helpers)
        self.dropped = groups[0][: scenario.without]
        self.silent = set(groups[0][: scenario.silent_at_first])
        self.liar = groups[-1][0] if scenario.garbage else ""
        self.rounds: RoundSettings = masked_settings(len(groups), **scenario.settings)
        self.entropy = Fresh()
        self.uploads: dict[tuple[str, int, int], UploadReceived] = {}
        self.candidates: list[Candidate] = []
        self.fleet = Fleet(self.start({}, 0.0))

    def start(self, disk: Mapping[str, bytes], now: float) -> Watched:
        """The aggregator's process starts."""
        stage = Watched(self.rounds, disk, has_root=self.scenario.has_root, entropy=self.entropy)
        stage.moments = []
        stage.now = max(stage.now, now)
        return stage

    def finish(self, stage: Stage, version: int) -> None:
        """Go on until a release is out; the shell hands every candidate on, and answers."""
        self.fleet.stage = stage
        pending = list(stage.effects)
        for _ in range(EVENTS_MAX):
            if stage.machine.model.version == version:
                return
            self.fleet.silent = self.silent if stage.machine.attempt == 1 else set()
            events = self._answers(stage, pending) or self._next(stage)
            pending = [effect for event in events for effect in stage.handle(event)]
        raise AssertionError(f"it hangs in {stage.machine.state} {stage.machine.round}.{stage.machine.attempt}")

    def _answers(self, stage: Stage, effects: Sequence[Effect]) -> list[Event]:
        found: list[Event] = list(self.fleet.answers(effects))
        found += [root_answer(stage, np.full(DIMENSION, 0.1, np.float32)) for _ in every(effects, TrainRoot)]
        for handed in every(effects, PublishCandidate):
            self.candidates.append(handed.candidate)
            found.append(stage.released(handed))
        return found

    def _next(self, stage: Stage) -> list[Event]:
        """What is said where nothing was asked; at last, time passes."""
        events: list[Event] = []
        if stage.machine.state is S.CHECKIN:
            there = {*stage.machine._book.waiting, *stage.machine._book.helpers}
            missing = [d for d in (*self.helpers, *self.devices) if d not in there]
            events = [CheckInReceived(checkin(d, self._number(stage))) for d in missing]
        elif stage.machine.state is S.COLLECT:
            self.fleet.seat()
            missing = [d for d in self.devices if d not in {*stage.machine._book.contributions, *self.dropped}]
            events = [self._upload(stage, device) for device in missing]
        if events:
            return events
        deadline = stage.machine.next_deadline()
        assert deadline is not None, "it waits for something that nobody will say"
        stage.now = max(stage.now, deadline)
        return [Tick()]

    def _number(self, stage: Stage) -> int:
        """Of the check-in: one an attempt."""
        return 10 * stage.machine.round + stage.machine.attempt

    def _upload(self, stage: Stage, device: str) -> UploadReceived:
        number, attempt = stage.machine.round, stage.machine.attempt
        if (device, number, attempt) not in self.uploads:
            delta = np.asarray(delta_of(device) * (1.0 + 0.5 * (number - 1)), np.float32)
            if not stage.running.masked:
                body = upload(stage.roster_of(device), device, stage.running, delta=delta)
                event = UploadReceived(body, sealed(body))
            elif device == self.liar:
                event = self.fleet.upload_event(device, vector=garbage(stage.running, layout_of(stage.running).length))
            else:
                event = self.fleet.upload_event(device, delta=delta)
            self.uploads[device, number, attempt] = event
        return self.uploads[device, number, attempt]


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS.keys())
def test_a_crash_between_any_two_effects_changes_nothing(scenario: Scenario) -> None:
    world = World(scenario)
    stage = world.start({}, 0.0)
    for version in range(1, scenario.rounds + 1):
        world.finish(stage, version)
    straight = world.candidates[-1]
    assert (straight.round, straight.attempt) == (scenario.rounds, 2 if scenario.silent_at_first else 1)
    moments = [m for m in stage.moments if m.place[0] == scenario.rounds]
    crashes = 0
    for moment in moments:
        for count in range(1, len(moment.effects) + 1):
            if not isinstance(moment.effects[count - 1], Persist) and count < len(moment.effects):
                continue  # the same disk as one effect earlier
            disk = dict(moment.disk)
            write(disk, moment.effects[:count])
            _goes_on(world, disk, moment.now, straight)
            crashes += 1
    assert crashes > len(moments), "there are transitions with more than one write"
    assert all(len(sets) == 1 for sets in world.fleet.asked.values()), "one survivor set a group and attempt"


def _goes_on(world: World, disk: Mapping[str, bytes], now: float, straight: Candidate) -> None:
    asked, handed = world.entropy.asked, len(world.candidates)
    stage = world.start(disk, now)
    repairs = list(stage.effects)
    for count in range(len(repairs)):  # and the power fails again while it repairs what the first time left
        half = dict(disk)
        write(half, repairs[:count])
        assert world.start(half, now).disk == stage.disk
    releasing = stage.machine.state in (S.RELEASING, S.INTERVAL, S.FINISHED)
    drawn_before = stage.machine.state is S.RELEASING
    world.finish(stage, world.scenario.rounds)
    found = world.candidates[handed:]
    noisy = stage.running.privacy.noise_multiplier > 0
    assert {c.contributors for c in found} <= {straight.contributors}
    assert {c.transcript for c in found} <= {straight.transcript}
    if not noisy:
        assert {c.digest() for c in found} <= {straight.digest()}
        assert stage.machine.model.weights.tobytes() == straight.weights.tobytes()
    if drawn_before:
        assert [c.digest() for c in found] == [straight.digest()], "the one that was written down"
    if releasing:
        assert world.entropy.asked == asked, "no noise is drawn twice"
        assert stage.machine.model.weights.tobytes() == straight.weights.tobytes()
    ledger = stage.machine.memory.ledger
    assert ledger.releases == world.scenario.rounds, "counted once"
    assert {ledger.spent(d, straight.round).releases for d in straight.contributors} == {world.scenario.rounds}
    left = [k for k in stage.disk if k.split("/")[2] in ("upload", "vote", "shares", "candidate")]
    assert not left
