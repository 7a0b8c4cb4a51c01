"""The front end for ``torch.export``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, TensorArgument
from torch.utils import _pytree as pytree

from relay_passes.analysis.stated_scales import StatedScales
from relay_passes.ir import dtype_of, shape_of

from ..errors import ModelError
from .model import Model, TensorSpec, in_order_of_use, records_of, result_specs
from .torch_functions import functions_of
from .torch_graph import prepared, summary
from .torch_precision import converted_types, in_float32
from .torch_quantized import in_float, is_quantized
from .torch_random import with_own_draws
from .torch_translate import Translation, has_floats, translate

Shapes = Mapping[str, Sequence[int]]


def import_exported_program(
    exported: ExportedProgram, *, batch: int | None, shapes: Shapes, any_shape: bool, dropout: bool | None
) -> Model:
    """Import an ExportedProgram; see :func:`pock_tvm.frontend.load_model`."""
    _check_values(exported)
    functions = functions_of(exported)
    hooked = [name for name, tensor in exported.state_dict.items() if tensor._backward_hooks]
    exported, translation, scales, converted = _translated(exported, batch, shapes, any_shape, dropout)
    if translation.obstacles:
        raise ModelError(summary(translation.obstacles), translation.obstacles)
    state = {name: tensor.detach().cpu() for name, tensor in exported.state_dict.items()}
    aliases = _aliases(state)
    main = translation.module["main"]
    count = int(main.attrs["num_input"])
    inputs = tuple(TensorSpec(param.name, shape_of(param), dtype_of(param)) for param in main.params[:count])
    parameters = dict.fromkeys(aliases.get(name, name) for name in exported.graph_signature.parameters)
    trainable = [name for name in parameters if has_floats(state[name])]
    return Model(
        module=translation.module,
        inputs=inputs,
        outputs=result_specs(main, [str(name) for name in exported.graph_signature.user_outputs]),
        parameters=records_of({name: tensor.numpy() for name, tensor in state.items() if name not in aliases}),
        trainable=in_order_of_use(main, trainable),
        requires_grad={name: exported.state_dict[name].requires_grad for name in trainable},
        aliases=aliases,
        mutated=tuple(exported.graph_signature.buffers_to_mutate.values()),
        source=exported,
        look_ups=tuple(translation.look_ups),
        stated=StatedScales(translation.stated, scales),
        values=translation.values,
        converted=tuple(converted),
        functions=tuple(functions),
        hooked=tuple(hooked),
    )


def _check_values(exported: ExportedProgram) -> None:
    """Refuse weights and constants that are shapes alone, as under ``torch.device("meta")`` and a FakeTensorMode."""
    for name, tensor in {**exported.state_dict, **exported.constants}.items():
        if isinstance(tensor, torch.Tensor) and (tensor.is_meta or isinstance(tensor, FakeTensor)):
            raise ModelError(
                f"'{name}' has a shape and no values (device 'meta', or a FakeTensorMode): make the model on a CPU and "
                "load its weights before torch.export.export"
            )


def _translated(
    exported: ExportedProgram, batch: int | None, shapes: Shapes, any_shape: bool, dropout: bool | None
) -> tuple[ExportedProgram, Translation, dict[str, np.ndarray], list[str]]:
    """Bind every dimension, and translate; return the scales of a quantised model's weights, too, and the types of
    numbers that were converted to float32."""
    exported = _bind_dimensions(exported, batch, shapes, any_shape)
    types = converted_types(exported)
    if types:
        exported = in_float32(exported, types, _aliases(exported.state_dict))
    exported = with_own_draws(exported, dropout)
    scales: dict[str, np.ndarray] = {}
    if is_quantized(exported):
        exported, scales = in_float(exported)
    translation = translate(prepared(exported), _aliases(exported.state_dict))
    return exported, translation, scales, [str(dtype).removeprefix("torch.") for dtype in types]


# ---- dimensions ------------------------------------------------------------------------------------------------------


def _bind_dimensions(exported: ExportedProgram, batch: int | None, shapes: Shapes, any_shape: bool) -> ExportedProgram:
    """Bind every dynamic dimension by exporting again, which removes all symbols from the graph."""
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
        _check_ranges(name, shape, value.shape, exported.range_constraints)
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


def _check_ranges(
    name: str, shape: list[int], extents: Sequence[int | torch.SymInt], ranges: Mapping[Any, Any]
) -> None:
    """Refuse extents outside of what the program was exported for. A lower limit of two is PyTorch's own, and not the
    model's: one is taken, too."""
    for axis, (extent, symbol) in enumerate(zip(shape, extents, strict=True)):
        allowed = ranges.get(symbol.node.expr) if isinstance(symbol, torch.SymInt) else None
        if allowed is None:
            continue
        is_large, is_small = extent > allowed.upper, extent < allowed.lower and allowed.lower > 2
        if is_large or is_small:
            limit = f"at most {allowed.upper}" if is_large else f"at least {allowed.lower}"
            raise ModelError(
                f"dimension {axis} of input '{name}' was exported for {limit}, not {extent}: bind another size, or "
                "export with another range (dynamic_shapes)"
            )


def _aliases(state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Map the further names of each tied weight to the first one; the weight is trained as one tensor."""
    owners: dict[Any, str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in state.items():
        owner = owners.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), name) if tensor.numel() else name
        if owner != name:
            aliases[name] = owner
    return aliases
