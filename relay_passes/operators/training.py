"""Operators that training needs and Relax lacks. Their definitions are in ``schedules/kernels``."""

from __future__ import annotations

from tvm import relax

from schedules.kernels import bits, elementwise, functions, gamma, indexing, loss, normalization, pooling
from schedules.kernels import conv2d as conv2d_kernels
from schedules.kernels import matmul as matmul_kernels
from schedules.kernels import winograd as winograd_kernels
from schedules.kernels.transpose import transpose

from ..ir import dtype_of, shape_of
from .record import Kind
from .registry import attributes_of, register_operator


def _like_first(call: relax.Call) -> relax.TensorType:
    return call.args[0].ty


def _matmul_type(call: relax.Call) -> relax.TensorType:
    a, b = shape_of(call.args[0]), shape_of(call.args[1])
    rows = a[-1] if call.attrs["transpose_a"] else a[-2]
    columns = b[-2] if call.attrs["transpose_b"] else b[-1]
    batch = matmul_kernels.broadcast_shape(list(a[:-2]), list(b[:-2]))
    return relax.TensorType((*batch, rows, columns), dtype_of(call.args[0]))


def _packed_type(call: relax.Call) -> relax.TensorType:
    *_, count, _, width = shape_of(call.args[1])
    return relax.TensorType((*shape_of(call.args[0])[:-1], count * width), dtype_of(call.args[0]))


def _spatial_type(call: relax.Call, channels: int, dtype: str | None = None) -> relax.TensorType:
    """Return the type of a gradient with respect to an image: [N, size of X, channels]."""
    return relax.TensorType(
        (shape_of(call.args[0])[0], *attributes_of(call)["size"], channels), dtype or dtype_of(call.args[0])
    )


def _conv2d_data_gradient_type(call: relax.Call) -> relax.TensorType:
    attributes = attributes_of(call)
    group_in = shape_of(call.args[1])[3 if attributes.get("transposed", False) else 2]
    return _spatial_type(call, group_in * attributes["groups"])


def _conv2d_weight_gradient_type(call: relax.Call) -> relax.TensorType:
    attributes = attributes_of(call)
    group_in = shape_of(call.args[0])[3] // attributes["groups"]
    return relax.TensorType((*attributes["kernel_size"], group_in, shape_of(call.args[1])[3]), dtype_of(call.args[0]))


def _argmax_type(call: relax.Call) -> relax.TensorType:
    batch, _, _, channels = shape_of(call.args[0])
    attributes = attributes_of(call)
    dtype = pooling.argmax_dtype(attributes["pool_size"])
    return relax.TensorType((batch, *attributes["out_size"], channels), dtype)


def _rows_type(call: relax.Call) -> relax.TensorType:
    return relax.TensorType(shape_of(call.args[0])[:1], dtype_of(call.args[0]))


def _table_type(call: relax.Call) -> relax.TensorType:
    return relax.TensorType((int(call.attrs["rows"]), shape_of(call.args[1])[1]), dtype_of(call.args[1]))


def _gather_type(call: relax.Call) -> relax.TensorType:
    shape, axis = list(shape_of(call.args[0])), int(call.attrs["axis"])
    shape[axis] = shape_of(call.args[1])[0]
    return relax.TensorType(shape, dtype_of(call.args[0]))


def _packed_bits_type(call: relax.Call) -> relax.TensorType:
    return relax.TensorType(bits.packed_shape(shape_of(call.args[0]), int(call.attrs["axis"])), "uint8")


def _unpacked_bits_type(call: relax.Call) -> relax.TensorType:
    shape = list(shape_of(call.args[0]))
    shape[int(call.attrs["axis"])] = int(call.attrs["extent"])
    return relax.TensorType(shape, "bool")


def _winograd_input_type(call: relax.Call) -> relax.TensorType:
    batch, height, width, channels = shape_of(call.args[0])
    high, wide = winograd_kernels.tiles_of_image((height, width), attributes_of(call)["padding"])
    return relax.TensorType((winograd_kernels.TILE**2, batch * high * wide, channels), dtype_of(call.args[0]))


def _winograd_weight_type(call: relax.Call) -> relax.TensorType:
    (*_, inputs, outputs), width = shape_of(call.args[0]), attributes_of(call).get("width")
    matrix = (outputs // width, inputs, width) if width else (inputs, outputs)
    return relax.TensorType((winograd_kernels.TILE**2, *matrix), dtype_of(call.args[0]))


def _winograd_gradient_type(call: relax.Call) -> relax.TensorType:
    batch, height, width, channels = shape_of(call.args[0])
    count = batch * winograd_kernels.tiles(height) * winograd_kernels.tiles(width)
    return relax.TensorType((winograd_kernels.TILE**2, count, channels), dtype_of(call.args[0]))


def _winograd_weight_gradient_type(call: relax.Call) -> relax.TensorType:
    taps = winograd_kernels.TAPS
    return relax.TensorType((taps, taps, *shape_of(call.args[0])[1:]), dtype_of(call.args[0]))


def _winograd_output_type(call: relax.Call) -> relax.TensorType:
    return relax.TensorType(attributes_of(call)["shape"], dtype_of(call.args[0]))


def _across_type(call: relax.Call) -> relax.TensorType:
    *batch, _ = shape_of(call.args[0])
    return relax.TensorType((*batch, shape_of(call.args[1])[-2]), dtype_of(call.args[0]))


def _relayout_type(call: relax.Call) -> relax.TensorType:
    shape = shape_of(call.args[0])
    return relax.TensorType([shape[axis] for axis in attributes_of(call)["axes"]], dtype_of(call.args[0]))


relayout = register_operator("pock.relayout", ["x"], _relayout_type, transpose)
matmul = register_operator("pock.matmul", ["a", "b"], _matmul_type, matmul_kernels.matmul)
packed_matmul = register_operator("pock.packed_matmul", ["a", "strips"], _packed_type, matmul_kernels.packed_matmul)
across_matmul = register_operator("pock.across_matmul", ["a", "strips"], _across_type, matmul_kernels.across_matmul)
conv2d_data_gradient = register_operator(
    "pock.conv2d_data_gradient",
    ["grad", "weight"],
    _conv2d_data_gradient_type,
    conv2d_kernels.conv2d_data_gradient,
    kind=Kind.PER_IMAGE,  # a transposed convolution's forward form, too
)
conv2d_weight_gradient = register_operator(
    "pock.conv2d_weight_gradient", ["x", "grad"], _conv2d_weight_gradient_type, conv2d_kernels.conv2d_weight_gradient
)
max_pool2d_argmax = register_operator(
    "pock.max_pool2d_argmax", ["x"], _argmax_type, pooling.max_pool2d_argmax, kind=Kind.PER_IMAGE
)
max_pool2d_gradient = register_operator(
    "pock.max_pool2d_gradient",
    ["argmax", "grad"],
    lambda call: _spatial_type(call, shape_of(call.args[1])[3], dtype_of(call.args[1])),
    pooling.max_pool2d_gradient,
)
avg_pool2d_gradient = register_operator(
    "pock.avg_pool2d_gradient",
    ["grad"],
    lambda call: _spatial_type(call, shape_of(call.args[0])[3]),
    pooling.avg_pool2d_gradient,
)
normalize = register_operator("pock.normalize", ["x"], _like_first, normalization.normalize)
normalize_gradient = register_operator(
    "pock.normalize_gradient", ["x", "grad"], _like_first, normalization.normalize_gradient
)
cross_entropy = register_operator("pock.cross_entropy", ["logits", "labels"], _rows_type, loss.cross_entropy)
cross_entropy_gradient = register_operator(
    "pock.cross_entropy_gradient", ["logits", "labels", "grad"], _like_first, loss.cross_entropy_gradient
)
pack_bits = register_operator("pock.pack_bits", ["x"], _packed_bits_type, bits.pack_bits)
unpack_bits = register_operator("pock.unpack_bits", ["bits"], _unpacked_bits_type, bits.unpack_bits)
hardtanh = register_operator("pock.hardtanh", ["x"], _like_first, elementwise.hardtanh, kind=Kind.ELEMENTWISE)
elu = register_operator("pock.elu", ["x"], _like_first, elementwise.elu, kind=Kind.ELEMENTWISE)
expm1 = register_operator("pock.expm1", ["x"], _like_first, elementwise.expm1, kind=Kind.ELEMENTWISE)
log1p = register_operator("pock.log1p", ["x"], _like_first, elementwise.log1p, kind=Kind.ELEMENTWISE)
lgamma = register_operator("pock.lgamma", ["x"], _like_first, gamma.lgamma, kind=Kind.ELEMENTWISE)
digamma = register_operator("pock.digamma", ["x"], _like_first, gamma.digamma, kind=Kind.ELEMENTWISE)
root = register_operator("pock.root", ["x"], _like_first, elementwise.root, kind=Kind.ELEMENTWISE)
safe_softmax = register_operator("pock.safe_softmax", ["x"], _like_first, functions.safe_softmax)
embedding_gradient = register_operator(
    "pock.embedding_gradient", ["indices", "grad"], _table_type, indexing.embedding_gradient
)
scatter_rows = register_operator("pock.scatter_rows", ["x", "indices", "values"], _like_first, indexing.scatter_rows)
gather_channels = register_operator("pock.gather_channels", ["x", "channels"], _gather_type, indexing.gather_channels)
winograd_input = register_operator("pock.winograd_input", ["x"], _winograd_input_type, winograd_kernels.transform_input)
winograd_weight = register_operator(
    "pock.winograd_weight", ["weight"], _winograd_weight_type, winograd_kernels.transform_weight
)
winograd_output = register_operator(
    "pock.winograd_output", ["products"], _winograd_output_type, winograd_kernels.transform_output
)
winograd_gradient = register_operator(
    "pock.winograd_gradient", ["grad"], _winograd_gradient_type, winograd_kernels.transform_gradient
)
winograd_weight_gradient = register_operator(
    "pock.winograd_weight_gradient",
    ["products"],
    _winograd_weight_gradient_type,
    winograd_kernels.transform_weight_gradient,
)
