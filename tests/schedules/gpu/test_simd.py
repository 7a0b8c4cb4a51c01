"""Products on Metal's matrix units: texts for Metal, run on the host against NumPy in double precision.

No Mac has run them: the host knows Metal's words as its specification has them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tvm import tirx

from pock_tvm.compiler.targets import resolve_target
from schedules.decisions import Option
from schedules.gpu import gpu_target
from schedules.gpu.products.simd import simd_tiles
from tests.schedules.gpu import cuda_on_host
from tests.schedules.gpu.test_matrix import of_short, short
from tests.schedules.gpu.test_products import EVEN, LONG, ODD, PADDED, STRIDED
from tests.schedules.kernels import assert_close, defined, doubles
from tests.schedules.test_products import Row, product

M1 = gpu_target(resolve_target("m1-gpu"))
HEADS = product("heads", (2, 3, 33, 16), (2, 3, 24, 16), "NT")


def on_host(func: tirx.PrimFunc, arrays: list[np.ndarray], folder: Path) -> np.ndarray:
    """The last parameter of a function for Metal after it ran."""
    assert "simdgroup_multiply_accumulate" in func.script()
    result = np.zeros([int(extent) for extent in func.params[-1].ty.shape], "float32")
    cuda_on_host.run(func, M1, [*arrays, result], folder)
    return result


@pytest.mark.parametrize("row", [EVEN, ODD, HEADS, PADDED, STRIDED, LONG], ids=lambda row: row.name)
def test_product(row: Row, tmp_path: Path) -> None:
    func = M1.schedule(defined(row.kernel, *row.arrays(), **row.options))
    assert_close(on_host(func, row.arrays(), tmp_path), row.expected())


DECIDED: list[tuple[Row, dict[str, Option]]] = [
    (ODD, {"tile": (64, 64, 16, 32, 32), "splits": 1}),
    (EVEN, {"tile": (16, 64, 16, 16, 16), "splits": 1}),
    (PADDED, {"tile": (64, 32, 16, 16, 32), "splits": 1}),
    (LONG, {"tile": (32, 32, 16, 32, 16), "splits": 4}),
]
"""Kernels, and decisions that their defaults are not."""


@pytest.mark.parametrize(("row", "decisions"), DECIDED, ids=[f"{row.name} {each}" for row, each in DECIDED])
def test_decisions(row: Row, decisions: dict[str, Option], tmp_path: Path) -> None:
    func = M1.schedule(defined(row.kernel, *row.arrays(), **row.options), decisions)
    assert_close(on_host(func, row.arrays(), tmp_path), row.expected())


def test_16_bits_are_widened(tmp_path: Path) -> None:
    arrays = [short(array, "float16") for array in EVEN.arrays()]
    func = M1.schedule(defined(of_short(EVEN, "float16"), *arrays, **EVEN.options))
    expected = EVEN.reference(*doubles(*(array.astype("float32") for array in arrays)), **EVEN.options)
    assert_close(on_host(func, arrays, tmp_path), expected)


def test_the_host_sees_a_missing_barrier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    translated = cuda_on_host.from_metal
    barrier = "threadgroup_barrier(mem_flags::mem_threadgroup);"
    monkeypatch.setattr(cuda_on_host, "from_metal", lambda text: translated(text).replace(barrier, ""))
    func = M1.schedule(defined(EVEN.kernel, *EVEN.arrays(), **EVEN.options))
    with pytest.raises(AssertionError):
        assert_close(on_host(func, EVEN.arrays(), tmp_path), EVEN.expected())


def test_tiles_fit() -> None:
    found = simd_tiles(M1.traits)
    assert len(found) > 10
    assert all(tile.shared_bytes((4, 4)) <= M1.traits.shared_bytes and 64 <= tile.threads <= 256 for tile in found)


def test_only_gpus_of_apple_have_them() -> None:
    assert not gpu_target(resolve_target("metal")).traits.simd_matrices
