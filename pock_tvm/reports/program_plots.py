"""Plots of programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..device.files import writing
from ..device.program import Program
from ..errors import PockError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIB = 2**20


def new_figure(width: float, height: float) -> Figure:
    """Create an empty figure; width and height in inches.

    Raises
    ------
    PockError
        Matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PockError("pictures are drawn by Matplotlib: pip install 'pock-tvm[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def draw_memory(program: Program, path: Path) -> None:
    """Draw the arena of a training step over time: a box for each temporary's live range, and the bytes in use.

    Raises
    ------
    PockError
        Matplotlib is missing, or does not know the file format.
    """
    figure = new_figure(11, 5.5)
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    entry = program.manifest["entries"]["train_step"]
    boxes = entry["arena_map"]
    calls = len(entry["calls"])
    live = np.zeros(calls + 1)
    for _, _, size, first, last in boxes:
        live[first] += size
        live[last + 1] -= size
    axes = figure.subplots()
    patches = [Rectangle((first, offset / MIB), last - first + 1, size / MIB) for _, offset, size, first, last in boxes]
    collection = PatchCollection(patches, cmap="viridis", edgecolor="white", linewidth=0.3)
    collection.set_array(np.array([last - first + 1 for *_, first, last in boxes]))
    axes.add_collection(collection)
    axes.step(np.arange(calls), np.cumsum(live)[:calls] / MIB, where="post", color="crimson", label="bytes in use")
    axes.axhline(entry["arena_bytes"] / MIB, color="black", linestyle=":", label="arena")
    axes.set(xlim=(0, calls), ylim=(0, 1.05 * entry["arena_bytes"] / MIB or 1))
    axes.set(xlabel="kernel of the training step", ylabel="offset in the arena, MiB")
    bound, size = entry["arena_lower_bound"] / MIB, entry["arena_bytes"] / MIB
    axes.set_title(f"arena {size:.2f} MiB, lower bound {bound:.2f} MiB, {len(boxes)} temporaries")
    figure.colorbar(collection, ax=axes, label="kernels that it is kept for")
    axes.legend(loc="upper right")
    try:
        with writing(path):
            figure.savefig(path, dpi=150)
    except ValueError as error:
        raise PockError(f"'{path}': {error}") from error
