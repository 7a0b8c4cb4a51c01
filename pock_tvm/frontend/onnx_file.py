"""The front end for ONNX: TVM's importer, with parameters told apart from constants."""

from __future__ import annotations

import ast
import contextlib
import io
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from tvm import IRModule, relax, topi
from tvm.relax import op as R
from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter

from relay_passes.ir import dtype_of, shape_of

from ..errors import ModelError
from ..silence import silenced
from .model import Model, TensorSpec, importer_said, in_order_of_use, result_specs

Shapes = Mapping[str, Sequence[int]]
ANY_EXTENT = 2


def import_onnx(model: onnx.ModelProto, *, batch: int | None, shapes: Shapes, any_shape: bool) -> Model:
    """Import an ONNX model; see :func:`pock_tvm.frontend.load_model`.

    Floating-point initializers are parameters under their names in the file (PyTorch's, where PyTorch exported it),
    except single numbers and the running statistics of batch norms.
    """
    model = _with_names(model)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    statistics = {name for node in model.graph.node if node.op_type == "BatchNormalization" for name in node.input[3:5]}
    learned = {name for name, array in arrays.items() if array.dtype.kind == "f" and (array.size > 1 or "." in name)}
    bound = _bound_inputs(model, set(arrays), batch, shapes, any_shape)
    main = _translate(_with_constants(model, set(arrays) - learned), bound)["main"]
    main = main.without_attr("params")
    inputs = tuple(TensorSpec(param.name, shape_of(param), dtype_of(param)) for param in main.params[: len(bound)])
    trainable = [param.name for param in main.params if param.name in learned - statistics]
    return Model(
        module=IRModule({"main": main}),
        inputs=inputs,
        outputs=result_specs(main, [value.name for value in model.graph.output]),
        weights={param.name: arrays[param.name] for param in main.params if param.name in learned},
        parameters=in_order_of_use(main, trainable),
        requires_grad=dict.fromkeys(trainable, True),
        source=model,
    )


def _bound_inputs(
    model: onnx.ModelProto, initializers: set[str], batch: int | None, shapes: Shapes, any_shape: bool
) -> dict[str, list[int]]:
    """The shape of every input, its dynamic dimensions bound by name and by the batch."""
    values = [value for value in model.graph.input if value.name not in initializers]
    unknown = [name for name in shapes if name not in {value.name for value in values}]
    if unknown:
        names = ", ".join(value.name for value in values)
        raise ModelError(f"shapes names '{unknown[0]}', which is no input of the model; its inputs are {names}")
    symbols: dict[str, int] = {}
    bound: dict[str, list[int]] = {}
    for number, value in enumerate(values):
        extents: list[int] = []
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            given = shapes[value.name][axis] if value.name in shapes else batch if number == axis == 0 else None
            fixed = dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
            if fixed is not None and given is not None and given != fixed:
                raise ModelError(f"dimension {axis} of input '{value.name}' is {fixed} in the model, not {given}")
            extent = fixed if fixed is not None else given if given is not None else symbols.get(dim.dim_param)
            if extent is None and any_shape:
                extent = ANY_EXTENT
            if extent is None:
                how = "batch=" if number == axis == 0 else f"shapes={{'{value.name}': (…)}}"
                raise ModelError(f"dimension {axis} of input '{value.name}' is dynamic: bind it with {how}")
            if dim.dim_param:
                symbols.setdefault(dim.dim_param, extent)
            extents.append(extent)
        bound[value.name] = extents
    return bound


def _with_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the weights of linear layers under PyTorch's names and in PyTorch's layout again.

    PyTorch's exporters transpose them and number them (``val_56``, ``onnx::MatMul_12``), but note with each node in
    which module it stands.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    initializers = {tensor.name: tensor for tensor in copy.graph.initializer}
    readers = Counter(name for node in copy.graph.node for name in node.input)
    transposes = []
    for node in copy.graph.node:
        weight = initializers.get(node.input[1]) if node.op_type == "MatMul" else None
        module = _module_of(node)
        if weight is None or "." in weight.name or len(weight.dims) != 2 or not module or readers[weight.name] > 1:
            continue
        name, array = f"{module}.weight", numpy_helper.to_array(weight)
        if name in initializers:
            continue
        transposes.append(onnx.helper.make_node("Transpose", [name], [weight.name], perm=[1, 0]))
        weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array.T), name))
        initializers[name] = weight
    nodes = [*transposes, *copy.graph.node]
    copy.graph.ClearField("node")
    copy.graph.node.extend(nodes)
    return copy


def _module_of(node: onnx.NodeProto) -> str:
    """The qualified name of the module that a node stands in, as PyTorch's exporters leave it: metadata, or the node's
    name."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            scopes = [scope for scope in ast.literal_eval(entry.value) if scope]
            return scopes[-2] if len(scopes) > 1 else ""
    parts = node.name.strip("/").split("/")[:-1] if node.name.startswith("/") else []
    return ".".join(parts)


def _with_constants(model: onnx.ModelProto, names: set[str]) -> onnx.ModelProto:
    """The model with some initializers turned into constant nodes, which TVM's importer folds."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = [tensor for tensor in copy.graph.initializer if tensor.name in names]
    nodes = [onnx.helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in constants]
    kept = [tensor for tensor in copy.graph.initializer if tensor.name not in names]
    inputs = [value for value in copy.graph.input if value.name not in names]
    rest = list(copy.graph.node)
    for field, content in (("initializer", kept), ("input", inputs), ("node", [*nodes, *rest])):
        copy.graph.ClearField(field)
        getattr(copy.graph, field).extend(content)
    return copy


class _OperatorBuilder(relax.BlockBuilder):
    """Emits operators where TVM's importer would emit loops, which have no gradient."""

    def emit_te(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> relax.Var:
        operator = _OPERATORS.get(func)
        return self.emit(operator(*args, **kwargs)) if operator else super().emit_te(func, *args, **kwargs)


def _like(x: relax.Expr, bound: Any) -> relax.Expr:
    return bound if isinstance(bound, relax.Expr) else relax.const(bound, dtype_of(x))


_OPERATORS: dict[Any, Callable[..., relax.Expr]] = {
    topi.maximum: lambda x, bound: R.maximum(x, _like(x, bound)),
    topi.minimum: lambda x, bound: R.minimum(x, _like(x, bound)),
    topi.nn.pad: lambda x, before, after, value=0.0: R.nn.pad(
        x, [width for pair in zip(before, after, strict=True) for width in pair], "constant", float(value)
    ),
    topi.tile: lambda x, repeats: R.tile(x, repeats),
}


def _translate(model: onnx.ModelProto, shapes: dict[str, list[int]]) -> IRModule:
    importer = ONNXGraphImporter(shapes, "float32", keep_params_in_input=True, sanitize=False)
    importer.bb = _OperatorBuilder()
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    try:
        # TVM's C++ warns on standard error of every constant look-up that it folds; errors come as exceptions.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), silenced(2):
            warnings.simplefilter("ignore")
            return relax.transform.FoldConstant()(importer.from_onnx(model.graph, opset))
    except Exception as error:
        raise ModelError(f"TVM's ONNX importer cannot read this model: {importer_said(error)}") from error
