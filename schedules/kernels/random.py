"""Random numbers by counter: Philox4x32-10, equal on every target.

Each number is a function of its position, its operator's stream, the step and a seed. Nothing is kept between steps.
(Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from .indexing import written

ROUNDS = 10
FACTORS, KEY_STEPS = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)
UNIT = 2.0**-24
"""Spacing of uniform numbers: those of float32 below 1."""
HALF = 0xFFFF
CHUNK = 256
"""Calls of the generator in one parallel task."""

Words = Sequence[tirx.Expr]


def keep(random: te.Tensor, *, count: int, rate: float, stream: int) -> te.Tensor:
    """Compute ``count`` booleans, each False with probability ``rate``. Four come of one call of the generator.

    ``random``: uint32 [1, 5], the two words of the seed and those of the step's number, the lower ones first, then the
    number of the part of the batch: part p gets the numbers from position p * count of those of the whole batch.
    """
    threshold = _u(min(round(rate * 2**32), 2**32 - 1))
    return _drawn("keep", random, count, stream, "bool", lambda words: [word >= threshold for word in words])


def uniform(random: te.Tensor, *, count: int, stream: int) -> te.Tensor:
    """Compute ``count`` float32 numbers, uniform in [0, 1). Four come of one call. ``random``: see :func:`keep`."""
    return _drawn("uniform", random, count, stream, "float32", lambda words: [_fraction(word, 0) for word in words])


def normal(random: te.Tensor, *, count: int, stream: int) -> te.Tensor:
    """Compute ``count`` float32 numbers of mean 0 and deviation 1, by the method of Box and Muller. Two come of one
    call. ``random``: see :func:`keep`."""

    def of(radius: tirx.Expr, angle: tirx.Expr) -> tirx.Expr:
        root = tirx.sqrt(tirx.const(-2.0, "float32") * tirx.log(_fraction(radius, 1)))
        return root * tirx.cos(tirx.const(2 * math.pi, "float32") * _fraction(angle, 0))

    return _drawn("normal", random, count, stream, "float32", lambda words: [of(*words[:2]), of(*words[2:])])


def drop(x: te.Tensor, kept: te.Tensor, *, scale: float, shift: float, other: float, expected: float) -> te.Tensor:
    """Compute ``scale * x + shift`` where ``kept`` is true or not zero, else ``other``. ``kept`` broadcasts.

    ``expected``, the factor of inference, has no effect here.
    """
    factor, added, instead = (tirx.const(value, x.dtype) for value in (scale, shift, other))
    leading = len(x.shape) - len(kept.shape)

    def of(*at: tirx.Expr) -> tirx.Expr:
        pairs = zip(kept.shape, at[leading:], strict=True)
        holds = kept(*(tirx.const(0, "int64") if int(extent) == 1 else place for extent, place in pairs))
        value = x(*at) * factor
        return tirx.Select(holds.astype("bool"), value + added if shift else value, instead)

    return te.compute(x.shape, of, name="drop")


def _drawn(
    name: str, random: te.Tensor, count: int, stream: int, dtype: str, numbers: Callable[[Words], list[tirx.Expr]]
) -> te.Tensor:
    """Define a kernel of ``count`` numbers, of which ``numbers`` makes some of the four words of a call."""

    def body(ins: list[tirx.Buffer], outs: list[tirx.Buffer]) -> tirx.Stmt:
        per_call = 2 if name == "normal" else 4
        is_aligned = count % per_call == 0  # else a part begins inside a call
        calls = count // per_call if is_aligned else count // per_call + 2
        chunk = min(CHUNK, calls)
        with IRBuilder() as whole, T.parallel(-(-calls // chunk)) as outer, T.serial(chunk) as inner:
            start = tirx.Cast("int32", ins[0][0, 4]) * count
            call = start // per_call + outer * chunk + inner
            words = T.alloc_buffer((6,), "uint32", scope="local")
            seed, step = ([ins[0][0, pair + word] for word in (0, 1)] for pair in (0, 2))
            for place, word in enumerate((tirx.Cast("uint32", call), _u(stream), *step, *seed)):
                T.buffer_store(words, word, [place])
            _mix(words)
            for offset, number in enumerate(numbers([words[place] for place in range(4)])):
                place = call * per_call + offset - start
                with T.If(place < count if is_aligned else tirx.all(place >= 0, place < count)), T.Then():
                    T.buffer_store(outs[0], number, [place])
        return whole.get()

    return written(name, [random], (count,), dtype, body)


def _mix(words: tirx.Buffer) -> None:
    """Mix a counter, the first four words, in ten rounds by a key, the last two, which changes with each.

    Nothing overflows: TVM tells LLVM so even of unsigned numbers. And the words are in memory, not in variables: the
    time of TVM's simplifier is exponential in a chain of these.
    """
    with T.serial(ROUNDS):
        high, low = _product(words[0], FACTORS[0])
        other, lower = _product(words[2], FACTORS[1])
        mixed = T.bind(other ^ words[1] ^ words[4]), lower, T.bind(high ^ words[3] ^ words[5]), low
        keys = [T.bind(_sum(words[4 + place], step)) for place, step in enumerate(KEY_STEPS)]
        for place, word in enumerate((*mixed, *keys)):
            T.buffer_store(words, word, [place])


def _product(word: tirx.Expr, factor: int) -> tuple[tirx.Expr, tirx.Expr]:
    """Bind the upper and the lower word of a product, by products of 16 bits."""
    small, large = _u(factor & HALF), _u(factor >> 16)
    low, high = T.bind(word & _u(HALF)), T.bind(word >> _u(16))
    first = T.bind(low * small)
    second = T.bind(high * small + (first >> _u(16)))
    third = T.bind(low * large + (second & _u(HALF)))
    upper = T.bind(high * large + (second >> _u(16)) + (third >> _u(16)))
    return upper, T.bind(_joined(third, first))


def _sum(word: tirx.Expr, added: int) -> tirx.Expr:
    """Add modulo 2^32."""
    low = T.bind((word & _u(HALF)) + _u(added & HALF))
    return _joined((word >> _u(16)) + _u(added >> 16) + (low >> _u(16)), low)


def _joined(high: tirx.Expr, low: tirx.Expr) -> tirx.Expr:
    """Join the lower 16 bits of two words."""
    return ((high & _u(HALF)) << _u(16)) | (low & _u(HALF))


def _fraction(word: tirx.Expr, added: int) -> tirx.Expr:
    """Return the upper 24 bits of a word as a fraction of 1."""
    upper = tirx.Cast("int32", word >> _u(8)) + tirx.const(added, "int32")
    return tirx.Cast("float32", upper) * tirx.const(UNIT, "float32")


def _u(value: int) -> tirx.Expr:
    return tirx.const(value, "uint32")
