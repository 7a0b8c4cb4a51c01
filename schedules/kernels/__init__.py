"""Kernel definitions in TVM's tensor expressions and IR, unscheduled."""

from tvm import tirx

SMALL = 16 * 1024
"""Most elements of a kernel that runs on one core: waking the other cores would take longer."""
OPAQUE = 8
"""TVM's pattern for operators that do not fuse (``tvm::relay::OpPatternKind``)."""
GUARDED = "pock.guarded"
"""Attribute of kernels that write in place, on targets whose calls cannot end a step: such a kernel does nothing once a
check has failed."""
EXACT = "pock.exact"
"""Attribute of blocks whose results stay in the type of sums, where others are stored in 16 bits."""

PORTABLE = "pock.portable"
"""Attribute of kernels that become source code: it names no instructions of a processor."""


def comes_scheduled(func: tirx.PrimFunc) -> bool:
    """Return whether a kernel was written as loops: one opaque block. Its parallel loops are over independent tasks,
    which a target gives to its workers."""
    return "tirx.is_scheduled" in func.attrs or func.body.block.name_hint != "root"
