"""Drops functions that have done their part."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import tvm
from tvm import IRModule


@tvm.transform.module_pass(opt_level=0, name="DropFunctions")
@dataclass(frozen=True)
class DropFunctions:
    """Remove functions from the module that no other function calls."""

    names: Collection[str]

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        kept = {var: func for var, func in mod.functions.items() if var.name_hint not in self.names}
        return IRModule(kept, attrs=mod.attrs)
