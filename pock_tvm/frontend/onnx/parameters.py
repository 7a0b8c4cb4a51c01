"""Separates an ONNX file's parameters from its constants, and restores names that exporters changed.

ONNX has initializers only. Parameters are recognised, in this order, by the signature in PyTorch's metadata
(``dynamo=True``), by PyTorch's names, and by the operator input that reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper

from .metadata import fx_note, fx_values, module_of, operator_of, signature_of, sources_of

FLOATS = frozenset(
    {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
)
WEIGHTS = {
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "GroupNormalization": (1, 2),
    "GRU": (1, 2, 3),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "LSTM": (1, 2, 3, 7),
    "MatMul": (0, 1),
    "PRelu": (1,),
    "RMSNormalization": (1,),
    "RNN": (1, 2, 3),
}
"""Inputs of operators that are weights, whatever their name."""
FOLDED = {
    "Add": ((0, "bias"), (1, "bias")),
    "MatMul": ((1, "weight"),),
    "Mul": ((0, "weight"), (1, "weight")),
    "PRelu": ((1, "weight"),),
}
"""Inputs of operators where PyTorch's exporters reshape a parameter, with its name in the module."""
STATISTICS = {"BatchNormalization": (3, 4)}
"""Inputs of operators that are running statistics."""
MADE_UP = re.compile(r"onnx::\w+|val_\d+(\..+)?|\d+|.*_output_\d+|/.*")
"""Names that PyTorch's exporters generate for folded initializers."""

WRITTEN = re.compile(r".*_output_\d+|/.*")
"""Names of values that a network's code computes, ``nn.Identity`` included."""


@dataclass(frozen=True)
class Parameters:
    """The initializers that are state of the program; all others are constants."""

    trainable: frozenset[str]
    fixed: frozenset[str] = field(default_factory=frozenset)
    """Buffers, such as running statistics."""
    lost: tuple[str, ...] = ()
    """Parameters in PyTorch's metadata that have no initializer of their own."""
    folded: tuple[str, ...] = ()
    """Parameters of which the exporter computed a part: that part is a constant."""
    merged: bool = False
    """Whether the exporter merged computations on parameters that were equal when it ran."""

    def __contains__(self, name: object) -> bool:
        return name in self.trainable or name in self.fixed


def restore_parameters(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Parameters]:
    """Copy the model with one initializer for every parameter, and classify its initializers.

    - Folded weights get PyTorch's layout and name back, followed by a Transpose or Reshape.
    - Parameters merged because they were equal (biases of zero, scales of one) are separated; biases that were dropped
      because they were zero are restored.
    - Weights in Constant nodes become initializers, except in PyTorch's files, where they are literals.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    restoring = _Restoring(copy)
    if not restoring.by_pytorch:
        restoring.lift_constants()
    restoring.separate_identities()
    restoring.restore_zero_biases()
    restoring.separate_merged()
    restoring.restore_folded()
    copy.graph.ClearField("initializer")
    copy.graph.initializer.extend(restoring.initializers.values())
    return copy, restoring.parameters()


class _Restoring:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.by_pytorch = model.producer_name == "pytorch"
        self.initializers = {tensor.name: _copy_of(tensor) for tensor in model.graph.initializer}
        self.sources = sources_of(model)
        self.origins = {name: sources[0] for name, sources in self.sources.items() if len(sources) == 1}
        self.kinds = signature_of(model)

    def lift_constants(self) -> None:
        """Turn Constant nodes that are read as weights into initializers."""
        constants = {
            node.output[0]: node
            for node in self.graph.node
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value"
        }
        lifted: set[str] = set()
        for _, name in self._reads(WEIGHTS, STATISTICS):
            if name in constants and name not in lifted and constants[name].attribute[0].t.data_type in FLOATS:
                self._add(name, numpy_helper.to_array(constants[name].attribute[0].t))
                lifted.add(name)
        self._keep([node for node in self.graph.node if node.op_type != "Constant" or node.output[0] not in lifted])

    def separate_identities(self) -> None:
        """Separate ``b = Identity(a)`` of an initializer: equal parameters; tied ones would share a name."""
        kept = []
        for node in self.graph.node:
            source = self.initializers.get(node.input[0]) if node.op_type == "Identity" else None
            if source is None or WRITTEN.fullmatch(node.output[0]) or self._is_output(node.output[0]):
                kept.append(node)
                continue
            self._add(node.output[0], numpy_helper.to_array(source))
        self._keep(kept)

    def separate_merged(self) -> None:
        """Separate merged initializers: each node reads the parameter that its metadata names.

        An initializer without metadata (a folded bias, say) counts as merged if it holds one value throughout, and
        several modules read it.
        """
        notes = self._noted_parameters()
        owners: dict[str, str] = {}
        copies: dict[tuple[str, str], str] = {}
        noted = {
            name
            for node, read in zip(self.graph.node, notes, strict=True)
            for name in node.input
            if self.origins.get(name, name) in read
        }
        for node, read in zip(self.graph.node, notes, strict=True):
            for at, name in enumerate(node.input):
                if name not in self.initializers or self.origins.get(name, name) in read:
                    continue
                place = at - 1 if node.op_type in WEIGHTS and at else -1  # a layer's weight comes before its bias
                target = read[place] if read and place < len(read) else ""
                if name not in noted:
                    module = module_of(node)
                    if at not in WEIGHTS.get(node.op_type, ()) or owners.setdefault(name, module) == module:
                        continue
                    array = numpy_helper.to_array(self.initializers[name])
                    target = f"{module}.{'weight' if at == 1 else 'bias'}" if np.unique(array).size == 1 else ""
                if (name, target) in copies:  # another use of the same module
                    node.input[at] = copies[name, target]
                elif target and target not in self.initializers:
                    node.input[at] = copies[name, target] = self._separated(name, target)

    def restore_zero_biases(self) -> None:
        """Restore biases that the exporter dropped because they were zero, where a node's metadata names them."""
        for node, read in zip(self.graph.node, self._noted_parameters(), strict=True):
            weight = self.initializers.get(node.input[1]) if len(node.input) == 2 else None
            axis = _output_axis(node)
            if axis is None or weight is None or len(read) != 2 or read[1] in self.initializers:
                continue
            groups = next((attr.i for attr in node.attribute if attr.name == "group"), 1)
            extent = weight.dims[axis] * (groups if node.op_type == "ConvTranspose" else 1)
            self._add(read[1], np.zeros(extent, onnx.helper.tensor_dtype_to_np_dtype(weight.data_type)))
            node.input.append(read[1])

    def _separated(self, name: str, target: str) -> str:
        """Copy an initializer for the parameter ``target``, which may still be folded; return the copy's name."""
        new = f"{name}.{target}" if name in self.origins else target
        if new != target:
            self.origins[new] = target
        self._add(new, numpy_helper.to_array(self.initializers[name]))
        return new

    def restore_folded(self) -> None:
        """Undo folding into weights: transposition of a linear layer's weight, added axes of a vector."""
        restored: dict[str, onnx.NodeProto] = {}
        readers: dict[str, set[tuple[str, int]]] = {}
        for node in self.graph.node:
            for position, name in enumerate(node.input):
                readers.setdefault(name, set()).add((node.op_type, position))
        equal = {_content(tensor): name for name, tensor in self.initializers.items() if self._has_own_name(name)}
        for node in self.graph.node:
            for position, kind in FOLDED.get(node.op_type, ()):
                name = node.input[position] if position < len(node.input) else ""
                tensor = self.initializers.get(name)
                if (
                    tensor is None
                    or self._has_own_name(name)
                    or tensor.data_type not in FLOATS
                    or len(readers[name]) > 1
                ):
                    continue
                array = numpy_helper.to_array(tensor)
                if node.op_type == "MatMul":
                    plain = np.ascontiguousarray(array.T) if array.ndim == 2 else None
                    undo = onnx.helper.make_node("Transpose", ["weight"], [name], perm=[1, 0])
                else:
                    plain = array.reshape(-1) if array.ndim > 1 and max(array.shape) == array.size > 1 else None
                    undo = onnx.helper.make_node("Reshape", ["weight", f"{name}.shape"], [name])
                if plain is None:
                    continue
                content = _content(numpy_helper.from_array(plain))
                tied = equal.get(content) if np.unique(plain).size > 1 else None
                own = tied or self.origins.get(name) or self._guessed_name(node, kind)
                if not own or (own in self.initializers and own != tied):
                    continue
                if undo.op_type == "Reshape":
                    self._add(f"{name}.shape", np.array(array.shape, "int64"))
                if own != tied:
                    self._add(own, plain)
                    equal[content] = own
                del self.initializers[name]
                undo.input[0] = own
                restored[name] = undo
        self._keep([*restored.values(), *self.graph.node])

    def _guessed_name(self, node: onnx.NodeProto, kind: str) -> str:
        """Guess a name: ``weight`` or ``bias`` of the node's module, ``in_proj_weight`` beside ``in_proj_bias``."""
        module = self._module_of(node)
        if not module:
            return ""
        beside = {
            name.removeprefix(f"{module}.")
            for other in self.graph.node
            if node.output[0] in other.input
            for name in other.input
            if name in self.initializers and name.startswith(f"{module}.")
        }
        biases = [name for name in beside if name.endswith("bias")]
        if kind == "weight" and len(biases) == 1:
            return f"{module}.{biases[0].removesuffix('bias')}weight"
        return f"{module}.{kind}"

    def _module_of(self, node: onnx.NodeProto) -> str:
        """Return the module of a node. TorchScript writes ``/m/m.0`` both for a part of a Sequential ``m`` and for
        ``m.m.0``: take the one with other parameters."""
        module = module_of(node)
        parts = node.name.strip("/").split("/")[:-1] if node.name.startswith("/") else []
        kept = [part for part, after in zip(parts, [*parts[1:], ""], strict=False) if not after.startswith(f"{part}.")]
        short = ".".join(kept)
        if short and short != module and not any(name.startswith(f"{module}.") for name in self.initializers):
            return short
        return module

    def parameters(self) -> Parameters:
        """Classify initializers by signature, name and use."""
        at_weights = {
            name
            for node, name in self._reads(WEIGHTS)
            if self._has_own_name(name) or "Normalization" not in node.op_type  # a literal scale of one
        }
        statistics = {name for _, name in self._reads(STATISTICS)}
        noted = dict(self.kinds.values())
        trainable, fixed = set(), set()
        for name, tensor in self.initializers.items():
            if tensor.data_type not in FLOATS or 0 in tensor.dims:
                continue
            if name in statistics or noted.get(name) == "BUFFER":
                fixed.add(name)
            elif name in at_weights or noted.get(name) == "PARAMETER" or self._is_parameter(tensor):
                trainable.add(name)
        lost = [name for name, kind in noted.items() if kind == "PARAMETER" and name not in self.initializers]
        merged = self._is_merged(lost)
        return Parameters(frozenset(trainable), frozenset(fixed), tuple(lost), self._folded(trainable), merged)

    def _folded(self, trainable: set[str]) -> tuple[str, ...]:
        """List the trainable parameters that constants were computed from, as an RNN's first step is, whose state is
        zero."""
        read = {name for node in self.graph.node for name in node.input}
        constants = [name for name in self.sources if name in read and name in self.initializers.keys() - trainable]
        return tuple(sorted({source for name in constants for source in self.sources[name]} & trainable))

    def _is_merged(self, lost: Sequence[str]) -> bool:
        """Check for merged computations: a node reads a value twice, where its metadata names a second one of the same
        operator, lost with its parameter: ``Concat(expand, expand)`` for ``cat([expand, expand_1])``."""
        if {name for read in self._noted_parameters() for name in read}.issuperset(lost):
            return False
        notes = self._notes()
        made = {
            output: note[0] for node, note in zip(self.graph.node, notes, strict=True) if note for output in node.output
        }
        there = {*made.values(), *self.initializers, *self.kinds, *(value.name for value in self.graph.input)}
        for node, note in zip(self.graph.node, notes, strict=True):
            if _has_folded_norm(node):
                continue
            gone = {operator_of(name) for name in note[1:] if name not in there}
            sources = {made.get(name, name) for name in node.input}
            other = [name for name in sources if name not in note[1:] or list(node.input).count(name) > 1]
            if gone & set(map(operator_of, other)):
                return True
        return False

    def _notes(self) -> list[list[str]]:
        """List the FX values in each node's metadata (``dynamo=True``): its result, then its operands."""
        return [fx_values(node) for node in self.graph.node]

    def _noted_parameters(self) -> list[list[str]]:
        """List the parameters and buffers that each node's metadata names, by PyTorch's names."""
        return [[self.kinds[name][0] for name in note if name in self.kinds] for note in self._notes()]

    def _is_parameter(self, tensor: onnx.TensorProto) -> bool:
        if self.kinds:
            return False  # all are in the metadata
        if self.by_pytorch:
            return self._has_own_name(tensor.name)
        return "." in tensor.name or int(np.prod(tensor.dims)) > 1

    def _has_own_name(self, name: str) -> bool:
        return not (self.by_pytorch and MADE_UP.fullmatch(name))

    def _is_output(self, name: str) -> bool:
        return any(value.name == name for value in self.graph.output)

    def _reads(self, *tables: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[onnx.NodeProto, str]]:
        for node in self.graph.node:
            for position in (position for table in tables for position in table.get(node.op_type, ())):
                if position < len(node.input) and node.input[position]:
                    yield node, node.input[position]

    def _add(self, name: str, array: np.ndarray) -> None:
        self.initializers[name] = numpy_helper.from_array(array, name)

    def _keep(self, nodes: list[onnx.NodeProto]) -> None:
        self.graph.ClearField("node")
        self.graph.node.extend(nodes)


def _has_folded_norm(node: onnx.NodeProto) -> bool:
    """Check whether an exporter folded a batch norm into this layer."""
    return node.op_type in WEIGHTS and "batch_norm" in fx_note(node)


def _output_axis(node: onnx.NodeProto) -> int | None:
    """Return the output axis of a weight, along which its bias runs; None for operators that keep their bias."""
    if _has_folded_norm(node):
        return None
    if node.op_type == "Gemm":
        return 0 if any(attr.name == "transB" and attr.i for attr in node.attribute) else 1
    return {"Conv": 0, "ConvTranspose": 1}.get(node.op_type)


def _content(tensor: onnx.TensorProto) -> tuple[object, ...]:
    """Return a key that equal tensors share."""
    array = numpy_helper.to_array(tensor)
    return (tuple(tensor.dims), tensor.data_type, array.tobytes())


def _copy_of(tensor: onnx.TensorProto) -> onnx.TensorProto:
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    return copy
