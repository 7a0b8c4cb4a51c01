"""The trainer: a program with a state. Needs TVM's runtime and NumPy, nothing else."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from . import guards, optimizers
from .arguments import PATH, number, one_of, require, whole
from .arrays import as_array, pairs_of
from .checkpoint import fingerprint_of, read_checkpoint, write_checkpoint
from .contract import check_contract, nbytes
from .errors import CheckpointError, InputError, NonFiniteError, ProgramError
from .inputs import Data, Inputs
from .instructions import check_instructions
from .losses import Loss
from .memory import aligned, aligned_copy
from .parameters import FROZEN, FULL, GRADIENT_SUM, PREPARED, Parameter
from .prepare import Preparation
from .program import Program
from .reading import reading
from .runtime import CALL_KERNEL, CORES, THREADS, CheckFailed, load_library, machine_triple

CORES_USED = whole("a number of cores, at least 1", 1)
PROGRAM = one_of("what pock.compile returned, or the path of a program that was saved", Program, str, os.PathLike)
LEARNING_RATE = number("a learning rate: a finite number from 0", 0)
STATE = one_of("a mapping of names to arrays, such as model.state_dict()", Mapping)


class Trainer:
    """Trains, predicts, and keeps the state: weights, optimizer state, number of steps.

    Parameters
    ----------
    program : Program or path
        What ``pock.compile`` returned, or a file that ``Program.save`` wrote.
    threads : int, optional
        How many cores kernels run on; by default all, or what the variable ``TVM_NUM_THREADS`` says. Results do not
        depend on it.

    Raises
    ------
    ProgramError
        The file is damaged, or was compiled for another kind of machine.
    """

    def __init__(self, program: Program | str | os.PathLike[str], *, threads: int | None = None) -> None:
        require("threads", threads, CORES_USED.or_none(), InputError)
        require("a trainer's program", program, PROGRAM, ProgramError)
        self._threads = min(threads or THREADS, CORES)
        self.program = program if isinstance(program, Program) else Program.load(program)
        manifest = self.program.manifest
        triple = manifest["target"]["triple"]
        if machine_triple(triple) != machine_triple():
            raise ProgramError(
                f"this program was compiled for {triple}, and this machine is a {machine_triple()}: compile it "
                "for target 'host'"
            )
        if not self.program.library:
            raise ProgramError("this program was only planned, not built: compile it without build=False")
        check_instructions(manifest["target"].get("instructions", ()))
        self._library = load_library(self.program.library, self._threads)
        with reading(ProgramError, "this program cannot be run ({}): compile it again, or copy it again"):
            check_contract(manifest, self.program.constants, self._library.contract())
            self._prepare()

    def _prepare(self) -> None:
        """Allocate and fill everything that the entry points read and write."""
        manifest = self.program.manifest
        self._loss = Loss(**manifest["loss"])
        self._optimizer = optimizers.from_json(manifest["optimizer"])
        self._parameters = self.program.parameters
        self._entries = manifest["entries"]
        self._inputs = Inputs(self.program, self._loss)
        self._accumulate = int(manifest["options"]["accumulate"])
        self.steps = 0
        """How many steps were taken."""
        self._spoiled: str | None = None
        """What a step met that is not finite, behind updates of its own: why this state is not one to go on from."""
        self._arrays: dict[str, np.ndarray] = {}
        self._replaced: dict[str, np.ndarray] = {}
        self._constants: dict[str, np.ndarray] = {}
        self._arena = aligned((self.program.memory()["arena"],), "uint8")
        self._allocate()
        self._set_weights(self.program.weights)
        self._bind()

    def __repr__(self) -> str:
        trained = len(self.program.trained)
        return f"Trainer({self.steps} steps, {trained} of {len(self._weights)} weights trained, {self.program!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Trainer:
        """A trainer of the same program that goes on by itself from the same state."""
        self._refuse_spoiled()
        twin = memo[id(self)] = Trainer(self.program, threads=self._threads)
        twin._set_weights(self.program.weights | self._current())
        twin._replaced = dict(self._replaced)
        for name in self._states:
            twin._fill(name, self._arrays[name])
        twin.steps = self.steps
        return twin

    # ---- training and prediction -------------------------------------------------------------------------------------

    def step(self, x: Data, y: Any = None, *, lr: float) -> float:
        """Train on one batch and return its loss.

        ``x``: the network's inputs, in the shapes and types that it was compiled for; ``y``: the target of the loss,
        none for the loss ``output``. A refused step leaves the state as it was.

        Raises
        ------
        InputError
            A wrong shape or type, a label or index out of range, or a learning rate that is no finite number.
        NonFiniteError
            An input, the loss or a gradient is NaN or infinite (``guard`` of :func:`pock_tvm.compile`). The message
            says whether the state is as it was. If not, this trainer does nothing more until :meth:`restore`.
        """
        self._refuse_spoiled()
        arrays = self._inputs.checked(x)
        target = self._inputs.target(y)
        require("lr", lr, LEARNING_RATE, InputError)
        last = (self.steps + 1) % self._accumulate == 0
        update = self.steps // self._accumulate + 1
        for name, array in arrays.items():
            self._fill(name, array)
        if target is not None:
            self._fill("target", target)
        if target is not None and "counted" in self._arrays:
            self._arrays["counted"][...] = self._loss.counted(target)
        if "rates" in self._arrays:
            self._arrays["rates"][:] = self._optimizer.rates(lr, update)
        entry = "train_step" if last else "accumulate_step"
        try:
            self._run(entry)
        except CheckFailed as failed:
            raise self._left_at(guards.Found.at(self._entries[entry], failed.position)) from failed
        self.steps += 1
        return float(self._results[entry][0].sum())  # of micro-batches each has its share

    def predict(self, x: Data) -> np.ndarray | tuple[np.ndarray, ...]:
        """The network's outputs: one array, or a tuple where the network has several.

        Any number of samples will do where every output has them along its first axis; otherwise it takes as many as
        the program was compiled for.

        Raises
        ------
        InputError
            A wrong shape, type or number of samples, or an index out of range.
        """
        self._refuse_spoiled()
        parts: list[list[np.ndarray]] = []
        for count, arrays in self._inputs.chunks(x):
            for name, array in arrays.items():
                self._fill(name, array)
            self._run("predict")
            every = count == (self._inputs.batch or 1)
            parts.append([result.copy() if every else result[:count].copy() for result in self._results["predict"]])
        outputs = tuple(part[0] if len(part) == 1 else np.concatenate(part) for part in zip(*parts, strict=True))
        return outputs[0] if len(outputs) == 1 else outputs

    def evaluate(self, data: Iterable[tuple[Data, Any]]) -> dict[str, float]:
        """Mean loss and, where targets are classes, accuracy in [0, 1] over batches of ``(x, y)`` of any size."""
        loss = counted = right = 0.0
        for x, y in pairs_of(data):
            outputs = self.predict(x)
            output = outputs[self._loss.output] if isinstance(outputs, tuple) else outputs
            target = as_array("target y", y) if self._loss.has_target else np.zeros(0)
            batch_loss, batch_count, batch_right = self._loss.measure(output, target)
            loss, counted, right = loss + batch_loss, counted + batch_count, right + batch_right
        if not counted:
            raise InputError("evaluate was given no data")
        result = {"loss": loss / counted}
        return result | {"accuracy": right / counted} if self._loss.has_classes else result

    def _left_at(self, found: guards.Found) -> NonFiniteError:
        """Leave a step at a number that is not finite, as near to the state before the step as there is."""
        dropped = 0
        if found.written == guards.SUMS:  # the sums of several steps cannot be taken apart
            dropped = self.steps % self._accumulate
            for name, parameter in self._parameters.items():
                if parameter.origin == GRADIENT_SUM:
                    self._arrays[name][...] = 0
            self.steps -= dropped
        error = found.error(dropped)
        if found.written == guards.STATE:
            self._spoiled = str(error)
        return error

    def _refuse_spoiled(self) -> None:
        if self._spoiled is not None:
            raise NonFiniteError(f"this trainer stopped within a step, and goes on after restore(…): {self._spoiled}")

    # ---- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All weights under PyTorch's names and in its layouts, for ``torch_model.load_state_dict``.

        The values are torch tensors where torch is installed, and NumPy arrays where it is not.
        """
        weights = self.weights()
        try:
            import torch
        except ImportError:
            return weights
        return {name: torch.from_numpy(array) for name, array in weights.items()}

    def weights(self) -> dict[str, np.ndarray]:
        """All weights as NumPy arrays of their own, under PyTorch's names and in its layouts."""
        self._refuse_spoiled()
        current = self.program.weights | self._current()
        current |= {alias: current[owner] for alias, owner in self.program.manifest["aliases"].items()}
        return {name: np.array(array) for name, array in current.items()}

    def _current(self) -> dict[str, np.ndarray]:
        """The weights that are not the program's any more."""
        return self._replaced | {name: self._unstored(name) for name in self._live}

    def optimizer_state(self, kind: str) -> dict[str, np.ndarray]:
        """One state of the optimizer (``momentum_buffer``, ``exp_avg``, ``exp_avg_sq``) of every weight that is trained
        as a whole, in PyTorch's layout."""
        self._refuse_spoiled()
        states = {
            state.of: self._parameters[state.of].unstore(self._arrays[name])
            for name, state in self._parameters.items()
            if state.slot == kind and self._parameters[state.of].trained == FULL
        }
        return {name: np.array(array) for name, array in states.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over all weights, trained and frozen, from a state in PyTorch's names and layouts.

        Raises
        ------
        CheckpointError
            A name is missing or unknown, or a shape is wrong. The trainer is left as it was.
        """
        self._refuse_spoiled()  # it would leave the optimizer's state spoiled
        require("the state", state, STATE, CheckpointError)
        aliases = self.program.manifest["aliases"]
        arrays = {
            name: as_array(f"'{name}'", value)
            for name, value in state.items()
            if name not in aliases or aliases[name] not in state
        }
        arrays = {aliases.get(name, name): array for name, array in arrays.items()}
        missing = [name for name in self._weights if name not in arrays]
        unknown = [name for name in arrays if name not in self._weights]
        if missing or unknown:
            what = f"'{missing[0]}' is missing" if missing else f"'{unknown[0]}' is no weight of the program"
            raise CheckpointError(
                f"the state does not fit the program: {what} ({len(missing)} missing, {len(unknown)} unknown)"
            )
        self._check_shapes(arrays)
        self._set_weights({name: array.astype(self._weights[name].dtype) for name, array in arrays.items()})
        self._replaced = {
            name: array.copy()
            for name, array in arrays.items()
            if name not in self._live and not np.array_equal(array, self.program.weights[name])
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint: what training has changed, the optimizer's state, and the number of steps."""
        self._refuse_spoiled()
        require("the path of a checkpoint", path, PATH, CheckpointError)
        state = {f"weight.{name}": self._unstored(name) for name in self._live}
        state |= {f"weight.{name}": array for name, array in self._replaced.items()}
        state |= {f"state.{name}": self._arrays[name] for name in self._states}
        fingerprint = fingerprint_of(self._parameters.values(), self.program.manifest["optimizer"])
        write_checkpoint(path, state, self.steps, fingerprint)

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Go on where :meth:`save` left off.

        Raises
        ------
        CheckpointError
            The file is damaged, or belongs to another program. The trainer is left as it was.
        """
        require("the path of a checkpoint", path, PATH, CheckpointError)
        state, steps = read_checkpoint(path, self._parameters.values(), self.program.manifest["optimizer"])
        weights = {name.removeprefix("weight."): array for name, array in state.items() if name.startswith("weight.")}
        states = {name.removeprefix("state."): array for name, array in state.items() if name.startswith("state.")}
        self._check_shapes(weights)
        if set(states) != set(self._states) or any(
            array.shape != self._arrays[name].shape for name, array in states.items()
        ):
            raise CheckpointError(f"'{path}' does not hold the optimizer state of this program")
        self._set_weights(self.program.weights | weights)
        self._replaced = {name: array for name, array in weights.items() if name not in self._live}
        for name, array in states.items():
            self._fill(name, array)
        self.steps, self._spoiled = steps, None

    # ---- memory ------------------------------------------------------------------------------------------------------

    def _allocate(self) -> None:
        """One array for everything that the entry points read and write, except the arena and what only ``prepare``
        reads."""
        for entry, description in self._entries.items():
            for tensor in description["table"]:
                name = tensor["name"]
                if entry == "prepare" or name.startswith(("constant.", "result.")):
                    continue
                if name not in self._arrays:
                    self._arrays[name] = aligned(tensor["shape"], tensor["dtype"])
        self._results = {
            entry: [aligned(t["shape"], t["dtype"]) for t in description["table"] if t["name"].startswith("result.")]
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

    def _table(self, entry: str, arrays: Mapping[str, np.ndarray], results: Sequence[np.ndarray]) -> Any:
        addresses = []
        for tensor in self._entries[entry]["table"]:
            name = tensor["name"]
            if name.startswith("constant."):
                if name not in self._constants:
                    self._constants[name] = aligned_copy(self.program.constant(entry, name))
                array = self._constants[name]
            elif name.startswith("result."):
                array = results[int(name.removeprefix("result."))]
            else:
                array = arrays[name]
            if array.nbytes != nbytes(tensor):
                raise ProgramError(f"'{name}' has {array.nbytes} bytes, and the program reads {nbytes(tensor)}")
            addresses.append(array.ctypes.data)
        found = [0] if guards.is_checked(self._entries[entry]) else []
        return self._library.table([*addresses, self._arena.ctypes.data, *found])

    def _run(self, entry: str) -> None:
        self._library.run(entry, self._tables[entry])

    def _fill(self, name: str, values: np.ndarray) -> None:
        if name in self._arrays:  # an input that nothing reads has no memory
            np.copyto(self._arrays[name], values, casting="same_kind")

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
        return self._parameters[name].unstore(self._arrays[name])

    def _set_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Put weights where the entry points read them: as they are stored, and prepared."""
        for name, weight in self._weights.items():
            if name in self._arrays:
                np.copyto(self._arrays[name], weight.store(weights[name]))
                self.program.release()
        if "prepare" not in self._entries:
            return
        prepared = [self._arrays[name] for name, each in self._parameters.items() if each.origin == PREPARED]

        def source(name: str) -> np.ndarray:
            array = aligned_copy(weights[name] if name in weights else self.program.constant("prepare", name))
            self.program.release()
            return array

        Preparation(self._entries["prepare"], source, prepared, self._call_kernel).run()

    def _call_kernel(self, kernel: str, addresses: Sequence[int]) -> None:
        """Call one kernel with the addresses of its operands."""
        self._library.run(CALL_KERNEL, self.kernel_table(kernel, addresses))

    def kernel_table(self, kernel: str, addresses: Sequence[int]) -> Any:
        """The vector that the entry point :data:`CALL_KERNEL` takes."""
        return self._library.table([self._kernel_numbers[kernel], *addresses])

    @functools.cached_property
    def _kernel_numbers(self) -> dict[str, int]:
        return {kernel: number for number, kernel in enumerate(sorted(self.program.manifest["kernels"]))}

    def _check_shapes(self, arrays: Mapping[str, np.ndarray]) -> None:
        for name, array in arrays.items():
            if name not in self._weights:
                raise CheckpointError(f"'{name}' is no weight of the program")
            if array.shape != self._weights[name].shape:
                raise CheckpointError(f"'{name}' has the shape {self._weights[name].shape}, not {array.shape}")
