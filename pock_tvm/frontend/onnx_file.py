"""The front end for ONNX models; its parts are in :mod:`pock_tvm.frontend.onnx`."""

from __future__ import annotations

import warnings

import onnx
from onnx import inliner, numpy_helper

from relay_passes.analysis.stated_scales import StatedScales
from relay_passes.ir import dtype_of, shape_of

from ..errors import ModelError, PockWarning
from .model import Model, TensorSpec, in_order_of_use, records_of, result_specs
from .onnx.evaluation import reference_outputs
from .onnx.inputs import Shapes, bind_inputs
from .onnx.parameters import restore_parameters
from .onnx.quantization import without_quantization
from .onnx.training_mode import without_training_mode
from .onnx.translation import translate

__all__ = ["import_onnx", "reference_outputs"]

NO_NUMBERS = (onnx.TensorProto.STRING, onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)
"""Types of inputs that no program has."""


def import_onnx(
    model: onnx.ModelProto, *, batch: int | None, shapes: Shapes, any_shape: bool, dropout: bool | None = None
) -> Model:
    """Import an ONNX model; see :func:`pock_tvm.frontend.load_model`.

    Parameters keep their names in the file (PyTorch's, if PyTorch exported it).
    :mod:`pock_tvm.frontend.onnx.parameters` decides which initializers are parameters.
    """
    _check_file(model)
    bound = bind_inputs(model, batch, shapes, any_shape=any_shape)
    if bound.functions:
        bound = inliner.inline_local_functions(bound)
    floats = without_quantization(without_training_mode(bound, dropout))
    bound, parameters = restore_parameters(floats.model)
    lost = ", ".join(parameters.lost)
    if parameters.merged:
        raise ModelError(
            f"the file has no values of their own for {lost}: the exporter merged parameters that were equal when it "
            "ran, and computes once what each of them computed. Export with torch.onnx.export(..., optimize=False), "
            "which keeps them apart"
        )
    if lost:
        warnings.warn(
            f"the file has no values of their own for {lost}: the exporter left them out (a bias of zero) or folded "
            "them, or they are tied to others; unless they are tied, they do not train as in PyTorch. "
            "torch.onnx.export(..., optimize=False) keeps them apart",
            PockWarning,
            stacklevel=2,
        )
    if parameters.folded:
        warnings.warn(
            f"the exporter computed a part of what the model computes from {', '.join(parameters.folded)}, such as the "
            "first step of a recurrent layer: that part does not train as in PyTorch. "
            "torch.onnx.export(..., optimize=False) keeps it in the file",
            PockWarning,
            stacklevel=2,
        )
    module, names = translate(bound, parameters)
    main = module["main"]
    count = len(bound.graph.input)
    arrays = {tensor.name: tensor for tensor in bound.graph.initializer}
    trainable = [param.name for param in main.params[count:] if param.name in parameters.trainable]
    return Model(
        module=module,
        inputs=tuple(TensorSpec(param.name, shape_of(param), dtype_of(param)) for param in main.params[:count]),
        outputs=result_specs(main, [value.name for value in bound.graph.output]),
        parameters=records_of({param.name: numpy_helper.to_array(arrays[param.name]) for param in main.params[count:]}),
        trainable=in_order_of_use(main, trainable),
        requires_grad=dict.fromkeys(trainable, True),
        source=bound,
        stated=StatedScales(
            {names[name]: numbers for name, numbers in floats.values.items() if name in names}, floats.weights
        ),
    )


def _check_file(model: onnx.ModelProto) -> None:
    if model.graph.sparse_initializer:
        name = model.graph.sparse_initializer[0].values.name
        raise ModelError(f"initializer '{name}' is sparse: store it as an ordinary tensor")
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ModelError(
                f"the values of '{tensor.name}' lie in another file: load the model by its path, or with onnx.load"
            )
    if not model.graph.output:
        raise ModelError("the model has no output")
    for value in model.graph.input:
        kind = value.type.tensor_type.elem_type
        if kind in NO_NUMBERS:
            name = onnx.TensorProto.DataType.Name(kind).lower()
            raise ModelError(f"input '{value.name}' is of type {name}: a program takes real numbers and booleans")
