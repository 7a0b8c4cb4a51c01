"""Schedules for CPUs with vector registers: x86 and ARM."""

from .target import CpuTarget, cpu_target

__all__ = ["CpuTarget", "cpu_target"]
