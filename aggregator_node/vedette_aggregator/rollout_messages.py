"""What the aggregator says about rollouts, sealed and addressed."""

from __future__ import annotations

from dataclasses import dataclass

from vedette_core.machine import Publish
from vedette_schemas.envelope import Signer, seal
from vedette_schemas.rollout import ROLLOUT_TYPE, RolloutState
from vedette_schemas.topics import Topics


@dataclass(frozen=True, slots=True)
class RolloutMessages:
    """Builds the messages of one aggregator.

    Attributes:
        topics: the site's topics.
        aggregator: own id, the sender of everything.
        signer: own signing key.
    """

    topics: Topics
    aggregator: str
    signer: Signer

    def state(self, state: RolloutState) -> Publish:
        """A rollout's retained state."""
        sealed = seal(state, ROLLOUT_TYPE, self.aggregator, self.signer)
        return Publish(self.topics.rollout(state.task), sealed, retain=True)
