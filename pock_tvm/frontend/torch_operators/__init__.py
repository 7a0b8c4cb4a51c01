"""What PyTorch's operators become in Relax, by kind of operator. Importing the package fills the table."""

from . import attention, elementwise, indexing, layers, movement, reductions
from .registry import Result, Site, Unsupported, convert, has_converter, name_of

__all__ = ["Result", "Site", "Unsupported", "convert", "has_converter", "name_of"]
