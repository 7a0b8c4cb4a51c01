"""A space, `pock tune --space outer_parallel`: any kernel's outer loops on all cores, its inner loop in vectors.

What is chosen of it compiles with `pock compile --database` while this package is installed.
"""

from __future__ import annotations

from typing import Any

from tvm import s_tir

from schedules.decisions import Choices
from schedules.extents import divisors
from schedules.loops import extent_of, split_by_kind

WIDEST = 64
"""Most elements of a vector."""


def schedule(sch: s_tir.Schedule, choices: Choices, traits: Any) -> None:
    """Ask for each block how many outer loops run in parallel, and how long its vectors are."""
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        spatial, reduced = split_by_kind(sch, block)  # raises `Unsuited` for a block that was scheduled already
        if not spatial:
            continue
        name = sch.get(block).name_hint
        widths = [width for width in divisors(extent_of(sch, spatial[-1])) if width <= WIDEST]
        width = choices.choose(f"{name}.width", widths, 1)
        outer, inner = sch.split(spatial[-1], [None, width])
        sch.reorder(*spatial[:-1], outer, *reduced, inner)
        count = choices.choose(f"{name}.parallel", range(len(spatial) + 1), 0)
        if count:
            sch.parallel(sch.fuse(*[*spatial[:-1], outer][:count]))
        if width > 1:
            sch.vectorize(inner)
        if reduced:
            sch.decompose_reduction(block, reduced[0])
