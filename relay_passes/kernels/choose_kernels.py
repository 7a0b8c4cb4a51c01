"""Lowers operators to calls of kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import IRModule, relax, te, tirx, topi

from schedules.extents import parts
from schedules.kernels import OPAQUE, SMALL, bits, functions, indexing, reduction
from schedules.kernels import conv2d as conv2d_kernels
from schedules.kernels import matmul as matmul_kernels
from schedules.kernels.transpose import transpose
from schedules.target import Target

from ..errors import Obstacle, PassError
from ..ir import (
    CALLS,
    Expr,
    bindings_of,
    bytes_of,
    dtype_of,
    first_line,
    op_name,
    rewrite,
    shape_of,
    slice_bounds,
    substitute,
    used_vars,
)
from ..ir.places import places_of
from ..operators import aliases, attention, training  # noqa: F401 - their records
from ..operators.record import record_of
from ..operators.registry import attributes_of, plain
from . import concatenate, not_finite, quantized_products, sorting  # noqa: F401 - their kernels
from .legalization import (
    OUT_ELEMENTWISE_FUSABLE,
    Legalize,
    call_kernel,
    legalizations,
    legalizes,
    legalizes_for_target,
)
from .lift_frozen import EACH_STEP


@tvm.transform.module_pass(opt_level=0, name="ChooseKernels")
@dataclass(frozen=True)
class ChooseKernels:
    """Lower every operator of a function to ``call_tir`` of the kernels that compute it.

    In: functions of Relax and ``pock.*`` operators. Out: functions of ``call_tir``; equal kernels share one PrimFunc.
    Products, reductions, look-ups and exponentials get the kernels of ``schedules/kernels``, the rest TVM's own.
    Transposing, padding or splitting an operand of a product is a separate kernel: work on frozen weights can then be
    hoisted, and the memory planner sees the other results.
    """

    functions: Sequence[str]
    target: Target

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        try:
            chosen = _legalized(mod, self.target)
            why = next(filter(None, (_left_over(chosen, name) for name in self.functions)), "")
        except Exception as error:  # TVM's message does not name the layer
            why = first_line(error)
        if why:
            found = without_kernel([mod[name] for name in self.functions], self.target)
            raise PassError(str(found[0]) if found else f"kernels cannot be chosen: {why}")
        return chosen


def without_kernel(functions: Iterable[relax.Function], target: Target) -> list[Obstacle]:
    """List the operators that no kernel computes. Equal calls (operator, attributes, types) are reported once."""
    known: set[tuple] = set()
    found = []
    for func in functions:
        places = places_of(func)
        for binding in bindings_of(func):
            value = binding.value
            if not op_name(value).startswith(("relax.", "pock.")) or op_name(value) in CALLS:
                continue
            key = (op_name(value), str(value.attrs), *(str(arg.ty) for arg in value.args))
            if key in known:
                continue
            known.add(key)
            why = _no_kernel(value, target)
            if why:
                place = places[binding.var]
                reason = f"{place.described} has no kernel: {why}"
                freeze = "Freeze everything that comes before this operator, or write" if place.of_gradient else "Write"
                found.append(Obstacle(place.layer, place.operator, "", reason, f"{freeze} the model without it"))
    return found


def _no_kernel(value: relax.Call, target: Target) -> str:
    """Return why no kernel computes a call, or an empty string if one does."""
    env = {var: relax.Var(f"x{number}", var.ty) for number, var in enumerate(dict.fromkeys(used_vars(value)))}
    alone = relax.DataflowVar("alone", value.ty)
    block = relax.DataflowBlock([relax.VarBinding(alone, substitute(value, env))])
    shell = relax.Function(list(env.values()), relax.SeqExpr([block], alone), value.ty)
    try:
        mod = _legalized(IRModule({"main": rewrite(shell).with_attr("global_symbol", "main")}), target)
    except Exception as error:
        return first_line(error)
    return _left_over(mod, "main")


def _legalized(mod: IRModule, target: Target) -> IRModule:
    return relax.transform.LegalizeOps(legalizations(target))(mod)


def _left_over(mod: IRModule, name: str) -> str:
    """Return why the first call without a usable kernel has none, or an empty string if every call has one."""
    for binding in bindings_of(mod[name]):
        value = binding.value
        operator = op_name(value)
        if operator in CALLS:
            kernel = mod[value.args[0].name_hint]
            loops = not all(isinstance(buffer.elem_offset, tirx.IntImm) for buffer in kernel.params)  # written by hand
            if loops and "call_packed" in kernel.script():
                return "TVM's calls a library that no program brings along"
        elif operator.startswith(("relax.", "pock.")) and not record_of(operator).is_alias:
            return "TVM has none for this target"
    return ""


ELEMENTWISE = 0
"""``OpPatternKind`` of operators that may be fused into a product's epilogue."""


REDUCTION = 3
"""``OpPatternKind`` of reductions, which fuse with what computes their operand. TVM does not see that a sum of rows in
parts is one."""


INJECTIVE = 2
"""``OpPatternKind`` of operators that move elements. TVM classifies padding at the end and slicing from the start as
element-wise, since the indices match. Fused into a product, they would leave elements of the result unwritten."""


def _product(
    builder: relax.BlockBuilder,
    kernel: Callable[..., Any],
    *args: Expr,
    pattern: int = OUT_ELEMENTWISE_FUSABLE,
    **options: Any,
) -> relax.Call:
    attrs = {"op_pattern": pattern}
    return builder.call_te(kernel, *args, primfunc_name_hint=kernel.__name__, primfunc_attrs=attrs, **options)


def _rounded_product(
    target: Target, builder: relax.BlockBuilder, kernel: Callable[..., Any], call: relax.Call
) -> relax.Call:
    """Lower a product that computes rows to the end of the last register tile."""
    *_, rows, columns = shape_of(call)
    return _product(builder, kernel, *call.args, computed_rows=target.layouts.rounded_rows(rows, columns))


def _cropped_product(
    builder: relax.BlockBuilder, shape: Sequence[int], kernel: Callable[..., Any], *args: Expr, **options: Any
) -> relax.Call:
    """Crop a product that is computed larger than its result to ``shape``. Consumers fuse with the crop, because
    register tiles extend past the result."""
    product = _product(builder, kernel, *args, pattern=OPAQUE, **options)
    return call_kernel(builder, indexing.crop, builder.emit(product), shape=shape)


def _moved(builder: relax.BlockBuilder, kernel: Callable[..., Any], *args: Expr, **options: Any) -> relax.Call:
    """Emit a kernel that moves elements, marked ``INJECTIVE``."""
    return _product(builder, kernel, *args, pattern=INJECTIVE, **options)


# ---- convolutions ----------------------------------------------------------------------------------------------------


@legalizes_for_target("relax.nn.conv2d")
def _conv2d(target: Target, builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    attrs = call.attrs
    if (attrs.data_layout, attrs.kernel_layout) != ("NHWC", "HWIO"):
        return relax.transform.legalize_ops.nn._nn_conv2d(builder, call)
    geometry: dict[str, Any] = {
        name: plain(getattr(attrs, name)) for name in ("strides", "padding", "dilation", "groups")
    }
    x, weight = call.args
    is_grouped = geometry["groups"] not in (1, shape_of(x)[3])
    if is_grouped and not target.layouts.masks_edges:  # no schedule of these pads inside the loops
        x, geometry["padding"] = _padded(builder, x, geometry["padding"]), (0, 0, 0, 0)
    return _product(builder, conv2d_kernels.conv2d, x, weight, **geometry)


@legalizes_for_target("pock.conv2d_data_gradient")
def _conv2d_data_gradient(target: Target, builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower a data gradient. If not depthwise, it reads the weight transposed, along its input channels. All phases of
    a stride compute equally many rows and columns: the image is rounded up to a multiple of the stride, then cropped.
    Neither is done where a target's products read across, and mask edges."""
    grad, weight = call.args
    attributes = attributes_of(call)
    steps = (1, 1) if target.layouts.masks_edges else attributes["strides"]
    whole = [math.ceil(extent / step) * step for extent, step in zip(attributes["size"], steps, strict=True)]
    attributes["size"] = whole
    is_straight = attributes.get("transposed", False) or attributes.get("across", False)
    is_depthwise = attributes["groups"] > 1 and shape_of(weight)[2] == 1
    if not is_depthwise and not is_straight and not target.layouts.reads_across:
        if attributes["groups"] == 1:
            turned = _permute_dims(target, builder, relax.op.permute_dims(weight, (0, 1, 3, 2)))
        else:
            turned = _moved(builder, conv2d_kernels.turned, weight, groups=attributes["groups"])
        weight, attributes["transposed"] = builder.emit(turned), True
    kernel, shape = conv2d_kernels.conv2d_data_gradient, shape_of(call)
    if list(shape[1:3]) == whole:
        return _product(builder, kernel, grad, weight, **attributes)
    return _cropped_product(builder, shape, kernel, grad, weight, **attributes)


@legalizes_for_target("pock.conv2d_weight_gradient")
def _conv2d_weight_gradient(target: Target, builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Split the reduction over pixels into partial sums that run in parallel. Done where the sums are small beside X
    and the split is needed to occupy all cores or to read X from memory only once, unless the target does. If dW has
    few output channels, its transpose is computed: vectors run along the input channels."""
    x, grad = call.args
    attributes, result = attributes_of(call), shape_of(call)
    if target.layouts.masks_edges:
        return _product(builder, conv2d_kernels.conv2d_weight_gradient, x, grad, **attributes)
    batch, height, _, _ = shape_of(grad)
    *taps, group_in, out_channels = result
    padding, groups = attributes["padding"], attributes["groups"]
    is_depthwise = groups > 1 and group_in == 1
    tiles = math.ceil(out_channels / 32) if is_depthwise else math.prod(taps) * group_in * out_channels / 256
    most = math.prod(shape_of(x)) // math.prod(result)
    needs_parts = any(padding) and not is_depthwise
    is_large = bytes_of(x) + bytes_of(grad) > target.traits.cores * target.traits.cache_bytes
    want = 4 * target.traits.cores if needs_parts or is_large else math.ceil(4 * target.traits.cores / tiles)
    want = max(want, min(_parts_of_slices(target, x, grad), most // PIXELS_OF_PART))
    chunks = parts((batch, height), min(want, most)) if most > 1 else (1, 1)
    if needs_parts and (chunks == (1, 1) or groups > 1):
        x, attributes["padding"] = _padded(builder, x, padding), (0, 0, 0, 0)
    is_short = target.layouts.padded_columns(out_channels) != out_channels or (is_large and out_channels <= FEW_OUTPUTS)
    if groups == 1 and is_short and out_channels < group_in == target.layouts.padded_columns(group_in):
        attributes["turned"] = True
    if chunks != (1, 1):
        attributes["chunks"] = chunks
    sums = _product(builder, conv2d_kernels.conv2d_weight_gradient, x, grad, **attributes)
    if chunks != (1, 1):
        sums = call_kernel(builder, topi.sum, builder.emit(sums), axis=[0, 1])
    if "turned" not in attributes:
        return sums
    return _permute_dims(target, builder, relax.op.permute_dims(builder.emit(sums), (0, 1, 3, 2)))


def _parts_of_slices(target: Target, *operands: Expr) -> int:
    """Return how many parts of a sum over a batch occupy all cores if large operands come one sample after the other
    (:class:`SliceKernels`)."""
    is_large = not target.is_gpu and max(map(bytes_of, operands)) > target.traits.cached_bytes
    return target.traits.cores * shape_of(operands[0])[0] if is_large else 0


PIXELS_OF_PART = 16
"""Fewest elements of X for one of the partial sums of a weight gradient that more than occupy the cores: these are
written and read again."""
FEW_OUTPUTS = 48
"""Most output channels of a weight gradient that is computed transposed because X is large. From measurements on x86 at
batch 8: 1.7 times as fast for 144 to 32 channels, 1.0 times for 384 to 64."""


def _padded(builder: relax.BlockBuilder, x: Expr, padding: Sequence[int]) -> Expr:
    return builder.emit(_moved(builder, conv2d_kernels.pad_spatial, x, padding=padding)) if any(padding) else x


# ---- matrix products and sums ----------------------------------------------------------------------------------------


@legalizes_for_target("pock.matmul")
def _matmul(target: Target, builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Compute columns to the end of a vector, where the target likes that, and rows to the end of a register tile."""
    a, b = call.args
    transposes = {name: bool(call.attrs[name]) for name in ("transpose_a", "transpose_b")}
    *batch, rows, columns = shape_of(call)
    height = math.prod([*batch, rows]) // math.prod(shape_of(b)[:-2])
    whole = columns if transposes["transpose_b"] else target.layouts.computed_columns(height, columns)
    computed = {"computed_rows": target.layouts.rounded_rows(rows, whole), "computed_columns": whole}
    return _product(builder, matmul_kernels.matmul, a, b, **transposes, **computed)


@legalizes_for_target("pock.packed_matmul")
def _packed_matmul(target: Target, builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    return _rounded_product(target, builder, matmul_kernels.packed_matmul, call)


@legalizes_for_target("pock.across_matmul")
def _across_matmul(target: Target, builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    return _rounded_product(target, builder, matmul_kernels.across_matmul, call)


@legalizes("pock.unpack_bits")
def _unpack_bits(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Mark the kernel element-wise, so that it fuses with the product whose results it masks."""
    return _product(builder, bits.unpack_bits, *call.args, pattern=ELEMENTWISE, **attributes_of(call))


@legalizes_for_target("relax.sum")
def _sum(target: Target, builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Split a sum over all axes but the channels into partial sums that run in parallel."""
    (x,), attrs = call.args, call.attrs
    shape = shape_of(x)
    axes = plain(attrs.axis)
    over_rows = axes is not None and sorted(axis % len(shape) for axis in axes) == list(range(len(shape) - 1))
    if not over_rows or len(shape) < 2 or attrs.keepdims or math.prod(shape) < SMALL:
        return call_kernel(builder, topi.sum, x, axis=axes and list(axes), keepdims=bool(attrs.keepdims))
    leading = 2 if max(shape[:2]) > 1 else len(shape)  # a 1x1 weight is split along its input channels
    want = max(4 * target.traits.cores, _parts_of_slices(target, x))
    chunks = parts(shape[: min(leading, len(shape) - 1)], want)
    sums = builder.emit(_product(builder, reduction.channel_sum, x, pattern=REDUCTION, chunks=chunks))
    return call_kernel(builder, topi.sum, sums, axis=list(range(len(chunks))))


# ---- others ----------------------------------------------------------------------------------------------------------


@legalizes("relax.take")
def _take(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    x, indices = call.args
    axis = call.attrs.axis
    if axis is None:
        x, axis = builder.emit(relax.op.reshape(x, [math.prod(shape_of(x))])), 0
    return builder.call_te(indexing.take, x, indices, axis=int(axis) % len(shape_of(x)), primfunc_name_hint="take")


@legalizes("relax.gather_elements")
def _gather_elements(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    x, indices = call.args
    axis = int(call.attrs.axis) % len(shape_of(x))
    return builder.call_te(indexing.take_along, x, indices, axis=axis, primfunc_name_hint="take_along")


@legalizes("relax.index_tensor")
def _index_tensor(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    x, indices = call.args
    return builder.call_te(indexing.index_tensor, x, list(indices.fields), primfunc_name_hint="index_tensor")


def _scan(kernel: Callable[..., Any]) -> Legalize:
    """Legalise a scan (running sum or product) along an axis, or over all elements without one."""

    def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        axis, exclusive = plain(call.attrs.axis), bool(call.attrs.exclusive)
        return call_kernel(builder, kernel, *call.args, axis=axis, dtype=dtype_of(call), exclusive=exclusive)

    return legalize


@legalizes("relax.nn.pad")
def _pad(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower constant padding; other modes use TVM's kernels."""
    if call.attrs.pad_mode != "constant":
        return relax.transform.legalize_ops.nn._nn_pad(builder, call)
    widths, value = plain(call.attrs.pad_width), tirx.const(call.attrs.pad_value, dtype_of(call))
    return _moved(builder, topi.nn.pad, call.args[0], pad_before=widths[0::2], pad_after=widths[1::2], pad_value=value)


@legalizes("relax.strided_slice")
def _strided_slice(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    axes, begin, end, strides = slice_bounds(call.args)
    x = call.args[0]
    return _moved(builder, topi.strided_slice, x, begin=begin, end=end, strides=strides, axes=axes)


@legalizes_for_target("relax.permute_dims")
def _permute_dims(target: Target, builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    (x,), shape = call.args, shape_of(call.args[0])
    axes = [int(axis) for axis in call.attrs.axes] if call.attrs.axes is not None else list(range(len(shape)))[::-1]
    if target.layouts.transposes_alone(shape, axes, dtype_of(x)):
        return _product(builder, transpose, x, pattern=OPAQUE, axes=axes)
    return call_kernel(builder, topi.transpose, x, axes=axes)


@legalizes("pock.relayout")
def _relayout(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    attrs = {"op_pattern": OPAQUE, EACH_STEP: True}
    return builder.call_te(
        transpose, call.args[0], primfunc_name_hint="relayout", primfunc_attrs=attrs, **attributes_of(call)
    )


@legalizes("relax.nn.softmax")
def _softmax(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    (x,) = call.args
    if int(call.attrs.axis) not in (-1, len(shape_of(x)) - 1):
        return relax.transform.legalize_ops.nn._nn_softmax(builder, call)
    return call_kernel(builder, functions.softmax, x)


def _function(function: Callable[[Any], Any]) -> Legalize:
    def kernel(x: te.Tensor) -> te.Tensor:
        return functions.elementwise(x, function)

    def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        return builder.call_te(kernel, call.args[0], primfunc_name_hint=function.__name__)

    return legalize


@legalizes("pock.part", "pock.join")
def _as_it_is(_builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Keep a view: the memory planner aliases it, so it needs no kernel."""
    return call


for _name, _legalize in {
    "cumsum": _scan(topi.cumsum),
    "cumprod": _scan(topi.cumprod),
    "exp": _function(functions.exp),
    "erf": _function(functions.erf),
    "tanh": _function(functions.tanh),
    "sigmoid": _function(functions.sigmoid),
    "nn.silu": _function(functions.silu),
    "nn.gelu": _function(functions.gelu),
    "nn.gelu_tanh": _function(functions.gelu_tanh),
}.items():
    legalizes(f"relax.{_name}")(_legalize)
