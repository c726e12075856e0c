"""A small summary of anomaly scores that merges exactly: what a fleet tells a device that knows nothing yet.

Buckets grow by a constant ratio, so that each quantile is known to that ratio, however rare it is. A sketch with a
bound on *ranks* (KLL, t-digest) is smaller for the same bound near the median, and says nothing at all where a
threshold lies: a rank error of 1 % is everything above α = 1 %. Adding counts is the merge: it is exact, and the same
in any order and grouping. Nothing in it is random.

Source: Masson, Rim and Lee 2019, VLDB 12(12), §2 (DDSketch: relative-error buckets and their merge).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from vedette_schemas.errors import PeerError

Int64 = npt.NDArray[np.int64]

RATIO: Final = 1.05
"""Upper over lower end of a bucket: quantiles are overestimated by at most 5 %."""
SCORE_LOW: Final = 1e-3
"""Scores up to this share the first bucket. About 1 is usual: a thousandth of it is nothing."""
SCORE_HIGH: Final = 1e4
"""Scores from here on share the last bucket. Benign ones are far below."""
BUCKETS: Final = math.ceil(math.log(SCORE_HIGH / SCORE_LOW) / math.log(RATIO)) + 1
"""332."""
COUNT_MAX: Final = 2**40
"""Most scores in a sketch: 16 million devices with a full calibration each; sums stay far from overflow."""
SKETCH_BYTES_MAX: Final = 4096
"""Most bytes of a sketch: every bucket with a gap of one byte and the largest count would be 2,325."""
FORMAT: Final = 1

_UPPER: Final = np.minimum(SCORE_LOW * RATIO ** np.arange(BUCKETS), SCORE_HIGH)
_UPPER.setflags(write=False)


@dataclass(frozen=True, slots=True, eq=False)
class ScoreSketch:
    """How often scores fell into each bucket.

    Attributes:
        counts: ``(BUCKETS,) int64`` ≥ 0. Bucket 0 holds scores ≤ `SCORE_LOW`, bucket i those in
            (`SCORE_LOW` · `RATIO`ⁱ⁻¹, `SCORE_LOW` · `RATIO`ⁱ], the last one everything above as well.
    """

    counts: Int64

    @classmethod
    def of(cls, scores: npt.ArrayLike) -> ScoreSketch:
        """Sketch of scores ≥ 0.

        Raises:
            ValueError: a score is NaN or negative.
        """
        values = np.asarray(scores, np.float64).reshape(-1)
        if not (values >= 0.0).all():
            raise ValueError(f"sketch: found {int((~(values >= 0.0)).sum())} scores that are NaN or negative")
        places = np.minimum(np.searchsorted(_UPPER, values, side="left"), BUCKETS - 1)
        return cls(np.bincount(places, minlength=BUCKETS).astype(np.int64))

    @property
    def total(self) -> int:
        """Number of scores in it."""
        return int(self.counts.sum())

    def merged(self, other: ScoreSketch) -> ScoreSketch:
        """The sketch of both samples together.

        Raises:
            ValueError: more than `COUNT_MAX` scores.
        """
        counts = self.counts + other.counts
        if counts.sum() > COUNT_MAX:
            raise ValueError(f"sketch: found {counts.sum()} scores, expected at most {COUNT_MAX}")
        return ScoreSketch(counts)

    def weighing(self, total: int) -> ScoreSketch:
        """The same shape with exactly `total` scores; what rounding leaves goes where it took most, then upwards.

        Raises:
            ValueError: it is empty.
        """
        own = self.total
        if not own:
            raise ValueError("sketch: found no scores, expected some to weigh")
        # In Python's integers: the product of two large counts would overflow.
        shares = [divmod(int(count) * total, own) for count in self.counts.tolist()]
        counts = np.array([whole for whole, _ in shares], np.int64)
        left = total - int(counts.sum())
        for place in sorted(range(BUCKETS), key=lambda i: (-shares[i][1], -i))[:left]:
            counts[place] += 1
        return ScoreSketch(counts)

    def threshold(self, alpha: float) -> float:
        """Score that a benign one passes with a probability of at most `alpha`, by the conformal rank.

        Between the exact threshold of the same scores and `RATIO` times it (within `SCORE_LOW` … `SCORE_HIGH`). With
        fewer than 1 / α scores it is the largest one's.

        Args:
            alpha: 0 < α < 1.

        Raises:
            ValueError: it is empty.
        """
        total = self.total
        if not total:
            raise ValueError("sketch: found no scores, expected some to rank")
        rank = min(max(int(alpha * (total + 1) * (1.0 + 1e-12)), 1), total)
        at_least = np.cumsum(self.counts[::-1])
        return float(_UPPER[BUCKETS - 1 - int(np.searchsorted(at_least, rank))])

    def representatives(self, most: int) -> npt.NDArray[np.float64]:
        """At most `most` scores with this shape, ascending, each at the upper end of its bucket; ``(n,) float64``."""
        sketch = self if self.total <= most else self.weighing(most)
        return np.repeat(_UPPER, sketch.counts)

    def outline(self) -> bytes:
        """Where the score's deciles lie, one byte each: enough to tell kinds of devices apart, too little for more.

        Returns:
            Nine bytes, ascending; equal steps are equal ratios of scores. Empty if the sketch is.
        """
        if not self.total:
            return b""
        return bytes(
            int(np.searchsorted(_UPPER, self.threshold(1.0 - step / 10))) * 255 // (BUCKETS - 1)
            for step in range(1, 10)
        )

    def to_bytes(self) -> bytes:
        """Format number, then for each bucket with scores its distance from the last one and its count, as varints."""
        out, last = bytearray([FORMAT]), -1
        for place in np.flatnonzero(self.counts).tolist():
            _put(out, place - last)
            _put(out, int(self.counts[place]))
            last = place
        return bytes(out)

    @classmethod
    def from_bytes(cls, data: bytes) -> ScoreSketch:
        """Read `to_bytes`'s form back; there is one form of each sketch.

        Raises:
            PeerError: too long, another format, or bytes that `to_bytes` does not give.
        """
        if len(data) > SKETCH_BYTES_MAX:
            raise PeerError(
                f"sketch: found {len(data)} bytes, expected at most {SKETCH_BYTES_MAX} of its sender", reason="limit"
            )
        if not data or data[0] != FORMAT:
            raise PeerError(f"sketch: found {data[:1].hex()!r} first, expected format {FORMAT:02x}", reason="version")
        counts, place, at, total = np.zeros(BUCKETS, np.int64), -1, 1, 0
        while at < len(data):
            gap, at = _take(data, at)
            count, at = _take(data, at)
            place, total = place + gap, total + count
            if gap < 1 or count < 1 or place >= BUCKETS or total > COUNT_MAX:
                raise PeerError(
                    f"sketch: found {count} scores in bucket {place}, {total} in all; expected 1 or more in a later "
                    f"bucket below {BUCKETS}, and at most {COUNT_MAX} in all",
                    reason="encoding",
                )
            counts[place] = count
        return cls(counts)


def _put(out: bytearray, value: int) -> None:
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _take(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i in range(6):
        if at + i >= len(data):
            break
        byte = data[at + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            if byte == 0 and i:
                break
            return value, at + i + 1
    raise PeerError(
        f"sketch: found no number at byte {at} of {len(data)}, expected a minimal varint", reason="encoding"
    )
