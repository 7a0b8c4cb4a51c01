"""Makes synthetic batches: valid for a network and its loss, and likely to expose errors of a compiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ...device.losses import TARGET, Loss, target_name
from ...frontend import Model
from .measured import Batch

IGNORE_PERIOD = 8
"""Every n-th label is ``ignore_index``."""
NOISE = 1e-4
"""Standard deviation of the noise in a varied batch, relative to each value: zeros stay zero."""


def synthetic_batches(
    model: Model, loss: Loss, limits: Mapping[str, Sequence[int]], seed: int
) -> Iterator[Callable[[int], Batch]]:
    """Yield makers of batches, the best first; the next is for networks that refuse a batch or give no finite loss.

    A maker takes the number of a batch. ``limits`` maps an integer input to the lowest index and the number of rows of
    the table that it indexes.
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


def keyed(targets: Mapping[str, np.ndarray]) -> np.ndarray | dict[str, np.ndarray] | None:
    """The targets of a step, given by the names of the program's inputs, as ``Trainer.step`` takes them."""
    if not targets or TARGET in targets:
        return targets.get(TARGET)
    return {name.removeprefix(target_name("")): array for name, array in targets.items()}


def varied(batch: Batch, seed: int) -> Batch:
    """Perturb the floating-point inputs of a user's batch."""
    rng = np.random.default_rng(seed)

    def perturbed(array: np.ndarray) -> np.ndarray:
        if array.dtype.kind != "f":
            return array
        return (array * (1 + NOISE * rng.standard_normal(array.shape))).astype(array.dtype)

    return Batch({name: perturbed(array) for name, array in batch.inputs.items()}, batch.target)


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
    """Draw rows of a table, half of them from its ends: these may be special (padding), and get read repeatedly."""
    special = np.array([0, min(1, limit - 1), min(2, limit - 1), limit - 1])
    return np.where(rng.random(shape) < 0.5, rng.choice(special, shape), rng.integers(0, limit, shape))


def _prefix(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw masks of padded sentences: along the last axis ones, at least half, then zeros."""
    if not shape:
        return np.ones(shape, int)
    lengths = rng.integers((shape[-1] + 1) // 2, shape[-1] + 1, shape[:-1])
    return (np.arange(shape[-1]) < lengths[..., None]).astype(int)


def _target(rng: np.random.Generator, model: Model, loss: Loss) -> Any:
    """Draw a target of the loss: classes, some of them ignored, or numbers; of a loss function take its example."""
    if model.custom_loss is not None:
        return keyed(model.custom_loss.targets)
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
    if labels.size >= IGNORE_PERIOD // 2:  # not the first, which no position of a text predicts
        labels.reshape(-1)[IGNORE_PERIOD // 2 - 1 :: IGNORE_PERIOD] = loss.ignore_index
    return labels
