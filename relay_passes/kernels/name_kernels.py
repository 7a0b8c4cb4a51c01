"""Names kernels by structural hash, so that equal kernels are shared within and across programs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import tvm
import tvm_ffi
from tvm import IRModule, relax, tirx

from ..ir import CALLS, Expr, op_name, rewrite

HASH = re.compile(r"_[0-9a-f]{16}(_\d+)?$")
"""End of the name of a kernel that has been named."""
LONGEST_NAME = 80
"""Characters kept of a fused kernel's name, which lists its operators. Names become file names."""


@tvm.transform.module_pass(opt_level=0, name="NameKernels")
@dataclass(frozen=True)
class NameKernels:
    """Rename every PrimFunc to end in a structural hash, and merge equal ones.

    In, out: functions of ``call_tir`` and the PrimFuncs that they call. The name is independent of the program, of
    variable names and of the order in which kernels were made, so a cache of built kernels can use it as a key. A
    kernel that has its name keeps it.
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
    """Table of distinct kernels and their names."""

    known: dict[int, list[tuple[tvm.ir.GlobalVar, tirx.PrimFunc]]] = field(default_factory=dict)
    """Kernels without symbols, by hash. Colliding kernels share an entry."""

    def of(self, var: tvm.ir.GlobalVar, func: tirx.PrimFunc) -> tvm.ir.GlobalVar:
        """Return the new name of the kernel that is called ``var`` now."""
        func = func.without_attr("global_symbol") if "global_symbol" in func.attrs else func
        digest = structural_hash(func)
        same_hash = self.known.setdefault(digest, [])
        for name, other in same_hash:
            if tvm_ffi.structural_equal(func, other, map_free_vars=True):
                return name
        hint = HASH.sub("", var.name_hint)[:LONGEST_NAME].rstrip("0123456789").rstrip("_")
        clash = f"_{len(same_hash)}" if same_hash else ""
        name = tvm.ir.GlobalVar(f"{hint}_{digest:016x}{clash}")
        relax.expr._update_type(name, var.ty)
        same_hash.append((name, func))
        return name

    def kernels(self) -> dict[tvm.ir.GlobalVar, tirx.PrimFunc]:
        """Return the kernels by name, in order of discovery."""
        named = (pair for pairs in self.known.values() for pair in pairs)
        return {name: func.with_attr("global_symbol", name.name_hint) for name, func in named}


def structural_hash(func: tirx.PrimFunc) -> int:
    """Return a hash of a function's structure that ignores variable names and is the same in every process."""
    return tvm_ffi.structural_hash(func, map_free_vars=True) & 0xFFFFFFFFFFFFFFFF
