"""Evaluates ONNX graphs and single nodes with the reference evaluator of the ``onnx`` package."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_max_pool import MaxPool as ReferenceMaxPool
from onnx.reference.ops.op_rnn import RNN_14

from ...device import random
from ...errors import ModelError
from ..draws import DRAWS

RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


MOST_ELEMENTS, GROWTH = 2**25, 4
"""Most elements of a computed constant: so many, or so many times those that it is computed from."""


class GatherElements(OpRun):
    """``x[i][indices[i][j]]``; the evaluator's own fails with fewer indices than elements."""

    def _run(self, x: np.ndarray, indices: np.ndarray, axis: int = 0) -> tuple[np.ndarray]:
        axis %= x.ndim
        part = x[tuple(slice(None if at == axis else n) for at, n in enumerate(indices.shape))]
        return (np.take_along_axis(part, np.where(indices < 0, indices + x.shape[axis], indices), axis),)


class MaxPool(ReferenceMaxPool):
    """Maxima of windows and their places; of windows of one position the evaluator's own places are wrong."""

    def _run(self, x: np.ndarray, **attributes: Any) -> tuple[np.ndarray, ...]:
        results = super()._run(x, **attributes)
        if len(results) > 1 and results[0].shape == x.shape and math.prod(attributes["kernel_shape"]) == 1:
            return x, np.arange(x.size).reshape(x.shape)
        return results


class RNN(RNN_14):
    """A recurrent layer; the evaluator's own knows fewer activations."""

    def choose_act(self, name: str, alpha: float | None, beta: float | None) -> Callable[[np.ndarray], np.ndarray]:
        """Return an activation by its name."""
        known = {"relu": lambda x: np.maximum(x, 0), "sigmoid": lambda x: 1 / (1 + np.exp(-x))}
        return known.get(name.lower()) or super().choose_act(name, alpha, beta)


class Dropout(OpRun):
    """Dropout by the numbers of a program, which :data:`~pock_tvm.frontend.draws.DRAWS` says; the evaluator's own draws
    others."""

    def _run(
        self, x: np.ndarray, ratio: Any = 0.5, training_mode: Any = False, seed: int = 0, **_: Any
    ) -> tuple[np.ndarray, ...]:
        rate = float(np.reshape(0.5 if ratio is None else ratio, -1)[0])
        is_on = DRAWS.training and training_mode is not None and bool(np.reshape(training_mode, -1)[0])
        kept = random.kept(DRAWS.words(), seed, x.shape, rate) if is_on else np.ones(x.shape, bool)
        y = np.where(kept, x / (1 - rate), 0).astype(x.dtype) if is_on else x
        return (y, kept)[: len(self.output)]


def reference_outputs(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Compute the outputs of a model; ``feeds`` holds its inputs, and other values for initializers, by name."""
    with np.errstate(all="ignore"):
        return [np.asarray(output) for output in _evaluator(model).run(None, dict(feeds))]


def evaluate_node(node: onnx.NodeProto, opsets: Mapping[str, int], inputs: Sequence[np.ndarray | None]) -> list[Any]:
    """Compute the results of one node on known inputs.

    Raises
    ------
    ModelError
        The evaluator does not know the operator, or the node is wrong, or its results are far larger than its inputs.
    """
    _check_size(node, opsets, inputs)
    values = {name: array for name, array in zip(node.input, inputs, strict=True) if array is not None}
    graph = onnx.helper.make_graph(
        [node],
        "node",
        [onnx.helper.make_value_info(name, type_of(array)) for name, array in values.items()],
        [onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name],
    )
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    model = onnx.helper.make_model(graph, opset_imports=imports)
    try:
        with np.errstate(all="ignore"):
            results = iter(_evaluator(model).run(None, values))
    except Exception as error:
        raise ModelError(f"its constant inputs cannot be evaluated: {error}") from error
    return [next(results) if name else None for name in node.output]


def _check_size(node: onnx.NodeProto, opsets: Mapping[str, int], inputs: Sequence[np.ndarray | None]) -> None:
    """Refuse a node whose results would take much memory, as ``Expand`` makes them of few bytes."""
    values = {name: array for name, array in zip(node.input, inputs, strict=True) if array is not None}
    most = max(MOST_ELEMENTS, GROWTH * sum(array.size for array in values.values()))
    types = {name: type_of(array) for name, array in values.items()}
    known = {name: onnx.numpy_helper.from_array(array, name) for name, array in values.items() if array.size <= 1024}
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    try:
        domain = "" if node.domain == "ai.onnx" else node.domain
        schema = onnx.defs.get_schema(node.op_type, opsets.get(domain, 1), domain)
        inferred = onnx.shape_inference.infer_node_outputs(schema, node, types, known, opset_imports=imports)
    except Exception as error:
        raise ModelError(f"its constant inputs cannot be evaluated: {error}") from error
    for name, result in inferred.items():
        count = math.prod(max(dim.dim_value, 1) for dim in result.tensor_type.shape.dim)
        if count > most:
            raise ModelError(f"'{name}' is a constant of {count} elements: make it an input, or a smaller one")


def type_of(array: np.ndarray) -> onnx.TypeProto:
    """Return the ONNX type of an array."""
    element = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.helper.make_tensor_type_proto(element, array.shape)


def _evaluator(model: onnx.ModelProto) -> ReferenceEvaluator:
    return ReferenceEvaluator(model, new_ops=[Dropout, GatherElements, MaxPool, RNN])
