"""Names kernels after what they compute, so that equal ones are one, in this program and in others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import tvm
import tvm_ffi
from tvm import IRModule, relax, tirx

from ..ir import CALLS, Expr, op_name, rewrite

LONGEST_NAME = 80
"""Characters kept of a fused kernel's name, which lists its operators: names become those of files."""


@tvm.transform.module_pass(opt_level=0, name="NameKernels")
@dataclass(frozen=True)
class NameKernels:
    """Give every PrimFunc a name that ends in a hash of its structure, and merge those that are equal.

    In, out: functions of ``call_tir`` and the PrimFuncs that they call. The name does not depend on the program, the
    names of variables, or the order in which kernels were made: a cache of built kernels can go by it.
    """

    functions: Sequence[str]

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        names = _Names()
        renamed = {var: names.of(var, func) for var, func in mod.functions.items() if isinstance(func, tirx.PrimFunc)}

        def visit(_builder: relax.BlockBuilder, _var: relax.Var, value: Expr) -> Expr:
            if op_name(value) not in CALLS:
                return value
            kernel, *rest = value.args
            return relax.Call(value.op, [renamed[kernel], *rest], value.attrs, value.ty_args)

        functions = {var: func for var, func in mod.functions.items() if var not in renamed}
        for var in list(functions):
            if var.name_hint in self.functions:
                functions[var] = rewrite(functions[var], visit)
        return IRModule(functions | names.kernels(), attrs=mod.attrs)


@dataclass
class _Names:
    """One name for each kernel that differs from the others."""

    known: dict[int, list[tuple[tvm.ir.GlobalVar, tirx.PrimFunc]]] = field(default_factory=dict)
    """Kernels by hash, without a symbol: those that share one differ all the same."""

    def of(self, var: tvm.ir.GlobalVar, func: tirx.PrimFunc) -> tvm.ir.GlobalVar:
        """The name of a kernel that is called ``var`` now."""
        func = func.without_attr("global_symbol") if "global_symbol" in func.attrs else func
        digest = structural_hash(func)
        same_hash = self.known.setdefault(digest, [])
        for name, other in same_hash:
            if tvm_ffi.structural_equal(func, other, map_free_vars=True):
                return name
        hint = var.name_hint[:LONGEST_NAME].rstrip("0123456789").rstrip("_")
        clash = f"_{len(same_hash)}" if same_hash else ""
        name = tvm.ir.GlobalVar(f"{hint}_{digest:016x}{clash}")
        relax.expr._update_type(name, var.ty)
        same_hash.append((name, func))
        return name

    def kernels(self) -> dict[tvm.ir.GlobalVar, tirx.PrimFunc]:
        """The kernels by name, in the order in which they were found."""
        named = (pair for pairs in self.known.values() for pair in pairs)
        return {name: func.with_attr("global_symbol", name.name_hint) for name, func in named}


def structural_hash(func: tirx.PrimFunc) -> int:
    """A hash of what a function is, whatever its variables are called; the same in every process."""
    return tvm_ffi.structural_hash(func, map_free_vars=True) & 0xFFFFFFFFFFFFFFFF
