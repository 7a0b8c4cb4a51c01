"""Pooling, channels last."""

from __future__ import annotations

from typing import Any

from tvm import relax

from ..errors import PassError
from ..ir import Expr, shape_of
from ..operators.registry import plain
from ..operators.training import avg_pool2d_gradient, max_pool2d_argmax, max_pool2d_gradient
from .registry import Use, flat, gradient

flat("pock.max_pool2d_argmax")


def _window(call: relax.Call) -> dict[str, Any]:
    attrs = call.attrs
    if attrs.layout != "NHWC":
        raise PassError(
            f"the gradients of pooling know one layout, NHWC, not {attrs.layout}: run relay_passes.ChannelsLast first"
        )
    return {name: plain(getattr(attrs, name)) for name in ("pool_size", "strides", "padding", "dilation")}


@gradient("relax.nn.max_pool2d")
def max_pool2d(use: Use) -> Expr:
    """y = max of each window: dx = the sum of dy over the windows whose first maximum is x, as in PyTorch."""
    x, window = use.args[0], _window(use.call)
    argmax = max_pool2d_argmax(x, **window, out_size=list(shape_of(use.result)[1:3]))
    return max_pool2d_gradient(argmax, use.grad, **window, size=list(shape_of(x)[1:3]))


@gradient("relax.nn.avg_pool2d")
def avg_pool2d(use: Use) -> Expr:
    """y = mean of each window: dx = the sum of dy / count over the windows that read x."""
    include = bool(use.call.attrs.count_include_pad)
    return avg_pool2d_gradient(
        use.grad, **_window(use.call), count_include_pad=include, size=list(shape_of(use.args[0])[1:3])
    )
