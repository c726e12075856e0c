"""Hosts of other gateways come new into a network of the shipped recordings: alarm, acceptance, quiet, and attacks.

Benign windows of the recordings are short: a host's are repeated until its stretch is full. What is judged afterwards
is the newcomer's own recording, from shortly before its first attack to its end.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import pytest
from test_false_positive_rate import Watched, collected, learnt, read_all

from vedette.demo import plan
from vedette.demo.recordings import SHIPPED, Episode, load
from vedette_core.learning.network import build_network
from vedette_core.learning.spec import flow_spec
from vedette_core.machine import Publish
from vedette_device.acceptances import level_of
from vedette_device.detection_machine import DetectionMachine, DetectionSettings, EntityAccepted, WindowScored
from vedette_device.detector import Detector
from vedette_device.detector_settings import ACCEPT_WINDOWS_MIN
from vedette_device.features import Window
from vedette_device.inference import NumpyBackend
from vedette_device.settings import NetworkSection
from vedette_schemas.alert import Alert, AlertModel, AlertState, decode

pytestmark = pytest.mark.skipif(
    not (SHIPPED / "labels.csv").is_file(), reason="the recordings are not in this checkout"
)

NEWCOMER = "10.9.9.9"
MODEL = AlertModel(task="network", version=plan.ROUNDS, digest="0" * 16)
GRACE_S = 90.0
FIRST = 60
"""Windows, five minutes, that a newcomer is watched for before anybody accepts it."""
BEFORE_ATTACK = 40
"""Windows before the first attack that are judged after the stretch."""
STEP_S = 5.0


@dataclass
class Outcome:
    """What became of one newcomer.

    Attributes:
        alarmed: whether it raised an alert before it was accepted.
        in_stretch: alerts in a stretch of benign windows.
        heard_first: of its attacks, had they come at the beginning of the stretch, those with an alert.
        heard_later: the same, had they come when the stretch had been settled in advance.
        stage: what the stretch ended with.
        after: false alerts after it.
        found: of the attacks on it, or by it, those with an alert after it.
        attacks: all of those.
    """

    alarmed: bool
    in_stretch: int
    heard_first: int
    heard_later: int
    stage: str
    after: int
    found: int
    attacks: int


class Newcomer:
    """A network that a host comes new into."""

    def __init__(self, watched: Watched, state: dict[str, object], backend: NumpyBackend) -> None:
        settings = replace(watched.detector.settings, accept_windows=2 * ACCEPT_WINDOWS_MIN)
        self.detector = Detector.from_state(watched.detector.schema, settings, state)
        self.detector.install(backend, MODEL)
        self.machine = DetectionMachine("s", watched.gateway.id, "network", "network", DetectionSettings())
        self.time_s = max(w.end_s for w in watched.test) + 1000.0

    def feed(self, window: Window) -> list[Alert]:
        """What is reported of a host's window, in whose place the newcomer's comes next."""
        moved = replace(window, entity=NEWCOMER, start_s=self.time_s, end_s=self.time_s + STEP_S)
        self.time_s += STEP_S
        effects = [
            effect
            for scored in self.detector.feed([moved], frozen=bool(self.machine.open_entities))
            for effect in self.machine.handle(WindowScored(scored), 0.0)
        ]
        return [decode(e.payload) for e in effects if isinstance(e, Publish)]

    def accept(self) -> None:
        level = level_of(self.machine.open_alert(NEWCOMER))
        self.machine.handle(EntityAccepted(NEWCOMER), 0.0)
        self.detector.accept(NEWCOMER, "one", level)

    @property
    def stage(self) -> str:
        return self.detector.accepted.progress()[0].stage


def came(site: Newcomer, twins: tuple[Newcomer, Newcomer], own: list[Window], every: list[Episode]) -> Outcome:
    """Let a host come.

    Args:
        site: the network.
        twins: the same network, in which the attacks come at the beginning of the stretch, and in its middle.
        own: the host's windows.
        every: episodes of the gateway that it was recorded at.
    """
    first_attack_s = min(e.start_s for e in every)
    episodes = [e for e in every if e.entity == own[0].entity]
    benign = [w for w in own if w.end_s < first_attack_s]
    attacked = own[len(benign) - BEFORE_ATTACK :]
    alarmed = False
    for window in benign[:FIRST]:
        alarmed |= bool(site.feed(window))
        for twin in twins:
            twin.feed(window)
    for each in (site, *twins):
        each.accept()
    heard_first = hits(twins[0], attacked[BEFORE_ATTACK:], episodes)
    for place in range(ACCEPT_WINDOWS_MIN):
        twins[1].feed(benign[place % len(benign)])
    heard_later = hits(twins[1], attacked[BEFORE_ATTACK:], episodes)
    said, place = 0, 0
    while site.stage == "learning":
        said += len(site.feed(benign[place % len(benign)]))
        place += 1
    stage, after = site.stage, 0
    found = set()
    for window in attacked:
        for alert in site.feed(window):
            if alert.state is not AlertState.CLOSED:
                found |= about(window, episodes)
            after += alert.state is AlertState.OPEN and not about(window, every)
    return Outcome(alarmed, said, len(heard_first), len(heard_later), stage, after, len(found), len(episodes))


def about(window: Window, episodes: list[Episode]) -> set[int]:
    return {i for i, e in enumerate(episodes) if e.start_s <= window.end_s <= e.end_s + GRACE_S}


def hits(site: Newcomer, windows: list[Window], episodes: list[Episode]) -> set[int]:
    found: set[int] = set()
    for window in windows:
        if any(alert.state is not AlertState.CLOSED for alert in site.feed(window)):
            found |= about(window, episodes)
    return found


def test_newcomers_are_learnt_and_their_attacks_are_found_afterwards() -> None:
    recordings = load(SHIPPED)
    watched = [collected(recordings, gateway, "network") for gateway in recordings.gateways]
    schema = watched[0].detector.schema
    network = build_network(flow_spec(*schema.input_shape))
    training = plan.tasks(("any",), len(watched))[0]["training"]
    backend = NumpyBackend(network, learnt(watched, network, training))
    states = [each.detector.to_state() for each in watched]
    windows = [
        asyncio.run(read_all(NetworkSection(**plan.device_tables(w.gateway, plan.Pace(0.0))["network"])))
        for w in watched
    ]
    outcomes = []
    for here, site in enumerate(watched):
        for away in (1, 3):
            donor = (here + away) % len(watched)
            first_attack_s = min(e.start_s for e in watched[donor].episodes)
            for host in sorted({w.entity for w in windows[donor]}):
                own = [w for w in windows[donor] if w.entity == host]
                if sum(w.end_s < first_attack_s for w in own) < FIRST:
                    continue  # it was hardly there before the first attack
                first, second, third = (Newcomer(site, states[here], backend) for _ in range(3))
                outcomes.append(came(first, (second, third), own, watched[donor].episodes))
    alarming = [o for o in outcomes if o.alarmed]
    attacks, found = sum(o.attacks for o in outcomes), sum(o.found for o in outcomes)
    heard_first, heard_later = (sum(n) for n in zip(*((o.heard_first, o.heard_later) for o in outcomes), strict=True))
    false_alerts = sum(o.after for o in outcomes)
    print(f"{len(outcomes)} newcomers, {len(alarming)} alarmed; {false_alerts} false alerts afterwards; ", end="")
    print(f"{attacks} attacks: {found} found afterwards, {heard_first} and {heard_later} heard in a stretch")
    assert len(outcomes) >= 20
    assert len(alarming) >= 0.5 * len(outcomes), "newcomers alarm"
    assert {o.stage for o in outcomes} == {"learnt"}
    assert sum(o.in_stretch for o in outcomes) == 0
    assert false_alerts <= 1
    assert found >= 0.75 * attacks
    assert heard_later >= 0.15 * attacks, "the documents say how few"
