"""Plots of searches for schedules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..device.files import writing
from ..errors import PockError
from .program_plots import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_curves(curves: Mapping[str, Sequence[Sequence[float]]], title: str, label: str, path: Path) -> None:
    """Draw curves (:func:`curves_figure`) to a file.

    Raises
    ------
    PockError
        Matplotlib is missing, or does not know the file format.
    """
    figure = curves_figure(curves, title, label)
    try:
        with writing(path):
            figure.savefig(path, dpi=150)
    except ValueError as error:
        raise PockError(f"'{path}': {error}") from error


def curves_figure(curves: Mapping[str, Sequence[Sequence[float]]], title: str, label: str) -> Figure:
    """Draw the best found so far against trials: of each search the median of its runs, and a band from the lowest to
    the highest. ``curves``: runs by search, a number for each trial.
    """
    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    for name, runs in curves.items():
        shortest = min(map(len, runs))
        table = np.array([run[:shortest] for run in runs])
        trials = np.arange(1, shortest + 1)
        (line,) = axes.step(trials, np.median(table, axis=0), where="post", label=name)
        if len(runs) > 1:
            band = (table.min(axis=0), table.max(axis=0))
            axes.fill_between(trials, *band, step="post", alpha=0.2, color=line.get_color())
    axes.set(xlabel="trials", ylabel=label, title=title)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure
