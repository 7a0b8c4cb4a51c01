"""Leaves to the compiler what an ONNX file says of training mode: batch norms and dropout.

PyTorch's older exporter writes a model in training mode on request (``training=torch.onnx.TrainingMode.TRAINING``), as
ONNX Runtime's training wants it; the newer one keeps the dropout of a model that is in training mode.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ...errors import ModelError

ON = "pock.dropout_is_on"
"""Name of the initializer that sets ``training_mode`` of dropouts."""
FIRST_WITH_MODE = 12
"""First operator set in which a dropout may be on."""


def without_training_mode(model: onnx.ModelProto, dropout: bool | None) -> onnx.ModelProto:
    """Copy a model for training by a program.

    Batch norms of each batch's statistics become those of inference: ``compile(batch_norm=)`` chooses the statistics.
    Each dropout is numbered by its attribute ``seed``, and turned on or off where ``dropout`` says so.

    Raises
    ------
    ModelError
        ``dropout`` is True, and the model has none.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    opset = max((entry.version for entry in copy.opset_import if entry.domain in ("", "ai.onnx")), default=1)
    dropouts = [node for node in graph.node if node.op_type == "Dropout"] if opset >= FIRST_WITH_MODE else []
    if dropout and not dropouts:
        raise ModelError(
            "dropout=True needs a model that has dropout, and exporters take it out in eval mode: export with "
            "torch.onnx.export(..., training=torch.onnx.TrainingMode.TRAINING, dynamo=False), or take a "
            "torch.export.ExportedProgram"
        )
    for node in graph.node:
        if node.op_type == "BatchNormalization" and not read & set(node.output[1:]):
            del node.output[1:]
            _set(node, "training_mode", None)
    for stream, node in enumerate(dropouts):
        _set(node, "seed", stream)
        if dropout is not None:
            inputs = [*node.input, ""][:2]
            del node.input[:]
            node.input.extend([*inputs, ON])
    if dropouts and dropout is not None:
        graph.initializer.append(numpy_helper.from_array(np.array(dropout), ON))
    return copy


def _set(node: onnx.NodeProto, name: str, value: int | None) -> None:
    """Set an attribute; None takes it away."""
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend(kept if value is None else [*kept, helper.make_attribute(name, value)])
