"""Takes QuantizeLinear and DequantizeLinear out of ONNX models: a model in float, and the scales that it stated."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper

from relay_passes.analysis.fixed_point import EightBits

from .registry import error_of

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
TO_UNSIGNED = {"uint8": 0, "int8": 128}
"""Types of eight bits, with what is added to have unsigned ones."""
SUFFIX = "_quantized"
"""Suffixes that quantisers append to the name of a weight."""


@dataclass
class Floats:
    """A model in float, and the scales that it stated."""

    model: onnx.ModelProto
    values: dict[str, EightBits] = field(default_factory=dict)
    """By name of the value in the file."""
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    """By name of the initializer: of each channel [C], or of all [1]."""


def without_quantization(model: onnx.ModelProto) -> Floats:
    """Return the model without pairs that round a value, and with floats for integer weights.

    Raises
    ------
    ModelError
        It is quantised in a way that is not one scale a tensor or channel, in eight bits; or operators read integers.
    """
    if not any(node.op_type in (QUANTIZE, DEQUANTIZE) for node in model.graph.node):
        return Floats(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return _Removal(copy).run()


class _Removal:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph, self.floats = model.graph, Floats(model)
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        for node in self.graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t
        self.makers = {name: node for node in self.graph.node for name in node.output}
        self.readings = Counter(name for node in self.graph.node for name in node.input)
        self.outputs = {value.name for value in self.graph.output}

    def run(self) -> Floats:
        renamed: dict[str, str] = {}
        kept: list[onnx.NodeProto] = []
        for node in self.graph.node:
            node.input[:] = [renamed.get(name, name) for name in node.input]
            if node.op_type == DEQUANTIZE:
                x = self._dequantized(node)
                renamed[node.output[0]] = x
                if node.output[0] in self.outputs:
                    kept.append(onnx.helper.make_node("Identity", [x], [node.output[0]]))
            elif node.op_type != QUANTIZE:
                kept.append(node)
            elif node.output[0] in self.outputs:
                raise error_of(node, "it makes integers of an output, and programs give floats")
        for node in kept:
            for name in node.input:
                maker = self.makers.get(name)
                if maker is not None and maker.op_type == QUANTIZE:
                    raise error_of(
                        node, f"it reads the integers '{name}', and programs compute in float between layers"
                    )
        self.graph.ClearField("node")
        self.graph.node.extend(kept)
        read = {name for node in kept for name in node.input} | self.outputs
        initializers = [tensor for tensor in self.graph.initializer if tensor.name in read]
        self.graph.ClearField("initializer")
        self.graph.initializer.extend(initializers)
        return self.floats

    def _dequantized(self, node: onnx.NodeProto) -> str:
        """Return the name of what a node's result is in float."""
        source = node.input[0]
        maker = self.makers.get(source)
        if source in self.constants:
            return self._weight(node, source, numpy_helper.to_array(self.constants[source]))
        if maker is None or maker.op_type != QUANTIZE:
            raise error_of(node, f"its integers '{source}' are computed: programs compute in float between layers")
        if maker.input[0] in self.constants:
            return self._weight(node, maker.input[0], self._integers(maker))
        (scale, zero), (again, zero_again) = (self._scale(each) for each in (maker, node))
        if not (np.array_equal(scale, again) and np.array_equal(zero.astype("int64"), zero_again.astype("int64"))):
            raise error_of(node, "it has another scale than the QuantizeLinear before it")
        if scale.size != 1:
            raise error_of(maker, "it has a scale for each channel of a value, and programs have one for all")
        self._check_type(maker, zero.dtype.name)
        unsigned = int(zero.reshape(-1)[0]) + TO_UNSIGNED[zero.dtype.name]
        self.floats.values[maker.input[0]] = EightBits(float(scale.reshape(-1)[0]), unsigned)
        return maker.input[0]

    def _integers(self, maker: onnx.NodeProto) -> np.ndarray:
        """Compute the integers that a node makes of a weight."""
        weight = numpy_helper.to_array(self.constants[maker.input[0]])
        scale, zero = (_along(maker, each, weight.ndim) for each in self._scale(maker))
        self._check_type(maker, zero.dtype.name)
        limits = np.iinfo(zero.dtype)
        return np.clip(np.rint(weight / scale) + zero, limits.min, limits.max).astype(zero.dtype)

    def _weight(self, node: onnx.NodeProto, source: str, q: np.ndarray) -> str:
        """Add the floats that integers mean, and return their name. ``source``: of what they come from."""
        if q.dtype.name != "int32":  # a bias
            self._check_type(node, q.dtype.name)
        scale, zero = (_along(node, each, q.ndim) for each in self._scale(node))
        name = source.removesuffix(SUFFIX)
        if name == source and self.readings[source] == 1 and source not in self.makers:
            self.graph.initializer.remove(self.constants[source])
        elif name == source or name in self.constants or name in self.makers:
            name = node.output[0]
        array = ((q.astype("int32") - zero.astype("int32")) * scale).astype("float32")
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        if q.dtype.name != "int32":
            self.floats.weights[name] = scale.reshape(-1).astype("float64")
        return name

    def _scale(self, node: onnx.NodeProto) -> tuple[np.ndarray, np.ndarray]:
        """Return scale and zero point of a node; the zero point has the type of the integers that a node makes."""
        if any(each.name == "block_size" and each.i for each in node.attribute):
            raise error_of(node, "it has a scale for each block, and programs have one a tensor or a channel")
        missing = [name for name in node.input[1:] if name and name not in self.constants]
        if missing:
            raise error_of(node, f"its scale '{missing[0]}' is computed from the data, and programs keep fixed scales")
        scale, *rest = (numpy_helper.to_array(self.constants[name]) for name in node.input[1:] if name)
        dtype = next((each.i for each in node.attribute if each.name == "output_dtype"), 0) or onnx.TensorProto.UINT8
        zero = rest[0] if rest else np.zeros_like(scale, onnx.helper.tensor_dtype_to_np_dtype(dtype))
        return scale.astype("float32"), zero

    def _check_type(self, node: onnx.NodeProto, dtype: str) -> None:
        if dtype not in TO_UNSIGNED:
            raise error_of(node, f"it has integers of type {dtype}, and programs have eight bits")


def _along(node: onnx.NodeProto, array: np.ndarray, rank: int) -> np.ndarray:
    """Shape the scales or zero points of a node along its axis."""
    axis = next((each.i for each in node.attribute if each.name == "axis"), 1)
    return array.reshape([-1 if at == axis % rank else 1 for at in range(rank)]) if array.size > 1 else array
