"""Gives the inputs of functions places in the arena."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tvm
from tvm import IRModule

from ..analysis.live_ranges import HELD
from ..canonical.split_batch import CUT
from ..ir import bytes_of, update_function


@tvm.transform.module_pass(opt_level=0, name="HoldInputs")
@dataclass(frozen=True)
class HoldInputs:
    """Give inputs places at the start of the arena, for devices on which each call of an entry point copies them there.

    In, out: dataflow functions of ``call_tir``. An input has the same place in all of them, and needs it from the first
    binding to its last use: :class:`PlanArena` puts temporaries there afterwards. Of ``parts`` micro-batches all but
    the last are followed by others, which read the rest of the inputs.
    """

    functions: Sequence[str]
    inputs: Sequence[str]
    """Names of the parameters."""
    parts: int = 1
    last: str = "train_step"
    """Function that runs the last micro-batch, and only that."""

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        sizes = dict.fromkeys(self.inputs, 0)
        for name in self.functions:
            cut = set(mod[name].attrs.get(CUT, ()))
            for param in mod[name].params:
                if param.name in sizes:
                    sizes[param.name] = bytes_of(param) * (self.parts if param.name in cut else 1)
        for name in self.functions:
            is_followed = self.parts > 1 and name != self.last
            held = [[each, size, is_followed] for each, size in sizes.items()]
            mod = update_function(mod, name, mod[name].with_attr(HELD, held))
        return mod
