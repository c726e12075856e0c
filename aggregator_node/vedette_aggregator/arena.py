"""How much memory an artifact needs in TensorFlow Lite Micro: an estimate from the lifetimes of its tensors.

The arena has two ends. Its head holds the tensors that are computed, packed so that two share bytes when they are never
alive at once; this part is computed here as the runtime's own planner does, and equals what the runtime reports. Its
tail holds what lives as long as the interpreter: its own structures, some for each operator, and a multiplier and a
shift for each quantised output channel; this part is an estimate, fitted to what was measured on 32-bit ARM.

Source: TensorFlow Lite Micro, ``greedy_memory_planner.cc`` and ``micro_allocation_info.cc``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vedette_aggregator.graph_reader import Graph

ALIGNMENT: Final = 16
"""Bytes: of every tensor in the arena."""
FIXED_BYTES: Final = 360
OPERATOR_BYTES: Final = 110
"""Of the tail, with 32-bit pointers: allocator and interpreter, and each operator. The sum is within 5 % of what eleven
of twelve models used, and 10 % below the twelfth (four networks as INT8, int16x8 and float32; TensorFlow Lite Micro
90b983c2, reference kernels, 32-bit ARM). With 64-bit pointers these two are about twice as large."""
CHANNEL_BYTES: Final = 8
"""Of the tail, an output channel of a quantised operator: int32 multiplier and shift."""
RESERVE: Final = 1.5
"""The smallest arena that could be set up was up to 46 % above what was in use afterwards: preparation needs more."""
_SCALED_A_CHANNEL: Final = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


@dataclass(frozen=True, slots=True)
class ArenaEstimate:
    """What an artifact needs of memory that can be written, beside its own bytes, which stay in flash.

    Attributes:
        tensors_bytes: the head: computed tensors, exactly.
        structures_bytes: the tail with 32-bit pointers and reference kernels, estimated.
    """

    tensors_bytes: int
    structures_bytes: int

    @property
    def used_bytes(self) -> int:
        """Both ends: near what ``MicroInterpreter::arena_used_bytes`` says."""
        return self.tensors_bytes + self.structures_bytes

    @property
    def recommended_bytes(self) -> int:
        """An arena to begin with, with `RESERVE`, a multiple of `ALIGNMENT`; optimised kernels may want more."""
        return _aligned(round(self.used_bytes * RESERVE))


def estimate_arena(graph: Graph) -> ArenaEstimate:
    """Estimate the arena of a graph; see the module's text."""
    channels = 0
    for op in graph.operators:
        output = graph.tensors[op.outputs[0]]
        if op.code in _SCALED_A_CHANNEL and output.element in ("int8", "int16"):
            channels += output.shape[-1]
    structures = FIXED_BYTES + OPERATOR_BYTES * len(graph.operators) + CHANNEL_BYTES * channels
    return ArenaEstimate(planned_bytes(graph), structures)


def planned_bytes(graph: Graph) -> int:
    """End of the last tensor when the largest is placed first, each into the lowest gap that holds it."""
    placed: list[tuple[int, int, int, int]] = []  # offset, size, first and last step in which it is alive
    lives = lifetimes(graph)
    largest_first = sorted(lives, key=lambda index: -_aligned(graph.tensors[index].size_bytes))
    for index in largest_first:
        first, last = lives[index]
        size, offset = _aligned(graph.tensors[index].size_bytes), 0
        for other, length, its_first, its_last in sorted(placed):
            if its_first <= last and first <= its_last:
                if other - offset >= size:
                    break
                offset = max(offset, other + length)
        placed.append((offset, size, first, last))
    return max((offset + size for offset, size, _, _ in placed), default=0)


def lifetimes(graph: Graph) -> dict[int, tuple[int, int]]:
    """First and last step, by place, in which each computed tensor must keep its bytes.

    Step 0 is before the first operator: the input is there from then on. An output stays to the end.
    """
    lives = dict.fromkeys(graph.inputs, (0, 0))
    for step, op in enumerate(graph.operators, start=1):
        for index in op.inputs:
            if not graph.tensors[index].constant_bytes:
                lives[index] = (lives[index][0], step)
        for index in op.outputs:
            lives[index] = (step, step)
    for index in graph.outputs:
        lives[index] = (lives[index][0], len(graph.operators))
    return lives


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
