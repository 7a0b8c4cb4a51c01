"""Translates an ONNX graph into Relax, node by node.

Nodes on shapes and constants are folded, so that a chain such as Shape, Gather, Concat, Reshape ends in a Reshape with
a static shape. An operator without a converter is expanded by its function in ONNX's schema, if it has one. Every
result is checked against ONNX's shape inference.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from tvm import IRModule, relax

from relay_passes.ir import Expr, dtype_of, shape_of

from ...errors import ModelError
from . import activations, elementwise, indexing, movement, normalization, pooling, products, reductions  # noqa: F401
from .evaluation import RANDOM, evaluate_node, type_of
from .parameters import Parameters, module_of
from .registry import Node, Unsupported, convert, error_of, expression, has_converter

Value = Any
"""A folded value as an array, else a Relax expression; a list for a folded sequence."""


@dataclass(frozen=True)
class _Task:
    """A node to translate, with the operator sets of its graph."""

    node: onnx.NodeProto
    opsets: dict[str, int]


def translate(model: onnx.ModelProto, parameters: Parameters) -> tuple[IRModule, dict[str, str]]:
    """Translate a model with bound inputs; ``main`` takes the inputs, then every parameter under its name. Also return
    the variable of each value by its name in the file.

    Raises
    ------
    ModelError
        A node cannot be translated, or a result's type differs from the file's.
    """
    translation = _Translation(model, parameters)
    module = translation.run()
    return module, {name: value.name for name, value in translation.values.items() if isinstance(value, relax.Var)}


@dataclass
class _Translation:
    model: onnx.ModelProto
    parameters: Parameters
    values: dict[str, Value] = field(default_factory=dict)
    builder: relax.BlockBuilder = field(default_factory=relax.BlockBuilder)
    copies: int = 0

    def run(self) -> IRModule:
        graph = self.model.graph
        variables = [relax.Var(value.name, _tensor_type(value.type.tensor_type)) for value in graph.input]
        self.inputs = frozenset(variables)
        for tensor in graph.initializer:
            if tensor.name in self.parameters:
                dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).name
                variables.append(relax.Var(tensor.name, relax.TensorType(list(tensor.dims), dtype)))
            else:
                self.values[tensor.name] = numpy_helper.to_array(tensor)
        self.values.update({var.name: var for var in variables})
        self.declared = {value.name: value.type for value in [*graph.value_info, *graph.output]}
        try:
            with self.builder.function("main", variables, {"num_input": len(graph.input)}):
                with self.builder.dataflow():
                    self._walk()
                    results = [self.builder.emit_output(self._result(value.name)) for value in graph.output]
                self.builder.emit_func_output(results[0] if len(results) == 1 else relax.Tuple(results))
        except ModelError:
            self.builder._end_block()  # else the builder complains on standard error
            raise
        return self.builder.finalize()

    def _walk(self) -> None:
        opsets = {entry.domain or "": entry.version for entry in self.model.opset_import}
        opsets = {"" if domain == "ai.onnx" else domain: version for domain, version in opsets.items()}
        opsets.setdefault("", onnx.defs.onnx_opset_version())
        pending = deque(_Task(node, opsets) for node in _needed(self.model.graph))
        while pending:
            task = pending.popleft()
            try:
                pending.extendleft(reversed(self._translate(task)))
            except Unsupported as reason:
                raise error_of(task.node, str(reason)) from reason
            except ModelError as error:
                raise error_of(task.node, str(error)) from error
            except Exception as error:  # TVM or NumPy refused an unforeseen node
                raise error_of(task.node, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error

    def _translate(self, task: _Task) -> list[_Task]:
        """Translate a node, or return the nodes that replace it."""
        node = task.node
        schema = _schema(node, task.opsets)
        inputs = [self.values[name] if name else None for name in node.input]
        if node.op_type in RANDOM:
            raise Unsupported("it draws random numbers; export the model in eval mode, without randomness")
        if node.op_type == "If":
            return self._branch(task, inputs[0])
        if any(_has_graph(attribute) for attribute in node.attribute):
            raise Unsupported("it is control flow, whose length the inputs decide; export a model without it")
        results: Sequence[Value] | None = None
        if node.op_type in ("Shape", "Size") and isinstance(inputs[0], relax.Expr):
            results = evaluate_node(node, task.opsets, [np.broadcast_to(np.int8(0), shape_of(inputs[0]))])
        elif all(value is None or not isinstance(value, relax.Expr) for value in inputs):
            results = evaluate_node(node, task.opsets, inputs)
        elif has_converter(schema):
            results = convert(Node(node, schema, self.builder, _name_of(node), self.inputs), inputs)
        if results is None:
            return self._expand(task, schema, inputs)
        for name, result in zip(node.output, results, strict=False):
            if name:
                self.values[name] = self._bound(result, _name_of(node))
        self._check(task, schema, inputs)
        return []

    def _bound(self, result: Value, name: str) -> Value:
        if not isinstance(result, relax.Expr) or isinstance(result, relax.Var):
            return result
        return self.builder.emit(result, name)

    def _result(self, name: str) -> Expr:
        value = self.values[name]
        if not isinstance(value, relax.Expr | np.ndarray):
            raise ModelError(f"output '{name}' is no tensor: a training program gives tensors only")
        try:
            return expression(value)
        except Unsupported as reason:
            raise ModelError(f"output '{name}' cannot be imported: {reason}") from reason

    # ---- nodes that are replaced -------------------------------------------------------------------------------------

    def _branch(self, task: _Task, condition: Value) -> list[_Task]:
        """Return the nodes of the branch that is taken; the condition must be constant."""
        if not isinstance(condition, np.ndarray):
            raise Unsupported("its condition is computed from the model's inputs; export a model without control flow")
        wanted = "then_branch" if condition.reshape(-1)[0] else "else_branch"
        body = next(attribute.g for attribute in task.node.attribute if attribute.name == wanted)
        names = self._fresh({tensor.name for tensor in body.initializer}, body.node)
        for tensor in body.initializer:
            self.values[names[tensor.name]] = numpy_helper.to_array(tensor)
        outputs = zip((names.get(value.name, value.name) for value in body.output), task.node.output, strict=True)
        return [
            *(_Task(_renamed(node, names), task.opsets) for node in body.node),
            *(_Task(onnx.helper.make_node("Identity", [inner], [outer]), task.opsets) for inner, outer in outputs),
        ]

    def _expand(self, task: _Task, schema: onnx.defs.OpSchema, inputs: Sequence[Value]) -> list[_Task]:
        """Return the nodes of an operator's function in ONNX's schema."""
        node = task.node
        version = task.opsets.get(schema.domain, 1)
        body = None
        if schema.has_function:
            body = onnx.FunctionProto()
            body.CopyFrom(schema.function_body)
        elif schema.has_context_dependent_function:
            types = [_onnx_type(value) if value is not None else onnx.TypeProto() for value in inputs]
            versions = [v for v in schema.context_dependent_function_opset_versions if v <= version]
            text = schema.get_context_dependent_function_with_opset_version(
                max(versions, default=schema.since_version),
                node.SerializeToString(),
                [type_.SerializeToString() for type_ in types],
            )
            body = onnx.FunctionProto.FromString(text) if text else None
        if body is None:
            if node.op_type in ("ConstantOfShape", "Range"):
                raise Unsupported("the shape of its result depends on the values of the model's inputs")
            raise Unsupported("this operator is not supported; write the layer with other operators before the export")
        if len(node.input) > len(body.input):
            raise Unsupported(f"its input {len(body.input)} is not supported")
        opsets = task.opsets | {"" if e.domain == "ai.onnx" else e.domain: e.version for e in body.opset_import}
        names = self._fresh(set(), body.node)
        names |= dict(zip(body.input, [*node.input, *[""] * len(body.input)], strict=False))
        names |= {inner: outer for inner, outer in zip(body.output, node.output, strict=False) if outer}
        attributes = {attribute.name: attribute for attribute in node.attribute}
        for name, attribute in schema.attributes.items():
            if name not in attributes and attribute.default_value.type != onnx.AttributeProto.UNDEFINED:
                attributes[name] = attribute.default_value
        tasks = [_Task(_renamed(inner, names, attributes), opsets) for inner in body.node]
        wanted = {name for name in node.output if name}
        return _reaching(tasks, wanted)

    def _fresh(self, names: set[str], nodes: Sequence[onnx.NodeProto]) -> dict[str, str]:
        """Create fresh names for the values of a body."""
        self.copies += 1
        made = names | {name for node in nodes for name in node.output if name}
        return {name: f"{name}#{self.copies}" for name in made}

    # ---- type check --------------------------------------------------------------------------------------------------

    def _check(self, task: _Task, schema: onnx.defs.OpSchema, inputs: Sequence[Value]) -> None:
        """Check the types of results against ONNX's inference and the file's declarations."""
        node = task.node
        types = {name: _onnx_type(value) for name, value in zip(node.input, inputs, strict=True) if name}
        known = {
            name: numpy_helper.from_array(value, name)
            for name, value in zip(node.input, inputs, strict=True)
            if isinstance(value, np.ndarray) and value.size <= MAX_INFERENCE_ELEMENTS and value.dtype.kind in "fiub"
        }
        imports = [onnx.helper.make_opsetid(domain, version) for domain, version in task.opsets.items()]
        try:
            inferred = onnx.shape_inference.infer_node_outputs(schema, node, types, known, opset_imports=imports)
        except onnx.shape_inference.InferenceError as error:
            raise Unsupported(f"the node is not valid: {' '.join(str(error).split())[:300]}") from error
        for name in filter(None, node.output):
            value = self.values.get(name)
            if not isinstance(value, relax.Expr | np.ndarray):
                continue
            ours = _onnx_type(value).tensor_type
            for source, theirs in (("ONNX", inferred.get(name)), ("the file", self.declared.get(name))):
                if theirs is not None and theirs.HasField("tensor_type") and not _agree(ours, theirs.tensor_type):
                    raise Unsupported(
                        f"'{name}' comes out as {_spelled(ours)}, and is {_spelled(theirs.tensor_type)} by {source}"
                    )


MAX_INFERENCE_ELEMENTS = 1024
"""Largest constant, in elements, whose values are given to shape inference: a shape, axes, a padding."""


def _needed(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """List the nodes that an output depends on, in the file's order."""
    return [task.node for task in _reaching([_Task(node, {}) for node in graph.node], {v.name for v in graph.output})]


def _reaching(tasks: Sequence[_Task], wanted: set[str]) -> list[_Task]:
    """Select the tasks that the wanted values depend on."""
    wanted, kept = set(wanted), []
    for task in reversed(tasks):
        if wanted.isdisjoint(task.node.output):
            continue
        kept.append(task)
        wanted |= _reads(task.node)
    return kept[::-1]


def _reads(node: onnx.NodeProto) -> set[str]:
    """Collect the names that a node reads, its subgraphs included."""
    names, pending = set(), [node]
    while pending:
        current = pending.pop()
        names |= set(current.input)
        for attribute in current.attribute:
            for graph in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                names |= {value.name for value in graph.output}
                pending.extend(graph.node)
    return names - {""}


def _has_graph(attribute: onnx.AttributeProto) -> bool:
    return attribute.HasField("g") or bool(attribute.graphs)


def _renamed(
    node: onnx.NodeProto, names: Mapping[str, str], attributes: Mapping[str, onnx.AttributeProto] | None = None
) -> onnx.NodeProto:
    """Copy a node of a function body, with names and attribute values of the call site.

    In its subgraphs only names of outer values are replaced.
    """
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    pending = [copy]
    while pending:
        current = pending.pop()
        current.input[:] = [names.get(name, name) for name in current.input]
        if current is copy:
            current.output[:] = [names.get(name, name) for name in current.output]
        resolved = []
        for attribute in current.attribute:
            if attribute.ref_attr_name and attributes is not None:
                if attribute.ref_attr_name not in attributes:
                    continue
                value = onnx.AttributeProto()
                value.CopyFrom(attributes[attribute.ref_attr_name])
                value.name = attribute.name
                attribute = value
            resolved.append(attribute)
        copied = [onnx.AttributeProto.FromString(attribute.SerializeToString()) for attribute in resolved]
        current.ClearField("attribute")
        current.attribute.extend(copied)
        for attribute in current.attribute:
            for graph in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                for value in graph.output:
                    value.name = names.get(value.name, value.name)
                pending.extend(graph.node)
    return copy


def _schema(node: onnx.NodeProto, opsets: Mapping[str, int]) -> onnx.defs.OpSchema:
    domain = "" if node.domain == "ai.onnx" else node.domain
    try:
        return onnx.defs.get_schema(node.op_type, opsets.get(domain, 1), domain)
    except onnx.defs.SchemaError as error:
        where = f"the domain '{domain}'" if domain else f"version {opsets.get(domain, 1)} of ONNX's operators"
        raise Unsupported(f"{where} has no operator of this name; export without it") from error


def _name_of(node: onnx.NodeProto) -> str:
    """Name the values of a node: by module and operator if PyTorch's metadata has them."""
    module = module_of(node)
    return f"{module}:{node.op_type}" if module else node.name or node.op_type


def _tensor_type(tensor: onnx.TypeProto.Tensor) -> relax.TensorType:
    return relax.TensorType(
        [dim.dim_value for dim in tensor.shape.dim], onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    )


def _onnx_type(value: Value) -> onnx.TypeProto:
    """Return the ONNX type of a value."""
    if isinstance(value, np.ndarray):
        return type_of(value)
    if not isinstance(value, relax.Expr):
        raise Unsupported("it reads what is no tensor")
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype_of(value)))
    return onnx.helper.make_tensor_type_proto(element, shape_of(value))


def _agree(ours: onnx.TypeProto.Tensor, theirs: onnx.TypeProto.Tensor) -> bool:
    """Check a static type against one that may have unknown dimensions."""
    if theirs.elem_type and ours.elem_type != theirs.elem_type:
        return False
    if not theirs.HasField("shape"):
        return True
    return len(ours.shape.dim) == len(theirs.shape.dim) and all(
        not wanted.HasField("dim_value") or got.dim_value == wanted.dim_value
        for got, wanted in zip(ours.shape.dim, theirs.shape.dim, strict=True)
    )


def _spelled(tensor: onnx.TypeProto.Tensor) -> str:
    extents = ", ".join(str(dim.dim_value) if dim.HasField("dim_value") else "?" for dim in tensor.shape.dim)
    return f"{onnx.TensorProto.DataType.Name(tensor.elem_type).lower()}[{extents}]"
