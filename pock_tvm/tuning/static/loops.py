"""Loops of a function's code by its control flow, and from LLVM's IR how often each runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Graph = Mapping[str, Sequence[str]]
"""Successors of each block, by label, in the order of the text. The first block is the entry."""


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


def functions_of(text: str) -> list[Function]:
    """Return the functions of LLVM's IR."""
    found: list[Function] = []
    lines: list[str] | None = None
    for line in text.splitlines():
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


PHI = re.compile(r"^(%[\w.]+) = phi i\d+ (.*)")
FROM = re.compile(r"\[ (-?\w+|%[\w.]+), %([\w.$-]+) \]")
STEP = re.compile(r"^(%[\w.]+) = (?:add|sub)(?: nuw| nsw)* i\d+ (%[\w.]+), (-?\d+)$")
COMPARE = re.compile(r"^(%[\w.]+) = icmp(?: samesign)? (\w+) i\d+ (%[\w.]+), (-?\d+)$")


def trips(function: Function, loop: Loop) -> int | None:
    """Return how often a loop runs: None if that is no constant of the code."""
    if len(loop.latches) != 1:
        return None
    lines = [line for block in loop.blocks for line in function.blocks[block]]
    steps = {found[1]: (found[2], int(found[3])) for line in lines if (found := STEP.match(line))}
    compares = {found[1]: found for line in lines if (found := COMPARE.match(line))}
    exit_ = re.match(r"^br i1 (%[\w.]+),", function.blocks[loop.latches[0]][-1])
    if exit_ is None:
        return None
    if any(line.startswith(f"{exit_[1]} = phi i1 [ true,") and "[ false," in line for line in lines):
        return 2
    compare = compares.get(exit_[1])
    if compare is None:
        return None
    end, last = compare[3], int(compare[4])
    for line in function.blocks[loop.header]:
        phi = PHI.match(line)
        if phi is None:
            continue
        sources = {block: value for value, block in FROM.findall(phi[2])}
        first = next((value for block, value in sources.items() if block not in loop.blocks), "")
        base, step = steps.get(end, (end, 0))
        following = sources.get(loop.latches[0], "")
        if phi[1] not in (base, end) or not re.fullmatch(r"-?\d+", first) or following not in steps:
            continue
        stride = steps[following][1]
        reached = last - int(first) if base == phi[1] and end in steps else last - int(first) + stride
        if stride and reached / stride >= 1 and compare[2] in ("eq", "ne"):
            return reached // stride
        if stride and compare[2] in ("ult", "slt", "ugt", "sgt"):
            return max(1, -(-abs(reached) // abs(stride)))
    return None
