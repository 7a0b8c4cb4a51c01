"""Decisions reach a schedule from outside: whatever is decided, a kernel computes the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import te, tirx, topi

from schedules.cpu import CpuTarget
from schedules.cpu.traits import CpuTraits
from schedules.decisions import Choices, DecisionError
from schedules.kernels.conv2d import conv2d, conv2d_data_gradient, conv2d_weight_gradient
from schedules.kernels.functions import softmax
from schedules.kernels.matmul import across_matmul, matmul
from schedules.kernels.reduction import channel_sum
from schedules.kernels.transpose import transpose
from schedules.kernels.update import Layout, assign
from schedules.target import Target
from tests.schedules.kernels import LLVM, Kernel, assert_close, built, call, defined, noise

TARGETS: dict[str, Target] = {
    "cpu": CpuTarget(CpuTraits(lanes=8, registers=16, cores=2, cache_bytes=4096), LLVM),
}
"""Small caches, so that small kernels have the choices of large ones."""
PLAIN = {"transpose_a": False, "transpose_b": False}
ACROSS = {"transpose_a": True, "transpose_b": False}
ONCE = {"strides": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1)}
TWICE = ONCE | {"strides": (2, 2)}


def rectified(x: te.Tensor, weight: te.Tensor) -> te.Tensor:
    return topi.nn.relu(matmul(x, weight, **PLAIN))


def across(x: te.Tensor, y: te.Tensor) -> te.Tensor:
    return topi.add(topi.transpose(x, (0, 2, 1)), y)


KERNELS: dict[str, tuple[Kernel, list[tuple[int, ...]], dict[str, Any]]] = {
    "product": (matmul, [(12, 24), (24, 32)], PLAIN),
    "product with an epilogue": (rectified, [(2, 6, 5), (5, 16)], {}),
    "products": (matmul, [(3, 4, 8), (3, 8, 16)], PLAIN),
    "wide product": (matmul, [(48, 20), (20, 64)], PLAIN),
    "product across its sum": (matmul, [(20, 24), (20, 64)], ACROSS),
    "products across their sums": (matmul, [(2, 20, 12), (2, 20, 64)], ACROSS),
    "product of a widened operand": (matmul, [(6, 20), (20, 37)], PLAIN | {"computed_columns": 48}),
    "product of a turned operand": (across_matmul, [(2, 3, 4, 32), (2, 48, 16)], {}),
    "convolution": (conv2d, [(2, 4, 6, 3), (3, 3, 3, 16)], ONCE | {"groups": 1}),
    "data gradient": (conv2d_data_gradient, [(1, 2, 3, 8), (3, 3, 8, 8)], TWICE | {"groups": 1, "size": (4, 6)}),
    "weight gradient": (
        conv2d_weight_gradient,
        [(2, 4, 6, 4), (2, 4, 6, 16)],
        ONCE | {"groups": 1, "kernel_size": (3, 3), "chunks": (2, 1)},
    ),
    "depthwise": (conv2d, [(1, 4, 6, 16), (3, 3, 1, 16)], ONCE | {"groups": 16}),
    "depthwise data gradient": (
        conv2d_data_gradient,
        [(1, 2, 3, 16), (3, 3, 1, 16)],
        TWICE | {"groups": 16, "size": (4, 6)},
    ),
    "depthwise weight gradient": (
        conv2d_weight_gradient,
        [(2, 4, 6, 16), (2, 4, 6, 16)],
        ONCE | {"groups": 16, "kernel_size": (3, 3), "chunks": (2, 1)},
    ),
    "sum over rows": (channel_sum, [(8, 6, 64)], {"chunks": (2, 3)}),
    "transpose": (transpose, [(2, 16, 24)], {"axes": (0, 2, 1)}),
    "rows": (softmax, [(6, 96)], {}),
    "fallback": (across, [(2, 12, 16), (2, 16, 12)], {}),
}


@pytest.fixture(params=TARGETS.values(), ids=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    return request.param


def kernel_of(name: str) -> tuple[tirx.PrimFunc, list[np.ndarray]]:
    kernel, shapes, given = KERNELS[name]
    arrays = noise(name, *shapes)
    return defined(kernel, *arrays, **given), arrays


def alternatives(func: tirx.PrimFunc, target: Target) -> Iterator[dict[str, Any]]:
    """Each option but the defaults, alone, and with it those of the choices that it opens."""
    first = target.options(func)
    for name, choice in first.items():
        for option in choice.options:
            if option == choice.default:
                continue
            yield {name: option}
            for other, opened in target.options(func, {name: option}).items():
                if other not in first:
                    yield from ({name: option, other: each} for each in opened.options if each != opened.default)


@pytest.mark.parametrize("name", KERNELS)
def test_the_defaults_are_options_like_any_other(name: str, target: Target) -> None:
    func, _ = kernel_of(name)
    choices = target.options(func)
    assert choices and all(choice.default in choice.options for choice in choices.values())
    stated = {name: choice.default for name, choice in choices.items()}
    tvm.ir.assert_structural_equal(target.schedule(func, stated), target.schedule(func))


@pytest.mark.parametrize("name", KERNELS)
def test_every_option_computes_the_same(name: str, target: Target) -> None:
    func, arrays = kernel_of(name)
    default, *others = schedules_of(func, target)
    expected = call(default, *arrays, target=target)
    for scheduled in others:
        assert_close(call(scheduled, *arrays, target=target), expected)


def schedules_of(func: tirx.PrimFunc, target: Target) -> list[tirx.PrimFunc]:
    """The default schedule and all others that decisions lead to."""
    found = [target.schedule(func)]
    for decisions in alternatives(func, target):
        scheduled = target.schedule(func, decisions)
        if not any(tvm_ffi.structural_equal(scheduled, other) for other in found):
            found.append(scheduled)
    assert len(found) > 1
    return found


@pytest.mark.parametrize("shape", [(64, 16), (5, 7)], ids=str)
def test_every_option_of_an_update_computes_the_same(shape: tuple[int, ...], target: Target) -> None:
    weight, value = noise("update", shape, shape)
    for scheduled in schedules_of(assign(Layout(shape, "float32"), accumulate=True), target):
        (updated,) = noise("update", shape)
        built(scheduled, target)(updated, value)
        np.testing.assert_array_equal(updated, weight + value)


def test_decisions_from_a_file_are_lists() -> None:
    (func, _), cpu = kernel_of("product"), TARGETS["cpu"]
    *_, tile = cpu.options(func)["tile"].options
    tvm.ir.assert_structural_equal(cpu.schedule(func, {"tile": list(tile)}), cpu.schedule(func, {"tile": tile}))


@pytest.mark.parametrize(
    ("decisions", "message"),
    [
        ({"tile": (5, 32)}, r"'tile' has no option \(5, 32\); it has \("),
        ({"parallel": 9}, "'parallel' has no option 9; it has 1, 2"),
        ({"unroll": 1}, "no choice is named 'unroll'; there are tile, columns_first, "),
    ],
)
def test_what_is_not_offered_is_an_error(decisions: dict[str, Any], message: str) -> None:
    (func, _), cpu = kernel_of("product"), TARGETS["cpu"]
    for function in (cpu.schedule, cpu.options):
        with pytest.raises(DecisionError, match=message):
            function(func, decisions)


def test_a_kernel_that_comes_scheduled_has_no_choices(target: Target) -> None:
    func = kernel_of("product")[0].with_attr("tirx.is_scheduled", True)
    assert target.options(func) == {}
    with pytest.raises(DecisionError, match="no choice is named 'tile'; there are none"):
        target.schedule(func, {"tile": (12, 8)})


def test_choices_are_recorded_as_they_are_made() -> None:
    choices = Choices({"b": 3})
    assert (choices.choose("a", (1, 2), 2), choices.choose("b", range(4), 0)) == (2, 3)
    assert [(name, choice.default) for name, choice in choices.offered.items()] == [("a", 2), ("b", 0)]
