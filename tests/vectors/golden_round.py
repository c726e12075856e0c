"""One group of a round, from the check-ins to the shares, as golden messages: its masks, boxes and votes are real.

Six devices check in and five upload; the committee, which is the group, votes for those five and gives its shares of
what is left of masks in their sum.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import numpy as np
from golden_site import (
    AGGREGATOR,
    BEACON,
    DEVICE,
    DEVICES,
    HELPER,
    MODEL,
    PLAN,
    TASK,
    Stream,
    TestKeys,
    plan,
    private_key,
    round_key,
)

from vedette_core.crypto.agreement import open_box
from vedette_core.crypto.masks import MaskExpander
from vedette_core.learning.encoding import rotation_seed
from vedette_core.secagg.participant import MaskedUpload, mask_update
from vedette_core.secagg.secrets import box_context, box_key, commitment, pair_secret
from vedette_schemas import codec, envelope, features, secagg
from vedette_schemas import round as rounds

SURVIVORS: Final = DEVICES[:5]
MEMBER: Final = "gw-02"
NAMES: Final[dict[str, Any]] = {"task": TASK, "round": 7, "attempt": 1, "gid": 0}


def offer(device: str, role: str = "contribute") -> bytes:
    """A node's signature over its key."""
    statement = rounds.offer_statement(TASK, device, 1, round_key(device).public, role)
    return TestKeys(device).sign(envelope.pre_authentication_encoding(rounds.OFFER_TYPE, device, statement))


def member(device: str, weight: int = 2, role: str = "contribute") -> rounds.Member:
    return rounds.Member(
        device=device,
        epk=round_key(device).public,
        seq=1,
        certificate=f"DER of the signing certificate of {device}".encode(),
        offer=offer(device, role),
        weight=weight,
    )


def roster(**changes: Any) -> rounds.Roster:
    fields: dict[str, Any] = {
        **NAMES,
        "model": MODEL,
        "model_version": 6,
        "plan": PLAN,
        "beacon": BEACON,
        "members": tuple(member(device) for device in DEVICES),
        "deadline_s": 1_800_000_600.0,
    }
    return rounds.Roster(**{**fields, **changes})


def vector(device: str) -> bytes:
    """What a device hides: eight elements of the 16-bit ring."""
    first = 1000 * (1 + DEVICES.index(device))
    return np.arange(first, first + 8, dtype="<u2").tobytes()


def upload(device: str = DEVICE, **changes: Any) -> rounds.Upload:
    """A masked upload; `changes` replace fields before its header is signed."""
    masked = _masked(device)
    fields: dict[str, Any] = {
        **NAMES,
        "id": rounds.upload_id(TASK, 7, 1, device),
        "device": device,
        "transcript": rounds.transcript_hash(roster()),
        "vector": masked.vector,
        "boxes": masked.boxes,
        "commitments": masked.commitments,
        "header": bytes(64),
    }
    made = rounds.Upload(**{**fields, **changes})
    encoded = envelope.pre_authentication_encoding(rounds.HEADER_TYPE, device, codec.pack(rounds.header_of(made)))
    return made.model_copy(update={"header": TestKeys(device).sign(encoded)})


@lru_cache(maxsize=8)
def _masked(device: str) -> MaskedUpload:
    plain = np.frombuffer(vector(device), "<u2").copy()
    return mask_update(plain, roster(), plan(), device, round_key(device), Stream(f"golden entropy of {device}"))


def plain_upload() -> rounds.Upload:
    """An upload without masking."""
    return upload(vector=vector(DEVICE), boxes=(), commitments=())


def round_open(**changes: Any) -> rounds.RoundOpen:
    fields: dict[str, Any] = {
        "task": TASK,
        "round": 7,
        "attempt": 1,
        "model": MODEL,
        "model_version": 6,
        "plan": PLAN,
        "phase": rounds.Phase.COLLECT,
        "checkin_until_s": 1_800_000_000.0,
        "deadline_s": 1_800_000_600.0,
        "groups": 1,
        "beacon": BEACON,
    }
    return rounds.RoundOpen(**{**fields, **changes})


def checkin(device: str = DEVICE, **changes: Any) -> rounds.CheckIn:
    fields: dict[str, Any] = {
        "id": rounds.checkin_id(TASK, round_key(device).public),
        "task": TASK,
        "device": device,
        "seq": 1,
        "certificate": f"DER of the signing certificate of {device}".encode(),
        "intermediate": b"DER of its issuer",
        "epk": round_key(device).public,
        "offer": offer(device),
        "examples_bucket": 8,
        "feature_schema": features.NETWORK_FLOWS.digest,
        "model_version": 6,
        "cohort": "line-a",
    }
    return rounds.CheckIn(**{**fields, **changes})


def helper_checkin() -> rounds.CheckIn:
    return checkin(HELPER, role="unmask", offer=offer(HELPER, "unmask"), examples_bucket=0, cohort="")


# -- the committee ----------------------------------------------------------------------------------------------------


def transcript() -> bytes:
    return rounds.transcript_hash(roster())


def survivors_hash() -> bytes:
    return secagg.survivors_hash(transcript(), tuple(rounds.header_of(upload(d)) for d in SURVIVORS))


def survivor(device: str) -> secagg.Survivor:
    """What `MEMBER` is shown of an upload."""
    whole = upload(device)
    header = rounds.header_of(whole)
    return secagg.Survivor(
        device=device,
        vector=header.vector,
        boxes=header.boxes,
        commitments=header.commitments,
        header=whole.header,
        box=whole.boxes[DEVICES.index(MEMBER)],
    )


def close(**changes: Any) -> secagg.Close:
    fields: dict[str, Any] = {
        **NAMES,
        "transcript": transcript(),
        "survivors": tuple(survivor(device) for device in SURVIVORS),
    }
    return secagg.Close(**{**fields, **changes})


def vote(device: str = MEMBER, **changes: Any) -> secagg.Vote:
    fields: dict[str, Any] = {
        **NAMES,
        "id": secagg.vote_id(TASK, 7, 1, 0, device),
        "member": device,
        "transcript": transcript(),
        "survivors": survivors_hash(),
    }
    return secagg.Vote(**{**fields, **changes})


def opening(**changes: Any) -> secagg.Opening:
    votes = tuple(envelope.seal(vote(d), secagg.VOTE_TYPE, d, TestKeys(d)) for d in SURVIVORS)
    fields: dict[str, Any] = {**NAMES, "transcript": transcript(), "survivors": survivors_hash(), "votes": votes}
    return secagg.Opening(**{**fields, **changes})


def shares(giver: str = MEMBER, **changes: Any) -> secagg.Shares:
    rows = []
    for device in SURVIVORS:
        number = DEVICES.index(giver) + 1
        key = box_key(round_key(giver), round_key(device).public, transcript(), sealing=False)
        opened = open_box(key, upload(device).boxes[number - 1], box_context(transcript(), device, number))
        dealt = [opened[i : i + 16] for i in range(0, len(opened), 16)]
        # Of the pairs only that with gw-06, who did not upload: by id it is everybody's last.
        rows.append(secagg.DeviceShares(device=device, own=dealt[0], pairs=(dealt[-1],)))
    fields: dict[str, Any] = {
        **NAMES,
        "id": secagg.shares_id(TASK, 7, 1, 0, giver),
        "member": giver,
        "transcript": transcript(),
        "survivors": survivors_hash(),
        "shares": tuple(rows),
    }
    return secagg.Shares(**{**fields, **changes})


def digests() -> dict[str, Any]:
    """What two implementations must compute alike."""
    first, last = DEVICES[0], DEVICES[-1]
    with_helper = roster(committee=(member(HELPER, 0, "unmask"),))
    pair = pair_secret(round_key(first), round_key(last).public, transcript())
    mask = np.zeros(8, "<u2")
    MaskExpander(8, 16).add(mask, pair, transcript())
    header = rounds.header_of(upload())
    seed = rotation_seed(task=TASK, round_number=7, attempt=1, model=MODEL, plan=PLAN, beacon=BEACON)
    return {
        "roster_hash": rounds.roster_hash(roster()).hex(),
        "roster_hash_with_committee": rounds.roster_hash(with_helper).hex(),
        "transcript_hash": transcript().hex(),
        "transcript_hash_attempt_2": rounds.transcript_hash(roster(attempt=2)).hex(),
        "rotation_seed": seed.hex(),
        "offer_statement": rounds.offer_statement(TASK, first, 1, round_key(first).public, "contribute").hex(),
        "header": codec.pack(header).hex(),
        "survivors_hash": survivors_hash().hex(),
        "pair_secret": {
            "private": round_key(first).private.hex(),
            "public": round_key(last).public.hex(),
            "secret": pair.hex(),
            "mask_16": mask.tobytes().hex(),
            "commitment": commitment(transcript(), first, 5, pair).hex(),
        },
        "box": {
            "private": round_key(MEMBER).private.hex(),
            "public": round_key(first).public.hex(),
            "key": box_key(round_key(MEMBER), round_key(first).public, transcript(), sealing=False).hex(),
            "context": box_context(transcript(), first, DEVICES.index(MEMBER) + 1).hex(),
            "digest": header.boxes[DEVICES.index(MEMBER)].hex(),
        },
        "public_keys": {
            name: private_key(name).public_key().public_bytes_raw().hex() for name in (AGGREGATOR, *DEVICES, HELPER)
        },
    }
