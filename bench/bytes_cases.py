"""The kernels that `bytes.py` measures: operators of training whose time goes into moving bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm import relax
from tvm.relax import op as R

from relay_passes.gradients.registry import Use, rule_for
from relay_passes.operators.training import cross_entropy, cross_entropy_gradient, normalize
from schedules.kernels import update

if TYPE_CHECKING:
    import torch

Builder = relax.BlockBuilder
Shape = tuple[int, ...]
EPSILON = 1e-5


@dataclass(frozen=True)
class Operand:
    """An operand of a case. ``below``: integers below that, else normal floats."""

    shape: Shape
    below: int = 0


@dataclass(frozen=True)
class Case:
    """A computation as it stands in a training step's graph, and the same in PyTorch."""

    group: str
    name: str
    operands: tuple[Operand, ...]
    build: Callable[..., relax.Expr]
    """Builds the graph: takes the builder and the operands."""
    torch: Callable[..., Any] | None = None
    """Computes it in PyTorch, on the operands; None where PyTorch has no such call."""
    moved: int | None = None
    """Bytes to be moved, where they are not those of the operands and results: a look-up reads some rows."""
    in_place: bool = False
    """Whether it writes operands instead of results."""
    quick: bool = False
    """Whether it belongs to the subset that takes less than a minute."""


def _gradient(forward: Callable[..., relax.Expr], *, keeps_result: bool = False) -> Callable[..., relax.Expr]:
    """Make the builder of a data gradient: of x (or, with ``keeps_result``, of the result that a step has kept) and
    dy."""

    def build(builder: Builder, kept: relax.Var, grad: relax.Var, *others: relax.Var) -> relax.Expr:
        call = builder.normalize(forward(builder, kept, *others))
        rule = rule_for(call.op.name, 0)
        assert rule is not None
        return rule(Use(call, kept if keeps_result else builder.emit(call), grad))

    return build


def _unary(function: Callable[[relax.Expr], relax.Expr]) -> Callable[..., relax.Expr]:
    return lambda _builder, x: function(x)


def _aten() -> Any:
    import torch

    return torch.ops.aten


# ---- softmax, cross-entropy ------------------------------------------------------------------------------------------


def _softmax(shape: Shape, name: str, *, quick: bool = False) -> list[Case]:
    softmax = _unary(lambda x: R.nn.softmax(x, -1))
    return [
        Case("softmax", name, (Operand(shape),), softmax, lambda x: x.softmax(-1), quick=quick),
        Case(
            "softmax gradient",
            name,
            (Operand(shape), Operand(shape)),
            _gradient(softmax, keeps_result=True),
            lambda y, dy: _aten()._softmax_backward_data(dy, y, -1, y.dtype),
            quick=quick,
        ),
    ]


def _cross_entropy(rows: int, classes: int, *, quick: bool = False) -> list[Case]:
    options = {"ignore_index": -100, "label_smoothing": 0.0}
    logits, labels, grad = Operand((rows, classes)), Operand((rows,), classes), Operand((rows,))

    def forward(x: torch.Tensor, labels: torch.Tensor) -> Any:
        import torch

        return torch.nn.functional.cross_entropy(x, labels, reduction="none")

    def backward(x: torch.Tensor, labels: torch.Tensor, dy: torch.Tensor) -> Any:
        """From logits, as ours: PyTorch's step keeps the logarithms instead, and does not count them here."""
        aten = _aten()
        logs = x.log_softmax(-1)
        picked = aten.nll_loss_backward(dy, logs, labels, None, 0, -100, x.new_zeros(()))
        return aten._log_softmax_backward_data(picked, logs, -1, x.dtype)

    name = f"{rows} x {classes}"
    return [
        Case(
            "cross-entropy",
            name,
            (logits, labels),
            lambda _builder, x, y: cross_entropy(x, y, **options),
            forward,
            quick=quick,
        ),
        Case(
            "cross-entropy gradient",
            name,
            (logits, labels, grad),
            lambda _builder, x, y, dy: cross_entropy_gradient(x, y, dy, **options),
            backward,
            quick=quick,
        ),
    ]


# ---- sums, norms -----------------------------------------------------------------------------------------------------


def _channel_sum(shape: Shape, name: str, *, quick: bool = False) -> Case:
    axes = list(range(len(shape) - 1))
    return Case(
        "channel sum",
        name,
        (Operand(shape),),
        _unary(lambda x: R.sum(x, axis=axes)),
        lambda x: x.sum(axes),
        quick=quick,
    )


def _norm(shape: Shape, name: str, *, center: bool, axes: Sequence[int] = (-1,), quick: bool = False) -> list[Case]:
    kind = "layer norm" if center else "RMS norm"
    where = [axis % len(shape) for axis in axes]
    length = [shape[-1]]

    def forward(_builder: Builder, x: relax.Var) -> relax.Expr:
        return normalize(x, axes=where, epsilon=EPSILON, center=center)

    def in_torch(x: torch.Tensor) -> Any:
        import torch

        of = torch.nn.functional
        return of.layer_norm(x, length, eps=EPSILON) if center else of.rms_norm(x, length, eps=EPSILON)

    def backward(x: torch.Tensor, dy: torch.Tensor) -> Any:
        mean, deviation = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        return _aten().native_layer_norm_backward(dy, x, length, mean, deviation, None, None, [True, False, False])

    return [
        Case(kind, name, (Operand(shape),), forward, in_torch, quick=quick),
        Case(
            f"{kind} gradient",
            name,
            (Operand(shape), Operand(shape)),
            _gradient(forward),
            backward if center else None,
            quick=quick,
        ),
    ]


# ---- movement --------------------------------------------------------------------------------------------------------


def _transpose(shape: Shape, axes: Sequence[int], name: str, *, quick: bool = False) -> Case:
    return Case(
        "transpose",
        name,
        (Operand(shape),),
        _unary(lambda x: R.permute_dims(x, list(axes))),
        lambda x: x.permute(*axes).contiguous(),
        quick=quick,
    )


def _embedding(rows: int, columns: int, positions: int) -> list[Case]:
    table, indices, grad = Operand((rows, columns)), Operand((positions,), rows), Operand((positions, columns))
    moved = 4 * positions * columns

    def build(builder: Builder, x: relax.Var, index: relax.Var, dy: relax.Var) -> relax.Expr:
        call = builder.normalize(R.take(x, index, axis=0))
        rule = rule_for("relax.take", 0)
        assert rule is not None
        return rule(Use(call, builder.emit(call), dy))

    return [
        Case(
            "embedding",
            f"{positions} of {rows} x {columns}",
            (table, indices),
            lambda _builder, x, index: R.take(x, index, axis=0),
            lambda x, index: x[index],
            moved=2 * moved,
        ),
        Case(
            "embedding gradient",
            f"{positions} of {rows} x {columns}",
            (table, indices, grad),
            build,
            lambda x, index, dy: _aten().embedding_dense_backward(dy, index, x.shape[0], -1, False),
            moved=moved + 4 * rows * columns,
        ),
    ]


# ---- pooling ---------------------------------------------------------------------------------------------------------


def _pooling(shape: Shape, window: int, stride: int, padding: int, *, quick: bool = False) -> list[Case]:
    options = {"pool_size": [window] * 2, "strides": [stride] * 2, "padding": [padding] * 4, "layout": "NHWC"}
    batch, high, wide, channels = shape
    out = (batch, *((size + 2 * padding - window) // stride + 1 for size in (high, wide)), channels)

    def largest(_builder: Builder, x: relax.Var) -> relax.Expr:
        return R.nn.max_pool2d(x, **options)

    def average(_builder: Builder, x: relax.Var) -> relax.Expr:
        return R.nn.avg_pool2d(x, **options, count_include_pad=True)

    def of(kind: str) -> Callable[[torch.Tensor], Any]:
        import torch

        function = getattr(torch.nn.functional, kind)
        return lambda x: function(x.permute(0, 3, 1, 2), window, stride, padding)  # strides of channels last

    def average_backward(x: torch.Tensor, dy: torch.Tensor) -> Any:
        first = (0, 3, 1, 2)
        sizes = [window] * 2, [stride] * 2, [padding] * 2
        return _aten().avg_pool2d_backward(dy.permute(first), x.permute(first), *sizes, False, True, None)

    name = f"{'x'.join(map(str, shape))}, {window}x{window}/{stride}"
    x, dy = Operand(shape), Operand(out)
    return [
        Case("max-pooling", name, (x,), largest, lambda x: of("max_pool2d")(x), quick=quick),
        Case("max-pooling gradient", name, (x, dy), _gradient(largest), None, quick=quick),
        Case("average-pooling", name, (x,), average, lambda x: of("avg_pool2d")(x), quick=quick),
        Case(
            "average-pooling gradient",
            name,
            (x, dy),
            _gradient(average),
            average_backward,
            moved=4 * (math.prod(shape) + math.prod(out)),
            quick=quick,
        ),
    ]


# ---- element by element ----------------------------------------------------------------------------------------------


def _elementwise(shape: Shape, name: str, *, quick: bool = False) -> list[Case]:
    x, dy, row = Operand(shape), Operand(shape), Operand(shape[-1:])

    def biased(function: Callable[[relax.Expr], relax.Expr]) -> Callable[..., relax.Expr]:
        return lambda builder, x, bias: function(builder.emit(R.add(x, bias)))

    def in_torch(kind: str) -> Callable[..., Any]:
        import torch

        return getattr(torch.nn.functional, kind)

    gelu, silu = _unary(R.nn.gelu), _unary(R.nn.silu)
    return [
        Case("bias, GELU", name, (x, row), biased(R.nn.gelu), lambda x, b: in_torch("gelu")(x + b), quick=quick),
        Case("GELU gradient", name, (x, dy), _gradient(gelu), lambda x, dy: _aten().gelu_backward(dy, x), quick=quick),
        Case("SiLU gradient", name, (x, dy), _gradient(silu), lambda x, dy: _aten().silu_backward(dy, x), quick=quick),
        Case("add", name, (x, dy), lambda _builder, x, y: R.add(x, y), lambda x, y: x + y, quick=quick),
    ]


def _update(kind: str, shape: Shape, name: str, *, quick: bool = False) -> Case:
    layout = update.Layout(shape, "float32")
    states = {"SGD": 1, "AdamW": 2}[kind]
    rates = {"SGD": 1, "AdamW": 3}[kind]

    def build(builder: Builder, weight: relax.Var, grad: relax.Var, *rest: relax.Var) -> relax.Expr:
        options: dict[str, Any] = {"weight_decay": 0.01, "vectors": {"rates": rates}}
        if kind == "SGD":
            kernel = update.sgd(layout, momentum=0.9, dampening=0.0, nesterov=False, **options)
        else:
            kernel = update.adam(layout, beta1=0.9, beta2=0.999, epsilon=1e-8, decoupled=True, **options)
        written = [0, *range(2, 2 + states)]
        types = [weight.ty] * len(written)
        return R.call_tir_inplace(builder.add_func(kernel, kind), relax.Tuple([weight, grad, *rest]), written, types)

    def in_torch(weight: torch.Tensor, grad: torch.Tensor, *rest: torch.Tensor) -> None:
        import torch

        if kind == "SGD":
            options = {"weight_decay": 0.01, "momentum": 0.9, "lr": 1e-3, "dampening": 0.0, "nesterov": False}
            torch._fused_sgd_([weight], [grad], [rest[0]], **options, maximize=False, is_first_step=False)
        else:
            options = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.01, "eps": 1e-8}
            step = torch.ones(())
            torch._fused_adamw_(
                [weight], [grad], [rest[0]], [rest[1].abs_()], [], [step], **options, amsgrad=False, maximize=False
            )

    operands = (*[Operand(shape)] * (2 + states), Operand((rates,)))
    moved = 4 * math.prod(shape) * (3 + 2 * states)
    return Case(f"{kind} update", name, operands, build, in_torch, moved, in_place=True, quick=quick)


CASES = [
    *_softmax((1, 12, 128, 128), "12 heads, 128", quick=True),
    *_softmax((8, 12, 128, 128), "8 x 12 heads, 128"),
    *_softmax((8, 12, 197, 197), "8 x 12 heads, 197", quick=True),
    *_softmax((1, 12, 256, 256), "12 heads, 256"),
    *_softmax((1000, 33), "1000 x 33"),
    *_cross_entropy(256, 32000, quick=True),
    *_cross_entropy(256, 1000, quick=True),
    *_cross_entropy(1024, 33),
    _channel_sum((1024, 768), "1024 x 768", quick=True),
    _channel_sum((128, 3072), "128 x 3072"),
    _channel_sum((256, 32000), "256 x 32000"),
    _channel_sum((8, 112, 112, 32), "8x112x112x32", quick=True),
    _channel_sum((8, 56, 56, 24), "8x56x56x24"),
    _channel_sum((8, 7, 7, 960), "8x7x7x960", quick=True),
    _channel_sum((8, 197, 33), "8 x 197 x 33"),
    *_norm((1024, 768), "1024 x 768", center=True, quick=True),
    *_norm((128, 768), "128 x 768", center=True),
    *_norm((1576, 197), "1576 x 197", center=True),
    *_norm((256, 768), "256 x 768", center=False, quick=True),
    *_norm((2048, 4096), "2048 x 4096", center=False),
    _transpose((8, 128, 12, 64), (0, 2, 1, 3), "heads out, 8x128x12x64", quick=True),
    _transpose((1, 256, 12, 64), (0, 2, 3, 1), "heads' keys, 1x256x12x64"),
    _transpose((8, 12, 197, 64), (0, 2, 1, 3), "heads in, 8x12x197x64"),
    _transpose((8, 197, 12, 64), (0, 2, 3, 1), "heads' keys, 8x197x12x64", quick=True),
    _transpose((8, 3, 224, 224), (0, 2, 3, 1), "to channels last, 8x3x224x224", quick=True),
    _transpose((8, 112, 112, 32), (0, 3, 1, 2), "from channels last, 8x112x112x32"),
    _transpose((8, 7, 7, 1280), (0, 3, 1, 2), "from channels last, 8x7x7x1280", quick=True),
    _transpose((768, 3072), (1, 0), "weight, 768x3072", quick=True),
    _transpose((1000, 2048), (1, 0), "weight, 1000x2048"),
    _transpose((197, 33), (1, 0), "weight, 197x33"),
    *_pooling((8, 112, 112, 64), 3, 2, 1, quick=True),
    *_pooling((8, 32, 32, 33), 2, 2, 0),
    *_embedding(32000, 768, 256),
    *_embedding(30522, 768, 1024),
    *_elementwise((1024, 3072), "1024 x 3072", quick=True),
    *_elementwise((256, 2048), "256 x 2048"),
    *_elementwise((197, 33), "197 x 33"),
    _update("SGD", (768, 3072), "768 x 3072"),
    _update("AdamW", (768, 3072), "768 x 3072", quick=True),
    _update("AdamW", (32000, 768), "32000 x 768"),
]
"""All cases."""
