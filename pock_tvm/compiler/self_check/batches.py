"""Synthetic batches: valid for a network and its loss, and hard on what a compiler gets wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ...device.losses import Loss
from ...frontend import Model
from .measured import Batch

IGNORED = 8
"""One label in so many does not count."""
NOISE = 1e-4
"""Of a user's batch that is varied, relative to each value: zeros stay what they are."""


def synthetic_batches(
    model: Model, loss: Loss, limits: Mapping[str, Sequence[int]], seed: int
) -> Iterator[Callable[[int], Batch]]:
    """Makers of batches, the best first: one that a network refuses, or that gives no finite loss, is passed over.

    A maker takes the number of a batch. ``limits`` are the lowest index and the rows of the tables that integer inputs
    index.
    """
    floats = ("normal", "positive")
    integers = ("prefix", "ones", "zeros") if _has_plain_integers(model, limits) else ("prefix",)
    for float_kind in floats if any(_kind(spec.dtype) == "f" for spec in model.inputs) else floats[:1]:
        for integer_kind in integers:

            def make(number: int, float_kind: str = float_kind, integer_kind: str = integer_kind) -> Batch:
                rng = np.random.default_rng([seed, number])
                rows = {name: high for name, (_, high) in limits.items()}
                inputs = {
                    spec.name: _values(rng, spec.shape, spec.dtype, rows.get(spec.name), float_kind, integer_kind)
                    for spec in model.inputs
                }
                return Batch(inputs, _target(rng, model, loss))

            yield make


def varied(batch: Batch, seed: int) -> Batch:
    """A user's batch with every floating-point input moved a little."""
    rng = np.random.default_rng(seed)

    def moved(array: np.ndarray) -> np.ndarray:
        if array.dtype.kind != "f":
            return array
        return (array * (1 + NOISE * rng.standard_normal(array.shape))).astype(array.dtype)

    return Batch({name: moved(array) for name, array in batch.inputs.items()}, batch.target)


def _kind(dtype: str) -> str:
    return "f" if "float" in dtype else np.dtype(dtype).kind


def _has_plain_integers(model: Model, limits: Mapping[str, Sequence[int]]) -> bool:
    return any(_kind(spec.dtype) in "iu" and spec.name not in limits for spec in model.inputs)


def _values(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: str, limit: int | None, float_kind: str, integer_kind: str
) -> np.ndarray:
    kind = _kind(dtype)
    values: np.ndarray
    if kind == "f":
        values = rng.standard_normal(shape) if float_kind == "normal" else rng.uniform(0.1, 1, shape)
    elif kind == "b":
        values = rng.integers(0, 2, shape) > 0
    elif limit is not None:
        values = _indices(rng, shape, limit)
    elif integer_kind == "prefix":
        values = _prefix(rng, shape)
    else:
        values = np.full(shape, 1 if integer_kind == "ones" else 0)
    return np.asarray(values).astype(dtype)


def _indices(rng: np.random.Generator, shape: tuple[int, ...], limit: int) -> np.ndarray:
    """Rows of a table: half of them the first and the last, which are special (padding) and read several times."""
    special = np.array([0, min(1, limit - 1), min(2, limit - 1), limit - 1])
    return np.where(rng.random(shape) < 0.5, rng.choice(special, shape), rng.integers(0, limit, shape))


def _prefix(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Ones, then zeros along the last axis, as masks of padded sentences are: at least half of them ones."""
    if not shape:
        return np.ones(shape, int)
    lengths = rng.integers((shape[-1] + 1) // 2, shape[-1] + 1, shape[:-1])
    return (np.arange(shape[-1]) < lengths[..., None]).astype(int)


def _target(rng: np.random.Generator, model: Model, loss: Loss) -> Any:
    """What the loss compares with: classes of which some do not count, or numbers."""
    if not loss.has_target:
        return None
    spec = model.outputs[loss.output]
    if loss.kind == "mse":
        return rng.standard_normal(spec.shape).astype(spec.dtype)
    if loss.kind == "bce_with_logits":
        return rng.random(spec.shape).astype(spec.dtype)
    is_text = loss.kind == "causal_lm"
    classes, shape = (spec.shape[-1], spec.shape[:2]) if is_text else (spec.shape[1], spec.shape[:1] + spec.shape[2:])
    labels = rng.integers(0, classes, shape)
    if labels.size >= IGNORED // 2:  # not the first: of a text it is nobody's target
        labels.reshape(-1)[IGNORED // 2 - 1 :: IGNORED] = loss.ignore_index
    return labels
