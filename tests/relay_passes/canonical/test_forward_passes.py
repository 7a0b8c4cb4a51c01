"""The passes before differentiation: each works alone, changes no result, and does what it is for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from tvm import relax
from tvm.relax import op as R

from pock_tvm.frontend import load_model
from relay_passes import (
    ChannelsLast,
    ExpandNormalization,
    FoldBatchNorm,
    FoldPadding,
    RecoverOperators,
    SelectEarly,
    SimplifyMasks,
    SimplifyMovement,
    SplitGradients,
    StorePermuted,
    UnifyProducts,
)
from relay_passes.canonical.store_permuted import stored_of
from relay_passes.errors import PassError
from relay_passes.ir import bindings_of, op_name, shape_of
from relay_passes.operators.training import matmul, normalize
from tests.relay_passes.modules import function, model, operators, run


def imported(module: nn.Module, *inputs: torch.Tensor):
    torch.manual_seed(0)
    return load_model(torch.export.export(module.eval(), inputs)).module


class Images(nn.Module):
    """What happens to images between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(8, 6, 3, groups=2)
        self.norm, self.prelu = nn.BatchNorm2d(4), nn.PReLU(4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = self.prelu(self.norm(self.first(x)))
        left, right = torch.split(x, [1, 3], dim=1)
        x = torch.cat([right, left * 2, x], dim=1)
        x = nn.functional.pad(x, (1, 2, 0, 1))[:, :, 1:]
        x = self.second(x)
        y = nn.functional.max_pool2d(x, 2) + x.mean((2, 3), keepdim=True) - x.amax(1, keepdim=True).mean()
        return y.flatten(1), x.softmax(1).permute(0, 2, 3, 1), x.mean((0, 2)), x.sum(1).unsqueeze(1)


@pytest.mark.parametrize(
    "passes",
    [
        [ChannelsLast()],
        [ExpandNormalization(), ChannelsLast()],
        [ChannelsLast(), SimplifyMovement()],
        [ChannelsLast(), FoldBatchNorm({})],
        [ChannelsLast(), FoldBatchNorm({"first.weight": None, "norm.weight": None})],
        [ChannelsLast(), FoldBatchNorm({"norm.weight": None}), SimplifyMovement()],
        [UnifyProducts(), ChannelsLast(), FoldPadding(), SimplifyMovement(), FoldBatchNorm({})],
    ],
    ids=lambda passes: ", ".join(type(p).__name__ for p in passes),
)
def test_results_stay(passes: list) -> None:
    mod = imported(Images(), torch.randn(2, 3, 9, 8))
    rng = np.random.default_rng(0)
    arrays = [rng.uniform(0.5, 1.5, shape_of(param)).astype("float32") for param in mod["main"].params]
    expected = run(mod, *arrays)
    for change in passes:
        mod = change(mod)
        relax.analysis.well_formed(mod)
    for result, wanted in zip(run(mod, *arrays), expected, strict=True):
        np.testing.assert_allclose(result, wanted, rtol=1e-4, atol=1e-5)


def test_channels_last_leaves_transposes_only_at_the_edges() -> None:
    mod = ChannelsLast()(model().module)
    convolutions = operators(mod).count("relax.nn.conv2d")
    linear = 1
    assert operators(mod).count("relax.permute_dims") == convolutions + linear + 1  # weights, and the input


def test_batch_norm_is_folded_wherever_the_scheme_allows() -> None:
    mod = ChannelsLast()(model().module)
    for trained in ({}, {"blocks.0.conv1.weight": None, "blocks.1.conv1.weight": None}, {"blocks.0.bn.bias": None}):
        folded = FoldBatchNorm(trained)(mod)
        assert "relax.nn.batch_norm" not in operators(folded)
        activations = scaled_activations(folded)
        assert not activations, (trained, activations)
    part = {"blocks.0.conv1.weight": (1, [0]), "blocks.1.conv1.weight": (1, [0])}
    assert len(scaled_activations(FoldBatchNorm(part)(mod))) == 2
    scale = {"blocks.0.bn.weight": None}
    assert len(scaled_activations(FoldBatchNorm(scale)(mod))) == 1


def scaled_activations(mod) -> list[str]:
    """The products of an image with something."""
    from relay_passes.ir import bindings_of, op_name

    return [
        binding.var.name
        for binding in bindings_of(mod["main"])
        if op_name(binding.value) == "relax.multiply"
        and len(shape_of(binding.var)) == 4
        and shape_of(binding.var)[0] == 4
    ]


def test_running_statistics_become_results() -> None:
    mod = FoldBatchNorm({}, statistics="batch")(ChannelsLast()(model().module))
    names = list(mod["main"].attrs["state_updates"])
    assert names == [f"blocks.{b}.bn.running_{s}" for b in (0, 1) for s in ("mean", "var")]
    assert len(mod["main"].ret_ty.fields) == 5


def test_statistics_that_no_step_can_update_are_refused() -> None:
    """Those that the code computes, or holds as constants, where each batch has its own."""

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.batch_norm(self.linear(x), torch.tensor([0.1, 0.2]), torch.ones(2))

    mod = imported(Fixed(), torch.randn(4, 3))
    FoldBatchNorm({})(mod)
    with pytest.raises(PassError, match="register them as buffers, or compile with batch_norm='frozen'"):
        FoldBatchNorm({}, statistics="batch")(mod)


def test_normalisations_become_one_operator() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.RMSNorm(8), nn.Unflatten(1, (4, 2)), nn.GroupNorm(2, 4))
    mod = imported(net, torch.randn(3, 6))
    expanded = ExpandNormalization()(mod)
    assert operators(expanded).count("pock.normalize") == 3
    np.testing.assert_allclose(run(expanded), run(mod), rtol=1e-4, atol=1e-5)


class TakenApart(nn.Module):
    """Normalisation and GELU as people write them by hand."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
        mean = x.mean(-1, keepdim=True)
        x = (x - mean) / torch.sqrt(((x - mean) * (x - mean)).mean(-1, keepdim=True) + 1e-5)
        x = 0.5 * (x * (1 + torch.erf(x / 1.4142135623730951)))
        return x * torch.sigmoid(x)


def test_operators_are_recovered() -> None:
    mod = relax.transform.EliminateCommonSubexpr()(imported(TakenApart(), torch.randn(3, 7)))
    recovered = RecoverOperators()(mod)
    assert operators(recovered) == ["pock.normalize", "pock.normalize", "relax.nn.gelu", "relax.nn.silu"]
    np.testing.assert_allclose(run(recovered), run(mod), rtol=1e-4, atol=1e-6)


def test_chains_of_movement_are_shortened() -> None:
    def body(emit, x, b):
        tokens = emit(R.permute_dims(emit(R.reshape(emit(R.permute_dims(x, [0, 3, 1, 2])), (2, 5, 12))), [0, 2, 1]))
        back = emit(R.permute_dims(emit(R.permute_dims(tokens, [2, 0, 1])), [1, 2, 0]))
        return emit(back + emit(R.reshape(b, (1, 1, 5))))

    mod = function({"x": (2, 3, 4, 5), "b": (5,)}, body)
    simple = SimplifyMovement()(mod)
    assert operators(simple) == ["relax.reshape", "relax.add"]
    np.testing.assert_array_equal(run(simple), run(mod))


def test_a_look_up_of_everything_in_order_is_no_look_up() -> None:
    """How an exporter writes a mask of [batch, tokens] as one of [batch, 1, 1, tokens]."""
    batch, tokens = np.arange(-3, 0).reshape(3, 1, 1, 1), np.arange(4)
    mixed = np.array([0, 2, 1]).reshape(3, 1, 1, 1)
    for rows, expected in ((batch, ["relax.reshape"]), (mixed, ["relax.index_tensor"])):
        indices = relax.Tuple([relax.const(rows, "int64"), relax.const(tokens, "int64")])
        mod = function({"x": (3, 4)}, lambda emit, x, at=indices: emit(R.index_tensor(x, at)))
        simple = SimplifyMovement()(mod)
        assert operators(simple) == expected
        x = np.arange(12, dtype="float32").reshape(3, 4)
        if rows is batch:
            np.testing.assert_array_equal(run(simple, x), x[rows, tokens])


def test_constants_that_repeat_are_kept_once() -> None:
    mask = np.broadcast_to(np.tri(4, dtype=bool), (2, 3, 4, 4))

    def body(emit, x):
        masked = emit(R.where(relax.const(mask, "bool"), x, relax.const(-1.0, "float32")))
        grown = emit(R.add(emit(R.max(masked, [0], keepdims=True)), relax.const(np.ones((2, 3, 4, 4)), "float32")))
        return emit(R.multiply(masked, grown))

    mod = function({"x": (2, 3, 4, 4)}, body)
    simple = SimplifyMovement()(mod)
    constants = [arg for b in bindings_of(simple["main"]) for arg in b.value.args if not isinstance(arg, relax.Var)]
    # What makes a result larger than its other operand is needed along that axis.
    assert [shape_of(constant) for constant in constants if shape_of(constant)] == [(1, 1, 4, 4), (2, 1, 1, 1)]
    np.testing.assert_array_equal(run(simple), run(mod))


def test_masks_that_mask_nothing_are_dropped() -> None:
    some = relax.const(np.tri(4, dtype=bool), "bool")
    everything = relax.const(np.ones((1, 4), bool), "bool")
    lowest, zero = relax.const(-1e30, "float32"), relax.const(0.0, "float32")

    def body(mask):
        def attention(emit, x):
            return emit(R.where(mask, emit(R.nn.softmax(emit(R.where(mask, x, lowest)))), zero))

        return attention

    assert operators(SimplifyMasks()(function({"x": (4, 4)}, body(everything)))) == ["relax.nn.softmax"]
    causal = function({"x": (4, 4)}, body(some))
    simple = SimplifyMasks()(causal)
    assert operators(simple) == ["relax.where", "relax.nn.softmax"]
    np.testing.assert_allclose(run(simple), run(causal))


def test_masks_are_read_as_they_were_before_they_were_repeated() -> None:
    everything, lowest = relax.const(np.ones((1, 1, 4, 1), bool), "bool"), relax.const(-1e30, "float32")

    def body(emit, x, mask):
        kept = emit(R.logical_and(everything, emit(mask > relax.const(0.0, "float32"))))
        scores = emit(R.add(emit(R.where(kept, x, lowest)), emit(R.broadcast_to(mask, (2, 1, 4, 4)))))
        return emit(R.add(scores, emit(R.broadcast_to(emit(R.sum(mask)), (5, 2, 3, 4, 4)))))

    mod = function({"x": (2, 3, 4, 4), "mask": (2, 1, 1, 4)}, body)
    simple = SimplifyMasks()(mod)
    assert "relax.logical_and" not in operators(simple)
    assert operators(simple).count("relax.broadcast_to") == 1, "the last one gives the result its shape"
    np.testing.assert_array_equal(run(simple), run(mod))


def test_only_what_is_selected_is_computed() -> None:
    """A block of a transformer whose first token alone is read: keys for all tokens, the rest for one."""

    def body(emit, x, w, v, mask):
        heads = emit(R.reshape(emit(matmul(x, w, transpose_a=False, transpose_b=False)), (2, 5, 2, 3)))
        heads = emit(R.permute_dims(heads, [0, 2, 1, 3]))
        scores = emit(emit(matmul(heads, heads, transpose_a=False, transpose_b=True)) + mask)
        attended = emit(matmul(emit(R.nn.softmax(scores)), heads, transpose_a=False, transpose_b=False))
        tokens = emit(R.reshape(emit(R.permute_dims(attended, [0, 2, 1, 3])), (2, 5, 6)))
        joined = emit(emit(matmul(tokens, v, transpose_a=False, transpose_b=False)) + x)
        normal = emit(normalize(joined, axes=[-1], center=True, epsilon=1e-5))
        return emit(R.take(emit(R.nn.gelu(normal)), relax.const(1, "int64"), axis=1))

    mod = function({"x": (2, 5, 6), "w": (6, 6), "v": (6, 6), "mask": (5, 5)}, body)
    early = SelectEarly(["w", "v"])(mod)
    extents = [shape_of(binding.var) for binding in bindings_of(early["main"])]
    assert [shape for shape in extents if math.prod(shape) >= 60] == [(2, 5, 6), (2, 5, 2, 3), (2, 2, 5, 3)]
    assert (2, 2, 1, 5) in extents
    np.testing.assert_allclose(run(early), run(mod), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("select", "narrow"),
    [
        (lambda emit, y: R.take(y, relax.const(2, "int64"), axis=1), True),
        (lambda emit, y: R.strided_slice(y, [1], [1], [3]), True),
        (lambda emit, y: R.strided_slice(y, [0, 1], [0, -2], [4, 7]), True),
        (lambda emit, y: R.strided_slice(y, [1], [0], [7], [2]), False),  # every second: not one stretch
        (lambda emit, y: R.strided_slice(y, [0, 1], [0, 0], [2, 2]), False),  # along two axes
        (lambda emit, y: emit(R.strided_slice(y, [1], [0], [2])) + emit(R.strided_slice(y, [1], [2], [4])), False),
        (lambda emit, y: emit(R.strided_slice(y, [1], [0], [7])) + y, False),  # the whole
        (lambda emit, y: R.take(y, relax.const(np.array([0, 2]), "int64"), axis=1), False),
    ],
)
def test_a_selection_moves_up_where_every_reader_selects_the_same(select: Callable[..., Any], narrow: bool) -> None:
    mod = function({"x": (4, 7), "b": (7,)}, lambda emit, x, b: emit(select(emit, emit(R.exp(emit(x + b))))))
    early = SelectEarly()(mod)
    taken = {op_name(binding.value): shape_of(binding.var) for binding in bindings_of(early["main"])}
    assert (taken["relax.exp"] != (4, 7)) is narrow
    np.testing.assert_array_equal(run(early), run(mod))


def test_nothing_is_selected_across_positions_or_from_trained_parameters() -> None:
    first = relax.const(0, "int64")
    along = function({"x": (4, 7)}, lambda emit, x: emit(R.take(emit(R.nn.softmax(x)), first, axis=1)))
    assert operators(SelectEarly()(along)) == ["relax.nn.softmax", "relax.take"]
    biased = function({"x": (4, 7), "b": (7,)}, lambda emit, x, b: emit(R.take(emit(x + b), first, axis=1)))
    assert operators(SelectEarly(["b"])(biased))[0] == "relax.add"
    assert operators(SelectEarly()(biased))[0] == "relax.strided_slice"


@pytest.mark.parametrize("transpose_a", [False, True])
def test_a_product_of_which_rows_are_read_is_made_part_by_part(transpose_a: bool) -> None:
    def body(also: Callable[..., Any]) -> Callable[..., Any]:
        def parts(emit, a, b):
            y = emit(matmul(a, b, transpose_a=transpose_a, transpose_b=False))
            return relax.Tuple(
                [emit(R.exp(emit(R.strided_slice(y, [0], [at], [at + 2])))) for at in (0, 2)] + also(emit, y)
            )

        return parts

    shapes = {"a": (3, 4) if transpose_a else (4, 3), "b": (3, 5)}
    mod = function(shapes, body(lambda _emit, _y: []))
    split = SplitGradients()(mod)
    assert operators(split) == ["relax.strided_slice", "pock.matmul"] * 2 + ["relax.exp"] * 2
    for made, expected in zip(run(split), run(mod), strict=True):
        np.testing.assert_allclose(made, expected, rtol=1e-5)
    for other in (lambda emit, y: [emit(R.sum(y))], lambda emit, y: [emit(R.strided_slice(y, [1], [0], [1]))]):
        whole = function(shapes, body(other))
        assert operators(SplitGradients()(whole)) == operators(whole)


def test_padding_moves_into_the_convolution() -> None:
    def body(emit, x, w):
        padded = emit(R.nn.pad(x, [0, 0, 0, 1, 1, 2, 0, 0]))
        return emit(R.nn.conv2d(padded, w, strides=2, data_layout="NHWC", kernel_layout="HWIO"))

    mod = function({"x": (1, 6, 5, 2), "w": (3, 3, 2, 4)}, body)
    folded = FoldPadding()(mod)
    assert operators(folded) == ["relax.nn.conv2d"]
    np.testing.assert_allclose(run(folded), run(mod), rtol=1e-5)


def test_parameters_are_stored_as_they_are_read() -> None:
    def body(emit, x, w, tied):
        y = emit(R.matmul(x, emit(R.permute_dims(w, [1, 0]))))
        return emit(emit(y + emit(R.matmul(x, emit(R.permute_dims(tied, [1, 0]))))) + emit(R.sum(tied)))

    mod = function({"x": (2, 3), "w": (4, 3), "tied": (4, 3)}, body)
    stored = StorePermuted(["w", "tied"])(mod)
    assert set(stored_of(stored["main"])) == {"w"}
    assert [shape_of(param) for param in stored["main"].params] == [(2, 3), (3, 4), (4, 3)]
    rng = np.random.default_rng(0)
    x, w, tied = (rng.standard_normal(shape).astype("float32") for shape in ((2, 3), (4, 3), (4, 3)))
    np.testing.assert_allclose(run(stored, x, w.T, tied), run(mod, x, w, tied), rtol=1e-5)


def test_a_number_times_an_operand_scales_the_product() -> None:
    """Attention's scale is part of an epilogue; a scaled operand that others read too stays."""
    scale = relax.const(0.25, "float32")

    def attention(emit, q, k):
        return emit(R.matmul(emit(q * scale), emit(R.permute_dims(k, [0, 2, 1]))))

    mod = function({"q": (2, 3, 4), "k": (2, 5, 4)}, attention)
    scaled = UnifyProducts()(mod)
    assert operators(scaled) == ["relax.permute_dims", "pock.matmul", "relax.multiply"]
    np.testing.assert_allclose(run(scaled), run(mod), rtol=1e-5)

    def read_twice(emit, q, k):
        scaled = emit(q * scale)
        return emit(emit(R.matmul(scaled, k)) + emit(R.sum(scaled)))

    mod = function({"q": (2, 3, 4), "k": (2, 4, 5)}, read_twice)
    assert operators(UnifyProducts()(mod))[:2] == ["relax.multiply", "pock.matmul"]
