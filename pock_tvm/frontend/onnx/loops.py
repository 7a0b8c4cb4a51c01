"""Writes out loops whose number of turns is constant: Loop, and Scan, which runs along an axis of its operands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from .graphs import renamed
from .registry import Unsupported, refuse

MOST_NODES = 20_000
"""Most nodes that a loop may become: compile time grows with them."""


class Bodies:
    """Copies the bodies of control flow and functions under fresh names.

    ``values`` holds the translated values by name; constants of a body are added to it.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        self.copies = 0

    def fresh(self, nodes: Iterable[onnx.NodeProto], names: Iterable[str] = ()) -> dict[str, str]:
        """Create fresh names for the results of nodes, and for further names."""
        self.copies += 1
        made = {*names, *(name for node in nodes for name in node.output if name)}
        return {name: f"{name}#{self.copies}" for name in made}

    def constant(self, array: np.ndarray) -> str:
        """Store a constant under a fresh name."""
        self.copies += 1
        name = f"#{self.copies}"
        self.values[name] = array
        return name

    def copy_of(self, body: onnx.GraphProto, operands: Sequence[str]) -> tuple[list[onnx.NodeProto], list[str]]:
        """Copy a body, called with some operands; return its nodes, and the names of its results."""
        names = self.fresh(body.node, [tensor.name for tensor in body.initializer])
        for tensor in body.initializer:
            self.values[names[tensor.name]] = numpy_helper.to_array(tensor)
        names |= {value.name: name for value, name in zip(body.input, operands, strict=True)}
        return [renamed(node, names) for node in body.node], [names.get(v.name, v.name) for v in body.output]


def turns_of_loop(node: onnx.NodeProto, version: int, bodies: Bodies) -> list[onnx.NodeProto]:
    """Return the nodes of all turns of a loop; ``version``: the operator set of the nodes.

    The body maps (turn, condition, states…) to (condition, states…, rows…). The loop gives the last states, and the
    rows of all turns along a first axis.
    """
    most, condition = (bodies.values[name] if name else None for name in [*node.input, "", ""][:2])
    body = node.attribute[0].g
    if not isinstance(most, np.ndarray) or not isinstance(condition, np.ndarray | None) or not _goes_on(body):
        raise Unsupported("its number of turns is computed from the model's inputs; export a model without such loops")
    turns = int(most.reshape(-1)[0]) if condition is None or condition.all() else 0
    _check(turns, body)
    states = list(node.input[2:])
    rows: list[list[str]] = [[] for _ in node.output[len(states) :]]
    nodes: list[onnx.NodeProto] = []
    for turn in range(turns):
        operands = [bodies.constant(np.array(turn, "int64")), bodies.constant(np.array(True)), *states]
        made, (_, *results) = bodies.copy_of(body, operands)
        nodes += made
        states = results[: len(states)]
        for column, name in zip(rows, results[len(states) :], strict=False):
            column.append(name)
    return [*nodes, *_gathered(node, version, states, rows, bodies)]


def turns_of_scan(node: onnx.NodeProto, version: int, turns: int, bodies: Bodies) -> list[onnx.NodeProto]:
    """Return the nodes of all turns of a scan, each of which reads one position of the scanned operands."""
    attributes = {attribute.name: attribute for attribute in node.attribute}
    body, count = attributes["body"].g, attributes["num_scan_inputs"].i
    refuse(
        any(any(attribute.ints) for attribute in attributes.values()),
        "it scans from the end, or along another axis than the first",
    )
    refuse(len(body.input) != len(node.input), "it is older than operator set 9")
    _check(turns, body)
    states, scanned = list(node.input[:-count]), node.input[-count:]
    rows: list[list[str]] = [[] for _ in node.output[len(states) :]]
    nodes: list[onnx.NodeProto] = []
    for turn in range(turns):
        place = bodies.constant(np.array(turn, "int64"))
        read = [f"{name}[{place}]" for name in scanned]
        nodes += [onnx.helper.make_node("Gather", [x, place], [y]) for x, y in zip(scanned, read, strict=True)]
        made, results = bodies.copy_of(body, [*states, *read])
        nodes += made
        states = results[: len(states)]
        for column, name in zip(rows, results[len(states) :], strict=False):
            column.append(name)
    return [*nodes, *_gathered(node, version, states, rows, bodies)]


def _gathered(
    node: onnx.NodeProto, version: int, states: Sequence[str], rows: Sequence[Sequence[str]], bodies: Bodies
) -> list[onnx.NodeProto]:
    """Return nodes that give the results of a loop: the last states, and the rows of all turns."""
    pairs = zip(states, node.output, strict=False)
    nodes = [onnx.helper.make_node("Identity", [source], [name]) for source, name in pairs if name]
    axes = {"axes": [0]} if version < 13 else {}
    operands = [] if axes else [bodies.constant(np.array([0], "int64"))]
    for name, column in zip(node.output[len(states) :], rows, strict=True):
        refuse(name and not column, "it has no turn; empty tensors are not supported")
        if name:
            parts = [f"{name}[{turn}]" for turn in range(len(column))]
            for x, y in zip(column, parts, strict=True):
                nodes.append(onnx.helper.make_node("Unsqueeze", [x, *operands], [y], **axes))
            nodes.append(onnx.helper.make_node("Concat", parts, [name], axis=0))
    return nodes


def _check(turns: int, body: onnx.GraphProto) -> None:
    if turns * len(body.node) > MOST_NODES:
        raise Unsupported(
            f"its {turns} turns of {len(body.node)} nodes are more than the {MOST_NODES} nodes that a loop may become; "
            "make the sequence shorter"
        )


def _goes_on(body: onnx.GraphProto) -> bool:
    """Check whether the condition that a body gives is the one that it gets, or constantly true."""
    makers = {node.output[0]: node for node in body.node if node.op_type in ("Identity", "Cast", "Constant")}
    name = body.output[0].name
    while name in makers and makers[name].op_type != "Constant":
        name = makers[name].input[0]
    constants = {tensor.name: tensor for tensor in body.initializer}
    if name in makers:
        constants[name] = makers[name].attribute[0].t
    return name == body.input[1].name or (name in constants and bool(numpy_helper.to_array(constants[name]).all()))
