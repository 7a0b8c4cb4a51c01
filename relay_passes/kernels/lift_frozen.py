"""Hoists computations on frozen parameters into a function that runs once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import tvm
from tvm import IRModule, relax

from ..ir import (
    Constant,
    Expr,
    bindings_of,
    eliminate_dead,
    op_name,
    operands,
    rewrite,
    substitute,
    update_function,
    used_vars,
)

PREPARE = "prepare"
EACH_STEP = "pock.each_step"
"""Attribute of a kernel that is not hoisted: its result would be another copy of what it reads."""


def prepared_name(index: int) -> str:
    """Return the name of the parameter that holds one field of the result of ``prepare``."""
    return f"prepared.{index}"


@tvm.transform.module_pass(opt_level=0, name="LiftFrozen")
@dataclass(frozen=True)
class LiftFrozen:
    """Hoist computations on frozen parameters into ``prepare``, which runs when a program is loaded.

    In: dataflow functions over the same frozen parameters. Out: ``prepare`` takes ``frozen``, in that order, and
    returns a tuple. In each of ``functions``, parameters ``prepared.<field>`` for the fields that it reads replace the
    frozen parameters. A frozen parameter that is read unchanged or reshaped stays. So weights are transposed, folded
    with batch norm, packed and transformed once, and constant tables are computed once. Functions share equal values.
    """

    frozen: Sequence[str]
    functions: Sequence[str]

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        stay = {var.name_hint for var, func in mod.functions.items() if func.attrs and EACH_STEP in func.attrs}
        lifted = _Lifted(self._frozen_params(mod), stay)
        for name in self.functions:
            lifted.collect(mod[name])
        rebuilt = {name: lifted.without_frozen(mod[name]) for name in self.functions}
        for name, func in rebuilt.items():
            mod = update_function(mod, name, func)
        return update_function(mod, PREPARE, lifted.prepare())

    def _frozen_params(self, mod: IRModule) -> dict[str, relax.Var]:
        types = {param.name: param.ty for name in self.functions for param in mod[name].params}
        return {name: relax.Var(name, types[name]) for name in self.frozen if name in types}


@dataclass
class _Lifted:
    params: dict[str, relax.Var]
    """Parameters of ``prepare``."""
    stay: set[str]
    """Kernels that are not lifted."""
    bindings: list[tuple[relax.Var, Expr]] = field(default_factory=list)
    """Bindings of ``prepare``."""
    known: dict[tuple, relax.Var] = field(default_factory=dict)
    """Values of ``prepare`` by their computation (common subexpressions across functions)."""
    fields: dict[relax.Var, int] = field(default_factory=dict)
    """Values that ``prepare`` returns, with their tuple positions."""
    moved: dict[relax.Var, relax.Var] = field(default_factory=dict)
    """Lifted variables of a function, with the values of ``prepare`` that hold them."""

    def collect(self, func: relax.Function) -> None:
        """Copy the computations of ``func`` on frozen parameters and constants into ``prepare``."""
        self.moved |= {param: self.params[param.name] for param in func.params if param.name in self.params}
        for binding in bindings_of(func):
            value = binding.value
            if isinstance(value, relax.Var) and value in self.moved:
                self.moved[binding.var] = self.moved[value]
            elif self._is_liftable(value):
                self.moved[binding.var] = self._prepared(substitute(value, self.moved), binding.var)

    def _is_liftable(self, value: Expr) -> bool:
        """Return whether a call has operands, all of them constant. (Calls without operands, such as zeros, would only
        take memory between steps.)"""
        if op_name(value) in ("", "relax.call_tir_inplace") or not isinstance(value.ty, relax.TensorType):
            return False
        if op_name(value) == "relax.call_tir" and value.args[0].name_hint in self.stay:
            return False
        read = [arg for _, _, arg in operands(value) if isinstance(arg, relax.Var | Constant)]
        return bool(read) and all(var in self.moved for var in used_vars(value))

    def _prepared(self, value: relax.Call, like: relax.Var) -> relax.Var:
        key = (value.op, tuple(_identity(arg) for arg in value.args), str(value.attrs), str(value.ty_args))
        if key not in self.known:
            var = relax.DataflowVar(like.name, like.ty)
            self.bindings.append((var, value))
            self.known[key] = var
        return self.known[key]

    def without_frozen(self, func: relax.Function) -> relax.Function:
        """Return ``func`` with parameters in place of the values of ``prepare`` that it reads."""
        read: dict[relax.Var, relax.Var] = {}  # value of ``prepare`` -> the parameter that holds it

        def parameter_for(var: relax.Var) -> relax.Var:
            held = self.moved[var]
            if held not in read:
                name = (
                    held.name
                    if held in self.params.values()
                    else prepared_name(self.fields.setdefault(held, len(self.fields)))
                )
                read[held] = relax.Var(name, held.ty)
            return read[held]

        bindings, needed = [], set(used_vars(func.body.body))
        for binding in reversed(bindings_of(func)):
            is_view = op_name(binding.value) == "relax.reshape" and binding.var in needed
            if binding.var not in self.moved or is_view:
                bindings.append(binding)
                needed.update(used_vars(binding.value))
        views = {binding.var for binding in bindings}
        order = [var for binding in reversed(bindings) for var in used_vars(binding.value)] + used_vars(func.body.body)
        env = {var: parameter_for(var) for var in order if var in self.moved and var not in views}
        live = [param for param in func.params if param.name not in self.params]
        body = relax.SeqExpr([relax.DataflowBlock(bindings[::-1])], func.body.body)
        shell = relax.Function(live + list(read.values()), body, func.ret_ty, func.is_pure, func.attrs)
        return rewrite(shell, env=env)

    def prepare(self) -> relax.Function:
        """Build the function that computes every field."""
        results = sorted(self.fields, key=self.fields.__getitem__)
        block = relax.DataflowBlock([relax.VarBinding(var, value) for var, value in self._one_by_one(results)])
        body = relax.SeqExpr([block], relax.Tuple(results))
        shell = relax.Function(
            list(self.params.values()), body, is_pure=True, ret_ty=relax.TupleType([var.ty for var in results])
        )
        func = rewrite(shell)
        return eliminate_dead(func).with_attr("global_symbol", PREPARE)

    def _one_by_one(self, results: Sequence[relax.Var]) -> list[tuple[relax.Var, Expr]]:
        """Order the bindings so that each result follows what it alone needs: temporaries then live shortly."""
        values, order = dict(self.bindings), dict[relax.Var, Expr]()
        waiting = list(reversed(results))
        while waiting:
            var = waiting[-1]
            missing = [read for read in used_vars(values[var]) if read in values and read not in order]
            if var in order or not missing:
                order[waiting.pop()] = values[var]
            else:
                waiting += missing
        return list(order.items())


def _identity(arg: Expr) -> object:
    """Return a key by which arguments are compared: the variable, or the structure of anything else."""
    if isinstance(arg, relax.Var | relax.GlobalVar):
        return arg
    if isinstance(arg, Constant):
        return (str(arg.ty), arg.value.numpy().tobytes())
    if isinstance(arg, relax.Tuple):
        return tuple(_identity(part) for part in arg.fields)
    return str(arg)
