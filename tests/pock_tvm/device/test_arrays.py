"""Conversion of a trainer's arguments to arrays."""

import ml_dtypes
import numpy as np
import pytest
import torch

import pock_tvm as pock
from pock_tvm.device.arrays import FEW, as_array, bounds, check_array, count_of

NUMBERS = np.array([1.5, -0.125], "float32")


@pytest.mark.parametrize(
    "value",
    [
        NUMBERS,
        NUMBERS.astype("float16"),
        NUMBERS.astype(ml_dtypes.bfloat16),
        torch.from_numpy(NUMBERS).bfloat16().requires_grad_(),
    ],
)
def test_floats_of_fewer_bits_are_taken(value) -> None:
    array = as_array("x", value)
    check_array("x", array, (2,), "float32")
    np.testing.assert_array_equal(array.astype("float32"), NUMBERS)


@pytest.mark.parametrize(("dtype", "wanted"), [("float64", "float32"), ("int32", "float32"), ("float16", "int64")])
def test_other_types_are_refused(dtype: str, wanted: str) -> None:
    with pytest.raises(pock.PockError, match=f"x is of type {dtype}; the program takes {wanted}"):
        check_array("x", as_array("x", NUMBERS.astype(dtype)), (2,), wanted)


@pytest.mark.parametrize("size", [0, 1, 7, FEW, FEW + 1])
def test_integers_are_looked_at_alike_whether_few_or_many(size: int) -> None:
    integers = np.arange(size).reshape(1, -1) % 5 - 1
    assert bounds(integers) == ((int(integers.min()), int(integers.max())) if size else (0, -1))
    assert count_of(3, integers) == int((integers == 3).sum())
