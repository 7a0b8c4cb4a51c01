"""A program in memory, and the state of its training: what goes to files and comes back."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import optimizers
from .arguments import FLAG, PATH, one_of, require, whole
from .arrays import as_array
from .checkpoint import newest_checkpoint, write_checkpoint
from .checksums import crc32, weight_checksums
from .errors import CheckpointError, DeviceError, NonFiniteError, OptionError, PockError, PockWarning
from .execution import Execution
from .library import Library
from .matching import Restored, match
from .memory import Memory
from .parameters import FULL, GRADIENT_SUM
from .parts import states_of
from .program import Program
from .random import RANDOM
from .state import TrainingState
from .threads import one_at_a_time

KEPT = whole("a number of checkpoints to keep, at least 1", 1)
STATE = one_of("a mapping of names to arrays, such as model.state_dict()", Mapping)


class Stateful(Execution):
    """A program whose weights, optimizer state and number of steps are saved, restored, read and replaced."""

    def __init__(self, program: Program, library: Library, threads: int, memory: Memory) -> None:
        super().__init__(program, library, threads, memory)
        self._lock = threading.RLock()
        self._seed = 0
        self._optimizer = optimizers.from_json(program.manifest["optimizer"])
        self._accumulate = int(program.manifest["options"]["accumulate"])
        self.steps = 0
        """How many steps were taken."""
        self.notes: dict[str, Any] = {}
        """Records of the training loop, in plain values of JSON: a checkpoint holds them too."""
        self.restored: Restored | None = None
        """Outcome of the last restore."""
        self._cycle = (0, 0)  # updates, and steps that they took: counted apart, for a program may share others
        self._spoiled: PockError | None = None
        """Error that stopped a step or a restore in the middle: the state is then not one to go on from."""
        self._replaced: dict[str, np.ndarray] = {}

    def _settle(self) -> None:
        """Wait for what runs, and refuse to go on from a spoiled state."""
        self._refuse_spoiled()

    def _refuse_spoiled(self) -> None:
        if self._spoiled is not None:
            kind = NonFiniteError if isinstance(self._spoiled, NonFiniteError) else DeviceError
            raise kind(f"this trainer stopped within a step, and goes on after restore(…): {self._spoiled}")

    def _changing(self) -> _Changing:
        """Change the state. If the device fails at it, what it holds is unknown."""
        return _Changing(self)

    def state_dict(self) -> dict[str, Any]:
        """All weights under PyTorch's names and in its layouts, for ``torch_model.load_state_dict``; those that the
        program has in eight bits alone are left out (``strict=False``): the model has them as they were.

        The values are torch tensors where torch is installed, and NumPy arrays where it is not.
        """
        weights = self.weights()
        try:
            import torch
        except ImportError:
            return weights
        return {name: torch.from_numpy(array) for name, array in weights.items()}

    @one_at_a_time
    def weights(self) -> dict[str, np.ndarray]:
        """All weights as NumPy arrays of their own, under PyTorch's names and in its layouts."""
        self._settle()
        current = self.program.weights | self._current()
        aliases = self.program.manifest["aliases"].items()
        current |= {alias: current[owner] for alias, owner in aliases if owner in current}
        return {name: np.array(array) for name, array in current.items()}

    def _current(self) -> dict[str, np.ndarray]:
        """The weights that are not the program's any more."""
        return self._replaced | {name: self._unstored(name) for name in self._live}

    @one_at_a_time
    def optimizer_state(self, kind: str) -> dict[str, np.ndarray]:
        """One state of the optimizer (``momentum_buffer``, ``exp_avg``, ``exp_avg_sq``) of every weight that is trained
        as a whole, in PyTorch's layout."""
        self._settle()
        states = {
            state.of: self._parameters[state.of].unstore(self._read(name))
            for name, state in self._parameters.items()
            if state.slot == kind and self._parameters[state.of].trained == FULL
        }
        return {name: np.array(array) for name, array in states.items()}

    @one_at_a_time
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over all weights, trained and frozen, from a state in PyTorch's names and layouts. Those that the
        program has in eight bits may be missing, and have to be the ones that it was compiled from.

        Raises
        ------
        CheckpointError
            A name is missing or unknown, a shape is wrong, or a weight in eight bits another. The trainer is left as it
            was.
        """
        self._settle()  # it would leave the optimizer's state spoiled
        require("the state", state, STATE, CheckpointError)
        aliases = self.program.manifest["aliases"]
        arrays = {
            name: as_array(f"'{name}'", value)
            for name, value in state.items()
            if name not in aliases or aliases[name] not in state
        }
        arrays = {aliases.get(name, name): array for name, array in arrays.items()}
        for name in self.program.in_eight_bits:
            if name in arrays and crc32(arrays.pop(name)) != self.program.manifest["weight_crc32"][name]:
                raise CheckpointError(
                    f"'{name}' differs from the weight that the program has in eight bits: compile the network with "
                    "this state again"
                )
        missing = [name for name in self._weights if name not in arrays]
        unknown = [name for name in arrays if name not in self._weights]
        if missing or unknown:
            what = f"'{missing[0]}' is missing" if missing else f"'{unknown[0]}' is no weight of the program"
            raise CheckpointError(
                f"the state does not fit the program: {what} ({len(missing)} missing, {len(unknown)} unknown)"
            )
        self._check_shapes(arrays)
        with self._changing():
            self._set_weights({name: array.astype(self._weights[name].dtype) for name, array in arrays.items()})
        self._replaced = {
            name: array.copy()
            for name, array in arrays.items()
            if name not in self._live and not np.array_equal(array, self.program.weights[name])
        }

    @one_at_a_time
    def save(self, path: str | os.PathLike[str], *, keep: int = 1) -> None:
        """Write a checkpoint: what training has changed, the optimizer's state, the number of steps, the seed of the
        numbers that steps draw, and the notes.

        ``keep`` counts the checkpoints that stay: this one, and those written to ``path`` before as ``path.1``,
        ``path.2``, ….

        Raises
        ------
        WriteError
            The disk is full or read-only, or the folder is missing. The files that were there are whole.
        NonFiniteError
            A step stopped behind updates of its own: the files that were there stay.
        """
        self._settle()
        require("the path of a checkpoint", path, PATH, CheckpointError)
        require("keep", keep, KEPT, OptionError)
        write_checkpoint(path, self._state(), keep)

    @one_at_a_time
    def restore(self, path: str | os.PathLike[str], *, allow_drop: bool = False) -> Restored:
        """Go on where :meth:`save` left off, in this program or in another of the same network.

        A folder, or a path beside which older checkpoints were kept, gives its newest whole one; a warning names those
        that were passed over. State is matched by parameter: channels that both programs train move, what is new begins
        at zero. Weights that were trained stay as they are where this program has them frozen. Steps draw their numbers
        by the checkpoint's seed.

        Raises
        ------
        CheckpointError
            The file is missing or damaged, was trained beside other frozen weights, or holds what this program has no
            place for and ``allow_drop`` is not given. The trainer is left as it was.
        """
        require("the path of a checkpoint", path, PATH, CheckpointError)
        require("allow_drop", allow_drop, FLAG, OptionError)
        with contextlib.suppress(NonFiniteError, DeviceError):
            self._settle()
        found = newest_checkpoint(path, self.program)
        state, file = found.state, os.fspath(found.path)
        matched = match(file, state, self.program, allow_drop=allow_drop)
        with self._changing():
            self._set_weights(self.program.weights | matched.weights)
            for name, array in matched.states.items():
                self._fill(name, array)
        self._replaced = {name: array for name, array in matched.weights.items() if name not in self._live}
        self.steps, self.notes, self._spoiled = state.steps, state.notes, None
        self._seed = self._seed if state.seed is None else state.seed
        self._cycle = (matched.updates, state.steps - matched.pending)
        said = [f"{each}: passed over" for each in found.skipped] + matched.warnings
        kept, added, dropped = (tuple(each) for each in (matched.kept, matched.added, matched.dropped))
        self.restored = Restored(file, state.steps, kept, added, dropped, tuple(said))
        for each in said:
            warnings.warn(each, PockWarning, stacklevel=2)
        return self.restored

    @one_at_a_time
    def check_finite(self) -> None:
        """Check that every weight that training changes, and every state, is finite.

        Raises
        ------
        NonFiniteError
            It names the first that is not.
        """
        self._settle()
        for name in [*self._live, *self._states]:
            if not np.isfinite(self._read(name)).all():
                of = self._parameters[name].of
                what = f"{self._parameters[name].slot or GRADIENT_SUM} of '{of}'" if of else f"'{name}'"
                raise NonFiniteError(f"{what} is not finite after step {self.steps}")

    def _state(self) -> TrainingState:
        """The state in PyTorch's names and layouts."""
        updates, pending = self._updates()
        arrays = {name: self._read(name) for name in self._states}
        weights, states = self._current(), states_of(self._parameters, arrays)
        checksums = self.program.manifest.get("weight_crc32") or weight_checksums(self.program.weights)
        frozen = {name: crc for name, crc in checksums.items() if name not in weights}
        counts = {"steps": self.steps, "updates": updates, "pending": pending, "accumulate": self._accumulate}
        optimizer = optimizers.to_json(self._optimizer)
        seed = self._seed if RANDOM in self._arrays else None
        return TrainingState(weights, states, frozen, optimizer, **counts, seed=seed, notes=self.notes)

    def _updates(self) -> tuple[int, int]:
        """The updates so far, and the steps since the last one."""
        updates, begin = self._cycle
        done, pending = divmod(self.steps - begin, self._accumulate)
        return updates + done, pending

    def _check_shapes(self, arrays: Mapping[str, np.ndarray]) -> None:
        for name, array in arrays.items():
            if name not in self._weights:
                raise CheckpointError(f"'{name}' is no weight of the program")
            if array.shape != self._weights[name].shape:
                raise CheckpointError(f"'{name}' has the shape {self._weights[name].shape}, not {array.shape}")


class _Changing:
    """A change of a trainer's state. A class, since each step makes two, and a generator takes longer."""

    def __init__(self, owner: Stateful) -> None:
        self._owner = owner

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: object, _traceback: object) -> None:
        if isinstance(error, DeviceError):
            self._owner._spoiled = error
