"""Operators at values that hurt (zeros, ties, overflows, infinities, NaN), forward and backward, against eager PyTorch.

All rows of a kind are one function, compiled as a program is: masks packed, kernels chosen, fused and scheduled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from torch import nn
from tvm import relax
from tvm.relax import op as R

import pock_tvm
from relay_passes import Backward, ChooseKernels, PackMasks, SaveSmall
from relay_passes.ir import Constant, bindings_of, scalar
from relay_passes.operators import training as pock
from schedules.gpu import GpuTarget
from tests.numeric.parity import TARGET
from tests.schedules.kernels import LLVM, TARGETS, built

VALUES = [0.0, -0.0, 1e-8, -1e-8, 0.5, -0.5, 1, -1, 3, -3, 6, 88.8, -88.8, 1e4, -1e4, 3e38, -3e38, np.inf, -np.inf]
VALUES += [np.nan]


@dataclass(frozen=True)
class Row:
    """An operator of ours and of PyTorch."""

    name: str
    ours: Callable[..., relax.Expr]
    torch: Callable[..., torch.Tensor]
    tolerance: float = 2e-6
    absolute: float = 1e-37
    """More than that where terms cancel."""
    cancels: float = 0.0
    """Tolerance of a gradient where the numbers of a row cancel, in roundings of the largest of them: of equal
    numbers x - mean is 0, or what the mean was rounded by."""


def number(value: float) -> Callable[[relax.Expr], relax.Expr]:
    return lambda x: scalar(value, x)


def power(exponent: float) -> Row:
    return Row(f"power of {exponent}", lambda x: R.power(x, scalar(exponent, x)), lambda x: x**exponent, 1e-5)


def count(mask: relax.Expr, x: relax.Expr) -> relax.Expr:
    """A condition that counts: a gradient passes where it holds."""
    return R.where(mask, x, scalar(0, x))


def counted(mask: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.where(mask, x, 0)


EACH = [
    Row("relu", R.nn.relu, F.relu),
    Row("relu6", lambda x: pock.hardtanh(x, low=0.0, high=6.0), F.relu6),
    Row("hardtanh", lambda x: pock.hardtanh(x, low=-3.0, high=0.5), lambda x: F.hardtanh(x, -3, 0.5)),
    Row("clip", lambda x: R.clip(x, -3, 0.5), lambda x: torch.clamp(x, -3, 0.5)),
    Row("leaky_relu", lambda x: R.nn.leakyrelu(x, 0.1), lambda x: F.leaky_relu(x, 0.1)),
    Row("elu", lambda x: pock.elu(x, alpha=0.7, scale=1.0, input_scale=1.0), lambda x: F.elu(x, 0.7), absolute=1e-6),
    Row("elu, negative", lambda x: pock.elu(x, alpha=-0.7, scale=1.0, input_scale=1.0), lambda x: F.elu(x, -0.7)),
    Row("celu", lambda x: pock.elu(x, alpha=2.0, scale=1.0, input_scale=0.5), lambda x: F.celu(x, 2.0), absolute=1e-6),
    Row("selu", R.nn.selu, F.selu, absolute=1e-6),
    Row("softplus", lambda x: R.nn.softplus(x, 2.0, 20.0), lambda x: F.softplus(x, 2.0, 20.0)),
    Row("silu", R.nn.silu, F.silu),
    Row("gelu", R.nn.gelu, lambda x: F.gelu(x.double()).to(x.dtype), absolute=2e-6),
    Row("gelu_tanh", R.nn.gelu_tanh, lambda x: F.gelu(x, approximate="tanh"), absolute=2e-6),
    Row("sigmoid", R.sigmoid, torch.sigmoid),
    Row("tanh", R.tanh, torch.tanh, absolute=1e-6),
    Row("exp", R.exp, torch.exp),
    Row("expm1", pock.expm1, torch.expm1),
    Row("log", R.log, torch.log),
    Row("log1p", pock.log1p, torch.log1p),
    Row("sqrt", R.sqrt, torch.sqrt),
    Row("rsqrt", R.rsqrt, torch.rsqrt, 1e-5),
    Row("square", R.square, torch.square),
    Row("erf", R.erf, torch.erf),
    Row("abs", R.abs, torch.abs),
    Row("sign", lambda x: R.sign(x) * x, lambda x: torch.sign(x) * x),
    Row("negative", R.negative, torch.neg),
    Row("floor", lambda x: R.floor(x) * x, lambda x: torch.floor(x) * x),
    Row("round", lambda x: R.round(x) * x, lambda x: torch.round(x) * x),
    *(power(exponent) for exponent in (2, 3, 0.5, -1, 0, 1, 1.5, -2)),
    Row("times 0", lambda x: x * scalar(0, x), lambda x: x * 0),
    Row("x - x", lambda x: x - R.grad.no_grad(x), lambda x: x - x.detach()),
    Row("x / x", lambda x: x / R.grad.no_grad(x), lambda x: x / x.detach()),
    Row("1 / x", lambda x: scalar(1, x) / x, lambda x: 1 / x),
    Row("x == x", lambda x: count(R.equal(x, x), x), lambda x: counted(x == x, x)),  # noqa: PLR0124
    Row("x != 1", lambda x: count(R.not_equal(x, scalar(1, x)), x), lambda x: counted(x != 1, x)),
    Row("not x < 1", lambda x: count(R.logical_not(R.less(x, scalar(1, x))), x), lambda x: counted(~(x < 1), x)),
    Row("x <= 1", lambda x: count(R.less_equal(x, scalar(1, x)), x), lambda x: counted(x <= 1, x)),
    Row("isnan", lambda x: count(R.isnan(x), x), lambda x: counted(x.isnan(), x)),
    Row("isinf", lambda x: count(R.isinf(x), x), lambda x: counted(x.isinf(), x)),
    Row("isfinite", lambda x: count(R.isfinite(x), x), lambda x: counted(x.isfinite(), x)),
]
PAIRS = [
    Row("add", R.add, torch.add),
    Row("subtract", R.subtract, torch.sub),
    Row("multiply", R.multiply, torch.mul),
    Row("divide", R.divide, torch.div),
    Row("power", R.power, torch.pow, 1e-4),
    Row("maximum", R.maximum, torch.maximum),
    Row("minimum", R.minimum, torch.minimum),
    Row("where", lambda x, y: R.where(R.greater(x, y), x, y), lambda x, y: torch.where(x > y, x, y)),
    Row("x != y", lambda x, y: R.where(R.not_equal(x, y), x, y), lambda x, y: torch.where(x != y, x, y)),
    Row("x == y", lambda x, y: R.where(R.equal(x, y), x, y), lambda x, y: torch.where(x == y, x, y)),
]


def rows_of_three(large: float) -> np.ndarray:
    """Every three of some values, as rows, and more of the last between them: [n, 7]."""
    values = np.array([0.0, 0.1, 2, -1e4, 1e4, large, np.inf, -np.inf, np.nan])
    a, b, c = (axis.reshape(-1) for axis in np.meshgrid(values, values, values, indexing="ij"))
    return np.stack([c, a, c, b, b, c, c], axis=1)


def taken(x: torch.Tensor, function: Callable[..., torch.Tensor]) -> torch.Tensor:
    """Where an extremum is, as a number with a gradient."""
    return function(x, dim=1).to(x.dtype) * x[:, 0]


def place(operator: Callable[..., relax.Expr]) -> Callable[[relax.Expr], relax.Expr]:
    def apply(x: relax.Expr) -> relax.Expr:
        first = R.squeeze(R.strided_slice(x, [1], [0], [1]), [1])
        return R.astype(operator(x, axis=1), x.ty.dtype.dtype) * first

    return apply


def norm(x: relax.Expr) -> relax.Expr:
    return pock.root(R.sum(x * x, axis=[1]), degree=2.0)


def cube_norm(x: relax.Expr) -> relax.Expr:
    return pock.root(R.sum(R.power(R.abs(x), scalar(3, x)), axis=[1]), degree=3.0)


def spread(x: relax.Expr) -> relax.Expr:
    return R.std(x, axis=[1]) * scalar((7 / 6) ** 0.5, x)


ROWS = [
    Row("amax", lambda x: R.max(x, axis=[1]), lambda x: x.amax(1)),
    Row("amin", lambda x: R.min(x, axis=[1], keepdims=True), lambda x: x.amin(1, keepdim=True)),
    Row("argmax", place(R.argmax), lambda x: taken(x, torch.argmax)),
    Row("argmin", place(R.argmin), lambda x: taken(x, torch.argmin)),
    Row("softmax", R.nn.softmax, lambda x: x.softmax(1), absolute=1e-7),
    Row("safe_softmax", pock.safe_softmax, lambda x: torch.ops.aten._safe_softmax(x, 1), absolute=1e-7),
    Row("log_softmax", R.nn.log_softmax, lambda x: x.log_softmax(1), absolute=3e-7),
]
SUMS = [
    Row("sum", lambda x: R.sum(x, axis=[1]), lambda x: x.sum(1)),
    Row("mean", lambda x: R.mean(x, axis=[1]), lambda x: x.mean(1)),
    Row("variance", lambda x: R.variance(x, axis=[1]), lambda x: x.var(1, correction=0), 1e-5, cancels=1),
    Row("std", spread, lambda x: x.std(1), 1e-5),
    Row("norm", norm, lambda x: torch.linalg.vector_norm(x, dim=1)),
    Row("norm of degree 3", cube_norm, lambda x: torch.linalg.vector_norm(x, 3, dim=1), 1e-5),
    Row("norm of degree 1", lambda x: R.sum(R.abs(x), axis=[1]), lambda x: torch.linalg.vector_norm(x, 1, dim=1)),
]


KINDS = list(dict.fromkeys([("float32", TARGET), ("float64", TARGET), ("float32", "opencl")]))
"""Types, and the targets that compute with them."""
of_each_kind = pytest.mark.parametrize(("dtype", "target"), KINDS)


def rounding(operand: np.ndarray) -> np.ndarray:
    """Spacing of numbers at the largest one of each row that is finite."""
    largest = np.abs(np.where(np.isfinite(operand), operand, 0)).max(axis=-1, keepdims=True)
    return np.finfo(operand.dtype).eps * largest


def check(
    rows: Sequence[Row], operands: Sequence[np.ndarray], dtype: str, target: str = TARGET, few: int | None = None
) -> None:
    """Compare results and gradients of all rows of the operands; of ours only the first ``few``."""
    operands = [operand.astype(dtype) for operand in operands]
    rng = np.random.default_rng(0)
    wanted, weights = [], []
    for row in rows:
        leaves = [torch.from_numpy(operand).requires_grad_() for operand in operands]
        result = row.torch(*leaves)
        weights.append(rng.standard_normal(tuple(result.shape)).astype(dtype))
        grads = torch.autograd.grad((result * torch.from_numpy(weights[-1])).sum(), leaves)
        wanted.append([result.detach().numpy(), *(grad.numpy() for grad in grads)])
    operands, weights = [operand[:few] for operand in operands], [weight[:few] for weight in weights]
    found = computed(rows, operands, weights, dtype, target)
    faults = []
    for row, ours, theirs in zip(rows, found, wanted, strict=True):
        tolerance = row.tolerance if dtype == "float32" else 1e-9
        for what, mine, other in zip(("result", "gradient", "second gradient"), ours, theirs, strict=False):
            other = other[:few]
            atol = row.absolute + (row.cancels * rounding(operands[0]) if mine.shape == operands[0].shape else 0.0)
            close = np.isclose(mine, other, rtol=tolerance, atol=atol, equal_nan=True)
            if not close.all():
                at = tuple(np.argwhere(~close)[0])
                where = [operand[at[: operand.ndim]].tolist() for operand in operands]
                if mine.shape != operands[0].shape:
                    where = [operand[at[:1]].tolist() for operand in operands]
                faults.append(
                    f"{row.name}: {what} at {where} is {mine[at]}, not {other[at]} ({(~close).sum()} of them)"
                )
    assert not faults, "\n".join(faults)


def computed(
    rows: Sequence[Row], operands: Sequence[np.ndarray], weights: Sequence[np.ndarray], dtype: str, target: str
) -> list[list[np.ndarray]]:
    """The result and the gradients of each row, by the kernels of a program."""
    params = [
        [relax.Var(f"x{row}_{index}", relax.TensorType(operand.shape, dtype)) for index, operand in enumerate(operands)]
        for row in range(len(rows))
    ]
    builder = relax.BlockBuilder()
    with builder.function("main", [param for group in params for param in group], attrs={"num_input": 0}):
        with builder.dataflow():
            results = [builder.emit(row.ours(*group)) for row, group in zip(rows, params, strict=True)]
            loss: relax.Expr = relax.const(0, dtype)
            for result, weight in zip(results, weights, strict=True):
                loss = builder.emit(loss + builder.emit(R.sum(builder.emit(result * relax.const(weight, dtype)))))
            output = builder.emit_output(relax.Tuple([loss, *results]))
        builder.emit_func_output(output)
    names = [param.name for group in params for param in group]
    machine = TARGETS[target]
    passes = [Backward(dict.fromkeys(names)), SaveSmall(), PackMasks(), ChooseKernels(["main"], machine)]
    fuse = [relax.transform.AnnotateTIROpPattern(), relax.transform.FuseOps(), relax.transform.FuseTIR()]
    mod = tvm.transform.Sequential([*passes, *fuse])(builder.get())
    assert list(mod["main"].attrs["gradients"]) == names
    scheduled = {
        var: machine.schedule(func.with_attr("global_symbol", var.name_hint)).with_attr("tirx.is_scheduled", True)
        for var, func in mod.functions.items()
        if isinstance(func, tvm.tirx.PrimFunc)
    }
    mod, given = tvm.IRModule({**mod.functions, **scheduled}), [operand for _ in rows for operand in operands]
    _, *arrays = interpreted(mod, given, machine) if isinstance(machine, GpuTarget) else on_the_host(mod, given)
    count = len(names)
    return [[arrays[count + row], *arrays[row * len(operands) : (row + 1) * len(operands)]] for row in range(len(rows))]


def on_the_host(mod: tvm.IRModule, operands: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The results of a module of kernels, by TVM's virtual machine."""
    machine = relax.VirtualMachine(tvm.compile(mod, LLVM), tvm.cpu())
    return [result.numpy() for result in machine["main"](*map(tvm.runtime.tensor, operands))]


def interpreted(mod: tvm.IRModule, operands: Sequence[np.ndarray], target: GpuTarget) -> list[np.ndarray]:
    """The results of a module of kernels for a GPU, called one after the other."""
    main = mod["main"]
    values: dict[relax.Var, Any] = dict(zip(main.params, operands, strict=True))

    def value(expr: relax.Expr) -> Any:
        if isinstance(expr, Constant):
            return expr.value.numpy()
        if isinstance(expr, relax.Tuple):
            return [value(field) for field in expr.fields]
        if isinstance(expr, relax.TupleGetItem):
            return value(expr.tuple_value)[expr.index]
        return values[expr] if isinstance(expr, relax.Var) else called(expr)

    def called(call: relax.Call) -> Any:
        kernel, arguments = call.args
        several = isinstance(call.ty_args[0], relax.TupleType)
        types = call.ty_args[0].fields if several else call.ty_args
        results = [np.empty([int(extent) for extent in each.shape], str(each.dtype)) for each in types]
        built(mod[kernel], target)(*value(arguments), *results)
        return results if several else results[0]

    for binding in bindings_of(main):
        values[binding.var] = value(binding.value)
    return value(main.body.body)


@of_each_kind
def test_functions_of_one_number(dtype: str, target: str) -> None:
    # Whole vectors of PyTorch's, whose gradients of NaN differ in what remains; ours does not fill its last vector.
    check(EACH, [np.tile(np.array(VALUES), (32, 1))], dtype, target, few=19)


@of_each_kind
def test_functions_of_two_numbers(dtype: str, target: str) -> None:
    values = np.array([value for value in VALUES if abs(value) != 88.8])
    check(PAIRS, np.meshgrid(values, values, indexing="ij"), dtype, target)


@of_each_kind
def test_functions_of_rows(dtype: str, target: str) -> None:
    check(ROWS, [rows_of_three(3e38)], dtype, target)


@of_each_kind
def test_sums_of_rows(dtype: str, target: str) -> None:
    check(SUMS, [rows_of_three(1e12)], dtype, target)  # whose cubes are finite: PyTorch adds in another order


POOLS = [
    ("2 x 2", {"kernel_size": 2}),
    ("overlapping, padded", {"kernel_size": 3, "stride": 2, "padding": 1}),
    ("padded by half", {"kernel_size": (2, 4), "stride": 1, "padding": (1, 2)}),
    ("dilated", {"kernel_size": 2, "stride": 1, "dilation": 2}),
    ("larger than a byte counts", {"kernel_size": 17, "stride": 1, "padding": 8}),
]


@pytest.mark.parametrize("kind", POOLS, ids=lambda kind: kind[0])
def test_max_pooling(kind: tuple[str, dict[str, Any]]) -> None:
    """Images [N, H, W, C] of a few values, so that windows have ties, several NaN, or nothing but -inf."""
    options = kind[1]
    values = np.random.default_rng(0).choice(
        [0.0, 1, 2, -np.inf, np.inf, np.nan], (3, 19, 18, 5), p=[0.1, 0.1, 0.1, 0.5, 0.1, 0.1]
    )
    attributes = {"pool_size": options["kernel_size"], "strides": options.get("stride", options["kernel_size"])}
    attributes |= {name: options[name] for name in ("padding", "dilation") if name in options}
    row = Row(
        kind[0],
        lambda x: R.nn.max_pool2d(x, **attributes, layout="NHWC", out_layout="NHWC"),
        lambda x: F.max_pool2d(x.permute(0, 3, 1, 2), **options).permute(0, 2, 3, 1),
        absolute=1e-6,
    )
    check([row], [values], "float32")


LABELS = np.array([0, 2, -100, 1, 3, 0, -100] * 3)
LOGITS = np.array([[0, 0, 0, 0], [1e4, 1e4, 1e4 - 1, 0], [np.nan, 1, 2, 3], [np.nan, 1, 2, 3], [1, 2, 3, np.inf]])
LOGITS = np.concatenate([LOGITS, [[1e38, 1e38, -1e38, 0], [-np.inf, 0, 1, -np.inf]], np.roll(LOGITS, 1, 1)])
LOGITS = np.concatenate([LOGITS, np.full((2, 4), -np.inf), np.full((2, 4), -1e4), np.eye(4)[[0, 1, 0, 1, 2]] * 88.8])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@of_each_kind
def test_cross_entropy(dtype: str, target: str, smoothing: float) -> None:
    assert len(LOGITS) == len(LABELS)
    options = {"ignore_index": -100, "label_smoothing": smoothing}
    row = Row(
        "cross_entropy",
        lambda x: pock.cross_entropy(x, relax.const(LABELS, "int64"), **options),
        lambda x: F.cross_entropy(x, torch.from_numpy(LABELS), reduction="none", **options),
        absolute=1e-7,
    )
    check([row], [LOGITS], dtype, target)


class Picture(nn.Module):
    """A small network whose loss leaves out what is NaN: gradients are not finite, and the loss is."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(channels, 8, 3, padding=1)
        self.third, self.head = nn.Conv2d(8, 8, 1, groups=2), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = F.max_pool2d(F.relu(self.first(x)), 3, 2, 1)
        y = F.leaky_relu(self.third(F.relu6(self.second(y))), 0.1)
        y = self.head(y.amax((2, 3)).clamp(-3, 3))
        return y, y.masked_fill(y.isnan(), 0).square().sum()


FORMS: dict[str, dict[str, Any]] = {
    "all is trained": {},
    "a frozen prefix": {"scheme": pock_tvm.Scheme({"*": "full", "first.*": "frozen"})},
    "biases": {"scheme": pock_tvm.Scheme({"*": "frozen", "*.bias": "full"})},
    "input channels": {"scheme": pock_tvm.Scheme({"*": "frozen", "*.weight": 0.5})},
    "clipped": {"clip_norm": 1.0},
    "a budget": {"memory_budget": "50kB"},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_value_in_an_image(form: str, value: float) -> None:
    """What a program computes of it, and which updates it spoils."""
    torch.manual_seed(0)
    model, x = Picture().eval(), torch.randn(4, 3, 11, 11)
    options = {"loss": pock_tvm.Loss("output", output=1), "guard": "off", "target": TARGET} | FORMS[form]
    program = pock_tvm.compile(torch.export.export(model, (x,)), **options)
    trainer = pock_tvm.Trainer(program)
    x[1, 2, 4, 9] = value
    for parameter in model.parameters():
        parameter.grad = None
    y, loss = model(x)
    loss.backward()
    if form == "clipped":
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    np.testing.assert_allclose(trainer.predict(x.numpy())[0], y.detach().numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(trainer.step(x.numpy(), lr=1.0), loss.item(), rtol=1e-4)
    for name, weight in trainer.weights().items():
        if name not in program.trained:
            continue
        before, grad = program.weights[name], model.get_parameter(name).grad.numpy()
        what = program.trained[name]
        part = slice(None) if not isinstance(what, dict) else np.array(what["indices"])
        axis = 0 if not isinstance(what, dict) else what["axis"]
        ours, theirs = (np.moveaxis(array, axis, 0)[part] for array in (before - weight, grad))
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4, err_msg=name)


def test_one_value_in_a_micro_batch() -> None:
    class Answers(Picture):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)[0]

    torch.manual_seed(0)
    model, x = Answers().eval(), torch.randn(4, 3, 11, 11)
    options = {"micro_batches": 2, "guard": "off", "target": TARGET}
    program = pock_tvm.compile(torch.export.export(model, (x,)), loss="mse", **options)
    trainer = pock_tvm.Trainer(program)
    x[1, 2, 4, 9] = np.nan
    y = model(x).detach().numpy()
    np.testing.assert_allclose(trainer.predict(x.numpy()), y, rtol=1e-4, atol=1e-5)
    assert np.isnan(trainer.step(x.numpy(), np.zeros_like(y), lr=0.0))


class _Indexed(nn.Module):
    """Reads its table by indices that it computes."""

    def __init__(self, read: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.table, self.read = nn.Parameter(torch.arange(18.0).reshape(6, 3)), read

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.read(self.table, x.sum(1).long()).flatten(1)


READS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "embedding": lambda table, index: F.embedding(index, table),
    "index": lambda table, index: table[index],
    "two indices": lambda table, index: table[index, index * 0 + 2][:, None],
    "two indices, both outside": lambda table, index: table[index, index][:, None],
    "gather": lambda table, index: table.gather(0, index[:, None].expand(-1, 3)),
    "one of each row": lambda table, index: table.t()[:, :3].gather(1, index[:3, None]),
}


@pytest.mark.parametrize("read", READS)
def test_an_index_that_the_model_computes_reads_nothing_outside(read: str) -> None:
    """PyTorch raises an IndexError; a kernel cannot."""
    model = _Indexed(READS[read]).eval()
    x = torch.tensor([[1.0, 1], [0, 0], [2, 0]])
    exported, given = torch.export.export(model, (x,)), (x, model(x).detach() + 1)
    program = pock_tvm.compile(exported, loss="mse", check_with=given, target=TARGET)
    trainer = pock_tvm.Trainer(program)
    np.testing.assert_array_equal(trainer.predict(x.numpy()), model(x).detach().numpy())
    x[1] = 4e9
    with pytest.raises((IndexError, RuntimeError)):
        model(x)
    outside = np.isnan(trainer.predict(x.numpy())).all(1)
    np.testing.assert_array_equal(outside, [False, True, False])
