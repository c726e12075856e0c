"""Which check-ins and uploads a round takes: everything that can be told from the body and the round alone."""

from __future__ import annotations

from typing import Final

from vedette_core.crypto.agreement import BOX_OVERHEAD, shared_secret
from vedette_core.learning.round_vector import layout_of, read_sum, ring_of, vector_bytes
from vedette_core.learning.update_vector import vector_from_bytes
from vedette_core.secagg.membership import committee_of
from vedette_schemas.errors import PeerError
from vedette_schemas.round import CheckIn, Plan, Roster, Upload, checkin_id, transcript_hash, upload_id
from vedette_schemas.secagg import SECRET_BYTES

_PROBE: Final = bytes(range(32))
"""Any private key: a point that shares no secret with it shares none with others."""


def check_checkin(body: CheckIn, plan: Plan, newest: int) -> None:
    """Check an offer to take part.

    Args:
        body: its certificate, signature and offer are already checked.
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
    shared_secret(_PROBE, body.epk)
    if body.role == "unmask":
        return
    if body.feature_schema != plan.feature_schema:
        raise refuse("schema", f"feature schema {body.feature_schema[:16]}", plan.feature_schema[:16])
    if body.examples_bucket < plan.training.examples_min.bit_length() - 1:
        raise refuse("examples", f"less than {2 ** (body.examples_bucket + 1)}", plan.training.examples_min)


def check_upload(upload: Upload, roster: Roster, plan: Plan) -> None:
    """Check an upload against the group that it says it is for.

    Of a masked one only the shape can be told; without masks the vector is held to the roster's weight, too.

    Args:
        upload: its signatures, and that the sender is `upload.device`, are already checked.
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
    if len(upload.vector) != vector_bytes(plan):
        raise refuse("dimension", f"{len(upload.vector)} bytes", f"{vector_bytes(plan)} for {plan.dimension} weights")
    members, committee = len(roster.members), len(committee_of(roster, plan))
    box_bytes = SECRET_BYTES * members + BOX_OVERHEAD
    if len(upload.boxes) != committee or any(len(box) != box_bytes for box in upload.boxes):
        raise refuse("boxes", f"{len(upload.boxes)} boxes", f"{committee} of {box_bytes} bytes")
    commitments = members if plan.masked else 0
    if len(upload.commitments) != commitments:
        raise refuse("commitments", f"{len(upload.commitments)} commitments", commitments)
    if not plan.masked:
        vector = vector_from_bytes(upload.vector, layout_of(plan), ring_of(plan))
        try:
            read_sum(plan, roster, (upload.device,), vector)
        except PeerError as fault:
            raise PeerError(f"{who}: {fault}", reason=fault.reason) from fault
