"""Products block by block of their terms: what they compute, and which block they fetch meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import IRModule, te, tirx
from tvm.sym import Analyzer

from relay_passes.analysis.fixed_point import packed
from schedules.cpu.lower import LOWERING
from schedules.cpu.prefetch_blocks import prefetch_blocks
from schedules.kernels.conv2d import conv2d, conv2d_data_gradient
from schedules.kernels.matmul import across_matmul, matmul
from schedules.kernels.quantized import quantized_conv2d
from tests.schedules.kernels import HOST, LLVM, Kernel, assert_close, call, defined, doubles, noise

LINE = 16
PLAIN: dict[str, Any] = {"strides": [1, 1], "padding": [0] * 4, "dilation": [1, 1], "groups": 1}
PADDED = PLAIN | {"padding": [1] * 4}
NN = {"transpose_a": False, "transpose_b": False}
PRODUCTS: dict[str, tuple[Kernel, tuple[tuple[int, ...], ...], dict[str, Any]]] = {
    "1x1": (conv2d, ((1, 7, 7, 64), (1, 1, 64, 128)), PLAIN),
    "3x3": (conv2d, ((1, 7, 7, 64), (3, 3, 64, 128)), PADDED),
    "3x3 of two images": (conv2d, ((2, 7, 5, 48), (3, 3, 48, 128)), PADDED),
    "3x3, data": (conv2d_data_gradient, ((1, 7, 7, 64), (3, 3, 128, 64)), PADDED | {"size": [7, 7], "across": True}),
    "2x3, data": (
        conv2d_data_gradient,
        ((2, 6, 7, 32), (2, 3, 128, 32)),
        PLAIN | {"size": [7, 9], "across": True},
    ),
    "matrices": (matmul, ((49, 96), (96, 256)), NN),
    "a batch of matrices": (matmul, ((2, 14, 96), (2, 96, 256)), NN),
    "rows to the end of a tile": (matmul, ((61, 96), (96, 256)), NN | {"computed_rows": 64}),
    "across": (across_matmul, ((49, 96), (1, 128, 96)), {}),
}


def biased(kernel: Kernel, **options: Any) -> Kernel:
    """A product with a bias behind it."""

    def kernel_and_bias(a: te.Tensor, b: te.Tensor, bias: te.Tensor) -> te.Tensor:
        y = kernel(a, b, **options)
        return te.compute(y.shape, lambda *at: y(*at) + bias(at[-1]), name="biased")

    return kernel_and_bias


@pytest.mark.parametrize("terms", [None, 16], ids=["few blocks", "many blocks"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_in_blocks(name: str, terms: int | None) -> None:
    kernel, shapes, options = PRODUCTS[name]
    a, b = noise(name, *shapes)
    plain = defined(kernel, a, b, **options)
    (bias,) = noise("bias", (int(plain.params[-1].shape[-1]),))
    decisions = {"columns_first": True, "blocks": True} | ({"terms_of_block": terms} if terms else {})
    func = HOST.schedule(defined(biased(kernel, **options), a, b, bias), decisions)
    assert "parallel" in func.script()
    found = call(func, a, b, bias)
    assert_close(found, expected(name, *doubles(a, b)) + bias)


def expected(name: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    kernel, _, options = PRODUCTS[name]
    if kernel is matmul:
        return a @ b
    if kernel is across_matmul:
        return a @ b[0].T
    (height, width), pad = b.shape[:2], options["padding"][0]
    if kernel is conv2d:
        b_at = b
    else:  # a convolution of dY by the turned kernel
        b_at, pad = b[::-1, ::-1].swapaxes(2, 3), None
    before = (pad, pad) if pad is not None else (height - 1 - options["padding"][0], width - 1 - options["padding"][1])
    padded = np.pad(a, [(0, 0), (before[0],) * 2, (before[1],) * 2, (0, 0)])
    rows, columns = padded.shape[1] - height + 1, padded.shape[2] - width + 1
    return sum(padded[:, r : r + rows, s : s + columns] @ b_at[r, s] for r in range(height) for s in range(width))  # type: ignore[return-value]


def test_a_product_of_integers_in_blocks() -> None:
    """Its words come from four bytes each, of a padded image."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (1, 7, 7, 256), "uint8")
    weight = packed(rng.integers(-127, 128, (3, 3, 256, 128), "int8"))
    given = {"strides": [1, 1], "padding": [1] * 4, "dilation": [1, 1], "zero": 7}
    func = defined(quantized_conv2d, x, weight, **given)
    in_turn, plain = (HOST.schedule(func, {"columns_first": True, "blocks": blocks}) for blocks in (True, False))
    np.testing.assert_array_equal(call(in_turn, x, weight), call(plain, x, weight))


@pytest.mark.parametrize("across", [False, True], ids=["copied", "turned"])
def test_the_next_block_is_fetched_while_one_is_multiplied(across: bool) -> None:
    """Every line of it, and behind the last block of a strip the first one of the next strip."""
    size, terms, columns, height = 112, 56, 256, 49
    if across:
        size, terms = 128, 64
        kernel, shapes, options = across_matmul, ((height, size), (1, columns, size)), {}
    else:
        kernel, shapes, options = matmul, ((height, size), (size, columns)), NN
    a, b = noise("fetched", *shapes)
    decisions = {"columns_first": True, "blocks": True, "terms_of_block": terms, "tile": (7, 32)}
    func = HOST.schedule(defined(kernel, a, b, **options), decisions)
    fetches = list(fetched(flat(func).body, []))
    assert len(fetches) == 32 // LINE
    loops = fetches[0][1]
    task, block, *inner = [loop.loop_var for loop in loops]
    extents = [int(loop.extent) for loop in loops]
    assert extents[:2] == [columns // 32, size // terms]
    for strip, number in ((0, 0), (0, 1), (3, 1)):
        found = [
            int(Analyzer().simplify(at(fetch, {task: strip, block: number, **dict(zip(inner, places, strict=True))})))
            for fetch, _ in fetches
            for places in np.ndindex(*extents[2:])
        ]
        strip_next, number_next = (strip, number + 1) if number + 1 < size // terms else (strip + 1, 0)
        place = np.arange(b.size).reshape(columns, size).T if across else np.arange(b.size).reshape(size, columns)
        part = place[number_next * terms : (number_next + 1) * terms, strip_next * 32 : (strip_next + 1) * 32]
        lines = {int(each) // LINE for each in part.flat}
        assert {each // LINE for each in found} == lines
        assert len(found) < 2 * len(lines)


def flat(func: tirx.PrimFunc) -> tirx.PrimFunc:
    until = next(index for index, each in enumerate(LOWERING) if each.same_as(prefetch_blocks))
    mod = tirx.transform.BindTarget(LLVM.with_host(LLVM))(IRModule({"main": func}))
    return tvm.transform.Sequential(LOWERING[: until + 1])(mod)["main"]


def fetched(stmt: tirx.Stmt, loops: list[tirx.For]) -> Iterator[tuple[tirx.Expr, list[tirx.For]]]:
    """The places that prefetches fetch, each with the loops around it."""
    if isinstance(stmt, tirx.For):
        yield from fetched(stmt.body, [*loops, stmt])
    elif isinstance(stmt, tirx.SeqStmt):
        for step in stmt.seq:
            yield from fetched(step, loops)
    elif isinstance(stmt, tirx.AttrStmt):
        yield from fetched(stmt.body, loops)
    elif isinstance(stmt, tirx.Evaluate) and "prefetch" in str(stmt.value.op):
        yield stmt.value.args[0].args[0].indices[0], loops


def at(place: tirx.Expr, values: dict[tirx.Var, int]) -> tirx.Expr:
    def value(var: tirx.Var) -> tirx.Expr:
        return next((tirx.const(n, str(var.ty.dtype)) for known, n in values.items() if known.same_as(var)), var)

    return tvm_ffi.structural_map(place, (tirx.Var, value))
