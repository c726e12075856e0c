"""Which check-ins and uploads a round takes: everything that can be told from the body and the round alone."""

from __future__ import annotations

import math
from typing import Final

from vedette_core.learning.encoding import Encoding, update_weight
from vedette_schemas.errors import PeerError
from vedette_schemas.round import CheckIn, Plan, Roster, Upload, checkin_id, transcript_hash, upload_id

LOSS_MAX: Final = 1e9
"""Largest loss taken for one; anything beyond is a broken device, and would not fit the release's decimal figures."""
RANGE_ABS_MAX: Final = 1e6
"""Largest activation that a working model has; far above any of normalised inputs."""


def check_checkin(body: CheckIn, plan: Plan, newest: int) -> None:
    """Check an offer to take part.

    Args:
        body: its certificate and signature are already checked.
        plan: the plan that the next round will run under.
        newest: the device's highest `seq` so far; 0 before its first check-in.

    Raises:
        PeerError: what was found and what was expected; the reason is a short stable word.
    """
    who = f"check-in of {body.device}"

    def refuse(reason: str, found: object, expected: object) -> PeerError:
        return PeerError(f"{who}: found {found}, expected {expected}", reason=reason)

    expected_id = checkin_id(plan.task, body.epk)
    if body.id != expected_id:
        raise refuse("id", f"id {body.id!r}", repr(expected_id))
    if body.seq <= newest:
        raise refuse("stale", f"number {body.seq}", f"one above {newest}")
    if body.feature_schema != plan.feature_schema:
        raise refuse("schema", f"feature schema {body.feature_schema[:16]}", plan.feature_schema[:16])
    if body.examples_bucket < plan.training.examples_min.bit_length() - 1:
        raise refuse("examples", f"less than {2 ** (body.examples_bucket + 1)}", plan.training.examples_min)


def check_upload(upload: Upload, roster: Roster, plan: Plan) -> None:
    """Check an upload against the group that it says it is for.

    Args:
        upload: its signature, and that the sender is `upload.device`, are already checked.
        roster: the group that the sender is a member of, in the current attempt.
        plan: the current plan.

    Raises:
        PeerError: what was found and what was expected; the reason is a short stable word.
    """
    who = f"round {roster.round}.{roster.attempt}: upload of {upload.device}"

    def refuse(reason: str, found: object, expected: object) -> PeerError:
        return PeerError(f"{who}: found {found}, expected {expected}", reason=reason)

    if (upload.round, upload.attempt) != (roster.round, roster.attempt):
        raise refuse("round", f"round {upload.round}.{upload.attempt}", f"{roster.round}.{roster.attempt}")
    if upload.gid != roster.gid:
        raise refuse("group", f"group {upload.gid}", f"group {roster.gid}")
    expected_id = upload_id(roster.task, roster.round, roster.attempt, upload.device)
    if upload.id != expected_id:
        raise refuse("id", f"id {upload.id!r}", repr(expected_id))
    transcript = transcript_hash(roster)
    if upload.transcript != transcript:
        raise refuse("transcript", f"transcript {upload.transcript.hex()[:16]}", transcript.hex()[:16])
    if upload.shares or upload.commitments:
        raise refuse("protection", "shares of a masked upload", f"none under protection {plan.update.protection!r}")
    padded = Encoding(plan.dimension, plan.update.clip_norm, b"").padded
    if len(upload.levels) != padded:
        raise refuse("dimension", f"{len(upload.levels)} levels", f"{padded} for {plan.dimension} weights")
    if upload.num_examples < plan.training.examples_min:
        raise refuse("examples", f"{upload.num_examples} examples", f"at least {plan.training.examples_min}")
    weight = update_weight(upload.num_examples, plan.update.examples_reference, plan.update.weight_max)
    if upload.weight != weight:
        raise refuse("weight", f"weight {upload.weight}", f"{weight} for {upload.num_examples} examples")
    for name, loss in (("loss_before", upload.loss_before), ("loss_after", upload.loss_after)):
        if not (math.isfinite(loss) and abs(loss) <= LOSS_MAX):
            raise refuse("loss", f"{name} {loss}", f"a number of at most {LOSS_MAX:g}")
    names = [r.tensor for r in upload.ranges]
    if len(set(names)) != len(names):
        raise refuse("ranges", "a tensor with two activation ranges", "one a tensor")
    for r in upload.ranges:
        if not (-RANGE_ABS_MAX <= r.low <= r.high <= RANGE_ABS_MAX):
            raise refuse("ranges", f"range {r.low}…{r.high} of {r.tensor!r}", f"low ≤ high within ±{RANGE_ABS_MAX:g}")
