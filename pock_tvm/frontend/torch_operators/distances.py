"""Distances between all pairs of rows."""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.relax import op as R

from relay_passes.ir import Expr, shape_of

from .reductions import vector_norm
from .registry import Number, Site, converter


@converter("_cdist_forward.default")
def distances(at: Site, x1: Expr, x2: Expr, p: Number, compute_mode: int | None = None) -> Expr:
    """Distances of the rows of two matrices, or batches of them; the gradient where one is zero is zero.

    All are norms of differences: PyTorch's products of matrices (``compute_mode``) lose accuracy for near rows.
    """
    rows = at.emit(R.expand_dims(x1, len(shape_of(x1)) - 1))
    columns = at.emit(R.expand_dims(x2, len(shape_of(x2)) - 2))
    return vector_norm(at, at.emit(R.subtract(rows, columns)), p, -1)


@converter("_pdist_forward.default")
def distances_within(at: Site, x: Expr, p: Number = 2) -> Expr:
    """Distances of the rows of a matrix, each pair once."""
    first, second = np.triu_indices(shape_of(x)[0], 1)
    pairs = [at.emit(R.take(x, relax.const(rows.astype("int64"), "int64"), 0)) for rows in (first, second)]
    return vector_norm(at, at.emit(R.subtract(*pairs)), p, -1)
