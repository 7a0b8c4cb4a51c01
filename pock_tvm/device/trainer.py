"""The trainer: a program with a state. Needs TVM's runtime and NumPy, nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import guards
from .arguments import number, one_of, require, whole
from .arrays import pairs_of
from .contract import check_contract
from .errors import DeviceError, InputError, NonFiniteError, PockError, ProgramError
from .gpu.devices import BACKENDS, open_device
from .gpu.library import LaunchLibrary
from .gpu.memory import DeviceMemory
from .inputs import Data, Inputs
from .instructions import obstacle_here
from .library import CheckFailed, Library, Outcome
from .loss_scale import LOSS_SCALE, LossScale
from .losses import EVALUATE, FUNCTION, TARGET, Loss
from .machine import CORES, THREADS
from .memory import Memory
from .parameters import GRADIENT_SUM
from .program import Program
from .random import RANDOM, words_of
from .reading import reading
from .stateful import Stateful
from .threads import one_at_a_time

SEED = whole("a seed: a whole number from 0", 0)
CORES_USED = whole("a number of cores, at least 1", 1)
PROGRAM = one_of("what pock.compile returned, or the path of a program that was saved", Program, str, os.PathLike)
LEARNING_RATE = number("a learning rate: a finite number from 0", 0)
MOST_QUEUED = 64
"""Most steps that wait for a GPU."""


class Trainer(Stateful):
    """Trains, predicts, and keeps the state: weights, optimizer state, number of steps.

    Parameters
    ----------
    program : Program or path
        What ``pock.compile`` returned, or a file that ``Program.save`` wrote.
    threads : int, optional
        How many cores kernels run on; by default all, or what the variable ``TVM_NUM_THREADS`` says. Results do not
        depend on it.
    device : str, optional
        For a program that was compiled for a GPU, which one: ``"cuda:0"``, ``"opencl:1"``; by default the first.
    seed : int
        Seed of the numbers that a step draws (dropout, noise). They depend on it, the step and the layer alone.

    Raises
    ------
    ProgramError
        The file is damaged, or was compiled for another kind of machine.
    DeviceError
        There is no such GPU or no driver, or it has too little memory: how much is needed, and how much is there.
    """

    def __init__(
        self,
        program: Program | str | os.PathLike[str],
        *,
        threads: int | None = None,
        device: str | None = None,
        seed: int = 0,
    ) -> None:
        self._device = device
        require("seed", seed, SEED, InputError)
        require("threads", threads, CORES_USED.or_none(), InputError)
        require("a trainer's program", program, PROGRAM, ProgramError)
        program = program if isinstance(program, Program) else Program.load(program)
        manifest = program.manifest
        if not program.library:
            raise ProgramError("this program was only planned, not built: compile it without build=False")
        library, threads, memory = self._loaded(program, threads)
        with reading(ProgramError, "this program cannot be run ({}): compile it again, or copy it again"):
            check_contract(manifest, program.constants, library.contract())
            super().__init__(program, library, threads, memory)
            self._seed = seed % 2**64
            self._loss = Loss(**manifest["loss"])
            self._inputs = Inputs(program, self._loss)
            drawn = program.tensor(RANDOM)
            self._parts = drawn[0][0] if drawn else 1
        self._queued: list[tuple[str, Outcome]] = []
        self._losses: list[float] = []
        self._scale = LossScale() if LOSS_SCALE in self._arrays else None

    def _loaded(self, program: Program, threads: int | None) -> tuple[Library, int, Memory]:
        """The program's library, loaded, on how many cores it runs, and the memory that it works in."""
        target = program.manifest["target"]
        if target["triple"] in BACKENDS:
            memory = program.memory()
            needed = sum(memory[part] for part in ("parameters", "optimizer_state", "gradient_sums", "arena"))
            device, instructions = self._device or f"{target['triple']}:0", target.get("instructions", ())
            backend = open_device(device, target["triple"], instructions, needed)
            arrays = DeviceMemory(backend)
            return LaunchLibrary(program.library, program.manifest["entries"], backend, arrays), 0, arrays
        if self._device is not None:
            kind = self._device.partition(":")[0]
            raise ProgramError(f"this program was compiled for CPUs: compile it for '{kind}' to run there")
        obstacle = obstacle_here(program.manifest["target"])
        if obstacle is not None:
            raise ProgramError(obstacle)
        from .runtime import load_library  # TVM's runtime, which GPUs do without

        threads = min(threads or THREADS, CORES)
        return load_library(program.library, threads), threads, Memory()

    def __repr__(self) -> str:
        trained = len(self.program.trained)
        return f"Trainer({self.steps} steps, {trained} of {len(self._weights)} weights trained, {self.program!r})"

    @one_at_a_time
    def __deepcopy__(self, memo: dict[int, Any]) -> Trainer:
        """A trainer of the same program that goes on by itself from the same state."""
        self._settle()
        options: dict[str, Any] = {"threads": self._threads or None, "device": self._device, "seed": self._seed}
        twin = memo[id(self)] = Trainer(self.program, **options)
        twin._set_weights(self.program.weights | self._current())
        twin._replaced = dict(self._replaced)
        for name in self._states:
            twin._fill(name, self._read(name))
        twin.steps, twin._cycle, twin.notes, twin.restored = self.steps, self._cycle, dict(self.notes), self.restored
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """Refuse to be pickled, or copied with shared arrays."""
        raise PockError(
            "a trainer holds memory of its process, and is not pickled or copied shallowly: save a checkpoint and "
            "restore it in another trainer, or use copy.deepcopy"
        )

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
        with self._lock:
            self.queue(x, y, lr=lr)
            self._collect()
            return self._losses.pop()

    @one_at_a_time
    def queue(self, x: Data, y: Any = None, *, lr: float) -> None:
        """Train on one batch as :meth:`step`, but leave the loss to :meth:`losses`: a GPU then goes from step to step
        without waiting. On a CPU, and in float16, the step is done when this returns.

        A number that is not finite is then told later, by :meth:`losses` or any other method: the step that met it is
        left as :meth:`step` leaves it, and those queued behind it change nothing.
        """
        self._refuse_spoiled()
        if len(self._queued) == MOST_QUEUED:
            self._collect()
        arrays = self._inputs.checked(x)
        targets = self._inputs.targets(y)
        require("lr", lr, LEARNING_RATE, InputError)
        updates, pending = self._updates()
        last = pending + 1 == self._accumulate
        values: dict[str, ArrayLike] = {**arrays, **targets}
        if RANDOM in self._arrays:
            values[RANDOM] = self._words()
        if TARGET in targets and "counted" in self._arrays:
            values["counted"] = self._loss.counted(targets[TARGET])
        if "rates" in self._arrays:
            values["rates"] = self._optimizer.rates(lr, updates + 1)
        self._start("train_step" if last else "accumulate_step", values)
        if self._scale is not None or not self._library.queues:
            self._collect()

    def _words(self) -> np.ndarray:
        """Return the seed and step number by which the next step draws random numbers, for each micro-batch."""
        return words_of(self._seed, self.steps, self._parts)

    def _start(self, entry: str, values: Mapping[str, ArrayLike]) -> None:
        """Start a step, with new values of some inputs."""
        scale = {} if self._scale is None else {LOSS_SCALE: self._scale.value}
        try:
            with self._changing():
                for name, value in {**values, **scale}.items():
                    self._fill(name, value)
                outcome = self._library.start(entry, self._tables[entry], self._results[entry][0], self._memory)
        except DeviceError:
            self._forget_queued()
            raise
        self._queued.append((entry, outcome))
        self.steps += 1

    @one_at_a_time
    def losses(self) -> list[float]:
        """The losses of the steps since the last call, when all of them are done. Errors: as :meth:`step`."""
        self._refuse_spoiled()
        self._collect()
        losses, self._losses = self._losses, []
        return losses

    def _collect(self) -> None:
        """Wait for the queued steps and note their losses."""
        while self._queued:
            entry, outcome = self._queued[0]
            try:
                with self._changing():
                    shares = outcome()  # of the micro-batches
            except CheckFailed as failed:
                self._forget_queued()  # those behind it changed nothing
                found = guards.Found.at(self._entries[entry], failed.position)
                if not self._scaled_down(found):
                    raise self._left_at(found) from failed
                self._start(entry, {})
                continue
            except BaseException as error:
                if isinstance(error, PockError) or not self._library.queues:  # an interrupt leaves a GPU at work
                    self._forget_queued()
                raise
            self._queued.pop(0)
            # One after the other, as bundles do: sum() adds pairs.
            self._losses.append(shares.item() if shares.size == 1 else float(np.cumsum(shares)[-1]))
            if self._scale is not None:
                self._scale.count()

    def _scaled_down(self, found: guards.Found) -> bool:
        """Lower the scale of the loss after a gradient that is not finite. Return whether the step may be taken again:
        the scale could be lowered, and the state is as before it."""
        if self._scale is None or found.kind != guards.GRADIENT or not self._scale.lower():
            return False
        if found.written == guards.SUMS and self._updates()[1] == 0:  # of the step's own micro-batches
            self._clear_sums()
            return True
        return found.written == guards.NOTHING

    def _forget_queued(self) -> None:
        """Count the queued steps as not taken."""
        self.steps -= len(self._queued)
        self._queued = []

    @one_at_a_time
    def predict(self, x: Data) -> np.ndarray | tuple[np.ndarray, ...]:
        """The network's outputs: one array, or a tuple where the network has several.

        Any number of samples will do where every output has them along its first axis; otherwise it takes as many as
        the program was compiled for.

        Raises
        ------
        InputError
            A wrong shape, type or number of samples, or an index out of range.
        """
        self._settle()
        self._fill(RANDOM, self._words())
        parts: list[list[np.ndarray]] = []
        for count, arrays in self._inputs.chunks(x):
            for name, array in arrays.items():
                self._fill(name, array)
            self._run("predict")
            every = count == (self._inputs.batch or 1)
            results = self._read_results("predict")
            parts.append([result.copy() if every else result[:count].copy() for result in results])
        outputs = tuple(part[0] if len(part) == 1 else np.concatenate(part) for part in zip(*parts, strict=True))
        return outputs[0] if len(outputs) == 1 else outputs

    @one_at_a_time
    def evaluate(self, data: Iterable[tuple[Data, Any]]) -> dict[str, float]:
        """Mean loss and, where targets are classes, accuracy in [0, 1] over batches of ``(x, y)`` of any size.

        A loss function of the user's is the mean over the samples of the loss of a batch. Where it needs several
        samples at once, batches are as large as the program was compiled for, or multiples of that.

        Raises
        ------
        InputError
            As :meth:`step` and :meth:`predict`; or all labels together are ignored ones.
        """
        if self._loss.kind == FUNCTION:
            return {"loss": self._mean_of_function(pairs_of(data))}
        loss = counted = right = 0.0
        for x, y in pairs_of(data):
            outputs = self.predict(x)
            output = outputs[self._loss.output] if isinstance(outputs, tuple) else outputs
            target = self._inputs.target(y, len(output) if output.ndim else None)
            target = np.zeros(0) if target is None else target
            batch_loss, batch_count, batch_right = self._loss.measure(output, target)
            loss, counted, right = loss + batch_loss, counted + batch_count, right + batch_right
        if not counted:
            raise InputError("evaluate was given no data")
        result = {"loss": loss / counted}
        return result | {"accuracy": right / counted} if self._loss.has_classes else result

    def _mean_of_function(self, data: Iterable[tuple[Data, Any]]) -> float:
        """The loss of a batch, averaged over the samples of all."""
        if EVALUATE not in self._entries:
            raise InputError("this program was compiled without its loss for evaluate: compile it again")
        total, count = 0.0, 0
        for x, y in data:
            samples = self._inputs.count(x)
            for arrays in self._inputs.of_evaluation(self.predict(x), y, samples, self._entries[EVALUATE]["table"]):
                for name, array in arrays.items():
                    self._fill(name, array)
                self._run(EVALUATE)
                total += float(self._read_results(EVALUATE)[0])
            count += samples
        if not count:
            raise InputError("evaluate was given no data")
        return total * (self._inputs.batch or 1) / count

    def _left_at(self, found: guards.Found) -> NonFiniteError:
        """Leave a step at a number that is not finite, as near to the state before the step as there is."""
        dropped = 0
        if found.written == guards.SUMS:  # the sums of several steps cannot be taken apart
            _, dropped = self._updates()
            self._clear_sums()
            self.steps -= dropped
        error = found.error(dropped)
        if found.written == guards.STATE:
            self._spoiled = error
        return error

    def _clear_sums(self) -> None:
        for name, parameter in self._parameters.items():
            if parameter.origin == GRADIENT_SUM:
                self._fill(name, 0)

    def _settle(self) -> None:
        """Wait for the queued steps, and refuse to go on from a spoiled state."""
        self._refuse_spoiled()
        self._collect()
