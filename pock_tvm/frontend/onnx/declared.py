"""Shapes, axes and counts that a model computes, known from the types that its file declares for the results.

A program has static shapes. Where a node reads a target shape, say, from an input of the model, the file's declaration
of the result fixes it: another value would contradict the file.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx

Shape: TypeAlias = tuple[int, ...]
Known: TypeAlias = dict[int, np.ndarray]
"""Values of operands by their position among a node's inputs."""
Rule: TypeAlias = Callable[[Shape, Sequence[Shape], Mapping[str, Any]], Known]
"""Takes the shape of the first operand, those of the results, and the attributes."""


def declared_operands(node: onnx.NodeProto, version: int, x: Shape, results: Sequence[Shape]) -> Known:
    """Return the operands that the types of a node's results fix, as far as they do.

    Parameters
    ----------
    version: operator set in which the operator last changed.
    x: shape of the first operand; empty if that is not known.
    results: declared shapes of the results.
    """
    first, rule = _RULES.get(node.op_type, (0, None))
    if rule is None or version < first or not results:
        return {}
    attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    return rule(x, results, attributes)


def _target(position: int) -> Rule:
    """Make a rule for an operand that is the shape of the result."""
    return lambda x, results, attributes: {position: _integers(results[0])}


def _extents(position: int) -> Rule:
    """Make a rule for an operand that holds extents of the result along ``axes``, all by default."""

    def rule(x: Shape, results: Sequence[Shape], attributes: Mapping[str, Any]) -> Known:
        axes = attributes.get("axes", range(len(results[0])))
        return {position: _integers([results[0][axis] for axis in axes])}

    return rule


def _extent(position: int, default: int) -> Rule:
    """Make a rule for an operand [1] that is the extent of the result along ``axis``."""
    return lambda x, results, attributes: {position: _integers([results[0][attributes.get("axis", default)]])}


def _length(x: Shape, results: Sequence[Shape], attributes: Mapping[str, Any]) -> Known:
    return {0: np.array(results[0][0], "int64")}


def _repeats(x: Shape, results: Sequence[Shape], attributes: Mapping[str, Any]) -> Known:
    return {1: _integers([large // small for large, small in zip(results[0], x, strict=True)])}


def _grid(x: Shape, results: Sequence[Shape], attributes: Mapping[str, Any]) -> Known:
    """A grid [N, …, coordinates] for images [N, C, …] of any number of channels."""
    batch, *extents, _ = results[0]
    return {1: _integers([batch, 1, *extents])}


def _parts(x: Shape, results: Sequence[Shape], attributes: Mapping[str, Any]) -> Known:
    return {1: _integers([shape[attributes.get("axis", 0)] for shape in results])}


def _removed(x: Shape, results: Sequence[Shape], attributes: Mapping[str, Any]) -> Known:
    return {1: _integers(_left_out(x, results[0]))}


def _added(x: Shape, results: Sequence[Shape], attributes: Mapping[str, Any]) -> Known:
    return {1: _integers(_left_out(results[0], x))}


def _left_out(long: Shape, short: Shape) -> list[int]:
    """Axes of extent 1 of ``long`` without which it is ``short``; which of several equal ones does not matter."""
    rest, axes = list(short), []
    for axis, extent in enumerate(long):
        if rest and rest[0] == extent:
            rest.pop(0)
        else:
            axes.append(axis)
    return axes


def _reduced(x: Shape, results: Sequence[Shape], attributes: Mapping[str, Any]) -> Known:
    """The axes of a reduction, unless several sets of them give the same shape."""
    (shape,) = results[:1]
    if attributes.get("keepdims", 1):
        return {1: _integers([axis for axis, extent in enumerate(shape) if extent == 1])}
    fits = [
        axes
        for axes in itertools.combinations(range(len(x)), len(x) - len(shape))
        if tuple(extent for axis, extent in enumerate(x) if axis not in axes) == shape
    ]
    return {1: _integers(fits[0])} if len(fits) == 1 else {}


def _only_axis(x: Shape, results: Sequence[Shape], attributes: Mapping[str, Any]) -> Known:
    return {1: np.array(0, "int64")} if len(results[0]) == 1 else {}


def _integers(values: Sequence[int]) -> np.ndarray:
    return np.array(values, "int64")


REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
_RULES: dict[str, tuple[int, Rule]] = {
    "AffineGrid": (20, _grid),
    "BlackmanWindow": (17, _length),
    "CenterCropPad": (18, _extents(1)),
    "ConstantOfShape": (9, _target(0)),
    "CumProd": (26, _only_axis),
    "CumSum": (11, _only_axis),
    "Expand": (8, _target(1)),
    "HammingWindow": (17, _length),
    "HannWindow": (17, _length),
    "OneHot": (9, _extent(1, -1)),
    "Reshape": (5, _target(1)),
    "Resize": (11, _extents(3)),
    "Split": (13, _parts),
    "Squeeze": (13, _removed),
    "Tile": (6, _repeats),
    "TopK": (10, _extent(1, -1)),
    "Unsqueeze": (13, _added),
    "ReduceSum": (13, _reduced),
    **{f"Reduce{name}": (18, _reduced) for name in REDUCTIONS},
}
"""For each operator the version from which these are operands, and the rule."""
