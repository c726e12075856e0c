"""Which sizes of groups and committees keep the promise, and the finder that proposes them.

With L listed committee members of which c may be corrupt (and the aggregator with them), q votes needed for a survivor
set and t shares needed for a secret:

- one survivor set only: two sets need 2q votes from L − c honest members, who vote once, and c who vote twice, so that
  **2q > L + c** excludes them;
- what is not released stays secret: **t ≥ c + 1**, and c is never less than about a quarter of L (`corrupt_floor`);
- a certificate suffices to open: **t ≤ q**;
- anonymity: every honest member refuses fewer than `survivors_min` survivors, whatever the aggregator says is there.

L, c, q, t and `survivors_min` are absolute and stand in the signed plan; none is a share of a list that the aggregator
wrote. A roster that lists n < L members needs more than (n + c)/2 votes: the same argument with the same absolute c
holds for it (`votes_needed`), and a smaller group does not die of a committee that it cannot have.

Source: `docs/protocol.md` §5; the quorum argument is that of Byzantine quorum intersection (Malkhi & Reiter 1998).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from vedette_core.crypto.agreement import BOX_OVERHEAD
from vedette_core.learning.encoding import Encoding
from vedette_core.learning.round_vector import vector_bytes
from vedette_core.privacy.noise import noise_sigma
from vedette_schemas.codec import PAYLOAD_BYTES_MAX
from vedette_schemas.errors import RefusedError
from vedette_schemas.round import COMMITTEE_MAX, DIGEST_BYTES, GROUP_MEMBERS_MAX, VECTOR_BYTES_MAX, GroupPlan, Plan
from vedette_schemas.secagg import SECRET_BYTES

SURVIVORS_FLOOR: Final = 5
"""Fewest devices whose sum may ever be opened, whatever a plan says."""
PRIVATE_BITS_MIN: Final = 8
"""Coarser levels may exceed the clip norm by more than the noise's sensitivity allows for."""
HONEST_SURVIVORS_MIN: Final = 2
"""Survivors of a group that are taken to be honest where its members are not the committee, so that nothing in the plan
bounds how many are corrupt: as few as the promise of masked sums supposes (`docs/threat-model.md`)."""

UPLOAD_OTHER_BYTES: Final = 1024
"""Of a sealed upload, all but vector, boxes and commitments: field names, ids, digests and two signatures; at their
longest well above half of it."""
BYTES_PREFIX: Final = 3
"""What msgpack puts before a byte string of up to 64 KiB."""


@dataclass(frozen=True, slots=True)
class Committee:
    """Sizes of a committee.

    Attributes:
        size: listed members, L.
        votes_min: q.
        threshold: t.
        corrupt_max: c.
    """

    size: int
    votes_min: int
    threshold: int
    corrupt_max: int

    @property
    def offline_max(self) -> int:
        """Members that may be away, if none is corrupt."""
        return self.size - self.votes_min


def corrupt_floor(size: int) -> int:
    """Fewest corrupt members that a plan's committee of a size must withstand: a quarter of the others, never none."""
    return max(1, (size - 1) // 4)


def find_committee(size: int, *, votes_min: int | None = None) -> Committee:
    """The committee of a size that tolerates corrupt and absent members about alike: q = t = ⌈2L/3⌉, c = 2q − L − 1.

    Of three members all must vote: with two votes a single corrupt one would be too many.

    Args:
        size: L, 2…`COMMITTEE_MAX`: one alone could open everything.
        votes_min: q, where the operator wants another; a majority, and enough for `corrupt_floor`.

    Raises:
        RefusedError: no such committee.
    """
    if not 2 <= size <= COMMITTEE_MAX:
        raise _unsafe("committee", f"a committee of {size}", f"2 to {COMMITTEE_MAX} members")
    usual = 3 if size == 3 else -(-2 * size // 3)
    votes = usual if votes_min is None else votes_min
    if not size < 2 * votes <= 2 * size:
        raise _unsafe("quorum", f"{votes} votes of {size}", "more than half, and no more than there are")
    found = Committee(size, votes, votes, 2 * votes - size - 1)
    if found.corrupt_max < corrupt_floor(size):
        raise _unsafe("secrecy", f"{votes} votes of {size}", f"so many that {corrupt_floor(size)} may be corrupt")
    return found


def find_survivors_min(group_size: int) -> int:
    """U_min for groups of a size: a little over half of it, never below the floor (18 of 32, 36 of 64, 12 of 16)."""
    return max(SURVIVORS_FLOOR, min(group_size, {16: 12}.get(group_size, -(-9 * group_size // 16))))


def votes_needed(groups: GroupPlan, listed: int) -> int:
    """Votes that open a group whose roster lists so many committee members: q of L, and of fewer as many less, but
    never less than the same c asks for.

    Raises:
        RefusedError: so small a committee keeps no promise.
    """
    if not groups.corrupt_max < listed <= groups.committee_size:
        raise _unsafe(
            "committee",
            f"a committee of {listed}",
            f"{groups.corrupt_max + 1} to {groups.committee_size} members",
        )
    missing = groups.committee_size - listed
    return max((listed + groups.corrupt_max) // 2 + 1, groups.votes_min - missing)


def shares_needed(groups: GroupPlan, listed: int) -> int:
    """Shares that open a secret of a group whose roster lists so many committee members: t, or as many as votes.

    Raises:
        RefusedError: see `votes_needed`.
    """
    return min(groups.threshold, votes_needed(groups, listed))


def check_plan(plan: Plan) -> None:
    """Check that a plan's numbers keep the promise; participants and committee members do it for themselves.

    A plan without masking is let through: whether that is wanted is for whoever calls to say.

    Raises:
        RefusedError: they do not; the message names the rule, what was found and what was expected.
    """
    groups = plan.groups
    _check_size(plan)
    if not plan.masked:
        if groups.committee != "none" or groups.committee_size:
            raise _unsafe("committee", f"a committee ({groups.committee}) without masking", "none")
        return
    _check_group(groups)
    _check_committee(groups)
    _check_privacy(plan)


def upload_bytes_max(plan: Plan) -> int:
    """Bytes of the largest sealed upload of a plan, rounded up a little."""
    members = plan.groups.members_max if plan.masked else 0
    box = SECRET_BYTES * members + BOX_OVERHEAD + BYTES_PREFIX
    commitments = members * (DIGEST_BYTES + BYTES_PREFIX)
    return vector_bytes(plan) + plan.groups.committee_size * box + commitments + UPLOAD_OTHER_BYTES


def _check_size(plan: Plan) -> None:
    if vector_bytes(plan) > VECTOR_BYTES_MAX or upload_bytes_max(plan) > PAYLOAD_BYTES_MAX:
        raise _unsafe(
            "size",
            f"vectors of {vector_bytes(plan)} bytes and uploads of up to {upload_bytes_max(plan)}",
            f"at most {VECTOR_BYTES_MAX} and {PAYLOAD_BYTES_MAX}: an upload must fit one message; choose a smaller "
            "network, group or committee, or a smaller weight_max",
        )


def _check_group(groups: GroupPlan) -> None:
    if groups.survivors_min < SURVIVORS_FLOOR:
        raise _unsafe("anonymity", f"survivors_min {groups.survivors_min}", f"at least {SURVIVORS_FLOOR}")
    if groups.survivors_min > groups.members_max or groups.members_max > GROUP_MEMBERS_MAX:
        raise _unsafe(
            "group",
            f"survivors_min {groups.survivors_min} of members_max {groups.members_max}",
            f"survivors_min ≤ members_max ≤ {GROUP_MEMBERS_MAX}",
        )
    if groups.quorum < groups.survivors_min:
        raise _unsafe("group", f"quorum {groups.quorum}", f"at least survivors_min {groups.survivors_min}")


def _check_committee(groups: GroupPlan) -> None:
    size, votes, threshold, corrupt = (
        groups.committee_size,
        groups.votes_min,
        groups.threshold,
        groups.corrupt_max,
    )
    if groups.committee == "none":
        raise _unsafe("committee", "masking without a committee", "inline or helpers")
    if groups.committee == "inline" and size != groups.members_max:
        raise _unsafe("committee", f"an inline committee of {size}", f"members_max {groups.members_max}")
    if not 1 <= votes <= size:
        raise _unsafe("quorum", f"votes_min {votes} of {size}", "1 to the committee's size")
    if 2 * votes <= size + corrupt:
        raise _unsafe(
            "equivocation",
            f"votes_min {votes} of {size} with {corrupt} corrupt: two survivor sets could be opened",
            f"2 · votes_min > {size} + {corrupt}",
        )
    if threshold < corrupt + 1:
        raise _unsafe("secrecy", f"threshold {threshold} with {corrupt} corrupt", f"at least {corrupt + 1}")
    if threshold > votes:
        raise _unsafe("liveness", f"threshold {threshold} above votes_min {votes}", f"at most {votes}")
    if corrupt < corrupt_floor(size):
        # Whoever signs the plan chooses c: it must not make everybody's secrets a matter of one or two members.
        raise _unsafe("secrecy", f"corrupt_max {corrupt} of {size} members", f"at least {corrupt_floor(size)}")
    if groups.committee == "inline" and groups.survivors_min <= corrupt + 1:
        # Corrupt committee members are members of the group: their own updates hide nobody.
        raise _unsafe(
            "anonymity",
            f"survivors_min {groups.survivors_min} with {corrupt} corrupt members",
            f"at least {corrupt + 2}: two honest survivors",
        )


def _check_privacy(plan: Plan) -> None:
    privacy = plan.privacy
    if privacy.noise_multiplier > 0:
        if privacy.participations_max < 1 or privacy.epsilon_max <= 0:
            raise _unsafe(
                "budget",
                f"noise with participations_max {privacy.participations_max} and epsilon_max {privacy.epsilon_max}",
                "both above 0: without them the noise promises nothing",
            )
        if plan.update.bits < PRIVATE_BITS_MIN:
            raise _unsafe("noise", f"noise on levels of {plan.update.bits} bits", f"at least {PRIVATE_BITS_MIN} bits")
        if plan.update.statistics:
            raise _unsafe("statistics", "noise, and statistics that get none", "statistics = false")
        if plan.update.noise_sigma > 0:
            _check_shares_of_noise(plan)


def _check_shares_of_noise(plan: Plan) -> None:
    """The devices' shares must make the whole noise although corrupt survivors bring none."""
    update, groups = plan.update, plan.groups
    step = Encoding(plan.dimension, update.clip_norm, b"", update.bits).step
    whole = noise_sigma(plan.privacy.noise_multiplier, update.clip_norm, update.weight_max, step)
    honest = groups.survivors_min - groups.corrupt_max if groups.committee == "inline" else HONEST_SURVIVORS_MIN
    if update.noise_sigma * math.sqrt(honest) < whole * (1.0 - 1e-9):
        raise _unsafe(
            "noise",
            f"noise_sigma {update.noise_sigma:g} of each device, of whom {honest} must be honest",
            f"at least {whole / math.sqrt(honest):g}",
        )


def _unsafe(rule: str, found: str, expected: str) -> RefusedError:
    return RefusedError(f"plan: found {found}, expected {expected}", rule=rule)
