"""The order of elements after reshapes and transposes, against NumPy."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from relay_passes.ir.order import Order, original, permuted, transpose_between

SHAPES = [(6, 8), (2, 3, 8), (48,), (6, 2, 4), (3, 16), (2, 24), (4, 4, 3), (1, 48, 1), (8, 6)]


def moved(order: Order, size: int) -> np.ndarray:
    """The positions in the original of the elements as an order has them in memory."""
    at = np.zeros([1], int)
    for stride, extent in order:
        at = (at[:, None] + stride * np.arange(extent)).reshape(-1)
    assert at.size == size
    return at


@st.composite
def chains(draw: st.DrawFn) -> tuple[np.ndarray, Order]:
    """Elements that were reshaped and transposed a few times, in memory order, and what is known of their order."""
    array, order = np.arange(48), original(48)
    for _ in range(draw(st.integers(0, 3))):
        shape = draw(st.sampled_from(SHAPES))
        axes = draw(st.permutations(range(len(shape))))
        known = permuted(order, shape, axes)
        if known is None:
            break
        array, order = np.ascontiguousarray(array.reshape(shape).transpose(axes)), known
    return array.reshape(-1), order


@given(chains())
def test_an_order_is_where_elements_come_from(chain: tuple[np.ndarray, Order]) -> None:
    array, order = chain
    np.testing.assert_array_equal(moved(order, 48), array)


@settings(max_examples=300)
@given(chains(), chains())
def test_one_transpose_leads_from_order_to_order(one: tuple, other: tuple) -> None:
    (source, source_order), (result, result_order) = one, other
    found = transpose_between(source_order, result_order)
    if found is None:
        return
    shape, axes = found
    assert math.prod(shape) == 48
    np.testing.assert_array_equal(source.reshape(shape).transpose(axes).reshape(-1), result)


def test_packed_strips_lead_to_the_transposed_weight_and_back() -> None:
    k, n, width = 12, 32, 16
    strips = permuted(original(k * n), (k, n // width, width), (1, 0, 2))
    turned = permuted(original(k * n), (k, n), (1, 0))
    assert strips is not None and turned is not None
    assert transpose_between(strips, turned) == ([2, 12, 16], [0, 2, 1])
    assert transpose_between(strips, strips) == ([k * n], [0])
