"""What a task's rounds are made with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from vedette_aggregator.aggregation import Entropy
from vedette_aggregator.round_settings import RoundSettings
from vedette_core.learning.optimiser import ServerOptimiser
from vedette_core.learning.robust.defence import Defence
from vedette_schemas.envelope import Signer
from vedette_schemas.round import CheckIn, Plan
from vedette_schemas.topics import Topics


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundParts:
    """What a task's rounds are made with.

    Attributes:
        topics: the site's topics.
        aggregator: own id, the sender of everything published here.
        signer: own signing key.
        settings: when, with how many, and under which protection.
        plan: the plan that the operator wants; it takes effect with the next release.
        optimiser: the server's optimiser.
        defence: the robust rule over the groups' means.
        has_root: whether the shell can train on a root set (`TrainRoot`).
        beacon: reveals the value of an epoch; raises `ConfigError` when the chain is used up.
        seed: 32 secret random bytes, for the selection.
        entropy: unpredictable bytes, for the noise.
        admit: raises `RefusedError` for a check-in that may not be placed in a group now, whatever it was when it came.
    """

    topics: Topics
    aggregator: str
    signer: Signer = field(repr=False)
    settings: RoundSettings
    plan: Plan
    optimiser: ServerOptimiser
    defence: Defence
    has_root: bool = False
    beacon: Callable[[int], bytes] = field(repr=False)
    seed: bytes = field(repr=False)
    entropy: Entropy = field(repr=False)
    admit: Callable[[CheckIn, float], None] | None = field(default=None, repr=False)
