"""Lowers operators to calls of kernels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import tvm
from tvm import IRModule, relax, tirx

from schedules.target import Target

from ..errors import Obstacle, PassError
from ..ir import CALLS, bindings_of, first_line, op_name, rewrite, substitute, used_vars
from ..ir.places import places_of
from ..operators import aliases, attention, training  # noqa: F401 - their records
from ..operators.record import record_of
from . import (  # noqa: F401 - their kernels
    concatenate,
    convolutions,
    exponentials,
    movement,
    not_finite,
    products,
    quantized_products,
    sorting,
)
from .legalization import legalizations


@tvm.transform.module_pass(opt_level=0, name="ChooseKernels")
@dataclass(frozen=True)
class ChooseKernels:
    """Lower every operator of a function to ``call_tir`` of the kernels that compute it.

    In: functions of Relax and ``pock.*`` operators. Out: functions of ``call_tir``; equal kernels share one PrimFunc.
    Products, reductions, look-ups and exponentials get the kernels of ``schedules/kernels``, the rest TVM's own.
    Transposing, padding or splitting an operand of a product is a separate kernel: work on frozen weights can then be
    hoisted, and the memory planner sees the other results.
    """

    functions: Sequence[str]
    target: Target

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        try:
            chosen = _legalized(mod, self.target)
            why = next(filter(None, (_left_over(chosen, name) for name in self.functions)), "")
        except Exception as error:  # TVM's message does not name the layer
            why = first_line(error)
        if why:
            found = without_kernel([mod[name] for name in self.functions], self.target)
            raise PassError(str(found[0]) if found else f"kernels cannot be chosen: {why}")
        return chosen


def without_kernel(functions: Iterable[relax.Function], target: Target) -> list[Obstacle]:
    """List the operators that no kernel computes. Equal calls (operator, attributes, types) are reported once."""
    known: set[tuple] = set()
    found = []
    for func in functions:
        places = places_of(func)
        for binding in bindings_of(func):
            value = binding.value
            if not op_name(value).startswith(("relax.", "pock.")) or op_name(value) in CALLS:
                continue
            key = (op_name(value), str(value.attrs), *(str(arg.ty) for arg in value.args))
            if key in known:
                continue
            known.add(key)
            why = _no_kernel(value, target)
            if why:
                place = places[binding.var]
                reason = f"{place.described} has no kernel: {why}"
                freeze = "Freeze everything that comes before this operator, or write" if place.of_gradient else "Write"
                found.append(Obstacle(place.layer, place.operator, "", reason, f"{freeze} the model without it"))
    return found


def _no_kernel(value: relax.Call, target: Target) -> str:
    """Return why no kernel computes a call, or an empty string if one does."""
    env = {var: relax.Var(f"x{number}", var.ty) for number, var in enumerate(dict.fromkeys(used_vars(value)))}
    alone = relax.DataflowVar("alone", value.ty)
    block = relax.DataflowBlock([relax.VarBinding(alone, substitute(value, env))])
    shell = relax.Function(list(env.values()), relax.SeqExpr([block], alone), value.ty)
    try:
        mod = _legalized(IRModule({"main": rewrite(shell).with_attr("global_symbol", "main")}), target)
    except Exception as error:
        return first_line(error)
    return _left_over(mod, "main")


def _legalized(mod: IRModule, target: Target) -> IRModule:
    return relax.transform.LegalizeOps(legalizations(target))(mod)


def _left_over(mod: IRModule, name: str) -> str:
    """Return why the first call without a usable kernel has none, or an empty string if every call has one."""
    for binding in bindings_of(mod[name]):
        value = binding.value
        operator = op_name(value)
        if operator in CALLS:
            kernel = mod[value.args[0].name_hint]
            loops = not all(isinstance(buffer.elem_offset, tirx.IntImm) for buffer in kernel.params)  # written by hand
            if loops and "call_packed" in kernel.script():
                return "TVM's calls a library that no program brings along"
        elif operator.startswith(("relax.", "pock.")) and not record_of(operator).is_alias:
            return "TVM has none for this target"
    return ""
