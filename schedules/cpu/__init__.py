"""Schedules for CPUs with vector registers: x86 and ARM."""

from .parts import parts
from .prefetch import prefetch_results
from .schedule import comes_scheduled, schedule_cpu
from .tile import rounded_rows, tiles, vector_lanes
from .traits import Traits, traits_of

__all__ = [
    "Traits",
    "comes_scheduled",
    "parts",
    "prefetch_results",
    "rounded_rows",
    "schedule_cpu",
    "tiles",
    "traits_of",
    "vector_lanes",
]
