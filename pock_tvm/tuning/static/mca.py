"""Cycles of a CPU's code by `llvm-mca`, LLVM's model of a core: every load is a hit in the first cache."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence

import tvm
from tvm.target import Target

from ...errors import PockError
from .loops import NoEstimateError

TOOLS = ("llvm-mca-22", "llvm-mca-21", "llvm-mca-20", "llvm-mca-19", "llvm-mca")
"""Names under which it is looked for, the newest first: older ones do not know newer cores."""
ITERATIONS = 100
MODELS = {
    "cortex-a72": ("cortex-a57", "an A72 has the A57's ports, and shorter latencies"),
    "cortex-a76": ("neoverse-n1", "the server core of the A76"),
    "apple-m1": ("cyclone", "indicative only: three multiply-add ports of the M1's four"),
}
"""LLVM's model that stands for a core that has none of its own, and how near it is."""
NONE_STANDS = ("cortex-a53", "cortex-a55", "cortex-a7")
"""Cores in order. LLVM's model of an A53 writes results back in order, so that a load waits for the multiply-adds
before it; that of the A55 has twice the units of an A53."""
WRITTEN_BACK = re.compile(r"(\s*ld1r.*\[(x\d+)\]), #(\d+)")
"""A broadcast load that moves its address on: in cyclone's model the address is as late as the data."""
BRANCH = re.compile(r"\s*(b\.\w+|b|cbn?z|tbn?z|j\w+)\s.*?(\.LBB\w+)\s*$")
RETURN = re.compile(r"\s*(ret\w*|br|ud2|brk)\b")


def model_of(target: Target) -> str:
    """Return the name of LLVM's model for a target's core.

    Raises
    ------
    PockError
        None stands for it.
    """
    core = str(target.attrs.get("mcpu") or "")
    if not core or core in NONE_STANDS:
        raise PockError(f"there is no static model of the core '{core or 'generic'}': LLVM has none that is near it")
    return MODELS[core][0] if core in MODELS else core


def tool() -> str:
    """Return the name of `llvm-mca`.

    Raises
    ------
    PockError
        It is not installed.
    """
    found = next(filter(shutil.which, TOOLS), None)
    if found is None:
        raise PockError(
            "static estimates are made by llvm-mca, which is missing: apt-get install llvm (or brew install llvm)"
        )
    return found


def region_cycles(regions: Sequence[Sequence[str]], target: Target) -> list[float]:
    """Return the cycles of an iteration of each region, which are loops' bodies."""
    triple = str(target.attrs.get("mtriple") or tvm.target.codegen.llvm_get_system_triple())
    comment = "//" if "apple" in triple else "#"
    text = "\n".join(
        f"{comment} LLVM-MCA-BEGIN {number}\n" + "\n".join(lines) + f"\n{comment} LLVM-MCA-END"
        for number, lines in enumerate(regions)
    )
    text = WRITTEN_BACK.sub(r"\1\n\tadd \2, \2, #\3", text)
    command = [tool(), f"-mtriple={triple}", f"-mcpu={model_of(target)}", f"-iterations={ITERATIONS}", "--json"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoEstimateError(
            f"llvm-mca fails: {done.stderr.strip().splitlines()[0] if done.stderr.strip() else 'no word'}"
        )
    found = {
        each["Name"]: each["SummaryView"]["TotalCycles"] / ITERATIONS for each in json.loads(done.stdout)["CodeRegions"]
    }
    return [found[str(number)] for number in range(len(regions))]


def code_of(assembly: str, names: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Return the instructions of functions by block; a block begins at a label, and after a branch."""
    found: dict[str, dict[str, list[str]]] = {name: {} for name in names}
    blocks: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in assembly.splitlines():
        label = re.match(r"^([\w.$]+):", line)
        block = label and re.fullmatch(r"\.?LBB\d+_\d+", label[1])
        name = label and not block and re.sub(r"^(\.L|L_|l_|_)(?=\w)", "", label[1])
        if label and block:
            lines = blocks.setdefault(f".{label[1].lstrip('.')}", [])
        elif label and (label[1] in found or name in found):
            blocks = found[label[1] if label[1] in found else str(name)]
            lines = blocks.setdefault("entry", [])
        elif line.startswith("\t") and not line.strip().startswith((".", "#", ";", "//")):
            line = re.sub(r"\s*(//|;|\s#+\s).*", "", line)
            lines.append(re.sub(r"(?<![.\w])LBB", ".LBB", line))
            if BRANCH.match(lines[-1]) or RETURN.match(lines[-1]):
                lines = blocks.setdefault(f"after {len(blocks)}", [])
    return found


def graph_of(blocks: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the control flow of a function's blocks: a branch's target, and what follows unless it always branches."""
    labels = list(blocks)
    graph: dict[str, list[str]] = {"entry": []}
    for label, following in zip(labels, [*labels[1:], None], strict=True):
        last = blocks[label][-1] if blocks[label] else ""
        branch = BRANCH.match(last)
        graph[label] = [branch[2]] if branch else []
        always = RETURN.match(last) or (branch and branch[1] in ("b", "jmp"))
        if following is not None and not always:
            graph[label].append(following)
    return graph
