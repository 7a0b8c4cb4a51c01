"""Factors of a product in tiles: from memory to registers, from there to shared memory, and to a thread's registers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import tvm
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...emit import substituted, unrolled, vector, where
from ..emit import lanes_of, lanes_of_load, lanes_of_value, reads_along
from .contraction import Axis, Env, places
from .tiles import PAD_BYTES

LONGEST = 4
"""Elements of the longest vector that every dialect has."""


@dataclass(frozen=True)
class Factor:
    """A factor of a product as a block reads it: in shared memory, its terms are rows. Elements of 16 bits are of 16
    bits there too, whatever they are computed from; a thread multiplies them in the type of the sums."""

    name: str
    value: tirx.Expr
    axes: tuple[Axis, ...]
    """Axes of the result."""
    reduced: tuple[Axis, ...]
    extent: int
    """Elements along ``axes``, of which a tile has ``size``, a thread ``own``."""
    size: int
    own: int
    depth: int
    """Terms of a tile."""
    threads: int
    """Threads of a block."""
    multiplied: str
    """Type of the sums."""

    @property
    def dtype(self) -> str:
        """Type of an element."""
        return str(self.value.ty.dtype)

    @property
    def along_terms(self) -> bool:
        """Whether adjacent terms are adjacent in memory, not adjacent results."""
        return not reads_along(self.value, self.axes) and reads_along(self.value, self.reduced)

    @property
    def lanes(self) -> int:
        """Elements of a load from global memory."""
        axes, size = (self.reduced, self.depth) if self.along_terms else (self.axes, self.size)
        return math.gcd(lanes_of_load(self.value, axes, self.widest), size)

    @property
    def widest(self) -> int:
        """Most elements of a load: WGSL and Metal have no longer vectors."""
        return min(lanes_of_value(self.value), LONGEST)

    @property
    def pitch(self) -> int:
        """Elements of shared memory from a row to the next."""
        return self.size + PAD_BYTES // tvm.DataType(self.dtype).itemsize

    @property
    def elements(self) -> int:
        """Elements of shared memory for a step."""
        return self.depth * self.pitch

    def cell(self, result: tirx.Expr, term: tirx.Expr) -> tirx.Expr:
        """Return the place of an element in shared memory."""
        return term * self.pitch + result

    @property
    def loads(self) -> int:
        """Loads of all threads for a tile."""
        return self.size * self.depth // self.lanes

    @property
    def rounds(self) -> int:
        """Loads of a thread for a tile."""
        return math.ceil(self.loads / self.threads)

    def place(self, load: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr]:
        """Return result and term, in the tile, of the first element of a load."""
        if self.along_terms:
            wide = self.depth // self.lanes
            return tirx.floordiv(load, wide), tirx.floormod(load, wide) * self.lanes
        wide = self.size // self.lanes
        return tirx.floormod(load, wide) * self.lanes, tirx.floordiv(load, wide)

    def element(self, result: tirx.Expr, term: tirx.Expr, lane: tirx.Expr, terms: tirx.Expr, env: Env) -> tirx.Expr:
        """Return element ``lane`` of a load that begins at a result and a term; 0 beyond the last."""
        at = self.at(result, term, env)
        if self.lanes > 1:
            at[(self.reduced if self.along_terms else self.axes)[-1].var] += lane
        value = substituted(self.value, at)
        return tirx.if_then_else(self.inside(result, term, terms), value, tirx.const(0, self.dtype))

    def at(self, result: tirx.Expr, term: tirx.Expr, env: Env) -> dict[tirx.Var, tirx.Expr]:
        """Return the values of the axes' variables at a result and a term."""
        reduced = [Axis(axis.var, substituted(axis.extent, env)) for axis in self.reduced]
        return {**env, **places(result, self.axes), **places(term, reduced)}

    def inside(self, result: tirx.Expr, term: tirx.Expr, terms: tirx.Expr) -> tirx.Expr:
        """Return whether there is an element."""
        return tirx.all(result < self.extent, term < terms)

    def fetch(
        self, registers: tirx.Buffer, thread: tirx.Expr, first: Sequence[tirx.Expr], terms: tirx.Expr, env: Env
    ) -> None:
        """Write the loads of a thread into registers. ``first``: result and term that the tile begins at."""
        with unrolled(self.rounds) as number:
            result, term = self.place(number * self.threads + thread)
            with vector(self.lanes) as lane:
                value = self.element(first[0] + result, first[1] + term, lane, terms, env)
                T.buffer_store(registers, value, [number * self.lanes + lane])

    def share(self, registers: tirx.Buffer, memory: tirx.Buffer, thread: tirx.Expr, start: tirx.Expr | int = 0) -> None:
        """Write the stores of what a thread has loaded to shared memory, from element ``start`` on."""
        with unrolled(self.rounds) as number:
            load = number * self.threads + thread
            result, term = self.place(load)
            is_load = load < self.loads if self.loads % self.threads else None
            with where(is_load), self.across(self.lanes) as lane:
                place = self.cell(result, term + lane) if self.along_terms else self.cell(result + lane, term)
                T.buffer_store(memory, registers[number * self.lanes + lane], [start + place])

    def across(self, lanes: int) -> AbstractContextManager[tirx.Expr]:
        """Loop over the elements of a load, which are apart in shared memory if they are adjacent terms."""
        return unrolled(lanes) if self.along_terms else vector(lanes)

    def place_of(self, number: tirx.Expr, lane: tirx.Expr) -> tirx.Expr:
        """Return the place in the tile of a thread's element ``number``: vectors of adjacent elements, those of threads
        with adjacent ``lane`` side by side."""
        width = self.width
        return (tirx.floordiv(number, width) * (self.size // self.own) + lane) * width + tirx.floormod(number, width)

    @property
    def width(self) -> int:
        """Adjacent elements of a thread."""
        return min(lanes_of(self.multiplied), self.own)

    def hold(self, memory: tirx.Buffer, registers: tirx.Buffer, term: tirx.Expr, lane: tirx.Expr) -> None:
        """Write the loads of a thread's elements of one term from shared memory."""
        with unrolled(self.own // self.width) as number, vector(self.width) as at:
            place = self.cell(self.place_of(number * self.width, lane) + at, term)
            T.buffer_store(registers, memory[place].astype(self.multiplied), [number * self.width + at])
