"""Checks a compiled program against the framework that its model comes from, before anybody has it."""

from .check import SelfCheck
from .references import reference_of
