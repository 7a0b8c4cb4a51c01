"""Scaled dot-product attention, in the operators that have gradient rules."""

from __future__ import annotations

import math

import numpy as np
from tvm import relax
from tvm.relax import op as R

from relay_passes.ir import Expr, constant_value, is_float, shape_of
from relay_passes.operators.training import matmul, safe_softmax

from .registry import Site, Unsupported, converter


@converter("scaled_dot_product_attention.default")
def attention(
    at: Site,
    query: Expr,
    key: Expr,
    value: Expr,
    attn_mask: Expr | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Expr:
    """``softmax(Q K^T * scale + mask) V`` over [..., heads, tokens, width].

    A boolean mask keeps positions where it is True; a fully masked row gives zeros, as in PyTorch. With ``enable_gqa``
    several query heads share a key and value head, which is broadcast, not copied.
    """
    if dropout_p:
        raise Unsupported(
            f"with dropout_p={dropout_p} draws random numbers: the model was exported in training mode. Call "
            "model.eval() first"
        )
    scale = 1 / math.sqrt(shape_of(query)[-1]) if scale is None else scale
    mask = None if attn_mask is None else at.unrepeated(attn_mask)  # adding it to the scores broadcasts it
    if is_causal:
        tokens = (shape_of(query)[-2], shape_of(key)[-2])
        mask = relax.const(np.tril(np.ones(tokens, "bool")), "bool")

    *batch, length, width = shape_of(query)
    heads = batch[-1] if batch else 1
    shared = shape_of(key)[-3] if len(shape_of(key)) > 2 else heads
    grouped = enable_gqa and shared != heads
    if grouped:
        query = at.emit(R.reshape(query, (*batch[:-1], shared, heads // shared, length, width)))
        key, value = (at.emit(R.expand_dims(tensor, -3)) for tensor in (key, value))
        if mask is not None and len(shape_of(mask)) > 2:
            mask = (
                at.emit(R.expand_dims(mask, -3))
                if shape_of(mask)[-3] == 1
                else at.emit(R.reshape(mask, (*shape_of(mask)[:-3], shared, heads // shared, *shape_of(mask)[-2:])))
            )
    # Scale the query, which is smaller than the scores.
    scaled = at.emit(R.multiply(query, at.cast(scale)))
    scores = at.emit(matmul(scaled, key, transpose_a=False, transpose_b=True))
    result = at.emit(matmul(_probabilities(at, scores, mask), value, transpose_a=False, transpose_b=False))
    return at.reshape(result, at.shape)


def _probabilities(at: Site, scores: relax.Var, mask: Expr | None) -> Expr:
    if mask is None:
        return at.emit(R.nn.softmax(scores))
    known = constant_value(mask)
    hides_rows = known is None or (np.isneginf(known) if is_float(mask) else ~known).all(axis=-1).any()
    if not is_float(mask):
        lowest = -math.inf if hides_rows else float(np.finfo(at.dtype).min)
        scores = at.emit(R.where(mask, scores, at.cast(lowest)))
    else:
        scores = at.emit(R.add(scores, mask))
    return at.emit(safe_softmax(scores) if hides_rows else R.nn.softmax(scores))
