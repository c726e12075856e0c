"""The scenario ``stolen-release-key``, played once with real processes; and what it calls a broken promise."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from vedette.demo.stolen_key import ATTEMPTS_AFTER, broken_stolen_key

SOUND: dict[str, Any] = {
    "devices_total": 8,
    "devices_ran_stolen": 8,
    "devices_recovered": 8,
    "devices_that_took_one": 0,
    "devices_that_refused": 8,
    "devices_on_good_release": 8,
    "stolen_release": 3,
    "revoked": [3],
}


def test_sound_figures_break_no_promise() -> None:
    assert broken_stolen_key(SOUND) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"devices_ran_stolen": 0}, "nothing was shown"),
        ({"devices_recovered": 7}, "7 of 8 devices recovered"),
        ({"devices_that_took_one": 1}, "took a release of the thief"),
        ({"devices_that_refused": 0}, "was not heard"),
        ({"devices_on_good_release": 6}, "6 of 8 devices run the good release"),
        ({"revoked": []}, "is not revoked"),
    ],
)
def test_a_broken_promise_is_said(change: dict[str, Any], said: str) -> None:
    (broken,) = broken_stolen_key(SOUND | change)
    assert said in broken


def test_devices_run_the_stolen_release_and_come_back() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "vedette.main", "demo", "--scenario", "stolen-release-key", "--once", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    figures = json.loads(ran.stdout)
    assert figures["devices_ran_stolen"] == figures["devices_recovered"] == figures["devices_total"] > 1
    assert (figures["thief_attempts_after"], figures["devices_that_took_one"]) == (ATTEMPTS_AFTER, 0)
    assert figures["root_version"] == 2
    assert figures["releases_after"] == [2]
