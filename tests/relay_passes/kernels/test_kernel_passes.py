"""The passes around the choice of kernels: products, names, packed weights, Winograd."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax import op as R

from relay_passes import (
    ChooseKernels,
    FuseGroups,
    LiftFrozen,
    PackWeights,
    ScaleResults,
    StraightenProducts,
    Winograd,
)
from relay_passes.ir import bindings_of, op_name, shape_of
from relay_passes.kernels import name_kernels
from relay_passes.kernels.winograd import suited_convolutions
from relay_passes.operators.registry import attributes_of
from relay_passes.operators.training import conv2d_data_gradient, conv2d_weight_gradient, matmul
from schedules.cpu import CpuTarget
from schedules.cpu.target import CpuLayouts
from schedules.cpu.traits import CpuTraits
from schedules.gpu import gpu_target
from tests.relay_passes.modules import TARGET, function, kernels, operators, random, run

# ---- names -----------------------------------------------------------------------------------------------------------


def test_kernels_that_share_a_hash_get_names_of_their_own(monkeypatch) -> None:
    monkeypatch.setattr(name_kernels, "structural_hash", lambda _func: 7)

    def body(emit, x, y):
        return emit(emit(R.add(emit(R.add(x, x)), x)) * y)

    mod = function({"x": (4,), "y": (4,)}, body)
    named = kernels(mod)
    names = {var.name_hint for var, func in named.functions.items() if isinstance(func, tvm.tirx.PrimFunc)}
    assert len(names) == 2 and all(names_kernel(named, name) for name in names)
    x, y = random((4,), (4,))
    np.testing.assert_allclose(run(named, x, y), 3 * x * y, rtol=1e-6)


def names_kernel(mod: tvm.IRModule, name: str) -> bool:
    return mod[name].attrs["global_symbol"] == name and "_0000000000000007" in name


# ---- sums ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1, 64, 256), (3, 3, 40, 64)], ids=str)
def test_a_sum_over_channels_multiplies_on_the_way_and_in_parallel(shape) -> None:
    """As the gradient of BatchNorm's scale: no kernel writes the products, and 1x1 weights are split, too."""
    mod = function({"x": shape, "y": shape}, lambda emit, x, y: emit(R.sum(emit(x * y), axis=[0, 1, 2])))
    chosen = ChooseKernels(["main"], TARGET)(mod)
    fused = tvm.transform.Sequential(
        [relax.transform.AnnotateTIROpPattern(), FuseGroups(9), relax.transform.FuseTIR()]
    )(chosen)
    parts, total = (
        binding.value for binding in bindings_of(fused["main"]) if op_name(binding.value) == "relax.call_tir"
    )
    assert len(parts.args[1].fields) == 2 and math.prod(shape_of(parts)[:-1]) >= TARGET.traits.cores
    assert shape_of(total) == shape[-1:]
    x, y = random(shape, shape)
    np.testing.assert_allclose(run(fused, x, y), (x * y).sum((0, 1, 2)), rtol=1e-4, atol=1e-4)


# ---- products --------------------------------------------------------------------------------------------------------


def against_weight(emit, dy, w):
    return emit(matmul(dy, w, transpose_a=False, transpose_b=True))


@pytest.mark.parametrize(
    ("rows", "columns", "frozen", "read"),
    [
        ((500,), 32, [], "across"),
        ((3,), 32, [], "across"),
        ((2, 2), 48, [], "across"),
        ((500,), 32, ["w"], "transposed"),
        ((3,), 30, ["w"], "transposed"),
        ((500,), 30, [], "transposed"),
        ((3,), 30, [], "as it is"),
        ((2, 2), 30, [], "as it is"),
    ],
)
def test_how_a_data_gradient_reads_its_weight(rows, columns, frozen, read) -> None:
    mod = function({"dy": (*rows, 40), "w": (columns, 40)}, against_weight)
    straight = StraightenProducts(frozen)(mod)
    (product,) = (b.value for b in bindings_of(straight["main"]) if op_name(b.value).endswith("matmul"))
    assert (op_name(product) == "pock.across_matmul") == (read == "across")
    assert (product.args[0].name == "w") == (read == "as it is")
    assert read == "across" or not product.attrs["transpose_b"]
    dy, w = random((*rows, 40), (columns, 40))
    np.testing.assert_allclose(run(straight, dy, w), dy @ w.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "taps", "frozen", "is_across"),
    [(32, 1, [], True), (33, 1, [], False), (32, 1, ["w"], False), (32, 3, [], False)],
)
def test_how_the_data_gradient_of_a_convolution_reads_its_weight(channels, taps, frozen, is_across) -> None:
    def gradient(emit, dy, w):
        pad = [taps // 2] * 4
        plain = {"strides": [1, 1], "dilation": [1, 1], "groups": 1}
        return emit(conv2d_data_gradient(dy, w, padding=pad, size=[5, 7], **plain))

    shapes = (2, 5, 7, 17), (taps, taps, channels, 17)
    mod = function(dict(zip(("dy", "w"), shapes, strict=True)), gradient)
    straight = StraightenProducts(frozen)(mod)
    assert ("pock.across_matmul" in operators(straight)) == is_across
    dy, w = random(*shapes)
    np.testing.assert_allclose(run(straight, dy, w), run(mod, dy, w), rtol=1e-4, atol=1e-5)
    if taps == 1:
        np.testing.assert_allclose(run(straight, dy, w), dy @ w[0, 0].T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "strides", "frozen", "is_across"),
    [((128, 32), 1, [], True), ((128, 32), 1, ["w"], False), ((128, 24), 1, [], False), ((128, 32), 2, [], False)],
)
def test_which_data_gradients_turn_a_weight_of_several_taps(channels, strides, frozen, is_across) -> None:
    def gradient(emit, dy, w):
        plain = {"strides": [strides] * 2, "dilation": [1, 1], "groups": 1, "padding": [1] * 4}
        return emit(conv2d_data_gradient(dy, w, size=[5 * strides, 7 * strides], **plain))

    shapes = (2, 5, 7, channels[1]), (3, 3, *channels)
    mod = function(dict(zip(("dy", "w"), shapes, strict=True)), gradient)
    straight = StraightenProducts(frozen)(mod)
    (product,) = (b.value for b in bindings_of(straight["main"]) if op_name(b.value) == "pock.conv2d_data_gradient")
    assert bool(attributes_of(product).get("across", False)) == is_across
    chosen = ChooseKernels(["main"], TARGET)(straight)
    assert ("transpose" in chosen.script()) != is_across
    dy, w = random(*shapes)
    np.testing.assert_allclose(run(straight, dy, w), run(mod, dy, w), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frozen", [[], ["w"]])
@pytest.mark.parametrize("size", [(10, 12), (9, 12), (9, 11)])
@pytest.mark.parametrize("strides", [(2, 2), (1, 3)], ids=str)
def test_the_data_gradient_of_a_pointwise_convolution_with_a_stride_is_dense(strides, size, frozen) -> None:
    """The pixels that the stride skips are zeros, and cost no products."""

    def gradient(emit, dy, w):
        geometry = {"strides": list(strides), "dilation": [1, 1], "groups": 1, "padding": [0] * 4}
        return emit(conv2d_data_gradient(dy, w, size=list(size), **geometry))

    out = [-(-extent // step) for extent, step in zip(size, strides, strict=True)]
    shapes = (2, *out, 16), (1, 1, 48, 16)
    mod = function(dict(zip(("dy", "w"), shapes, strict=True)), gradient)
    straight = StraightenProducts(frozen)(mod)
    products = [
        b.value for b in bindings_of(straight["main"]) if "matmul" in op_name(b.value) or "conv2d" in op_name(b.value)
    ]
    assert [shape_of(product)[1:3] for product in products] == [tuple(out)]
    dy, w = random(*shapes)
    expected = np.zeros((2, *size, 48), "float32")
    expected[:, :: strides[0], :: strides[1]] = dy @ w[0, 0].T
    np.testing.assert_allclose(run(straight, dy, w), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [(2, 3), (1, 3)])
def test_products_of_batches_are_straightened_too(batch) -> None:
    shapes = (2, 3, 5, 4), (*batch, 6, 4)
    mod = function(dict(zip("ab", shapes, strict=True)), against_weight)
    a, b = random(*shapes)
    np.testing.assert_allclose(run(StraightenProducts()(mod), a, b), a @ b.swapaxes(-1, -2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shapes", [((197, 24), (24, 96)), ((2, 67, 8), (2, 8, 67)), ((64, 40), (40, 37))])
def test_rows_and_columns_that_fit_no_tile_are_rounded_up(shapes) -> None:
    def multiply(emit, a, b):
        return emit(emit(matmul(a, b, transpose_a=False, transpose_b=False)) + relax.const(1.0))

    mod = function(dict(zip("ab", shapes, strict=True)), multiply)
    chosen = ChooseKernels(["main"], TARGET)(mod)
    a, b = random(*shapes)
    np.testing.assert_allclose(run(chosen, a, b), a @ b + 1, rtol=1e-4, atol=1e-5)
    assert ("widened" in chosen.script()) == (shapes[1][-1] % 8 > 0)


@pytest.mark.parametrize(("rows", "columns", "widened"), [(8, 40, False), (8, 37, True), (24, 40, True)])
def test_few_rows_are_multiplied_by_parts_of_vectors(rows: int, columns: int, widened: bool) -> None:
    layouts = CpuLayouts(CpuTraits(lanes=16, registers=32, cores=2))
    assert (layouts.computed_columns(rows, columns) > columns) == widened


def test_products_that_mask_edges_get_operands_as_they_are() -> None:
    """A CPU pads images of groups, crops the gradient of an odd image, and adds parts of a weight gradient."""
    padded = {"padding": [1, 1, 1, 1], "dilation": [1, 1]}
    layouts = {"data_layout": "NHWC", "kernel_layout": "HWIO"}

    def body(emit, x, w, dy, v):
        y = emit(R.nn.conv2d(x, w, groups=2, **padded, **layouts))
        dx = emit(conv2d_data_gradient(dy, v, strides=[2, 2], groups=1, size=[7, 9], **padded))
        dw = emit(conv2d_weight_gradient(x, dy, strides=[2, 2], groups=1, kernel_size=[3, 3], **padded))
        return emit(relax.Tuple([y, dx, dw]))

    mod = function({"x": (2, 7, 9, 4), "w": (3, 3, 2, 6), "dy": (2, 4, 5, 8), "v": (3, 3, 4, 8)}, body)
    on_gpu, on_cpu = (
        ChooseKernels(["main"], target)(mod) for target in (gpu_target(tvm.target.Target("opencl")), TARGET)
    )
    assert len(operators(on_gpu)) == 3 < len(operators(on_cpu))
    for found, expected in zip(run(on_gpu), run(on_cpu), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def scaled(emit, x, w, s):
    layouts = {"data_layout": "NHWC", "kernel_layout": "HWIO"}
    return emit(R.nn.conv2d(x, emit(w * s), **layouts))


@pytest.mark.parametrize(("live", "names"), [(["w"], ["nn.conv2d", "multiply"]), ([], ["multiply", "nn.conv2d"])])
def test_a_live_weight_is_not_scaled(live, names) -> None:
    mod = function({"x": (1, 4, 4, 3), "w": (3, 3, 3, 5), "s": (5,)}, scaled)
    assert operators(ScaleResults(live)(mod)) == [f"relax.{name}" for name in names]
    np.testing.assert_allclose(run(ScaleResults(live)(mod)), run(mod), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "first"), [(2, (1, 2, 2, 5)), (9, (3, 3, 3, 5))])
def test_the_smaller_operand_of_a_data_gradient_is_scaled(size, first) -> None:
    def body(emit, dy, w, s):
        geometry = {"strides": [1, 1], "padding": [1, 1, 1, 1], "dilation": [1, 1], "groups": 1, "size": [size, size]}
        return emit(conv2d_data_gradient(dy, emit(w * s), **geometry))

    mod = function({"dy": (1, size, size, 5), "w": (3, 3, 3, 5), "s": (5,)}, body)
    made = ScaleResults(["w"])(mod)
    assert operators(made) == ["relax.multiply", "pock.conv2d_data_gradient"]
    assert shape_of(bindings_of(made["main"])[0].var) == first
    np.testing.assert_allclose(run(made), run(mod), rtol=1e-4, atol=1e-5)


def test_a_weight_scaled_otherwise_stays() -> None:
    mod = function({"x": (1, 4, 4, 3), "w": (3, 3, 3, 5), "s": (1, 1, 3, 1)}, scaled)
    assert operators(ScaleResults(["w"])(mod)) == ["relax.multiply", "relax.nn.conv2d"]


# ---- names -----------------------------------------------------------------------------------------------------------


def twice(emit, x):
    return emit(R.exp(emit(R.tanh(emit(R.exp(x))))))


def test_equal_kernels_are_one_under_one_name() -> None:
    named = kernels(function({"x": (4, 16)}, twice))
    again = kernels(function({"something_else": (4, 16)}, twice))
    calls = [[b.value.args[0].name_hint for b in bindings_of(mod["main"])] for mod in (named, again)]
    assert calls[0] == calls[1] and calls[0][0] == calls[0][2] != calls[0][1]
    other = kernels(function({"x": (4, 17)}, twice))
    assert not set(calls[0]) & {b.value.args[0].name_hint for b in bindings_of(other["main"])}
    np.testing.assert_allclose(run(named, *random((4, 16))), np.exp(np.tanh(np.exp(random((4, 16))[0]))), rtol=1e-5)


# ---- packed weights --------------------------------------------------------------------------------------------------


def product_of(w_axes=None):
    def body(emit, x, w):
        w = emit(R.permute_dims(w, w_axes)) if w_axes else w
        return emit(matmul(x, w, transpose_a=False, transpose_b=False))

    return body


def pointwise(emit, x, w):
    return emit(R.nn.conv2d(x, w, data_layout="NHWC", kernel_layout="HWIO"))


def pointwise_gradient(emit, dy, w):
    geometry = {"strides": [1, 1], "padding": [0] * 4, "dilation": [1, 1], "groups": 1}
    return emit(conv2d_data_gradient(dy, w, **geometry, size=[7, 9]))


def channels_last(product):
    return lambda emit, x, w: product(emit, x, emit(R.permute_dims(w, [2, 3, 1, 0])))


PACKED = {
    "few rows": (product_of(), (2, 17, 33), (33, 48)),
    "transposed": (product_of(w_axes=[1, 0]), (17, 33), (48, 33)),
    "a matrix each": (product_of(), (5, 17, 33), (5, 33, 48)),
    "large": (product_of(), (300, 40), (40, 4096)),
    "pointwise": (pointwise, (1, 7, 9, 33), (1, 1, 33, 48)),
    "pointwise, channels first": (channels_last(pointwise), (1, 7, 9, 33), (48, 33, 1, 1)),
    "data gradient, channels first": (channels_last(pointwise_gradient), (2, 7, 9, 33), (33, 48, 1, 1)),
    "data gradient": (pointwise_gradient, (2, 7, 9, 33), (1, 1, 48, 33)),
    "Winograd's": (lambda *args: convolution(*args), (1, 7, 9, 33), (3, 3, 33, 48)),
}
CACHE = CpuTarget(CpuTraits(lanes=16, registers=32, cores=2, cache_bytes=2**14), tvm.target.Target("llvm"))


@pytest.mark.parametrize("name", PACKED)
def test_frozen_weights_are_packed_once(name: str) -> None:
    body, *shapes = PACKED[name]
    mod = Winograd(["w"], fewest_multiplications=0)(function(dict(zip("xw", shapes, strict=True)), body))
    packed = PackWeights(["w"], CACHE)(mod)
    assert "pock.packed_matmul" in operators(packed)
    lifted = LiftFrozen(["w"], ["main"])(packed)
    assert not {"relax.permute_dims", "relax.reshape", "pock.winograd_weight"} & set(operators(lifted))
    assert operators(lifted, "prepare") in (["relax.reshape", "relax.permute_dims"], ["pock.winograd_weight"])
    x, w = random(*shapes)
    np.testing.assert_allclose(run(packed, x, w), run(mod, x, w), rtol=1e-4, atol=1e-4)


def test_matrices_turned_with_their_batch_are_packed_rightly() -> None:
    """By the axes that put the weight of a convolution channels last."""
    mod = function({"x": (2, 3, 17, 33), "w": (48, 33, 2, 3)}, product_of([2, 3, 1, 0]))
    packed = PackWeights(["w"], CACHE)(mod)
    assert "pock.packed_matmul" in operators(packed)
    np.testing.assert_allclose(run(packed), run(mod), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("frozen", "x", "w"),
    [
        ([], (17, 33), (33, 48)),  # it changes
        (["w"], (300, 33), (33, 48)),  # it stays in the cache, and is read seldom
        (["w"], (17, 33), (33, 33)),  # strips would be of no vectors
        (["w"], (2, 3, 17, 33), (3, 33, 48)),  # shared by the matrices of a batch
    ],
)
def test_other_weights_are_not_packed(frozen: list[str], x: tuple[int, ...], w: tuple[int, ...]) -> None:
    mod = function({"x": x, "w": w}, product_of())
    assert operators(PackWeights(frozen, CACHE)(mod)) == ["pock.matmul"]


def test_sizes_of_weights_left_unpacked_may_be_given() -> None:
    mod = function({"x": (300, 33), "w": (33, 48)}, product_of())
    assert operators(PackWeights(["w"], CACHE)(mod)) == ["pock.matmul"]
    assert "pock.packed_matmul" in operators(PackWeights(["w"], CACHE, unpacked=(0, 0))(mod))


@pytest.mark.parametrize("strides", [[2, 2], [1, 1]])
def test_a_convolution_that_is_no_matrix_product_is_not_packed(strides: list[int]) -> None:
    def body(emit, x, w):
        return emit(R.nn.conv2d(x, w, strides=strides, data_layout="NHWC", kernel_layout="HWIO"))

    size = 1 if strides == [2, 2] else 3
    mod = function({"x": (1, 7, 7, 33), "w": (size, size, 33, 48)}, body)
    assert operators(PackWeights(["w"], CACHE)(mod)) == ["relax.nn.conv2d"]


# ---- Winograd --------------------------------------------------------------------------------------------------------


def convolution(emit, x, w):
    return emit(R.nn.conv2d(x, w, padding=[1, 0, 1, 2], data_layout="NHWC", kernel_layout="HWIO"))


def gradient(emit, dy, w):
    geometry = {"strides": [1, 1], "padding": [1, 0, 1, 2], "dilation": [1, 1], "groups": 1}
    return emit(conv2d_data_gradient(dy, w, **geometry, size=[7, 9]))


def weight_gradient(emit, x, dy):
    geometry = {"strides": [1, 1], "padding": [1, 0, 1, 2], "dilation": [1, 1], "groups": 1}
    return emit(conv2d_weight_gradient(x, dy, **geometry, kernel_size=[3, 3]))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("make", "second", "frozen"),
    [
        (convolution, (3, 3, 33, 40), True),
        (convolution, (3, 3, 33, 40), False),
        (gradient, (3, 3, 40, 33), True),
        (gradient, (3, 3, 40, 33), False),
        (weight_gradient, None, False),
    ],
)
def test_3x3_convolutions_become_products(make, second, frozen, batch) -> None:
    shapes = (batch, 7, 9, 33), second or (batch, 7, 9, 40)
    mod = function(dict(zip("xw", shapes, strict=True)), make)
    always = {"fewest_multiplications": 0, "fewest_pixels": 0}
    fast = Winograd(["w"] if frozen else [], **always)(mod)
    assert "pock.matmul" in operators(fast)
    x, w = random(*shapes)
    np.testing.assert_allclose(run(fast, x, w), run(mod, x, w), rtol=1e-4, atol=1e-4)
    for few in ({"fewest_multiplications": 10**9}, {} if frozen else {"fewest_pixels": 1000}):
        if few:
            assert operators(Winograd(["w"] if frozen else [], **(always | few))(mod)) == operators(mod)


@pytest.mark.parametrize(("make", "weight"), [(convolution, (3, 3, 33, 40)), (gradient, (3, 3, 40, 33))])
def test_some_convolutions_may_be_left(make, weight) -> None:
    mod = function({"x": (1, 7, 9, 33), "w": weight}, make)
    (extents,) = suited_convolutions(mod["main"], ["w"], 0, 0).values()
    assert extents[2:] == weight[2:]
    always = {"fewest_multiplications": 0, "fewest_pixels": 0}
    assert operators(Winograd(["w"], **always, left=[extents])(mod)) == operators(mod)
    assert "pock.matmul" in operators(Winograd(["w"], **always, left=[(1, 1, 33, 40)])(mod))


@pytest.mark.parametrize(
    ("shape", "options"),
    [((3, 3, 8, 8), {}), ((3, 3, 40, 40), {"strides": [2, 2]}), ((1, 1, 40, 40), {}), ((3, 3, 40, 40), {"dilation": [2, 2]})],
)  # fmt: skip
def test_other_convolutions_stay(shape, options) -> None:
    def convolve(emit, x, w):
        return emit(R.nn.conv2d(x, w, data_layout="NHWC", kernel_layout="HWIO", **options))

    mod = function({"x": (1, 9, 9, shape[2]), "w": shape}, convolve)
    assert operators(Winograd(["w"], fewest_multiplications=0)(mod)) == ["relax.nn.conv2d"]
