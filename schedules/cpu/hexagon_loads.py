"""Loads of Hexagon's vectors: words that lie in several vectors, brought together by few instructions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import tvm_ffi
from tvm import ir, tirx
from tvm.sym import Analyzer

from ..kernels.quantized import WORD
from .hexagon import LANES
from .vectors import lanes_of, shuffled

ALIGN = "llvm.hexagon.V6.valignb.128B"
"""Bytes of two vectors from a number of bytes on: the first operand lies behind the second."""
DEAL, HALVES_OF_PAIR = "llvm.hexagon.V6.vdealvdd.128B", ("llvm.hexagon.V6.lo.128B", "llvm.hexagon.V6.hi.128B")
"""Even groups of bytes of two vectors, then odd ones; the groups have minus the number's bytes."""
MOST_RUNS = 3, 6
"""Runs of words of two vectors, and of more, that are brought together one by one. LLVM permutes two vectors in some
ten packets, and moves the words of more than two one by one."""
LANE_BY_LANE = tirx.Add, tirx.Sub, tirx.Mul, tirx.FloorDiv, tirx.FloorMod, tirx.Div, tirx.Mod, tirx.Min
"""Operations on vectors of indices that compute each lane of its operands' lanes."""


def loaded_by_vectors(body: tirx.Stmt) -> tirx.Stmt:
    """Load words that lie within two vectors as these two, of which one instruction takes lanes: LLVM would put single
    words together, and align again what is at a known distance from a vector's start.

    Buffers that a kernel allocates begin at multiples of a vector; of others, one at known lanes is left to LLVM.
    """
    own: list[tirx.Buffer] = []
    tvm_ffi.structural_walk(body, (tirx.AllocBuffer, lambda alloc: own.append(alloc.buffer)))

    def taken(load: ir.TensorLoad) -> tirx.Expr:
        (place,) = load.indices if len(load.indices) == 1 else (None,)
        if str(load.ty.dtype) != f"int32x{LANES}" or place is None or lanes_of(place) != LANES:
            return load
        is_own = any(each.same_as(load.source) for each in own)
        if not (isinstance(place, tirx.Ramp) and int(place.stride) == 1):
            return _loaded_apart(load, place, is_own)
        if not is_own or not (ahead := _ahead(place.base)):
            return load
        start = place.base - ahead
        return _aligned(_vector(load, start), _vector(load, start + LANES), ahead)

    return tvm_ffi.structural_map(body, (ir.TensorLoad, taken))


def _loaded_apart(load: ir.TensorLoad, place: tirx.Expr, is_own: bool) -> tirx.Expr:
    """Return words that lie within two vectors as lanes of both, or runs of them in a kernel's own buffer; other loads
    are returned unchanged."""
    analyzer = Analyzer()
    at = [analyzer.simplify(_lane_of(place, lane)) for lane in range(LANES)]
    if (places := _places(at, analyzer)) is None:
        return load
    vectors, lanes = places
    if dealt := _dealt(lanes):
        size, is_odd = dealt
        low, high = (_vector(load, start) for start in vectors)
        both = tirx.call_llvm_pure_intrin(f"int32x{2 * LANES}", DEAL, high, low, tirx.const(-size * WORD, "int32"))
        return tirx.call_llvm_pure_intrin(f"int32x{LANES}", HALVES_OF_PAIR[is_odd], both)
    runs = _runs(lanes)
    if is_own and len(runs) <= MOST_RUNS[len(vectors) > 2]:
        return _of_runs(load, vectors, lanes, runs)
    if len(vectors) > 2:
        return load
    return shuffled([_vector(load, start) for start in (vectors[0], vectors[-1])], lanes)


def _places(at: Sequence[tirx.Expr], analyzer: Analyzer) -> tuple[list[tirx.Expr], list[int]] | None:
    """Return where the vectors begin that hold words at some places, and the words' numbers in them, counted on from
    one vector to the next; None if distances are not known. Where no place in a vector is known, the first word begins
    one."""
    known = [_ahead(place) for place in at]
    distances = [analyzer.simplify(place - at[0]) for place in at] if None in known else known
    vectors: list[tirx.Expr] = []
    lanes: list[int] = []
    for place, distance in zip(at, distances, strict=True):
        if not isinstance(distance, int | tirx.IntImm):
            return None
        ahead = int(distance) % LANES
        start = analyzer.simplify(place - ahead)
        found = [number for number, vector in enumerate(vectors) if analyzer.can_prove_equal(vector, start)]
        if not found:
            found = [len(vectors)]
            vectors.append(start)
        lanes.append(found[0] * LANES + ahead)
    return vectors, lanes


def _runs(lanes: Sequence[int]) -> list[tuple[int, int]]:
    """Return the starts and ends of runs: words one behind the other, in one vector or at the border of two."""
    starts = [0]
    for lane, (before, at) in enumerate(itertools.pairwise(lanes), 1):
        if at != before + 1 and not (before % LANES == LANES - 1 and at % LANES == 0):
            starts.append(lane)
    return list(itertools.pairwise([*starts, len(lanes)]))


def _of_runs(
    load: ir.TensorLoad, vectors: Sequence[tirx.Expr], lanes: Sequence[int], runs: Sequence[tuple[int, int]]
) -> tirx.Expr:
    """Return lanes of vectors, each run of them aligned alone."""
    found = load
    for start, end in runs:
        ahead = (lanes[start] - start) % LANES
        low, high = (_vector(load, vectors[lanes[each] // LANES]) for each in (start, end - 1))
        run = _aligned(low, high, ahead) if ahead else low
        is_before = tirx.Ramp(tirx.const(0), 1, LANES) < tirx.Broadcast(tirx.const(start), LANES)
        found = tirx.Select(is_before, found, run) if start else run
    return found


def _ahead(place: tirx.Expr) -> int | None:
    """Return how many words behind the start of a vector a place lies; None if that is not known."""
    known = Analyzer().modular_set(place)
    return int(known.base) % LANES if known.coeff % LANES == 0 else None


def _number(value: tirx.Expr) -> int | None:
    return int(value) if isinstance(value, tirx.IntImm) else None


def _vector(load: ir.TensorLoad, start: tirx.Expr) -> tirx.Expr:
    return tirx.BufferLoad(load.source, [tirx.Ramp(Analyzer().simplify(start), 1, LANES)])


def _aligned(low: tirx.Expr, high: tirx.Expr, ahead: int) -> tirx.Expr:
    """Return the last words of a vector, from one on, and the first ones of another."""
    return tirx.call_llvm_pure_intrin(f"int32x{LANES}", ALIGN, high, low, tirx.const(ahead * WORD, "int32"))


def _dealt(lanes: Sequence[int]) -> tuple[int, bool] | None:
    """Return the words of the groups, of which lanes are every other one, and whether these are the odd ones."""
    for size in (2**power for power in range(LANES.bit_length() - 1)):
        for is_odd in (False, True):
            if list(lanes) == [lane // size * 2 * size + lane % size + is_odd * size for lane in range(LANES)]:
                return size, is_odd
    return None


def _lane_of(place: tirx.Expr, lane: int) -> tirx.Expr:
    """Return the index of one lane of a vector of them."""
    if isinstance(place, tirx.Ramp):
        return place.base + place.stride * lane
    if isinstance(place, tirx.Broadcast):
        return place.value
    if isinstance(place, LANE_BY_LANE):
        return type(place)(_lane_of(place.a, lane), _lane_of(place.b, lane))
    if isinstance(place, ir.Call):
        return tirx.Call(str(place.ty.dtype).split("x")[0], place.op, [_lane_of(each, lane) for each in place.args])
    return place
