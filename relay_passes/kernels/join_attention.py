"""Joins the gradients of attention's queries, keys and values."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import IRModule, relax

from ..ir import Expr, bindings_of, eliminate_dead, op_name, rewrite, update_function
from ..operators.attention import attention_gradients
from ..operators.registry import attributes_of

QUERY, KEY, VALUE = (f"pock.attention_{of}_gradient" for of in ("query", "key", "value"))


@tvm.transform.module_pass(opt_level=0, name="JoinAttention")
@dataclass(frozen=True)
class JoinAttention:
    """Replace the gradients of queries, keys and values of the same attention by one operator. It computes the scores
    once, not three times, and does without attention's result, which then need not be kept.

    In, out: a dataflow function. Attention of which only one or two gradients are read is left as it is.
    """

    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        func = mod[self.function]
        found: dict[tuple[Expr, ...], dict[str, relax.Var]] = {}
        for binding in bindings_of(func):
            name = op_name(binding.value)
            if name in (QUERY, KEY, VALUE):
                found.setdefault(_attention_of(binding.value), {})[name] = binding.var
        # The joint operator takes the place of the first, which that of the values is not: it lacks an operand.
        joined = {key: members for key, members in found.items() if len(members) == 3 and next(iter(members)) != VALUE}
        results = {
            members[name]: (key, index)
            for key, members in joined.items()
            for index, name in enumerate((QUERY, KEY, VALUE))
        }
        emitted: dict[tuple[Expr, ...], relax.Var] = {}

        def visit(builder: relax.BlockBuilder, var: relax.Var, value: Expr) -> Expr:
            if var not in results:
                return value
            key, index = results[var]
            if key not in emitted:
                *operands, _along = value.args
                emitted[key] = builder.emit(attention_gradients(*operands, **attributes_of(value)))
            return relax.TupleGetItem(emitted[key], index)

        return update_function(mod, self.function, eliminate_dead(rewrite(func, visit)) if joined else func)


def _attention_of(call: relax.Call) -> tuple[Expr, ...]:
    """Return what the gradients of the same attention have in common: its statistics and its result's gradient."""
    if op_name(call) == VALUE:
        *_, statistics, grad = call.args
    else:
        *_, statistics, grad, _ = call.args
    return statistics, grad
