"""Attention of 16-bit operands, and its gradients: texts for CUDA, run on the host against PyTorch in double precision.

Scores and sums are float32. Weights are rounded to 16 bits before they are multiplied with values, as the results are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm import tirx

from schedules.kernels import attention as kernels
from tests.schedules.gpu.cuda_on_host import run
from tests.schedules.gpu.test_matrix import ORIN, TYPES, calls, short
from tests.schedules.test_attention import CASES, Case, assert_same, forward_kernel, gradient_kernel, reference

TOLERANCES = {"bfloat16": 2.0**-7, "float16": 2.0**-10}
"""Relative to the largest result: of weights and results, rounded."""


def on_host(func: tirx.PrimFunc, arrays: list[np.ndarray], folder: Path, results: int = 1) -> list[np.ndarray]:
    """The last parameters of a function for CUDA after it ran."""
    found = [
        np.zeros([int(extent) for extent in param.ty.shape], TYPES[str(param.ty.dtype)])
        for param in func.params[-results:]
    ]
    run(func, ORIN, [*arrays, *found], folder)
    return found


def wide(array: np.ndarray) -> np.ndarray:
    return array.astype("float32")


def check(case: Case, dtype: str, folder: Path, **decisions: Any) -> None:
    """All four kernels against PyTorch, on matrix units."""
    operands, masks = case.operands()
    q, k, v = (short(each, dtype) for each in operands)
    expected, grad, *gradients = reference(case, [wide(each) for each in (q, k, v)], masks)
    tolerance = TOLERANCES[dtype]

    def scheduled(func: tirx.PrimFunc) -> tirx.PrimFunc:
        func = ORIN.schedule(func, decisions)
        assert {"multiply", "load_matrices"} <= calls(func)
        return func

    func = scheduled(forward_kernel(case, q, k, v, *masks))
    result, statistics = on_host(func, [q, k, v, *masks], folder, 2)
    assert_same(wide(result), expected, tolerance)
    grad = short(grad, dtype)
    rest = [statistics, grad, (wide(grad) * wide(result)).sum(-1)]
    arguments = [
        (kernels.attention_query_gradient, [q, k, v], rest),
        (kernels.attention_key_gradient, [q, k, v], rest),
        (kernels.attention_value_gradient, [q, k], rest[:2]),
    ]
    for (kernel, given, beside), gradient in zip(arguments, gradients, strict=True):
        func = scheduled(gradient_kernel(kernel, case, given, masks, beside))
        (found,) = on_host(func, [*given, *masks, *beside], folder)
        assert_same(wide(found), gradient, 4 * tolerance)


TRIED = [
    ("one", "float16"),
    ("odd", "float16"),
    ("cross", "bfloat16"),
    ("many keys", "bfloat16"),
    ("causal, more keys", "float16"),
    ("causal, fewer keys", "float16"),
    ("shared keys", "bfloat16"),
    ("whole rows, safe", "bfloat16"),
    ("whole rows, finite", "float16"),
    ("wide", "float16"),
]


@pytest.mark.parametrize(("case", "dtype"), TRIED, ids=[f"{case}, {dtype}" for case, dtype in TRIED])
def test_numbers(case: str, dtype: str, tmp_path: Path) -> None:
    check(CASES[case], dtype, tmp_path)


@pytest.mark.parametrize("tile", [(128, 64), (64, 32), (32, 16)], ids=str)
def test_decisions(tile: tuple[int, int], tmp_path: Path) -> None:
    """Tiles that no default is."""
    check(Case((1, 70, 24), (1, 133, 24), (1, 133, 40), (133,), "float"), "float16", tmp_path, tile=tile)
