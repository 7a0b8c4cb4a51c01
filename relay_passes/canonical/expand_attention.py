"""Decomposes Relax's own attention into products and a softmax."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.relax import op as R

from ..ir import Expr, op_name, rewrite, scalar, shape_of, update_function


@tvm.transform.module_pass(opt_level=0, name="ExpandAttention")
@dataclass(frozen=True)
class ExpandAttention:
    """Rewrite ``nn.attention`` and ``nn.attention_bias`` as ``softmax(mask(Q K^T * scale + bias)) V``.

    In, out: a dataflow function. Queries, keys and values are [batch, tokens, heads, width]. The products have their
    ordinary gradient rules; :class:`RecoverAttention` joins them again for a target that computes attention as one
    kernel. A window of keys (``window_size``), which TVM does not lower either, stays as it is.
    """

    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        def visit(builder: relax.BlockBuilder, _var: relax.Var, value: Expr) -> Expr:
            is_attention = op_name(value) in ("relax.nn.attention", "relax.nn.attention_bias")
            return _expanded(builder, value) if is_attention and value.attrs.window_size is None else value

        return update_function(mod, self.function, rewrite(mod[self.function], visit))


def _expanded(builder: relax.BlockBuilder, call: relax.Call) -> Expr:
    q, k, v, *bias = call.args
    width, scale, causal = shape_of(q)[-1], call.attrs.scale, call.attrs.causal_mask
    queries, values = (builder.emit(R.permute_dims(x, [0, 2, 1, 3])) for x in (q, v))
    scores = builder.emit(R.matmul(queries, builder.emit(R.permute_dims(k, [0, 2, 3, 1]))))
    scores = builder.emit(scores * scalar(1 / math.sqrt(width) if scale is None else float(scale.value), scores))
    for added in bias:
        scores = builder.emit(scores + added)
    if causal is not None:
        rows, columns = shape_of(scores)[-2:]
        first = abs(rows - columns) if str(causal) == "BottomRight" else 0  # as TVM's kernel has it
        kept = relax.const(np.tri(rows, columns, first, dtype=bool))
        scores = builder.emit(R.where(kept, scores, scalar(-math.inf, scores)))
    result = builder.emit(R.matmul(builder.emit(R.nn.softmax(scores, -1)), values))
    return builder.emit(R.permute_dims(result, [0, 2, 1, 3]))
