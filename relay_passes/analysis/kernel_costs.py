"""Estimates the costs of kernels from their loops."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import tvm
from tvm import IRModule, tirx

from schedules.kernels import comes_scheduled
from schedules.kernels.quantized import WORD, count_dots
from schedules.kernels.word_planes import PIXELS_OF_RESULT, TAPS


def kernel_costs(mod: IRModule, entries: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return each kernel's cost: ``flops`` (two a multiplication of its products), ``bytes`` (every operand read or
    written once), and ``kind`` (schedule rule of its largest product, with ``int8`` before it if that sums integers;
    ``""`` without one). Products in eight bits also multiply the zeros that fill their words."""
    return {var.name_hint: _cost(func) for var, func in mod.functions.items() if var.name_hint not in entries}


def seconds(cost: Mapping[str, Any]) -> float:
    """Estimate a kernel's seconds on a machine of 100 GFLOP/s and 20 GB/s, for comparisons only."""
    return cost["flops"] / 100e9 + cost["bytes"] / 20e9


def _cost(func: tirx.PrimFunc) -> dict[str, Any]:
    size = 0
    for param in func.params:
        size += math.prod(int(extent) for extent in param.ty.shape) * tvm.DataType(str(param.ty.dtype)).bits // 8
    products: list[tuple[float, str]] = []
    if not comes_scheduled(func):  # scatters have no products
        sch = tvm.s_tir.Schedule(tvm.IRModule({"main": func}))
        for block in map(sch.get, sch.get_child_blocks(sch.get_sblock("root"))):
            is_product = any(int(var.iter_type) == tirx.IterVar.CommReduce for var in block.iter_vars)
            dots = count_dots(block.body)
            if "schedule_rule" in block.annotations and (is_product or dots):
                strides = block.annotations.get("strides", [1])  # data gradient: 1 in prod(strides) taps counts
                flops = 2 * math.prod(int(var.dom.extent) for var in block.iter_vars) / math.prod(map(int, strides))
                results = [int(var.dom.extent) for var in block.iter_vars if int(var.iter_type) == tirx.IterVar.DataPar]
                if TAPS in block.annotations:
                    flops = 2 * math.prod(results) * int(block.annotations[TAPS])
                elif dots:
                    flops *= WORD if is_product else dots
                if PIXELS_OF_RESULT in block.annotations:
                    flops *= int(block.annotations[PIXELS_OF_RESULT]) / results[-1]
                sums_integers = str(block.writes[0].source.dtype).startswith("int")
                rule = str(block.annotations["schedule_rule"])
                products.append((flops, f"int8 {rule}" if sums_integers else rule))
    kind = max(products)[1] if products else ""
    return {"flops": sum(flops for flops, _ in products), "bytes": float(size), "kind": kind}
