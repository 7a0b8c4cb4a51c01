"""Prepares an exported graph for translation: inlines regions without gradients, decomposes operators."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from relay_passes.ir import first_line

from ..errors import ModelError, Obstacle
from .torch_complex import in_real_numbers
from .torch_nodes import layer_of, parameter_behind, short_name, where
from .torch_operators import has_converter
from .torch_sampling import sampled_volumes

if not hasattr(torch.ops.pock_tvm, "stop_gradient"):
    _library = torch.library.Library("pock_tvm", "DEF")
    _library.define("stop_gradient(Tensor x) -> Tensor")
    _library.impl("stop_gradient", lambda x: x.clone(), "CompositeExplicitAutograd")
STOP_GRADIENT = torch.ops.pock_tvm.stop_gradient.default
"""Identity without a gradient; unlike ``detach`` it survives PyTorch's decompositions."""

DETACHING = ("detach.default", "detach_.default")


def prepared(exported: ExportedProgram) -> ExportedProgram:
    """Decompose operators without a converter, as far as PyTorch has decompositions.

    Regions under ``torch.no_grad`` are inlined; their results get no gradient, like detached values.

    Raises
    ------
    ModelError
        The model was exported in training mode, or has control flow or regions of another precision.
    """
    obstacles = list(_obstacles(exported))
    if obstacles:
        raise ModelError(summary(obstacles), obstacles)
    exported = _with_graph(exported, _without_regions(exported))
    try:
        exported = exported.run_decompositions(dict(_decompositions()))
    except Exception as error:  # PyTorch traces the graph again, and may raise anything
        raise ModelError(f"PyTorch cannot take the exported program apart: {first_line(error)}") from error
    real = in_real_numbers(exported)
    return exported if real is None else _with_graph(exported, real).run_decompositions(dict(_decompositions()))


def summary(obstacles: Sequence[Obstacle]) -> str:
    """Describe the first obstacle and its parameter, and count the others."""
    first, *more = obstacles
    behind = f" (parameter '{first.parameter}' lies behind it)" if first.parameter else ""
    others = f" ({len(more)} further obstacles: `pock check` lists all)" if more else ""
    return f"{first.reason}{behind}{others}"


# ---- regions ---------------------------------------------------------------------------------------------------------


def _without_regions(exported: ExportedProgram) -> torch.fx.GraphModule:
    """Inline regions of another gradient mode, and of ``torch.autocast`` that is off.

    ``STOP_GRADIENT`` is put on results of regions without gradients, and for ``detach``.
    """
    module = exported.graph_module
    module = copy.deepcopy(module) if has_regions(module) else module
    signature = exported.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    graph = module.graph
    outside: set[Any] = set()  # nodes that record no gradient
    while True:
        region = next((node for node in graph.nodes if _is_region(node)), None)
        if region is None:
            break
        _write_out(module, region, outside, names)
    for node in list(graph.nodes):
        if node.op == "call_function" and getattr(node.target, "__name__", "") in DETACHING:
            _refuse_lost_writes(node, names)
            node.target = STOP_GRADIENT
        elif node in outside and isinstance(node.meta.get("val"), torch.Tensor):
            users = [user for user in node.users if user not in outside]
            if users:
                with graph.inserting_after(node):
                    stop = graph.call_function(STOP_GRADIENT, (node,))
                stop.meta = dict(node.meta)
                for user in users:
                    user.replace_input_with(node, stop)
    graph.lint()
    module.recompile()
    return module


def has_regions(module: torch.fx.GraphModule) -> bool:
    """Check for regions of another gradient mode, and for values that are detached."""
    return any(_is_region(node) or getattr(node.target, "__name__", "") in DETACHING for node in module.graph.nodes)


def _is_region(node: Any) -> bool:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.HigherOrderOperator):
        return False
    name = node.target.name()
    if name == "wrap_with_set_grad_enabled" or (name == "wrap_with_autocast" and not _lowers_precision(node)):
        return True
    what = {"wrap_with_autocast": "torch.autocast"}.get(name, f"control flow ('{name}')")
    raise ModelError(
        f"{where(node)} is {what}, and a training program is a straight line of operators in float32. Write this part "
        "of the model without it, or leave it out of the exported program"
    )


def _lowers_precision(region: Any) -> bool:
    """Check whether a region of ``torch.autocast`` changes anything on a CPU, where the model was exported."""
    device, _, is_enabled, *_ = region.args
    return device == "cpu" and is_enabled


def _write_out(module: torch.fx.GraphModule, region: Any, outside: set[Any], names: Mapping[str, str]) -> None:
    """Replace a region by its inlined graph; add its nodes to ``outside`` if it has no gradients. ``names`` of
    parameters by those of their nodes."""
    is_autocast = region.target.name() == "wrap_with_autocast"
    with_gradients, body, *inputs = (region not in outside, *region.args[4:]) if is_autocast else region.args
    inner = getattr(module, body.target)
    values: dict[Any, Any] = {}
    given = iter(inputs)
    with module.graph.inserting_before(region):
        for node in inner.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(given)
            elif node.op == "get_attr":
                name = f"{body.target}_{node.target}"
                setattr(module, name, getattr(inner, node.target))
                values[node] = module.graph.get_attr(name)
            elif node.op == "output":
                results = torch.fx.node.map_arg(node.args[0], values.__getitem__)
            else:
                values[node] = copied = module.graph.node_copy(node, values.__getitem__)
                if not with_gradients:
                    outside.add(copied)
                    _refuse_changing(copied, outside, names)
    for user in list(region.users):
        if user.target is not operator.getitem:
            raise ModelError(f"{where(region)} gives a value that cannot be followed: leave torch.no_grad() out")
        user.replace_all_uses_with(results[user.args[1]])
        module.graph.erase_node(user)
    module.graph.erase_node(region)
    if not body.users:
        module.graph.erase_node(body)


def _refuse_changing(node: Any, outside: Collection[Any], names: Mapping[str, str]) -> None:
    """Refuse an in-place operator without gradients on a tensor with one: PyTorch's gradient passes as if it were not
    there, and a parameter stays changed."""
    for given in _aliased(node, written=True):
        if _has_gradient(given, outside):
            raise ModelError(
                f"{where(node)} changes '{names.get(given.name, given.name)}' in place under torch.no_grad(), and "
                "gradients pass it: write the model without it"
            )


def _refuse_lost_writes(detached: Any, names: Mapping[str, str]) -> None:
    """Refuse in-place operators on a detached value, where the value itself is state or is read later: a program's
    detached value is a copy."""
    base = detached.args[0]
    while sources := _aliased(base):
        base = sources[0]
    below = _views(detached)
    writes = [node for node in below if _aliased(node, written=True)]
    if not writes:
        return
    readers = {user for view in _views(base) - below for user in view.users} - below
    first = min(writes)
    if base.name in names or any(first < reader for reader in readers):
        raise ModelError(
            f"{where(first)} changes '{names.get(base.name, base.name)}' in place through detach(), which a program "
            "does not: write the model without it"
        )


def _aliased(node: Any, *, written: bool = False) -> list[Any]:
    """List the operands that a node's result is a view of, or those that it writes in place."""
    if node.target is operator.getitem:
        return [] if written else [node.args[0]]
    if not isinstance(node.target, torch._ops.OpOverload):
        return []
    return [
        given
        for argument, given in zip(node.target._schema.arguments, node.args, strict=False)
        if isinstance(given, torch.fx.Node) and argument.alias_info is not None
        if argument.alias_info.is_write or not written
    ]


def _views(node: Any) -> set[Any]:
    """Return a node and the views of it, in-place results among them."""
    waiting, found = [node], {node}
    for each in waiting:
        new = [user for user in each.users if each in _aliased(user) and user not in found]
        found.update(new)
        waiting += new
    return found


def _has_gradient(node: Any, outside: Collection[Any]) -> bool:
    """Return whether a gradient leads from a value to a parameter."""
    waiting = [node]
    for each in waiting:
        if each in outside or getattr(each.target, "__name__", "") in DETACHING:
            continue
        if each.op == "placeholder" and getattr(each.meta.get("val"), "requires_grad", False):
            return True
        waiting += [source for source in each.all_input_nodes if source not in waiting]
    return False


# ---- operators -------------------------------------------------------------------------------------------------------


COMPLEX = (torch.ops.aten.complex.default, torch.ops.aten.polar.default)
"""Operators that are not decomposed: into writes to views of a complex tensor, which PyTorch cannot functionalise."""
DROPOUTS = frozenset({"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"})


def _obstacles(exported: ExportedProgram) -> Iterator[Obstacle]:
    """Find obstacles before decomposition, while operators still have the names of the user's code."""
    for node in exported.graph.nodes:
        reason = _training_mode(node) or _sparse(node)
        if reason:
            behind = parameter_behind(node, exported.graph_signature.inputs_to_parameters)
            yield Obstacle(layer_of(node), short_name(node), behind, reason)


def _training_mode(node: Any) -> str | None:
    """Refuse dropout and updates of running statistics, which a model exported in training mode has."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    name = node.target.name().removeprefix("aten::").rstrip("_")
    drops = name in DROPOUTS and node.args[2] and node.args[1] > 0
    if not drops and not (name == "batch_norm" and node.args[3] is not None and node.args[5]):
        return None
    return (
        f"{where(node)} is training: the model was exported in training mode. Call model.eval() before "
        "torch.export.export; for batch norm with the statistics of each batch, compile with batch_norm='batch'"
    )


def _sparse(node: Any) -> str | None:
    """Refuse sparse tensors."""
    for value in pytree.tree_leaves(node.meta.get("val")):
        if isinstance(value, torch.Tensor) and value.layout is not torch.strided:
            return f"{where(node)} gives a sparse tensor, and programs have dense ones: use to_dense() first"
    return None


def refuse_randomness(node: Any) -> None:
    """Refuse an operator that draws random numbers: folding it would reuse one sample in every step."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    if torch.Tag.nondeterministic_seeded not in node.target.tags or has_converter(node.target):
        return
    raise ModelError(
        f"{where(node)} draws random numbers, which a training program cannot: call model.eval() before "
        "torch.export.export, or draw them outside and make them an input of the model"
    )


@functools.cache
def _decompositions() -> dict[Any, Any]:
    """Build the decomposition table: PyTorch's default and further rules, for operators without a converter."""
    from torch._decomp import decomposition_table

    table: dict[Any, Any] = torch.export.default_decompositions()
    for op in list(table):
        if has_converter(op) and not _has_words(op):
            del table[op]
    for op, rule in decomposition_table.items():
        if isinstance(op, torch._ops.OpOverload) and op not in table and not (op in COMPLEX or has_converter(op)):
            table[op] = rule
    table[torch.ops.aten.as_strided.default] = _as_strided
    table[torch.ops.aten.sgn.default] = _sign
    table[torch.ops.aten.grid_sampler_3d.default] = sampled_volumes
    return table


def _sign(x: torch.Tensor) -> torch.Tensor:
    """``x / |x|``, and 0 at 0, where its gradient is 0, too; PyTorch's own decomposition has none there."""
    if not x.is_complex():
        return torch.sign(x)
    size = x.abs()
    return torch.where(size == 0, 0, x / torch.where(size == 0, 1, size))


def _as_strided(x: torch.Tensor, size: list[int], stride: list[int], storage_offset: int | None = None) -> Any:
    """Read elements by their places in memory, where ``x`` fills this without gaps, as every tensor of a program does.

    Of another ``x`` the operator stays, and is refused.
    """
    first = x.storage_offset() if storage_offset is None else storage_offset
    places = torch.full([1] * len(size), first)
    for axis, (extent, step) in enumerate(zip(size, stride, strict=True)):
        places = places + (torch.arange(extent) * step).reshape([-1, *[1] * (len(size) - 1 - axis)])
    last = first + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
    is_whole = x.is_contiguous() and x.storage_offset() == 0
    return torch.take(x, places) if is_whole and last < x.numel() else NotImplemented


def _has_words(op: Any) -> bool:
    """Check whether an overload takes padding by name ("same"), which its decomposition replaces by numbers."""
    return op.name().endswith(".padding")


def _with_graph(exported: ExportedProgram, module: torch.fx.GraphModule) -> ExportedProgram:
    """Replace the graph of a program, whose results may have other names."""
    if module is exported.graph_module:
        return exported
    signature = copy.deepcopy(exported.graph_signature)
    for old, new in zip(*(graph.output_node().args[0] for graph in (exported.graph, module.graph)), strict=True):
        if isinstance(old, torch.fx.Node):
            signature.replace_all_uses(old.name, new.name)
    return ExportedProgram(
        root=module,
        graph=module.graph,
        graph_signature=signature,
        state_dict=exported.state_dict,
        range_constraints=exported.range_constraints,
        module_call_graph=exported.module_call_graph,
        constants=exported.constants,
        verifiers=[exported.verifier],  # an exported graph may still have in-place operators
    )
