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
from . import (  # noqa: F401 - their converters
    activations,
    einsum,
    elementwise,
    indexing,
    movement,
    normalization,
    pooling,
    products,
    recurrent,
    reductions,
    sampling,
    signal,
)
from .declared import declared_operands
from .evaluation import RANDOM, evaluate_node, type_of
from .graphs import agree, copy_of, has_graph, reaching, renamed, spelled, static_shape
from .loops import Bodies, turns_of_loop, turns_of_scan
from .metadata import module_of
from .parameters import Parameters
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

    def __post_init__(self) -> None:
        self.bodies = Bodies(self.values)

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
        graph = self.model.graph
        pending = deque(_Task(node, opsets) for node in reaching(graph.node, {value.name for value in graph.output}))
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
        schema = _schema(task.node, task.opsets)
        task = self._with_declared(task, schema)
        node = task.node
        inputs = [self._operand(name) if name else None for name in node.input]
        if node.op_type in RANDOM:
            raise Unsupported("it draws random numbers; export the model in eval mode, without randomness")
        if node.op_type == "If":
            return self._branch(task, inputs[0])
        version = task.opsets[""]
        if node.op_type == "Loop":
            return [_Task(each, task.opsets) for each in turns_of_loop(node, version, self.bodies)]
        if node.op_type == "Scan":
            turns = turns_of_scan(node, version, _shape_of(inputs[-1])[0], self.bodies)
            return [_Task(each, task.opsets) for each in turns]
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

    def _with_declared(self, task: _Task, schema: onnx.defs.OpSchema) -> _Task:
        """Replace computed shapes, axes and counts by those that the file declares with the types of the results."""
        node = task.node
        computed = [at for at, name in enumerate(node.input) if isinstance(self.values.get(name), relax.Expr)]
        shapes = [static_shape(self.declared.get(name)) for name in node.output if name]
        if not computed or None in shapes:
            return task
        first = self.values.get(node.input[0])
        x = () if first is None or isinstance(first, list) else _shape_of(first)
        known = declared_operands(node, schema.since_version, x, [shape for shape in shapes if shape is not None])
        wanted = {at: array for at, array in known.items() if at in computed}
        if not wanted:
            return task
        copy = copy_of(node)
        for at, array in wanted.items():
            copy.input[at] = f"{node.input[at]}#declared for {node.output[0]}"
            self.values[copy.input[at]] = array
        return _Task(copy, task.opsets)

    def _bound(self, result: Value, name: str) -> Value:
        if not isinstance(result, relax.Expr) or isinstance(result, relax.Var):
            return result
        return self.builder.emit(result, name)

    def _operand(self, name: str) -> Value:
        if name not in self.values:
            raise Unsupported(f"nothing in the file makes '{name}', which it reads")
        return self.values[name]

    def _result(self, name: str) -> Expr:
        if name not in self.values:
            raise ModelError(f"nothing in the file makes the output '{name}'")
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
        nodes, results = self.bodies.copy_of(body, ())
        outputs = zip(results, task.node.output, strict=True)
        nodes += [onnx.helper.make_node("Identity", [inner], [outer]) for inner, outer in outputs]
        return [_Task(node, task.opsets) for node in nodes]

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
            if has_graph(node):
                raise Unsupported("it is control flow, whose length the inputs decide; export a model without it")
            if node.op_type in ("ConstantOfShape", "Range"):
                raise Unsupported("the shape of its result depends on the values of the model's inputs")
            raise Unsupported("this operator is not supported; write the layer with other operators before the export")
        if len(node.input) > len(body.input):
            raise Unsupported(f"its input {len(body.input)} is not supported")
        opsets = task.opsets | {"" if e.domain == "ai.onnx" else e.domain: e.version for e in body.opset_import}
        names = self.bodies.fresh(body.node)
        names |= dict(zip(body.input, [*node.input, *[""] * len(body.input)], strict=False))
        names |= {inner: outer for inner, outer in zip(body.output, node.output, strict=False) if outer}
        attributes = {attribute.name: attribute for attribute in node.attribute}
        for name, attribute in schema.attributes.items():
            if name not in attributes and attribute.default_value.type != onnx.AttributeProto.UNDEFINED:
                attributes[name] = attribute.default_value
        nodes = [renamed(inner, names, attributes) for inner in body.node]
        return [_Task(inner, opsets) for inner in reaching(nodes, {name for name in node.output if name})]

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
                if theirs is not None and theirs.HasField("tensor_type") and not agree(ours, theirs.tensor_type):
                    raise Unsupported(
                        f"'{name}' comes out as {spelled(ours)}, and is {spelled(theirs.tensor_type)} by {source}"
                    )


MAX_INFERENCE_ELEMENTS = 1024
"""Largest constant, in elements, whose values are given to shape inference: a shape, axes, a padding."""


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


def _shape_of(value: Value) -> tuple[int, ...]:
    return value.shape if isinstance(value, np.ndarray) else shape_of(value)


def _onnx_type(value: Value) -> onnx.TypeProto:
    """Return the ONNX type of a value."""
    if isinstance(value, np.ndarray):
        return type_of(value)
    if not isinstance(value, relax.Expr):
        raise Unsupported("it reads what is no tensor")
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype_of(value)))
    return onnx.helper.make_tensor_type_proto(element, shape_of(value))
