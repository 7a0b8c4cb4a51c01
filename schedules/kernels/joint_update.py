"""Optimizer updates that compute the gradient themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tvm_ffi
from tvm import ir, s_tir, tirx
from tvm.sym import Analyzer

from ..emit import substituted
from .reduction import CHANNEL_SUM

Gradient = Callable[[Sequence[tirx.Var]], tirx.Expr]
"""Value of a gradient at one element, by its index along each axis."""


def product_update(
    product: tirx.PrimFunc, update: tirx.PrimFunc, gradient: int, *, sums: bool = False
) -> tirx.PrimFunc:
    """Join a product and the update that reads its result: a kernel in which the gradient is a temporary.

    ``product``: its last parameter is the result. ``update``: from :func:`.update.elementwise_update`, whose parameter
    at ``gradient`` has the dtype and the number of elements of that result. Parameters: those of the update without the
    gradient, then those of the product without the result. With ``sums`` comes a result: the sum of gradient times
    weight, as it is before the update, over all axes but the last; both have one shape.

    The update's block runs over the axes of the result, so that a schedule computes it tile by tile.
    """
    *operands, result = product.params
    root = product.body.block
    views, block = _parts_of(update, gradient, _shape(result), lambda axes: tirx.BufferLoad(result, axes))
    own = [*root.alloc_buffers, result]
    if not sums:
        return _joint(update, gradient, operands, tirx.SeqStmt([*views, root.body, block]), own)
    total = tirx.decl_buffer(result.shape[-1:], str(result.ty.dtype), "total", layout=None)
    summed = _sum_of_products(result, update.params[0], total)
    func = _joint(update, gradient, [*operands, total], tirx.SeqStmt([*views, root.body, summed, block]), own)
    # The sum and the update read and write the weight as different buffers: loads must not move past stores.
    return func.without_attr("tirx.noalias")


def _sum_of_products(gradient: tirx.Buffer, weight: tirx.Buffer, total: tirx.Buffer) -> tirx.Stmt:
    """Return the loops of ``total[k] = sum gradient[.., k] * weight[.., k]``."""
    *reduced, columns = _shape(gradient)
    *rows, column = axes = [tirx.Var(name, "int64") for name in (*(f"r{at}" for at in range(len(reduced))), "k")]
    kinds = [*[tirx.IterVar.CommReduce] * len(rows), tirx.IterVar.DataPar]
    product = tirx.BufferLoad(gradient, axes) * tirx.BufferLoad(weight, axes)
    block = s_tir.SBlock(
        [_iter_var(axis, extent, kind) for axis, extent, kind in zip(axes, (*reduced, columns), kinds, strict=True)],
        [tirx.BufferRegion(each, [_point(at) for at in axes]) for each in (gradient, weight)],
        [tirx.BufferRegion(total, [_point(column)])],
        "channel_sum",
        tirx.BufferStore(total, tirx.BufferLoad(total, [column]) + product, [column]),
        tirx.BufferStore(total, tirx.const(0, str(total.ty.dtype)), [column]),
        annotations={"schedule_rule": CHANNEL_SUM},
    )
    return _looped(block, (*reduced, columns))


def gathered_update(update: tirx.PrimFunc, gradient: int, rows: int) -> tirx.PrimFunc:
    """Let an update read a gradient of which most rows are zero: row r is row ``places[r]`` of a smaller matrix.

    ``update`` and ``gradient``: see :func:`product_update`. ``rows``: those of the smaller matrix. Parameters: those of
    the update without the gradient, then ``places``, int32 [rows of the gradient], and the matrix.
    """
    whole = update.params[gradient]
    shape = _shape(whole)
    count = shape[0]
    places = tirx.decl_buffer([_int64(count)], "int32", "places", layout=None)
    matrix = tirx.decl_buffer([_int64(rows), *map(_int64, shape[1:])], str(whole.ty.dtype), "matrix", layout=None)

    def value(axes: Sequence[tirx.Var]) -> tirx.Expr:
        return tirx.BufferLoad(matrix, [tirx.Cast("int64", tirx.BufferLoad(places, axes[:1])), *axes[1:]])

    views, block = _parts_of(update, gradient, shape, value)
    return _joint(update, gradient, [places, matrix], tirx.SeqStmt([*views, block]), [])


def _joint(
    update: tirx.PrimFunc, gradient: int, more: Sequence[tirx.Buffer], body: tirx.Stmt, own: Sequence[tirx.Buffer]
) -> tirx.PrimFunc:
    """Return a kernel with the parameters of an update, without the gradient, and ``more``."""
    params = [*update.params[:gradient], *update.params[gradient + 1 :], *more]
    root = s_tir.SBlock([], [], [], "root", body, alloc_buffers=list(own))
    return tirx.PrimFunc(params, s_tir.SBlockRealize([], True, root), update.ret_type, update.attrs)


def _parts_of(
    func: tirx.PrimFunc, gradient: int, shape: Sequence[int], value: Gradient
) -> tuple[list[tirx.DeclBuffer], tirx.Stmt]:
    """Return the views of an update's operands, and its loops over the axes of a gradient of ``shape``."""
    *views, loop = func.body.block.body.seq
    while isinstance(loop, tirx.For):
        loop = loop.body
    replaced = {view.buffer for view in views if view.data.args[0].same_as(func.params[gradient])}
    axes = [tirx.Var(f"v{at}", "int64") for at in range(len(shape))]
    block = _over(loop.block, axes, shape, replaced, value(axes))
    return [view for view in views if view.buffer not in replaced], _looped(block, shape)


def _looped(block: s_tir.SBlock, shape: Sequence[int]) -> tirx.Stmt:
    """Return loops of a ``shape`` around a block, one for each of its axes."""
    loops = [tirx.Var(f"i{at}", "int64") for at in range(len(shape))]
    stmt: tirx.Stmt = s_tir.SBlockRealize(loops, True, block)
    for var, extent in zip(reversed(loops), reversed(shape), strict=True):
        stmt = tirx.For(var, _int64(0), _int64(extent), tirx.ForKind.SERIAL, stmt)
    return stmt


def _over(
    block: s_tir.SBlock,
    axes: Sequence[tirx.Var],
    shape: Sequence[int],
    replaced: set[tirx.Buffer],
    value: tirx.Expr,
) -> s_tir.SBlock:
    """Return an update's block over ``axes``, with ``value`` instead of what it reads of ``replaced``."""
    place: tirx.Expr = axes[0]
    for axis, extent in zip(axes[1:], shape[1:], strict=True):
        place = place * extent + axis
    row, column = block.iter_vars
    inner, analyzer = int(column.dom.extent), Analyzer()
    for axis, extent in zip(axes, shape, strict=True):
        analyzer.bind(axis, ir.Range.from_min_extent(_int64(0), _int64(extent)))
    places = {
        row.var: analyzer.simplify(tirx.indexdiv(place, inner)),
        column.var: analyzer.simplify(tirx.indexmod(place, inner)),
    }

    def read(load: ir.TensorLoad) -> tirx.Expr:
        return value if load.source in replaced else load

    def moved(node: tirx.Stmt | tirx.Expr) -> tirx.Stmt | tirx.Expr:
        return tvm_ffi.structural_map(substituted(node, places), (ir.TensorLoad, read))

    def regions(found: Sequence[ir.TensorRegion]) -> list[ir.TensorRegion]:
        others = [each for each in found if each.source not in replaced]
        return [
            tirx.BufferRegion(each.source, [_point(analyzer.simplify(moved(at.min))) for at in each.region])
            for each in others
        ]

    loads: list[ir.TensorLoad] = []
    tvm_ffi.structural_walk(value, (ir.TensorLoad, loads.append))
    own = [tirx.BufferRegion(load.source, [_point(at) for at in load.indices]) for load in loads]
    iters = [_iter_var(axis, extent, tirx.IterVar.DataPar) for axis, extent in zip(axes, shape, strict=True)]
    reads = [*regions(block.reads), *own]
    return s_tir.SBlock(
        iters, reads, regions(block.writes), block.name_hint, moved(block.body), annotations=block.annotations
    )


def _shape(buffer: tirx.Buffer) -> list[int]:
    return [int(extent) for extent in buffer.shape]


def _iter_var(axis: tirx.Var, extent: int, kind: int) -> tirx.IterVar:
    return tirx.IterVar(ir.Range.from_min_extent(_int64(0), _int64(extent)), axis, kind)


def _point(at: tirx.Expr) -> ir.Range:
    return ir.Range.from_min_extent(at, 1)


def _int64(value: int) -> tirx.IntImm:
    return tirx.IntImm("int64", value)
