"""Vectors of bytes that are stored one after the other, computed together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tvm_ffi
from tvm import ir, tirx
from tvm.sym import Analyzer

from ..kernels.integers import MULTIPLY_HIGH, SATURATE_INT16, SATURATE_UINT8
from ..kernels.quantized import WORD
from .vectors import lanes_of, shuffled

TOGETHER = 4
"""Vectors of 32 bits whose bytes fill one."""
MAPPED = (tirx.Add, tirx.LShift, tirx.RShift)
"""Operators that compute each lane on its own, in 16 bits."""
Four = Sequence[tirx.Expr]


@dataclass(frozen=True)
class Packing:
    """How a target packs two vectors of sums, of ``lanes``, to half of their bits each, and two of those again.

    ``pack`` leaves ``part`` lanes of the first vector, then as many of the second, and so on. Of vectors with fewer
    lanes than that, those behind them are any number's.
    """

    lanes: int
    part: int
    pack: Callable[[str, tirx.Expr, tirx.Expr], tirx.Expr]
    """By the name of the operator that saturates."""
    by_words: bool = False
    """Whether vectors are joined, and parts of them stored, by words of 32 bits; then one that is stored alone is
    packed, too. LLVM moves bytes and int16 one by one where they do not fill a vector of Hexagon's."""

    @property
    def room(self) -> int:
        """Lanes that a vector takes among those that are packed."""
        return max(self.lanes, self.part)

    def steps(self, steps: Sequence[tirx.Stmt]) -> list[tirx.Stmt]:
        """Return statements in which four neighbouring stores of saturated bytes share what computes them."""
        found: list[tirx.Stmt] = []
        group: list[tirx.BufferStore] = []
        for step in [*steps, None]:
            if len(group) == TOGETHER or not self._is_saturated(step):
                found += self._together(group)
                group = []
            if self._is_saturated(step):
                group.append(step)
            elif step is not None:
                found.append(step)
        return found

    def _is_saturated(self, step: tirx.Stmt | None) -> bool:
        value = step.value if isinstance(step, tirx.BufferStore) else None
        return name_of(value) == SATURATE_UINT8 and lanes_of(value) == self.lanes

    def _together(self, stores: Sequence[tirx.BufferStore]) -> Sequence[tirx.Stmt]:
        if len(stores) < (1 if self.by_words else 2):
            return stores
        four = [store.value.args[0] for store in (*stores, *[stores[-1]] * (TOGETHER - len(stores)))]
        value = tirx.Var("bytes", f"uint8x{TOGETHER * self.room}")
        bound = tirx.Bind(value, self.pack(SATURATE_UINT8, *self._halves(four)))
        if (
            self.lanes == self.room
            and len(stores) == TOGETHER
            and self._are_adjacent([(store.buffer, store.indices[0]) for store in stores])
        ):
            first = stores[0]
            place = tirx.Ramp(first.indices[0].base, 1, TOGETHER * self.lanes)
            natural = self._taken(value, [at for number in range(TOGETHER) for at in self._bytes_of(number)])
            return [bound, tirx.BufferStore(first.buffer, natural, [place])]
        return [
            bound,
            *(
                tirx.BufferStore(store.buffer, self._taken(value, self._bytes_of(number)), store.indices)
                for number, store in enumerate(stores)
            ),
        ]

    def _are_adjacent(self, places: Sequence[tuple[tirx.Buffer, tirx.Expr]]) -> bool:
        (buffer, first), analyzer = places[0], Analyzer()
        if not all(other.same_as(buffer) and isinstance(place, tirx.Ramp) for other, place in places):
            return False
        distances = (analyzer.simplify(place.base - first.base) for _, place in places)
        return all(
            isinstance(distance, tirx.IntImm) and int(distance) == number * self.lanes
            for number, distance in enumerate(distances)
        )

    def _taken(self, value: tirx.Expr, places: Sequence[int]) -> tirx.Expr:
        """Return some of the bytes that are packed."""
        if not self.by_words:
            return shuffled([value], places)
        words = tirx.reinterpret(f"int32x{self.room}", value)
        return tirx.reinterpret(f"uint8x{len(places)}", shuffled([words], [at // WORD for at in places[::WORD]]))

    def _bytes_of(self, number: int) -> list[int]:
        """Return where the bytes of one of four vectors lie, packed twice."""
        part = self.part
        return [TOGETHER * part * (lane // part) + part * number + lane % part for lane in range(self.lanes)]

    def _halves(self, four: Four) -> list[tirx.Expr]:
        """Return four vectors of int16 as two, each in the order of two that are packed."""
        first, names = four[0], {name_of(each) for each in four}
        (name,) = names if len(names) == 1 else ("",)
        if name == SATURATE_INT16:
            low, high, third, fourth = (each.args[0] for each in four)
            return [self.pack(name, low, high), self.pack(name, third, fourth)]
        kind = f"int16x{2 * self.room}"
        if name == MULTIPLY_HIGH:
            operands = zip(*(self._halves([each.args[at] for each in four]) for at in range(2)), strict=True)
            return [tirx.call_intrin(kind, name, *pair) for pair in operands]
        if isinstance(first, MAPPED) and all(isinstance(each, type(first)) for each in four):
            left, right = self._halves([each.a for each in four]), self._halves([each.b for each in four])
            return [type(first)(each, other) for each, other in zip(left, right, strict=True)]
        if isinstance(first, tirx.Broadcast) and all(tvm_ffi.structural_equal(first, each) for each in four):
            return [tirx.Broadcast(first.value, 2 * self.room)] * 2
        if self.by_words and all(isinstance(each, tirx.Cast) and "uint8" in str(each.value.ty.dtype) for each in four):
            return self._halves_of_bytes([each.value for each in four])
        return [self._natural(four[:2]), self._natural(four[2:])]

    def _halves_of_bytes(self, four: Four) -> list[tirx.Expr]:
        """Return four vectors of bytes as two of int16; they are one load where they lie one after the other."""
        count = self.lanes // WORD
        if all(isinstance(each, ir.TensorLoad) for each in four) and self._are_adjacent(
            [(each.source, each.indices[0]) for each in four]
        ):
            place = tirx.Ramp(four[0].indices[0].base, 1, TOGETHER * self.lanes)
            words, apart = [tirx.BufferLoad(four[0].source, [place])] * -(-self.room // self.lanes), count
        else:
            times = -(-self.room // self.lanes)
            words, apart = [each for each in four for _ in range(times)], times * count
        places = [number * apart + at % count for number in range(TOGETHER) for at in range(self.room // WORD)]
        found = shuffled([tirx.reinterpret(f"int32x{lanes_of(each) // WORD}", each) for each in words], places)
        size = TOGETHER * self.room
        wide = tirx.reinterpret(f"uint8x{size}", found).astype(f"int16x{size}")
        return [shuffled([wide], range(start, start + size // 2)) for start in (0, size // 2)]

    def _natural(self, two: Sequence[tirx.Expr]) -> tirx.Expr:
        """Return two vectors as they are packed."""
        if self.by_words:
            return self._natural_by_words(two)
        part, places = self.part, range(2 * self.lanes)
        return shuffled(two, [self.lanes * (at // part % 2) + part * (at // (2 * part)) + at % part for at in places])

    def _natural_by_words(self, two: Sequence[tirx.Expr]) -> tirx.Expr:
        """Repeat each vector up to its room: a shuffle with more lanes than its operands corrupts TVM's memory."""
        count, width = self.lanes // 2, self.room // 2
        times = -(-width // count)
        words = [tirx.reinterpret(f"int32x{count}", each) for each in two for _ in range(times)]
        places = [number * times * count + at for number in range(2) for at in range(width)]
        return tirx.reinterpret(f"int16x{2 * self.room}", shuffled(words, places))


def name_of(value: object) -> str:
    """Return the name of the operator that an expression calls; empty for any other."""
    return getattr(value.op, "name", "") if isinstance(value, ir.Call) else ""
