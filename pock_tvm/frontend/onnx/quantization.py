"""Takes QuantizeLinear and DequantizeLinear out of ONNX models: a model in float, and the scales that it stated."""

from __future__ import annotations

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
"""What quantisers append to the name of a weight."""


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
        if source in self.constants:
            return self._weight(node, source)
        maker = self.makers.get(source)
        if maker is None or maker.op_type != QUANTIZE:
            raise error_of(node, f"its integers '{source}' are computed: programs compute in float between layers")
        numbers = [self._numbers(each) for each in (maker, node)]
        if numbers[0] != numbers[1]:
            raise error_of(node, "it has another scale than the QuantizeLinear before it")
        self.floats.values[maker.input[0]] = numbers[0]
        return maker.input[0]

    def _numbers(self, node: onnx.NodeProto) -> EightBits:
        """Return the one scale of a value."""
        scale, zero = self._scale(node)
        if scale.size != 1:
            raise error_of(node, "it has a scale for each channel of a value, and programs have one for all")
        self._check_type(node, zero.dtype.name)
        return EightBits(float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0]) + TO_UNSIGNED[zero.dtype.name])

    def _weight(self, node: onnx.NodeProto, source: str) -> str:
        """Add the floats that an initializer's integers mean, and return their name."""
        q = numpy_helper.to_array(self.constants[source])
        if q.dtype.name != "int32":  # a bias
            self._check_type(node, q.dtype.name)
        scale, zero = self._scale(node)
        axis = next((each.i for each in node.attribute if each.name == "axis"), 1)
        if scale.size > 1:
            shape = [-1 if at == axis % q.ndim else 1 for at in range(q.ndim)]
            scale, zero = scale.reshape(shape), zero.reshape(shape) if zero.size > 1 else zero
        name = source.removesuffix(SUFFIX)
        if name == source or name in self.constants or name in self.makers:
            name = node.output[0]
        array = ((q.astype("int32") - zero.astype("int32")) * scale).astype("float32")
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        if q.dtype.name != "int32":
            self.floats.weights[name] = scale.reshape(-1).astype("float64")
        return name

    def _scale(self, node: onnx.NodeProto) -> tuple[np.ndarray, np.ndarray]:
        """Return scale and zero point of a node."""
        if any(each.name == "block_size" and each.i for each in node.attribute):
            raise error_of(node, "it has a scale for each block, and programs have one a tensor or a channel")
        missing = [name for name in node.input[1:] if name and name not in self.constants]
        if missing:
            raise error_of(node, f"its scale '{missing[0]}' is computed from the data, and programs keep fixed scales")
        scale, *rest = (numpy_helper.to_array(self.constants[name]) for name in node.input[1:] if name)
        return scale.astype("float32"), rest[0] if rest else np.zeros(1, "uint8")

    def _check_type(self, node: onnx.NodeProto, dtype: str) -> None:
        if dtype not in TO_UNSIGNED:
            raise error_of(node, f"it has integers of type {dtype}, and programs have eight bits")
