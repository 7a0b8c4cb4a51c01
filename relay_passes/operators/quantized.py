"""Operators of frozen layers in eight bits. Their definitions are in ``schedules/kernels/quantized.py``."""

from __future__ import annotations

import math

from tvm import relax, te

from schedules.kernels import quantized
from schedules.kernels.conv2d import output_extent

from ..ir import dtype_of, shape_of
from .record import Kind
from .registry import attributes_of, register_operator


def _convolution_type(call: relax.Call) -> relax.TensorType:
    batch, *size, _ = shape_of(call.args[0])
    *taps, _, columns = shape_of(call.args[1])
    given = attributes_of(call)
    top, left, bottom, right = given["padding"]
    axes = zip(size, taps, given["strides"], (top + bottom, left + right), given["dilation"], strict=True)
    return relax.TensorType((batch, *(output_extent(*axis) for axis in axes), columns), "int32")


def _depthwise_type(call: relax.Call) -> relax.TensorType:
    batch, height, width, channels = shape_of(call.args[0])
    given = attributes_of(call)
    top, left, bottom, right = given["padding"]
    sizes = (height, shape_of(call.args[1])[0], top + bottom), (width, given["taps"], left + right)
    extents = (
        output_extent(size, taps, stride, padding, 1)
        for (size, taps, padding), stride in zip(sizes, given["strides"], strict=True)
    )
    return relax.TensorType((batch, *extents, channels), "int32")


def _matmul_type(call: relax.Call) -> relax.TensorType:
    return relax.TensorType((*shape_of(call.args[0])[:-1], shape_of(call.args[1])[-1]), "int32")


def _sum_type(call: relax.Call) -> relax.TensorType:
    batch, *places, channels = shape_of(call.args[0])
    ones = [1] * (len(places) if call.attrs["keepdims"] else 0)
    return relax.TensorType((batch, *ones, channels), "int32")


def _quantized_type(call: relax.Call) -> relax.TensorType:
    return relax.TensorType((*shape_of(call.args[0])[:-1], int(call.attrs["channels"])), "uint8")


def _bytes_type(call: relax.Call) -> relax.TensorType:
    return relax.TensorType(shape_of(call.args[0]), "uint8")


def _float_type(call: relax.Call) -> relax.TensorType:
    return relax.TensorType(shape_of(call.args[0]), "float32")


def _macs(call: relax.Call) -> int:
    """Count for words of four weights, or for a depthwise weight's bytes."""
    weight = call.args[1]
    per_element = 1 if dtype_of(weight) == "int8" else quantized.WORD
    return math.prod(shape_of(call)) * math.prod(shape_of(weight)[:-1]) * per_element


FIXED_POINT = ["bias", "before", "factor"]
"""Vectors by which sums are requantised."""

quantized_conv2d = register_operator(
    "pock.quantized_conv2d",
    ["x", "weight"],
    _convolution_type,
    quantized.quantized_conv2d,
    kind=Kind.PER_IMAGE,
    macs=_macs,
)
quantized_depthwise = register_operator(
    "pock.quantized_depthwise",
    ["x", "weight"],
    _depthwise_type,
    quantized.quantized_depthwise,
    kind=Kind.PER_IMAGE,
    macs=lambda call: math.prod(shape_of(call)) * shape_of(call.args[1])[0] * int(call.attrs["taps"]),
)
quantized_matmul = register_operator(
    "pock.quantized_matmul", ["x", "weight"], _matmul_type, quantized.quantized_matmul, kind=Kind.PER_IMAGE, macs=_macs
)
quantized_sum = register_operator(
    "pock.quantized_sum", ["x"], _sum_type, quantized.quantized_sum, fuses=False, kind=Kind.PER_IMAGE
)
requantize = register_operator("pock.requantize", ["sums", *FIXED_POINT], _bytes_type, quantized.requantize)
requantize_sum = register_operator(
    "pock.requantize_sum", ["sums", *FIXED_POINT, "other"], _bytes_type, quantized.requantize_sum
)
quantize = register_operator("pock.quantize", ["x"], _quantized_type, quantized.quantize, kind=Kind.PER_IMAGE)
quantize_words = register_operator(
    "pock.quantize_words",
    ["x"],
    lambda call: relax.TensorType((*shape_of(call.args[0])[:-1], 1), "int32"),
    quantized.quantize_words,
    kind=Kind.PER_IMAGE,
)
dequantize = register_operator("pock.dequantize", ["q"], _float_type, quantized.dequantize)
dequantize_sums = register_operator(
    "pock.dequantize_sums", ["sums", "bias", "scale"], _float_type, quantized.dequantize_sums
)


def _same(x: te.Tensor, **_scale: float) -> te.Tensor:
    """Return ``x``."""
    return te.compute(x.shape, lambda *index: x(*index), name="same")


stated_scale = register_operator(
    "pock.stated_scale",
    ["x"],
    lambda call: relax.TensorType(shape_of(call.args[0]), dtype_of(call.args[0])),
    _same,
    kind=Kind.ELEMENTWISE,
)
"""``x``, whose ``scale`` and ``zero`` in eight bits the model states."""
