"""Copies a function under other names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tvm
from tvm import IRModule
from tvm.relax.utils import copy_with_new_vars

from ..ir import update_function


@tvm.transform.module_pass(opt_level=0, name="CopyFunction")
@dataclass(frozen=True)
class CopyFunction:
    """Add copies of a function to the module, each with variables of its own: what one pass does to a copy leaves the
    others alone."""

    names: Sequence[str]
    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        func = mod[self.function]
        for name in self.names:
            mod = update_function(mod, name, copy_with_new_vars(func).with_attr("global_symbol", name))
        return mod
