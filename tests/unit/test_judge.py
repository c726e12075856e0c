"""The demo's figures come from labels, and every rule of the comparison is one that a reader would accept."""

from __future__ import annotations

from pathlib import Path

import pytest

from vedette.demo.judge import GRACE_S, Sighting, judge
from vedette.demo.recordings import Episode, Gateway, Recording, Recordings

DAY = 86_400.0
NETWORK = Recording(Path("n"), 0.0, 2 * DAY, DAY)
SENSOR = Recording(Path("s"), 0.0, 4 * DAY, DAY)
ATTACK = Episode("gw-1", "network", "scan", DAY, DAY + 60, "10.0.0.1", "nmap")
RECORDINGS = Recordings(
    (Gateway("gw-1", ("10.0.0.0/24",), NETWORK, SENSOR), Gateway("gw-2", ("10.0.1.0/24",), NETWORK, SENSOR)),
    (ATTACK,),
)


def seen(start: float, *, gateway: str = "gw-1", opened: bool = True, sensor: bool = False) -> Sighting:
    return Sighting(gateway, "sensor" if sensor else "network", start, start + 5, opened)


@pytest.mark.parametrize("start", [DAY - 4, DAY, DAY + 30, DAY + 60 + GRACE_S["network"] - 1])
def test_a_window_that_touches_the_attack_or_its_grace_detects_it(start: float) -> None:
    verdict = judge(RECORDINGS, [seen(start)], {})
    assert (verdict.attacks_detected, verdict.false_alerts_total) == (1, 0)


@pytest.mark.parametrize(
    "sighting",
    [
        seen(DAY - 5),
        seen(DAY + 60 + GRACE_S["network"]),
        seen(DAY + 1, gateway="gw-2"),
        seen(DAY + 1, sensor=True),
    ],
)
def test_anything_else_is_a_false_alert_and_detects_nothing(sighting: Sighting) -> None:
    verdict = judge(RECORDINGS, [sighting], {})
    assert verdict.missed == (ATTACK,)
    assert verdict.false_alerts[sighting.gateway] == 1


def test_a_reading_at_the_very_start_of_tampering_belongs_to_it() -> None:
    tampering = Episode("gw-1", "sensor", "offset", DAY, DAY + 60, "level", "simulated")
    recordings = Recordings(RECORDINGS.gateways, (tampering,))
    assert judge(recordings, [seen(DAY - 5, sensor=True)], {}).attacks_detected == 1


def test_an_update_detects_but_is_no_further_false_alert() -> None:
    verdict = judge(RECORDINGS, [seen(10.0), seen(15.0, opened=False), seen(DAY + 5, opened=False)], {})
    assert verdict.attacks_detected == 1
    assert verdict.false_alerts == {"gw-1": 1, "gw-2": 0}


def test_delay_is_measured_to_the_end_of_the_first_window() -> None:
    assert judge(RECORDINGS, [seen(DAY + 20), seen(DAY + 10)], {}).delay_s == (15.0,)


def test_benign_time_is_what_was_watched_outside_attacks() -> None:
    verdict = judge(RECORDINGS, [seen(DAY / 2 + 1)], {("gw-1", "network"): DAY / 2, ("gw-2", "sensor"): DAY})
    assert verdict.benign_days["network"] == pytest.approx(1.5 - (60 + GRACE_S["network"]) / DAY)
    assert verdict.benign_days["sensor"] == pytest.approx(3.0)
    assert verdict.false_alerts_per_device_day == pytest.approx(1 / sum(verdict.benign_days.values()))
