"""Tasks: what is fine-tuned, on which data, and how it is measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..device.arguments import FLAG, PATH, Kind, is_number, one_of, options, whole
from ..training.recipe import Recipe


def _are_ratios(value: Any) -> bool:
    return isinstance(value, Sequence) and all(is_number(ratio) and 0 < ratio <= 1 for ratio in value)


@options(
    model=PATH, data=PATH, validation=PATH,
    recipe=one_of("a pock.Recipe", Recipe),
    batch=whole("a number of samples, at least 1", 1).or_none(),
    shapes=one_of("a mapping of input names to shapes", Mapping),
    loss=one_of("the name of a loss", str),
    optimizer=one_of("a mapping such as {'kind': 'sgd', 'momentum': 0.9}", Mapping),
    seeds=whole("a number of seeds, at least 1", 1),
    ratios=Kind("a sequence of shares in (0, 1]", _are_ratios),
    depths=whole("a number of depths, at least 1", 1).or_none(),
    flip=FLAG, crop=FLAG, trust=FLAG,
    preprocessing=one_of("a mapping: {'mean': […], 'std': […]}", Mapping),
)  # fmt: skip
@dataclass(frozen=True)
class Task:
    """A fine-tuning task: model, data, recipe, and the candidates to measure."""

    model: str
    """Path of a ``.pt2`` or ``.onnx`` file."""
    data: str
    """Path of the training data."""
    validation: str
    """Path of the validation data."""
    recipe: Recipe = field(default_factory=Recipe)
    batch: int | None = None
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    loss: str = "cross_entropy"
    optimizer: Mapping[str, Any] = field(default_factory=lambda: {"kind": "sgd", "momentum": 0.9})
    seeds: int = 3
    ratios: Sequence[float] = (0.125, 0.25, 0.5, 1.0)
    """Channel ratios at which each weight is measured."""
    depths: int | None = None
    """Number of bias counts to measure, evenly spaced; all by default."""
    flip: bool = False
    crop: bool = False
    preprocessing: Mapping[str, Sequence[float]] = field(default_factory=dict)
    trust: bool = False
    """Whether the model's file is read as it is, as :func:`pock_tvm.compile` has it. No file says this for another."""

    def settings(self) -> dict[str, Any]:
        """Return the settings that results depend on, in JSON's types; paths are left out."""
        plain = json.loads(json.dumps(asdict(self)))
        return {name: value for name, value in plain.items() if name not in ("model", "data", "validation", "trust")}
