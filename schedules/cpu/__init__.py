"""Schedules for CPUs with vector registers: x86 and ARM."""

from .schedule import schedule_cpu

__all__ = ["schedule_cpu"]
