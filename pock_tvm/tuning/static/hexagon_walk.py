"""Packets that a function of Hexagon's runs, by a walk through its assembly.

Counters and addresses are computed as the code does; what it loads of its operands is unknown.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from .loops import NoEstimateError

MOST_PACKETS = 200_000
"""Packets that are walked through, those of skipped rounds apart: about a second."""
CALL_PACKETS = 12
"""Packets of a call: those of a division, which calls are for most of all."""
BITS = 32
STACK, OPERANDS = 0x7F000000, 6
"""Address of the stack at the start, and operands in registers."""
OPERAND_BYTES = 0x04000000
"""Bytes between the addresses that operands are taken to have."""
REGISTER = r"(?:r\d+:\d+|[rp]\d+)"
ASSIGNED = re.compile(rf"({REGISTER}) = (.+)")
WRITTEN = re.compile(rf"({REGISTER}(?:,p\d+)?) [-+&|^]?= ")
CALLED = re.compile(r"([\w.]+)\(([^()]*)\)$")
CONDITION = re.compile(r"if \((!?)(p\d+)(?:\.new)?\) (.+)")
COMPARED_JUMP = re.compile(r"if \((!?)(cmp\.\w+\([^()]*\))\) (jump.+)")
JUMP = re.compile(r"jump(?::\w+)? #*(\.LBB\d+_\d+)")
LOOP = re.compile(r"loop([01])\(#*(\.LBB\d+_\d+),(.+)\)")
MEMORY = re.compile(r"mem([wd])\((r\d+)\+#(-?\d+)\)")
MOVED_ON = re.compile(r"\((r\d+)\+\+#(-?\d+)\)")


def _signed(value: int) -> int:
    return (value & 0xFFFFFFFF) - ((value & 0x80000000) << 1)


OPERATIONS: dict[str, Callable[..., int]] = {
    "add": operator.add,
    "sub": operator.sub,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "mpyi": operator.mul,
    "asl": operator.lshift,
    "lsr": lambda value, bits: (value & 0xFFFFFFFF) >> bits,
    "asr": operator.rshift,
    "addasl": lambda value, other, bits: value + (other << bits),
    "min": min,
    "max": max,
    "setbit": lambda value, bit: value | 1 << bit,
    "cmp.eq": operator.eq,
    "cmp.gt": operator.gt,
    "cmp.gtu": lambda one, other: (one & 0xFFFFFFFF) > (other & 0xFFFFFFFF),
}
Value = int | None
"""Number of a register, with its sign; None if it depends on data."""
Known = dict[str | int, int]
"""Known values of registers by name, and of the stack by address."""


@dataclass
class _State:
    registers: dict[str, Value]
    stack: dict[int, Value] = field(default_factory=dict)
    loops: dict[str, tuple[str, Value]] = field(default_factory=dict)
    """Starts and remaining rounds of the hardware loops."""

    def known(self) -> Known:
        known: Known = {name: value for name, value in self.registers.items() if value is not None}
        return known | {address: value for address, value in self.stack.items() if value is not None}

    def take(self, known: Known) -> None:
        for place, value in known.items():
            if isinstance(place, str):
                self.registers[place] = value
            else:
                self.stack[place] = value

    def read(self, operand: str, new: Mapping[str, Value]) -> Value:
        operand, is_new = operand.strip().removesuffix(".new"), operand.strip().endswith(".new")
        if operand.startswith("#"):
            number = operand.lstrip("#")
            return int(number) if number.lstrip("-").isdigit() else None  # the address of a constant
        if operand.startswith("!"):
            value = self.read(operand[1:], new)
            return None if value is None else int(not value)
        if is_new and operand in new:
            return new[operand]
        return self.registers.get(operand)


def packets_run(blocks: Mapping[str, Sequence[str]]) -> int:
    """Return the packets that a function runs, by its blocks' (:func:`pock_tvm.tuning.static.packets.code_of`).

    Raises
    ------
    NoEstimateError
        A branch depends on data, or the walk is too long.
    """
    return _Walk(blocks).run()


class _Walk:
    def __init__(self, blocks: Mapping[str, Sequence[str]]) -> None:
        self._packets = [packet for block in blocks.values() for packet in block]
        self._starts: dict[str, int] = {}
        at = 0
        for label, block in blocks.items():
            self._starts[label] = at
            at += len(block)
        operands: dict[str, Value] = {f"r{number}": (number + 1) * OPERAND_BYTES for number in range(OPERANDS)}
        self._state = _State(operands | {"r29": STACK})
        self._count = 0
        self._branched = False
        """Whether a branch came since the last round of the inner loop began."""
        self._rounds: list[tuple[int, Known]] = []
        """Packets, and known values, at the ends of the inner loop's last rounds."""

    def run(self) -> int:
        at: int | None = 0
        for _ in range(MOST_PACKETS):
            at = None if at is None else self._step(at)
            if at is None:
                return self._count
        raise NoEstimateError("its code is too long to be walked through")

    def _step(self, at: int) -> int | None:
        """Run a packet; return the place of the next one, None at the end."""
        packet, state = self._packets[at], self._state
        self._count += 1
        new: dict[str, Value] = {}
        stored: dict[int, Value] = {}
        target: str | None = None
        for instruction in _in_order(packet):
            if (jump := self._taken(instruction, new)) is not None:
                self._branched = True
                target = target or jump or None
            elif found := LOOP.match(instruction):
                state.loops[found[1]] = found[2], state.read(found[3], new)
                self._rounds, self._branched = [], False
            elif "call " in instruction:
                self._count += CALL_PACKETS
                new |= {f"r{number}": None for number in (*range(16), 28)} | {f"p{number}": None for number in range(4)}
            else:
                self._write(instruction, new, stored)
        state.registers |= new
        state.stack |= stored
        if "jumpr" in packet or "return" in packet:
            return None
        if target is not None:
            return self._starts[target]
        for number in "01":
            if f"endloop{number}" in packet or "endloop01" in packet:
                start, left = state.loops[number]
                if left is None:
                    raise NoEstimateError("how often a loop runs depends on data")
                if left > 1:
                    state.loops[number] = start, left - 1
                    if number == "0":
                        self._skip()
                    return self._starts[start]
                self._branched = True
        return at + 1

    def _taken(self, instruction: str, new: Mapping[str, Value]) -> str | None:
        """Return the target of a jump, "" if it is not taken, None for other instructions."""
        if (found := JUMP.match(instruction)) is not None:
            return found[1]
        if found := COMPARED_JUMP.match(instruction):
            holds = self._value(found[2], new)
        elif (found := CONDITION.match(instruction)) and found[3].startswith("jump"):
            holds = self._state.read(found[2] + (".new" if ".new" in instruction else ""), new)
        else:
            return None
        if holds is None:
            raise NoEstimateError("a branch depends on data")
        (target,) = JUMP.findall(found[3])
        return target if bool(holds) != bool(found[1]) else ""

    def _write(self, instruction: str, new: dict[str, Value], stored: dict[int, Value]) -> None:
        """Write what an instruction changes, of registers and of the stack."""
        state = self._state
        if condition := CONDITION.match(instruction):
            holds = state.read(condition[2] + (".new" if f"{condition[2]}.new" in instruction else ""), new)
            if holds is not None and bool(holds) == bool(condition[1]):
                return
            if holds is None:
                new |= dict.fromkeys(_written(condition[3]))
                return
            instruction = condition[3]
        for name, distance in MOVED_ON.findall(instruction):
            value = state.registers.get(name)
            new[name] = None if value is None else _signed(value + int(distance))
        if store := re.match(rf"{MEMORY.pattern} = (\S+)", instruction):
            address = self._address(store)
            if address is not None:
                parts = _halves(store[4]) if store[1] == "d" else [store[4]]
                stored |= {address + 4 * number: state.read(part, new) for number, part in enumerate(parts)}
            return
        if instruction.startswith("allocframe"):
            (size,) = re.findall(r"#(\d+)", instruction)
            frame = int(state.registers["r29"] or 0) - 8
            new |= {"r30": frame, "r29": frame - int(size)}
            return
        if (found := ASSIGNED.fullmatch(instruction)) is None or instruction.startswith("v"):
            new |= dict.fromkeys(_written(instruction))
            return
        name, text = found[1], found[2]
        if load := MEMORY.fullmatch(text):
            address = self._address(load)
            parts = _halves(name) if load[1] == "d" else [name]
            for number, part in enumerate(parts):
                new[part] = None if address is None else state.stack.get(address + 4 * number)
        elif ":" in name:
            low, high = _halves(name)
            pair = re.fullmatch(r"combine\(([^,]+),([^,]+)\)", text)
            new |= {high: state.read(pair[1], new), low: state.read(pair[2], new)} if pair else {low: None, high: None}
        else:
            new[name] = self._value(text, new)

    def _address(self, memory: re.Match[str]) -> int | None:
        base = self._state.registers.get(memory[2])
        return None if base is None else base + int(memory[3])

    def _value(self, text: str, new: Mapping[str, Value]) -> Value:
        """Return what an expression of registers and numbers is."""
        if not (found := CALLED.match(text)):
            return self._state.read(text, new) if re.fullmatch(r"#+-?\d+|!?[rp]\d+(\.new)?", text) else None
        is_negated = found[1].startswith("!")
        name, operands = found[1].lstrip("!"), found[2].split(",")
        if name == "mux":
            chosen = self._state.read(operands[0], new)
            return None if chosen is None else self._state.read(operands[1 if chosen else 2], new)
        if name not in OPERATIONS:
            return None
        if operands[0].startswith("p") and operands[1:] == [f"!{operands[0]}"]:
            return int(name == "or")  # of p and !p: how LLVM writes constants
        values = [self._state.read(each, new) for each in operands]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        result = _signed(int(OPERATIONS[name](*known)))
        return int(not result) if is_negated else result

    def _skip(self) -> None:
        """Skip rounds of the inner loop that differ from the last two only by how far registers move on."""
        state = self._state
        if self._branched:
            self._rounds, self._branched = [], False
            return
        self._rounds = [*self._rounds[-2:], (self._count, state.known())]
        if len(self._rounds) < 3:
            return
        (_, before), (count, one), (_, two) = self._rounds
        start, left = state.loops["0"]
        moved = {name: value - one[name] for name, value in two.items() if name in one}
        is_steady = before.keys() == one.keys() == two.keys()
        if not is_steady or left is None or left < 3 or any(one[name] - before[name] != moved[name] for name in one):
            return
        rounds = left - 2
        self._count += rounds * (self._count - count)
        state.take({name: _signed(value + rounds * moved[name]) for name, value in two.items()})
        state.loops["0"] = start, 2
        self._rounds = []


@cache
def _in_order(packet: str) -> list[str]:
    """Return the instructions of a packet, those last that take what others make in it."""
    parts = [part.split(":endloop")[0].strip() for part in packet.split(";")]
    return sorted(filter(None, parts), key=lambda part: ".new" in part)


def _halves(pair: str) -> list[str]:
    """Return the lower and the upper register of a pair."""
    high, low = pair.removeprefix("r").split(":")
    return [f"r{low}", f"r{high}"]


def _written(instruction: str) -> list[str]:
    """Return the registers that an instruction writes."""
    names = [name for found in WRITTEN.findall(instruction) for name in found.split(",")]
    return [each for name in names for each in (_halves(name) if ":" in name else [name])]
