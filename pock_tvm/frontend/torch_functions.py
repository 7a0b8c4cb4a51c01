"""Finds functions whose backward passes are not in an exported program, and tries whether they are derivatives.

``torch.export`` keeps the operators of the ``forward`` of a ``torch.autograd.Function`` alone, so a program takes their
derivative. That of a function that saves memory is the same; that of a reversed gradient is another.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from .model import OwnBackward
from .torch_nodes import layer_of, sources_of

APPLY, FORWARD = re.compile(r"(\w+)\.apply\("), re.compile(r'\s*File "(.*)", line (\d+), in forward')
RTOL = 1e-3
"""Largest difference of two derivatives that are the same, relative to the larger numbers."""
Function = type[torch.autograd.Function]


class _Call(NamedTuple):
    """A function's name, the class itself if it still lives, and where in which layer it is called."""

    name: str
    function: Function | None
    place: tuple[str, ...]
    layer: str


def functions_of(exported: ExportedProgram) -> list[OwnBackward]:
    """Name the subclasses of ``torch.autograd.Function`` that a program was traced through, except those whose
    backward passes are tried to be the derivatives of their operators.

    They are told by the traces of these operators: a line that calls ``Name.apply(…)``, and below it a frame of a
    ``forward``. Traces have the frames of ``forward`` alone: of a function that is called in another method, goes by
    another name, or whose call begins on an earlier line, nothing is known.
    """
    calls: dict[_Call, list[Node]] = {}
    for node in exported.graph.nodes:
        for call in _calls_around(node):
            calls.setdefault(call, []).append(node)
    found, known = [], {call.place for call in calls if call.function is not None}
    for call, nodes in calls.items():
        if call.function is None and call.place in known:  # a layer in the same line
            continue
        is_derivative = None if call.function is None else _is_derivative(call.function, nodes)
        if not is_derivative:
            names = _parameters_behind(nodes, exported.graph_signature.inputs_to_parameters)
            found.append(OwnBackward(call.name, call.layer, names, differs=is_derivative is False))
    return found


def _calls_around(node: Node) -> Iterator[_Call]:
    lines = (node.meta.get("stack_trace") or "").splitlines()
    for position, (code, frame) in enumerate(zip(lines, lines[1:], strict=False)):
        names, below = APPLY.findall(code), FORWARD.fullmatch(frame)
        if not names or below is None:
            continue
        function = _function_at(below[1], int(below[2]), names)
        for name in names if function is None else [function.__name__]:
            yield _Call(name, function, tuple(lines[: position + 1]), layer_of(node))


def _function_at(path: str, line: int, names: Sequence[str]) -> Function | None:
    """Find the class whose ``forward`` has a line of a file; of several, which inherit it, the one of these names."""
    waiting, found = [torch.autograd.Function], []
    for each in waiting:
        waiting += each.__subclasses__()
        code = getattr(inspect.unwrap(each.forward), "__code__", None)
        if code is not None and code.co_filename == path and line in {at for *_, at in code.co_lines()}:
            found.append(each)
    named = [each for each in found if each.__name__ in names] or found
    return named[0] if len(named) == 1 else None


def _parameters_behind(nodes: Sequence[Node], parameters: dict[str, str]) -> frozenset[str]:
    """Return the parameters that some nodes depend on, by PyTorch's names."""
    return frozenset(parameters[each.name] for each in sources_of(nodes) if each.name in parameters)


# ---- trying ----------------------------------------------------------------------------------------------------------


def _is_derivative(function: Function, nodes: Sequence[Node]) -> bool | None:
    """Compare a function's gradients of random numbers with those of its operators; None if that says nothing.

    Its arguments are the values that the operators read, in order, as most functions have them. That they are right
    is known by the results. Further arguments, which are in no graph, are taken to be 1: a difference with them is one.
    """
    inside = set(nodes)
    sources = dict.fromkeys(source for node in nodes for source in node.all_input_nodes if source not in inside)
    results = [node for node in nodes if any(user not in inside for user in node.users)]
    ctx = function.setup_context is torch.autograd.Function.setup_context
    further = len(inspect.signature(function.forward).parameters) - ctx - len(sources)
    random = torch.Generator().manual_seed(0)
    try:
        values = [_drawn(source.meta["val"], random) for source in sources]
        with torch.enable_grad():
            own = _with_gradients(lambda *x: function.apply(*x, *[1.0] * further), values)
            traced = _with_gradients(lambda *x: _computed(nodes, dict(zip(sources, x, strict=True)), results), values)
    except Exception:  # a user's code, with arguments that are guessed
        return None
    count = len(results)
    if not _are_close(own[:count], traced[:count]):
        return None
    is_derivative = _are_close(own[count:], traced[count:])
    return None if is_derivative and further else is_derivative


def _drawn(like: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    return torch.randn(like.shape, generator=random, dtype=like.dtype).requires_grad_()


def _computed(nodes: Sequence[Node], values: dict[Any, torch.Tensor], results: Sequence[Node]) -> list[torch.Tensor]:
    for node in nodes:
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), values.__getitem__)
        values[node] = node.target(*args, **kwargs)
    return [values[result] for result in results]


def _with_gradients(function: Any, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return a function's results, and the gradients of their sum with different weights."""
    results = function(*[value.clone() for value in values])
    results = [results] if isinstance(results, torch.Tensor) else list(results)
    total = sum((result * torch.cos(torch.arange(result.numel()).view(result.shape))).sum() for result in results)
    inputs = [value for value in values if value.requires_grad]
    grads = torch.autograd.grad(total, inputs, allow_unused=True) if total.requires_grad else [None] * len(inputs)
    zeros = (torch.zeros_like(value) for value in inputs)
    return [*results, *(zero if grad is None else grad for grad, zero in zip(grads, zeros, strict=True))]


def _are_close(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    return len(some) == len(others) and all(
        a.shape == b.shape and bool(torch.isfinite(a).all()) and torch.allclose(a, b, RTOL, RTOL)
        for a, b in zip(some, others, strict=True)
    )
