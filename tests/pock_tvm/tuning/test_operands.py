"""Comparison of a schedule's results with those of the default."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pock_tvm.device.measuring.operands import GUARD, Memory, Operand, difference, values_of

SHAPES = [(1,), (3, 7), (17, 33), ()]


def test_operands_lie_apart_and_guarded() -> None:
    memory = Memory([Operand(shape, "float32") for shape in SHAPES])
    values = values_of(memory.operands, np.random.default_rng(0), hostile=False)
    memory.fill(values)
    assert all((array == value).all() for array, value in zip(memory.arrays(), values, strict=True))
    assert memory.is_intact() and all(address % 64 == 0 for address in memory.addresses)
    ends = [at + each.nbytes for at, each in zip(memory.addresses, memory.operands, strict=True)]
    assert all(end + GUARD <= start for end, start in zip(ends, memory.addresses[1:], strict=False))


@pytest.mark.parametrize("offset", [-1, 3 * 7 * 4, GUARD], ids=["before", "behind", "far behind"])
def test_a_write_outside_is_seen(offset: int) -> None:
    memory = Memory([Operand((1,), "float32"), Operand((3, 7), "float32")])
    start = memory.addresses[1] - memory._bytes.ctypes.data
    memory._bytes[start + offset] = 0
    assert not memory.is_intact()


def test_hostile_values_are_there_and_few() -> None:
    (values,) = values_of([Operand((33, 17), "float32")], np.random.default_rng(0), hostile=True)
    assert np.isnan(values).any() and np.isposinf(values).any() and np.isneginf(values).any()
    assert (values == 0).any() and (values == 1e4).any() and np.isfinite(values).mean() > 0.95


def test_integers_are_positions_that_exist() -> None:
    wide, mask = values_of([Operand((5,), "int64"), Operand((5,), "bool")], np.random.default_rng(0), hostile=True)
    assert (wide == 0).all() and mask.dtype == bool


RNG = np.random.default_rng(0)
ARRAY = RNG.standard_normal((17, 33)).astype("float32")


def changed(value: float, at: int = 5) -> np.ndarray:
    array = ARRAY.copy()
    array.reshape(-1)[at] = value
    return array


def test_another_order_of_a_sum_is_no_difference() -> None:
    terms = RNG.standard_normal((5000, 9)).astype("float32")
    forward, backward = (sum(rows[1:], start=rows[0]) for rows in (terms, terms[::-1]))
    assert difference([forward], [backward]) == ""


@pytest.mark.parametrize(
    ("found", "expected", "message"),
    [
        (changed(0.0), ARRAY, "operand 0: differs by"),
        (changed(math.nan), ARRAY, "NaN stands in other places"),
        (ARRAY, changed(math.nan), "NaN stands in other places"),
        (changed(math.nan, 4), changed(math.nan), "NaN stands in other places"),
        (changed(math.inf), ARRAY, "infinities stand in other places"),
        (changed(math.inf), changed(-math.inf), "infinities stand in other places"),
        (ARRAY > 0, ARRAY < 0, "100.0% of its numbers are others"),
    ],
)
def test_what_differs_is_told(found: np.ndarray, expected: np.ndarray, message: str) -> None:
    assert message in difference([found], [expected])
    assert message.replace("operand 0", "operand 1") in difference([ARRAY, found], [ARRAY, expected])


def test_what_is_equal_is_not() -> None:
    for array in (ARRAY, changed(math.nan), changed(-math.inf), np.full(3, math.nan, "float32"), np.zeros(0, "int32")):
        assert difference([array], [array.copy()]) == ""


def test_a_missing_term_is_found_among_a_million() -> None:
    terms = RNG.standard_normal((1_000_000, 4)).astype("float32")
    whole = terms.sum(0, dtype="float64").astype("float32")
    assert difference([whole - terms[np.abs(terms[:, 0]).argmax()]], [whole])
