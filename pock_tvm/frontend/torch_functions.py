"""Notices functions whose backward passes are not in an exported program."""

from __future__ import annotations

import re

from torch.export import ExportedProgram

APPLY, FORWARD = re.compile(r"(\w+)\.apply\("), re.compile(r'\s*File ".*", line \d+, in forward')


def functions_of(exported: ExportedProgram) -> list[str]:
    """Name the subclasses of ``torch.autograd.Function`` that a program was traced through.

    ``torch.export`` keeps the operators of their ``forward`` alone. They are told by the traces of these operators: a
    line that calls ``Name.apply(…)``, and below it a frame of a ``forward``. Traces have the
    frames of ``forward`` alone: of a function that is called in another method, goes by another name, or whose call
    begins on an earlier line, nothing is known.
    """
    found: dict[str, None] = {}
    for node in exported.graph.nodes:
        lines = (node.meta.get("stack_trace") or "").splitlines()
        for code, frame in zip(lines, lines[1:], strict=False):
            if FORWARD.fullmatch(frame):
                found |= dict.fromkeys(APPLY.findall(code))
    return list(found)
