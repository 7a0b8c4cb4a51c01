"""Window geometry of convolutions and poolings: ONNX's padding as widths before and after each axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relay_passes.ir import Expr, shape_of

from .registry import refuse


@dataclass(frozen=True)
class Window:
    """A sliding window over the spatial axes."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    """Padding at the end, enlarged for a last window that reaches beyond it (``ceil_mode``)."""
    declared: tuple[int, ...]
    """Padding at the end as declared by the node."""
    outputs: tuple[int, ...]
    """Number of windows along each axis."""

    @property
    def padding(self) -> list[int]:
        """Padding in TVM's order: all begins, then all ends."""
        return [*self.before, *self.after]


def window_of(
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    auto_pad: str,
    *,
    ceil: bool = False,
) -> Window:
    """Compute the window of a node over images of ``size``.

    A last window that would begin in the padding at the end is dropped, as in PyTorch.
    """
    rank = len(size)
    strides, dilations = tuple(strides or [1] * rank), tuple(dilations or [1] * rank)
    refuse(any(len(values) != rank for values in (kernel, strides, dilations)), f"its window does not have {rank} axes")
    reach = [(extent - 1) * dilation + 1 for extent, dilation in zip(kernel, dilations, strict=True)]
    refuse(auto_pad not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"), f"its attribute 'auto_pad' is '{auto_pad}'")
    if auto_pad.startswith("SAME"):
        refuse(pads and any(pads), "it has both 'pads' and 'auto_pad'")
        before, after = [], []
        for extent, span, stride in zip(size, reach, strides, strict=True):
            total = max((-(-extent // stride) - 1) * stride + span - extent, 0)
            small, large = total // 2, total - total // 2
            before.append(large if auto_pad == "SAME_LOWER" else small)
            after.append(small if auto_pad == "SAME_LOWER" else large)
    else:
        pads = [0] * (2 * rank) if auto_pad == "VALID" or not pads else list(pads)
        refuse(len(pads) != 2 * rank or min(pads) < 0, f"its attribute 'pads' is {pads}")
        before, after = pads[:rank], pads[rank:]
    declared, outputs, ends = list(after), [], []
    for extent, span, stride, begin, end in zip(size, reach, strides, before, after, strict=True):
        room = extent + begin + end - span
        refuse(room < 0, f"its window of {span} does not fit into {extent + begin + end}")
        count = (-(-room // stride) if ceil else room // stride) + 1
        if ceil and (count - 1) * stride >= extent + begin:
            count -= 1
        outputs.append(count)
        ends.append(max((count - 1) * stride + span - extent - begin, end))
    return Window(tuple(kernel), strides, dilations, tuple(before), tuple(ends), tuple(declared), tuple(outputs))


def spatial(x: Expr) -> tuple[int, ...]:
    """Return the extents of the spatial axes."""
    return shape_of(x)[2:]
