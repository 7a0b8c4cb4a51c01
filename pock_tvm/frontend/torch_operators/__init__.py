"""What PyTorch's operators become in Relax, by kind of operator. Importing the package fills the table."""

from . import activations, attention, elementwise, indexing, movement, normalization, pooling, products, reductions
from .registry import Result, Site, Unsupported, convert, has_converter, name_of

__all__ = ["Result", "Site", "Unsupported", "convert", "has_converter", "name_of"]
