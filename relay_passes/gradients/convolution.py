"""Convolutions, channels last: the data gradient and the weight gradient are different algorithms with different
names."""

from __future__ import annotations

from typing import Any

from tvm import relax
from tvm.relax import op as R

from ..errors import PassError
from ..ir import Expr, shape_of
from ..ir.trained_part import TrainedPart
from ..operators.registry import attributes_of, plain
from ..operators.training import conv2d_data_gradient, conv2d_weight_gradient, gather_channels
from .registry import Use, gradient


def geometry(call: relax.Call) -> dict[str, Any]:
    """Strides, padding, dilation and groups of a ``relax.nn.conv2d``, which must be channels-last."""
    attrs = call.attrs
    if (attrs.data_layout, attrs.kernel_layout) != ("NHWC", "HWIO"):
        raise PassError(
            f"the gradients of a convolution know one layout, NHWC and HWIO, not {attrs.data_layout} and "
            f"{attrs.kernel_layout}: "
            "run relay_passes.ChannelsLast first"
        )
    return {name: plain(getattr(attrs, name)) for name in ("strides", "padding", "dilation", "groups")}


@gradient("relax.nn.conv2d", 0)
def conv2d_data(use: Use) -> Expr:
    """Y = conv(X, W): dX = conv_transposed(dY, W)."""
    return conv2d_data_gradient(use.grad, use.args[1], **geometry(use.call), size=list(shape_of(use.args[0])[1:3]))


@gradient("relax.nn.conv2d", 1, pieces=True)
def conv2d_weight(use: Use) -> Expr:
    """Y = conv(X, W): dW[r, s, i, o] = sum X[shifted by r, s; i] * dY[o], for the trained input channels only."""
    return _weight_gradient(use.args[0], use.grad, geometry(use.call), shape_of(use.args[1]), use.piece)


@gradient("pock.conv2d_data_gradient", 0)
def transposed_conv2d_data(use: Use) -> Expr:
    """Y = conv_transposed(X, W): dX = conv(dY, W)."""
    attributes = attributes_of(use.call)
    del attributes["size"]
    return R.nn.conv2d(use.grad, use.args[1], **attributes, data_layout="NHWC", kernel_layout="HWIO")


@gradient("pock.conv2d_data_gradient", 1)
def transposed_conv2d_weight(use: Use) -> Expr:
    """Y = conv_transposed(X, W): dW[r, s, i, o] = sum dY[shifted by r, s; i] * X[o]."""
    attributes = attributes_of(use.call)
    del attributes["size"]
    return _weight_gradient(use.grad, use.args[0], attributes, shape_of(use.args[1]), None)


def _weight_gradient(
    x: Expr, grad: Expr, geometry: dict[str, Any], weight: tuple[int, ...], piece: TrainedPart | None
) -> Expr:
    """Build the weight gradient, of the trained part alone where there is one.

    A part along axis 2 of [R, S, I, O] is a set of input channels of each group: only those channels of X are read. In
    a depthwise weight the part lies along axis 3, and is all output channels of some groups.
    """
    kernel_h, kernel_w, group_in, out_channels = weight
    groups = geometry["groups"]
    if piece is not None and piece.axis == 2:
        channels = [group * group_in + index for group in range(groups) for index in piece.indices]
        x = _take_channels(x, channels)
    elif piece is not None and piece.axis == 3 and group_in == 1 and groups > 1:
        multiplier = out_channels // groups
        trained = sorted({index // multiplier for index in piece.indices})
        if len(piece.indices) != len(trained) * multiplier:
            raise PassError("a depthwise weight is trained in whole groups: all output channels of a group or none")
        x, grad = _take_channels(x, trained), _take_channels(grad, list(piece.indices))
        geometry = geometry | {"groups": len(trained)}
    elif piece is not None:
        raise PassError(
            f"a convolution weight is trained in part along its input channels (axis 2), not axis {piece.axis}"
        )
    return conv2d_weight_gradient(x, grad, **geometry, kernel_size=[kernel_h, kernel_w])


def _take_channels(x: Expr, channels: list[int]) -> Expr:
    return gather_channels(x, relax.const(channels, "int32"), axis=3)
