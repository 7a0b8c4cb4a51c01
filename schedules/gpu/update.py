"""In-place optimizer updates: an element or a vector a thread."""

from __future__ import annotations

from tvm import DataType, s_tir
from tvm.s_tir.schedule import SBlockRV

from ..decisions import Choices
from .emit import VECTOR_BYTES
from .fallback import threads_of
from .traits import GpuTraits


def update(sch: s_tir.Schedule, block: SBlockRV, traits: GpuTraits, choices: Choices) -> None:
    """Give each thread an element; in CUDA a vector of adjacent ones: loads and stores of 128 bits.

    OpenCL on a CPU joins threads to vectors by itself: there, Adam's update takes 1.7 times as long with vectors of 4.

    Decisions: ``lanes``, ``threads``.
    """
    stmt = sch.get(block)
    itemsize, adjacent = DataType(stmt.writes[0].source.ty.dtype.dtype).itemsize, int(stmt.annotations["adjacent"])
    widest = VECTOR_BYTES // itemsize if itemsize == 4 else 1  # WGSL has vectors of 32 bits alone
    offered = [lanes for lanes in (4, 2, 1) if lanes <= widest and adjacent % lanes == 0]
    lanes = choices.choose("lanes", offered, offered[0] if traits.dialect == "cuda" else 1)
    vectors, lane = sch.split(sch.fuse(*sch.get_loops(block)), [None, lanes])
    blocks, thread = sch.split(vectors, [None, threads_of("threads", traits, choices)])
    sch.bind(blocks, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    if lanes > 1:
        sch.vectorize(lane)
