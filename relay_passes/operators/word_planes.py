"""Operators of frozen layers over planes of words. Their definitions are in ``schedules/kernels/word_planes.py``."""

from __future__ import annotations

import math

from tvm import relax

from schedules.kernels import word_planes
from schedules.kernels.plane_taps import Window, padded_pixels
from schedules.kernels.quantized import WORD

from ..ir import shape_of
from .record import Kind
from .registry import attributes_of, register_operator


def window_of(call: relax.Call) -> Window:
    """Return the taps of a layer."""
    given = attributes_of(call)
    return Window(*given["size"], *(tuple(given[name]) for name in ("taps", "strides", "padding")))


def _sums_type(call: relax.Call) -> relax.TensorType:
    batch, columns = shape_of(call.args[0])[0], shape_of(call.args[1])[-1]
    return relax.TensorType((batch, columns // WORD, WORD, padded_pixels(*window_of(call).result)), "int32")


def _words_type(call: relax.Call) -> relax.TensorType:
    batch, groups, _, pixels = _sums_type(call).shape
    return relax.TensorType((batch, groups, pixels), "int32")


def _image_type(call: relax.Call) -> relax.TensorType:
    batch, groups, _ = shape_of(call.args[0])
    dtype = "uint8" if "scale" not in attributes_of(call) else "float32"
    return relax.TensorType((batch, *attributes_of(call)["size"], groups * WORD), dtype)


def _planes_type(call: relax.Call) -> relax.TensorType:
    batch, height, width, channels = shape_of(call.args[0])
    return relax.TensorType((batch, -(-channels // WORD), padded_pixels(height, width)), "int32")


def _macs(call: relax.Call) -> int:
    """Count for words of four weights; those of a depthwise layer may hold fewer."""
    given, (batch, *_), weight = attributes_of(call), shape_of(call.args[0]), shape_of(call.args[1])
    weights = math.prod(given["taps"]) * weight[-1] if given["depthwise"] else math.prod(weight) * WORD
    return int(batch * math.prod(window_of(call).result) * weights)


VECTORS = ["bias", "before", "factor"]
planes_sums = register_operator(
    "pock.planes_sums", ["x", "weight"], _sums_type, word_planes.planes_sums, fuses=False, kind=Kind.PER_IMAGE,
    macs=_macs,
)  # fmt: skip
planes_layer = register_operator(
    "pock.planes_layer", ["x", "weight", *VECTORS], _words_type, word_planes.planes_layer, fuses=False,
    kind=Kind.PER_IMAGE, macs=_macs,
)  # fmt: skip
planes_layer_sum = register_operator(
    "pock.planes_layer_sum", ["x", "weight", *VECTORS, "other"], _words_type, word_planes.planes_layer_sum,
    fuses=False, macs=_macs,
)  # fmt: skip
quantize_planes = register_operator(
    "pock.quantize_planes", ["x"], _planes_type, word_planes.quantize_planes, kind=Kind.PER_IMAGE
)
planes_of_bytes = register_operator(
    "pock.planes_of_bytes", ["q"], _planes_type, word_planes.planes_of_bytes, kind=Kind.PER_IMAGE
)
bytes_of_planes = register_operator(
    "pock.bytes_of_planes", ["words"], _image_type, word_planes.bytes_of_planes, kind=Kind.PER_IMAGE
)
dequantize_planes = register_operator(
    "pock.dequantize_planes", ["words"], _image_type, word_planes.dequantize_planes, kind=Kind.PER_IMAGE
)
dequantize_plane_sums = register_operator(
    "pock.dequantize_plane_sums",
    ["sums", "bias", "scale"],
    lambda call: relax.TensorType(
        (shape_of(call.args[0])[0], *attributes_of(call)["size"], *shape_of(call.args[1])), "float32"
    ),
    word_planes.dequantize_plane_sums,
    kind=Kind.PER_IMAGE,
)
