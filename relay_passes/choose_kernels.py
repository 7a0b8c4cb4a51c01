"""Replaces operators by calls of kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import IRModule, relax, topi

from schedules.kernels import conv2d as conv2d_kernels
from schedules.kernels import indexing

from .errors import PassError
from .ir import bindings_of, op_name
from .operators.registry import plain

Legalize = Callable[[relax.BlockBuilder, relax.Call], relax.Expr]


@tvm.transform.module_pass(opt_level=0, name="ChooseKernels")
@dataclass(frozen=True)
class ChooseKernels:
    """Turn every operator of a function into a ``call_tir`` of the kernel that computes it.

    In: functions of Relax and ``pock.*`` operators. Out: functions of ``call_tir``; equal kernels are one PrimFunc.
    Products and look-ups get the kernels of ``schedules/kernels``, the rest TVM's own.
    """

    functions: Sequence[str]

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        mod = relax.transform.LegalizeOps(KERNELS)(mod)
        for name in self.functions:
            for binding in bindings_of(mod[name]):
                operator = op_name(binding.value)
                if operator.startswith(("relax.", "pock.")) and operator not in CALLS:
                    raise PassError(f"operator '{operator}' at '{binding.var.name}' has no kernel")
        return mod


CALLS = frozenset({"relax.call_tir", "relax.call_tir_inplace"})


def _conv2d(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    attrs = call.attrs
    if (attrs.data_layout, attrs.kernel_layout) != ("NHWC", "HWIO"):
        return relax.transform.legalize_ops.nn._nn_conv2d(builder, call)
    geometry: dict[str, Any] = {
        name: plain(getattr(attrs, name)) for name in ("strides", "padding", "dilation", "groups")
    }
    return builder.call_te(conv2d_kernels.conv2d, *call.args, **geometry, primfunc_name_hint="conv2d")


def _take(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """The Trainer checks indices before a step, so that the kernel need not."""
    axis = call.attrs.axis
    if axis is None:
        return builder.call_te(topi.take, *call.args, mode="clip", primfunc_name_hint="take")
    return builder.call_te(indexing.take, *call.args, axis=int(axis), primfunc_name_hint="take")


KERNELS: dict[str, Legalize] = {"relax.nn.conv2d": _conv2d, "relax.take": _take}
