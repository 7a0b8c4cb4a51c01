"""ONNX's reference evaluator as a reference for the forward pass."""

from __future__ import annotations

import numpy as np
import onnx

from ...device.losses import Loss
from ...frontend.custom_loss import CustomLoss
from ...frontend.draws import DRAWS
from ...frontend.onnx_file import reference_outputs
from .measured import Batch, Measured, Weights


class OnnxReference:
    """An ONNX model, evaluated with given weights. It has no gradients and no statistics."""

    name = f"onnx {onnx.__version__}"
    gradients_are_derivatives = False

    def __init__(self, model: onnx.ModelProto, loss: Loss, custom: CustomLoss | None, batch_norm: str) -> None:
        self._model = model
        self._loss = loss
        self._custom = custom
        self._batch_norm = batch_norm
        self._draws = any(node.op_type == "Dropout" and len(node.input) > 2 for node in model.graph.node)

    def measure(self, weights: Weights, batches: list[Batch], *, precise: bool = False) -> Measured:
        """Compute outputs and, where training normalises as inference does, losses."""
        is_frozen = self._batch_norm == "frozen"
        results = [self._outputs(weights, batch, precise) for batch in (batches if is_frozen else batches[:1])]
        trained = results if is_frozen else []
        if is_frozen and self._draws:
            trained = [self._outputs(weights, batch, precise, step) for step, batch in enumerate(batches)]
        losses = [self._loss_of(outputs, batch) for outputs, batch in zip(trained, batches, strict=False)]
        return Measured(tuple(results[0]), tuple(losses), {}, None)

    def random_layer(self, weights: Weights, batch: Batch) -> str | None:
        """The first output that differs in a second run."""
        first, second = (self._outputs(weights, batch, precise=False) for _ in range(2))
        for value, one, other in zip(self._model.graph.output, first, second, strict=True):
            if not np.array_equal(one, other, equal_nan=one.dtype.kind == "f"):
                return f"'{value.name}'"
        return None

    def layers(self, _weights: Weights, _batch: Batch, *, precise: bool = False) -> dict[str, np.ndarray]:
        """An empty dictionary: nodes have no layers."""
        return {}

    def _outputs(self, weights: Weights, batch: Batch, precise: bool, step: int | None = None) -> list[np.ndarray]:
        """Outputs of inference, or those of a step, which drops values."""
        DRAWS.training, DRAWS.step = step is not None, step or 0
        feeds = {**weights, **batch.inputs}
        if not precise:
            return reference_outputs(self._model, feeds)
        wide = {name: array.astype("float64") if array.dtype.kind == "f" else array for name, array in feeds.items()}
        try:
            return reference_outputs(self._model, wide)
        except Exception as error:  # its Python code does not expect float64 everywhere
            raise NotImplementedError(str(error)) from error

    def _loss_of(self, outputs: list[np.ndarray], batch: Batch) -> float:
        if self._custom is not None:
            return self._custom.value(self._model, outputs, batch.target)
        target = np.zeros(0) if batch.target is None else np.asarray(batch.target)
        total, count, _ = self._loss.measure(np.asarray(outputs[self._loss.output]), target)
        return total / count
