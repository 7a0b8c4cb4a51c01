"""Checks a compiled program against its model's own framework, before it is returned."""

from .check import SelfCheck
from .references import reference_of
