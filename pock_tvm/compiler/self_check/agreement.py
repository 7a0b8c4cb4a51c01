"""Decides whether two single-precision results agree, within the error that single precision itself has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

TIGHT_TOLERANCE = 1e-5
"""Relative to the norm: closer results agree without further measurements."""
ERROR_RATIO = 10.0
"""Largest ratio of our error to the reference's, both against double precision: sums are added in another order, and
convolutions may be transformed (Winograd)."""
LOOSE_TOLERANCE = 3e-5
"""Relative to the norm: our largest error where the reference happens to be exact."""


@dataclass(frozen=True)
class Difference:
    """Two results that do not agree."""

    relative: float
    """The norm of the difference, relative to that of the reference."""
    at: tuple[int, ...]
    """The index at which they differ most."""
    ours: float
    theirs: float
    """Both numbers there."""

    def __str__(self) -> str:
        where = f" at {list(self.at)}" if self.at else ""
        size = f" (a difference of {self.relative:.1e}, relative)" if np.isfinite(self.relative) else ""
        return f"{self.ours:.7g}{where} instead of {self.theirs:.7g}{size}"


def relative_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The norm of the difference, relative to that of the reference; both over finite elements. Truths count as 0 and
    1."""
    ours, theirs = np.asarray(ours, "float64"), np.asarray(theirs, "float64")
    finite = np.isfinite(theirs) & np.isfinite(ours)
    return norm(np.where(finite, ours - theirs, 0)) / max(norm(np.where(finite, theirs, 0)), np.finfo("float64").tiny)


def difference(
    ours: np.ndarray,
    theirs: np.ndarray,
    *,
    exact: Callable[[], np.ndarray | None],
    nearby: Callable[[], np.ndarray | None] = lambda: None,
    floor: float = 0.0,
) -> Difference | None:
    """Describe how two single-precision results differ; None where they agree.

    Two further results of the reference are computed only if these are not close; None where they are unknown.
    ``nearby``: with slightly perturbed weights, which shows the effect of rounding, across kinks too. ``exact``: in
    double precision, which is slow. Differences whose norm is below ``floor`` never count.
    """
    ours, theirs = np.asarray(ours, "float64"), np.asarray(theirs, "float64")
    if not _same_non_finite(ours, theirs):
        return _largest_difference(ours, theirs)
    distance = _distance(ours, theirs)
    if distance <= TIGHT_TOLERANCE * _size(theirs) + floor:
        return None
    perturbed = nearby()
    if (
        perturbed is not None
        and _same_non_finite(perturbed, theirs)
        and distance <= ERROR_RATIO * _distance(perturbed, theirs)
    ):
        return None
    precise = exact()
    if precise is not None:
        reference_error = _distance(theirs, precise) if _same_non_finite(theirs, precise) else np.inf
        if _distance(ours, precise) <= ERROR_RATIO * reference_error + LOOSE_TOLERANCE * _size(precise) + floor:
            return None
    return _largest_difference(ours, theirs)


def _same_non_finite(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether the non-finite elements are the same in both."""
    non_finite = ~np.isfinite(theirs)
    return np.array_equal(non_finite, ~np.isfinite(ours)) and np.array_equal(
        ours[non_finite], theirs[non_finite], equal_nan=True
    )


def _distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    finite = np.isfinite(ours) & np.isfinite(theirs)
    return norm(ours[finite] - theirs[finite])


def _size(array: np.ndarray) -> float:
    return norm(array[np.isfinite(array)])


def norm(array: np.ndarray) -> float:
    """The Euclidean norm of all elements."""
    return float(np.linalg.norm(np.asarray(array, "float64").reshape(-1)))


def _largest_difference(ours: np.ndarray, theirs: np.ndarray) -> Difference:
    incomparable = np.isfinite(ours) != np.isfinite(theirs)
    incomparable |= ~np.isfinite(theirs) & ~((ours == theirs) | (np.isnan(ours) & np.isnan(theirs)))
    with np.errstate(invalid="ignore"):
        gap = np.where(incomparable, np.inf, np.nan_to_num(np.abs(ours - theirs), nan=0.0, posinf=0.0))
    at = np.unravel_index(int(gap.argmax()), gap.shape) if gap.ndim else ()
    relative = np.inf if incomparable.any() else _distance(ours, theirs) / max(_size(theirs), np.finfo("float64").tiny)
    return Difference(float(relative), tuple(int(index) for index in at), float(ours[at]), float(theirs[at]))
