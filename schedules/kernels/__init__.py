"""What kernels compute: definitions in TVM's tensor expressions and IR, unscheduled."""

SMALL = 16 * 1024
"""Elements below which a kernel runs on one core: waking the others takes longer."""
OPAQUE = 8
"""TVM's pattern of an operator that fuses with nothing (``tvm::relay::OpPatternKind``)."""
