"""Numbers of 16 bits in memory: every rounding is that of PyTorch, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tvm import te

from schedules.target import Target
from tests.schedules.kernels import TARGETS, call

HURTFUL = [0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519.99, 65520, 1e5, -1e5, 3.4e38, -3.4e38, 6e-8, 3e-8,
           2**-25, -(2**-25), 2.98e-8, 2**-14, 2**-14 - 1e-9, 1 + 2**-11, 1 + 2**-11 + 1e-7, 1e-38, 1e-45]  # fmt: skip
NANS = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFF800001], "uint32").view("float32")
"""Those that GPUs make, and those whose payload is in the last bits."""


def numbers() -> np.ndarray:
    rng = np.random.default_rng(0)
    any_bits = rng.integers(0, 2**32, 50_000, dtype="uint64").astype("uint32").view("float32")
    halves = np.arange(2**16, dtype="uint16").view("float16").astype("float32")  # every number of float16
    between = (halves[:-1] + halves[1:]) / 2  # ties
    return np.concatenate([any_bits, halves, between, np.array(HURTFUL, "float32"), NANS])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("target", ["opencl", "webgpu"])
def test_a_number_is_rounded_as_pytorch_does(target: str, dtype: str) -> None:
    machine: Target = TARGETS[target]
    with np.errstate(all="ignore"):
        given = numbers()
        expected = torch.from_numpy(given).to(getattr(torch, dtype)).float().numpy()
    x = te.placeholder(given.shape, "float32", "x")
    stored = te.compute(given.shape, lambda i: x(i).astype(dtype), name="stored")
    back = te.compute(given.shape, lambda i: stored(i).astype("float32"), name="back")
    func = te.create_prim_func([x, back], index_dtype_override="int64").with_attr("global_symbol", "rounded")
    found = call(machine.schedule(func), given, target=machine)
    is_nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), is_nan)
    np.testing.assert_array_equal(found[~is_nan].view("uint32"), expected[~is_nan].view("uint32"))
