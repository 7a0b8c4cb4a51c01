"""Gives a network the input that its random numbers are drawn by."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import IRModule, relax
from tvm.relax import op as R

from ..ir import Expr, bindings_of, eliminate_dead, op_name, rewrite, scalar, update_function
from ..operators.random import DRAWS, RANDOM


@tvm.transform.module_pass(opt_level=0, name="DrawNumbers")
@dataclass(frozen=True)
class DrawNumbers:
    """Let a function draw its random numbers by a further input, ``pock.random``: uint32 [1, 5].

    In: a dataflow function with the attribute ``num_input``, in which draws (``pock.keep``, ``pock.uniform``,
    ``pock.normal``) read any constant. Out: draws read the input, the last of the inputs. Without ``training`` nothing
    is dropped: ``pock.drop`` becomes its expected value.
    """

    training: bool
    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        func = mod[self.function]
        if not any(op_name(binding.value) in DRAWS for binding in bindings_of(func)):
            return mod
        func = func if self.training else eliminate_dead(rewrite(func, _expected))
        if any(op_name(binding.value) in DRAWS for binding in bindings_of(func)):
            inputs = int(func.attrs["num_input"])
            random = relax.Var(RANDOM, relax.TensorType((1, 5), "uint32"))

            def drawn(_builder: relax.BlockBuilder, _var: relax.Var, value: Expr) -> Expr:
                return relax.Call(value.op, [random], value.attrs) if op_name(value) in DRAWS else value

            params = [*func.params[:inputs], random, *func.params[inputs:]]
            func = rewrite(func, drawn, params=params).with_attr("num_input", inputs + 1)
        return update_function(mod, self.function, func)


def _expected(_builder: relax.BlockBuilder, _var: relax.Var, value: Expr) -> Expr:
    if op_name(value) != "pock.drop":
        return value
    x, factor = value.args[0], float(value.attrs["expected"])
    return x if factor == 1 else R.multiply(x, scalar(factor, x))
