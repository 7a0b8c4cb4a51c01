"""Converters of PyTorch's operators, by kind. Importing the package fills the registry."""

from . import activations, attention, elementwise, indexing, movement, normalization, pooling, products, reductions
from .registry import Result, Site, Unsupported, convert, has_converter, name_of

__all__ = ["Result", "Site", "Unsupported", "convert", "has_converter", "name_of"]
