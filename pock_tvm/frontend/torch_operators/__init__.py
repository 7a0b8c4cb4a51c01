"""Converters of PyTorch's operators, by kind. Importing the package fills the registry."""

from . import (
    activations,
    attention,
    bags,
    comparisons,
    distances,
    elementwise,
    indexing,
    movement,
    normalization,
    order,
    pooling,
    products,
    random,
    reductions,
    resampling,
    writing,
)
from .registry import Result, Site, Unsupported, convert, has_converter, name_of

__all__ = ["Result", "Site", "Unsupported", "convert", "has_converter", "name_of"]
