"""Schedules for GPUs: CUDA, Metal, OpenCL and WebGPU from one set."""

from .target import GpuTarget, gpu_target

__all__ = ["GpuTarget", "gpu_target"]
