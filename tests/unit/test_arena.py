"""The arena of a microcontroller: packed as its planner does, and near what was measured on 32-bit ARM."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from vedette_aggregator.arena import ALIGNMENT, estimate_arena, lifetimes, planned_bytes
from vedette_aggregator.graph_reader import Graph, Operator, Tensor

MEASURED_USED_BYTES = {
    ("ae115", "int8"): 3084,
    ("ae115", "int16"): 3260,
    ("ae115", "float32"): 1496,
    ("ae24", "int8"): 1308,
    ("ae24", "int16"): 1340,
    ("ae24", "float32"): 920,
    ("cnn20x8", "int8"): 2204,
    ("cnn20x8", "int16"): 2844,
    ("cnn20x8", "float32"): 3832,
    ("hash256", "int8"): 1420,
    ("hash256", "int16"): 1708,
    ("hash256", "float32"): 1864,
}
"""``arena_used_bytes`` of TensorFlow Lite Micro 90b983c2, reference kernels, arm-linux-gnueabihf under qemu."""
MEASURED_SMALLEST_BYTES = {
    ("ae115", "int8"): 4048,
    ("ae24", "int8"): 1792,
    ("cnn20x8", "int8"): 2208,
    ("hash256", "int8"): 1616,
    ("ae115", "float32"): 1504,
    ("ae24", "float32"): 1344,
    ("cnn20x8", "float32"): 3840,
    ("hash256", "float32"): 1872,
}
"""The smallest arena with which the same models could be set up."""
STEPS = {
    "ae115": ((115,), [("FULLY_CONNECTED", (n,)) for n in (64, 16, 64, 115)]),
    "ae24": ((24,), [("FULLY_CONNECTED", (n,)) for n in (12, 6, 12, 24)]),
    "cnn20x8": (
        (20, 8),
        [
            ("CONV_2D", (20, 16)),
            ("CONV_2D", (10, 32)),
            ("FULLY_CONNECTED", (32,)),
            ("FULLY_CONNECTED", (1,)),
            ("LOGISTIC", (1,)),
        ],
    ),
    "hash256": (
        (256,),
        [("FULLY_CONNECTED", (32,)), ("FULLY_CONNECTED", (16,)), ("FULLY_CONNECTED", (1,)), ("LOGISTIC", (1,))],
    ),
}


def chain(source: tuple[int, ...], steps: list[tuple[str, tuple[int, ...]]], element: str) -> Graph:
    """A graph of one step after the other, without its constants."""
    shapes = [source, *(shape for _, shape in steps)]
    tensors = tuple(Tensor(str(i), (1, *shape), element) for i, shape in enumerate(shapes))
    operators = tuple(Operator(code, (i,), (i + 1,)) for i, (code, _) in enumerate(steps))
    return Graph(tensors, operators, (0,), (len(steps),))


@pytest.mark.parametrize(("model", "element"), MEASURED_USED_BYTES, ids=" ".join)
def test_the_estimate_is_near_what_was_measured(model: str, element: str) -> None:
    estimate = estimate_arena(chain(*STEPS[model], element))
    off = 0.10 if (model, element) == ("cnn20x8", "float32") else 0.05
    assert estimate.used_bytes == pytest.approx(MEASURED_USED_BYTES[model, element], rel=off)


@pytest.mark.parametrize(("model", "element"), MEASURED_SMALLEST_BYTES, ids=" ".join)
def test_the_recommended_arena_was_enough(model: str, element: str) -> None:
    estimate = estimate_arena(chain(*STEPS[model], element))
    assert estimate.recommended_bytes >= MEASURED_SMALLEST_BYTES[model, element]
    assert estimate.recommended_bytes % ALIGNMENT == 0


def test_a_tensor_lives_from_its_writing_to_its_last_reading() -> None:
    tensors = (
        *(Tensor(name, (1, 16), "float32") for name in "abcd"),
        Tensor("weights", (16, 16), "float32", constant_bytes=1024),
    )
    operators = (
        Operator("FULLY_CONNECTED", (0, 4), (1,)),
        Operator("FULLY_CONNECTED", (1, 4), (2,)),
        Operator("FULLY_CONNECTED", (0, 2), (3,)),
    )
    assert lifetimes(Graph(tensors, operators, (0,), (3,))) == {0: (0, 3), 1: (1, 2), 2: (2, 3), 3: (3, 3)}


@pytest.mark.parametrize("seed", range(20))
def test_a_plan_holds_what_lives_at_once_and_no_more_than_everything(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [int(n) for n in rng.integers(1, 400, size=rng.integers(2, 12))]
    graph = chain((sizes[0],), [("FULLY_CONNECTED", (n,)) for n in sizes[1:]], "int8")
    aligned = [-(-n // ALIGNMENT) * ALIGNMENT for n in sizes]
    least = max(a + b for a, b in itertools.pairwise(aligned))
    assert least <= planned_bytes(graph) <= sum(aligned)


def test_nothing_but_its_ends_is_planned_for_a_graph_of_one_step() -> None:
    assert planned_bytes(chain((3,), [("FULLY_CONNECTED", (5,))], "float32")) == 16 + 32
