"""Does secure aggregation compute the sum? Random rounds of the real functions against whole numbers.

Every round draws its own sizes: members (2–64), dropout (0–70 %), committee (2–60 helpers, or the members themselves;
a committee of one is refused by the protocol), quorum, threshold, ring, length; committee members that stay away, and
now and then one that lies about its shares. The vectors fill the ring, so that every sum wraps. What is left after the
masks is compared with the integers' own sum.

Signatures are not made here (`secagg.py` has them): they do not change a sum, and would take most of the time. A
committee that is refused and a sum that is not opened are counted apart from a wrong sum; as all rounds keep the
protocol's conditions, neither may happen.

Run: ``python bench/secagg_exact.py --rounds 10000 [--json]``
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: every process has its core

import argparse
import json
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import numpy.typing as npt

from vedette_core.crypto.agreement import key_pair
from vedette_core.learning.update_vector import RingArray, ring_bits
from vedette_core.secagg.aggregator import Unmasking, UploadEvidence
from vedette_core.secagg.participant import mask_update
from vedette_schemas.envelope import seal, unseal
from vedette_schemas.errors import RefusedError
from vedette_schemas.round import Plan, Roster, Upload, transcript_hash, upload_id
from vedette_schemas.secagg import CLOSE_TYPE, OPENING_TYPE, SHARES_TYPE, VOTE_TYPE, Shares, Vote

if TYPE_CHECKING or __package__:
    from bench import masked_site as site
else:
    import masked_site as site

MEMBERS: Final = (2, 64)
COMMITTEE: Final = (2, 60)
LENGTHS: Final = (1, 200)
DROPOUT_MAX: Final = 0.7
INLINE_SHARE: Final = 0.2
LIAR_SHARE: Final = 0.1
SPARE_MAX: Final = 3
"""Committee members beyond the quorum that answer all the same."""
SKEW: Final = 1.5
"""1 would be log-uniform. This way half of the rosters have up to 6 members, and one in seven 32 or more."""
CHUNK_ROUNDS: Final = 20


class Unsigned:
    """Signs nothing and believes everything."""

    def fork(self) -> Self:
        """Itself."""
        return self

    def learn(self, certificate: bytes, now: float, **_: Any) -> None:
        """Believed."""

    def sign(self, data: bytes) -> bytes:
        """No signature."""
        return bytes(64)

    def verify(self, sender: str, signature: bytes, data: bytes) -> None:
        """Believed."""


UNSIGNED: Final = Unsigned()


@dataclass(frozen=True, slots=True)
class Draw:
    """The sizes of one round.

    Attributes:
        shape: of the plan; the committee's conditions hold.
        members: rostered devices.
        missing: how many of them do not upload.
        length: elements of a vector.
        answering: committee members that answer, at least the quorum.
        lying: whether one of them gives wrong shares; there is then one more than the quorum.
    """

    shape: site.GroupShape
    members: int
    missing: int
    length: int
    answering: int
    lying: bool


def mostly_small(rng: np.random.Generator, low: int, high: int) -> int:
    """Every size from low to high, but small ones far more often: a round costs the product of two sizes."""
    ratio = (high + 1) / low
    return min(high, int(low * ratio ** (rng.random() ** SKEW)))


def draw(rng: np.random.Generator) -> Draw:
    """Sizes that keep the conditions of `vedette_core.secagg.parameters`."""
    members = mostly_small(rng, *MEMBERS)
    inline = bool(rng.random() < INLINE_SHARE)
    listed = members if inline else mostly_small(rng, *COMMITTEE)
    corrupt = int(rng.integers(0, max(1, listed - 1)))
    votes = int(rng.integers((listed + corrupt) // 2 + 1, listed + 1))
    threshold = int(rng.integers(corrupt + 1, votes + 1))
    lying = bool(corrupt and votes < listed and rng.random() < LIAR_SHARE)
    return Draw(
        shape=site.GroupShape(
            members_max=members,
            weight_max=int(rng.choice([1, 255])) if members > 1 else 1,
            survivors_min=1,
            committee=listed,
            votes_min=votes,
            threshold=threshold,
            corrupt_max=corrupt,
            inline=inline,
        ),
        members=members,
        missing=min(members - 1, round(rng.uniform(0, DROPOUT_MAX) * members)),
        length=mostly_small(rng, *LENGTHS),
        answering=int(rng.integers(votes + lying, min(listed, votes + lying + SPARE_MAX) + 1)),
        lying=lying,
    )


def play(sizes: Draw, rng: np.random.Generator) -> tuple[RingArray, npt.NDArray[np.int64], int]:
    """One round: (what the aggregator has at last, the sum of the survivors' integers, liars it found).

    Raises:
        RefusedError: the committee is not one to be seated.
        LookupError: the group was not opened.
    """
    shape = sizes.shape
    plan = site.make_plan(shape, sizes.length, 1)
    devices = [_node(name, rng) for name in site.ids_of_group(0, 1, sizes.members)]
    helpers = [] if shape.inline else [_node(f"helper-{i:02d}", rng) for i in range(shape.committee)]
    weights = [int(w) for w in rng.integers(1, shape.weight_max + 1, sizes.members)]
    roster = site.make_roster(plan, 0, devices, weights, helpers)
    bits = ring_bits(shape.members_max, shape.weight_max, shape.bits)
    kind = np.dtype(f"<u{bits // 8}")
    gone = set(rng.choice(sizes.members, sizes.missing, replace=False).tolist())
    total, expected = np.zeros(sizes.length, kind), np.zeros(sizes.length, np.int64)
    evidence: dict[str, UploadEvidence] = {}
    for number, node in enumerate(devices):
        vector = rng.integers(0, 2**bits, sizes.length, kind)
        if number not in gone:
            expected += vector
        upload = _upload(vector, roster, plan, node, rng.bytes)  # those that vanish had made theirs, too
        if number not in gone:
            total += np.frombuffer(upload.vector, kind)
            evidence[node.name] = UploadEvidence.of(upload)

    unmasking = Unmasking(roster, plan, evidence)
    found = _open(unmasking, roster, plan, devices if shape.inline else helpers, sizes, rng)
    unmasking.unmask(total)
    return total, expected % 2**bits, found


def _node(name: str, rng: np.random.Generator) -> site.Node:
    return site.Node(name, UNSIGNED, key_pair(rng.bytes(32)), bytes(64))


def _upload(vector: RingArray, roster: Roster, plan: Plan, node: site.Node, entropy: Callable[[int], bytes]) -> Upload:
    masked = mask_update(vector, roster, plan, node.name, node.pair, entropy)
    return Upload(
        id=upload_id(site.TASK, 1, 1, node.name),
        task=site.TASK,
        round=1,
        attempt=1,
        gid=roster.gid,
        device=node.name,
        transcript=transcript_hash(roster),
        vector=masked.vector,
        boxes=masked.boxes,
        commitments=masked.commitments,
        header=bytes(64),
    )


def _open(
    unmasking: Unmasking, roster: Roster, plan: Plan, committee: list[site.Node], sizes: Draw, rng: np.random.Generator
) -> int:
    chosen = [committee[i] for i in rng.choice(len(committee), sizes.answering, replace=False)]
    seats = [site.HelperSeat(node, roster, plan, UNSIGNED) for node in chosen]
    for seat in seats:
        vote = seat.vote(seal(unmasking.close_for(seat.name), CLOSE_TYPE, site.AGGREGATOR, UNSIGNED))
        unmasking.take_vote(unseal(Vote, vote, VOTE_TYPE, UNSIGNED)[0], vote)
    opening = seal(unmasking.opening(), OPENING_TYPE, site.AGGREGATOR, UNSIGNED)
    liar = seats[int(rng.integers(len(seats)))].name if sizes.lying else ""
    for seat in seats:
        shares, _ = unseal(Shares, seat.release(opening), SHARES_TYPE, UNSIGNED)
        unmasking.take_shares(_distort(shares) if seat.name == liar else shares)
    if not unmasking.try_open():
        raise LookupError(f"{sizes}: not opened; blamed {unmasking.blamed}, liars {unmasking.liars}")
    return len(unmasking.liars)


def _distort(shares: Shares) -> Shares:
    rows = tuple(row.model_copy(update={"own": bytes(b ^ 0x5A for b in row.own)}) for row in shares.shares)
    return shares.model_copy(update={"shares": rows})


def campaign(task: tuple[int, int, int]) -> Counter[str]:
    """Rounds ``first`` to ``last`` of a seed, counted; each has its own generator, so that any can be repeated."""
    seed, first, last = task
    counts: Counter[str] = Counter()
    for number in range(first, last):
        rng = np.random.default_rng((seed, number))
        sizes = draw(rng)
        counts["rounds"] += 1
        try:
            total, expected, found = play(sizes, rng)
        except RefusedError:
            counts["refused"] += 1
            continue
        except LookupError:
            counts["unopened"] += 1
            continue
        counts["mismatches"] += not np.array_equal(total, expected)
        counts[f"ring {total.dtype.itemsize * 8}"] += 1
        counts["inline" if sizes.shape.inline else "helpers"] += 1
        counts["with dropout"] += bool(sizes.missing)
        counts["with a liar"] += sizes.lying
        counts["liars found"] += found
        counts["uploads"] += sizes.members - sizes.missing
    return counts


def measure(rounds: int, seed: int, processes: int) -> dict[str, Any]:
    """The whole campaign."""
    start = time.perf_counter()
    tasks = [(seed, first, min(first + CHUNK_ROUNDS, rounds)) for first in range(0, rounds, CHUNK_ROUNDS)]
    counts: Counter[str] = Counter()
    if processes == 1:
        for task in tasks:
            counts += campaign(task)
    else:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            for part in pool.imap_unordered(campaign, tasks):
                counts += part
    known = ("rounds", "mismatches", "unopened", "refused", "uploads", "ring 16", "ring 32", "helpers", "inline")
    rest = ("with dropout", "with a liar", "liars found")
    return {
        **{name.replace(" ", "_"): counts[name] for name in (*known, *rest)},
        "seed": seed,
        "processes": processes,
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    """Play and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    result = measure(arguments.rounds, arguments.seed, arguments.processes)
    if arguments.json:
        print(json.dumps(result))
    else:
        width = max(map(len, result))
        for key, value in result.items():
            print(f"{key:<{width}}  {value}")
    if result["mismatches"] or result["unopened"] or result["refused"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
