"""Sums over everything but the channels, as bias gradients are."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te, tirx


def channel_sum(x: te.Tensor, *, chunks: Sequence[int]) -> te.Tensor:
    """``Y[c0, c1, .., k] = sum X[.., k]`` over all axes but the last.

    The first axes are cut into so many ``chunks``, which must divide them; each has a sum of its own.
    """
    *extents, channels = (int(extent) for extent in x.shape)
    lengths = [extent // count for extent, count in zip(extents, [*chunks, *[1] * len(extents)], strict=False)]
    reduced = [te.reduce_axis((0, length), name=f"r{axis}") for axis, length in enumerate(lengths)]

    def total(*index: tirx.Var) -> tirx.Expr:
        starts = [*(chunk * length for chunk, length in zip(index, lengths, strict=False))][: len(chunks)]
        at = [start + axis for start, axis in zip(starts, reduced, strict=False)] + reduced[len(chunks) :]
        return te.sum(x(*at, index[-1]), axis=reduced)

    return te.compute((*chunks, channels), total, name="channel_sum", attrs={"schedule_rule": "pock.channel_sum"})
