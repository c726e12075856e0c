"""Whether a device takes part under a plan: its features, its masks, and numbers that keep the promise."""

from __future__ import annotations

from vedette_core.secagg.parameters import check_plan
from vedette_schemas.errors import RefusedError
from vedette_schemas.features import known_as
from vedette_schemas.round import Plan


def misfit(plan: Plan, feature_schema: str, *, plain_allowed: bool) -> str:
    """Why this device does not take part under a plan; empty if it does.

    Args:
        plan: verified as part of a signed release: even so it may ask for what this device does not give.
        feature_schema: digest of the one that this device computes.
        plain_allowed: whether an update may leave that the aggregator can read.
    """
    if plan.feature_schema != feature_schema:
        return (
            f"found feature schema {plan.feature_schema[:16]}{known_as(plan.feature_schema)} in its plan, expected "
            f"{feature_schema[:16]}{known_as(feature_schema)}, which this device computes: update its software, or "
            "correct its channels"
        )
    if not plan.masked and not plain_allowed:
        return "found a plan without masking, under which the aggregator would read this device's update"
    try:
        check_plan(plan)
    except RefusedError as fault:
        return str(fault)
    return ""
