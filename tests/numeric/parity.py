"""Trains the same network with a compiled program and with PyTorch, and compares what both changed."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

import pock_tvm as pock

TARGET = os.environ.get("POCK_TEST_TARGET", "host")
"""What programs are compiled for, and run on."""
RTOL = 1e-4
SINGLE = 4.0  # how much farther than PyTorch in single precision we may be from double precision
WEIGHT_SPACING = 2.0**-22  # of float32, relative: twice the rounding of one update of a weight

Batch = tuple[Sequence[np.ndarray], np.ndarray | None]
TORCH_OPTIMIZERS: dict[str, tuple[Any, Callable[..., torch.optim.Optimizer]]] = {
    "sgd": (pock.SGD(momentum=0.9), lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9)),
    "adamw": (pock.AdamW(eps=1e-6), lambda p, lr: torch.optim.AdamW(p, lr=lr, eps=1e-6)),
}


def torch_loss(loss: pock.Loss, outputs: Any, target: torch.Tensor | None) -> torch.Tensor:
    """The loss as PyTorch computes it."""
    output = torch.utils._pytree.tree_leaves(outputs)[loss.output]
    functional = torch.nn.functional
    options = {"ignore_index": loss.ignore_index, "label_smoothing": loss.label_smoothing}
    if loss.kind == "cross_entropy":
        return functional.cross_entropy(output, target, **options)
    if loss.kind == "causal_lm":
        return functional.cross_entropy(output[:, :-1].flatten(0, 1), target[:, 1:].flatten(), **options)
    if loss.kind == "mse":
        return functional.mse_loss(output, target.to(output.dtype))
    if loss.kind == "bce_with_logits":
        return functional.binary_cross_entropy_with_logits(output, target.to(output.dtype))
    return output


def train_torch(
    exported: torch.export.ExportedProgram,
    program: pock.Program,
    make_optimizer: Callable[..., torch.optim.Optimizer],
    batches: Sequence[Batch],
    lr: float,
    dtype: torch.dtype = torch.float64,
) -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses and weights of PyTorch in ``dtype``, training just what the program trains.

    Leaves out a parameter whose gradient is zero in exact arithmetic (the bias of attention's keys): its update is
    rounding noise, which Adam would blow up to full size.

    A gradient outside the trained channels of a weight counts as zero, and so do its decay and its moments.
    """
    module = copy.deepcopy(exported.module(check_guards=False))
    for part in module.modules():
        if isinstance(part, torch.fx.GraphModule):
            _compute_in(part, dtype)
    module = module._apply(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)
    aliases = program.manifest["aliases"]
    for alias, owner in aliases.items():  # the change of type has untied what is tied
        path, _, leaf = alias.rpartition(".")
        setattr(module.get_submodule(path), leaf, module.get_parameter(owner))
    module.load_state_dict({name: torch.from_numpy(array) for name, array in program.weights.items()}, strict=False)
    start = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    masks: dict[str, torch.Tensor] = {}
    for name, parameter in module.named_parameters():
        what = program.trained.get(aliases.get(name, name))
        parameter.requires_grad_(what is not None)
        if isinstance(what, dict):
            masks[name] = torch.zeros_like(parameter)
            masks[name].movedim(what["axis"], 0)[what["indices"]] = 1
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    optimizer = make_optimizer(list(trained.values()), lr)
    loss = pock.Loss(**program.manifest["loss"])
    losses, noise = [], set()
    for inputs, target in batches:
        optimizer.zero_grad()
        tensors = [torch.from_numpy(array) for array in inputs]
        tensors = [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors]
        args, kwargs = torch.utils._pytree.tree_unflatten(tensors, exported.call_spec.in_spec)
        torch.set_default_dtype(dtype)  # of what the model itself makes
        try:
            outputs = module(*args, **kwargs)
        finally:
            torch.set_default_dtype(torch.float32)
        value = torch_loss(loss, outputs, None if target is None else torch.from_numpy(target))
        value.backward()
        norms = {
            name: float(parameter.grad.norm()) for name, parameter in trained.items() if parameter.grad is not None
        }
        noise |= {name for name, norm in norms.items() if norm < 1e-10 * max(norms.values())}
        optimizer.step()
        with torch.no_grad():
            for name, mask in masks.items():
                trained[name].copy_(torch.where(mask > 0, trained[name], start[name]))
        losses.append(float(value))
    return losses, {name: p.detach().numpy() for name, p in module.named_parameters() if name not in noise}


def _compute_in(part: torch.fx.GraphModule, dtype: torch.dtype) -> None:
    """Make a graph give in ``dtype`` what it gave in single precision, its constants and conversions too."""

    def changed(value: Any) -> Any:
        return dtype if value is torch.float32 else value

    for node in list(part.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:  # insists on the types of the export
            part.graph.erase_node(node)
            continue
        if node.target is torch.ops.aten.batch_norm.default:
            node.target = _batch_norm
        node.args = tuple(changed(arg) for arg in node.args)
        node.kwargs = {name: changed(arg) for name, arg in node.kwargs.items()}
    for name, value in list(vars(part).items()):
        if isinstance(value, torch.Tensor) and value.dtype is torch.float32:
            setattr(part, name, value.to(dtype))
    part.recompile()


def _batch_norm(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, mean: torch.Tensor, var: torch.Tensor,
    training: bool, momentum: float, eps: float, cudnn: bool,
) -> torch.Tensor:  # fmt: skip
    """A batch norm, by parts where it is evaluated: there PyTorch's gradient on CPUs (2.13) is wrong where what comes
    back is a transposed view."""
    if training:
        return torch.batch_norm(x, weight, bias, mean, var, training, momentum, eps, cudnn)
    shape = [-1, *[1] * (x.dim() - 2)]
    y = (x - mean.view(shape)) * (var + eps).rsqrt().view(shape)
    y = y if weight is None else y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)


def worst_difference(
    program: pock.Program, ours: Mapping[str, np.ndarray], weights: dict[str, np.ndarray]
) -> tuple[float, str]:
    """The largest of :func:`differences`, and its parameter."""
    return max(((value, name) for name, value in differences(program, ours, weights).items()), default=(0.0, ""))


def differences(
    program: pock.Program, ours: Mapping[str, np.ndarray], weights: dict[str, np.ndarray]
) -> dict[str, float]:
    """The relative difference of each update, beyond what rounding the weights costs, by its parameter.

    Asserts that nothing else has changed.
    """
    found: dict[str, float] = {}
    aliases = program.manifest["aliases"]
    for name, expected in weights.items():
        owner = aliases.get(name, name)
        start = program.weights[owner].astype(np.float64)
        update, wanted = ours[name] - start, expected - start
        what = program.trained.get(owner)
        if what is None:
            assert not update.any(), f"{name} is frozen, and has changed"
            continue
        if isinstance(what, dict):
            frozen = np.ones(start.shape, bool)
            np.moveaxis(frozen, what["axis"], 0)[what["indices"]] = False
            assert not update[frozen].any(), f"frozen channels of {name} have changed"
        rounding = WEIGHT_SPACING * np.linalg.norm(start)
        found[name] = max(0.0, np.linalg.norm(update - wanted) - rounding) / max(np.linalg.norm(wanted), 1e-30)
    return found


def assert_parity(
    exported: torch.export.ExportedProgram,
    make_batches: Callable[[np.random.Generator], Sequence[Batch]],
    *,
    scheme: pock.Scheme,
    optimizer: str = "sgd",
    lr: float = 1e-3,
    loss: str | pock.Loss = "cross_entropy",
    seeds: Sequence[int] = (0, 1, 2),
    rtol: float = RTOL,
    **options: Any,
) -> pock.Program:
    """Losses and every update of a few steps equal PyTorch's; see :func:`assert_steps`."""
    ours, make_optimizer = TORCH_OPTIMIZERS[optimizer]
    program = pock.compile(exported, scheme=scheme, optimizer=ours, loss=loss, **({"target": TARGET} | options))
    assert_steps(program, exported, make_batches, make_optimizer, lr, seeds, rtol)
    return program


def assert_steps(
    program: pock.Program,
    exported: torch.export.ExportedProgram,
    make_batches: Callable[[np.random.Generator], Sequence[Batch]],
    make_optimizer: Callable[..., torch.optim.Optimizer],
    lr: float,
    seeds: Sequence[int] = (0, 1, 2),
    rtol: float = RTOL,
) -> None:
    """Losses and every update of a few steps of a program equal PyTorch's.

    The reference is PyTorch in double precision. Where rounding puts a value on the other side of a ReLU's kink, single
    precision legitimately parts from it: another batch is then tried. A wrong gradient is wrong on all of them. Where
    single precision parts from double on every batch, PyTorch's own does too, at the same parameters: we must not be
    much farther off there.
    """
    said = "training diverges in PyTorch on every batch"
    for seed in seeds:
        batches = make_batches(np.random.default_rng(seed))
        trainer = pock.Trainer(program)
        expected, weights = train_torch(exported, program, make_optimizer, batches, lr)
        try:
            losses = [trainer.step(inputs, target, lr=lr) for inputs, target in batches]
        except pock.NonFiniteError:  # it diverges, and a guarded step stops there: so must PyTorch in single precision
            if np.isfinite(train_torch(exported, program, make_optimizer, batches, lr, torch.float32)[0]).all():
                raise
            continue
        found = differences(program, trainer.weights(), weights)
        name = max(found, key=found.__getitem__)
        if found[name] <= rtol and np.allclose(losses, expected, rtol=rtol):
            return
        single_losses, single = train_torch(exported, program, make_optimizer, batches, lr, torch.float32)
        theirs = differences(program, single, weights)
        drift = np.abs(np.subtract(single_losses, expected)) + rtol * np.abs(expected)
        is_near = all(value <= max(rtol, SINGLE * theirs[each]) for each, value in found.items())
        if is_near and np.all(np.abs(np.subtract(losses, expected)) <= 2 * drift):
            return
        said = f"the update of {name} differs by {found[name]:.1e}; losses {losses}, PyTorch's {expected}"
    raise AssertionError(said)
