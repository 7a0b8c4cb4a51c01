"""Cycles of a CUDA kernel by counts of its PTX: what a warp executes, times the warps of the busiest multiprocessor.

One thread is walked through the text, from the middle of a block in the middle of the grid: only the integers that
branches depend on are computed. What is not seen: latencies that too few warps leave open, spilled registers, and
neighbours whose addresses are far apart.
"""

from __future__ import annotations

import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from schedules.gpu.text.cubin import machine_code
from schedules.gpu.traits import GpuTraits

from .loops import COMPARISONS, NoEstimateError

MOST_BLOCKS = 200_000
"""Basic blocks of a walk after which a kernel is too long to walk through: about a second."""
SCHEDULERS = 4
"""Parts of a multiprocessor, each of which starts one warp's instruction in a cycle."""
SHARED_BYTES, GLOBAL_BYTES, MEMORY_BYTES = 128, 64, 12
"""Bytes that a multiprocessor moves in a cycle: from shared memory, from the second cache, and its share of memory."""
SPECIAL_CYCLES, MATRIX_CYCLES, DOUBLE_CYCLES = 2, 2, 16
"""Cycles of a multiprocessor for one warp's special function, ``mma.m16n8k16``, and float64 arithmetic. All figures are
rough ones of recent GPUs (CUDA's programming guide, "Arithmetic Instructions")."""
LAUNCH_CYCLES = 2000
"""Cycles from a launch to the next one's start, if neither has work: about 1.5 us."""
FREE = re.compile(r"(mov|cvta|ld\.param|bra|ret)\b")
"""Instructions that become no machine code, or next to none."""
SPECIAL = re.compile(r"(ex2|lg2|sin|cos|rsqrt|sqrt|rcp|tanh|div\.[\w.]*f32)\b")
MEMORY = re.compile(r"(?:ld|st|atom|red)\.(?:volatile\.)?(global|shared|local)\b")
WIDTH = re.compile(r"(?:\.v(\d))?\.[bfsu](\d+)$")
COPY = re.compile(r"cp\.async\.c[ag]\b")
"""A copy from global to shared memory: its third operand is its bytes."""
MATRICES = re.compile(r"ldmatrix.*\.x(\d)")
"""A load of 8x8 matrices of 16-bit numbers: each thread gets four bytes of each."""
LABEL = re.compile(r"\s*([$\w]+):(?!:)")
STATEMENT = re.compile(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
REGISTER = re.compile(r"%[a-z]+[\w.]*")
BITS = re.compile(r"[sub](\d+)$")

Values = dict[str, int | None]
"""Integers of registers, without a sign: None where they depend on data."""
PREDICATES: dict[str, Callable[[int, int], bool]] = COMPARISONS | {
    "lo": operator.lt,
    "ls": operator.le,
    "hi": operator.gt,
    "hs": operator.ge,
}
OPERATIONS: dict[str, Callable[..., int]] = {
    "mov": lambda a: a,
    "cvt": lambda a: a,
    "not": lambda a: ~a,
    "neg": lambda a: -a,
    "abs": abs,
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "mad": lambda a, b, c: a * b + c,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "min": min,
    "max": max,
    "shl": lambda a, b: a << min(b, 64),
    "shr": lambda a, b: a >> min(b, 64),
    "div": lambda a, b: int(a / b) if b else 0,
    "rem": lambda a, b: int(math.fmod(a, b)) if b else 0,
    "selp": lambda a, b, condition: a if condition else b,
}


@dataclass(frozen=True)
class Instruction:
    """A statement of PTX: ``condition`` is a register, ``is_negated`` if it must be false."""

    opcode: str
    operands: tuple[str, ...]
    condition: str | None = None
    is_negated: bool = False

    @property
    def target(self) -> str:
        """Label of a branch; none at an end."""
        return self.operands[-1] if self.operands else ""


@dataclass(frozen=True)
class Block:
    """A basic block: what it costs a warp, and its last instruction if that is a branch or an end."""

    costs: Counter[str]
    code: list[Instruction]
    last: Instruction | None


def kernel_cycles(described: Mapping[str, Any], traits: GpuTraits) -> float:
    """Return the cycles of a kernel for CUDA (:func:`schedules.gpu.text.code.described`), all its launches together.

    Raises
    ------
    NoEstimateError
        How often a loop runs depends on data, or it runs too often.
    NoCudaCompilerError, ValueError
        As :func:`schedules.gpu.text.cubin.machine_code`.
    """
    text = machine_code(described["text"], traits.architecture.replace("sm_", "compute_")).rstrip(b"\0").decode()
    functions = functions_of(text)
    cycles = 0.0
    for symbol, grid, block, _ in described["launches"]:
        costs = warp_costs(functions[symbol], grid, block)
        blocks = math.ceil(math.prod(grid) / traits.cores)
        cycles += LAUNCH_CYCLES + _busiest(costs, blocks * math.ceil(math.prod(block) / traits.warp), traits.warp)
    return max(cycles, sum(described["sizes"]) / (MEMORY_BYTES * traits.cores))


def _busiest(costs: Mapping[str, float], warps: int, lanes: int) -> float:
    """Return the cycles of a multiprocessor with so many warps to run: those of its busiest unit."""
    return max(
        math.ceil(warps / SCHEDULERS) * costs["instructions"],
        warps * lanes * (costs["shared"] + costs["local"]) / SHARED_BYTES,
        warps * lanes * costs["global"] / GLOBAL_BYTES,
        warps * costs["special"] * SPECIAL_CYCLES,
        warps * costs["matrix"] * MATRIX_CYCLES,
        warps * costs["double"] * DOUBLE_CYCLES,
    )


def functions_of(text: str) -> dict[str, str]:
    """Return the bodies of a text's kernels by name."""
    parts = re.split(r"\.entry (\w+)\(", text)
    return {name: body.partition("{")[2] for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def warp_costs(body: str, grid: Sequence[int], block: Sequence[int]) -> Counter[str]:
    """Return what a warp executes of a kernel: ``instructions``, those that are ``special``, ``matrix`` or ``double``,
    and the bytes that each thread moves in ``shared``, ``local`` and ``global`` memory."""
    blocks, labels = _blocks(body)
    values: Values = {}
    for axis, blocks_along, threads in zip("xyz", grid, block, strict=True):
        values |= {f"%ctaid.{axis}": blocks_along // 2, f"%tid.{axis}": threads // 2}
        values |= {f"%nctaid.{axis}": blocks_along, f"%ntid.{axis}": threads}
    runs: Counter[int] = Counter()
    at = 0
    while at < len(blocks):
        runs[at] += 1
        if runs.total() > MOST_BLOCKS:
            raise NoEstimateError("its loops run too often to walk through")
        for each in blocks[at].code:
            values[each.operands[0]] = _result(each, values)
        at = _following(at, blocks[at].last, labels, values)
    costs: Counter[str] = Counter()
    for number, times in runs.items():
        for name, cost in blocks[number].costs.items():
            costs[name] += times * cost
    return costs


def _blocks(body: str) -> tuple[list[Block], dict[str, int]]:
    """Return the blocks of a function, and the number of each labelled one, and of the end."""
    parts: list[list[Instruction]] = [[]]
    labels: dict[str, int] = {}
    for statement in _statements(body):
        if isinstance(statement, str):
            parts.append([])
            labels[statement] = len(parts) - 1
            continue
        parts[-1].append(statement)
        if statement.opcode.startswith(("bra", "ret")):
            parts.append([])
    labels[""] = len(parts)
    needed = _needed([each for part in parts for each in part])
    return [_block(part, needed) for part in parts], labels


def _block(part: Sequence[Instruction], needed: set[str]) -> Block:
    costs: Counter[str] = Counter()
    for each in part:
        costs.update(_costs(each))
    code = [each for each in part if each.operands and each.operands[0] in needed and not _is_jump(each)]
    return Block(costs, code, part[-1] if part and _is_jump(part[-1]) else None)


def _is_jump(instruction: Instruction) -> bool:
    return instruction.opcode.startswith(("bra", "ret"))


def _statements(body: str) -> Iterator[Instruction | str]:
    """Yield instructions, and labels as text."""
    for statement in re.sub(r"//.*", "", body).split(";"):
        rest = statement.strip().lstrip("{}").strip()
        while label := LABEL.match(rest):
            yield label[1]
            rest = rest[label.end() :].strip()
        found = STATEMENT.match(rest)
        if found is not None:
            operands = tuple(each.strip() for each in re.split(r",(?![^{\[]*[}\]])", found[4]) if each.strip())
            yield Instruction(found[3], operands, found[2], bool(found[1]))


def _needed(code: Sequence[Instruction]) -> set[str]:
    """Return the registers that branches depend on."""
    sources: dict[str, set[str]] = {}
    for each in code:
        if each.operands and not _is_jump(each):
            names = {name for operand in each.operands[1:] for name in REGISTER.findall(operand)}
            sources.setdefault(each.operands[0], set()).update(names)
    left = [each.condition for each in code if _is_jump(each) and each.condition]
    needed: set[str] = set()
    while left:
        name = left.pop()
        if name not in needed:
            needed.add(name)
            left += sources.get(name, ())
    return needed


def _costs(instruction: Instruction) -> dict[str, int]:
    """Return what an instruction keeps busy: units, and bytes of memory of a thread."""
    opcode = instruction.opcode
    if FREE.match(opcode):
        return {}
    found = {"instructions": 1}
    memory, width = MEMORY.match(opcode), WIDTH.search(opcode)
    if memory and width:
        found[memory[1]] = int(width[1] or 1) * int(width[2]) // 8
    elif COPY.match(opcode):
        found["global"] = int(instruction.operands[2])
    elif matrices := MATRICES.match(opcode):
        found["shared"] = 4 * int(matrices[1])
    elif "mma" in opcode:
        found["matrix"] = 1
    elif SPECIAL.match(opcode):
        found["special"] = 1
    elif opcode.endswith("f64"):
        found["double"] = 1
    return found


def _following(at: int, last: Instruction | None, labels: Mapping[str, int], values: Values) -> int:
    """Return the number of the block that runs next: past the last one at the end."""
    if last is None:
        return at + 1
    taken = 1 if last.condition is None else values.get(last.condition)
    target = labels[last.target]
    if taken is None:
        if target <= at:
            raise NoEstimateError("how often a loop runs depends on data")
        return at + 1  # what a branch may leave out is counted
    return target if bool(taken) != last.is_negated else at + 1


def _result(instruction: Instruction, values: Mapping[str, int | None]) -> int | None:
    """Return what an instruction computes: None if that depends on data."""
    name, *parts = instruction.opcode.split(".")
    kind = parts[-1] if parts else ""
    operands = [_read(operand, kind, values) for operand in instruction.operands[1:]]
    if name == "selp":  # its condition has no sign
        operands[2] = values.get(instruction.operands[3])
    known = [operand for operand in operands if operand is not None]
    if len(known) < len(operands) or instruction.condition is not None:
        return None
    if name == "setp":
        return int(PREDICATES[parts[0]](*known)) if len(parts) == 2 and parts[0] in PREDICATES else None
    if name not in OPERATIONS:
        return None
    value, bits = OPERATIONS[name](*known), _bits(kind)
    if "hi" in parts:
        value >>= bits
    return value % (1 << (2 * bits if "wide" in parts else 64 if name == "cvt" else bits))


def _read(operand: str, kind: str, values: Mapping[str, int | None]) -> int | None:
    """Return an operand's value as a type has it."""
    value = values.get(operand)
    if re.fullmatch(r"-?(0x[\da-fA-F]+|\d+)U?", operand):
        value = int(operand.rstrip("U"), 0)
    if value is None:
        return None
    bits = _bits(kind)
    value %= 1 << bits
    return value - (1 << bits) if kind.startswith("s") and value >> (bits - 1) else value


def _bits(kind: str) -> int:
    return int(found[1]) if (found := BITS.match(kind)) else 1 if kind == "pred" else 64
