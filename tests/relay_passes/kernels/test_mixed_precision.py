"""Mixed precision: what is stored in 16 bits, and what is not."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import tvm
from tvm import te

import pock_tvm as pock
from pock_tvm.compiler import pipeline
from pock_tvm.compiler.kernel_builder import KernelBuilder
from pock_tvm.compiler.phases import Phases
from pock_tvm.compiler.targets import resolve_target
from pock_tvm.compiler.training_options import Training
from relay_passes.ir import CALLS, bindings_of, dtype_of, op_name, returned, shape_of
from relay_passes.kernels.narrow_kernel import narrow_kernel, operands_of_products, sums_of
from schedules.kernels.attention import attention
from schedules.kernels.matmul import matmul
from tests.pock_tvm.networks import small
from tests.schedules.kernels import first_device

SCHEME = {"blocks.1.conv2.weight": 0.5, "head.*": "full", "*.bias": "full"}


@pytest.fixture(scope="module")
def phases() -> Phases:
    """The phases of a small network up to its kernels in bfloat16."""
    model = pipeline.import_model(small(16))
    training = Training(pock.Scheme(SCHEME).resolve(model), precision="bfloat16")
    phases = Phases(model.module, None, model.parameters)
    training = pipeline.canonicalise_forward(phases, training)
    pipeline.differentiate(phases, training)
    pipeline.order_kernels(phases, training, KernelBuilder(resolve_target("opencl")))
    return phases


def test_values_between_kernels_are_narrow(phases: Phases) -> None:
    def types(phase: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        calls = [each.var for each in bindings_of(phases.after[phase]["train_step"]) if op_name(each.value) in CALLS]
        return {var.name: (dtype_of(var), shape_of(var)) for var in calls if hasattr(var.ty, "dtype")}

    before, after = types("fused"), types("narrowed")
    assert {dtype for dtype, _ in before.values()} & {"bfloat16"} == set()
    narrow = [name for name, (dtype, _) in after.items() if dtype == "bfloat16"]
    assert len(narrow) > 10
    wide = {name: shape for name, (dtype, shape) in after.items() if dtype == "float32" and len(shape) == 4}
    # Images of float32: the input, turned; gradients of weights (3 x 3), which updates read.
    assert {shape for shape in wide.values() if shape[:2] not in ((3, 3), (1, 1))} == {(16, 8, 8, 3)}


def test_results_updates_and_states_stay_float32(phases: Phases) -> None:
    for name in ("train_step", "predict"):
        func = phases.after["narrowed"][name]
        assert all(dtype_of(result) == "float32" for result in returned(func))
        for binding in bindings_of(func):
            if op_name(binding.value) == "relax.call_tir_inplace":
                assert {dtype_of(arg) for arg in binding.value.args[1].fields} <= {"float32", "int32"}  # places


def test_frozen_weights_of_products_are_narrow_and_trained_ones_are_not(phases: Phases) -> None:
    step = phases.after["narrowed"]["train_step"]
    types = {param.name: (dtype_of(param), len(shape_of(param))) for param in step.params}
    prepared = [dtype for name, (dtype, rank) in types.items() if name.startswith("prepared.") and rank > 1]
    assert prepared
    assert set(prepared) == {"bfloat16"}
    assert types["head.weight"][0] == types["blocks.1.conv2.weight"][0] == "float32"
    records = {name: record.dtype for name, record in phases.parameters.items() if name in types}
    assert all(records[name] == "uint16" for name, (dtype, _) in types.items() if dtype == "bfloat16")


def test_every_product_multiplies_16_bits_and_sums_32(phases: Phases) -> None:
    mod = phases.after["narrowed"]
    count = 0
    for each in bindings_of(mod["train_step"]):
        if op_name(each.value) not in CALLS or not operands_of_products(mod[each.value.args[0]]):
            continue
        text = mod[each.value.args[0]].script()
        for line in re.findall(r"\] = \w+\[[^=]*\] \+ .*\*.*", text):
            if "schedule_rule" in text:
                assert line.count('T.Cast("float32"') >= 2, line
                count += 1
    assert count > 5


def product() -> tvm.tirx.PrimFunc:
    a, b = te.placeholder((5, 7), "float32", "a"), te.placeholder((7, 3), "float32", "b")
    c = matmul(a, b, transpose_a=False, transpose_b=False)
    shifted = te.compute((5, 3), lambda i, j: c(i, j) + a(i, 0), name="shifted")
    return te.create_prim_func([a, b, shifted], index_dtype_override="int64")


def test_a_sum_is_stored_once_it_is_complete() -> None:
    a, b = te.placeholder((5, 7), "float32", "a"), te.placeholder((7, 3), "float32", "b")
    func = te.create_prim_func([a, b, matmul(a, b, transpose_a=False, transpose_b=False)])
    text = narrow_kernel(func, [0, 2], "bfloat16").script()
    assert "matmul_global = T.sblock_alloc_buffer((5, 3))" in text  # float32
    assert 'T.Cast("bfloat16", matmul_global' in text


def test_what_products_read_is_found_through_other_blocks() -> None:
    assert operands_of_products(product()) == {0, 1}
    a = te.placeholder((5, 7), "float32", "a")
    k = te.reduce_axis((0, 7), "k")
    total = te.create_prim_func([a, te.compute((5,), lambda i: te.sum(a(i, k), axis=k), name="total")])
    assert operands_of_products(total) == set()
    assert sums_of(total) == {1}
    assert sums_of(product()) == set()


def test_statistics_of_attention_stay_exact() -> None:
    """Each weight is computed from them: rounded, they would scale its whole row."""
    q, k, v = (te.placeholder((2, 40, 8), "float32", name) for name in "qkv")
    results = attention(q, k, v, [], scale=1.0, masked=0.0, causal=True, safe=False)
    assert sums_of(te.create_prim_func([q, k, v, *results])) == {4}


class Masked(torch.nn.Module):
    """Attention whose mask is the lowest number, and hides everything from some words."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.qkv, self.head = torch.nn.Embedding(9, 32), torch.nn.Linear(32, 96), torch.nn.Linear(32, 3)

    def forward(self, words: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        x, hidden = self.table(words), (1.0 - seen[:, None, :].float()) * torch.finfo(torch.float32).min
        for _ in range(2):
            q, k, v = self.qkv(x).chunk(3, -1)
            x = x + torch.softmax(q @ k.transpose(-1, -2) + hidden, -1) @ v
        return self.head(x.mean(1))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_mask_of_the_lowest_number_stays_finite(precision: str) -> None:
    first_device("opencl")
    torch.manual_seed(0)
    words, seen = torch.randint(0, 9, (32, 33)), torch.ones(32, 33, dtype=torch.long)
    seen[1, 20:] = 0
    seen[2] = 0  # of which softmax makes equal weights
    model = Masked().eval()
    program = pock.compile(torch.export.export(model, (words, seen)), target="opencl", precision=precision, check=False)
    outputs = pock.Trainer(program).predict((words.numpy(), seen.numpy()))
    np.testing.assert_allclose(outputs, model(words, seen).detach().numpy(), atol=0.02)
