"""Epilogues of products: element-wise consumers are computed within the register tile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm import te, tirx, topi

from tests.schedules.kernels import TARGETS, assert_close, call, doubles, has_vectors, noise, scheduled
from tests.schedules.test_products import CONVOLUTIONS, Reference, Row, across, is_tiled, product, strips, weights


def bias_relu(y: te.Tensor, bias: te.Tensor) -> te.Tensor:
    biased = te.compute(y.shape, lambda *i: y(*i) + bias(i[-1]), name="biased")
    return te.compute(y.shape, lambda *i: tirx.max(biased(*i), tirx.const(0, "float32")), name="relu")


def norm_relu(y: te.Tensor, bias: te.Tensor, mean: te.Tensor, spread: te.Tensor) -> te.Tensor:
    """As batch norm with fixed statistics: two vectors are computed beside the product, one from the other."""
    one = tirx.const(1, "float32")
    gain = te.compute(spread.shape, lambda c: one / tirx.sqrt(spread(c) * spread(c) + one), name="gain")
    shift = te.compute(bias.shape, lambda c: bias(c) - mean(c) * gain(c), name="shift")
    scaled = te.compute(y.shape, lambda *i: y(*i) * gain(i[-1]), name="scaled")
    shifted = te.compute(y.shape, lambda *i: scaled(*i) + shift(i[-1]), name="shifted")
    return te.compute(y.shape, lambda *i: tirx.max(shifted(*i), tirx.const(0, "float32")), name="relu")


def hardswish(y: te.Tensor, bias: te.Tensor) -> te.Tensor:
    """The biased product is read twice."""
    low, high = tirx.const(0, "float32"), tirx.const(6, "float32")
    biased = te.compute(y.shape, lambda *i: y(*i) + bias(i[-1]), name="biased")
    gate = te.compute(y.shape, lambda *i: tirx.min(tirx.max(biased(*i) + 3, low), high), name="gate")
    return te.compute(y.shape, lambda *i: biased(*i) * gate(*i) / high, name="hardswish")


def residual(y: te.Tensor, other: te.Tensor, number: te.Tensor) -> te.Tensor:
    """Another tensor, scaled by a number that is computed beside, is added."""
    half = te.compute((), lambda: number() * tirx.const(0.5, "float32"), name="half")
    scaled = te.compute(y.shape, lambda *i: other(*i) * half(), name="scaled")
    return te.compute(y.shape, lambda *i: y(*i) + scaled(*i), name="residual")


EPILOGUES: dict[str, tuple[Callable[..., te.Tensor], Reference, tuple[str, ...]]] = {
    "bias and ReLU": (bias_relu, lambda y, bias: np.maximum(y + bias, 0), ("columns",)),
    "norm and ReLU": (
        norm_relu,
        lambda y, bias, mean, spread: np.maximum((y - mean) / np.sqrt(spread**2 + 1) + bias, 0),
        ("columns",) * 3,
    ),
    "hard swish": (hardswish, lambda y, bias: (y + bias) * np.clip(y + bias + 3, 0, 6) / 6, ("columns",)),
    "residual": (residual, lambda y, other, number: y + other * number / 2, ("all", "number")),
}
"""For each the shapes of its operands: as the columns of the product, as all of it, or a number."""
BEFORE_EPILOGUES = [
    product("17, 24, 33", (17, 24), (24, 33)),
    product("17, 24, 33", (17, 24), (33, 24), "NT", tiled=False),
    product("batches", (2, 3, 17, 7), (2, 3, 7, 24)),
    product("long sum", (3, 2500), (2500, 136)),
    product("columns to the end of a vector", (24, 33), (33, 39), computed_columns=48),
    strips("of an image", (2, 7, 5, 17), (3, 17, 32)),
    strips("rows to the end of a tile", (3, 61, 24), (3, 4, 24, 16), computed_rows=64),
    across("in squares", (49, 128), (2, 96, 64)),
    across("rows to the end of a tile", (3, 61, 32), (3, 2, 48, 16), computed_rows=64),
    *(
        row
        for convolution in CONVOLUTIONS
        for row in convolution.rows()
        if row.name.startswith(("1x1, wide", "3x3, stride 2, odd", "3x3, stride 2, even", "3x3, long", "depthwise 3x3, stride 2, even"))
        and "weight" not in row.name
    ),
    weights("1x1", (1, 14, 14, 24), (1, 14, 14, 33), 1),
]  # fmt: skip


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("row", BEFORE_EPILOGUES, ids=lambda row: row.name)
def test_epilogue(row: Row, epilogue: str) -> None:
    behind, reference, kinds = EPILOGUES[epilogue]
    result = row.expected()
    shapes = {"columns": result.shape[-1:], "all": result.shape, "number": ()}
    beside = noise(epilogue, *(shapes[kind] for kind in kinds))
    count = len(row.shapes)

    def fused(*operands: te.Tensor, **options: Any) -> te.Tensor:
        return behind(row.kernel(*operands[:count], **options), *operands[count:])

    arrays = [*row.arrays(), *beside]
    for target in (TARGETS["host"], TARGETS["neon"]):
        func = scheduled(fused, *arrays, target=target, **row.options)
        assert not has_vectors(target) or is_tiled(func) == row.tiled
        assert_close(call(func, *arrays, target=target), reference(result, *doubles(*beside)))


MOVED: dict[str, tuple[Callable[[te.Tensor], te.Tensor], Callable[[np.ndarray], np.ndarray]]] = {
    "padded behind": (
        lambda y: topi.nn.pad(y, [0] * len(y.shape), [3] * len(y.shape)),
        lambda y: np.pad(y, [(0, 3)] * y.ndim),
    ),
    "cut": (
        lambda y: topi.strided_slice(y, [0] * len(y.shape), [max(1, int(extent) - 1) for extent in y.shape]),
        lambda y: y[tuple(slice(max(1, extent - 1)) for extent in y.shape)],
    ),
}


@pytest.mark.parametrize("moved", MOVED)
@pytest.mark.parametrize("row", BEFORE_EPILOGUES, ids=lambda row: row.name)
def test_what_moves_results_is_no_epilogue(row: Row, moved: str) -> None:
    """A tile of the product is not a tile of what was made of it: no element may stay unwritten."""
    behind, reference = MOVED[moved]
    arrays = row.arrays()
    func = scheduled(lambda *operands, **options: behind(row.kernel(*operands, **options)), *arrays, **row.options)
    assert_close(call(func, *arrays), reference(row.expected()))
