"""Recovers scaled dot-product attention from its products and softmax."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.relax import op as R

from schedules.target import Layouts

from ..ir import (
    Expr,
    bindings_of,
    constant_value,
    constant_vars,
    dtype_of,
    eliminate_dead,
    is_float,
    is_kept,
    op_name,
    rewrite,
    shape_of,
    update_function,
    used_vars,
)
from ..operators.attention import attention


@tvm.transform.module_pass(opt_level=0, name="RecoverAttention")
@dataclass(frozen=True)
class RecoverAttention:
    """Replace ``softmax(mask(Q K^T * scale)) V`` by one operator, where a target computes it without all scores.

    In, out: a dataflow function, its products unified (:class:`UnifyProducts`). Masks are tensors that are added, and
    after them ``where`` that replace scores by a number, the same of all; a constant that hides the keys after each
    query becomes a flag. Left as they are: scores and weights that something else reads; an added tensor that depends
    on a ``trained`` parameter, whose gradient is that of the scores; and such parameters as queries, keys or values,
    which may be trained in part.
    """

    layouts: Layouts
    """Layouts of the target, which is asked."""
    trained: Collection[str] = ()
    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        func = mod[self.function]
        search = _Search(func, self.trained)
        now: dict[relax.Var, Expr] = {}

        def visit(builder: relax.BlockBuilder, var: relax.Var, value: Expr) -> Expr:
            found = search.attention(var)
            if found is not None and self._is_wanted(found):
                now[var] = found.emitted(builder, now, shape_of(var))
            else:
                now[var] = builder.emit(value, var.name) if isinstance(value, relax.Call) else value
            return now[var]

        return update_function(mod, self.function, eliminate_dead(rewrite(func, visit)))

    def _is_wanted(self, found: _Attention) -> bool:
        width, masks = max(found.q.width, found.v.width), len(found.masks) - (found.causal is not None)
        return self.layouts.fuses_attention(width, dtype_of(found.q.tensor), masks)


@dataclass(frozen=True)
class _Operand:
    """Queries, keys or values: [.., tokens, width], or with ``is_swapped`` [.., width, tokens]."""

    tensor: relax.Var
    is_swapped: bool
    batch: tuple[int, ...] | None = None
    """Leading axes that it has to be reshaped to."""

    @property
    def width(self) -> int:
        """Elements of a head."""
        return shape_of(self.tensor)[-2 if self.is_swapped else -1]

    def emitted(self, builder: relax.BlockBuilder, now: Mapping[relax.Var, Expr]) -> Expr:
        """Emit it as [.., tokens, width]."""
        tensor = now.get(self.tensor, self.tensor)
        *batch, rows, columns = shape_of(tensor)
        if self.batch is not None:
            batch = list(self.batch)
            tensor = builder.emit(R.reshape(tensor, (*batch, rows, columns)))
        if self.is_swapped:
            tensor = builder.emit(R.permute_dims(tensor, [*range(len(batch)), len(batch) + 1, len(batch)]))
        return tensor


@dataclass(frozen=True)
class _Mask:
    """Floats that are added to scores; or booleans: which scores are kept, or with ``is_inverted`` hidden."""

    tensor: Expr
    masked: float = -math.inf
    """Value of hidden scores."""
    is_inverted: bool = False

    @property
    def is_added(self) -> bool:
        """Whether it is floats."""
        return dtype_of(self.tensor) != "bool"

    def may_follow(self, others: Sequence[_Mask]) -> bool:
        """Return whether a kernel, which adds first, may mask scores by this after others."""
        hiding = [each for each in others if not each.is_added]
        return not hiding if self.is_added else all(each.masked == self.masked for each in hiding)

    def is_along(self, batch: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
        """Return whether a mask of scores with leading axes ``batch`` is one of the same scores with axes ``wanted``:
        none of those that it has is cut otherwise."""
        own = list(shape_of(self.tensor)[:-2])
        if len(own) > len(wanted):
            return False
        while own and own[0] == 1:
            own.pop(0)
        return batch == wanted or not own or batch[-len(own) :] == wanted[-len(own) :]

    @property
    def is_causal(self) -> bool:
        """Whether it is known to hide the keys after each query, and nothing else."""
        known = constant_value(self.tensor)
        if known is None or known.ndim < 2 or math.prod(known.shape[:-2]) != 1:
            return False
        known = known.reshape(known.shape[-2:])
        kept = np.tril(np.ones_like(known, bool))
        if known.dtype == bool:
            return self.masked <= LOWEST and np.array_equal(known != self.is_inverted, kept)
        return bool((known[kept] == 0).all() and (known[~kept] <= LOWEST).all())

    def emitted(self, builder: relax.BlockBuilder, now: Mapping[relax.Var, Expr]) -> Expr:
        """Emit floats, or booleans that say which scores are kept."""
        tensor = now.get(self.tensor, self.tensor) if isinstance(self.tensor, relax.Var) else self.tensor
        if not self.is_inverted:
            return tensor
        known = constant_value(tensor)
        return builder.emit(R.logical_not(tensor)) if known is None else relax.const(~known, "bool")


LOWEST = -1e30
"""Added to a score, or in its place, it leaves nothing of its power, if any other score of the row is kept."""


@dataclass(frozen=True)
class _Attention:
    """Attention as it was found."""

    q: _Operand
    k: _Operand
    v: _Operand
    scale: float
    masks: tuple[_Mask, ...]
    """In the order in which scores are masked."""
    safe: bool

    @property
    def causal(self) -> _Mask | None:
        """The mask that becomes a flag. Beside others, only conditions are the same as the flag where they hide all
        that the others keep of a row."""
        return next(
            (each for each in self.masks if each.is_causal and (len(self.masks) == 1 or not each.is_added)), None
        )

    def emitted(self, builder: relax.BlockBuilder, now: Mapping[relax.Var, Expr], shape: Sequence[int]) -> Expr:
        """Emit the operator, and return its result in a shape. ``now``: new values by old ones."""
        operands = [each.emitted(builder, now) for each in (self.q, self.k, self.v)]
        masks = [each.emitted(builder, now) for each in self.masks if each is not self.causal]
        is_alone = self.causal is not None and not masks
        hidden = -math.inf if is_alone or not self.masks else self.masks[-1].masked
        options = {"scale": self.scale, "masked": hidden, "causal": self.causal is not None, "safe": self.safe}
        result = builder.emit(attention(*operands, relax.Tuple(masks), **options))
        result = builder.emit(relax.TupleGetItem(result, 0))
        return result if shape_of(result) == tuple(shape) else builder.emit(R.reshape(result, shape))


class _Scores(NamedTuple):
    """Scores as they were found."""

    product: relax.Call
    scale: float
    masks: tuple[_Mask, ...]
    batch: tuple[int, ...]
    """Leading axes where they are masked last."""


class _Search:
    """Search for attention in a function, from its results backwards. Leading axes may be reshaped on the way."""

    def __init__(self, func: relax.Function, trained: Collection[str]) -> None:
        bindings = bindings_of(func)
        self.trained = {param for param in func.params if param.name in trained}
        self.made = {binding.var: binding.value for binding in bindings}
        self.reads = Counter(var for binding in bindings for var in used_vars(binding.value))
        self.fixed = constant_vars(func, [param.name for param in func.params if param.name not in trained])
        """Values that no trained parameter changes."""

    def attention(self, result: relax.Var) -> _Attention | None:
        """Return the attention that computes a value; None if there is none."""
        product = self.made[result]
        if op_name(product) != "pock.matmul" or product.attrs["transpose_a"]:
            return None
        softmax = self._made_for_one(self._unviewed(product.args[0]))
        is_safe = op_name(softmax) == "pock.safe_softmax"
        scores = self._scores(softmax.args[0]) if is_safe or _is_softmax_of_rows(softmax) else None
        if scores is None:
            return None
        inner, outer = shape_of(scores.product)[:-2], shape_of(result)[:-2]
        swapped = bool(scores.product.attrs["transpose_a"]), not scores.product.attrs["transpose_b"]
        q, k = (
            self._operand(tensor, is_swapped, inner, scores.batch)
            for tensor, is_swapped in zip(scores.product.args, swapped, strict=True)
        )
        v = self._operand(product.args[1], bool(product.attrs["transpose_b"]), outer, scores.batch)
        if q is None or k is None or v is None:
            return None
        return _Attention(q, k, v, scores.scale, scores.masks, is_safe)

    def _operand(
        self, tensor: Expr, is_swapped: bool, batch: tuple[int, ...], wanted: tuple[int, ...]
    ) -> _Operand | None:
        """Return the operand of a product with leading axes ``batch``, which are to be ``wanted``."""
        if not isinstance(tensor, relax.Var) or tensor in self.trained:
            return None
        if batch == wanted:
            return _Operand(tensor, is_swapped)
        return _Operand(tensor, is_swapped, wanted) if shape_of(tensor)[:-2] == batch else None

    def _scores(self, expr: Expr) -> _Scores | None:
        """Return the scores that a value is."""
        plain = self._scaled(expr)
        if plain is not None:
            return _Scores(*plain, (), shape_of(expr)[:-2])
        expr = self._unviewed(expr)
        batch = shape_of(expr)[:-2]
        for inside, mask in self._masks(self._made_for_one(expr)):
            if not (_is_view(inside, expr) and self._has_no_gradient(mask.tensor)):
                continue
            found = self._scores(inside)
            if found is None or not mask.may_follow(found.masks):
                continue
            if all(each.is_along(found.batch, batch) for each in found.masks):
                return _Scores(found.product, found.scale, (*found.masks, mask), batch)
        return None

    def _scaled(self, expr: Expr) -> tuple[relax.Call, float] | None:
        """Return the product that a value is, and what it is multiplied by."""
        scale = 1.0
        while op_name(value := self._made_for_one(expr := self._unviewed(expr))) in ("relax.multiply", "relax.divide"):
            left, right = value.args
            is_product = op_name(value) == "relax.multiply"
            if is_product and _number(left) is not None:
                left, right = right, left
            factor = _number(right)
            if factor is None or (factor == 0 and not is_product):
                return None
            scale, expr = (scale * factor if is_product else scale / factor), left
        return (value, scale) if op_name(value) == "pock.matmul" else None

    def _masks(self, value: Any) -> Iterator[tuple[Expr, _Mask]]:
        """Yield what a call may mask, and its mask."""
        if op_name(value) == "relax.add":
            yield value.args[0], _Mask(value.args[1])
            yield value.args[1], _Mask(value.args[0])
        elif op_name(value) == "relax.where":
            mask, kept, otherwise = value.args
            for scores, hidden, is_inverted in ((kept, otherwise, False), (otherwise, kept, True)):
                masked = _number(hidden)
                if masked is not None:
                    yield scores, _Mask(mask, masked, is_inverted)

    def _unviewed(self, expr: Expr) -> Expr:
        """Return what a value is before reshapes of its leading axes."""
        while op_name(value := self._made_for_one(expr)) == "relax.reshape":
            if not _is_view(value.args[0], expr):
                break
            expr = value.args[0]
        return expr

    def _made_for_one(self, expr: Expr) -> Any:
        """Return what makes a value, if one call reads it, once, and nothing else; else None."""
        if not isinstance(expr, relax.Var) or is_kept(expr) or self.reads[expr] != 1:
            return None
        return self.made.get(expr)

    def _has_no_gradient(self, mask: Expr) -> bool:
        return not isinstance(mask, relax.Var) or mask in self.fixed or not is_float(mask)


def _is_view(one: Expr, other: Expr) -> bool:
    """Return whether two values differ in how their leading axes are cut at most."""
    return shape_of(one)[-2:] == shape_of(other)[-2:] and math.prod(shape_of(one)) == math.prod(shape_of(other))


def _is_softmax_of_rows(value: Any) -> bool:
    return op_name(value) == "relax.nn.softmax" and int(value.attrs.axis) in (-1, len(shape_of(value)) - 1)


def _number(expr: Expr) -> float | None:
    """Return the number that each element of a constant is."""
    known = constant_value(expr)
    return float(known.flat[0]) if known is not None and known.size and (known == known.flat[0]).all() else None
