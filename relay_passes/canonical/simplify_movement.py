"""Merges and cancels data movement: transposes, reshapes, gathers in memory order, and redundant broadcasts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.relax import op as R

from ..ir import Expr, constant_value, dtype_of, eliminate_dead, op_name, rewrite, shape_of, update_function
from ..operators.record import Kind, kind_of
from ..operators.registry import plain

BROADCASTING = frozenset(
    f"relax.{name}" for name in ["add", "subtract", "multiply", "divide", "maximum", "minimum", "power", "where"]
)
MAX_TRACED_ELEMENTS = 1 << 26
"""Elements of the largest tensor whose moves are traced element by element, to bound compile time and memory."""


@tvm.transform.module_pass(opt_level=0, name="SimplifyMovement")
@dataclass(frozen=True)
class SimplifyMovement:
    """Replace each chain of transposes and reshapes by the shortest equal one.

    In, out: a dataflow function.

    - Consecutive reshapes become one, consecutive transposes one or none.
    - A chain that keeps the elements in order becomes a reshape (NHWC to NCHW, flattened, transposed again: the entry
      of a vision transformer). So does a gather of all elements in order (a mask, indexed by batch and position).
    - A vector reshaped to [1, …, 1, C] only to be broadcast is used as it is. A broadcast to the same shape is dropped.
    - A constant that repeats along an axis is cut to extent 1 where another operand broadcasts it back.
    """

    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        chains: dict[relax.Var, _Chain] = {}

        def visit(builder: relax.BlockBuilder, var: relax.Var, value: Expr) -> Expr:
            if op_name(value) in BROADCASTING:
                return _without_repeats(_without_leading_ones(value, var, chains))
            if op_name(value) == "relax.index_tensor" and _reads_in_order(value):
                value = R.reshape(value.args[0], shape_of(var))
            if op_name(value) == "relax.broadcast_to" and shape_of(value.args[0]) == shape_of(var):
                return value.args[0]
            if kind_of(value) is not Kind.RESHAPE and op_name(value) != "relax.permute_dims":
                return value
            chain = _extended(chains, value, shape_of(var))
            if chain is None:
                return value
            simpler = chain.simplified()
            if isinstance(simpler, relax.Var):
                return simpler
            new = builder.emit(simpler, var.name)
            chains[new] = chain
            return new

        func = rewrite(mod[self.function], visit)
        return update_function(mod, self.function, eliminate_dead(func))


@dataclass(frozen=True)
class _Chain:
    """A value as a chain of moves of a root. A move is the shape before a permutation, and the permuted axes."""

    root: relax.Var
    moves: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    shape: tuple[int, ...]

    def simplified(self) -> Expr:
        """The shortest known expression for the chain."""
        root_shape = shape_of(self.root)
        moves = self.moves
        if not moves or (math.prod(self.shape) <= MAX_TRACED_ELEMENTS and self._keeps_order()):
            return self.root if self.shape == root_shape else R.reshape(self.root, self.shape)
        value: Expr = self.root
        current = root_shape
        for before, axes in moves:
            value = value if before == current else R.reshape(value, before)
            value = R.permute_dims(value, list(axes))
            current = tuple(before[axis] for axis in axes)
        return value if current == self.shape else R.reshape(value, self.shape)

    def _keeps_order(self) -> bool:
        """Whether the moves keep the elements in order, tested on their indices."""
        indices = np.arange(math.prod(self.shape), dtype=np.int32)
        moved: np.ndarray = indices
        for before, axes in self.moves:
            moved = moved.reshape(before).transpose(axes)
        return bool(np.array_equal(moved.reshape(-1), indices))


def _extended(chains: dict[relax.Var, _Chain], value: relax.Call, result: tuple[int, ...]) -> _Chain | None:
    source = value.args[0]
    if not isinstance(source, relax.Var):
        return None
    shape = shape_of(source)
    chain = chains.get(source, _Chain(source, (), shape))
    if kind_of(value) is Kind.RESHAPE:
        return _Chain(chain.root, chain.moves, result)
    axes = plain(value.attrs.axes)
    axes = tuple(reversed(range(len(shape)))) if axes is None else tuple(axis % len(shape) for axis in axes)
    if _moves_only_ones(shape, axes):
        return _Chain(chain.root, chain.moves, result)
    return _Chain(chain.root, _composed(chain.moves, shape, axes), result)


def _composed(moves: tuple, shape: tuple[int, ...], axes: Sequence[int]) -> tuple:
    """Append a permutation, merged with the last move where no reshape lies between."""
    if moves:
        before, previous = moves[-1]
        if tuple(before[axis] for axis in previous) == shape:
            merged = tuple(previous[axis] for axis in axes)
            return moves[:-1] if merged == tuple(range(len(merged))) else (*moves[:-1], (before, merged))
    return (*moves, (shape, tuple(axes)))


def _moves_only_ones(shape: Sequence[int], axes: Sequence[int]) -> bool:
    """Whether a permutation keeps the order of all axes longer than 1: then it is a reshape."""
    longer = [axis for axis in axes if shape[axis] > 1]
    return longer == sorted(longer)


def _reads_in_order(gather: relax.Call) -> bool:
    """Whether constant indices read every element once, in memory order."""
    x, indices = gather.args
    fields = indices.fields if isinstance(indices, relax.Tuple) else []
    arrays = [array for array in map(constant_value, fields) if array is not None]
    if not arrays or len(arrays) < len(fields):
        return False
    extents = shape_of(x)[: len(arrays)]
    wrapped = [np.where(array < 0, array + extent, array) for array, extent in zip(arrays, extents, strict=True)]
    try:
        rows = np.ravel_multi_index(np.broadcast_arrays(*wrapped), extents)
    except ValueError:  # out of bounds: not for this pass to refuse
        return False
    return np.array_equal(rows.reshape(-1), np.arange(math.prod(extents)))


def _without_repeats(value: relax.Call) -> relax.Call:
    """Cut a constant to extent 1 along axes where it repeats and another operand has the full extent."""
    args = list(value.args)
    for index, arg in enumerate(args):
        array = constant_value(arg)
        if array is None or not 1 < array.size <= MAX_TRACED_ELEMENTS:
            continue
        others = [shape_of(other) for other in args[:index] + args[index + 1 :]]
        for from_end in range(1, array.ndim + 1):  # axes are counted from the end, as broadcasting does
            first = array.take([0], -from_end)
            is_broadcast = any(
                len(shape) >= from_end and shape[-from_end] == array.shape[-from_end] for shape in others
            )
            if is_broadcast and np.array_equal(array, np.broadcast_to(first, array.shape)):
                array = first
        args[index] = arg if array.shape == shape_of(arg) else relax.const(array, dtype_of(arg))
    return relax.Call(value.op, args, value.attrs, value.ty_args)


def _without_leading_ones(value: relax.Call, var: relax.Var, chains: dict[relax.Var, _Chain]) -> relax.Call:
    """Replace an operand [1, …, 1, C] by its source [C] where another operand has the rank of the result."""
    rank = len(shape_of(var))
    args = list(value.args)
    for index, arg in enumerate(args):
        chain = chains.get(arg) if isinstance(arg, relax.Var) else None
        others = [other for other in args[:index] + args[index + 1 :] if len(shape_of(other)) == rank]
        if chain is None or chain.moves or not others:
            continue
        shape = shape_of(chain.root)
        if len(shape) < rank and chain.shape == (1,) * (len(chain.shape) - len(shape)) + shape:
            args[index] = chain.root
    return relax.Call(value.op, args, value.attrs, value.ty_args)
