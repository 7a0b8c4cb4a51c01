"""Attention and its gradients against PyTorch's autograd in double precision, on each target."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from tvm import tirx

from pock_tvm.compiler.targets import resolve_target
from schedules.decisions import Option
from schedules.gpu import GpuTarget, gpu_target
from schedules.gpu.products.attention import TILES
from schedules.gpu.products.weighted_threads import ThreadTile
from schedules.gpu.traits import DIALECTS, KIB
from schedules.kernels import attention as kernels
from schedules.target import Target
from tests.schedules.kernels import CPUS, HOST, TARGETS, built, call, defined, is_cpu, noise

OPENCL = TARGETS["opencl"]
LOWEST = float(np.finfo("float32").min)


@dataclass(frozen=True)
class Case:
    """Operands' shapes, and how scores are masked."""

    q: tuple[int, ...]
    k: tuple[int, ...]
    v: tuple[int, ...]
    mask: tuple[int, ...] | None = None
    kind: str = "bool"
    """Mask: ``bool`` or ``float``, or ``both``. ``rows`` hides whole rows."""
    masked: float = -math.inf
    safe: bool = False
    causal: bool = False

    @property
    def options(self) -> dict[str, Any]:
        return {"scale": 0.3, "masked": self.masked, "causal": self.causal}

    @property
    def batch(self) -> tuple[int, ...]:
        shapes = [shape[:-2] for shape in (self.q, self.k, self.v)]
        return np.broadcast_shapes(*shapes, *([] if self.mask is None else [self.mask[:-2]]))

    def operands(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Queries, keys and values, and masks."""
        q, k, v = noise(str(self), self.q, self.k, self.v)
        if self.mask is None:
            return [q, k, v], []
        (drawn,) = noise(f"{self} mask", self.mask)
        if self.kind == "float":
            return [q, k, v], [drawn]
        mask = drawn > -0.5
        if self.kind == "both":
            return [q, k, v], [drawn, mask]
        if self.kind == "rows":
            mask[..., ::3, :] = False
        else:
            mask[..., 0] = True
        return [q, k, v], [mask]


CASES = {
    "one": Case((1, 1), (1, 1), (1, 1)),
    "odd": Case((2, 3, 33, 17), (2, 3, 33, 17), (2, 3, 33, 17)),
    "cross": Case((2, 7, 3), (2, 33, 3), (2, 33, 7), (2, 1, 33)),
    "many keys": Case((2, 70, 64), (2, 133, 64), (2, 133, 64), (133,), "float"),
    "causal": Case((2, 65, 16), (2, 65, 16), (2, 65, 16), causal=True),
    "causal, more keys": Case((2, 33, 7), (2, 70, 7), (2, 70, 3), (2, 1, 70), causal=True),
    "causal, fewer keys": Case((70, 3), (33, 3), (33, 7), causal=True),
    "shared keys": Case((2, 2, 3, 17, 8), (2, 2, 1, 17, 8), (2, 2, 1, 17, 8), (2, 1, 1, 17, 17), "float"),
    "whole rows": Case((2, 2, 9, 4), (2, 2, 7, 4), (2, 2, 7, 4), (2, 1, 9, 7), "rows"),
    "whole rows, safe": Case((2, 2, 9, 4), (2, 2, 7, 4), (2, 2, 7, 4), (2, 1, 9, 7), "rows", safe=True),
    "whole rows, finite": Case((2, 2, 9, 4), (2, 2, 7, 4), (2, 2, 7, 4), (2, 1, 9, 7), "rows", LOWEST),
    "two masks": Case((2, 2, 9, 4), (2, 2, 17, 4), (2, 2, 17, 3), (2, 1, 9, 17), "both"),
    "wide": Case((1, 5, 128), (1, 40, 128), (1, 40, 128)),
    "widest": Case((1, 5, 129), (1, 9, 129), (1, 9, 129)),
}


def reference(case: Case, operands: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Result, its gradient (drawn), and the gradients of queries, keys and values."""
    q, k, v = (
        torch.tensor(np.broadcast_to(each, (*case.batch, *each.shape[-2:])).astype("float64"), requires_grad=True)
        for each in operands
    )
    scores = q @ k.mT * case.options["scale"]
    for mask in map(torch.from_numpy, masks):
        scores = torch.where(mask, scores, case.masked) if mask.dtype == torch.bool else scores + mask
    if case.causal:
        scores = torch.where(torch.ones_like(scores, dtype=torch.bool).tril(), scores, case.masked)
    powers = scores.softmax(-1)
    if case.safe:
        powers = torch.where(torch.isneginf(scores).all(-1, keepdim=True), 0.0, powers)
    result = powers @ v
    (grad,) = noise(f"{case} grad", tuple(result.shape))
    result.backward(torch.from_numpy(grad).double())
    gradients = [each.grad.numpy() for each in (q, k, v)]
    return [result.detach().numpy(), grad, *(np.where(each == 0, 0, each) for each in gradients)]


def forward(case: Case, *arrays: np.ndarray, target: Target, **decisions: Option) -> tuple[np.ndarray, np.ndarray]:
    """Result and statistics."""

    func = target.schedule(forward_kernel(case, *arrays), decisions)
    (result,) = noise("overwritten", tuple(int(extent) for extent in func.params[-2].ty.shape))
    statistics = call(func, *arrays, result, target=target)
    return result, statistics


def forward_kernel(case: Case, *arrays: np.ndarray) -> tirx.PrimFunc:
    def of(q: Any, k: Any, v: Any, *masks: Any) -> Any:
        return kernels.attention(q, k, v, masks, **case.options, safe=case.safe)

    return defined(of, *arrays)


def gradient(
    kernel: Any, case: Case, operands: Sequence[np.ndarray], masks: Sequence[np.ndarray], rest: Sequence[np.ndarray],
    target: Target, **decisions: Option,
) -> np.ndarray:  # fmt: skip
    func = target.schedule(gradient_kernel(kernel, case, operands, masks, rest), decisions)
    return call(func, *operands, *masks, *rest, target=target)


def gradient_kernel(
    kernel: Any, case: Case, operands: Sequence[np.ndarray], masks: Sequence[np.ndarray], rest: Sequence[np.ndarray]
) -> tirx.PrimFunc:
    def of(*tensors: Any) -> Any:
        first, last = len(operands), len(operands) + len(masks)
        return kernel(*tensors[:first], tensors[first:last], *tensors[last:], **case.options)

    return defined(of, *operands, *masks, *rest)


def check(case: Case, target: Target) -> None:
    """All four kernels against PyTorch."""
    operands, masks = case.operands()
    expected, grad, *gradients = reference(case, operands, masks)
    result, statistics = forward(case, *operands, *masks, target=target)
    assert_same(result, expected)
    along = (grad * result).sum(-1)
    q, k, v = operands
    rest = [statistics, grad]
    found = [
        gradient(kernels.attention_query_gradient, case, operands, masks, [*rest, along], target),
        gradient(kernels.attention_key_gradient, case, operands, masks, [*rest, along], target),
        gradient(kernels.attention_value_gradient, case, [q, k], masks, rest, target),
    ]
    for one, other in zip(found, gradients, strict=True):
        assert_same(one, other)
    if is_cpu(target):
        for one, other in zip(all_gradients(case, operands, masks, rest, target), gradients, strict=True):
            assert_same(one, other)


def all_gradients(
    case: Case,
    operands: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    rest: Sequence[np.ndarray],
    target: Target,
    **decisions: Option,
) -> list[np.ndarray]:
    """The gradients of one kernel."""
    kernel = gradient_kernel(kernels.attention_gradients, case, operands, masks, rest)
    func = target.schedule(kernel, decisions)
    results = noise("overwritten", *(tuple(int(each) for each in of.ty.shape) for of in func.params[-3:]))
    built(func, target)(*operands, *masks, *rest, *results)
    return results


def assert_same(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    """Equal but for rounding, NaN where NaN is expected."""
    assert found.shape == expected.shape
    most = np.nanmax(np.abs(expected), initial=0)
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * most)


TRIED = [pytest.param(name, each, id=f"{name}, {each}") for name in ("host", "scalar", "opencl") for each in CASES]
TRIED += [
    pytest.param(name, each, id=f"{name}, {each}") for name in ("avx2", "neon") for each in ("odd", "causal", "wide")
]
TRIED += [
    pytest.param("webgpu", each, id=f"webgpu, {each}", marks=pytest.mark.slow)
    for each in ("odd", "cross", "causal, more keys", "whole rows, finite")
]
"""Targets and cases."""


@pytest.mark.parametrize(("name", "case"), TRIED)
def test_numbers(name: str, case: str) -> None:
    check(CASES[case], TARGETS[name])


@pytest.mark.parametrize("rows", [1, 4, 24, 64])
@pytest.mark.parametrize("case", ["many keys", "causal"])
def test_blocks_of_queries(case: str, rows: int) -> None:
    """Blocks that no default is, one or all of a head in a task: the same numbers."""
    tried = CASES[case]
    operands, masks = tried.operands()
    expected, grad, *gradients = reference(tried, operands, masks)
    for split in (False, True):
        result, statistics = forward(tried, *operands, *masks, target=HOST, rows=rows, split=split)
        assert_same(result, expected)
    found = all_gradients(tried, operands, masks, [statistics, grad], HOST, rows=rows)
    for one, other in zip(found, gradients, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("name", CPUS)
def test_scores_of_a_few_queries_are_in_scratch(name: str) -> None:
    """Whatever the cores, theirs fit into the caches; none are beside them."""
    case = Case(*[(2, 3, 1024, 64)] * 3)
    operands, masks = case.operands()
    statistics, grad = noise("rest", (2, 3, 1024, 2), (2, 3, 1024, 64))
    traits = CPUS[name].traits
    for func in (
        forward_kernel(case, *operands),
        gradient_kernel(kernels.attention_gradients, case, operands, masks, [statistics, grad]),
    ):
        scheduled = CPUS[name].schedule(func).with_attr("global_symbol", "kernel")
        packed = 2 * 4 * 1024 * 64
        assert CPUS[name].scratch_bytes(scheduled) <= traits.cores * (packed + traits.cache_bytes)


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_decisions(tile: ThreadTile) -> None:
    """Tiles that no default is, on a device with memory for all."""
    case = Case((70, 20), (133, 20), (133, 12), (133,), "float")
    target = GpuTarget(replace(OPENCL.traits, shared_bytes=48 * KIB), OPENCL.target)
    operands, masks = case.operands()
    expected, grad, _, dk, _ = reference(case, operands, masks)
    result, statistics = forward(case, *operands, *masks, target=target, tile=astuple(tile))
    assert_same(result, expected)
    rest = [statistics, grad, (grad * result).sum(-1)]
    found = gradient(kernels.attention_key_gradient, case, operands, masks, rest, target, tile=astuple(tile))
    assert_same(found, dk)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_no_score_is_in_memory(dialect: str) -> None:
    """All values of a kernel are its operands', or lie in registers and shared memory within each dialect's limits."""
    target = gpu_target(resolve_target("jetson-orin" if dialect == "cuda" else dialect))
    case = Case(*[(2, 2, 70, 128)] * 3, mask=(2, 1, 1, 70))
    operands, masks = case.operands()
    q, k, _ = operands
    statistics, grad, along = noise("rest", (2, 2, 70, 2), (2, 2, 70, 128), (2, 2, 70))
    kernels_of = [
        forward_kernel(case, *operands, *masks),
        gradient_kernel(kernels.attention_query_gradient, case, operands, masks, [statistics, grad, along]),
        gradient_kernel(kernels.attention_key_gradient, case, operands, masks, [statistics, grad, along]),
        gradient_kernel(kernels.attention_value_gradient, case, [q, k], masks, [statistics, grad]),
    ]
    for func in kernels_of:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scheduled = target.schedule(func)
        assert target.scratch_bytes(scheduled.with_attr("global_symbol", "kernel")) == 0


def test_two_runs_are_equal_bit_for_bit() -> None:
    case = CASES["many keys"]
    operands, masks = case.operands()
    first, second = (forward(case, *operands, *masks, target=OPENCL) for _ in range(2))
    assert all((one == other).all() for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["host", "opencl"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_values_that_hurt(value: float, name: str) -> None:
    """They reach the rows that they reach in PyTorch, and no others."""
    case = CASES["cross"]
    operands, masks = case.operands()
    q, k, v = (each.copy() for each in operands)
    q[0, 3, 1], v[1, 5, 2] = value, value
    (expected, *_), (found, _) = (
        reference(case, [q, k, v], masks),
        forward(case, q, k, v, *masks, target=TARGETS[name]),
    )
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected.astype("float32")))
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    is_finite = np.isfinite(found)
    np.testing.assert_allclose(found[is_finite], expected[is_finite], rtol=1e-4, atol=1e-5)
