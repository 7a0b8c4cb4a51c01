"""Which kernels of real networks' full steps have no schedule of their own: by name, so that no other joins them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import pock_tvm as pock
from pock_tvm.compiler.kernel_builder import KernelBuilder
from pock_tvm.device.program import kernel_calls
from tests.numeric.networks import distilbert, resnet50

COMMON = {"divide", "mean", "multiply", "multiply_broadcast_to_unpack_bits_where", "multiply_sum", "not_equal_cast_sum"}
"""Kernels on a number of each channel, or to the loss; gradients of means and of scales."""
COMMON |= {"sum", "transpose"}  # of parts; of few elements
KNOWN = {
    "resnet50": COMMON
    | {"less_equal_pack_bits", "unpack_bits", "max_poold", "max_poold_argmax", "max_poold_gradient_where"}
    | {"multiply_add_multiply", "tir_negative", "tir_negative_multiply_add_multiply", "pad", "pad_spatial"},
    "distilbert": COMMON - {"mean", "multiply_broadcast_to_unpack_bits_where"}
    | {"equal_reshape", "gelu", "multiply_add", "multiply_add_reshape", "not_equal", "pad", "resample", "strided_slice"}
    | {"take", "where", "where_add"},
    "grouped": COMMON
    | {"less_equal_pack_bits", "multiply_add_multiply", "multiply_tir_negative", "pad_spatial", "subtract"}
    | {"tir_negative", "turned"},
}


def grouped() -> torch.export.ExportedProgram:
    """A network of grouped convolutions, with strides and without."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU()]
    for stride in (1, 2):
        layers += [nn.Conv2d(32, 32, 3, stride, padding=1, groups=4), nn.BatchNorm2d(32), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    return torch.export.export(model.eval(), (torch.randn(1, 3, 16, 16),))


NETWORKS: dict[str, Callable[[], torch.export.ExportedProgram]] = {
    "resnet50": lambda: resnet50(64, 1, depths=[1, 1, 1, 1]),
    "distilbert": lambda: distilbert(16, 1, n_layers=1, vocab_size=100),
    "grouped": grouped,
}


def generic_kernels(model: torch.export.ExportedProgram, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Return the kernels of a full training step that no schedule suits, with their FLOPs."""
    notes: dict[str, Any] = {}
    scratch = KernelBuilder.scratch

    def noted(self: KernelBuilder, functions: Any, places: Any) -> dict[str, int]:
        found = scratch(self, functions, places)
        notes.update(self.notes(functions))
        return found

    monkeypatch.setattr(KernelBuilder, "scratch", noted)
    momentum = pock.SGD(momentum=0.9)
    program = pock.compile(
        model, scheme=pock.Scheme.full(), optimizer=momentum, batch_norm="frozen", build=False, check=False
    )
    calls = {kernel for kernel, _ in kernel_calls(program.manifest["entries"]["train_step"])}
    generic = {kernel for kernel in calls if notes[kernel]["schedule"] == "fallback"}
    return {kernel: program.manifest["kernels"][kernel]["flops"] for kernel in generic}


@pytest.mark.parametrize("network", NETWORKS)
def test_kernels_without_a_schedule_are_known(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = generic_kernels(NETWORKS[network](), monkeypatch)
    names = (re.sub(r"_[0-9a-f]{16}$", "", kernel).removeprefix("fused_") for kernel in found)
    assert {re.sub(r"\d", "", name) for name in names} == KNOWN[network]
    assert not any(found.values())
