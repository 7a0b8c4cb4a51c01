"""Chooses the reference that a model is checked against."""

from __future__ import annotations

from typing import Any

from ...device.losses import Loss
from ...frontend import Model
from .measured import Reference


def reference_of(model: Model, trained: list[str], loss: Loss, batch_norm: str, flops: float) -> Reference | None:
    """The reference of a model; None where no framework here runs its source. ``flops`` count a forward pass."""
    source: Any = model.source
    kind = type(source).__module__.split(".")[0]
    if kind == "onnx":
        from .onnx_reference import OnnxReference

        return OnnxReference(source, loss, model.custom_loss, batch_norm)
    if kind == "torch":
        from .torch_reference import TorchReference

        return TorchReference(source, model.aliases, trained, loss, model.custom_loss, batch_norm, flops)
    return None
