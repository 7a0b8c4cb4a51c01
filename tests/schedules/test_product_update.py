"""Products of weight gradients that update the weight, against NumPy in double precision."""

from __future__ import annotations

import numpy as np
import pytest

from schedules.cpu import CpuTarget
from schedules.cpu.traits import CpuTraits
from schedules.kernels.joint_update import product_update
from schedules.kernels.matmul import matmul
from schedules.kernels.update import Layout, gradient_of
from schedules.target import GENERIC, Target
from tests.schedules.kernels import CPUS, LLVM, assert_close, built, call, defined, doubles, noise
from tests.schedules.test_update import UPDATES

TWO_PORTS = CpuTarget(CpuTraits(lanes=16, registers=32, cores=2, fma_ports=2), LLVM)
"""A core that packs the panels of long sums."""
CASES = {
    "7x10": (3, Layout((7, 10), "float32")),
    "one term": (1, Layout((17, 33), "float32")),
    "33x48": (17, Layout((33, 48), "float32")),
    "parts of a loop": (197, Layout((24, 64), "float32")),
    "1x3": (7, Layout((1, 3), "float32")),
    "rows of 5x33": (17, Layout((5, 33), "float32", 0, 3)),
    "columns of 24x5": (7, Layout((24, 5), "float32", 1, 3)),
    "part of 64x64": (33, Layout((64, 64), "float32", part=(16, 48))),
    "a convolution's 1x1x12x32": (33, Layout((1, 1, 12, 32), "float32")),
}
"""Terms of the sum, and the weight."""
TRAINED = [4, 0, 2]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["sgd, nesterov", "adamw"])
def test_product_updates_a_weight(name: str, case: str) -> None:
    _check(name, *CASES[case], CPUS["host"])


@pytest.mark.parametrize("target", [CPUS["avx2"], CPUS["neon"], TWO_PORTS], ids=["avx2", "neon", "two ports"])
@pytest.mark.parametrize("case", CASES)
def test_product_updates_a_weight_by_any_tile(case: str, target: Target) -> None:
    _check("sgd", *CASES[case], target)


def test_product_is_added_to_a_sum() -> None:
    _check("accumulate", *CASES["33x48"], CPUS["host"])


def test_panels_update_a_weight() -> None:
    _check("sgd, momentum", 300, Layout((36, 2048), "float32"), TWO_PORTS)


@pytest.mark.parametrize(
    ("terms", "columns", "target"),
    [(17, 39, CPUS["host"]), (17, 37, CPUS["neon"]), (300, 1001, TWO_PORTS)],
    ids=["host", "neon", "panels"],
)
def test_columns_to_the_end_of_a_vector_update_no_more_than_the_weight(
    terms: int, columns: int, target: Target
) -> None:
    whole = columns + 16 - columns % 16
    _check("sgd, momentum", terms, Layout((12, columns), "float32"), target, computed_columns=whole)


@pytest.mark.parametrize("panels", [0, 1, 3], ids=["by each task", "one at once", "three"])
def test_panels_are_packed_by_tasks_or_before_them(panels: int) -> None:
    a, b = noise("panels", (2, 270, 36), (2, 270, 2048))
    kernel = defined(matmul, a, b, transpose_a=True, transpose_b=False)
    func = TWO_PORTS.schedule(kernel, {"panels_at_once": panels})
    assert_close(call(func, a, b, target=TWO_PORTS), doubles(a)[0].mT @ doubles(b)[0])


def test_numbers_that_are_not_finite_reach_the_weight() -> None:
    _check("sgd, momentum", 17, Layout((7, 32), "float32"), CPUS["host"], hostile=True)


def _check(name: str, terms: int, layout: Layout, target: Target, *, hostile: bool = False, **computed: int) -> None:
    build, options, reference, count, vectors = UPDATES[name]
    rows, columns = layout.updated[-2:]
    x, dy = noise(name, (terms, rows), (terms, columns))
    if hostile:
        x[3, 2], dy[5, 7] = np.nan, np.inf
    weight, *states = noise("states", layout.shape, *[layout.piece] * (count - 1))
    for square in states[1:]:
        square *= square
    lengths = {"vectors": {vector: len(values) for vector, values in vectors.items()}} if vectors else {}
    update = build(layout, **options, **lengths)
    at = gradient_of(update)
    assert at == 1
    product = defined(matmul, x, dy, transpose_a=True, transpose_b=False, **computed)
    scheduled = target.schedule(product_update(product, update, at))
    assert GENERIC not in scheduled.attrs
    expected = doubles(weight, *states)
    piece = [slice(None)] * weight.ndim
    if layout.axis is not None:
        piece[layout.axis] = TRAINED
    if layout.part is not None:
        piece[0] = slice(*layout.part)
    gradient = np.matmul(doubles(x)[0].T, doubles(dy)[0]).reshape(layout.updated) * vectors.get("clip", [1])[0]
    of_state = piece if layout.part is not None else [slice(None)] * weight.ndim
    before = [expected[0][tuple(piece)], *(state[tuple(of_state)] for state in expected[1:])]
    with np.errstate(invalid="ignore"):
        changed = reference(before[0], gradient, *before[1:], **options)
    for whole, where, new in zip(expected, [piece, *[of_state] * len(states)], changed, strict=True):
        whole[tuple(where)] = new
    given = [np.array(values, "float32") for values in vectors.values()]
    channels = [] if layout.axis is None else [np.array(TRAINED, "int32")]
    built(scheduled, target)(weight, *states, *given, *channels, x, dy)
    for actual, wanted in zip([weight, *states], expected, strict=True):
        finite = np.isfinite(wanted)
        np.testing.assert_array_equal(actual[~finite], wanted[~finite].astype("float32"))
        assert_close(actual[finite], wanted[finite])
