"""Prepares the frozen weights of a program whose own kernels cannot run here: by kernels of the same definitions."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tvm import IRModule, tirx

from ..compiler.build import call_kernel
from ..compiler.kernel_builder import KernelBuilder
from ..compiler.targets import HOST, resolve_target
from ..device.instructions import obstacle_here
from ..device.library import CALL_KERNEL
from ..device.memory import Memory
from ..device.parameters import PREPARED
from ..device.prepare import Preparation
from ..device.program import Program, kernel_calls
from ..device.runtime import load_library, pack_objects
from ..device.trainer import Trainer
from .c_source import kernel_definitions


def prepared_weights(program: Program) -> Mapping[str, np.ndarray]:
    """Return the frozen weights in the layouts that kernels read, by name, as a trainer has them."""
    names = [name for name, each in program.parameters.items() if each.origin == PREPARED]
    if not names:
        return {}
    if obstacle_here(program.manifest["target"]) is None:
        return Trainer(program, threads=1).prepared()
    entry, memory = program.manifest["entries"]["prepare"], Memory()
    shapes = [each for each in entry["table"] if each["name"].startswith("result.")]
    results = [memory.allocate(each["shape"], each["dtype"]) for each in shapes]

    def source(name: str) -> np.ndarray:
        weights = program.weights
        return memory.copy_of(weights[name] if name in weights else program.constant("prepare", name))

    Preparation(entry, source, results, _Kernels(program, entry).call, memory).run()
    return dict(zip(names, results, strict=True))


class _Kernels:
    """The kernels that an entry point calls, built for this machine."""

    def __init__(self, program: Program, entry: Mapping[str, Any]) -> None:
        called = {kernel for kernel, _ in kernel_calls(entry)}
        definitions = {name: func for name, func in kernel_definitions(program) if name in called}
        target = resolve_target(HOST)
        builder = KernelBuilder(target)
        scratch = builder.scratch(list(definitions.values()), {})
        self._memory = Memory()
        self._scratch = {name: self._memory.allocate([size], "uint8") for name, size in scratch.items()}
        self._operands = {name: len(func.params) for name, func in definitions.items()}
        self._numbers = {name: number for number, name in enumerate(sorted(definitions))}
        counts = {name: count + (name in scratch) for name, count in self._operands.items()}
        with tempfile.TemporaryDirectory() as folder:
            entry_point = Path(folder) / "entry.o"
            tirx.build(IRModule({CALL_KERNEL: call_kernel(counts)}), target=target).write_to_file(str(entry_point), "o")
            objects = {f"{name}.o": code for name, code in builder.codes(list(definitions.values()), {}).items()}
            self._library = load_library(pack_objects(objects | {entry_point.name: entry_point.read_bytes()}))

    def call(self, kernel: str, addresses: Sequence[int]) -> None:
        """Call a kernel. Scratch lies behind the operands: that of the program's own kernel is left out."""
        given = list(addresses[: self._operands[kernel]])
        if kernel in self._scratch:
            given.append(self._memory.address(self._scratch[kernel]))
        self._library.run(CALL_KERNEL, self._library.table([self._numbers[kernel], *given]))
