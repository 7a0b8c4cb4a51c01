"""Takes PyTorch's random numbers out of an exported program, for numbers that a program draws itself.

Dropout and noise become operators of ours, which draw by a counter (:mod:`pock_tvm.device.random`). They run in
PyTorch, too, where :data:`~pock_tvm.frontend.draws.DRAWS` says for which step: so a reference and a program draw the
same. A batch norm that was exported in training mode becomes one of inference, whose statistics are chosen when it is
compiled.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from ..device import random
from .draws import DRAWS
from .torch_precision import example_inputs


def _drop(
    x: torch.Tensor, shape: Sequence[int], rate: float, scale: float, shift: float, other: float, expected: float,
    stream: int,
) -> torch.Tensor:  # fmt: skip
    if not DRAWS.training:
        return x * expected
    return torch.where(torch.from_numpy(random.kept(DRAWS.words(), stream, shape, rate)), x * scale + shift, other)


def _drop_gradient(context: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    shape, rate, scale, expected, stream = context.saved
    return _drop(grad, shape, rate, scale, 0.0, 0.0, expected, stream), *[None] * 7


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, shape, rate, scale, _, _, expected, stream = inputs
    ctx.saved = shape, rate, scale, expected, stream


if not hasattr(torch.ops.pock_tvm, "drop"):
    _library = torch.library.Library("pock_tvm", "FRAGMENT")
    _library.define(
        "drop(Tensor x, int[] shape, float rate, float scale, float shift, float other, float expected, int stream) "
        "-> Tensor",
        tags=(torch.Tag.nondeterministic_seeded,),
    )
    _library.impl("drop", _drop, "CompositeExplicitAutograd")
    torch.library.register_fake("pock_tvm::drop", lambda x, *_: torch.empty_like(x), lib=_library)
    torch.library.register_autograd("pock_tvm::drop", _drop_gradient, setup_context=_save, lib=_library)
    for _name, _draw in {"uniform": random.uniform, "normal": random.normal}.items():
        _library.define(f"{_name}(int[] shape, int stream) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))
        _library.impl(
            _name,
            lambda shape, stream, draw=_draw: torch.from_numpy(draw(DRAWS.words(), stream, shape)),
            "CompositeExplicitAutograd",
        )
        torch.library.register_fake(f"pock_tvm::{_name}", lambda shape, _stream: torch.empty(shape), lib=_library)


# ---- PyTorch's operators, by ours ------------------------------------------------------------------------------------

ALPHA = 1.7580993408473766
"""The product of SELU's constants: what alpha dropout sets a value to, less its sign."""


def _dropout(
    x: torch.Tensor, p: float, train: bool, *, stream: int, shape: Sequence[int] | None = None
) -> torch.Tensor:
    shape = list(x.shape if shape is None else shape)
    if not train or not p:
        return x
    return x * 0 if p == 1 else torch.ops.pock_tvm.drop(x, shape, p, 1 / (1 - p), 0.0, 0.0, 1.0, stream)


def _alpha_dropout(
    x: torch.Tensor, p: float, train: bool, *, stream: int, shape: Sequence[int] | None = None
) -> torch.Tensor:
    if not train or not p:
        return x
    if p == 1:
        return x * 0
    a = 1 / math.sqrt((ALPHA**2 * p + 1) * (1 - p))
    shape = list(x.shape if shape is None else shape)
    return torch.ops.pock_tvm.drop(x, shape, p, a, ALPHA * a * p, -ALPHA * a * (1 - p), 1.0, stream)


def _by_feature(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def of(x: torch.Tensor, p: float, train: bool, *, stream: int) -> torch.Tensor:
        return function(x, p, train, stream=stream, shape=[*x.shape[:2], *[1] * (x.dim() - 2)])

    return of


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    stream: int,
) -> torch.Tensor:
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return _dropout(torch.softmax(scores, -1), dropout_p, True, stream=stream) @ value


def _bernoulli(x: torch.Tensor, p: float | None = None, *, stream: int, **_: Any) -> torch.Tensor:
    if p is None:
        return (torch.ops.pock_tvm.uniform(list(x.shape), stream) < x).to(x.dtype)
    return torch.ops.pock_tvm.drop(torch.ones_like(x), list(x.shape), 1 - p, 1.0, 0.0, 0.0, p, stream)


def _like(name: str) -> Callable[..., torch.Tensor]:
    def of(x: Any, *_: Any, stream: int, dtype: torch.dtype | None = None, **_options: Any) -> torch.Tensor:
        is_tensor = isinstance(x, torch.Tensor)
        drawn = getattr(torch.ops.pock_tvm, name)(list(x.shape if is_tensor else x), stream)
        return drawn.to(dtype or (x.dtype if is_tensor else torch.float32))

    return of


def _normal(mean: Any, std: Any, size: Sequence[int] = (), *, stream: int, **_: Any) -> torch.Tensor:
    shape = next((list(x.shape) for x in (mean, std) if isinstance(x, torch.Tensor)), list(size))
    return torch.ops.pock_tvm.normal(shape, stream) * std + mean


def _native_batch_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor,
    variance: torch.Tensor,
    training: bool,
    momentum: float,
    eps: float,
    **_: Any,
) -> tuple[torch.Tensor, ...]:
    y = torch.nn.functional.batch_norm(x, mean, variance, weight, bias, False, momentum, eps)
    if not training:
        return y, x.new_zeros(0), x.new_zeros(0)
    axes = [axis for axis in range(x.dim()) if axis != 1]
    batch = x.detach()
    return y, batch.mean(axes), (batch.var(axes, correction=0) + eps).rsqrt()


def _in_place(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def of(x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        return x.copy_(function(x, *args, **options))

    return of


DROPOUTS: dict[str, Callable[..., torch.Tensor]] = {
    "dropout": _dropout,
    "feature_dropout": _by_feature(_dropout),
    "alpha_dropout": _alpha_dropout,
    "feature_alpha_dropout": _by_feature(_alpha_dropout),
}
DROPOUTS |= {f"{name}_": _in_place(function) for name, function in DROPOUTS.items()}
NOISE: dict[str, Callable[..., torch.Tensor]] = {
    "rand": _like("uniform"),
    "rand_like": _like("uniform"),
    "randn": _like("normal"),
    "randn_like": _like("normal"),
    "bernoulli": _bernoulli,
    "bernoulli_": _in_place(_bernoulli),
    "normal": _normal,
}
BATCH_NORM, TRAINING_FLAG = "batch_norm", 5
NATIVE_BATCH_NORMS = ("native_batch_norm", "_native_batch_norm_legit")
ATTENTION, RATE = "scaled_dot_product_attention", 4


def with_own_draws(exported: ExportedProgram, dropout: bool | None) -> ExportedProgram:
    """Replace what draws random numbers, or computes as in training mode, by what a program can do.

    ``dropout``: None leaves it on where it was exported so, True and False say for all.
    """
    if not any(_replacement(node, dropout, 0) for graph in _graphs(exported) for node in graph.nodes):
        return exported
    module, stream = exported.module(check_guards=False), 0
    for part in module.modules():
        if not isinstance(part, torch.fx.GraphModule):
            continue
        for node in part.graph.nodes:
            replacement = _replacement(node, dropout, stream)
            if replacement is not None:
                target, args, kwargs = replacement
                node.target, node.args, node.kwargs = target, args, kwargs
                stream += 1
        part.recompile()
    args, kwargs = pytree.tree_unflatten(example_inputs(exported), exported.call_spec.in_spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(module, args, kwargs, strict=False)


def uses_draws(exported: ExportedProgram) -> bool:
    """Whether a program has operators of ours that draw."""
    names = {"pock_tvm::drop", "pock_tvm::uniform", "pock_tvm::normal"}
    return any(getattr(node.target, "_name", "") in names for graph in _graphs(exported) for node in graph.nodes)


def _graphs(exported: ExportedProgram) -> list[torch.fx.Graph]:
    return [part.graph for part in exported.graph_module.modules() if isinstance(part, torch.fx.GraphModule)]


def _replacement(node: Any, dropout: bool | None, stream: int) -> tuple[Any, tuple[Any, ...], dict[str, Any]] | None:
    """Return the target, arguments and keyword arguments that a node gets; None for one that stays."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target.name().startswith("aten::"):
        return None
    name, args, kwargs = node.target.name().removeprefix("aten::").split(".")[0], node.args, dict(node.kwargs)
    if name == BATCH_NORM and args[3] is not None and args[TRAINING_FLAG]:
        return node.target, (*args[:TRAINING_FLAG], False, *args[TRAINING_FLAG + 1 :]), kwargs
    if name in NATIVE_BATCH_NORMS and len(args) == len(node.target._schema.arguments) and args[3] is not None:
        return _native_batch_norm, args, {}
    if name in DROPOUTS:
        x, rate, train = args
        is_on = bool(train) if dropout is None else dropout
        return (DROPOUTS[name], (x, rate, True), {"stream": stream}) if is_on and rate else None
    if name == ATTENTION and (kwargs.get("dropout_p") or (len(args) > RATE and args[RATE])):
        if dropout is False:
            args = (*args[:RATE], 0.0, *args[RATE + 1 :]) if len(args) > RATE else args
            return node.target, args, {key: value for key, value in kwargs.items() if key != "dropout_p"}
        return _attention, args, {**kwargs, "stream": stream}
    if name in NOISE:
        kwargs.pop("generator", None)
        return NOISE[name], args, {**kwargs, "stream": stream}
    return None
