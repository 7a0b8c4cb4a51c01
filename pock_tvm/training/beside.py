"""The JSON file beside a model: preprocessing of images, and names of classes."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..device.reading import read_json, reading
from ..errors import DataError


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of images: ``(pixel / 255 - mean) / std`` per channel, at the network's size."""

    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    @classmethod
    def beside(cls, path: str | os.PathLike[str]) -> Preprocessing | None:
        """Read the JSON file beside a model (``net.json`` beside ``net.pt2``); None if it has no mean and std."""
        file, content = _beside(path)
        if not {"mean", "std"} & content.keys():
            return None
        with reading(DataError, f"'{file}' should hold mean and std, as lists of one number a channel: {{}}"):
            return cls(*(tuple(float(value) for value in content[name]) for name in ("mean", "std")))

    def to_json(self) -> dict[str, list[float]]:
        """Return the preprocessing in the form of a manifest."""
        return {"mean": list(self.mean), "std": list(self.std)}


def classes_beside(path: str | os.PathLike[str]) -> list[str] | None:
    """Read the names of the classes, in the order of the network's outputs, from the JSON file beside a model; None if
    it has none."""
    file, content = _beside(path)
    classes = content.get("classes")
    if classes is None:
        return None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise DataError(f"'{file}' should hold classes as a list of names")
    if len(set(classes)) < len(classes):
        raise DataError(f"'{file}' names a class twice: {Counter(classes).most_common(1)[0][0]!r:.60}")
    return classes


def _beside(path: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]]:
    """The JSON file beside a model, and what it holds; nothing if there is none."""
    file = Path(path).with_suffix(".json")
    if not file.is_file():
        return file, {}
    with reading(DataError, f"'{file}' beside the model cannot be read: {{}}"):
        content = read_json(file)
    if not isinstance(content, dict) or not {"mean", "std", "classes"} & content.keys():
        raise DataError(f"'{file}' beside the model should hold mean and std, or classes, by name")
    return file, content
