"""Products of 16-bit factors, and texts for CUDA, run on the host against NumPy in double precision.

Factors are stored in 16 bits, or in float32 and rounded where they are read; sums are in float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tvm import te, tirx
from tvm.target import Target

from schedules.decisions import Option
from schedules.gpu import GpuTarget, gpu_target
from schedules.gpu.products.matrix_tiles import warp_tiles
from schedules.gpu.traits import TF32
from schedules.kernels.matmul import matmul
from tests.schedules.gpu.cuda_on_host import run
from tests.schedules.kernels import TARGETS, assert_close, call, defined, doubles, noise
from tests.schedules.test_epilogues import EPILOGUES
from tests.schedules.test_products import Convolution, Row, product, weights

ORIN, XAVIER = (gpu_target(Target({"kind": "cuda", "arch": arch})) for arch in ("sm_87", "sm_72"))
"""GPUs with matrix units that TVM's schedules use, and without."""
IN_TF32 = gpu_target(Target({"kind": "cuda", "arch": "sm_87", "keys": [TF32, "cuda", "gpu"]}))
TYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype("float16"), "float32": np.dtype("float32")}
STORED = ((True, True), (False, True), (True, False))
"""Whether the left and the right factor are stored in 16 bits."""


def short(array: np.ndarray, dtype: str) -> np.ndarray:
    """An array in a type, by name."""
    return array.astype(TYPES[dtype])


def widened(x: te.Tensor, dtype: str) -> te.Tensor:
    """A factor in float32, rounded to a type before."""
    return te.compute(x.shape, lambda *at: x(*at).astype(dtype).astype("float32"), name=f"{x.op.name}_widened")


def of_short(row: Row, dtype: str, result: str = "float32") -> Any:
    """The kernel of a row with both factors in a type, and its result stored in another."""

    def kernel(*operands: te.Tensor, **options: Any) -> te.Tensor:
        factors = [widened(x, dtype) for x in operands]
        sums = row.kernel(*factors, **options)
        return sums if result == "float32" else te.compute(sums.shape, lambda *at: sums(*at).astype(result), name="y")

    return kernel


def on_host(func: tirx.PrimFunc, arrays: Sequence[np.ndarray], folder: Path, target: GpuTarget = ORIN) -> np.ndarray:
    """The last parameter of a function for CUDA after it ran."""
    result_type = func.params[-1].ty
    result = np.zeros([int(extent) for extent in result_type.shape], TYPES[str(result_type.dtype)])
    run(func, target, [*arrays, result], folder)
    return result


def calls(func: tirx.PrimFunc) -> set[str]:
    """The instructions that a schedule uses."""
    return {name for name in ("multiply", "load_matrices", "copy_vector") if f"pock_{name}" in func.script()}


EVEN = [product("even", (64, 96), (96, 80)), product("even", (96, 64), (80, 96), "TT")]
ODD = product("33, 17, 3", (33, 17), (3, 17), "NT")
HEADS = product("heads", (2, 3, 33, 16), (2, 3, 24, 16), "NT")
PADDED = Convolution("padded", (2, 7, 9, 16), (3, 3, 16, 24), padding=(1, 1, 1, 1)).rows()
STRIDED = Convolution("strided", (1, 9, 12, 8), (3, 3, 8, 16), strides=(2, 2), padding=(1, 1, 1, 1)).rows()
GROUPS = Convolution("groups", (1, 7, 7, 24), (3, 3, 8, 24), padding=(1, 1, 1, 1), groups=3).rows()
DEPTHWISE = Convolution("depthwise", (1, 9, 12, 24), (3, 3, 1, 24), padding=(1, 1, 1, 1), groups=24).rows()
LONG = weights("of many pixels", (2, 17, 20, 16), (2, 17, 20, 24), 3, padding=[1] * 4)
ROWS = [
    ODD,
    HEADS,
    product("of one number", (1, 1), (1, 1)),
    product("of one term", (17, 1), (1, 33)),
    product("3, 7, 17", (3, 7), (7, 17)),
    product("a row", (1, 72), (72, 40)),
    product("a shared matrix", (3, 24, 17), (24, 40), "TN"),
    *PADDED,
    *STRIDED,
    *GROUPS,
    LONG,
    *Convolution("three channels", (1, 9, 9, 3), (3, 3, 3, 7), strides=(2, 2), padding=(1, 1, 1, 1)).rows(),
]
CASES = [
    *((row, "bfloat16", stored) for row, stored in zip(ROWS, itertools.cycle(STORED), strict=False)),
    *(
        (row, dtype, stored)
        for row, dtype, stored in zip(EVEN * 3, ("bfloat16", "float16") * 3, STORED * 2, strict=True)
    ),
]


@pytest.mark.parametrize(("row", "dtype", "stored"), CASES, ids=[f"{row.name} {stored}" for row, _, stored in CASES])
def test_product(row: Row, dtype: str, stored: tuple[bool, bool], tmp_path: Path) -> None:
    arrays = [short(array, dtype) if each else array for array, each in zip(row.arrays(), stored, strict=True)]
    func = ORIN.schedule(defined(of_short(row, dtype), *arrays, **row.options))
    assert {"multiply", "load_matrices"} <= calls(func)
    factors = doubles(*(short(array, dtype).astype("float32") for array in arrays))
    assert_close(on_host(func, arrays, tmp_path), row.reference(*factors, **row.options))


DECIDED: list[tuple[Row, dict[str, Option]]] = [
    (EVEN[0], {"tile": (128, 64, 32, 32, 32, 2), "splits": 1}),
    (EVEN[1], {"tile": (64, 128, 32, 64, 32, 2), "splits": 1}),
    (EVEN[1], {"tile": (64, 64, 32, 32, 64, 2), "splits": 2}),
    (EVEN[0], {"tile": (32, 16, 32, 16, 16, 4), "splits": 2}),
    (STRIDED[1], {"tile": (32, 32, 32, 32, 16, 2), "splits": 1}),
    (LONG, {"tile": (16, 64, 32, 16, 32, 3), "splits": 4}),
    (GROUPS[2], {"tile": (64, 16, 32, 32, 16, 4), "splits": 1}),
]
"""Kernels, and decisions that their defaults are not."""


@pytest.mark.parametrize(("row", "decisions"), DECIDED, ids=[f"{row.name} {each}" for row, each in DECIDED])
def test_decisions(row: Row, decisions: dict[str, Option], tmp_path: Path) -> None:
    arrays = [short(array, "bfloat16") for array in row.arrays()]
    func = ORIN.schedule(defined(of_short(row, "bfloat16"), *arrays, **row.options), decisions)
    factors = doubles(*(array.astype("float32") for array in arrays))
    assert_close(on_host(func, arrays, tmp_path), row.reference(*factors, **row.options))


@pytest.mark.parametrize("epilogue", ["bias and ReLU", "residual"])
@pytest.mark.parametrize("row", [EVEN[0], STRIDED[1], LONG], ids=lambda row: row.name)
def test_epilogue(row: Row, epilogue: str, tmp_path: Path) -> None:
    """In float32, on sums that are not rounded: the result is, where it is stored."""
    behind, reference, kinds = EPILOGUES[epilogue]
    arrays = [short(array, "bfloat16") for array in row.arrays()]
    expected = row.reference(*doubles(*(array.astype("float32") for array in arrays)), **row.options)
    shapes = {"columns": expected.shape[-1:], "all": expected.shape, "number": ()}
    beside = noise(epilogue, *(shapes[kind] for kind in kinds))

    def fused(*operands: te.Tensor, **options: Any) -> te.Tensor:
        y = behind(of_short(row, "bfloat16")(*operands[:2], **options), *operands[2:])
        return te.compute(y.shape, lambda *at: y(*at).astype("bfloat16"), name="short")

    func = ORIN.schedule(defined(fused, *arrays, *beside, **row.options))
    assert "multiply" in calls(func)
    result = on_host(func, [*arrays, *beside], tmp_path).astype("float64")
    expected = reference(expected, *doubles(*beside))
    np.testing.assert_allclose(result, expected, rtol=2**-8, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("row", [EVEN[1], ODD, PADDED[0], STRIDED[1], LONG], ids=lambda row: row.name)
def test_without_matrix_units(row: Row, dtype: str, tmp_path: Path) -> None:
    """Shared memory holds 16 bits; multiply-adds are those of float32."""
    arrays = [short(array, dtype) for array in row.arrays()]
    func = XAVIER.schedule(defined(of_short(row, dtype, dtype), *arrays, **row.options))
    assert not calls(func)
    assert "sums" in func.script()
    result = on_host(func, arrays, tmp_path, XAVIER).astype("float64")
    expected = row.reference(*doubles(*(array.astype("float32") for array in arrays)), **row.options)
    np.testing.assert_allclose(result, expected, rtol=2**-8, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("row", DEPTHWISE, ids=lambda row: row.name)
def test_depthwise(row: Row, tmp_path: Path) -> None:
    """Matrix units have nothing to share there."""
    arrays = [short(array, "bfloat16") for array in row.arrays()]
    func = ORIN.schedule(defined(of_short(row, "bfloat16"), *arrays, **row.options))
    assert not calls(func)
    factors = doubles(*(array.astype("float32") for array in arrays))
    assert_close(on_host(func, arrays, tmp_path), row.reference(*factors, **row.options))


@pytest.mark.parametrize("row", [EVEN[1], ODD, PADDED[1], STRIDED[1], LONG], ids=lambda row: row.name)
def test_float32(row: Row, tmp_path: Path) -> None:
    func = ORIN.schedule(defined(row.kernel, *row.arrays(), **row.options))
    assert not calls(func)
    assert_close(on_host(func, row.arrays(), tmp_path), row.expected())


@pytest.mark.parametrize("row", [*EVEN, ODD, PADDED[0], STRIDED[1], LONG], ids=lambda row: row.name)
def test_tf32(row: Row, tmp_path: Path) -> None:
    """On request, products of float32 are of factors that are rounded to 10 bits."""
    func = IN_TF32.schedule(defined(row.kernel, *row.arrays(), **row.options))
    assert {"multiply", "load_matrices"} <= calls(func)
    bits = [((array.view("uint32") + 0x1000) & 0xFFFFE000).view("float32") for array in row.arrays()]
    assert_close(on_host(func, row.arrays(), tmp_path), row.reference(*doubles(*bits), **row.options))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_no_numbers_stay_where_they_are(dtype: str, tmp_path: Path) -> None:
    """NaN, infinity, and what is too large for 16 bits reach their rows and no others."""
    row = product("no numbers", (33, 40), (40, 24))
    a, b = row.arrays()
    a[3, 5], a[7, 0], a[20, 39] = np.nan, np.inf, 3.4e38
    func = ORIN.schedule(defined(of_short(row, dtype), a, short(b, dtype), **row.options))
    result = on_host(func, [a, short(b, dtype)], tmp_path)
    assert np.isnan(result[3]).all()
    assert not np.isfinite(result[[7, 20]]).any()
    assert np.isfinite(np.delete(result, [3, 7, 20], axis=0)).all()


@pytest.mark.parametrize(("pitch", "start"), [(40, 0), (40, 8), (40, 4), (44, 8), (33, 1)])
def test_only_aligned_vectors_are_copied(pitch: int, start: int, tmp_path: Path) -> None:
    """A part of each row of a matrix is a factor: 16 bytes at a time where they are aligned in all rows."""
    x, b = (short(array, "bfloat16") for array in noise("part", (33, pitch), (32, 24)))

    def kernel(x: te.Tensor, b: te.Tensor) -> te.Tensor:
        part = te.compute((33, 32), lambda i, k: x[i, start + k].astype("float32"), name="part")
        return matmul(part, widened(b, "bfloat16"), transpose_a=False, transpose_b=False)

    func = ORIN.schedule(defined(kernel, x, b))
    assert ("left_coming" not in func.script()) == (pitch % 8 == start % 8 == 0)
    part, b_wide = doubles(x[:, start : start + 32].astype("float32"), b.astype("float32"))
    assert_close(on_host(func, [x, b], tmp_path), part @ b_wide)


def test_padding_is_copied_as_zeros() -> None:
    """Whether a pixel exists is a question of a vector, not of its channels."""
    arrays = [short(array, "bfloat16") for array in PADDED[0].arrays()]
    func = ORIN.schedule(defined(of_short(PADDED[0], "bfloat16"), *arrays, **PADDED[0].options))
    assert "copy_vector" in calls(func)
    assert "coming" not in func.script()


@pytest.mark.parametrize("lost", ["pock_wait_for_copies_", "__syncthreads();", "pock_close_copies();"])
def test_the_host_sees_what_is_missing(lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without its waits or barriers fails, or computes other numbers."""
    from tests.schedules.gpu import cuda_on_host

    (row,) = (row for row in EVEN if row.options["transpose_a"])
    arrays = [short(row.arrays()[0], "bfloat16"), row.arrays()[1]]
    func = ORIN.schedule(defined(of_short(row, "bfloat16"), *arrays, **row.options))
    translated = cuda_on_host.translated
    monkeypatch.setattr(cuda_on_host, "translated", lambda text: _without(translated(text), lost))
    expected = row.reference(*doubles(*(short(each, "bfloat16").astype("float32") for each in arrays)), **row.options)
    with pytest.raises(AssertionError):
        assert_close(on_host(func, arrays, tmp_path), expected)


def _without(text: str, lost: str) -> str:
    """A text without the calls of something in its kernel."""
    head, kernel = text.split('extern "C"', 1)
    lines = kernel.splitlines(keepends=True)
    assert any(line.strip().startswith(lost) for line in lines)
    return head + 'extern "C"' + "".join(line for line in lines if not line.strip().startswith(lost))


def test_tiles_fit() -> None:
    for width in (2, 4):
        found = warp_tiles(ORIN.traits, width)
        assert len(found) > 50
        assert all(tile.shared_bytes((width, width)) <= ORIN.traits.shared_bytes for tile in found)
        assert all(64 <= tile.threads <= 256 for tile in found)


@pytest.mark.parametrize("row", EVEN, ids=lambda row: row.name)
def test_opencl(row: Row) -> None:
    """There bfloat16 is an integer of 16 bits."""
    arrays = [short(array, "bfloat16") for array in row.arrays()]
    func = TARGETS["opencl"].schedule(defined(of_short(row, "bfloat16"), *arrays, **row.options))
    assert "sums" in func.script()
    expected = row.reference(*doubles(*(array.astype("float32") for array in arrays)), **row.options)
    assert_close(call(func, *arrays, target=TARGETS["opencl"]), expected)
