"""What kernels compute: definitions in TVM's tensor expressions and IR, unscheduled."""

from tvm import tirx

SMALL = 16 * 1024
"""Elements below which a kernel runs on one core: waking the others takes longer."""
OPAQUE = 8
"""TVM's pattern of an operator that fuses with nothing (``tvm::relay::OpPatternKind``)."""


def comes_scheduled(func: tirx.PrimFunc) -> bool:
    """Whether a kernel was written as loops: it is then one opaque block."""
    return "tirx.is_scheduled" in func.attrs or func.body.block.name_hint != "root"
