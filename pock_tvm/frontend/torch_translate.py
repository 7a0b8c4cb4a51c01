"""Translates an exported graph to a Relax function node by node, and checks types against PyTorch's."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, OutputKind, TensorArgument
from torch.utils import _pytree as pytree
from tvm import IRModule, relax
from tvm.relax import op as R

from relay_passes.analysis.fixed_point import EightBits
from relay_passes.ir import Expr, dtype_of, first_line, shape_of
from relay_passes.ir.places import value_name

from ..errors import ModelError, Obstacle
from .model import LookUp
from .torch_graph import refuse_randomness
from .torch_integers import small_integers
from .torch_nodes import layer_of, parameter_behind, short_name, sources_of, where
from .torch_operators import Site, Unsupported, convert, has_converter

DTYPES = frozenset({"float32", "float64", "bool", "uint8", "int8", "int16", "int32", "int64"})


@dataclass
class Translation:
    """A forward module, the names of its values, and the nodes that could not be translated."""

    module: IRModule
    values: dict[str, str]
    """For each node of the graph, the variable that holds its value."""
    obstacles: list[Obstacle]
    look_ups: list[LookUp]
    stated: dict[str, EightBits]
    """Scales that a quantised model states, by the variable of the value."""


def translate(exported: ExportedProgram, aliases: Mapping[str, str]) -> Translation:
    """Translate a prepared program; parameters of ``main`` are its inputs, then parameters and floating-point buffers.

    Constant subgraphs are folded, by PyTorch itself, except for large tables of small integers that become floats. What
    no output depends on is left out: assertions, and what they alone read.
    """
    return _Translator(exported, aliases).run()


@dataclass
class _Translator:
    exported: ExportedProgram
    aliases: Mapping[str, str]
    env: dict[Any, Any] = field(default_factory=dict)
    """The translation of each node: an expression, a list of them, or a number."""
    known: dict[Any, Any] = field(default_factory=dict)
    """Folded nodes, with PyTorch's values."""
    names: dict[str, str] = field(default_factory=dict)
    obstacles: list[Obstacle] = field(default_factory=list)
    look_ups: list[LookUp] = field(default_factory=list)
    stated: dict[str, EightBits] = field(default_factory=dict)

    def run(self) -> Translation:
        graph = self.exported.graph
        inputs, parameters = self._placeholders()
        self.builder = relax.BlockBuilder()
        with self.builder.function("main", [*inputs, *parameters], attrs={"num_input": len(inputs)}):
            with self.builder.dataflow():
                results = self._user_outputs()
                needed = set(sources_of(results))
                for node in graph.nodes:
                    if node.op == "call_function" and node in needed:
                        self._translate(node)
                outputs = [self._value(result) for result in results]
                result = self.builder.emit_output(outputs[0] if len(outputs) == 1 else relax.Tuple(outputs))
            self.builder.emit_func_output(result)
        return Translation(self.builder.get(), self.names, self.obstacles, self.look_ups, self.stated)

    # ---- inputs and outputs ------------------------------------------------------------------------------------------

    def _placeholders(self) -> tuple[list[relax.Var], list[relax.Var]]:
        specs = {spec.arg.name: spec for spec in self.exported.graph_signature.input_specs}
        placeholders = [node for node in self.exported.graph.nodes if node.op == "placeholder"]
        held = {node for node in placeholders if self._is_held(specs[node.name])}
        integers = small_integers(self.exported, held, {name: spec.target for name, spec in specs.items()})
        inputs: list[relax.Var] = []
        parameters: dict[str, relax.Var] = {}
        for node in placeholders:
            spec, value = specs[node.name], node.meta.get("val")
            if not isinstance(spec.arg, TensorArgument):
                continue  # None or a number: the graph has its value in it
            if node in held and node not in integers:
                self.known[node] = self._stored(spec)
                continue
            try:
                shape, dtype = _type_of(value, f"input '{node.name}'" if spec.target is None else f"'{spec.target}'")
            except Unsupported as reason:
                raise ModelError(f"{reason}. Leave it out of the model") from reason
            if spec.kind is InputKind.USER_INPUT:
                self.env[node] = relax.Var(node.name, relax.TensorType(shape, dtype))
                inputs.append(self.env[node])
            else:
                name = self.aliases.get(spec.target, spec.target)
                var = parameters.setdefault(name, relax.Var(name, relax.TensorType(shape, dtype)))
                self.env[node] = var
        return inputs, list(parameters.values())

    def _is_held(self, spec: InputSpec) -> bool:
        """Check for a constant that is no input."""
        is_input = spec.kind is InputKind.USER_INPUT or not isinstance(spec.arg, TensorArgument)
        return not is_input and self._is_constant(spec)

    def _is_constant(self, spec: InputSpec) -> bool:
        """Check for a constant: a lifted tensor, a buffer outside the state, integers, or a tensor without elements."""
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            is_kept = spec.kind is InputKind.PARAMETER or spec.persistent
            return not is_kept or not has_floats(self.exported.state_dict[spec.target])
        if spec.kind is InputKind.CONSTANT_TENSOR:
            return True
        if spec.kind is InputKind.TOKEN:
            raise ModelError("the model checks values while it runs (torch._assert_async, linalg): leave the check out")
        raise ModelError(f"the model holds '{spec.target}', an object that is no tensor: leave it out of forward()")

    def _stored(self, spec: InputSpec) -> torch.Tensor:
        state, constants = self.exported.state_dict, self.exported.constants
        return (state[spec.target] if spec.target in state else constants[spec.target]).detach().cpu()

    def _user_outputs(self) -> list[Any]:
        signature = self.exported.graph_signature
        output = next(node for node in self.exported.graph.nodes if node.op == "output")
        kinds = (OutputKind.USER_OUTPUT, OutputKind.LOSS_OUTPUT)
        results = [
            result
            for result, spec in zip(output.args[0], signature.output_specs, strict=True)
            if spec.kind in kinds and isinstance(spec.arg, TensorArgument)
        ]
        if not results:
            raise ModelError("the model returns no tensor: nothing could be learned from it")
        for number, result in enumerate(results):
            if _is_empty(result.meta["val"]):
                shape = tuple(result.meta["val"].shape)
                raise ModelError(f"output {number} has the empty shape {shape}: nothing could be learned from it")
        return results

    # ---- nodes -------------------------------------------------------------------------------------------------------

    def _translate(self, node: Any) -> None:
        if node.target is operator.getitem:
            self._take_out(node)
        elif not self._fold(node):
            try:
                refuse_randomness(node)
                self._convert(node)
            except (Unsupported, ModelError) as error:
                self._go_on_without(node, str(error))

    def _take_out(self, node: Any) -> None:
        source, index = node.args
        if self._fold_empty(node):
            return
        if source in self.known:
            self.known[node] = self.known[source][index]
            return
        self.env[node] = self.env[source][index]
        if self.env[node] is None:
            self._go_on_without(node, f"{where(source)}: its result {index} is not supported")
        elif isinstance(self.env[node], relax.Var):
            self.names[node.name] = self.env[node].name

    def _fold(self, node: Any) -> bool:
        """Fold a node whose operands are constants, or whose result has no elements."""
        if self._fold_empty(node):
            return True
        if any(source not in self.known for source in node.all_input_nodes):
            return False
        if not isinstance(node.target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded in node.target.tags:
            return False
        args, kwargs = pytree.tree_map(
            lambda arg: self.known[arg] if isinstance(arg, torch.fx.Node) else arg, (node.args, node.kwargs)
        )
        with torch.no_grad():
            self.known[node] = node.target(*args, **kwargs)
        return True

    def _fold_empty(self, node: Any) -> bool:
        value = node.meta.get("val")
        is_empty = isinstance(value, torch.Tensor) and _is_empty(value)
        if is_empty:
            self.known[node] = torch.zeros(value.shape, dtype=value.dtype)
        return is_empty

    def _convert(self, node: Any) -> None:
        values = _results(node.meta["val"])
        types = [_type_of(value, where(node), may_be_empty=len(values) > 1) for value in values]
        site = Site(
            self.builder, tuple(types), value_name(layer_of(node), short_name(node)), self.look_ups, self.stated
        )
        args, kwargs = pytree.tree_map(
            lambda arg: self._value(arg) if isinstance(arg, torch.fx.Node) else arg, (node.args, node.kwargs)
        )
        try:
            converted = convert(node.target, site, args, kwargs)
        except Unsupported as reason:
            raise Unsupported(f"{where(node)} {reason}{WAY_OUT if not has_converter(node.target) else ''}") from None
        except Exception as error:  # TVM's operators check their operands
            raise Unsupported(f"{where(node)} cannot be translated: {first_line(error)}") from error
        results = list(converted) if isinstance(converted, list | tuple) else [converted]
        for result, (shape, dtype) in zip(results, types, strict=True):
            if result is not None and (shape_of(result), dtype_of(result)) != (shape, dtype):
                raise Unsupported(
                    f"{where(node)} was translated to {dtype_of(result)} {shape_of(result)}, and PyTorch says {dtype} "
                    f"{shape}: this is a fault of ours. Please report it with the model"
                )
        self.env[node] = results if isinstance(node.meta["val"], list | tuple) else results[0]
        if isinstance(self.env[node], relax.Var):
            self.names[node.name] = self.env[node].name

    def _value(self, node: Any) -> Any:
        """Return the translation of a node; a folded value becomes a constant, without its broadcast axes."""
        if node not in self.env and node in self.known:
            value = self.known[node]
            if not isinstance(value, torch.Tensor):
                self.env[node] = value
            else:
                what = where(node) if node.op == "call_function" else f"constant '{node.name}'"
                _type_of(value, what, may_be_empty=True)  # a cache that is empty before the first token
                stored = _without_repetition(value)
                constant = relax.const(stored.numpy(), str(stored.dtype).removeprefix("torch."))
                repeated = stored.shape != value.shape
                self.env[node] = self.builder.emit(R.broadcast_to(constant, value.shape)) if repeated else constant
        return self.env[node]

    def _go_on_without(self, node: Any, reason: str) -> None:
        """Record an obstacle, and continue with zeros, to find all obstacles at once."""
        behind = parameter_behind(node, self.exported.graph_signature.inputs_to_parameters)
        self.obstacles.append(Obstacle(layer_of(node), short_name(node), behind, reason))
        zeros = [self._stand_in(value) for value in _results(node.meta.get("val"))]
        self.env[node] = zeros if isinstance(node.meta.get("val"), list | tuple) else zeros[0]

    def _stand_in(self, value: Any) -> Expr | None:
        if not isinstance(value, torch.Tensor) or not all(isinstance(extent, int) for extent in value.shape):
            return None
        dtype = str(value.dtype).removeprefix("torch.")
        dtype = dtype if dtype in DTYPES else "float32"
        return self.builder.emit(R.zeros(tuple(value.shape), dtype)) if value.dim() else relax.const(0, dtype)


WAY_OUT = (
    ". Write this part of the model with other operators, or compute it outside and make its result an input of the "
    "model"
)


def has_floats(tensor: torch.Tensor) -> bool:
    """Check whether a tensor has elements, and they are floating-point numbers."""
    return tensor.is_floating_point() and tensor.numel() > 0


def _results(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _type_of(value: Any, what: str, *, may_be_empty: bool = False) -> tuple[tuple[int, ...], str]:
    """Return shape and element type of a PyTorch value; refuse unsupported ones."""
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        raise Unsupported(f"{what} gives a Python number that depends on the data: keep it a tensor, without item()")
    if not isinstance(value, torch.Tensor):
        raise Unsupported(f"{what} gives {type(value).__name__}, which is no tensor: a program has tensors alone")
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        way_out = "convert the model with model.float() first" if value.dtype.is_floating_point else "use real numbers"
        raise ModelError(f"{what} holds {dtype} numbers, and programs compute in float32: {way_out}")
    if value.layout is not torch.strided:
        raise ModelError(f"{what} is sparse, and programs have dense tensors: use tensor.to_dense() first")
    if not all(isinstance(extent, int) for extent in value.shape):
        raise Unsupported(
            f"{what} has the shape {tuple(value.shape)}, which depends on the data, and programs have fixed shapes: "
            "instead of selecting by a mask multiply by it, or use torch.where"
        )
    if 0 in value.shape and not may_be_empty:
        raise Unsupported(f"{what} has the empty shape {tuple(value.shape)}: there is nothing to compute")
    return tuple(value.shape), dtype


def _is_empty(value: torch.Tensor) -> bool:
    """Check for an empty shape; one that depends on the data is not."""
    return any(isinstance(extent, int) and extent == 0 for extent in value.shape)


def _without_repetition(value: torch.Tensor) -> torch.Tensor:
    """Narrow the broadcast axes (stride 0) of a tensor to one position."""
    for axis, (stride, extent) in enumerate(zip(value.stride(), value.shape, strict=True)):
        if stride == 0 and extent > 1:
            value = value.narrow(axis, 0, 1)
    return value.detach().cpu().contiguous()
