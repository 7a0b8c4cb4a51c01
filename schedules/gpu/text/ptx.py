"""Instructions of CUDA that C++ has no words for, as functions in a kernel's text.

They are those of matrix units and of copies beside the threads, of compute capability 8.0 and later:
https://docs.nvidia.com/cuda/parallel-thread-execution/. Memory is a buffer and the number of an element in it, so that
passes which shrink buffers to what is read or written leave it whole.
"""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm.backend.cuda.op import cuda_func_call
from tvm.script.ir_builder import tirx as T

PTX_TYPES = {"bfloat16": ("m16n8k16", "bf16"), "float16": ("m16n8k16", "f16"), "float32": ("m16n8k8", "tf32")}
"""PTX's shapes and names of the types that matrix units multiply: of float32, tf32."""
Place = tuple[tirx.Buffer, tirx.Expr]
"""A buffer, and the number of an element in it."""


def multiply_matrices(sums: Place, left: Place, right: Place, dtype: str) -> None:
    """Write ``C[16, 8] += A[16, k] * B[k, 8]`` of a warp, A and B of type ``dtype``; k is 16, of float32 8.

    ``sums``: C, float32, four adjacent elements of each thread. ``left``, ``right``: the first registers of what
    :func:`load_matrices` has loaded: A's four, in order; B's two, with one between them.
    """
    shape, kind = PTX_TYPES[dtype]
    _call(
        f"pock_multiply_{kind}",
        {"float* sums": sums, "unsigned* left": left, "unsigned* right": right},
        f'"mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 '
        '{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"'
        ' : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])'
        ' : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[2])',
    )


def load_matrices(registers: Place, memory: Place, *, transposed: bool) -> None:
    """Write a warp's load of four matrices of eight rows of 16 bytes from shared memory.

    Thread ``8 * i + j`` gives the place of row ``j`` of matrix ``i``, and gets the word ``thread % 4`` of row
    ``thread // 4`` of each matrix: ``registers``, uint32, four adjacent ones. ``transposed``, of 16 bits: two elements
    of a column, instead.
    """
    suffix = ".trans" if transposed else ""
    kind, pointer = _pointer(memory)
    _call(
        f"pock_load_matrices{'_transposed' * transposed}_{kind}",
        {"unsigned* registers": registers, pointer: memory},
        f'"ldmatrix.sync.aligned.m8n8.x4{suffix}.shared.b16 {{%0, %1, %2, %3}}, [%4];"'
        ' : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])'
        ' : "r"((unsigned)__cvta_generic_to_shared(memory)) : "memory"',
    )


def round_word(register: Place) -> None:
    """Write the rounding of a float32, in a register of uint32, to tf32: to nearest, ties away from zero."""
    _call(
        "pock_round_word",
        {"unsigned* word": register},
        '"cvt.rna.tf32.f32 %0, %1;" : "=r"(word[0]) : "f"(__uint_as_float(word[0]))',
    )


def pack_pair(register: Place, numbers: Place, dtype: str) -> None:
    """Write the rounding of two adjacent float32 to a type of 16 bits, to nearest, ties to even: the first is the lower
    half of a register of uint32."""
    kind = PTX_TYPES[dtype][1]
    _call(
        f"pock_pack_{kind}",
        {"unsigned* pair": register, "float* numbers": numbers},
        f'"cvt.rn.{kind}x2.f32 %0, %1, %2;" : "=r"(pair[0]) : "f"(numbers[1]), "f"(numbers[0])',
    )


def exchange(result: Place, number: Place, distance: int) -> None:
    """Write the read of a float32 of the thread of a warp whose number differs in the bit ``distance``."""
    _call(
        f"pock_exchange_{distance}",
        {"float* result": result, "float* number": number},
        f'"shfl.sync.bfly.b32 %0, %1, {distance}, 31, -1;" : "=f"(result[0]) : "f"(number[0])',
    )


def copy_vector(memory: Place, source: tirx.Expr, exists: tirx.Expr) -> None:
    """Write the start of a copy of 16 bytes to shared memory, or of zeros where ``exists`` does not hold.

    ``source``: pointer to global memory, a multiple of 16 bytes.
    """
    kind, pointer = _pointer(memory)
    _call(
        f"pock_copy_vector_{kind}",
        {pointer: memory, "const void* source": source, "int bytes": tirx.if_then_else(exists, 16, 0)},
        '"cp.async.cg.shared.global [%0], [%1], 16, %2;"'
        ' : : "r"((unsigned)__cvta_generic_to_shared(memory)), "l"(source), "r"(bytes) : "memory"',
    )


def close_copies() -> None:
    """Write the end of a group of copies: those that a thread has started since the last group."""
    _call("pock_close_copies", {}, '"cp.async.commit_group;" : : : "memory"')


def wait_for_copies(running: int) -> None:
    """Write the wait for a thread's own groups of copies, but the last ``running`` ones."""
    _call(f"pock_wait_for_copies_{running}", {}, f'"cp.async.wait_group {running};" : : : "memory"')


def _pointer(place: Place) -> tuple[str, str]:
    """Return a name for an element's size, and the declaration of a pointer ``memory`` to such."""
    is_short = tvm.DataType(str(place[0].dtype)).itemsize == 2
    return ("short", "unsigned short* memory") if is_short else ("word", "unsigned* memory")


def _call(name: str, arguments: dict[str, Place | tirx.Expr], assembly: str) -> None:
    """Write a call of a function of one instruction. ``arguments``: by their declarations in C++."""
    declared: list[str] = []
    offsets: list[str] = []
    values: list[tirx.Expr] = []
    for declaration, argument in arguments.items():
        declared.append(declaration)
        if isinstance(argument, tuple):
            kind, variable = declaration.rsplit(" ", 1)
            declared[-1:] = [f"void* {variable}_buffer", f"int {variable}_at"]
            offsets.append(f"  {kind} {variable} = ({kind}){variable}_buffer + {variable}_at;\n")
            values += [argument[0].data, argument[1]]
        else:
            values.append(argument)
    source = (
        f"\n__forceinline__ __device__ void {name}({', '.join(declared)}) {{\n"
        f"{''.join(offsets)}  asm volatile({assembly});\n}}\n"
    )
    T.evaluate(cuda_func_call(name, *values, source_code=source))
