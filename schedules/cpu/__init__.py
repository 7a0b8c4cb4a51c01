"""Schedules for CPUs with vector registers: x86 and ARM."""

from .parts import parts
from .reduction import SMALL
from .schedule import comes_scheduled, schedule_cpu
from .traits import Traits, traits_of

__all__ = ["SMALL", "Traits", "comes_scheduled", "parts", "schedule_cpu", "traits_of"]
