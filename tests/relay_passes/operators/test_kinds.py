"""Kinds of operators, against what their loops and their values say."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax import op as R

from relay_passes import ChannelsLast
from relay_passes.analysis.access import Selection, reads
from relay_passes.canonical.channels_last import TO_NCHW
from relay_passes.ir import bindings_of, op_name
from relay_passes.operators import training as pock
from relay_passes.operators.quantized import stated_scale
from relay_passes.operators.random import drop
from relay_passes.operators.record import Kind, all_records
from tests.relay_passes.modules import function, operators, run

WITHOUT_LOOPS = {"relax.grad.no_grad"}
"""Operators that no kernel computes."""
BROADCAST = 1
"""Highest of TVM's patterns (``OpPatternKind``) that reads each operand where it writes, or broadcasts it."""
NOT_BY_ELEMENT = {
    "relax.collapse_sum_like": "a sum, of equal shapes a copy",
    "relax.eye_like": "by position",
    "relax.squeeze": "a reshape",
    "relax.tril": "by position",
    "relax.triu": "by position",
}
"""Operators whose loops look element-wise, and why they are not."""
T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """A call of an operator: a function of tensors, their number and their dtype."""

    make: Callable[..., relax.Expr]
    count: int
    dtype: str = "float32"
    vector: bool = False
    """Whether the second operand is a vector along axis 1."""

    def operands(self, tensors: Sequence[T]) -> list[T]:
        """Choose operands among tensors of ``SHAPES``."""
        image, row, other, vector = tensors
        return [image, vector if self.vector else row, other][: self.count]


SHAPES = {"image": (2, 3, 4, 6), "row": (3, 1, 6), "other": (2, 3, 4, 6), "vector": (3,)}
WEIGHT = np.eye(3, dtype="float32").reshape(3, 3, 1, 1)
"""A convolution that leaves an image as it is."""


def arrays(dtype: str) -> list[np.ndarray]:
    """Tensors of ``SHAPES``: few small numbers, zero among them."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 2 if dtype == "bool" else 4, shape).astype(dtype) for shape in SHAPES.values()]


WITH_ATTRIBUTES = {
    "pock.stated_scale": Sample(lambda x: stated_scale(x, scale=0.5, zero=3), 1),
    "relax.astype": Sample(lambda x: R.astype(x, "int32"), 1),
    "relax.clip": Sample(lambda x: R.clip(x, 1, 2), 1),
    "relax.full_like": Sample(lambda x: R.full_like(x, relax.const(0.5)), 1),
    "relax.grad.no_grad": Sample(R.grad.no_grad, 1),
    "relax.nn.leakyrelu": Sample(lambda x: R.nn.leakyrelu(x, 0.1), 1),
    "relax.nn.prelu": Sample(lambda x, slopes: R.nn.prelu(x, slopes, axis=1), 2, vector=True),
    "pock.drop": Sample(lambda x, kept: drop(x, kept, scale=2.0, shift=0.5, other=-1.0, expected=1.0), 2),
    "pock.digamma": Sample(pock.digamma, 1),
    "pock.elu": Sample(lambda x: pock.elu(x, alpha=1.0, scale=1.0, input_scale=1.0), 1),
    "pock.expm1": Sample(pock.expm1, 1),
    "pock.hardtanh": Sample(lambda x: pock.hardtanh(x, low=0.5, high=2.0), 1),
    "pock.lgamma": Sample(pock.lgamma, 1),
    "pock.log1p": Sample(pock.log1p, 1),
    "pock.root": Sample(lambda x: pock.root(x, degree=3.0), 1),
}
"""What cannot be called with tensors alone, or not by a function of Relax."""


@functools.cache
def samples() -> dict[str, Sample]:
    """A call of each operator that takes tensors alone and has loops, by its name, and those of ``WITH_ATTRIBUTES``."""
    found = dict(WITH_ATTRIBUTES)
    for make in _functions():
        for count, dtype in ((1, "float32"), (2, "float32"), (3, "bool"), (1, "bool"), (2, "bool"), (2, "int32")):
            sample = Sample(make, count, dtype)
            with contextlib.suppress(Exception):  # not so many operands, not of this dtype, or not without attributes
                (name,) = operators(module(sample))
                if name not in found and patterns(sample):
                    found[name] = sample
    return found


def _functions() -> Iterator[Callable[..., relax.Expr]]:
    for room in (R, R.nn, R.grad):
        for name, value in vars(room).items():
            if inspect.isfunction(value) and value.__module__.startswith("tvm.relax.op") and not name.startswith("_"):
                yield value


def module(sample: Sample) -> tvm.IRModule:
    shapes = [(3, 4), (4,) if sample.vector else (3, 4), (3, 4)][: sample.count]
    params = {f"x{index}": shape for index, shape in enumerate(shapes)}
    return function(params, lambda emit, *x: emit(sample.make(*x)), sample.dtype)


def patterns(sample: Sample) -> list[int]:
    """TVM's pattern of each kernel that a call is legalised to."""
    mod = relax.transform.AnnotateTIROpPattern()(relax.transform.LegalizeOps()(module(sample)))
    return [int(func.attrs["op_pattern"]) for func in mod.functions.values() if isinstance(func, tvm.tirx.PrimFunc)]


def element_wise() -> set[str]:
    """The operators that are element-wise by their records."""
    return {record.name for record in all_records() if record.kind is Kind.ELEMENTWISE}


def test_what_is_element_wise_by_its_loops_is_so_by_its_record() -> None:
    by_loops = {name for name, sample in samples().items() if max(patterns(sample), default=BROADCAST + 1) <= BROADCAST}
    assert by_loops - NOT_BY_ELEMENT.keys() == element_wise() - WITHOUT_LOOPS
    assert NOT_BY_ELEMENT.keys() <= by_loops


def test_all_that_is_element_wise_has_a_sample() -> None:
    assert element_wise() <= samples().keys()


def names(dtype: str) -> list[str]:
    """The element-wise operators of a dtype. Dropout is left out: it has two results."""
    return [name for name in sorted(element_wise() - {"relax.nn.dropout"}) if samples()[name].dtype == dtype]


def group(dtype: str) -> list[Sample]:
    return [samples()[name] for name in names(dtype)]


@pytest.mark.parametrize("dtype", ["float32", "bool", "int32"])
def test_an_element_needs_what_its_record_says_and_no_more(dtype: str) -> None:
    """What a selection of the result reads suffices to compute it, along each axis where operands differ."""
    tried = [(name, axis) for name in names(dtype) for axis in ([1] if samples()[name].count == 1 else range(4))]

    def body(emit: Callable[..., relax.Var], *tensors: relax.Var) -> relax.Expr:
        results = []
        for name, axis in tried:
            sample, selection = samples()[name], Selection(axis, 1, 2)
            x = sample.operands(tensors)
            read = reads(normalized(sample, x), selection)
            assert read is not None and read[0] is not None, name
            given = [arg if part is None else emit(part.taken(arg)) for arg, part in zip(x, read, strict=False)]
            results += [emit(selection.taken(emit(sample.make(*x)))), emit(sample.make(*given))]
        return relax.Tuple(results)

    results = run(function(SHAPES, body, dtype), *arrays(dtype))
    for place, expected, actual in zip(tried, results[::2], results[1::2], strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-6, err_msg=str(place))


def normalized(sample: Sample, operands: Sequence[relax.Var]) -> relax.Call:
    """A call, with its type."""
    builder = relax.BlockBuilder()
    with builder.function("main", operands):
        with builder.dataflow():
            output = builder.emit_output(builder.emit(sample.make(*operands)))
        builder.emit_func_output(output)
    return bindings_of(builder.get()["main"])[0].value


@pytest.mark.parametrize("dtype", ["float32", "bool", "int32"])
def test_element_wise_operators_follow_images_to_channels_last(dtype: str) -> None:
    def body(emit: Callable[..., relax.Var], *tensors: relax.Var) -> relax.Expr:
        image = emit(R.nn.conv2d(emit(R.astype(tensors[0], "float32")), relax.const(WEIGHT)))
        others = [emit(R.astype(image, dtype)), *tensors[1:]]
        return relax.Tuple([emit(sample.make(*sample.operands(others))) for sample in group(dtype)])

    mod = function(SHAPES, body, dtype)
    moved = ChannelsLast()(mod)
    made = {binding.var: binding.value for binding in bindings_of(moved["main"])}
    back = [value for value in made.values() if op_name(value) == "relax.permute_dims" and is_back(value)]
    assert sorted(op_name(made[value.args[0]]) for value in back) == names(dtype)
    for name, expected, actual in zip(names(dtype), *(run(each, *arrays(dtype)) for each in (mod, moved)), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, err_msg=name)


def is_back(permutation: relax.Call) -> bool:
    """Whether an image is turned back from channels-last."""
    return tuple(map(int, permutation.attrs.axes)) == TO_NCHW
