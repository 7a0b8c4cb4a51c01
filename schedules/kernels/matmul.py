"""Matrix products, with either operand transposed."""

from __future__ import annotations

from tvm import te, tirx

MATMUL = "pock.matmul"
"""Schedule rule of a matrix product."""


WIDENED = "pock.widened"
"""Annotation of a block that copies the second operand of a product and adds columns of zeros."""


def matmul(
    a: te.Tensor,
    b: te.Tensor,
    *,
    transpose_a: bool,
    transpose_b: bool,
    computed_rows: int | None = None,
    computed_columns: int | None = None,
) -> te.Tensor:
    """Compute ``C[.., i, j] = sum_k A[.., i, k] * B[.., k, j]``.

    ``a``: float [.., m, k] ([.., k, m] if ``transpose_a``). ``b``: float [.., k, n] ([.., n, k] if ``transpose_b``).
    The leading dimensions broadcast, as in NumPy. ``computed_rows``: rows to compute, at least m, for a tile that does
    not divide m; extra rows repeat the last one and are dropped. ``computed_columns``: columns to compute, at least n,
    for whole vectors; extra ones are zeros and are dropped. Then B is not transposed.
    """
    rows, reduced = _extents(a, transpose_a)
    computed = computed_rows or rows
    columns = _extents(b, not transpose_b)[0]
    whole = computed_columns or columns
    if whole != columns:
        b = _widened(b, whole)
    batch = broadcast_shape([int(d) for d in a.shape[:-2]], [int(d) for d in b.shape[:-2]])
    k = te.reduce_axis((0, reduced), name="k")

    def product(*index: tirx.Var) -> tirx.Expr:
        *outer, i, j = index
        i = i if computed == rows else tirx.min(i, rows - 1)
        a_at = (k, i) if transpose_a else (i, k)
        b_at = (j, k) if transpose_b else (k, j)
        return te.sum(
            a(*broadcast_index(outer, a.shape[:-2]), *a_at) * b(*broadcast_index(outer, b.shape[:-2]), *b_at), axis=k
        )

    result = te.compute((*batch, computed, whole), product, name="matmul", attrs={"schedule_rule": MATMUL})
    if (computed, whole) == (rows, columns):
        return result
    return te.compute((*batch, rows, columns), lambda *at: result(*at), name="kept")


def _widened(b: te.Tensor, columns: int) -> te.Tensor:
    """Copy a matrix, with zeros behind its rows up to so many ``columns``."""
    extent, zero = int(b.shape[-1]), tirx.const(0, b.dtype)
    return te.compute(
        (*b.shape[:-1], columns),
        lambda *at: tirx.if_then_else(at[-1] < extent, b(*at), zero),
        name="widened",
        attrs={WIDENED: 1},
    )


def packed_matmul(a: te.Tensor, strips: te.Tensor, *, computed_rows: int | None = None) -> te.Tensor:
    """Compute ``C[.., i, j] = sum_k A[.., i, k] * B[.., k, j]`` with B packed in strips of its columns.

    ``a``: float [.., m, k]. ``strips``: float [.., n / width, k, width], with the leading dimensions of ``a`` or none.
    ``computed_rows``: see :func:`matmul`.
    """
    *batch, rows, reduced = (int(extent) for extent in a.shape)
    *own, count, _, width = (int(extent) for extent in strips.shape)
    computed = computed_rows or rows
    k = te.reduce_axis((0, reduced), name="k")

    def product(*index: tirx.Var) -> tirx.Expr:
        *outer, i, strip, j = index
        i = i if computed == rows else tirx.min(i, rows - 1)
        return te.sum(a(*outer, i, k) * strips(*outer[: len(own)], strip, k, j), axis=k)

    shape = (*batch, computed, count, width)
    result = te.compute(shape, product, name="matmul", attrs={"schedule_rule": MATMUL})
    return te.compute(
        (*batch, rows, count * width), lambda *at: result(*at[:-1], at[-1] // width, at[-1] % width), name="joined"
    )


def across_matmul(a: te.Tensor, strips: te.Tensor, *, computed_rows: int | None = None) -> te.Tensor:
    """Compute ``C[.., i, j] = sum_k A[.., i, k] * B[.., j, k]`` with B packed in strips of its columns.

    ``a``: float [.., m, k]. ``strips``: float [.., k / width, n, width], with the leading dimensions of ``a`` or none.
    It reads across what :func:`packed_matmul` reads along: each task turns its part of B in cache. ``computed_rows``:
    see :func:`matmul`.
    """
    reduced = int(a.shape[-1])
    *own, _, columns, width = (int(extent) for extent in strips.shape)
    turned = te.compute(
        (*own, reduced, columns),
        lambda *at: strips(*at[:-2], at[-2] // width, at[-1], at[-2] % width),
        name="turned",
        attrs={"pock.turned": width},
    )
    return matmul(a, turned, transpose_a=False, transpose_b=False, computed_rows=computed_rows)


def _extents(matrix: te.Tensor, transposed: bool) -> tuple[int, int]:
    rows, columns = (int(extent) for extent in matrix.shape[-2:])
    return (columns, rows) if transposed else (rows, columns)


def broadcast_shape(left: list[int], right: list[int]) -> tuple[int, ...]:
    """Broadcast two shapes, as in NumPy."""
    rank = max(len(left), len(right))
    left, right = [1] * (rank - len(left)) + left, [1] * (rank - len(right)) + right
    return tuple(max(pair) for pair in zip(left, right, strict=True))


def broadcast_index(index: list[tirx.Var], shape: list[tirx.Expr]) -> list[tirx.Expr]:
    """Return the index into a tensor of ``shape`` for the element ``index`` of its broadcast."""
    aligned = index[len(index) - len(shape) :]
    return [0 if int(extent) == 1 else at for at, extent in zip(aligned, shape, strict=True)]
