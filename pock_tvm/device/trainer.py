"""The trainer: a program with a state. All that runs on the device; needs TVM's runtime and NumPy."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from . import optimizers
from .arguments import PATH, number, one_of, require, whole
from .arrays import as_array, check_array, pairs_of
from .errors import CheckpointError, InputError, ProgramError
from .files import replacing
from .losses import Loss
from .program import Program
from .runtime import CORES, THREADS, aligned, load_library, machine_triple, use_threads

CHECKPOINT = "pock-checkpoint/1"
Data = Any
"""One array, a sequence of arrays in the order of the inputs, or a mapping from input names to arrays."""


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
        self._loss = Loss(**manifest["loss"])
        self._optimizer = optimizers.from_json(manifest["optimizer"])
        self._library = load_library(self.program.library)
        self._weights = manifest["weights"]
        self._entries = manifest["entries"]
        self._specs = {tensor["name"]: tensor for entry in self._entries.values() for tensor in entry["table"]}
        self._inputs = manifest["inputs"]
        self._accumulate = int(manifest["options"]["accumulate"])
        self.steps = 0
        """How many steps were taken."""
        self._arrays: dict[str, np.ndarray] = {}
        self._replaced: dict[str, np.ndarray] = {}
        self._arena = aligned((max(entry["arena_bytes"] for entry in self._entries.values()),), "uint8")
        self._allocate()
        self._set_weights(self.program.weights)
        self._bind()

    def __deepcopy__(self, memo: dict[int, Any]) -> Trainer:
        """A trainer of the same program that goes on by itself from the same state."""
        twin = memo[id(self)] = Trainer(self.program, threads=self._threads)
        twin._set_weights(self.program.weights | self._current())
        twin._replaced = dict(self._replaced)
        for name in self._states():
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
        """
        arrays = self._checked_inputs(x)
        target = self._checked_target(y)
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
        self._run(entry)
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
        arrays = self._named_inputs(x)
        batch = self._inputs[0]["shape"][0] if self._inputs[0]["shape"] else 1
        count = len(next(iter(arrays.values()))) if self._inputs[0]["shape"] else 1
        # What has another length than the samples (a table of positions, say) belongs to all of them.
        samples = [name for name, array in arrays.items() if array.shape[:1] == (count,)]
        mixed = [spec["name"] for spec in self.program.manifest["outputs"] if list(spec["shape"][:1]) != [batch]]
        if count != batch and mixed:
            raise InputError(
                f"output '{mixed[0]}' does not have the samples along its first axis: predict takes {batch} samples, "
                f"not {count}"
            )
        parts: list[list[np.ndarray]] = []
        for start in range(0, count, batch):
            cut = {name: self._padded(arrays[name][start : start + batch], batch) for name in samples}
            chunk = arrays | cut
            for name, array in self._checked_inputs(chunk).items():
                self._fill(name, array)
            self._run("predict")
            kept = min(batch, count - start)
            results = self._results["predict"]
            parts.append([result.copy() if kept == batch else result[:kept].copy() for result in results])
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
        current = self.program.weights | self._current()
        current |= {alias: current[owner] for alias, owner in self.program.manifest["aliases"].items()}
        return {name: np.array(array) for name, array in current.items()}

    def _current(self) -> dict[str, np.ndarray]:
        """The weights that are not the program's any more."""
        return self._replaced | {name: self._from_stored(name, self._arrays[name]) for name in self._live()}

    def optimizer_state(self, kind: str) -> dict[str, np.ndarray]:
        """One state of the optimizer (``momentum_buffer``, ``exp_avg``, ``exp_avg_sq``) of every weight that is trained
        as a whole, in PyTorch's layout."""
        whole = [name for name, what in self.program.trained.items() if what == "full"]
        states = {name: self._arrays[f"{kind}.{name}"] for name in whole if f"{kind}.{name}" in self._arrays}
        return {name: np.array(self._from_stored(name, array)) for name, array in states.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over all weights, trained and frozen, from a state in PyTorch's names and layouts.

        Raises
        ------
        CheckpointError
            A name is missing or unknown, or a shape is wrong. The trainer is left as it was.
        """
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
        self._set_weights({name: array.astype(self._weights[name]["dtype"]) for name, array in arrays.items()})
        self._replaced = {
            name: array.copy()
            for name, array in arrays.items()
            if name not in self._live() and not np.array_equal(array, self.program.weights[name])
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint: what training has changed, the optimizer's state, and the number of steps."""
        require("the path of a checkpoint", path, PATH, CheckpointError)
        state = {f"weight.{name}": self._from_stored(name, self._arrays[name]) for name in self._live()}
        state |= {f"weight.{name}": array for name, array in self._replaced.items()}
        state |= {f"state.{name}": self._arrays[name] for name in self._states()}
        state = {name: np.asarray(array, order="C") for name, array in state.items()}
        metadata = {
            "format": CHECKPOINT,
            "steps": str(self.steps),
            "program": self._fingerprint(),
            "checksum": _checksum(state),
        }
        with replacing(path) as file:
            file.write(safetensors.numpy.save(state, metadata))

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Go on where :meth:`save` left off.

        Raises
        ------
        CheckpointError
            The file is damaged, or belongs to another program. The trainer is left as it was.
        """
        require("the path of a checkpoint", path, PATH, CheckpointError)
        state, metadata = _read_checkpoint(path)
        if metadata["program"] != self._fingerprint():
            raise CheckpointError(
                f"'{path}' is a checkpoint of another program: its scheme, optimizer or weights differ"
            )
        weights = {name.removeprefix("weight."): array for name, array in state.items() if name.startswith("weight.")}
        states = {name.removeprefix("state."): array for name, array in state.items() if name.startswith("state.")}
        self._check_shapes(weights)
        if set(states) != set(self._states()) or any(
            array.shape != self._arrays[name].shape for name, array in states.items()
        ):
            raise CheckpointError(f"'{path}' does not hold the optimizer state of this program")
        self._set_weights(self.program.weights | weights)
        self._replaced = {name: array for name, array in weights.items() if name not in self._live()}
        for name, array in states.items():
            self._fill(name, array)
        self.steps = int(metadata["steps"])

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
                array = self.program.constants[f"{entry}/{name}"]
            elif name.startswith("result."):
                array = results[int(name.removeprefix("result."))]
            else:
                array = arrays[name]
            addresses.append(array.ctypes.data)
        return self._library.table([*addresses, self._arena.ctypes.data])

    def _run(self, entry: str) -> None:
        use_threads(self._threads)
        self._library.run(entry, self._tables[entry])

    def _fill(self, name: str, values: np.ndarray) -> None:
        if name in self._arrays:  # an input that nothing reads has no memory
            np.copyto(self._arrays[name], values, casting="same_kind")

    def _live(self) -> list[str]:
        """The weights that training changes: parameters, and running statistics."""
        return [name for name, entry in self._weights.items() if entry["trained"] != "frozen" and name in self._arrays]

    def _states(self) -> list[str]:
        """The arrays of optimizer state and gradient sums."""
        return [name for name in self._arrays if name.partition(".")[2] in self._weights and name not in self._weights]

    def _set_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Put weights where the entry points read them: as they are stored, and prepared."""
        for name in self._weights:
            if name in self._arrays:
                np.copyto(self._arrays[name], self._to_stored(name, weights[name]))
        if "prepare" not in self._entries:
            return
        results = [
            self._arrays[f"prepared.{i}"] for i in range(sum(name.startswith("prepared.") for name in self._arrays))
        ]
        read = [tensor["name"] for tensor in self._entries["prepare"]["table"]]
        frozen = {name: np.ascontiguousarray(weights[name]) for name in read if name in self._weights}
        self._library.run("prepare", self._table("prepare", frozen, results))

    def _to_stored(self, name: str, array: np.ndarray) -> np.ndarray:
        stored = self._weights[name].get("stored")
        return array.reshape(stored["shape"]).transpose(stored["axes"]) if stored else array

    def _from_stored(self, name: str, array: np.ndarray) -> np.ndarray:
        stored = self._weights[name].get("stored")
        return (
            np.ascontiguousarray(array.transpose(np.argsort(stored["axes"])).reshape(self._weights[name]["shape"]))
            if stored
            else array
        )

    def _check_shapes(self, arrays: Mapping[str, np.ndarray]) -> None:
        for name, array in arrays.items():
            if name not in self._weights:
                raise CheckpointError(f"'{name}' is no weight of the program")
            if list(array.shape) != self._weights[name]["shape"]:
                raise CheckpointError(
                    f"'{name}' has the shape {tuple(self._weights[name]['shape'])}, not {array.shape}"
                )

    def _fingerprint(self) -> str:
        """What two programs share whose checkpoints fit each other."""
        manifest = self.program.manifest
        what = repr([manifest["weights"], manifest["optimizer"], sorted(self._states())])
        return hashlib.sha256(what.encode()).hexdigest()

    # ---- checks ------------------------------------------------------------------------------------------------------

    def _named_inputs(self, x: Data) -> dict[str, np.ndarray]:
        names = [spec["name"] for spec in self._inputs]
        if isinstance(x, Mapping):
            wrong = [name for name in x if name not in names] or [name for name in names if name not in x]
            if wrong:
                raise InputError(
                    f"the network's inputs are {', '.join(names)}; '{wrong[0]}' is "
                    f"{'missing' if wrong[0] in names else 'not one'}"
                )
            return {name: as_array(f"input '{name}'", x[name]) for name in names}
        values = list(x) if isinstance(x, tuple | list) else [x]
        if len(values) != len(names):
            raise InputError(f"the network has {len(names)} inputs ({', '.join(names)}); {len(values)} were given")
        return {name: as_array(f"input '{name}'", value) for name, value in zip(names, values, strict=True)}

    def _checked_inputs(self, x: Data) -> dict[str, np.ndarray]:
        arrays, limits = self._named_inputs(x), self.program.index_limits
        for spec in self._inputs:
            name, array = spec["name"], arrays[spec["name"]]
            check_array(f"input '{name}'", array, spec["shape"], spec["dtype"])
            if name in limits and array.size:
                lowest, limit = limits[name]
                wrong = array[(array < lowest) | (array >= limit)]
                if wrong.size:
                    raise InputError(
                        f"input '{name}' holds {int(wrong[0])}, and its table has {limit} rows: indices go from "
                        f"{lowest} to {limit - 1}"
                    )
        return arrays

    def _checked_target(self, y: Any) -> np.ndarray | None:
        spec = self._specs.get("target")
        if spec is None:
            if y is not None:
                raise InputError("the network computes its own loss; step takes no target")
            return None
        if y is None:
            raise InputError(f"loss '{self._loss.kind}' needs a target y of shape {tuple(spec['shape'])}")
        target = as_array("target y", y)
        check_array("target y", target, spec["shape"], spec["dtype"])
        if self._loss.has_classes:
            classes = self._classes()
            wrong = (target != self._loss.ignore_index) & ((target < 0) | (target >= classes))
            if wrong.any():
                raise InputError(
                    f"label {int(target[wrong][0])} is out of range: there are {classes} classes, 0 to {classes - 1}"
                )
        return target

    def _classes(self) -> int:
        shape = self.program.manifest["outputs"][self._loss.output]["shape"]
        return int(shape[-1] if self._loss.kind == "causal_lm" else shape[1])

    @staticmethod
    def _padded(array: np.ndarray, batch: int) -> np.ndarray:
        """A last, smaller batch filled up with its first sample."""
        missing = batch - len(array)
        return array if missing <= 0 else np.concatenate([array, np.repeat(array[:1], missing, axis=0)])


def _read_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        data = Path(path).read_bytes()
        state = safetensors.numpy.load(data)
        with safetensors.safe_open(os.fspath(path), framework="numpy") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint '{path}'") from error
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"'{path}' is no checkpoint, or is damaged: {error}") from error
    if metadata.get("format") != CHECKPOINT:
        raise CheckpointError(f"'{path}' is no checkpoint of format {CHECKPOINT}")
    if metadata.get("checksum") != _checksum(state):
        raise CheckpointError(f"'{path}' is damaged: its checksum is wrong")
    return state, metadata


def _checksum(state: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(state[name]).tobytes())
    return digest.hexdigest()
