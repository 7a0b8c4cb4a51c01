"""How often loops run, from the integers in LLVM's IR."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .loops import COMPARISONS, Function, Loop

NAME = r"%(?:[\w.$-]+|\"[^\"]+\")"
VALUE = rf"(?:{NAME}|-?\d+|true|false)"
BINARY = re.compile(rf"(\w+)(?: nuw| nsw| disjoint| exact)* i(\d+) ({VALUE}), ({VALUE})$")
COMPARE = re.compile(rf"icmp(?: samesign)? (\w+) i(\d+) ({VALUE}), ({VALUE})$")
CAST = re.compile(rf"(?:zext|sext|trunc|freeze)(?: nneg| nuw| nsw)* i\d+ ({VALUE})(?: to i\d+)?$")
SELECT = re.compile(rf"select i1 ({VALUE}), i\d+ ({VALUE}), i\d+ ({VALUE})$")
LIMIT = re.compile(rf"(?:tail )?call i(\d+) @llvm\.([su]m(?:in|ax))\.i\d+\(i\d+ ({VALUE}), i\d+ ({VALUE})\)")
PHI = re.compile(r"phi i\d+ ")
SOURCE = re.compile(rf"\[ ({VALUE}), %([\w.$-]+|\"[^\"]+\") \]")
BRANCH = re.compile(rf"br i1 ({NAME}), label %([\w.$-]+|\"[^\"]+\"), label %([\w.$-]+|\"[^\"]+\")")
OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "shl": operator.lshift,
    "lshr": operator.rshift,
    "ashr": operator.rshift,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "udiv": operator.floordiv,
    "urem": operator.mod,
}
"""Operations whose results do not wrap round: those on the counters of loops."""
WALKED = 3
"""Iterations that are walked through. Later ones follow from how the counters move between these."""


class UnknownError(Exception):
    """A value is no constant of the code."""


@dataclass(frozen=True)
class Values:
    """Integers of a function, where some phis have certain values: one iteration of the loops around."""

    function: Function
    phis: Mapping[str, int]

    def of(self, value: str) -> int:
        """Return what a value is.

        Raises
        ------
        UnknownError
            It depends on data, or on phis without a value.
        """
        if value in ("true", "false"):
            return int(value == "true")
        if not value.startswith("%"):
            return int(value)
        if value in self.phis:
            return self.phis[value]
        expression = self.function.definitions.get(value, "")
        if found := BINARY.match(expression):
            if found[1] in OPERATIONS:
                return OPERATIONS[found[1]](self.of(found[3]), self.of(found[4]))
        elif COMPARE.match(expression):
            holds, one, other = self.compared(value)
            return int(holds(one, other))
        elif found := CAST.match(expression):
            return self.of(found[1])
        elif found := SELECT.match(expression):
            return self.of(found[2] if self.of(found[1]) else found[3])
        elif found := LIMIT.match(expression):
            one, other = (_read(self.of(each), int(found[1]), found[2]) for each in (found[3], found[4]))
            return min(one, other) if found[2].endswith("min") else max(one, other)
        elif PHI.match(expression):
            sources = SOURCE.findall(expression)
            if len(sources) == 1:
                return self.of(sources[0][0])
        raise UnknownError(value)

    def compared(self, condition: str) -> tuple[Callable[[int, int], bool], int, int]:
        """Return the predicate of a condition, and what it compares."""
        found = COMPARE.match(self.function.definitions.get(condition, ""))
        if found is None:
            raise UnknownError(condition)
        one, other = (_read(self.of(each), int(found[2]), found[1]) for each in (found[3], found[4]))
        return COMPARISONS[found[1][-2:]], one, other


def _read(value: int, bits: int, operation: str) -> int:
    """Return a value as an operation sees it, whose name begins with ``u`` where it takes numbers without a sign."""
    return value % (1 << bits) if operation.startswith("u") else value


def trips(loop: Loop, around: Values) -> int | None:
    """Return how often a loop's header runs in an iteration of the loops around: None if the code does not say so."""
    walked = list(_iterations(loop, around))
    counts = []
    for condition, leaves_if in _exits(loop, around.function):
        try:
            counts.append(_first(condition, walked, leaves_if=leaves_if))
        except UnknownError:
            return None
    return min((count for count in counts if count is not None), default=None)


def first_iteration(loop: Loop, around: Values) -> Values:
    """Return the values of a loop's first iteration."""
    return next(_iterations(loop, around))


def _iterations(loop: Loop, around: Values) -> Iterator[Values]:
    """Yield the values of the first iterations."""
    function = around.function
    phis = {
        name: SOURCE.findall(expression)
        for name, _, expression in (line.partition(" = ") for line in function.blocks[loop.header])
        if PHI.match(expression)
    }
    now = around
    for number in range(WALKED):
        known = {name: value for name, value in around.phis.items() if name not in phis}
        for name, sources in phis.items():
            values = [source for source, block in sources if (block in loop.blocks) == (number > 0)]
            try:
                found = {now.of(value) for value in values}
            except UnknownError:
                continue
            if len(found) == 1:
                known[name] = found.pop()
        now = Values(function, known)
        yield now


def _exits(loop: Loop, function: Function) -> Iterator[tuple[str, bool]]:
    """Yield the conditions of branches out of a loop, and whether they leave it if true."""
    for block in loop.blocks:
        branch = BRANCH.match(function.blocks[block][-1])
        if branch and (branch[2] in loop.blocks) != (branch[3] in loop.blocks):
            yield branch[1], branch[2] not in loop.blocks


def _first(condition: str, walked: Sequence[Values], *, leaves_if: bool) -> int | None:
    """Return the number of the first iteration, from 1, that a loop leaves by a condition; None if it never does."""
    for number, values in enumerate(walked, 1):
        if values.of(condition) == leaves_if:
            return number
    holds = walked[0].compared(condition)[0]
    distances = [one - other for _, one, other in (values.compared(condition) for values in walked)]
    stride = distances[1] - distances[0]
    if any(later - earlier != stride for earlier, later in zip(distances, distances[1:], strict=False)):
        raise UnknownError(condition)
    if not stride:
        return None
    zero = -(distances[0] // stride)  # the iteration, from 0, in which both are equal, or first have passed each other
    after = (number for number in (zero, zero + 1) if number >= WALKED)
    return next((each + 1 for each in after if holds(distances[0] + stride * each, 0) == leaves_if), None)
