"""NumPy's integers as the reference for layers in eight bits: every stored value has to be equal, bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tvm import relax

from relay_passes.ir import bindings_of, constant_value, dtype_of, op_name
from relay_passes.ir.places import places_of
from relay_passes.operators.registry import attributes_of, plain

from ...errors import CheckError

LARGEST = 255
"""Largest uint8."""
WORD = 4
"""Bytes of a word."""


def check_integers(func: relax.Function, values: Mapping[relax.Var, np.ndarray]) -> int:
    """Check what layers in eight bits compute against NumPy, and return how many values were compared.

    ``values``: those of :func:`in_eight_bits`, of a quantised function. NumPy goes on with its own.

    Raises
    ------
    CheckError
        It names the first value that differs.
    """
    own: dict[relax.Var, np.ndarray] = {}
    places, compared = places_of(func), 0

    def operand(expr: relax.Expr) -> np.ndarray:
        constant = constant_value(expr)
        return constant if constant is not None else own[expr] if expr in own else values[expr]

    for binding in bindings_of(func):
        var, compute = binding.var, _computation(binding.value)
        if compute is None:
            continue
        own[var] = compute(binding.value, [operand(each) for each in binding.value.args])
        if var not in values:
            continue
        wrong = np.count_nonzero(own[var] != values[var])
        if wrong:
            raise CheckError(
                f"the layer in eight bits that computes {places[var].described} differs from NumPy's integers in "
                f"{wrong} of {own[var].size} elements. This is a fault of the compiler: please report it with the model"
            )
        compared += 1
    return compared


def in_eight_bits(func: relax.Function) -> list[relax.Var]:
    """Return the values that layers in eight bits store or leave float, and the float values that they are made of.

    Sums are none of them: they stay in registers.
    """
    found: dict[relax.Var, None] = {}
    computed: set[relax.Var] = set()
    for binding in bindings_of(func):
        if _computation(binding.value) is None:
            continue
        read = [each for each in binding.value.args if isinstance(each, relax.Var) and each not in computed]
        computed.add(binding.var)
        found |= dict.fromkeys([*read, *([binding.var] if dtype_of(binding.var) != "int32" else [])])
    return list(found)


Compute = Callable[[relax.Call, Sequence[np.ndarray]], np.ndarray]


def _convolution(call: relax.Call, operands: Sequence[np.ndarray]) -> np.ndarray:
    x, weight = operands
    return _taps_summed(_unpacked(x), weight if weight.dtype == np.int8 else _bytes(weight), attributes_of(call))


def _taps_summed(x: np.ndarray, weight: np.ndarray, given: Mapping[str, Any]) -> np.ndarray:
    """Sum over taps, in float64: the integers are exact there. ``weight``: int8 [R, S, C_in, C_out]; [R, S, 1, C] is
    depthwise, unless the input has one channel."""
    top, left, bottom, right = given["padding"]
    x = np.pad(x.astype("float64"), ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=given["zero"])
    is_depthwise = weight.shape[2] == 1
    weight = weight.astype("float64")
    (high, wide), (down, across) = given["strides"], given["dilation"]
    taps_h, taps_w = weight.shape[:2]
    rows = (x.shape[1] - down * (taps_h - 1) - 1) // high + 1
    columns = (x.shape[2] - across * (taps_w - 1) - 1) // wide + 1
    total: Any = 0.0
    for r in range(taps_h):
        for s in range(taps_w):
            first, second = r * down, s * across
            part = x[:, first : first + high * (rows - 1) + 1 : high, second : second + wide * (columns - 1) + 1 : wide]
            total = total + (part * weight[r, s, 0] if is_depthwise else part @ weight[r, s])
    return total.astype("int32")


def _depthwise(call: relax.Call, operands: Sequence[np.ndarray]) -> np.ndarray:
    """Sum over taps, by those of results at even columns."""
    x, words = operands
    taps = _bytes(words[:, 0])[:, : attributes_of(call)["taps"], None]
    return _taps_summed(x, taps, attributes_of(call) | {"dilation": (1, 1)})


def _matmul(_call: relax.Call, operands: Sequence[np.ndarray]) -> np.ndarray:
    x, weight = _unpacked(operands[0]), operands[1]
    return (x.astype("float64") @ _bytes(weight).astype("float64")).astype("int32")


def _sum(call: relax.Call, operands: Sequence[np.ndarray]) -> np.ndarray:
    (x,) = operands
    between = tuple(range(1, x.ndim - 1))
    return x.sum(axis=between, dtype=np.int32, keepdims=bool(attributes_of(call)["keepdims"]))


def _unpacked(x: np.ndarray) -> np.ndarray:
    """Return an input as bytes, if it is words of pixels."""
    return x if x.dtype == np.uint8 else np.ascontiguousarray(x).view("uint8")


def _bytes(words: np.ndarray) -> np.ndarray:
    """Unpack words [.., n, o] to int8 [.., 4 n, o]."""
    *outer, count, columns = words.shape
    split = np.ascontiguousarray(words).view("int8").reshape(*outer, count, columns, 4)
    return np.moveaxis(split, -1, -2).reshape(*outer, 4 * count, columns)


def _rescaled(operands: Sequence[np.ndarray]) -> np.ndarray:
    sums, bias, before, factor = (each.astype("int64") for each in operands[:4])
    return _high(np.clip((sums + bias) >> before, -(2**15), 2**15 - 1) * factor)


def _high(product: np.ndarray) -> np.ndarray:
    """Round a product of two numbers of 16 bits to its high 16 bits but one."""
    return (product + 2**14) >> 15


def _requantized(call: relax.Call, operands: Sequence[np.ndarray]) -> np.ndarray:
    return np.clip(_rescaled(operands) + attributes_of(call)["zero"], 0, LARGEST).astype("uint8")


def _requantized_sum(call: relax.Call, operands: Sequence[np.ndarray]) -> np.ndarray:
    given, other = attributes_of(call), operands[4].astype("int64")
    summed = _rescaled(operands) + _high(128 * other * given["other_factor"]) + given["constant"]
    return np.clip(summed >> given["bits"], 0, LARGEST).astype("uint8")


def _quantized(call: relax.Call, operands: Sequence[np.ndarray]) -> np.ndarray:
    (x,), given = operands, attributes_of(call)
    scaled = np.clip(x * np.float32(given["inverse"]), -given["zero"], LARGEST - given["zero"])
    q = (np.rint(scaled).astype("int64") + given["zero"]).astype("uint8")
    missing = given.get("channels", WORD) - x.shape[-1]
    return np.pad(q, [(0, 0)] * (x.ndim - 1) + [(0, missing)], constant_values=given["zero"])


def _words(call: relax.Call, operands: Sequence[np.ndarray]) -> np.ndarray:
    return np.ascontiguousarray(_quantized(call, operands)).view("int32")


def _dequantized(call: relax.Call, operands: Sequence[np.ndarray]) -> np.ndarray:
    given = attributes_of(call)
    return (operands[0].astype("int32") - given["zero"]).astype("float32") * np.float32(given["scale"])


def _dequantized_sums(_call: relax.Call, operands: Sequence[np.ndarray]) -> np.ndarray:
    sums, bias, scale = operands
    return (sums + bias).astype("float32") * scale


def _pooled(call: relax.Call, operands: Sequence[np.ndarray]) -> np.ndarray:
    """Compute the maxima of windows of bytes."""
    (x,), attrs = operands, call.attrs
    top, left, bottom, right = plain(attrs.padding)
    (high, wide), (down, across), (taps_h, taps_w) = (
        plain(each) for each in (attrs.strides, attrs.dilation, attrs.pool_size)
    )
    _, rows, columns, _ = (int(extent) for extent in call.ty.shape)
    more = [(0, 0), (top, bottom + high), (left, right + wide), (0, 0)]
    x = np.pad(x, more)
    windows = [
        x[:, r * down :, s * across :][:, : high * rows : high, : wide * columns : wide]
        for r in range(taps_h)
        for s in range(taps_w)
    ]
    return np.max(windows, axis=0)


OPERATORS: dict[str, Compute] = {
    "pock.quantize": _quantized,
    "pock.quantize_words": _words,
    "pock.quantized_conv2d": _convolution,
    "pock.quantized_depthwise": _depthwise,
    "pock.quantized_matmul": _matmul,
    "pock.quantized_sum": _sum,
    "pock.requantize": _requantized,
    "pock.requantize_sum": _requantized_sum,
    "pock.dequantize": _dequantized,
    "pock.dequantize_sums": _dequantized_sums,
}


def _computation(value: relax.Expr) -> Compute | None:
    """Return what computes a call of a layer in eight bits; None for everything else."""
    name = op_name(value)
    if name == "relax.nn.max_pool2d" and dtype_of(value) == "uint8":
        return _pooled
    return OPERATORS.get(name)
