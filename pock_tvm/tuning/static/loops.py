"""Loops of a function's code by its control flow, and functions of LLVM's IR."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

Graph = Mapping[str, Sequence[str]]
"""Successors of each block, by label, in the order of the text. The first block is the entry."""
COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")
}
"""Comparisons of integers, by the names that both LLVM's IR and PTX give them."""


class NoEstimateError(Exception):
    """The code does not say how long it takes."""


@dataclass
class Loop:
    """A natural loop."""

    header: str
    latches: list[str]
    blocks: set[str]
    inner: list[Loop] = field(default_factory=list)

    @property
    def own(self) -> set[str]:
        """Blocks that are in no inner loop."""
        return self.blocks - {block for loop in self.inner for block in loop.blocks}


def loops_of(graph: Graph) -> list[Loop]:
    """Return the outermost loops of a control-flow graph, those whose header comes first in the text first."""
    back = _back_edges(graph)
    order = {block: at for at, block in enumerate(graph)}
    loops = [Loop(header, latches, _body(graph, header, latches)) for header, latches in back.items()]
    roots: list[Loop] = []
    for loop in sorted(loops, key=lambda each: -len(each.blocks)):
        around = [other for other in loops if other is not loop and loop.blocks < other.blocks]
        place = min(around, key=lambda each: len(each.blocks)).inner if around else roots
        place.append(loop)
    for loop in loops:
        loop.inner.sort(key=lambda each: order[each.header])
    return sorted(roots, key=lambda each: order[each.header])


def _back_edges(graph: Graph) -> dict[str, list[str]]:
    """Return the sources of edges to blocks that a depth-first walk is still in, by target."""
    found: dict[str, list[str]] = {}
    done: set[str] = set()
    path: list[tuple[str, list[str]]] = []
    entry = next(iter(graph))
    path.append((entry, list(graph[entry])))
    active = {entry}
    while path:
        block, left = path[-1]
        if not left:
            path.pop()
            active.discard(block)
            done.add(block)
            continue
        following = left.pop(0)
        if following in active:
            found.setdefault(following, []).append(block)
        elif following not in done and following in graph:
            active.add(following)
            path.append((following, list(graph[following])))
    return found


def _body(graph: Graph, header: str, latches: Sequence[str]) -> set[str]:
    before: dict[str, list[str]] = {}
    for block, following in graph.items():
        for each in following:
            before.setdefault(each, []).append(block)
    body, left = {header}, list(latches)
    while left:
        block = left.pop()
        if block not in body:
            body.add(block)
            left += before.get(block, [])
    return body


LABEL = re.compile(r"^([\w.$-]+|\"[^\"]+\"):")
TARGET = re.compile(r"label %([\w.$-]+|\"[^\"]+\")")
SWITCH = re.compile(r"^\s*switch [^\[\n]*\[[^\]]*\]", re.MULTILINE)
"""A terminator that has a line for each target."""
DEFINITION = re.compile(r"^define .*@([\w.$]+|\"[^\"]+\")\(")


@dataclass(frozen=True)
class Function:
    """A function of LLVM's IR: its blocks' lines by label."""

    name: str
    blocks: dict[str, list[str]]

    @property
    def graph(self) -> Graph:
        """Its control flow."""
        return {label: TARGET.findall(lines[-1]) if lines else [] for label, lines in self.blocks.items()}

    @cached_property
    def definitions(self) -> dict[str, str]:
        """Expression of each value, by name."""
        lines = (line.partition(" = ") for block in self.blocks.values() for line in block if line.startswith("%"))
        return {name: expression for name, _, expression in lines}


def functions_of(text: str) -> list[Function]:
    """Return the functions of LLVM's IR."""
    found: list[Function] = []
    lines: list[str] | None = None
    for line in SWITCH.sub(lambda each: each[0].replace("\n", " "), text).splitlines():
        if start := DEFINITION.match(line):
            lines = []
            found.append(Function(start[1], {"": lines}))
        elif line == "}":
            lines = None
        elif lines is not None and (label := LABEL.match(line)):
            lines = []
            if not found[-1].blocks[""]:  # the entry has a label of its own
                found[-1].blocks.pop("")
                found[-1].blocks[""] = []
            found[-1].blocks[label[1]] = lines
        elif lines is not None and line.strip() and not line.strip().startswith(";"):
            lines.append(line.split(", !")[0].strip())
    for function in found:
        if not function.blocks[""]:
            del function.blocks[""]
    return found
