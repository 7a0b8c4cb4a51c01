"""Packets of a Hexagon's code: the instructions that start together, one packet after the other.

Stalls are not in them, nor what threads of a core take from each other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tvm.target import Target

from .hexagon_walk import CALL_PACKETS

HEXAGON = "hexagon"
LABEL = re.compile(r"(\.LBB\d+_\d+):")
FUNCTION = re.compile(r"([\w$]+):")
JUMP = re.compile(r"jump(?::\w+)?\s+#*(\.LBB\d+_\d+)")
LOOP = re.compile(r"loop([01])\(#*(\.LBB\d+_\d+),")


def is_hexagon(target: Target) -> bool:
    """Return whether a target is a Hexagon DSP."""
    return str(target.attrs.get("mtriple") or "").startswith(HEXAGON)


def code_of(assembly: str, names: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Return the packets of functions by block; a block begins at a label, and after a jump."""
    found: dict[str, dict[str, list[str]]] = {name: {} for name in names}
    blocks: dict[str, list[str]] = {}
    lines: list[str] = []
    packet: list[str] | None = None
    for line in map(str.strip, assembly.splitlines()):
        if label := LABEL.match(line):
            lines = blocks.setdefault(label[1], [])
        elif (function := FUNCTION.match(line)) and function[1] in found:
            blocks = found[function[1]]
            lines = blocks.setdefault("entry", [])
        elif line == "{":
            packet = []
        elif line.startswith("}") and packet is not None:
            lines.append("; ".join([*packet, line[1:].strip()]))
            packet = None
            if JUMP.search(lines[-1]) or "endloop" in lines[-1] or "return" in lines[-1] or "jumpr" in lines[-1]:
                lines = blocks.setdefault(f"after {len(blocks)}", [])
        elif packet is not None and line and not line.startswith("//"):
            packet.append(line.split("//")[0].strip())
    return found


def graph_of(blocks: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the control flow of a function's blocks: a jump's target or a hardware loop's start, and what follows
    unless it always jumps."""
    labels = list(blocks)
    starts = dict(LOOP.findall("\n".join(packet for packets in blocks.values() for packet in packets)))
    graph: dict[str, list[str]] = {}
    for label, following in zip(labels, [*labels[1:], None], strict=True):
        last = blocks[label][-1] if blocks[label] else ""
        jumps = JUMP.findall(last)
        ended = [starts[each] for each in "01" if f"endloop{each}" in last and each in starts]
        graph[label] = [*jumps, *ended]
        always = (jumps and "if (" not in last) or "return" in last or "jumpr" in last
        if following is not None and not always:
            graph[label].append(following)
    return graph


def region_cycles(regions: Sequence[Sequence[str]], target: Target) -> list[float]:
    """Return the packets of each region."""
    return [len(region) + CALL_PACKETS * sum("call " in packet for packet in region) for region in regions]
