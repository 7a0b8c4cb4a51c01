"""Reports a program by layer: what is trained, its cost, and the activations it saves."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from tvm import relax

from relay_passes.analysis.macs import macs_of, multiplies_weight
from relay_passes.ir import Expr, bindings_of, bytes_of, is_kept, used_vars
from relay_passes.ir.trained_part import Trained

from ..frontend.structure import Layer, Structure


def layer_report(structure: Structure, trained: Trained, step: relax.Function) -> list[dict[str, Any]]:
    """Return an entry for each embedding, and then for each layer, in execution order.

    ``step`` is the training function with its backward graph. An entry has ``name`` (of the weight, without its last
    component), ``kind``, ``weight`` and ``bias`` (their trained part: ``frozen``, ``full`` or ``k/n``),
    ``forward_flops`` and ``backward_flops`` (data and weight gradient) as far as the step computes them, and
    ``saved_bytes``: the values kept for the backward graph from this layer up to the next.
    """
    layers = sorted(structure.layers, key=lambda layer: layer.position)
    uses, of_parameters = _products(step)
    starts = [uses[layer.weight].forward for layer in layers if layer.weight in uses]
    saved = _saved_by(step, starts, of_parameters)
    names = [layer.weight for layer in layers if layer.weight in uses]
    nothing = {"bias": "-", "forward_flops": 0, "backward_flops": 0, "saved_bytes": 0}
    rows = [
        {"name": _owner(name), "kind": "embedding", "weight": _trained(name, structure, trained)} | nothing
        for name in structure.of_role("embedding")
    ]
    for layer in layers:
        share = layer_share(layer.weight, structure, trained)
        gradients = share + (layer.weight in uses and uses[layer.weight].has_data_gradient)
        macs = uses[layer.weight].macs if layer.weight in uses else layer.macs
        rows.append(
            {
                "name": _owner(layer.weight),
                "kind": layer.kind,
                "weight": _trained(layer.weight, structure, trained),
                "bias": _bias(layer, layers, structure, trained),
                "forward_flops": 2 * macs,
                "backward_flops": int(2 * macs * gradients),
                "saved_bytes": saved[names.index(layer.weight)] if layer.weight in names else 0,
            }
        )
    return rows


def _owner(name: str) -> str:
    """Return the name of the module that owns a parameter."""
    return name.rpartition(".")[0] or name


class _Product:
    """Product with a weight in the training function."""

    def __init__(self, forward: int, macs: int) -> None:
        self.forward = forward
        self.macs = macs
        self.has_data_gradient = False


def _products(step: relax.Function) -> tuple[dict[str, _Product], set[relax.Var]]:
    """Find the product with each weight, and whether its data gradient is computed. Also return all values that depend
    on parameters alone."""
    roots: dict[Expr, frozenset[str]] = {param: frozenset([param.name]) for param in step.params}
    inputs = {param for param in step.params if param.name in _input_names(step)}
    found: dict[str, _Product] = {}
    for position, binding in enumerate(bindings_of(step)):
        value = binding.value
        read = used_vars(value)
        if read and all(var in roots and var not in inputs for var in read):
            roots[binding.var] = frozenset().union(*(roots[var] for var in read))
        weight = value.args[1] if multiplies_weight(value) else None
        for name in roots.get(weight, frozenset()) if isinstance(weight, relax.Var) else ():
            if name in found:
                found[name].has_data_gradient = True
            else:
                found[name] = _Product(position, macs_of(value))
    return found, set(roots) - inputs


def _input_names(step: relax.Function) -> set[str]:
    return {param.name for param in step.params[: int(step.attrs["num_input"])]}


def _saved_by(step: relax.Function, starts: list[int], of_parameters: set[relax.Var]) -> list[int]:
    """Return the saved bytes from the start of each layer to the next. Values before the first layer count to it."""
    order = sorted(range(len(starts)), key=starts.__getitem__)
    ordered = [starts[index] for index in order]
    saved = [0] * len(starts)
    for position, binding in enumerate(bindings_of(step)):
        if (
            starts
            and is_kept(binding.var)
            and isinstance(binding.value, relax.Call)
            and binding.var not in of_parameters
        ):
            saved[order[max(0, bisect_right(ordered, position) - 1)]] += bytes_of(binding.var)
    return saved


def layer_share(name: str, structure: Structure, trained: Trained) -> float:
    """Return the trained fraction of a weight."""
    if name not in trained:
        return 0.0
    piece = trained[name]
    channels = structure.channels.get(name)
    return 1.0 if piece is None or channels is None else len(piece[1]) / (channels.count * channels.per_channel)


def _trained(name: str, structure: Structure, trained: Trained) -> str:
    if name not in trained:
        return "frozen"
    piece = trained[name]
    if piece is None:
        return "full"
    channels = structure.channels[name]
    return f"{len(piece[1]) // channels.per_channel}/{channels.count}"


def _bias(layer: Layer, layers: list[Layer], structure: Structure, trained: Trained) -> str:
    """Return ``full`` if any bias or scale between this layer and the next is trained, ``frozen`` if none is, ``-`` if
    there is none."""
    following = min((other.position for other in layers if other.position > layer.position), default=None)
    between = [
        name
        for name, at in structure.first_use.items()
        if structure.roles.get(name) in ("bias", "scale")
        and layer.position <= at
        and (following is None or at < following)
    ]
    if not between:
        return "-"
    return "full" if any(name in trained for name in between) else "frozen"
