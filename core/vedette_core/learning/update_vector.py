"""An update as one vector of whole numbers modulo 2^16 or 2^32, which masks can be added to, and the sum of many.

The vector is the levels times the weight, followed by control slots: the weight, whether the update was clipped, the
statistics if the plan asks for them, and canaries, which are zero. Integers of the machine wrap as the ring does, so
that vectors and masks are added in place, one at a time, in any order, and the sum of the encodings comes out exactly.

An aggregator that sees sums only cannot look at one device's vector. What it can do is check the sum: weights are
public, so that their slot has one right value; canaries must be zero; no coordinate can exceed the sum of the weights
times the largest level; every histogram counts each survivor once. A vector that is no encoding, or whose mask was
not removed, fails this and costs its group. What passes is bounded by the same checks, and by nothing else: a device
that knows the format can still send a wrong, well-formed update.

Where noise is to hide what one device said, only canaries and weights may be checked on the exact sum: honest devices
say the same there whatever their data are. The rest stays residues (`RingSum`) until the noise is on it. Whether a
coordinate is out of range, or how far a sum has wrapped, is otherwise an answer about the others' exact sum to whoever
chose one of its terms. The devices' noise shares are on the coordinates alone.

Source: Bonawitz et al. 2017, CCS, section 4 (sums of masked vectors modulo R); Kairouz et al. 2021, arXiv 2102.06387,
section 3 (residues that are read as centred).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from vedette_core.learning.encoding import Bits, Encoding, Levels, Sums, decode_checked
from vedette_core.learning.layout import Float32
from vedette_core.learning.statistics_slots import (
    LocalStatistics,
    StatisticsSum,
    add_statistics,
    read_statistics,
    statistics_length,
    statistics_slots,
)
from vedette_schemas.errors import PeerError, RefusedError

CANARIES: Final = 8
"""Slots that are zero: in 16 bits, random bytes pass all of them once in 2^128."""
NOISE_SIGMAS: Final = 8.0
"""Standard deviations of the noise that sums may stray out of their range by: once in 10^15 a coordinate they go
farther, and a group would be lost."""

RingBits = Literal[16, 32]
RingArray = npt.NDArray[np.unsignedinteger[Any]]
"""Little-endian uint16 or uint32."""


@dataclass(frozen=True, slots=True)
class VectorLayout:
    """Where what lies in the vector: levels first, then the control slots with the canaries spread among them.

    Attributes:
        coordinates: levels, that is `Encoding.padded`, ≥ 1.
        tensors: sorted names of the tensors whose ranges are reported; they have slots only with `statistics`.
        statistics: whether there are more control slots than weight and clipped bit.
    """

    coordinates: int
    tensors: tuple[str, ...] = ()
    statistics: bool = False

    def __post_init__(self) -> None:
        if self.coordinates < 1:
            raise ValueError(f"layout: found {self.coordinates} coordinates, expected at least 1")
        if list(self.tensors) != sorted(set(self.tensors)):
            raise ValueError(f"layout: found tensors {list(self.tensors)}, expected each once and sorted")

    @property
    def control_slots(self) -> int:
        """Slots behind the coordinates, canaries included."""
        return 2 + (statistics_length(self.tensors) if self.statistics else 0) + CANARIES

    @property
    def length(self) -> int:
        """Elements of the vector."""
        return self.coordinates + self.control_slots

    def canaries(self) -> list[int]:
        """Places of the canaries in the vector: at even distances, the last one last."""
        return [self.coordinates + (k + 1) * self.control_slots // CANARIES - 1 for k in range(CANARIES)]

    def content(self) -> npt.NDArray[np.intp]:
        """Places of the other control slots, in order: weight, clipped bit, statistics."""
        return np.setdiff1d(np.arange(self.coordinates, self.length), self.canaries())


@dataclass(frozen=True, slots=True, eq=False)
class GroupSum:
    """What the sum of a group's vectors says, or of several groups' (`add_group_sums`).

    Attributes:
        levels: ``(coordinates,)`` int64 sums of weighted levels, with noise where the plan asks for it.
        weight: sum of the survivors' weights, ≥ 1.
        survivors: how many they are, ≥ 1.
        clipped: how many of them were clipped; 0 where noise hides it.
        statistics: of their training, if the layout has them.
    """

    levels: Sums = field(repr=False)
    weight: int
    survivors: int
    clipped: int
    statistics: StatisticsSum | None = None


@dataclass(frozen=True, slots=True, eq=False)
class RingSum:
    """A sum that is not read yet: of a group's vectors, or of several groups' (`add_ring_sums`).

    Attributes:
        residues: ``(coordinates,)`` little-endian uint16 or uint32 sums of weighted levels.
        clipped: residue of how many were clipped.
        weight: sum of the survivors' weights, ≥ 1.
        survivors: how many they are, ≥ 1.
    """

    residues: RingArray = field(repr=False)
    clipped: int
    weight: int
    survivors: int

    @property
    def modulus(self) -> int:
        """Elements of the ring: 2^16 or 2^32."""
        return int(2 ** (8 * self.residues.dtype.itemsize))


def ring_bits(
    members_max: int, weight_max: int, bits: Bits, noise_sigma: float = 0.0, noise_draws: int | None = None
) -> RingBits:
    """Width of the ring that no sum can overrun: 16 bits if that will do, else 32.

    Args:
        members_max: most devices in a sum, ≥ 1.
        weight_max: largest weight, ≥ 1.
        bits: width of a level.
        noise_sigma: standard deviation in levels of each draw of noise that is in the sum; 0 is none.
        noise_draws: how many there are; one a device where left out.

    Raises:
        RefusedError: 32 bits are too few; groups, weights or noise must be smaller.
    """
    if members_max < 1 or weight_max < 1:
        raise ValueError(f"ring: found {members_max} members of weight up to {weight_max}, expected at least 1 of each")
    total, draws = members_max * weight_max, members_max if noise_draws is None else noise_draws
    if _span(total, draws, bits, noise_sigma) < 2**16:
        return 16
    check_headroom(total, draws, bits, 32, noise_sigma)
    return 32


def check_headroom(
    weight_sum_max: int, noise_draws: int, bits: Bits, ring_bits: RingBits, noise_sigma: float = 0.0
) -> None:
    """A ring must hold every sum there can be, and what the noise adds to it on both sides.

    Args:
        weight_sum_max: largest sum of weights.
        noise_draws: most draws of noise that are in the sum: one a device, or one.
        bits: width of a level.
        ring_bits: width of the ring.
        noise_sigma: standard deviation of each in levels; 0 is none.

    Raises:
        RefusedError: it does not.
    """
    span = _span(weight_sum_max, noise_draws, bits, noise_sigma)
    if span >= 2**ring_bits:
        raise RefusedError(
            f"ring of {ring_bits} bits: found sums over {span + 1} values (devices of weight {weight_sum_max} "
            f"together, levels of {bits} bits, {noise_draws} times noise of {noise_sigma:g} levels), "
            f"expected at most {2**ring_bits}",
            rule="ring",
        )


def noise_margin(noise_sigma: float, draws: int) -> int:
    """How far so many draws of noise may carry a sum: `NOISE_SIGMAS` standard deviations of the rounded noise."""
    if noise_sigma == 0.0:
        return 0
    return math.ceil(NOISE_SIGMAS * math.sqrt(draws * (noise_sigma**2 + 1.0 / 12.0)))


def pack_vector(
    levels: Levels,
    weight: int,
    statistics: LocalStatistics,
    layout: VectorLayout,
    encoding: Encoding,
    ring_bits: RingBits,
    *,
    noise: Sums | None = None,
) -> RingArray:
    """One device's vector, before masks.

    Args:
        levels: ``(coordinates,)`` uint8 or uint16 of `EncodedUpdate`.
        weight: what it counts, ≥ 1.
        statistics: of the device's training; without `VectorLayout.statistics` only the clipped bit is used.
        layout: the round's.
        encoding: the round's.
        ring_bits: the round's.
        noise: ``(coordinates,)`` int64 of `EncodedUpdate`: the device's share of the noise, added as it is.

    Returns:
        ``(layout.length,)`` little-endian uint16 or uint32, fresh: masks may be added in place.

    Raises:
        ValueError: levels, noise or weight do not belong to this layout, encoding and ring.
    """
    _check_layout(layout, encoding)
    if levels.shape != (layout.coordinates,) or levels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"levels: found {levels.dtype} {levels.shape}, expected unsigned ({layout.coordinates},)")
    if int(levels.max()) > encoding.level_max:
        raise ValueError(f"levels: found up to {levels.max()}, expected up to {encoding.level_max}")
    if not 1 <= weight * encoding.level_max < 2**ring_bits:
        raise ValueError(f"weight: found {weight}, expected 1 to {(2**ring_bits - 1) // encoding.level_max}")
    vector = zero_vector(layout, ring_bits)
    coordinates = vector[: layout.coordinates]
    np.multiply(levels, vector.dtype.type(weight), out=coordinates, dtype=vector.dtype)
    if noise is not None:
        if noise.shape != levels.shape or noise.dtype != np.int64:
            raise ValueError(f"noise: found {noise.dtype} {noise.shape}, expected int64 {levels.shape}")
        coordinates += noise.astype(vector.dtype)  # modulo 2^ring_bits
    control = np.array([weight, statistics.clipped], np.int64)
    if layout.statistics:
        more = statistics_slots(statistics, weight, encoding.clip_norm, layout.tensors)
        control = np.concatenate((control, more))
    vector[layout.content()] = control
    return vector


def zero_vector(layout: VectorLayout, ring_bits: RingBits) -> RingArray:
    """Where a sum starts."""
    return np.zeros(layout.length, _ring_type(ring_bits))


def vector_from_bytes(data: bytes | memoryview, layout: VectorLayout, ring_bits: RingBits) -> RingArray:
    """A vector as it travelled, without a copy; it cannot be written to.

    Raises:
        PeerError: another length.
    """
    expected = layout.length * ring_bits // 8
    if len(data) != expected:
        raise PeerError(f"vector: found {len(data)} bytes, expected {expected}", reason="schema")
    return np.frombuffer(data, _ring_type(ring_bits))


def add_vector(total: RingArray, vector: RingArray) -> None:
    """Add one vector to a sum, in place, modulo 2^ring_bits.

    Raises:
        ValueError: they are of different rings or layouts.
    """
    if total.shape != vector.shape or total.dtype != vector.dtype:
        raise ValueError(f"vector: found {vector.dtype} {vector.shape}, expected {total.dtype} {total.shape}")
    np.add(total, vector, out=total)


def unpack_sum(
    total: RingArray,
    weight_sum: int,
    survivors: int,
    layout: VectorLayout,
    encoding: Encoding,
    ring_bits: RingBits,
    *,
    noise_sigma: float = 0.0,
) -> GroupSum:
    """Read the sum of a group's vectors, after all masks were removed.

    Args:
        total: ``(layout.length,)`` of the ring; left as it is.
        weight_sum: sum of the survivors' weights, which is public.
        survivors: how many vectors are in the sum.
        layout: the round's.
        encoding: the round's.
        ring_bits: the round's.
        noise_sigma: standard deviation of each device's share of the noise, as in `encode`.

    Raises:
        PeerError: the sum is none that so many encodings can have (reasons ``canary``, ``weight``, ``limit``,
            ``statistics``): the group is dropped.
        RefusedError: the ring is too narrow for this weight and noise to be read without doubt.
        ValueError: the arguments do not belong together.
    """
    _check_layout(layout, encoding)
    framed = frame_sum(total, weight_sum, survivors, layout, ring_bits)
    levels = read_levels(framed, encoding, noise_sigma, survivors)
    clipped = framed.clipped
    if clipped > survivors:
        raise PeerError(f"sum of a group: found {clipped} clipped of {survivors} updates", reason="statistics")
    statistics = None
    if layout.statistics:
        control = total[layout.content()].astype(np.int64)
        statistics = read_statistics(control[2:], weight_sum, survivors, layout.tensors)
    return GroupSum(levels, weight_sum, survivors, clipped, statistics)


def frame_sum(total: RingArray, weight_sum: int, survivors: int, layout: VectorLayout, ring_bits: RingBits) -> RingSum:
    """Check of a sum what honest vectors have alike whatever their data are, and read nothing else.

    Args:
        total: ``(layout.length,)`` of the ring; left as it is, and the result looks into it.
        weight_sum: sum of the survivors' weights, which is public.
        survivors: how many vectors are in the sum.
        layout: the round's.
        ring_bits: the round's.

    Raises:
        PeerError: a canary is not zero, or the weight another (reasons ``canary``, ``weight``): the group is dropped.
        ValueError: the arguments do not belong together.
    """
    if total.shape != (layout.length,) or total.dtype != _ring_type(ring_bits):
        raise ValueError(f"sum: found {total.dtype} {total.shape}, expected {ring_bits} bits, ({layout.length},)")
    if not 1 <= survivors <= weight_sum:
        raise ValueError(f"sum: found {survivors} survivors of weight {weight_sum}, expected 1 or more, of 1 or more")
    spoilt = int(np.count_nonzero(total[layout.canaries()]))
    if spoilt:
        raise PeerError(
            f"sum of a group: found {spoilt} of {CANARIES} canaries not zero, expected none", reason="canary"
        )
    weight, clipped = (int(value) for value in total[layout.content()[:2]])
    if weight != weight_sum:
        raise PeerError(f"sum of a group: found weight {weight}, expected {weight_sum}", reason="weight")
    return RingSum(total[: layout.coordinates], clipped, weight_sum, survivors)


def add_ring_sums(sums: Sequence[RingSum]) -> RingSum:
    """The sum of several groups of one attempt, still as residues.

    Raises:
        ValueError: no group, or groups of different layouts or rings.
    """
    if not sums:
        raise ValueError("groups: found none, expected at least one")
    residues = sums[0].residues.copy()
    for more in sums[1:]:
        add_vector(residues, more.residues)
    return RingSum(
        residues,
        sum(s.clipped for s in sums) % sums[0].modulus,
        sum(s.weight for s in sums),
        sum(s.survivors for s in sums),
    )


def read_levels(total: RingSum, encoding: Encoding, noise_sigma: float, noise_draws: int) -> Sums:
    """The whole numbers behind a sum's residues, each within what its weight and its noise can give.

    Args:
        total: with all of its noise.
        encoding: the round's.
        noise_sigma: standard deviation in levels of each draw of noise that is in it; 0 is none.
        noise_draws: how many there are.

    Returns:
        ``(coordinates,)`` int64.

    Raises:
        PeerError: a coordinate is farther off than the noise explains (reason ``limit``).
        RefusedError: the ring is too narrow for this weight and noise to be read without doubt.
    """
    ring: RingBits = 16 if total.residues.dtype.itemsize == 2 else 32
    check_headroom(total.weight, noise_draws, encoding.bits, ring, noise_sigma)
    limit, margin = encoding.level_max * total.weight, noise_margin(noise_sigma, noise_draws)
    levels = _centred(total.residues, limit, ring)
    least, most = int(levels.min()), int(levels.max())
    if least < -margin or most > limit + margin:
        raise PeerError(
            f"sum of a group: found coordinates {least} to {most} for a weight of {total.weight}, "
            f"expected {-margin} to {limit + margin}",
            reason="limit",
        )
    return levels


def add_group_sums(sums: Iterable[GroupSum]) -> GroupSum:
    """The sum of several groups of one attempt, which all rotate alike. They are taken one at a time.

    Raises:
        ValueError: no group, or groups of different layouts.
    """
    total: Sums | None = None
    weight = survivors = clipped = 0
    statistics: StatisticsSum | None = None
    for group in sums:
        if total is None:
            total, statistics = group.levels.copy(), group.statistics
        else:
            if total.shape != group.levels.shape or (statistics is None) != (group.statistics is None):
                raise ValueError(
                    f"group: found {group.levels.shape} with{'out' if group.statistics is None else ''} statistics, "
                    f"expected {total.shape} with{'out' if statistics is None else ''}"
                )
            total += group.levels
            if statistics is not None and group.statistics is not None:
                statistics = add_statistics(statistics, group.statistics)
        weight += group.weight
        survivors += group.survivors
        clipped += group.clipped
    if total is None:
        raise ValueError("groups: found none, expected at least one")
    return GroupSum(total, weight, survivors, clipped, statistics)


def decode_group_mean(group: GroupSum, encoding: Encoding) -> Float32:
    """Weighted mean delta ``(dimension,)`` float32 of the survivors. The sum may have had noise added.

    Raises:
        ValueError: the sum is of another length than the encoding's.
    """
    return decode_checked(group.levels, group.weight, encoding)


def _check_layout(layout: VectorLayout, encoding: Encoding) -> None:
    if layout.coordinates != encoding.padded:
        raise ValueError(f"layout: found {layout.coordinates} coordinates, expected {encoding.padded}")


def _ring_type(ring_bits: RingBits) -> np.dtype[np.unsignedinteger[Any]]:
    if ring_bits not in (16, 32):
        raise ValueError(f"ring: found {ring_bits} bits, expected 16 or 32")
    return np.dtype("<u2" if ring_bits == 16 else "<u4")


def _span(weight_sum: int, noise_draws: int, bits: Bits, noise_sigma: float) -> int:
    """Largest sum less the smallest."""
    return weight_sum * ((1 << bits) - 1) + 2 * noise_margin(noise_sigma, noise_draws)


def _centred(residues: RingArray, limit: int, ring_bits: RingBits) -> Sums:
    """The whole numbers with these residues around 0…limit; what the ring has to spare is on both sides alike."""
    low = (limit + 1) // 2 - 2 ** (ring_bits - 1)
    values = np.subtract(residues, residues.dtype.type(low % 2**ring_bits)).astype(np.int64)
    values += low
    return values
