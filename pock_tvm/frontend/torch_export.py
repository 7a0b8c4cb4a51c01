"""The front end for ``torch.export``: TVM's importer, with what it needs done before and after."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, ExportGraphSignature, InputKind, TensorArgument
from torch.utils import _pytree as pytree
from tvm import IRModule, relax
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from relay_passes.ir import bindings_of, dtype_of, rewrite, shape_of, update_function

from ..errors import ModelError
from .converters import CONVERTERS, KEPT_WHOLE
from .fold import fold_constants
from .model import Model, TensorSpec, importer_said, in_order_of_use, result_specs

Shapes = Mapping[str, Sequence[int]]


def import_exported_program(exported: ExportedProgram, *, batch: int | None, shapes: Shapes, any_shape: bool) -> Model:
    """Import an ExportedProgram; see :func:`pock_tvm.frontend.load_model`."""
    original = exported
    _refuse_training_mode(exported)
    exported = _bind_dimensions(exported, batch, shapes, any_shape)
    exported = fold_constants(exported.run_decompositions(_decompositions()))
    exported = _buffers_as_parameters(_without_constant_inputs(exported))
    state = {name: tensor.detach().cpu() for name, tensor in original.state_dict.items()}
    aliases = _aliases(state)
    module = _translate(exported, aliases)

    main = module["main"]
    count = len(exported.graph_signature.user_inputs)
    inputs = tuple(TensorSpec(param.name, shape_of(param), dtype_of(param)) for param in main.params[:count])
    parameters = dict.fromkeys(aliases.get(name, name) for name in original.graph_signature.parameters)
    trainable = [name for name in parameters if state[name].is_floating_point()]
    return Model(
        module=module,
        inputs=inputs,
        outputs=result_specs(main, [str(name) for name in exported.graph_signature.user_outputs]),
        weights={name: tensor.numpy() for name, tensor in state.items() if name not in aliases},
        parameters=in_order_of_use(main, trainable),
        requires_grad={name: original.state_dict[name].requires_grad for name in trainable},
        aliases=aliases,
    )


# ---- before TVM's importer -------------------------------------------------------------------------------------------


def _refuse_training_mode(exported: ExportedProgram) -> None:
    """A model exported in training mode has dropout and moving averages in its graph; neither belongs into a
    program."""
    for node in exported.graph.nodes:
        name = getattr(node.target, "__name__", "")
        if (name == "dropout.default" and node.args[2] and node.args[1] > 0) or (
            name == "batch_norm.default" and node.args[5]
        ):
            raise ModelError(
                f"the model was exported in training mode (node '{node.name}' is a {name.split('.')[0]} that is "
                f"training): call model.eval() "
                "before torch.export.export; for batch norm with the statistics of each batch, compile with "
                "batch_norm='batch'"
            )


def _bind_dimensions(exported: ExportedProgram, batch: int | None, shapes: Shapes, any_shape: bool) -> ExportedProgram:
    """Export again with every dynamic dimension bound, which leaves no trace of the symbols in the graph."""
    inputs = {
        spec.arg.name: spec.arg for spec in exported.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT
    }
    unknown = [name for name in shapes if name not in inputs]
    if unknown:
        raise ModelError(
            f"shapes names '{unknown[0]}', which is no input of the model; its inputs are {', '.join(inputs)}"
        )
    nodes = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    bound = _bound_symbols(nodes, inputs, batch, shapes)
    if any_shape:
        ranges = {symbol: max(2, int(allowed.lower)) for symbol, allowed in exported.range_constraints.items()}
        bound = ranges | bound

    values: list[Any] = []
    dynamic = False
    for name, arg in inputs.items():
        if isinstance(arg, ConstantArgument):
            values.append(arg.value)
            continue
        value = nodes[name].meta["val"]
        shape = [_bound_extent(extent, bound, name, axis) for axis, extent in enumerate(value.shape)]
        dynamic |= any(isinstance(extent, torch.SymInt) for extent in value.shape)
        _check_static(name, shape, batch if name == next(iter(inputs)) else None, shapes)
        values.append(torch.zeros(shape, dtype=value.dtype))
    if not dynamic:
        return exported
    args, kwargs = pytree.tree_unflatten(values, exported.call_spec.in_spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(exported.module(check_guards=False), args, kwargs, strict=False)


def _bound_symbols(nodes: dict[str, Any], inputs: dict[str, Any], batch: int | None, shapes: Shapes) -> dict[Any, int]:
    bound: dict[Any, int] = {}
    tensors = [name for name, arg in inputs.items() if isinstance(arg, TensorArgument)]
    wanted: list[tuple[Any, int]] = []
    for name in tensors:
        given = shapes.get(name)
        shape = nodes[name].meta["val"].shape
        if given is not None and len(given) != len(shape):
            raise ModelError(f"shapes gives {len(given)} dimensions for input '{name}', which has {len(shape)}")
        wanted += list(zip(shape, given or [], strict=False))
    if batch is not None and tensors:
        first = nodes[tensors[0]].meta["val"].shape
        wanted += [(first[0], batch)] if len(first) else []
    for extent, value in wanted:
        if isinstance(extent, torch.SymInt):
            symbol = extent.node.expr
            if bound.setdefault(symbol, value) != value:
                raise ModelError(f"dimension {symbol} is bound to both {bound[symbol]} and {value}")
    return bound


def _bound_extent(extent: int | torch.SymInt, bound: dict[Any, int], name: str, axis: int) -> int:
    if not isinstance(extent, torch.SymInt):
        return int(extent)
    value = extent.node.expr.subs(bound)
    if not value.is_number:
        how = "batch=" if axis == 0 else f"shapes={{'{name}': (…)}}"
        raise ModelError(f"dimension {axis} of input '{name}' is dynamic ({extent}): bind it with {how}")
    return int(value)


def _check_static(name: str, shape: list[int], batch: int | None, shapes: Shapes) -> None:
    if batch is not None and shape and shape[0] != batch:
        raise ModelError(
            f"the model was exported with a fixed batch of {shape[0]} (input '{name}'), not {batch}: compile with "
            f"batch={shape[0]}, or "
            "export with a dynamic batch (dynamic_shapes) and bind it at compile time"
        )
    given = shapes.get(name)
    if given is not None and list(given) != shape:
        raise ModelError(f"input '{name}' was exported with the fixed shape {tuple(shape)}, not {tuple(given)}")


def _decompositions() -> dict[Any, Any]:
    table = torch.export.default_decompositions()
    for op in list(table):
        name, _, overload = op.name().removeprefix("aten::").partition(".")
        if name in KEPT_WHOLE and overload != "padding":  # padding by name, "same": becomes numbers
            del table[op]
    return table


def _without_constant_inputs(exported: ExportedProgram) -> ExportedProgram:
    """Drop inputs that are None or a number: the graph already has their values in it."""
    signature = exported.graph_signature
    constant = {spec.arg.name for spec in signature.input_specs if isinstance(spec.arg, ConstantArgument)}
    if not constant:
        return exported
    graph_module = copy.deepcopy(exported.graph_module)
    for node in list(graph_module.graph.nodes):
        if node.op == "placeholder" and node.name in constant:
            graph_module.graph.erase_node(node)
    kept = [spec for spec in signature.input_specs if spec.arg.name not in constant]
    return _with_signature(
        exported, ExportGraphSignature(kept, signature.output_specs), graph_module, exported.state_dict
    )


def _buffers_as_parameters(exported: ExportedProgram) -> ExportedProgram:
    """Make persistent floating-point buffers (running statistics) inputs of the function, as parameters are."""
    specs = []
    state = dict(exported.state_dict)
    for spec in exported.graph_signature.input_specs:
        if spec.kind is InputKind.BUFFER and spec.persistent and state[spec.target].is_floating_point():
            spec = dataclasses.replace(spec, kind=InputKind.PARAMETER, persistent=None)
            state[spec.target] = torch.nn.Parameter(state[spec.target], requires_grad=False)
        specs.append(spec)
    signature = ExportGraphSignature(specs, exported.graph_signature.output_specs)
    return _with_signature(exported, signature, exported.graph_module, state)


def _with_signature(
    exported: ExportedProgram,
    signature: ExportGraphSignature,
    graph_module: torch.fx.GraphModule,
    state: dict[str, Any],
) -> ExportedProgram:
    return ExportedProgram(
        root=graph_module,
        graph=graph_module.graph,
        graph_signature=signature,
        state_dict=state,
        range_constraints=exported.range_constraints,
        module_call_graph=exported.module_call_graph,
        constants=exported.constants,
    )


# ---- TVM's importer, and after ---------------------------------------------------------------------------------------


def _translate(exported: ExportedProgram, aliases: Mapping[str, str]) -> IRModule:
    importer = ExportedProgramImporter()
    try:
        module = importer.from_exported_program(exported, True, True, False, CONVERTERS)
    except Exception as error:
        raise ModelError(f"TVM's importer cannot read this model: {importer_said(error)}") from error
    main = module["main"].without_attr("params")
    names = _node_names(exported, main, importer.env)
    torch_names = {
        spec.arg.name: aliases.get(spec.target, spec.target)
        for spec in exported.graph_signature.input_specs
        if spec.kind is InputKind.PARAMETER
    }
    return update_function(module, "main", _renamed(main, torch_names, names))


def _node_names(exported: ExportedProgram, main: relax.Function, env: dict[Any, Any]) -> dict[relax.Var, str]:
    """Call each value after the module and operator that made it, such as ``blocks.3.conv:conv2d``."""
    made: dict[relax.Var, str] = {}
    for node in exported.graph.nodes:
        value = env.get(node)
        if node.op == "call_function" and isinstance(value, relax.Var):
            stack = node.meta.get("nn_module_stack") or {}
            path = list(stack.values())[-1][0] if stack else ""
            operator = getattr(node.target, "__name__", str(node.target)).split(".")[0]
            made.setdefault(value, f"{path}:{operator}" if path else node.name)
    names: dict[relax.Var, str] = {}
    pending: list[relax.Var] = []
    for binding in bindings_of(main):
        pending.append(binding.var)
        if binding.var in made:  # what was emitted on the way belongs to the same node
            names.update(dict.fromkeys(pending, made[binding.var]))
            pending = []
    return names


def _renamed(func: relax.Function, params: dict[str, str], names: dict[relax.Var, str]) -> relax.Function:
    new: dict[str, relax.Var] = {}
    env = {}
    for param in func.params:
        name = params.get(param.name, param.name)
        env[param] = new.setdefault(name, relax.Var(name, param.ty))

    def rename(builder: relax.BlockBuilder, var: relax.Var, value: relax.Expr) -> relax.Expr:
        return (
            value if isinstance(value, relax.Var | relax.Tuple) or var not in names else builder.emit(value, names[var])
        )

    return rewrite(func, rename, params=list(new.values()), env=env)


def _aliases(state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Further names of tensors that an earlier name has already: tied weights. They train as the one tensor that they
    are."""
    owners: dict[Any, str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in state.items():
        owner = owners.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), name) if tensor.numel() else name
        if owner != name:
            aliases[name] = owner
    return aliases
