"""Values that are saved for the backward graph: small ones, and masks as bits."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax
from tvm.relax import op as R

from relay_passes import Backward, PackMasks, SaveSmall
from relay_passes.ir import bindings_of, bytes_of, is_kept, op_name
from relay_passes.operators.attention import attention
from tests.relay_passes.modules import function, operators, run


def test_what_is_kept_is_small() -> None:
    def body(emit, x, w, v):
        hidden = emit(R.nn.relu(emit(R.matmul(x, w))))
        y = emit(R.matmul(hidden, v))
        return emit(R.log(emit(R.sum(emit(y * y)))))

    mod = Backward({"w": None})(function({"x": (4, 3), "w": (3, 3), "v": (3, 3)}, body))
    small = SaveSmall()(mod)
    kept = [
        binding
        for binding in bindings_of(small["main"])
        if is_kept(binding.var) and isinstance(binding.value, relax.Call)
    ]
    assert "relax.less_equal" in [op_name(binding.value) for binding in kept]
    assert "relax.nn.relu" not in [op_name(binding.value) for binding in kept]
    for before, after in zip(run(mod), run(small), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(("rows", "bytes_kept"), [(64, 8 * 33), (50, 7 * 33), (1, 5), (7, None)])
def test_masks_are_kept_as_bits(rows: int, bytes_kept: int | None) -> None:
    columns = 33 if rows > 1 else 33 * 17
    bytes_kept = bytes_kept if rows > 1 else -(-columns // 8)

    def body(emit, x, w, v):
        hidden = emit(R.matmul(x, w))
        positive = emit(hidden > relax.const(0.0, "float32"))
        y = emit(R.matmul(emit(R.where(positive, hidden, relax.const(0.0, "float32"))), v))
        return emit(R.log(emit(R.sum(emit(y * y)))))

    mod = SaveSmall()(Backward({"w": None})(function({"x": (rows, 3), "w": (3, columns), "v": (columns, 3)}, body)))
    packed = PackMasks()(mod)
    kept = {b.var: op_name(b.value) for b in bindings_of(packed["main"]) if is_kept(b.var)}
    masks = [var for var in kept if str(getattr(var.ty, "dtype", "")).endswith("bool")]
    bits = [bytes_of(var) for var, maker in kept.items() if maker == "pock.pack_bits"]
    assert (bits, len(masks)) == (([], 1) if bytes_kept is None else ([bytes_kept], 0))
    for before, after in zip(run(mod), run(packed), strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_mask_made_of_another_is_packed_too() -> None:
    zero, one = (relax.const(value, "float32") for value in (0.0, 1.0))

    def body(emit, x, w):
        hidden = emit(R.matmul(x, w))
        positive = emit(hidden > zero)
        between = emit(R.logical_and(positive, emit(hidden < one)))
        y = emit(emit(R.where(positive, hidden, zero)) + emit(R.where(between, hidden, one)))
        return emit(R.log(emit(R.sum(emit(y * y)))))

    mod = SaveSmall()(Backward({"w": None})(function({"x": (64, 3), "w": (3, 33)}, body)))
    packed = PackMasks()(mod)
    assert operators(packed).count("pock.pack_bits") == 2
    for before, after in zip(run(mod), run(packed), strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_mask_of_attention_is_kept_as_it_is() -> None:
    """Each of three gradients would unpack it, in a kernel of its own."""

    def body(emit, q, w, mask):
        keys = emit(R.matmul(q, w))
        kept = emit(mask > relax.const(0.0, "float32"))
        both = emit(attention(q, keys, keys, relax.Tuple([kept]), scale=1.0, masked=-1e9, causal=False, safe=False))
        result = emit(relax.TupleGetItem(both, 0))
        return emit(R.log(emit(R.sum(emit(result * result)))))

    mod = SaveSmall()(Backward({"w": None})(function({"q": (64, 3), "w": (3, 3), "mask": (64, 64)}, body)))
    assert "pock.attention_key_gradient" in operators(mod)
    assert operators(PackMasks()(mod)) == operators(mod)
