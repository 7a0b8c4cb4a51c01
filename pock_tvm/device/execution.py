"""Runs the entry points of a program: their arrays in memory, and the vectors of addresses that they take."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import guards
from .contract import nbytes
from .errors import ProgramError
from .library import CALL_KERNEL, Library
from .memory import Memory
from .parameters import FROZEN, PREPARED, Parameter
from .prepare import Preparation
from .program import Program


class Execution:
    """A program in memory: every array that its entry points read and write. It starts with the program's weights.

    The memory is this process's, or that of another machine, where the library runs too.
    """

    def __init__(self, program: Program, library: Library, threads: int, memory: Memory) -> None:
        self.program = program
        self._library, self._threads, self._memory = library, threads, memory
        self._parameters = program.parameters
        self._entries = program.manifest["entries"]
        self._arrays: dict[str, Any] = {}
        self._constants: dict[str, Any] = {}
        self._arena = memory.allocate((program.memory()["arena"],), "uint8")
        self._allocate()
        self._set_weights(program.weights)
        self._bind()

    def _allocate(self) -> None:
        """One array for everything that the entry points read and write, except the arena and what only ``prepare``
        reads."""
        for entry, description in self._entries.items():
            for tensor in description["table"]:
                name = tensor["name"]
                if entry == "prepare" or name.startswith(("constant.", "result.")):
                    continue
                if name not in self._arrays:
                    self._arrays[name] = self._memory.allocate(tensor["shape"], tensor["dtype"])
        self._results = {
            entry: [
                self._memory.allocate(tensor["shape"], tensor["dtype"])
                for tensor in description["table"]
                if tensor["name"].startswith("result.")
            ]
            for entry, description in self._entries.items()
            if entry != "prepare"
        }

    def _bind(self) -> None:
        """The addresses that each entry point is called with: they never change."""
        self._tables = {
            entry: self._table(entry, self._arrays, self._results[entry])
            for entry in self._entries
            if entry != "prepare"
        }

    def _table(self, entry: str, arrays: Mapping[str, Any], results: Sequence[Any]) -> Any:
        addresses = []
        for tensor in self._entries[entry]["table"]:
            name = tensor["name"]
            if name.startswith("constant."):
                if name not in self._constants:
                    self._constants[name] = self._memory.copy_of(self.program.constant(entry, name))
                array = self._constants[name]
            elif name.startswith("result."):
                array = results[int(name.removeprefix("result."))]
            else:
                array = arrays[name]
            if array.nbytes != nbytes(tensor):
                raise ProgramError(f"'{name}' has {array.nbytes} bytes, and the program reads {nbytes(tensor)}")
            addresses.append(self._memory.address(array))
        found = [0] if guards.is_checked(self._entries[entry]) else []
        return self._library.table([*addresses, self._memory.address(self._arena), *found])

    def _run(self, entry: str) -> None:
        self._library.run(entry, self._tables[entry])

    def _fill(self, name: str, values: ArrayLike) -> None:
        if name in self._arrays:  # an input that nothing reads has no memory
            self._memory.write(self._arrays[name], values)

    def _read(self, name: str) -> np.ndarray:
        """The present values of an array, as they are stored: to look at, not to write to."""
        return self._memory.read(self._arrays[name])

    def _read_results(self, entry: str) -> list[np.ndarray]:
        """The results of an entry point's last call; the next call may overwrite them."""
        return [self._memory.read(result) for result in self._results[entry]]

    @functools.cached_property
    def _weights(self) -> dict[str, Parameter]:
        """The model's parameters and buffers."""
        return {name: parameter for name, parameter in self._parameters.items() if parameter.is_weight}

    @functools.cached_property
    def _live(self) -> list[str]:
        """The weights that training changes: parameters, and running statistics."""
        return [name for name, weight in self._weights.items() if weight.trained != FROZEN and name in self._arrays]

    @functools.cached_property
    def _states(self) -> list[str]:
        """The arrays of optimizer state and gradient sums."""
        return [name for name, parameter in self._parameters.items() if parameter.is_state]

    def _unstored(self, name: str) -> np.ndarray:
        """The current value of a weight in PyTorch's layout."""
        return self._parameters[name].unstore(self._read(name))

    def _set_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Put weights where the entry points read them: as they are stored, and prepared."""
        for name, weight in self._weights.items():
            if name in self._arrays:
                self._fill(name, weight.store(weights[name]))
                self.program.release()
        if "prepare" not in self._entries:
            return
        prepared = [self._arrays[name] for name, each in self._parameters.items() if each.origin == PREPARED]

        def source(name: str) -> Any:
            array = self._memory.copy_of(weights[name] if name in weights else self.program.constant("prepare", name))
            self.program.release()
            return array

        Preparation(self._entries["prepare"], source, prepared, self._call_kernel, self._memory).run()

    def prepared(self) -> dict[str, np.ndarray]:
        """The frozen weights in the layouts that kernels read, by name: views of what the entry points read."""
        return {name: self._arrays[name] for name, each in self._parameters.items() if each.origin == PREPARED}

    def _call_kernel(self, kernel: str, addresses: Sequence[int]) -> None:
        """Call one kernel with the addresses of its operands."""
        self._library.run(CALL_KERNEL, self.kernel_table(kernel, addresses))

    def kernel_table(self, kernel: str, addresses: Sequence[int]) -> Any:
        """The vector that the entry point :data:`CALL_KERNEL` takes."""
        return self._library.table([self._kernel_numbers[kernel], *addresses])

    @functools.cached_property
    def _kernel_numbers(self) -> dict[str, int]:
        return {kernel: number for number, kernel in enumerate(sorted(self.program.manifest["kernels"]))}
