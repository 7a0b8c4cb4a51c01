"""Names kernels after what they compute, so that equal ones are one, in this program and in others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tvm
import tvm_ffi
from tvm import IRModule, relax, tirx

from ..ir import CALLS, Expr, op_name, rewrite

LONGEST_NAME = 80
"""Of what a fused kernel is called after its operators: names become those of files."""


@tvm.transform.module_pass(opt_level=0, name="NameKernels")
@dataclass(frozen=True)
class NameKernels:
    """Give every PrimFunc a name that ends in a hash of its structure, and merge those that are equal.

    In, out: functions of ``call_tir`` and the PrimFuncs that they call. The name does not depend on the program, the
    names of variables, or the order in which kernels were made: a cache of built kernels can go by it.
    """

    functions: Sequence[str]

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        named: dict[int, tirx.PrimFunc] = {}
        renamed: dict[tvm.ir.GlobalVar, tvm.ir.GlobalVar] = {}
        variables: dict[int, tvm.ir.GlobalVar] = {}
        for var, func in mod.functions.items():
            if not isinstance(func, tirx.PrimFunc):
                continue
            func = func.without_attr("global_symbol") if "global_symbol" in func.attrs else func
            digest = tvm_ffi.structural_hash(func, map_free_vars=True) & 0xFFFFFFFFFFFFFFFF
            if digest not in named:
                name = f"{var.name_hint[:LONGEST_NAME].rstrip('0123456789').rstrip('_')}_{digest:016x}"
                named[digest], variables[digest] = func, tvm.ir.GlobalVar(name)
                relax.expr._update_type(variables[digest], var.ty)
            renamed[var] = variables[digest]

        def visit(_builder: relax.BlockBuilder, _var: relax.Var, value: Expr) -> Expr:
            if op_name(value) not in CALLS:
                return value
            kernel, *rest = value.args
            return relax.Call(value.op, [renamed[kernel], *rest], value.attrs, value.ty_args)

        functions = {var: func for var, func in mod.functions.items() if var not in renamed}
        kernels = {
            variables[digest]: func.with_attr("global_symbol", variables[digest].name_hint)
            for digest, func in named.items()
        }
        for var in list(functions):
            if var.name_hint in self.functions:
                functions[var] = rewrite(functions[var], visit)
        return IRModule(functions | kernels, attrs=mod.attrs)
