"""Warnings about behaviour of a program that a user may not expect; most models have none.

A backward pass that a program would get wrong is no warning, but an obstacle.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from relay_passes.ir import bindings_of, op_name, used_vars

from ..errors import Obstacle
from . import Model

MAX_NAMES = 3
"""Number of names that a warning lists before it counts the rest."""


def observations(
    model: Model,
    selection: Collection[str],
    gradients: Collection[str],
    batch_norm: str | None,
    frozen: str = "float32",
) -> list[Obstacle]:
    """List the warnings about a model and its scheme, and what stands in the way of its gradients.

    ``selection``: parameters that the scheme trains. ``gradients``: parameters that a gradient reaches.
    ``batch_norm``: the user's choice for running statistics, None without one. ``frozen``: the type of frozen layers.
    """
    return [
        *_unread_inputs(model),
        *_unreached([name for name in selection if name not in gradients]),
        *(_frozen_statistics(model) if batch_norm is None else ()),
        *_mutated(model),
        *_converted(model),
        *_without_backward(model, {*gradients, *(name for name, of in model.aliases.items() if of in gradients)}),
        *_hooked([name for name in model.hooked if model.aliases.get(name, name) in gradients]),
        *_quantized(model, [name for name in selection if name in model.stated.weights], frozen),
    ]


def _unread_inputs(model: Model) -> Iterator[Obstacle]:
    main = model.module["main"]
    read = {var.name for binding in bindings_of(main) for var in used_vars(binding.value)}
    read |= {var.name for var in used_vars(main.body.body)}
    for spec in model.inputs:
        if spec.name in read:
            continue
        reason = f"nothing reads the input '{spec.name}': what it holds changes no result"
        kind = (spec.shape, spec.dtype)
        like = [other.name for other in model.inputs if other.name in read and (other.shape, other.dtype) == kind]
        way_out = (
            "If it should, export the model with an example tensor of its own for each input: of one tensor given "
            f"twice torch.export makes one input, here '{like[0]}'"
            if like
            else ""
        )
        yield Obstacle("", "", spec.name, reason, way_out, blocking=False)


def _unreached(names: Sequence[str]) -> Iterator[Obstacle]:
    if names:
        reason = f"no gradient reaches {_some(names)}, which the scheme trains: the loss does not depend on it"
        way_out = "It stays as it is, as in PyTorch: freeze it in the scheme, or let the loss read another output"
        yield Obstacle("", "", names[0], reason, way_out, blocking=False)


def _frozen_statistics(model: Model) -> Iterator[Obstacle]:
    main = model.module["main"]
    norms = [b.value for b in bindings_of(main) if op_name(b.value) == "relax.nn.batch_norm"]
    params = set(main.params)
    statistics = [norm.args[3].name for norm in norms if norm.args[3] in params]
    if statistics:
        layers = [name.rpartition(".")[0] for name in statistics]
        reason = f"the running statistics of {_some(layers)} stay as they are, which model.train() would change"
        way_out = "Say batch_norm='frozen' if they shall, as fine-tuning wants it, and batch_norm='batch' if not"
        yield Obstacle(layers[0], "batch_norm", statistics[0], reason, way_out, blocking=False)


def _mutated(model: Model) -> Iterator[Obstacle]:
    if model.mutated:
        reason = f"the model writes {_some(model.mutated)} in its forward pass, and the program does not"
        way_out = "Every step reads what was there when the model was exported"
        yield Obstacle("", "", model.mutated[0], reason, way_out, blocking=False)


def _converted(model: Model) -> Iterator[Obstacle]:
    if model.converted:
        types = " and ".join(model.converted)
        reason = f"the model's {types} numbers were converted: the program takes and computes float32"
        has_halves = any(name != "float64" for name in model.converted)
        way_out = "For frozen weights of 16 bits on a GPU take precision=" if has_halves else ""
        yield Obstacle("", "", "", reason, way_out, blocking=False)


def _without_backward(model: Model, gradients: Collection[str]) -> Iterator[Obstacle]:
    detach = "write it with detach(): x.detach() * 2 - x reverses a gradient, x + (f(x) - x).detach() passes one"
    passed = [each for each in model.functions if not each.parameters.isdisjoint(gradients)]
    for each in passed:
        if each.differs:
            reason = (
                f"'{each.name}', a torch.autograd.Function, has a backward pass that is not the derivative of its "
                "forward pass, and torch.export has left it out"
            )
            yield Obstacle(each.layer, each.name, min(each.parameters), reason, detach.capitalize())
    unknown = dict.fromkeys(each.name for each in passed if not each.differs)
    if unknown:
        reason = (
            f"torch.export left out the backward pass of {_some([*unknown])}, a torch.autograd.Function: the "
            "program takes the derivative of its forward pass"
        )
        yield Obstacle("", "", "", reason, f"If its own differs, {detach}", blocking=False)


def _hooked(names: Sequence[str]) -> Iterator[Obstacle]:
    if names:
        reason = f"the gradient of {_some(names)} passes a hook (register_hook), which torch.export has left out"
        way_out = (
            "The program takes the gradient as it is. If the hook changes it, write so in the model: w * m + (w * (1 - "
            "m)).detach() for w multiplies it by m"
        )
        yield Obstacle("", "", names[0], reason, way_out, blocking=False)


def _quantized(model: Model, trained: Sequence[str], frozen: str) -> Iterator[Obstacle]:
    if not model.stated:
        return
    if frozen == "float32":
        reason = "the model is quantised, and the program computes in float with the weights that its integers mean"
        way_out = "Say frozen='int8' to compute frozen layers in eight bits, with the scales that the model states"
        yield Obstacle("", "", "", reason, way_out, blocking=False)
    elif trained:
        reason = f"{_some(trained)} is trained in float, from the weights that the model's integers mean"
        yield Obstacle("", "", trained[0], reason, blocking=False)


def _some(names: Sequence[str]) -> str:
    """List the first names, and count the others."""
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(f"'{name}'" for name in names[:MAX_NAMES]) + more
