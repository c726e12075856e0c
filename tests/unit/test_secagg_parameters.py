"""Which numbers a plan may have: compared with everything that a small committee can do, tried out."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from secagg_parts import make_plan
from secagg_site import person

from vedette_core.learning.round_vector import vector_bytes
from vedette_core.secagg.parameters import (
    SURVIVORS_FLOOR,
    check_plan,
    corrupt_floor,
    find_committee,
    find_survivors_min,
    shares_needed,
    upload_bytes_max,
    votes_needed,
)
from vedette_schemas.codec import PAYLOAD_BYTES_MAX
from vedette_schemas.envelope import seal
from vedette_schemas.errors import RefusedError
from vedette_schemas.round import COMMITTEE_MAX, DIMENSION_MAX, UPLOAD_TYPE, GroupPlan, Plan, Upload
from vedette_schemas.secagg import (
    CLOSE_TYPE,
    OPENING_TYPE,
    SHARES_TYPE,
    VOTE_TYPE,
    Close,
    DeviceShares,
    Opening,
    Shares,
    Survivor,
    Vote,
)

SIZE_MAX = 8


def two_sets_can_win(listed: int, votes: int, corrupt: int) -> bool:
    """Whether the honest members can be split so that two sets get enough votes, if corrupt members vote for both."""
    bad = min(corrupt, listed)
    honest = listed - bad
    return any(first + bad >= votes and honest - first + bad >= votes for first in range(honest + 1))


def plan_of(size: int, votes: int, threshold: int, corrupt: int) -> GroupPlan:
    """Numbers of a committee of helpers."""
    return make_plan(committee="helpers").groups.model_copy(
        update={"committee_size": size, "votes_min": votes, "threshold": threshold, "corrupt_max": corrupt}
    )


def refused_by(plan: Plan) -> str:
    """The rule that refuses a plan; empty if none does."""
    try:
        check_plan(plan)
    except RefusedError as fault:
        return fault.rule
    return ""


def accepted(groups: GroupPlan) -> str:
    """Empty, or the rule that refuses."""
    return refused_by(make_plan().model_copy(update={"groups": groups}))


def test_plans_are_accepted_if_and_only_if_they_are_safe_and_can_work() -> None:
    """Every committee of up to eight, with every q, t and c."""
    counts: dict[str, int] = {}
    for size in range(1, SIZE_MAX + 1):
        for votes, threshold, corrupt in product(range(size + 2), range(size + 2), range(size + 1)):
            rule = accepted(plan_of(size, votes, threshold, corrupt))
            counts[rule] = counts.get(rule, 0) + 1
            can_work = 1 <= votes <= size and threshold <= votes
            one_set = votes >= 1 and not two_sets_can_win(size, votes, corrupt)
            safe = one_set and corrupt_floor(size) <= corrupt < threshold
            assert (rule == "") == (can_work and safe), (size, votes, threshold, corrupt, rule)
            if rule == "equivocation":
                assert two_sets_can_win(size, votes, corrupt)
            if rule == "secrecy":
                assert corrupt >= threshold or corrupt < corrupt_floor(size)
            if rule == "liveness":
                assert threshold > votes
    assert counts[""] > 50
    assert set(counts) == {"", "quorum", "equivocation", "secrecy", "liveness"}


def test_shorter_rosters_keep_the_promise() -> None:
    """For every plan that is accepted, and every number of listed members."""
    for size in range(1, SIZE_MAX + 1):
        for votes, threshold, corrupt in product(range(1, size + 1), range(1, size + 1), range(size)):
            groups = plan_of(size, votes, threshold, corrupt)
            if accepted(groups):
                continue
            assert votes_needed(groups, size) == votes
            assert shares_needed(groups, size) == threshold
            for listed in range(corrupt + 1, size + 1):
                needed, shares = votes_needed(groups, listed), shares_needed(groups, listed)
                assert not two_sets_can_win(listed, needed, corrupt)
                assert corrupt < shares <= needed <= listed
                assert needed <= votes
                assert shares <= threshold
                fewest = next(q for q in range(1, listed + 1) if not two_sets_can_win(listed, q, corrupt))
                assert needed == max(fewest, votes - (size - listed))
            for listed in (0, *range(1, corrupt + 1), size + 1):
                with pytest.raises(RefusedError, match=f"a committee of {listed}"):
                    votes_needed(groups, listed)


@pytest.mark.parametrize("size", range(2, COMMITTEE_MAX + 1))
def test_committees_that_are_found_are_accepted(size: int) -> None:
    """Of every size, and tolerating about as many corrupt members as absent ones."""
    found = find_committee(size)
    assert accepted(plan_of(size, found.votes_min, found.threshold, found.corrupt_max)) == ""
    assert two_sets_can_win(size, found.votes_min, found.corrupt_max + 1)
    assert abs(found.corrupt_max - found.offline_max) <= 2
    for votes in range(-1, size + 3):
        if size < 2 * votes <= 2 * size and 2 * votes - size - 1 < corrupt_floor(size):
            with pytest.raises(RefusedError, match="may be corrupt"):
                find_committee(size, votes_min=votes)
        elif size < 2 * votes <= 2 * size:
            other = find_committee(size, votes_min=votes)
            assert accepted(plan_of(size, other.votes_min, other.threshold, other.corrupt_max)) == ""
        else:
            with pytest.raises(RefusedError, match="votes of"):
                find_committee(size, votes_min=votes)


@pytest.mark.parametrize("size", [-1, 0, 1, 65])
def test_there_is_no_committee_of_other_sizes(size: int) -> None:
    """Nobody, one alone, or more than a roster can list."""
    with pytest.raises(RefusedError, match="a committee of"):
        find_committee(size)


@pytest.mark.parametrize("committee", ["inline", "helpers"])
@pytest.mark.parametrize("size", range(5, COMMITTEE_MAX + 1))
def test_no_plan_lets_few_members_open_everything(committee: str, size: int) -> None:
    """Whoever holds the aggregator's key signs the plan: it cannot say that one helper, or two members, suffice."""
    for corrupt in range(corrupt_floor(size)):
        votes = (size + corrupt) // 2 + 1
        groups = plan_of(size, votes, corrupt + 1, corrupt).model_copy(update={"committee": committee})
        if committee == "inline":
            groups = groups.model_copy(update={"members_max": size})
        assert accepted(groups) == "secrecy"
    assert corrupt_floor(size) * 5 >= size - 4
    assert corrupt_floor(1) == corrupt_floor(2) == 1


def test_the_figures_of_the_design() -> None:
    """Fifteen helpers, and eight members."""
    helpers, inline = find_committee(15), find_committee(8)
    assert (helpers.votes_min, helpers.corrupt_max, helpers.offline_max) == (10, 4, 5)
    assert (inline.votes_min, inline.corrupt_max, inline.offline_max) == (6, 3, 2)
    assert [find_survivors_min(m) for m in (16, 32, 64)] == [12, 18, 36]


@pytest.mark.parametrize(("members", "committee"), [(8, 8), (32, 15), (64, 15), (64, 64), (5, 64)])
def test_the_largest_upload_of_a_plan_fits_one_message(members: int, committee: int) -> None:
    """With the most weights that are accepted, everything at its longest; one row of weights more is refused."""

    def sized(dimension: int) -> Plan:
        plan = make_plan(
            members_max=members,
            committee="helpers",
            size=committee,
            update={"weight_max": 1, "statistics": False},
            task="t" * 40,
        )
        return plan.model_copy(update={"dimension": dimension})

    good = max(d for d in range(1024, DIMENSION_MAX + 1, 1024) if not refused_by(sized(d)))
    assert refused_by(sized(good + 1024)) == "size"
    assert 70_000 < good < DIMENSION_MAX
    plan = sized(good)
    name = "d" * 60
    upload = Upload(
        id="i" * 120,
        task=plan.task,
        round=2**31 - 1,
        attempt=16,
        gid=511,
        device=name,
        transcript=bytes(32),
        vector=bytes(vector_bytes(plan)),
        boxes=(bytes(16 * members + 28),) * committee,
        commitments=(bytes(16),) * members,
        header=bytes(64),
    )
    sealed = seal(upload, UPLOAD_TYPE, name, person("gw-000").signer)
    assert len(sealed) <= upload_bytes_max(plan) <= PAYLOAD_BYTES_MAX
    assert upload_bytes_max(plan) - len(sealed) < 600
    assert good == 120 * 1024 - 1024 or upload_bytes_max(plan) + 2048 > PAYLOAD_BYTES_MAX


def test_the_largest_messages_of_a_closing_phase_fit() -> None:
    """64 members, 64 helpers, all ids at their longest."""
    names = [f"{i:02}".ljust(60, "d") for i in range(64)]
    survivors = tuple(
        Survivor(
            device=n,
            vector=bytes(32),
            boxes=(bytes(16),) * 64,
            commitments=bytes(32),
            header=bytes(64),
            box=bytes(1052),
        )
        for n in names
    )
    where: dict[str, Any] = {"task": "t" * 40, "round": 2**31 - 1, "attempt": 16, "gid": 511, "transcript": bytes(32)}
    signer = person("gw-000").signer
    sealed_vote = seal(
        Vote(id="v" * 140, member=names[0], survivors=bytes(32), complaints=tuple(names), **where),
        VOTE_TYPE,
        names[0],
        signer,
    )
    assert len(sealed_vote) <= 8192
    shares = Shares(
        id="s" * 140,
        member=names[0],
        survivors=bytes(32),
        shares=tuple(DeviceShares(device=n, own=bytes(16), pairs=(bytes(16),) * 59) for n in names),
        **where,
    )
    for body, kind in ((Close(survivors=survivors, **where), CLOSE_TYPE), (shares, SHARES_TYPE)):
        assert len(seal(body, kind, names[0], signer)) <= PAYLOAD_BYTES_MAX
    usual = Vote(id="v" * 140, member=names[0], survivors=bytes(32), **where)
    sealed = seal(usual, VOTE_TYPE, names[0], signer)
    corrupt = find_committee(64).corrupt_max
    opening = Opening(survivors=bytes(32), votes=(sealed_vote,) * corrupt + (sealed,) * (64 - corrupt), **where)
    assert len(seal(opening, OPENING_TYPE, "aggregator", signer)) <= PAYLOAD_BYTES_MAX


def test_survivors_that_are_found_are_accepted() -> None:
    """For every group that can be masked at all."""
    for size in range(1, 65):
        survivors = find_survivors_min(size)
        assert survivors >= SURVIVORS_FLOOR
        if size < SURVIVORS_FLOOR:
            continue
        assert survivors <= size
        plan = make_plan(members_max=size, survivors_min=survivors, size=size)
        check_plan(plan)
