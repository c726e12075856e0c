"""The plan that goes out with a release: the operator's, with what adapts from round to round."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from typing import Final

from vedette_aggregator.round_settings import RoundSettings
from vedette_aggregator.selection import choose_groups
from vedette_core.privacy.adaptive_clip import ClipBounds, next_clip_norm
from vedette_schemas.errors import ConfigError
from vedette_schemas.round import Plan, epoch_of, plan_bytes

CLIP_RANGE: Final = 100.0
"""An adapted clip norm stays within this factor of the operator's."""


class Planner:
    """Makes a task's plans.

    Args:
        settings: the operator's.
        plan: the plan that they lead to, with nothing adapted.
    """

    def __init__(self, settings: RoundSettings, plan: Plan) -> None:
        self._settings, self._base = settings, plan

    def next_plan(
        self,
        current: Plan,
        *,
        next_round: int,
        devices: Collection[str],
        beacon: Callable[[int], bytes],
        clipped_share: float,
    ) -> bytes:
        """The plan to release with a candidate, as its artifact.

        The number of groups stays through an epoch: it changes when the next round begins one, or when the fleet has
        at least doubled since. The clip norm follows the share of clipped updates.

        Args:
            current: the plan of the round that made the candidate.
            next_round: the first round that can run under it.
            devices: those that can be expected to take part.
            beacon: reveals the value of an epoch.
            clipped_share: of the round that made the candidate.
        """
        base = self._base
        groups = self._groups(current, next_round, devices, beacon)
        clip_norm = self._clip_norm(current, clipped_share)
        plan = self._settings.plan(
            base.task,
            version=current.version,
            feature_schema=base.feature_schema,
            network=base.network,
            dimension=base.dimension,
            tensors=base.update.tensors,
            groups=groups,
            clip_norm=clip_norm,
        )
        packed, digest = plan_bytes(plan)
        if digest != hashlib.sha256(plan_bytes(current)[0]).hexdigest():
            packed, _ = plan_bytes(plan.model_copy(update={"version": current.version + 1}))
        return packed

    def _groups(self, current: Plan, next_round: int, devices: Collection[str], beacon: Callable[[int], bytes]) -> int:
        if self._settings.groups:
            return self._settings.groups
        sizes, now = current.groups, current.groups.groups
        begins = (next_round - 1) % sizes.epoch_rounds == 0
        if not begins and len(devices) < 2 * now * sizes.members_max:
            return now
        try:
            value = beacon(epoch_of(next_round, sizes.epoch_rounds))
        except ConfigError:
            return now  # said where groups are formed
        return choose_groups(
            devices,
            value,
            current.task,
            group_size=sizes.group_size,
            members_max=sizes.members_max,
            survivors_min=sizes.survivors_min,
        )

    def _clip_norm(self, current: Plan, clipped_share: float) -> float:
        wanted = self._settings.clip_norm
        if not self._settings.adaptive_clip:
            return wanted
        bounds = ClipBounds(wanted / CLIP_RANGE, wanted * CLIP_RANGE)
        return next_clip_norm(
            current.update.clip_norm, clipped_share, bounds, target_quantile=self._settings.adaptive_clip
        )
