"""Vectors of bytes that are stored one after the other, computed together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tvm_ffi
from tvm import ir, tirx
from tvm.sym import Analyzer

from ..kernels.integers import MULTIPLY_HIGH, SATURATE_INT16, SATURATE_UINT8
from .vectors import lanes_of, shuffled

TOGETHER = 4
"""Vectors of 32 bits whose bytes fill one."""
MAPPED = (MULTIPLY_HIGH, "tirx.shift_left", "tirx.shift_right")
"""Calls that compute each lane on its own, in 16 bits."""
Four = Sequence[tirx.Expr]


@dataclass(frozen=True)
class Packing:
    """How a target packs two vectors of sums, of ``lanes``, to half of their bits each, and two of those again.

    ``pack`` leaves ``part`` lanes of the first vector, then as many of the second, and so on.
    """

    lanes: int
    part: int
    pack: Callable[[str, tirx.Expr, tirx.Expr], tirx.Expr]
    """By the name of the operator that saturates."""

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
        return _name(value) == SATURATE_UINT8 and lanes_of(value) == self.lanes

    def _together(self, stores: Sequence[tirx.BufferStore]) -> Sequence[tirx.Stmt]:
        if len(stores) < 2:
            return stores
        four = [store.value.args[0] for store in (*stores, *[stores[-1]] * (TOGETHER - len(stores)))]
        value = tirx.Var("bytes", f"uint8x{TOGETHER * self.lanes}")
        bound = tirx.Bind(value, self.pack(SATURATE_UINT8, *self._halves(four)))
        if len(stores) == TOGETHER and self._are_adjacent(stores):
            first = stores[0]
            place = tirx.Ramp(first.indices[0].base, 1, TOGETHER * self.lanes)
            natural = shuffled([value], [at for number in range(TOGETHER) for at in self._bytes_of(number)])
            return [bound, tirx.BufferStore(first.buffer, natural, [place])]
        return [
            bound,
            *(
                tirx.BufferStore(store.buffer, shuffled([value], self._bytes_of(number)), store.indices)
                for number, store in enumerate(stores)
            ),
        ]

    def _are_adjacent(self, stores: Sequence[tirx.BufferStore]) -> bool:
        first, analyzer = stores[0], Analyzer()
        if not all(store.buffer.same_as(first.buffer) and isinstance(store.indices[0], tirx.Ramp) for store in stores):
            return False
        distances = (analyzer.simplify(store.indices[0].base - first.indices[0].base) for store in stores)
        return all(
            isinstance(distance, tirx.IntImm) and int(distance) == number * self.lanes
            for number, distance in enumerate(distances)
        )

    def _bytes_of(self, number: int) -> list[int]:
        """Return where the bytes of one of four vectors lie, packed twice."""
        part = self.part
        return [TOGETHER * part * (lane // part) + part * number + lane % part for lane in range(self.lanes)]

    def _halves(self, four: Four) -> list[tirx.Expr]:
        """Return four vectors of int16 as two, each in the order of two that are packed."""
        first, names = four[0], {_name(each) for each in four}
        (name,) = names if len(names) == 1 else ("",)
        if name == SATURATE_INT16:
            low, high, third, fourth = (each.args[0] for each in four)
            return [self.pack(name, low, high), self.pack(name, third, fourth)]
        kind = f"int16x{2 * self.lanes}"
        if name in MAPPED:
            operands = zip(*(self._halves([each.args[at] for each in four]) for at in range(2)), strict=True)
            return [tirx.call_intrin(kind, name, *pair) for pair in operands]
        if all(isinstance(each, tirx.Add) for each in four):
            left, right = self._halves([each.a for each in four]), self._halves([each.b for each in four])
            return [each + other for each, other in zip(left, right, strict=True)]
        if isinstance(first, tirx.Broadcast) and all(tvm_ffi.structural_equal(first, each) for each in four):
            return [tirx.Broadcast(first.value, 2 * self.lanes)] * 2
        return [self._natural(four[:2]), self._natural(four[2:])]

    def _natural(self, two: Sequence[tirx.Expr]) -> tirx.Expr:
        """Return two vectors as they are packed."""
        part, places = self.part, range(2 * self.lanes)
        return shuffled(two, [self.lanes * (at // part % 2) + part * (at // (2 * part)) + at % part for at in places])


def _name(value: object) -> str:
    return getattr(value.op, "name", "") if isinstance(value, ir.Call) else ""
