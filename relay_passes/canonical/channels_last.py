"""Converts a network to channels-last, once, before differentiation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.relax import op as R

from ..ir import Constant, Expr, bindings_of, constant_value, dtype_of, op_name, shape_of, substitute, update_function
from ..operators.record import Kind, record_of, rule
from ..operators.registry import plain
from ..operators.resampling import resample
from ..operators.training import conv2d_data_gradient

TO_NHWC = (0, 2, 3, 1)
TO_NCHW = (0, 3, 1, 2)
TO_HWIO = (2, 3, 1, 0)
STORED_AXIS = {0: 0, 1: 3, 2: 1, 3: 2}  # NCHW axis -> its position in NHWC


@tvm.transform.module_pass(opt_level=0, name="ChannelsLast")
@dataclass(frozen=True)
class ChannelsLast:
    """Store every image as [N, H, W, C] and every convolution weight as [R, S, I, O].

    In: a dataflow function in PyTorch's layouts. Out: the same function with the same parameters and results.
    Convolutions and pooling work on NHWC, and operators between them follow. Transposes remain only at the boundaries:
    inputs, weights, and operators with a fixed layout, such as a flattening.

    Unlike ``relax.transform.ConvertLayout``, the layout propagates through clip, reshaped biases, padding, slices and
    reductions. There it would leave a pair of transposes around almost every convolution.
    """

    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        return update_function(mod, self.function, _Conversion(mod[self.function]).run())


@dataclass
class _Conversion:
    func: relax.Function
    env: dict[relax.Var, Expr] = field(default_factory=dict)
    """New value of each old variable, in the old layout unless the variable is in ``images``."""
    images: set[relax.Var] = field(default_factory=set)
    """Old variables whose new value is stored as NHWC."""
    image_tuples: dict[relax.Var, set[int]] = field(default_factory=dict)
    """For old variables that hold tuples, the fields stored as NHWC."""
    converted: dict[tuple[relax.Var, tuple[int, ...]], Expr] = field(default_factory=dict)

    def run(self) -> relax.Function:
        self.builder = relax.BlockBuilder()
        with self.builder.function("main", list(self.func.params), private=True):
            with self.builder.dataflow():
                for binding in bindings_of(self.func):
                    self._convert(binding.var, binding.value)
                output = self.builder.emit_output(substitute(self._old_layout(self.func.body.body), self.env))
            self.builder.emit_func_output(output)
        return self.builder.get()["main"].with_attrs(self.func.attrs)

    def _convert(self, var: relax.Var, value: Expr) -> None:
        new: Expr | Images | None = None
        if self.is_image(value) or (isinstance(value, relax.TupleGetItem) and value.tuple_value in self.image_tuples):
            new = self.stored(value)
            if self.is_image(value) or value.index in self.image_tuples[value.tuple_value]:
                self.images.add(var)
        else:
            record = record_of(value)
            convert = record.channels_last or (_follow if record.kind is Kind.ELEMENTWISE else None)
            new = convert(self, value) if convert is not None else None
        if isinstance(new, Images):
            if new.fields is None:
                self.images.add(var)
            else:
                self.image_tuples[var] = set(new.fields)
            new = new.expr
        if new is None:
            new = substitute(self._old_layout(value), self.env)
        is_leaf = isinstance(new, relax.Var | Constant | relax.Tuple)
        self.env[var] = new if is_leaf else self.builder.emit(new, var.name)

    def is_image(self, expr: Expr) -> bool:
        """Return whether the operand is stored as NHWC."""
        return isinstance(expr, relax.Var) and expr in self.images

    def stored(self, expr: Expr) -> Expr:
        """Return the operand in its stored layout."""
        return substitute(expr, self.env)

    def nhwc(self, expr: Expr) -> Expr:
        """Return the operand in NHWC, transposed if necessary. Lower ranks get leading axes, as in broadcasting."""
        if self.is_image(expr):
            return self.stored(expr)
        shape = shape_of(expr)
        if len(shape) == 0:
            return self.stored(expr)
        shape = (1,) * (4 - len(shape)) + shape
        new_shape = tuple(shape[axis] for axis in TO_NHWC)
        known = constant_value(expr)
        if known is not None:
            return relax.const(np.ascontiguousarray(known.reshape(shape).transpose(TO_NHWC)), dtype_of(expr))
        if sum(extent > 1 for extent in shape) <= 1:
            return self.builder.emit(R.reshape(self.stored(expr), new_shape))
        return self.permuted(
            expr if len(shape_of(expr)) == 4 else self.builder.emit(R.reshape(self.stored(expr), shape)), TO_NHWC
        )

    def permuted(self, expr: Expr, axes: Sequence[int]) -> Expr:
        """Return a stored operand with its axes permuted. Equal permutations are emitted once."""
        stored = self.stored(expr)
        key = (stored, tuple(axes))
        if key not in self.converted:
            self.converted[key] = self.builder.emit(R.permute_dims(stored, list(axes)))
        return self.converted[key]

    def _old_layout(self, value: Expr) -> Expr:
        """Return ``value`` with NHWC operands transposed back to NCHW."""
        if self.is_image(value):
            return self.permuted(value, TO_NCHW)
        if isinstance(value, relax.Tuple):
            return relax.Tuple([self._old_layout(part) for part in value.fields])
        if isinstance(value, relax.Call):
            return relax.Call(value.op, [self._old_layout(arg) for arg in value.args], value.attrs, value.ty_args)
        return value


@dataclass(frozen=True)
class Images:
    """Converted call whose result is stored as NHWC."""

    expr: Expr
    fields: Sequence[int] | None = None
    """Fields of a tuple that are stored as NHWC; None for a single tensor."""


Handler = Callable[[_Conversion, relax.Call], "Images | Expr | None"]
"""Conversion rule: returns the call on channels-last images, a plain expression if the result is not an image, or None
to keep the old layout."""


def _attributes(call: relax.Call, *names: str) -> dict[str, object]:
    return {name: plain(getattr(call.attrs, name)) for name in names}


# ---- operators that require images -----------------------------------------------------------------------------------


@rule("channels_last", "relax.nn.conv2d")
def _conv2d(conversion: _Conversion, call: relax.Call) -> Images | None:
    if (call.attrs.data_layout, call.attrs.kernel_layout) != ("NCHW", "OIHW"):
        return None
    x, weight = call.args
    geometry = _attributes(call, "strides", "padding", "dilation", "groups")
    kernel = conversion.permuted(weight, TO_HWIO)
    return Images(R.nn.conv2d(conversion.nhwc(x), kernel, **geometry, data_layout="NHWC", kernel_layout="HWIO"))


@rule("channels_last", "relax.nn.conv2d_transpose")
def _conv2d_transpose(conversion: _Conversion, call: relax.Call) -> Images | None:
    """Lower a transposed convolution to the data gradient of the convolution that maps its output to its input."""
    if (call.attrs.data_layout, call.attrs.kernel_layout) != ("NCHW", "IOHW"):
        return None
    x, weight = call.args
    geometry = _attributes(call, "strides", "padding", "dilation", "groups")
    size = list(shape_of(call)[2:])
    return Images(conv2d_data_gradient(conversion.nhwc(x), conversion.permuted(weight, TO_HWIO), **geometry, size=size))


@rule("channels_last", "relax.nn.max_pool2d", "relax.nn.avg_pool2d")
def _pool2d(conversion: _Conversion, call: relax.Call) -> Images | None:
    if call.attrs.layout != "NCHW":
        return None
    window = _attributes(call, "pool_size", "strides", "padding", "dilation", "ceil_mode", "count_include_pad")
    is_maximum = op_name(call) == "relax.nn.max_pool2d"
    is_whole = window["pool_size"] == tuple(shape_of(call.args[0])[2:]) and not any(plain(call.attrs.padding))
    if is_whole and not is_maximum:
        return Images(R.mean(conversion.nhwc(call.args[0]), axis=[1, 2], keepdims=True))
    operator = R.nn.max_pool2d if is_maximum else R.nn.avg_pool2d
    return Images(operator(conversion.nhwc(call.args[0]), **window, layout="NHWC", out_layout="NHWC"))


@rule("channels_last", "relax.nn.adaptive_avg_pool2d")
def _adaptive_pool2d(conversion: _Conversion, call: relax.Call) -> Images | None:
    """Lower to an average over equal windows, where the output size divides the input size."""
    height, width = shape_of(call.args[0])[2:]
    out_h, out_w = shape_of(call)[2:]
    if call.attrs.layout != "NCHW" or height % out_h or width % out_w:
        return None
    x = conversion.nhwc(call.args[0])
    if (out_h, out_w) == (1, 1):
        return Images(R.mean(x, axis=[1, 2], keepdims=True))
    window = [height // out_h, width // out_w]
    return Images(R.nn.avg_pool2d(x, pool_size=window, strides=window, layout="NHWC", out_layout="NHWC"))


@rule("channels_last", "relax.image.resize2d")
def _resize2d(conversion: _Conversion, call: relax.Call) -> Images | None:
    if call.attrs.layout != "NCHW" or not conversion.is_image(call.args[0]):
        return None
    names = (
        "roi",
        "method",
        "coordinate_transformation_mode",
        "rounding_method",
        "cubic_alpha",
        "cubic_exclude",
        "extrapolation_value",
    )
    return Images(
        R.image.resize2d(conversion.nhwc(call.args[0]), call.args[1], layout="NHWC", **_attributes(call, *names))
    )


# ---- operators that follow the layout of their operand ---------------------------------------------------------------


def _follow(conversion: _Conversion, call: relax.Call) -> Images | None:
    """Convert an element-wise operator: if one operand is stored as NHWC, convert all."""
    tensors = [arg for arg in call.args if isinstance(arg.ty, relax.TensorType)]
    if not any(conversion.is_image(arg) for arg in tensors) or any(len(shape_of(arg)) > 4 for arg in tensors):
        return None
    args = [conversion.nhwc(arg) if isinstance(arg.ty, relax.TensorType) else arg for arg in call.args]
    return Images(relax.Call(call.op, args, call.attrs, call.ty_args))


def _with_axis(operator: Callable[..., Expr]) -> Handler:
    """Convert an operator with one operand and one axis."""

    def convert(conversion: _Conversion, call: relax.Call) -> Images | None:
        if not conversion.is_image(call.args[0]):
            return None
        return Images(operator(conversion.stored(call.args[0]), STORED_AXIS[int(call.attrs.axis) % 4]))

    return convert


rule("channels_last", "relax.nn.softmax")(_with_axis(R.nn.softmax))
rule("channels_last", "relax.nn.log_softmax")(_with_axis(R.nn.log_softmax))
rule("channels_last", "relax.flip")(_with_axis(R.flip))


@rule("channels_last", "pock.resample")
def _resample(conversion: _Conversion, call: relax.Call) -> Images | None:
    x, *terms = call.args
    if not conversion.is_image(x):
        return None
    return Images(resample(conversion.stored(x), *terms, axis=STORED_AXIS[int(call.attrs["axis"])]))


@rule("channels_last", "relax.take")
def _take(conversion: _Conversion, call: relax.Call) -> Images | None:
    """Convert reads along an axis that keep the rank: padding by reflection, patches."""
    x, indices = call.args
    if not conversion.is_image(x) or call.attrs.axis is None or len(shape_of(indices)) != 1:
        return None
    taken = R.take(conversion.stored(x), conversion.stored(indices), STORED_AXIS[int(call.attrs.axis) % 4])
    return Images(taken)


@rule("channels_last", "relax.nn.prelu")
def _prelu(conversion: _Conversion, call: relax.Call) -> Images | None:
    x, slopes = call.args
    if not conversion.is_image(x):
        return None
    return Images(R.nn.prelu(conversion.stored(x), conversion.stored(slopes), STORED_AXIS[int(call.attrs.axis) % 4]))


@rule("channels_last", "relax.nn.group_norm")
def _group_norm(conversion: _Conversion, call: relax.Call) -> Images | None:
    x, gamma, beta = call.args
    if not conversion.is_image(x):
        return None
    return Images(
        R.nn.group_norm(
            conversion.stored(x),
            conversion.stored(gamma),
            conversion.stored(beta),
            num_groups=int(call.attrs.num_groups),
            channel_axis=STORED_AXIS[int(call.attrs.channel_axis) % 4],
            axes=[STORED_AXIS[axis % 4] for axis in plain(call.attrs.axes)],
            epsilon=float(call.attrs.epsilon),
            center=bool(call.attrs.center),
            scale=bool(call.attrs.scale),
        )
    )


@rule("channels_last", "relax.concat")
def _concat(conversion: _Conversion, call: relax.Call) -> Images | None:
    parts = call.args[0].fields if isinstance(call.args[0], relax.Tuple) else []
    if not any(conversion.is_image(part) for part in parts):
        return None
    return Images(R.concat([conversion.nhwc(part) for part in parts], axis=STORED_AXIS[int(call.attrs.axis) % 4]))


@rule("channels_last", "relax.strided_slice")
def _strided_slice(conversion: _Conversion, call: relax.Call) -> Images | None:
    x, axes, *bounds = call.args
    if not conversion.is_image(x):
        return None
    stored_axes = [STORED_AXIS[int(axis) % 4] for axis in axes.fields]
    return Images(R.strided_slice(conversion.stored(x), stored_axes, *bounds))


@rule("channels_last", "relax.nn.pad")
def _pad(conversion: _Conversion, call: relax.Call) -> Images | None:
    x, *value = call.args
    if not conversion.is_image(x) and not (len(shape_of(x)) == 4 and _is_spatial_padding(plain(call.attrs.pad_width))):
        return None
    widths = plain(call.attrs.pad_width)
    pairs = [widths[2 * axis : 2 * axis + 2] for axis in range(4)]
    new = [width for axis in TO_NHWC for width in pairs[axis]]
    constant = constant_value(value[0]) if value else getattr(call.attrs, "pad_value", 0.0)
    if constant is None:
        return None
    fill = float(constant)
    return Images(R.nn.pad(conversion.nhwc(x), new, call.attrs.pad_mode, fill))


def _is_spatial_padding(widths: Sequence[int]) -> bool:
    """Return whether only height and width are padded. Such padding precedes a convolution, so it is worth
    converting."""
    return not any(widths[:4]) and any(widths[4:])


@rule("channels_last", "relax.nn.batch_norm")
def _batch_norm(conversion: _Conversion, call: relax.Call) -> Images | None:
    x, *rest = call.args
    if not conversion.is_image(x) or int(call.attrs.axis) != 1:
        return None
    names = ("epsilon", "center", "scale", "momentum", "training")
    return Images(
        R.nn.batch_norm(
            conversion.stored(x), *(conversion.stored(arg) for arg in rest), axis=3, **_attributes(call, *names)
        ),
        [0],
    )


@rule("channels_last", "relax.split")
def _split(conversion: _Conversion, call: relax.Call) -> Images | None:
    if not conversion.is_image(call.args[0]):
        return None
    return Images(
        R.split(
            conversion.stored(call.args[0]),
            plain(call.attrs.indices_or_sections),
            STORED_AXIS[int(call.attrs.axis) % 4],
        ),
        range(len(call.ty.fields)),
    )


# ---- operators that read an image and return something else ----------------------------------------------------------


@rule("channels_last", *(f"relax.{name}" for name in ("sum", "mean", "max", "min", "variance", "std")))
def _reduction(conversion: _Conversion, call: relax.Call) -> Images | Expr | None:
    """Convert a reduction. With ``keepdims`` the result is an image."""
    if not conversion.is_image(call.args[0]):
        return None
    axes = None if call.attrs.axis is None else [axis % 4 for axis in plain(call.attrs.axis)]
    operator, keepdims = getattr(R, op_name(call).removeprefix("relax.")), bool(call.attrs.keepdims)
    stored = None if axes is None else [STORED_AXIS[axis] for axis in axes]
    reduced = operator(conversion.stored(call.args[0]), axis=stored, keepdims=keepdims)
    if keepdims and axes is not None:
        return Images(reduced)
    left = [axis for axis in (0, 2, 3, 1) if axis not in (range(4) if axes is None else axes)]
    order = [left.index(axis) for axis in sorted(left)]
    return reduced if order == sorted(order) else R.permute_dims(reduced, order)


@rule("channels_last", "relax.reshape", "relax.flatten", "relax.squeeze", "relax.expand_dims")
def _reshape(conversion: _Conversion, call: relax.Call) -> Expr | None:
    """Reshape the stored value, where one channel or one pixel makes both layouts equal in memory."""
    x = call.args[0]
    if not conversion.is_image(x):
        return None
    _, channels, height, width = shape_of(x)
    if channels > 1 and height * width > 1:
        return None
    return R.reshape(conversion.stored(x), shape_of(call))


@rule("channels_last", "relax.permute_dims")
def _permute_dims(conversion: _Conversion, call: relax.Call) -> Expr | None:
    if not conversion.is_image(call.args[0]):
        return None
    axes = plain(call.attrs.axes) or (3, 2, 1, 0)
    order = [STORED_AXIS[axis % 4] for axis in axes]
    stored = conversion.stored(call.args[0])
    return stored if order == [0, 1, 2, 3] else R.permute_dims(stored, order)
