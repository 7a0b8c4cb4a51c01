"""Front ends: import an ExportedProgram or an ONNX model as a forward module with PyTorch's parameter names."""

from .load import load_model
from .model import LookUp, Model, TensorSpec

__all__ = ["LookUp", "Model", "TensorSpec", "load_model"]
