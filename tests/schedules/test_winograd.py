"""Winograd's transforms and 16 products, against the convolution that they stand for in double precision."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import te, topi

from schedules.kernels.bits import pack_bits, unpack_bits
from schedules.kernels.winograd import (
    transform_gradient,
    transform_input,
    transform_output,
    transform_weight,
    transform_weight_gradient,
)
from schedules.target import Target
from tests.schedules.kernels import assert_close, doubles, noise, run
from tests.schedules.references import conv2d_reference, weight_gradient_reference

CASES = {
    "one tile": ((1, 4, 4, 1), 1, (0, 0, 0, 0)),
    "even": ((2, 8, 6, 24), 16, (1, 1, 1, 1)),
    "odd": ((1, 7, 9, 17), 33, (1, 1, 1, 1)),
    "a row too few": ((3, 5, 8, 3), 7, (1, 0, 0, 2)),
    "wide padding": ((1, 3, 3, 33), 24, (2, 2, 2, 2)),
    "one result": ((2, 3, 3, 8), 8, (0, 0, 0, 0)),
}


@pytest.mark.parametrize("name", CASES)
def test_winograd(name: str, target: Target) -> None:
    shape, outputs, padding = CASES[name]
    x, weight = noise(name, shape, (3, 3, shape[3], outputs))
    expected = conv2d_reference(*doubles(x, weight), groups=1, strides=(1, 1), dilation=(1, 1), padding=padding)
    images = run(transform_input, x, target=target, padding=padding)
    weights = run(transform_weight, weight, target=target)
    products = np.matmul(images, weights)
    assert_close(run(transform_output, products, target=target, shape=expected.shape), expected, 1e-4)


def masked_input(bits: te.Tensor, products: te.Tensor, other: te.Tensor, *, shape: tuple[int, ...]) -> te.Tensor:
    """A gradient from one convolution to the one before it, through a ReLU whose mask is packed."""
    grad = topi.add(transform_output(products, shape=shape, turned=True), other)
    masked = topi.where(unpack_bits(bits, axis=1, extent=shape[1]), grad, topi.full((), "float32", 0.0))
    return transform_input(masked, padding=(1, 1, 1, 1), turned=True)


def test_packed_masks_lie_beside_padding(target: Target) -> None:
    shape = (1, 24, 20, 64)
    mask, products = noise("masked", shape, (16, 120, 64))
    bits = run(pack_bits, mask > 0, target=target, axis=1)
    grad = (run(transform_output, products, target=target, shape=shape, turned=True) + mask) * (mask > 0)
    expected = run(transform_input, grad, target=target, padding=(1, 1, 1, 1), turned=True)
    assert_close(run(masked_input, bits, products, mask, target=target, shape=shape), expected, 1e-5)


def test_weights_in_strips(target: Target) -> None:
    (weight,) = noise("strips", (3, 3, 7, 48))
    whole = run(transform_weight, weight, target=target)
    strips = run(transform_weight, weight, target=target, width=16)
    np.testing.assert_array_equal(np.concatenate(np.moveaxis(strips, 1, 0), axis=-1), whole)


@pytest.mark.parametrize("name", CASES)
def test_weight_gradient(name: str, target: Target) -> None:
    shape, outputs, padding = CASES[name]
    weight_shape = (3, 3, shape[3], outputs)
    x, weight = noise(name, shape, weight_shape)
    geometry = {"groups": 1, "strides": (1, 1), "dilation": (1, 1), "padding": padding}
    (grad,) = noise(name, conv2d_reference(*doubles(x, weight), **geometry).shape)
    expected = weight_gradient_reference(*doubles(x, grad), kernel_size=(3, 3), **geometry)
    images = run(transform_input, x, target=target, padding=padding)
    grads = run(transform_gradient, grad, target=target)
    sums = np.matmul(images.transpose(0, 2, 1), grads)
    assert_close(run(transform_weight_gradient, sums, target=target), expected, 1e-4)
