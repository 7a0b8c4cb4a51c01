"""Hexagon: vectors of integers (HVX), scalar floats.

QEMU executes HVX's integer instructions and none of its float ones, which are there from v68 on. So kernels of floats
are scheduled for one lane, unless the target asks for vectors of floats: LLVM's feature ``hvx-qfloat``.
"""

from __future__ import annotations

import math
from dataclasses import replace

import tvm
from tvm import ir, tirx
from tvm.sym import Analyzer
from tvm.target.codegen import target_has_features

from ..kernels import PORTABLE, quantized
from ..kernels.quantized import WORD
from ..loops import loads_of
from .traits import CpuTraits
from .vectors import lanes_of, shuffled

HVX = "hvx-length128b"
"""LLVM's feature: vectors of 128 bytes."""
LANES, REGISTERS = 32, 32
"""Words of a vector, and number of vector registers."""
REGISTERS_OF_DOTS = 20
"""Registers of a tile's sums and operands in a product of words: rescaling takes five for each vector of a row. By
packets: a tile of 4 x 192 sums runs 1.2 to 1.5 times those of 2 x 192."""
VECTOR_BYTES = 128
MULTIPLY, MULTIPLY_ADD = "llvm.hexagon.V6.vrmpybusv.128B", "llvm.hexagon.V6.vrmpybusv.acc.128B"
"""Dot products of words of four uint8 and of four int8, alone or added to sums, without saturating."""
BY_NUMBER, ADD_BY_NUMBER = "llvm.hexagon.V6.vrmpybus.128B", "llvm.hexagon.V6.vrmpybus.acc.128B"
"""The same where all lanes have the same int8: a packet takes two of these on every version."""
BYTES = ("int8", "uint8")


def for_kernel(func: tirx.PrimFunc, traits: CpuTraits) -> CpuTraits:
    """Return the traits that a kernel is scheduled by: with vectors, if it computes in integers.

    A product of integers may end in floats: those of its results, which LLVM takes out of the vector one by one.
    """
    if not traits.integer_lanes:
        return traits
    has_dots = quantized.has_dots(func.body)
    if not has_dots and any("float" in str(param.ty.dtype) for param in func.params):
        return traits
    # A packet has up to two multiply-adds of vectors, whose sums are there in the next but one, and one vector load.
    # A number gets into all lanes where vectors are multiplied.
    lanes = _lanes_for(func, has_dots)
    return replace(
        traits, lanes=lanes, registers=REGISTERS_OF_DOTS if has_dots else REGISTERS, fma_ports=2,
        fma_latency=2, load_ports=1, cache_stream=1024, integer_lanes=0, broadcast_cost=1 if has_dots else 0,
    )  # fmt: skip


def _lanes_for(func: tirx.PrimFunc, has_dots: bool) -> int:
    """Return the lanes of a kernel's vectors: as many as divide its columns. Dot products take any number; for all else
    half a vector is better than most of one."""
    columns = int(func.params[-1].ty.shape[-1]) if len(func.params[-1].ty.shape) else 1
    if not has_dots and columns % (LANES // 2) == 0:
        return LANES if columns % LANES == 0 else LANES // 2
    return max(lanes for lanes in range(1, LANES + 1) if columns % lanes == 0)


def added(sums: tirx.Expr, x: tirx.Expr, weights: tirx.Expr, lanes: int) -> tirx.Expr | None:
    """Return ``sums`` and the dot products of words by one instruction; None where the weights are no vector.

    ``x`` is one word for all lanes, or a word of its own for each.

    A vector with fewer lanes than the instruction's leaves the others alone.
    """
    if lanes == LANES and isinstance(weights, tirx.Broadcast):
        return tirx.call_llvm_pure_intrin(f"int32x{LANES}", ADD_BY_NUMBER, sums, x, weights.value)
    if not 1 < lanes <= LANES or not isinstance(weights, ir.TensorLoad) or lanes_of(weights) != lanes:
        return None
    wide = full(weights)
    word = tirx.Broadcast(_loaded_at_once(x.value), LANES) if isinstance(x, tirx.Broadcast) else full(x)
    if lanes == LANES:
        return tirx.call_llvm_pure_intrin(f"int32x{LANES}", MULTIPLY_ADD, sums, word, wide)
    found = tirx.call_llvm_pure_intrin(f"int32x{LANES}", MULTIPLY, word, wide)
    return sums + shuffled([found], range(lanes))


def multiplied(x: tirx.Expr, weights: tirx.Expr) -> tirx.Expr | None:
    """Return the dot products of words by one instruction; None where the weights are no number for all lanes."""
    if lanes_of(x) != LANES or not isinstance(weights, tirx.Broadcast):
        return None
    return tirx.call_llvm_pure_intrin(f"int32x{LANES}", BY_NUMBER, x, weights.value)


def full(words: tirx.Expr) -> tirx.Expr:
    """Return a vector of all lanes, whose last ones are any number's where ``words`` has fewer.

    Vectors are repeated: a shuffle with more lanes than its operands corrupts TVM's memory.
    """
    return shuffled([words] * -(-LANES // lanes_of(words)), range(LANES))


def _loaded_at_once(x: tirx.Expr) -> tirx.Expr:
    """Return a word as one load of four neighbouring bytes; ``x`` itself if it is none.

    LLVM joins loads of bytes where words may lie at any address. Hexagon's may not: the index has to tell.
    """
    loads = loads_of(x)
    analyzer = Analyzer()
    is_word = len(loads) == WORD and all(
        load.source.same_as(loads[0].source)
        and str(load.ty.dtype) == "uint8"
        and analyzer.can_prove_equal(load.indices[0] - loads[0].indices[0], byte)
        for byte, load in enumerate(loads)
    )
    if not is_word:
        return x
    word = tirx.BufferLoad(loads[0].source, [tirx.Ramp(loads[0].indices[0], 1, WORD)])
    return tirx.reinterpret("int32", word)


def names_vectors(func: tirx.PrimFunc) -> bool:
    """Return whether a kernel may have HVX's instructions: it is for Hexagon, and does not become source code."""
    return PORTABLE not in func.attrs and target_has_features(HVX, func.attrs["target"])


def aligned(pointer: tirx.Var, alignment: int) -> tirx.Expr:
    """Return an address, told to LLVM as the multiple of ``alignment`` bytes that it is.

    Vectors and words at addresses of which it knows nothing are put together from pieces.
    """
    if alignment == 1:
        return pointer
    return tirx.call_llvm_pure_intrin(pointer.ty, "llvm.ptrmask", pointer, tirx.const(-alignment, "int32"))


def operand_alignments(func: tirx.PrimFunc) -> list[int]:
    """Return the bytes at whose multiples the operands of a kernel begin; 1 for those of which nothing is assumed.

    Tensors begin at multiples of a vector. Operands may be parts of tensors: whole rows of them along the last axis.
    """
    if not any(_is_of_bytes(param) for param in func.params):
        return [1] * len(func.params)
    return [
        math.gcd(VECTOR_BYTES, int(param.ty.shape[-1]) * tvm.DataType(str(param.ty.dtype)).itemsize)
        if len(param.ty.shape)
        else 1
        for param in func.params
    ]


def _is_of_bytes(param: tirx.Buffer) -> bool:
    """Return whether an operand holds bytes, or planes of words of them."""
    return str(param.ty.dtype) in BYTES or (str(param.ty.dtype) == "int32" and len(param.ty.shape) > 2)
