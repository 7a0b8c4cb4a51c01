"""When two results of single precision agree: a tolerance that knows how well the numbers can be known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

TIGHT = 1e-5
"""Relative to the norm: closer results agree without a judge."""
OWN_ERROR = 10.0
"""How many times as far from double precision as the reference's single precision we may be: sums are added in another
order, and convolutions may be transformed (Winograd)."""
LOOSE = 3e-5
"""Relative to the norm: what we may be off where the reference happens to be exact."""


@dataclass(frozen=True)
class Difference:
    """Two results that do not agree."""

    relative: float
    """The norm of the difference, relative to that of the reference."""
    at: tuple[int, ...]
    """Where they differ most."""
    ours: float
    theirs: float
    """Both numbers there."""

    def __str__(self) -> str:
        where = f" at {list(self.at)}" if self.at else ""
        size = f" (a difference of {self.relative:.1e}, relative)" if np.isfinite(self.relative) else ""
        return f"{self.ours:.7g}{where} instead of {self.theirs:.7g}{size}"


def relative_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The norm of the difference, relative to that of the reference; over what is finite."""
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
    """How two results of single precision differ, or None where they agree.

    Two judges are asked only where the two are not close, and know nothing where they give None. ``nearby`` is the
    reference with weights that are a little off, which shows what rounding can make of a result, across kinks, too;
    ``exact`` the reference in double precision, which is slow. Differences whose norm is below ``floor`` never count.
    """
    ours, theirs = np.asarray(ours, "float64"), np.asarray(theirs, "float64")
    if not _same_places(ours, theirs):
        return _where(ours, theirs)
    distance = _distance(ours, theirs)
    if distance <= TIGHT * _size(theirs) + floor:
        return None
    shaken = nearby()
    if shaken is not None and _same_places(shaken, theirs) and distance <= OWN_ERROR * _distance(shaken, theirs):
        return None
    precise = exact()
    if precise is not None:
        own = _distance(theirs, precise) if _same_places(theirs, precise) else np.inf
        if _distance(ours, precise) <= OWN_ERROR * own + LOOSE * _size(precise) + floor:
            return None
    return _where(ours, theirs)


def _same_places(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether what is not finite is the same in both."""
    off = ~np.isfinite(theirs)
    return np.array_equal(off, ~np.isfinite(ours)) and np.array_equal(ours[off], theirs[off], equal_nan=True)


def _distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    finite = np.isfinite(ours) & np.isfinite(theirs)
    return norm(ours[finite] - theirs[finite])


def _size(array: np.ndarray) -> float:
    return norm(array[np.isfinite(array)])


def norm(array: np.ndarray) -> float:
    """The Euclidean norm of all elements."""
    return float(np.linalg.norm(np.asarray(array, "float64").reshape(-1)))


def _where(ours: np.ndarray, theirs: np.ndarray) -> Difference:
    off = np.isfinite(ours) != np.isfinite(theirs)
    off |= ~np.isfinite(theirs) & ~((ours == theirs) | (np.isnan(ours) & np.isnan(theirs)))
    with np.errstate(invalid="ignore"):
        gap = np.where(off, np.inf, np.nan_to_num(np.abs(ours - theirs), nan=0.0, posinf=0.0))
    at = np.unravel_index(int(gap.argmax()), gap.shape) if gap.ndim else ()
    relative = np.inf if off.any() else _distance(ours, theirs) / max(_size(theirs), np.finfo("float64").tiny)
    return Difference(float(relative), tuple(int(index) for index in at), float(ours[at]), float(theirs[at]))
