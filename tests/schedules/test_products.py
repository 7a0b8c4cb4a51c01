"""Matrix products, convolutions and their gradients, against NumPy in double precision."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import tirx

from schedules.cpu import CpuTarget
from schedules.cpu.traits import CpuTraits
from schedules.kernels.conv2d import conv2d, conv2d_data_gradient, conv2d_weight_gradient
from schedules.kernels.matmul import across_matmul, matmul, packed_matmul
from schedules.target import Target
from tests.schedules.kernels import (
    HOST,
    LLVM,
    TARGETS,
    Kernel,
    assert_close,
    call,
    defined,
    doubles,
    has_vectors,
    noise,
    scheduled,
    traces,
)
from tests.schedules.references import (
    across_reference,
    conv2d_reference,
    data_gradient_reference,
    matmul_reference,
    out_size,
    strips_reference,
    weight_gradient_reference,
)

Shape = tuple[int, ...]
Reference = Callable[..., np.ndarray]


@dataclass(frozen=True)
class Row:
    """A kernel, what it should compute, and the shapes of its operands."""

    name: str
    kernel: Kernel
    reference: Reference
    shapes: tuple[Shape, ...]
    options: dict[str, Any] = field(default_factory=dict)
    tiled: bool = True
    """Whether its schedule is a register tile, and not the fallback."""

    def arrays(self) -> list[np.ndarray]:
        return noise(self.name, *self.shapes)

    def expected(self) -> np.ndarray:
        return self.reference(*doubles(*self.arrays()), **self.options)

    def schedule(self, target: Target = HOST) -> tirx.PrimFunc:
        return scheduled(self.kernel, *self.arrays(), target=target, **self.options)


# ---- tables ----------------------------------------------------------------------------------------------------------


def product(name: str, a: Shape, b: Shape, transpose: str = "NN", tiled: bool = True, **options: int) -> Row:
    """``transpose``: for each operand, N as it is, T transposed."""
    transposes = {"transpose_a": transpose[0] == "T", "transpose_b": transpose[1] == "T"}
    return Row(f"matmul {transpose} {name}", matmul, matmul_reference, (a, b), transposes | options, tiled)


def strips(name: str, a: Shape, b: Shape, **options: int) -> Row:
    """``b``: [.., strips, terms, width]."""
    return Row(f"matmul of strips {name}", packed_matmul, strips_reference, (a, b), options)


def across(name: str, a: Shape, b: Shape, tiled: bool = True, **options: int) -> Row:
    """``b``: [.., strips, columns, width]."""
    return Row(f"matmul across strips {name}", across_matmul, across_reference, (a, b), options, tiled)


PRODUCTS = [
    product("of one number", (1, 1), (1, 1)),
    product("of one term", (17, 1), (1, 33)),
    product("of a row", (1, 33), (33, 24)),
    product("to a column", (24, 17), (17, 1)),
    product("3, 7, 17", (3, 7), (7, 17)),
    product("24, 33, 7", (24, 33), (33, 7)),
    product("33, 24, 3", (33, 24), (24, 3)),
    product("197, 64, 48", (197, 64), (64, 48)),
    product("64, 768, 96", (64, 768), (768, 96)),
    product("17, 24, 33", (24, 17), (24, 33), "TN"),
    product("128, 64, 32", (64, 128), (64, 32), "TN"),
    product("17, 24, 33", (17, 24), (33, 24), "NT", tiled=False),
    product("64, 64, 64", (64, 64), (64, 64), "NT", tiled=False),
    product("7, 24, 3", (24, 7), (3, 24), "TT", tiled=False),
    product("batches", (2, 3, 17, 7), (2, 3, 7, 24)),
    product("heads", (2, 4, 33, 16), (2, 4, 16, 33)),
    product("batches", (5, 7, 17), (5, 7, 33), "TN"),
    product("batches", (2, 3, 17, 8), (2, 3, 24, 8), "NT", tiled=False),
    product("rows of a batch by one matrix", (2, 17, 24), (24, 33)),
    product("rows of a batch by one matrix", (3, 24, 7), (24, 48), "TN"),
    product("a matrix by a batch", (7, 24), (3, 24, 17)),
    product("broadcast batches", (2, 1, 3, 7), (4, 7, 24)),
    product("a shared head", (2, 4, 17, 8), (2, 1, 8, 33)),
    product("rows to the end of a tile", (197, 24), (24, 48), computed_rows=198),
    product("rows to the end of a tile", (3, 24, 67), (3, 24, 33), "TN", computed_rows=70),
    product("rows to the end of a tile", (2, 3, 61, 7), (7, 32), computed_rows=64),
    product("packed rows to the end of a tile", (253, 1024), (1024, 512), computed_rows=256),
    product("columns to the end of a vector", (24, 33), (33, 39), computed_columns=48),
    product("columns to the end of a vector, in strips", (40, 12), (12, 197), computed_columns=208),
    product("columns to the end of a vector", (37, 61), (37, 100), "TN", computed_rows=64, computed_columns=112),
    product("columns to the end of a vector", (2, 3, 17, 7), (2, 3, 7, 21), computed_columns=32),
    product("columns to the end of a vector, by one matrix", (2, 17, 24), (24, 41), computed_columns=48),
    product("columns to the end of a vector, at once", (40, 300), (300, 100), computed_columns=112),
    product("columns to the end of a vector, in blocks", (96, 400), (400, 1000), computed_columns=1008),
    product("columns to the end of a vector, in panels", (300, 36), (300, 1001), "TN", computed_columns=1008),
    product("long sum", (7, 2049), (2049, 8)),
    product("packed", (224, 1024), (1024, 512)),
    product("packed, transposed", (700, 240), (700, 1024), "TN"),
    product("in panels", (300, 36), (300, 2048), "TN"),
    product("in panels, of a batch", (2, 130, 33), (2, 130, 4224), "TN"),
    product("packed, prime", (250, 1259), (1259, 512)),
    product("packed, of a batch", (2, 232, 1024), (2, 1024, 512)),
    strips("of a row", (1, 33), (3, 33, 16)),
    strips("17, 24, 33", (17, 24), (3, 24, 11)),
    strips("wide", (49, 70), (2, 70, 64)),
    strips("of an image", (2, 7, 5, 17), (3, 17, 32)),
    strips("of a batch of matrices", (4, 17, 33), (4, 2, 33, 48)),
    strips("rows to the end of a tile", (2, 61, 24), (4, 24, 16), computed_rows=64),
    across("of a row", (1, 48), (3, 33, 16)),
    across("17, 24, 33", (17, 24), (1, 33, 24)),
    across("17, 33, 7", (17, 33), (3, 7, 11)),
    across("in squares", (49, 128), (2, 96, 64)),
    across("in small squares", (7, 60), (5, 20, 12)),
    across("of an image", (2, 7, 5, 96), (3, 17, 32)),
    across("of an image with few columns", (2, 14, 8, 96), (3, 16, 32)),
    across("of a batch of matrices", (4, 17, 96), (4, 2, 33, 48)),
    across("padded", (3, 90), (2, 32, 48)),
    across("rows to the end of a tile", (2, 61, 32), (2, 48, 16), computed_rows=64),
]


@dataclass(frozen=True)
class Convolution:
    """A convolution, all three of its kernels. ``tiled``: which have a register tile: forward, data and weight."""

    name: str
    x: Shape
    weight: Shape
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    tiled: str = "fdw"

    def rows(self) -> list[Row]:
        geometry = {"strides": self.strides, "padding": self.padding, "dilation": self.dilation}
        kernel_size, size = self.weight[:2], self.x[1:3]
        grad = (self.x[0], *out_size(size, kernel_size, **geometry), self.weight[3])
        options: dict[str, Any] = geometry | {"groups": self.groups}
        to_data = options | {"size": size}
        turned = (*kernel_size, self.weight[3], self.weight[2])
        dense = self.groups == 1
        data = (turned, to_data | {"transposed": True}) if dense else (self.weight, to_data)
        to_weight = options | {"kernel_size": kernel_size}
        return [
            Row(f"{self.name}", conv2d, conv2d_reference, (self.x, self.weight), options, "f" in self.tiled),
            Row(f"{self.name}, data", conv2d_data_gradient, data_gradient_reference, (grad, data[0]), data[1], "d" in self.tiled),
            Row(f"{self.name}, weight", conv2d_weight_gradient, weight_gradient_reference, (self.x, grad), to_weight, "w" in self.tiled),
        ]  # fmt: skip


CONVOLUTIONS = [
    Convolution("1x1", (2, 7, 7, 24), (1, 1, 24, 33)),
    Convolution("1x1, wide", (1, 56, 56, 24), (1, 1, 24, 144)),
    Convolution("1x1, one channel to one", (1, 3, 5, 1), (1, 1, 1, 1)),
    Convolution("1x1, one pixel", (1, 1, 1, 17), (1, 1, 17, 7)),
    Convolution("1x1, stride 2", (1, 14, 14, 24), (1, 1, 24, 32), strides=(2, 2)),
    Convolution("1x1, stride 2, odd", (1, 7, 9, 17), (1, 1, 17, 24), strides=(2, 2), tiled="fw"),
    Convolution("1x1, padded", (1, 4, 5, 3), (1, 1, 3, 7), padding=(1, 0, 0, 2), tiled="fd"),
    Convolution("3x3", (1, 17, 13, 7), (3, 3, 7, 33), padding=(1, 1, 1, 1), tiled="fd"),
    Convolution("3x3, common", (2, 14, 14, 32), (3, 3, 32, 64), padding=(1, 1, 1, 1), tiled="fd"),
    Convolution("3x3, not padded", (1, 9, 8, 24), (3, 3, 24, 17)),
    Convolution("3x3, stride 2, even", (2, 14, 12, 3), (3, 3, 3, 32), strides=(2, 2), padding=(1, 1, 1, 1), tiled="fd"),
    Convolution("3x3, stride 2, odd", (1, 15, 13, 17), (3, 3, 17, 24), strides=(2, 2), padding=(1, 1, 1, 1), tiled="f"),
    Convolution("3x3, stride 2, asymmetric", (1, 12, 10, 3), (3, 3, 3, 16), strides=(2, 2), padding=(0, 0, 1, 1), tiled="fd"),
    Convolution("3x2, strides 2 and 1", (1, 8, 9, 3), (3, 2, 3, 7), strides=(2, 1), padding=(2, 0, 1, 1), tiled="fd"),
    Convolution("3x3, dilation", (1, 11, 11, 24), (3, 3, 24, 16), padding=(2, 2, 2, 2), dilation=(2, 2), tiled="fd"),
    Convolution("3x3, stride and dilation", (1, 12, 12, 7), (3, 3, 7, 24), strides=(2, 2), padding=(2, 3, 2, 3), dilation=(2, 3), tiled="fd"),
    Convolution("2x2, stride 3", (1, 9, 12, 8), (2, 2, 8, 16), strides=(3, 3)),
    Convolution("5x5", (1, 8, 8, 3), (5, 5, 3, 24), padding=(2, 2, 2, 2), tiled="fd"),
    Convolution("7x7, stride 2", (1, 32, 30, 3), (7, 7, 3, 64), strides=(2, 2), padding=(3, 3, 3, 3), tiled="fd"),
    Convolution("3x3, packed", (5, 7, 7, 64), (3, 3, 64, 512), padding=(1, 1, 1, 1), tiled="fd"),
    Convolution("1x1, packed", (1, 16, 15, 600), (1, 1, 600, 512)),
    Convolution("3x3, groups", (1, 9, 9, 24), (3, 3, 8, 48), padding=(1, 1, 1, 1), groups=3, tiled="f"),
    Convolution("3x3, groups, not padded", (2, 7, 7, 32), (3, 3, 16, 32), groups=2, tiled="fw"),
    Convolution("3x3, groups, stride 2", (1, 8, 8, 6), (3, 3, 2, 21), strides=(2, 2), padding=(1, 1, 1, 1), groups=3, tiled="f"),
    Convolution("depthwise 3x3", (2, 14, 14, 24), (3, 3, 1, 24), padding=(1, 1, 1, 1), groups=24),
    Convolution("depthwise 3x3, wide", (1, 28, 28, 144), (3, 3, 1, 144), padding=(1, 1, 1, 1), groups=144),
    Convolution("depthwise 3x3, 33 channels", (1, 17, 13, 33), (3, 3, 1, 33), padding=(1, 1, 1, 1), groups=33),
    Convolution("depthwise 3x3, 17 channels", (1, 7, 9, 17), (3, 3, 1, 17), groups=17),
    Convolution("depthwise 3x3, stride 2, even", (1, 14, 12, 24), (3, 3, 1, 24), strides=(2, 2), padding=(1, 1, 1, 1), groups=24),
    Convolution("depthwise 3x3, stride 2, odd", (1, 15, 13, 24), (3, 3, 1, 24), strides=(2, 2), padding=(1, 1, 1, 1), groups=24, tiled="fw"),
    Convolution("depthwise 3x3, stride 2, wide", (1, 28, 28, 192), (3, 3, 1, 192), strides=(2, 2), padding=(1, 1, 1, 1), groups=192),
    Convolution("depthwise 3x3, small and wide", (1, 7, 7, 512), (3, 3, 1, 512), padding=(1, 1, 1, 1), groups=512),
    Convolution("depthwise 3x3, stride 2, asymmetric", (1, 12, 12, 7), (3, 3, 1, 7), strides=(2, 2), padding=(0, 0, 1, 1), groups=7),
    Convolution("depthwise 3x3, dilation", (1, 11, 9, 24), (3, 3, 1, 24), padding=(2, 2, 2, 2), dilation=(2, 2), groups=24),
    Convolution("depthwise 5x5, stride 2", (1, 14, 14, 16), (5, 5, 1, 16), strides=(2, 2), padding=(2, 2, 2, 2), groups=16),
    Convolution("depthwise 7x7", (1, 9, 9, 32), (7, 7, 1, 32), padding=(3, 3, 3, 3), groups=32),
    Convolution("depthwise, multiplier 2", (1, 6, 6, 3), (3, 3, 1, 6), padding=(1, 1, 1, 1), groups=3),
    Convolution("depthwise, multiplier 17", (1, 5, 5, 2), (3, 3, 1, 34), padding=(1, 1, 1, 1), groups=2, tiled="fd"),
    Convolution("3x3, stride 3", (2, 16, 17, 5), (3, 3, 5, 7), strides=(3, 3), padding=(1, 1, 1, 1), tiled="f"),
    Convolution("3x3, stride 3, one column", (3, 6, 2, 6), (3, 3, 6, 5), strides=(3, 3), padding=(1, 1, 1, 1), tiled="f"),
    Convolution("5x5, stride 4", (1, 17, 13, 3), (5, 5, 3, 8), strides=(4, 4), padding=(2, 2, 2, 2), tiled="f"),
    Convolution("depthwise 3x3, stride 3", (2, 16, 16, 8), (3, 3, 1, 8), strides=(3, 3), padding=(1, 1, 1, 1), groups=8, tiled="fw"),
    Convolution("depthwise, multiplier 2, stride 3", (3, 17, 5, 3), (3, 3, 1, 6), strides=(3, 3), padding=(1, 1, 1, 1), groups=3, tiled="fw"),
    Convolution("depthwise, multiplier 8, stride 2", (1, 8, 8, 3), (3, 3, 1, 24), strides=(2, 2), padding=(1, 1, 1, 1), groups=3),
]  # fmt: skip


def weights(name: str, x: Shape, grad: Shape, kernel: int, **options: Any) -> Row:
    geometry = {"strides": [1, 1], "padding": [0] * 4, "dilation": [1, 1], "groups": 1, "kernel_size": [kernel] * 2}
    tiled = options.pop("tiled", True)
    return Row(f"weight gradient {name}", conv2d_weight_gradient, weight_gradient_reference, (x, grad), geometry | options, tiled)  # fmt: skip


def data(name: str, grad: Shape, weight: Shape, size: Shape, **options: Any) -> Row:
    geometry = {"strides": [1, 1], "padding": [0] * 4, "dilation": [1, 1], "groups": 1, "size": size}
    tiled = options.pop("tiled", True)
    return Row(f"data gradient {name}", conv2d_data_gradient, data_gradient_reference, (grad, weight), geometry | options, tiled)  # fmt: skip


GRADIENTS = [
    weights("in parts", (2, 14, 14, 24), (2, 14, 14, 33), 1, chunks=(2, 7)),
    weights("in parts, padded", (2, 8, 9, 17), (2, 8, 9, 24), 3, chunks=(2, 4), padding=[1] * 4),
    weights("in parts, stride 2", (1, 14, 12, 24), (1, 7, 6, 32), 3, chunks=(1, 7), padding=[1] * 4, strides=[2, 2]),
    weights("in parts, dilation", (3, 9, 9, 7), (3, 9, 9, 3), 3, chunks=(3, 1), padding=[2] * 4, dilation=[2, 2]),
    weights("in parts, groups", (2, 6, 6, 24), (2, 4, 4, 48), 3, chunks=(2, 2), groups=3),
    weights("in parts, depthwise", (2, 14, 14, 33), (2, 14, 14, 33), 3, chunks=(2, 7), padding=[1] * 4, groups=33),
    weights("in parts, depthwise, stride 2", (1, 14, 14, 24), (1, 7, 7, 24), 3, chunks=(1, 7), padding=[1] * 4, strides=[2, 2], groups=24),
    weights("of one channel", (1, 10, 10, 1), (1, 8, 8, 24), 3),
    data("of a weight as it is", (1, 7, 7, 24), (3, 3, 17, 24), (7, 7), padding=[1] * 4, tiled=False),
    data("of a weight as it is, stride 2", (1, 7, 7, 8), (3, 3, 3, 8), (14, 14), padding=[1] * 4, strides=[2, 2], tiled=False),
    data("beyond the last tap", (1, 4, 5, 8), (3, 3, 8, 16), (10, 12), strides=[2, 2], padding=[1] * 4, transposed=True),
    data("where taps miss", (2, 4, 4, 17), (1, 1, 17, 24), (12, 12), strides=[3, 3], transposed=True),
]  # fmt: skip

ROWS = [*PRODUCTS, *(row for convolution in CONVOLUTIONS for row in convolution.rows()), *GRADIENTS]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_product(row: Row, target: Target) -> None:
    func = row.schedule(target)
    assert not has_vectors(target) or is_tiled(func) == row.tiled
    first, second = call(func, *row.arrays(), target=target, times=2)
    assert_close(first, row.expected())
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.name.endswith("depthwise 3x3, wide")], ids=lambda row: row.name
)
def test_windows_of_an_image_are_padded_in_registers_unless_it_comes_from_memory(row: Row) -> None:
    traits = CpuTraits(lanes=8, registers=16, cores=2)
    in_registers = re.compile(r"padded\w* = T.sblock_alloc_buffer\(.*local")
    for cache_bytes, is_cached in ((traits.cache_bytes, True), (256, False)):
        target = CpuTarget(replace(traits, cache_bytes=cache_bytes), LLVM)
        func = row.schedule(target)
        assert bool(in_registers.search(func.script())) == is_cached
        assert_close(call(func, *row.arrays(), target=target), row.expected())


def test_strips_of_a_wide_operand_are_packed(cpu: CpuTarget) -> None:
    rows = [row for row in ROWS if "packed" in row.name and row.kernel in (matmul, conv2d)]
    assert len(rows) == 7
    assert all("_global" in row.schedule(cpu).script() for row in rows)


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("taps", [1, 3])
def test_a_weight_gradient_packs_strips_of_its_second_operand(taps: int, strides: int) -> None:
    """Whatever the host is: its default may leave them where they are."""
    size = [strides * (extent - 1) + taps for extent in (5, 7)]
    row = weights("in strips", (2, *size, 20), (2, 5, 7, 192), taps, strides=[strides] * 2)
    func = HOST.schedule(defined(row.kernel, *row.arrays(), **row.options), {"pack": True})
    assert "_global" in func.script()
    assert_close(call(func, *row.arrays()), row.expected())


def is_tiled(func: tirx.PrimFunc) -> bool:
    """Whether a product has a register tile; that of a sum in parts is a piece of the result itself."""
    return "local" in traces(func) or {"unrolled", "vectorized", "parallel"} <= traces(func)


# ---- random shapes ---------------------------------------------------------------------------------------------------


CHANNELS = st.sampled_from([1, 3, 7, 8, 16, 17, 24, 33])


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 40),
    terms=st.integers(1, 70),
    columns=st.integers(1, 70),
    batch=st.sampled_from([((), ()), ((2,), (2,)), ((3,), ()), ((), (3,)), ((2, 1), (3,)), ((1, 3), (2, 3))]),
    transpose=st.sampled_from(["NN", "NT", "TN", "TT"]),
    target=st.sampled_from(list(TARGETS.values())),
)
def test_any_matrix_product(
    rows: int, terms: int, columns: int, batch: tuple[Shape, Shape], transpose: str, target: Target
) -> None:
    a = (terms, rows) if transpose[0] == "T" else (rows, terms)
    b = (columns, terms) if transpose[1] == "T" else (terms, columns)
    row = product("", (*batch[0], *a), (*batch[1], *b), transpose)
    assert_close(call(row.schedule(target), *row.arrays(), target=target), row.expected())


@st.composite
def convolutions(draw: st.DrawFn) -> Convolution:
    groups = draw(st.sampled_from([1, 1, 2, 3, 7, 24]))
    depthwise = groups > 3
    group_in = 1 if depthwise else draw(CHANNELS)
    group_out = draw(st.sampled_from([1, 1, 2])) if depthwise else draw(CHANNELS)
    kernel, strides, dilation = (tuple(draw(st.integers(1, most)) for _ in range(2)) for most in (4, 3, 2))
    padding = tuple(draw(st.integers(0, 2)) for _ in range(4))
    size = [
        draw(st.integers(max(1, dilation[axis] * (kernel[axis] - 1) + 1 - padding[axis] - padding[axis + 2]), 14))
        for axis in (0, 1)
    ]
    x = (draw(st.integers(1, 3)), *size, groups * group_in)
    return Convolution("any", x, (*kernel, group_in, groups * group_out), strides, padding, dilation, groups)


@settings(max_examples=15, deadline=None)
@given(convolution=convolutions(), target=st.sampled_from(list(TARGETS.values())))
def test_any_convolution(convolution: Convolution, target: Target) -> None:
    for row in convolution.rows():
        assert_close(call(row.schedule(target), *row.arrays(), target=target), row.expected())
