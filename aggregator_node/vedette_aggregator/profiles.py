"""Named defaults for a task's rounds, for the two kinds of fleets that there are."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_Values = Mapping[str, float | str]

PROFILES: Final[Mapping[str, Mapping[str, _Values]]] = MappingProxyType(
    {
        "cross-device": MappingProxyType(
            {
                "round": MappingProxyType(
                    {
                        "checkin_s": 120.0,
                        "collect_s": 600.0,
                        "interval_s": 21_600.0,
                        "quorum": 36,
                        "checkins_max": 512,
                        "group_size": 32,
                        "survivors_min": 18,
                        "attempts_max": 3,
                        "selection": "diverse",
                        "weight_max": 8,
                    }
                ),
                "training": MappingProxyType({"local_epochs": 1, "prox_mu": 0.0}),
            }
        ),
        "cross-silo": MappingProxyType(
            {
                "round": MappingProxyType(
                    {
                        "checkin_s": 3_600.0,
                        "collect_s": 14_400.0,
                        "interval_s": 43_200.0,
                        "quorum": 5,
                        "checkins_max": 64,
                        "group_size": 12,
                        "survivors_min": 5,
                        "attempts_max": 5,
                        "selection": "all",
                        "weight_max": 4,
                    }
                ),
                "training": MappingProxyType({"local_epochs": 4, "prox_mu": 0.01}),
            }
        ),
    }
)
"""Profile → section of a task (``round``, ``training``) → setting → value; what the operator sets wins.

``cross-device``: many gateways that come and go. Short deadlines, because whoever is late gives to a later round, one
local epoch, two groups' survivors as a quorum. Selection ``diverse``; over-select with ``uploads_wanted`` once you know
your fleet.

``cross-silo``: 5 to 64 sites that are there. Everybody every round (selection ``all``) in groups of up to twelve, whose
own members open the sum as long as six of eight, or eight of twelve are there; hours to answer, more local epochs for
each of the fewer rounds, with a pull that keeps the sites from drifting apart (FedProx, arXiv 1812.06127).

These are starting points by reasoning, not measured optima.
"""
