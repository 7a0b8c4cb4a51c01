"""Records of the arrays that a trainer holds beside inputs and results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MODEL, OPTIMIZER, GRADIENT_SUM, PREPARED = "model", "optimizer", "gradient_sum", "prepared"
FROZEN, FULL, STATISTICS = "frozen", "full", "statistics"


@dataclass(frozen=True)
class Layout:
    """How a parameter is stored: its array, reshaped to ``shape``, with its axes permuted to ``axes``."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]

    def store(self, array: np.ndarray) -> np.ndarray:
        """The stored array of one in PyTorch's layout, as a view where that is possible."""
        return array.reshape(self.shape).transpose(self.axes)

    def unstore(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """A copy in PyTorch's layout, of shape ``shape``, of a stored array."""
        return np.ascontiguousarray(array.transpose(np.argsort(self.axes)).reshape(shape))


@dataclass(frozen=True)
class Parameter:
    """An array that lives as long as a trainer does."""

    name: str
    shape: tuple[int, ...]
    """Of a model's own parameter in PyTorch's layout, of all others as they are stored."""
    dtype: str
    origin: str = MODEL
    """``model`` (weights and buffers), ``optimizer``, ``gradient_sum`` (over steps that share an update), or
    ``prepared`` (computed from frozen parameters when a program is loaded)."""
    trained: Any = FROZEN
    """``frozen``, ``full``, ``statistics`` (running ones, which training updates without a gradient), or
    ``{"axis": …, "indices": …}``: the trained positions along an axis in PyTorch's layout."""
    layout: Layout | None = None
    """None where it is stored in PyTorch's layout."""
    of: str = ""
    """Of optimizer state and gradient sums the parameter that they belong to."""
    slot: str = ""
    """Of optimizer state its name in PyTorch: ``momentum_buffer``, ``exp_avg``, ``exp_avg_sq``."""
    initial: np.ndarray | None = field(default=None, repr=False, compare=False)
    """Of a model's own parameter its value before training, in PyTorch's layout; a manifest leaves it out. None of all
    others: state begins as zeros, and ``prepare`` computes the rest."""

    @property
    def is_weight(self) -> bool:
        """Whether it is a parameter or buffer of the model."""
        return self.origin == MODEL

    @property
    def is_frozen(self) -> bool:
        """Whether it is a parameter or buffer of the model that no step changes."""
        return self.is_weight and self.trained == FROZEN

    @property
    def is_state(self) -> bool:
        """Whether steps keep it for the optimizer: state or a sum of gradients."""
        return self.origin in (OPTIMIZER, GRADIENT_SUM)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    def store(self, array: np.ndarray) -> np.ndarray:
        """An array in PyTorch's layout as it is stored."""
        return array if self.layout is None else self.layout.store(array)

    def unstore(self, array: np.ndarray) -> np.ndarray:
        """A stored array in PyTorch's layout."""
        return array if self.layout is None else self.layout.unstore(array, self.shape)

    def to_json(self) -> dict[str, Any]:
        """The record in a manifest, which has it under its name."""
        record: dict[str, Any] = {"shape": list(self.shape), "dtype": self.dtype, "trained": self.trained}
        if self.layout is not None:
            record["stored"] = {"shape": list(self.layout.shape), "axes": list(self.layout.axes)}
        if not self.is_weight:
            record |= {"origin": self.origin, "of": self.of, "slot": self.slot}
        return record

    @classmethod
    def from_json(cls, name: str, record: Mapping[str, Any], initial: np.ndarray | None) -> Parameter:
        """The record that :meth:`to_json` made, with its initial value."""
        stored = record.get("stored")
        return cls(
            name,
            tuple(record["shape"]),
            record["dtype"],
            record.get("origin", MODEL),
            record["trained"],
            stored and Layout(tuple(stored["shape"]), tuple(stored["axes"])),
            record.get("of", ""),
            record.get("slot", ""),
            initial,
        )
