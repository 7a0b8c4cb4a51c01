"""Drops functions that have done their part."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import tvm
from tvm import IRModule

from ..ir import without_functions


@tvm.transform.module_pass(opt_level=0, name="DropFunctions")
@dataclass(frozen=True)
class DropFunctions:
    """Remove functions from the module that no other function calls."""

    names: Collection[str]

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        return without_functions(mod, self.names)
