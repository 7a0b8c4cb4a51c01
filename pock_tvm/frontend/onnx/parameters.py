"""Tells an ONNX file's parameters from its constants, and gives them back the names that exporters took away.

ONNX knows initializers only. What is a parameter of the network follows, in this order, from what PyTorch's exporter
noted (``dynamo=True`` keeps the signature), from PyTorch's names, and from the place where an operator reads it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper

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
"""The inputs where an operator reads a weight, whatever its name."""
STATISTICS = {"BatchNormalization": (3, 4)}
"""The inputs where an operator reads what training keeps without a gradient."""
MADE_UP = re.compile(r"onnx::\w+|val_\d+|\d+|.*_output_\d+|/.*")
"""Names that PyTorch's exporters give to initializers that no module has as they are."""


@dataclass(frozen=True)
class Parameters:
    """The initializers that have a place in the program's state; all others are constants."""

    trainable: frozenset[str]
    fixed: frozenset[str] = field(default_factory=frozenset)
    """Buffers, such as running statistics."""

    def __contains__(self, name: object) -> bool:
        return name in self.trainable or name in self.fixed


def restore_parameters(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Parameters]:
    """A copy of the model in which every parameter is an initializer of its own, and which initializers those are.

    - Linear layers get back their weight in PyTorch's layout, under PyTorch's name, with a Transpose behind it.
    - What an exporter merged because it was equal (biases of zero, scales of one) is apart again.
    - Weights in Constant nodes become initializers, unless PyTorch wrote the file: there they are literals.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    restoring = _Restoring(copy)
    if not restoring.by_pytorch:
        restoring.lift_constants()
    restoring.separate_identities()
    restoring.separate_merged()
    restoring.restore_linear()
    copy.graph.ClearField("initializer")
    copy.graph.initializer.extend(restoring.initializers.values())
    return copy, restoring.parameters()


class _Restoring:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.by_pytorch = model.producer_name == "pytorch"
        self.initializers = {tensor.name: _copy_of(tensor) for tensor in model.graph.initializer}
        self.origins = _origins(model)
        self.kinds = _signature(model)

    def lift_constants(self) -> None:
        """Make initializers of Constant nodes that are read where weights are."""
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
        """``b = Identity(a)`` of an initializer is another parameter of the same value: a tied one has one name."""
        kept = []
        for node in self.graph.node:
            source = self.initializers.get(node.input[0]) if node.op_type == "Identity" else None
            if source is None or not self._has_own_name(node.output[0]) or self._is_output(node.output[0]):
                kept.append(node)
                continue
            self._add(node.output[0], numpy_helper.to_array(source))
        self._keep(kept)

    def separate_merged(self) -> None:
        """Give nodes that read a merged initializer the parameter that the exporter notes with the node."""
        targets = {placeholder: target for placeholder, (target, _) in self.kinds.items()}
        for node in self.graph.node:
            read = [targets[name] for name in re.findall(r"%(\w+)", _metadata(node).get(_FX_NODE, "")) if name in targets]
            found = [(at, name) for at, name in enumerate(node.input) if name in self.initializers]
            foreign = [
                (at, name) for at, name in found if name in set(targets.values()) and name not in read
            ]
            present = {self.origins.get(name, name) for _, name in found}
            missing = [name for name in dict.fromkeys(read) if name not in present]
            fitting = [name for name in missing if name not in self.initializers] if foreign else []
            if len(foreign) < len(fitting):  # a node of several that a layer became: those after it read the rest
                fitting = fitting[len(fitting) - len(foreign) :]
            for (at, name), target in zip(foreign, fitting, strict=False):
                self._add(target, numpy_helper.to_array(self.initializers[name]))
                node.input[at] = target

    def restore_linear(self) -> None:
        """Undo the transposition of the weight of every linear layer."""
        transposes = []
        readers: dict[str, int] = {}
        for node in self.graph.node:
            for name in node.input:
                readers[name] = readers.get(name, 0) + 1
        for node in self.graph.node:
            weight = self.initializers.get(node.input[1]) if node.op_type == "MatMul" else None
            if weight is None or len(weight.dims) != 2 or self._has_own_name(weight.name):
                continue
            module = module_of(node)
            name = self.origins.get(weight.name) or (f"{module}.weight" if module else "")
            if not name or name in self.initializers or readers[weight.name] > 1:
                continue
            self._add(name, np.ascontiguousarray(numpy_helper.to_array(weight).T))
            del self.initializers[weight.name]
            transposes.append(onnx.helper.make_node("Transpose", [name], [weight.name], perm=[1, 0]))
        self._keep([*transposes, *self.graph.node])

    def parameters(self) -> Parameters:
        """What is a parameter, by signature, name and place."""
        at_weights = {name for _, name in self._reads(WEIGHTS)}
        statistics = {name for _, name in self._reads(STATISTICS)}
        noted = {target: kind for target, kind in self.kinds.values()}
        trainable, fixed = set(), set()
        for name, tensor in self.initializers.items():
            if tensor.data_type not in FLOATS or 0 in tensor.dims:
                continue
            if name in statistics or noted.get(name) == "BUFFER":
                fixed.add(name)
            elif name in at_weights or noted.get(name) == "PARAMETER" or self._is_parameter(tensor):
                trainable.add(name)
        return Parameters(frozenset(trainable), frozenset(fixed))

    def _is_parameter(self, tensor: onnx.TensorProto) -> bool:
        if self.by_pytorch:
            return self._has_own_name(tensor.name)
        return "." in tensor.name or int(np.prod(tensor.dims)) > 1

    def _has_own_name(self, name: str) -> bool:
        return not (self.by_pytorch and MADE_UP.fullmatch(name))

    def _is_output(self, name: str) -> bool:
        return any(value.name == name for value in self.graph.output)

    def _reads(self, *tables: dict[str, tuple[int, ...]]) -> Iterator[tuple[onnx.NodeProto, str]]:
        for node in self.graph.node:
            for position in (position for table in tables for position in table.get(node.op_type, ())):
                if position < len(node.input) and node.input[position]:
                    yield node, node.input[position]

    def _add(self, name: str, array: np.ndarray) -> None:
        self.initializers[name] = numpy_helper.from_array(array, name)

    def _keep(self, nodes: list[onnx.NodeProto]) -> None:
        self.graph.ClearField("node")
        self.graph.node.extend(nodes)


_FX_NODE = "pkg.torch.onnx.fx_node"


def _copy_of(tensor: onnx.TensorProto) -> onnx.TensorProto:
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    return copy


def _metadata(proto: object) -> dict[str, str]:
    return {entry.key: entry.value for entry in getattr(proto, "metadata_props", ())}


def _signature(model: onnx.ModelProto) -> dict[str, tuple[str, str]]:
    """What ``dynamo=True`` notes: the parameter or buffer, and which of both, behind each input of the FX graph."""
    notes = _metadata(model.graph) | _metadata(model)
    text = notes.get("pkg.torch.export.ExportedProgram.graph_signature", "")
    found = re.findall(r"^(\w+): (PARAMETER|BUFFER) target='([^']*)'", text, re.MULTILINE)
    return {placeholder: (target, kind) for placeholder, kind, target in found}


def _origins(model: onnx.ModelProto) -> dict[str, str]:
    """The one parameter that an exporter notes to have folded into an initializer."""
    origins = {}
    for value in [*model.graph.value_info, *model.graph.initializer]:
        note = _metadata(value).get("pkg.onnxscript.optimizer.folded_from")
        names = _literal(note) if note else []
        if len(names) == 1:
            origins[value.name] = str(names[0])
    return origins


def module_of(node: onnx.NodeProto) -> str:
    """The qualified name of the module that a node stands in, as PyTorch's exporters leave it: metadata, or the node's
    name."""
    scopes = _metadata(node).get("pkg.torch.onnx.name_scopes")
    if scopes is not None:
        path = [scope for scope in _literal(scopes) if scope]
        return str(path[-2]) if len(path) > 1 else ""
    parts = node.name.strip("/").split("/")[:-1] if node.name.startswith("/") else []
    return ".".join(parts)


def _literal(text: str) -> list[object]:
    """A list that an exporter wrote as Python; empty where it is something else."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return []
    return value if isinstance(value, list) else []
