"""What kinds of fleet there are, drawn from a seed: most runs are plain groups of six to eight, and all faults meet all
kinds sooner or later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Final

from vedette_aggregator.round_settings import RoundSettings

from .liars import DEVICE_LIES, HELPER_LIES
from .problem import plan_of, settings
from .simulation import Fleet
from .site import device_names, helper_names

KINDS: Final = ("inline", "small groups", "helpers", "plain", "noise", "device noise", "late", "root", "two-faced")
_WEIGHTS: Final = (38, 10, 12, 6, 8, 4, 8, 4, 10)
LIARS_SHARE: Final = 0.35
"""Share of the runs in which nodes lie."""
HELPERS_SHARE: Final = 0.3
"""Share of the runs with a lying aggregator in which helpers open the sums."""


def kind_of(seed: int) -> str:
    """The kind of a seed's fleet."""
    return Random(f"kind {seed}").choices(KINDS, _WEIGHTS)[0]


def fleet_of(seed: int) -> Fleet:
    """The fleet of a seed."""
    random, kind = Random(f"fleet {seed}"), kind_of(seed)
    devices = random.choice((6, 6, 6, 7, 7, 8, 9))
    changes: dict[str, Any] = {}
    helpers = 0
    match kind:
        case "small groups":
            devices = random.randint(12, 16)
            # Some start with one group and find out by themselves that they are more.
            changes |= {"group_size": 7, "groups": random.choice((2, 2, 0)), "checkins_max": devices}
        case "helpers":
            helpers, devices = random.choice((6, 7, 8)), random.choice((5, 6, 7))
            changes |= {"committee": "helpers", "committee_size": helpers}
        case "plain":
            changes |= {"masked": False}
        case "noise" | "device noise":
            changes |= {
                "noise_multiplier": random.choice((0.5, 1.0, 2.0)),
                "epsilon_max": 500.0,
                "participations_max": random.randint(2, 4),
                "period_rounds": random.choice((3, 5, 20)),
                "rule": random.choice(("auto", "auto", "trimmed-mean")),
                "device_noise": kind == "device noise",
            }
        case "late":
            devices = random.choice((7, 8))
            changes |= {"staleness_max": 2, "uploads_wanted": 5, "deadline_mads": random.choice((0.0, 4.5))}
        case "two-faced" if random.random() < HELPERS_SHARE:
            helpers, devices = 6, 6
            changes |= {"committee": "helpers", "committee_size": helpers}
        case "root":
            changes |= {"rule": "auto"}
    rounds = settings(devices, **changes)
    two_faced = kind == "two-faced"
    liars: Mapping[str, frozenset[str]] = {}
    if rounds.masked and (two_faced or random.random() < LIARS_SHARE):
        liars = _liars(rounds, random, devices, helpers)
    return Fleet(seed, devices, rounds, helpers, liars, lying_aggregator=two_faced, has_root=kind == "root")


def _liars(rounds: RoundSettings, random: Random, devices: int, helpers: int) -> Mapping[str, frozenset[str]]:
    """As many as the plan tolerates at most. With helpers they are devices and helpers: only these open anything."""
    most = plan_of(rounds).groups.corrupt_max
    return {
        **_some(random, device_names(devices), DEVICE_LIES, most),
        **_some(random, helper_names(helpers), HELPER_LIES, most),
    }


def _some(random: Random, names: Sequence[str], kinds: Sequence[str], most: int) -> dict[str, frozenset[str]]:
    chosen = random.sample(list(names), min(len(names), random.randint(1, most)))
    return {name: frozenset(random.sample(list(kinds), random.choice((1, 1, 2)))) for name in sorted(chosen)}
