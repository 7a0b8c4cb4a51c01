"""A kernel's own buffers: register tiles on the stack, all others in scratch, a slot for each worker."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tvm
from tvm import tirx
from tvm.script import tirx as T

from pock_tvm.device.memory import aligned
from schedules.cpu import CpuTarget
from schedules.cpu.lower import scratch_of
from schedules.cpu.scratch import ALIGNMENT, needs_scratch
from schedules.kernels.conv2d import conv2d
from tests.schedules.kernels import HOST, LLVM, assert_close, built, doubles, noise, run, scheduled

PLAIN = {"strides": (1, 1), "dilation": (1, 1), "groups": 1}
ROWS, COLUMNS = 7, 400
WORKERS = [1, 2, 3, 7, 16]


@T.prim_func(s_tir=True)
def reversed_rows(x: T.Buffer((ROWS, COLUMNS), "float32"), y: T.Buffer((ROWS, COLUMNS), "float32")):
    T.func_attr({"tirx.noalias": True, "global_symbol": "kernel", "tirx.is_scheduled": True})
    for row in T.parallel(ROWS):
        own = T.alloc_buffer((COLUMNS,), "float32")
        for column in range(COLUMNS):
            own[column] = x[row, column] * T.float32(2)
        for column in range(COLUMNS):
            y[row, column] = own[COLUMNS - 1 - column]


def target_of(workers: int) -> CpuTarget:
    return replace(HOST, traits=replace(HOST.traits, cores=workers))


def lowered(func: tirx.PrimFunc, workers: int) -> tvm.IRModule:
    return target_of(workers).lower(func.with_attr("global_symbol", "kernel"))


@pytest.mark.parametrize("workers", WORKERS)
def test_each_worker_has_a_slot_and_every_row_is_computed_once(workers: int) -> None:
    (x,) = noise("rows", (ROWS, COLUMNS))
    y = aligned(x.shape, "float32")
    built(reversed_rows, target_of(workers))(x, y)
    np.testing.assert_array_equal(y, 2 * x[:, ::-1])
    runs = -(-ROWS // -(-ROWS // min(workers, ROWS)))  # of 7 rows, 4 workers take 2 each: the last takes 1
    assert scratch_of(lowered(reversed_rows, workers)) == runs * 4 * COLUMNS


@pytest.mark.parametrize("workers", WORKERS)
def test_padded_images_lie_in_scratch(workers: int) -> None:
    x, w = noise("padded", (3, 9, 9, 17), (3, 3, 17, 33))
    func = scheduled(conv2d, x, w, padding=(1, 1, 1, 1), **PLAIN)
    y = aligned((3, 9, 9, 33), "float32")
    built(func, target_of(workers))(x, w, y)
    assert_close(y, run(conv2d, *doubles(x, w), padding=(1, 1, 1, 1), **PLAIN))
    assert needs_scratch(func.body) and scratch_of(lowered(func, workers)) % ALIGNMENT == 0


def test_register_tiles_are_on_the_stack_and_nothing_is_allocated() -> None:
    x, w = noise("tiles", (1, 8, 8, 16), (1, 1, 16, 64))
    for padding in (0, 1):
        func = scheduled(conv2d, x, w, padding=(padding,) * 4, **PLAIN)
        mod = lowered(func, 2)
        assert bool(scratch_of(mod)) == needs_scratch(func.body) == bool(padding)
        code = tvm.get_global_func("target.build.llvm")(mod, LLVM).inspect_source("ll")
        assert "AllocWorkspace" not in code
