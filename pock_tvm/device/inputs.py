"""Checks what a user hands to a step or a prediction, against what the program was compiled for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .arrays import as_array, bounds, check_array
from .errors import InputError
from .losses import EVALUATE, FUNCTION, TARGET, Loss, target_name
from .program import Program

Data = Any
"""One array, a sequence of arrays in the order of the inputs, or a mapping from input names to arrays."""


class Inputs:
    """The inputs of a program, and the target of its loss."""

    def __init__(self, program: Program, loss: Loss) -> None:
        self._specs = [_parsed(spec) for spec in program.manifest["inputs"]]
        self._names = [spec["name"] for spec in self._specs]
        self._limits = program.index_limits
        self._loss = loss
        self._target = program.tensor(TARGET)
        self._targets = [_parsed(spec) for spec in program.manifest.get("targets", [])]
        self._outputs = program.manifest["outputs"]

    @property
    def batch(self) -> int | None:
        """The samples that the program was compiled for; None where its first input is a single number."""
        shape = self._specs[0]["shape"]
        return int(shape[0]) if shape else None

    def named(self, x: Data) -> dict[str, np.ndarray]:
        """The arrays by the names of the inputs, of any shape.

        Raises
        ------
        InputError
            One is missing, or is no input.
        """
        return named_inputs(x, self._names)

    def count(self, x: Data) -> int:
        """The number of samples: rows of the first input."""
        first = next(iter(self.named(x).values()))
        return (len(first) if first.ndim else 0) if self.batch is not None else 1

    def checked(self, x: Data) -> dict[str, np.ndarray]:
        """The arrays by the names of the inputs.

        Raises
        ------
        InputError
            One has another shape or type than the program was compiled for, or holds an index out of range.
        """
        arrays = self.named(x)
        for spec in self._specs:
            name, array = spec["name"], arrays[spec["name"]]
            check_array(f"input '{name}'", array, spec["shape"], spec["dtype"])
            if name in self._limits and array.size:
                lowest, limit = self._limits[name]
                wrong = array[(array < lowest) | (array >= limit)]
                if wrong.size:
                    raise InputError(
                        f"input '{name}' holds {int(wrong[0])}, and its table has {limit} rows: indices go from "
                        f"{lowest} to {limit - 1}"
                    )
        return arrays

    def target(self, y: Any, count: int | None = None) -> np.ndarray | None:
        """The target of the loss, for ``count`` samples where that is not as many as the program was compiled for;
        None where the network computes its own.

        Raises
        ------
        InputError
            It is missing, not wanted, of another shape or type, or holds a label out of range.
        """
        if self._target is None:
            if y is not None:
                raise InputError("the network computes its own loss; step takes no target")
            return None
        shape, dtype = self._target
        if count is not None and shape:
            shape = (count, *shape[1:])
        if y is None:
            raise InputError(f"loss '{self._loss.kind}' needs a target y of shape {shape}")
        target, output = as_array("target y", y), self._outputs[self._loss.output]["shape"]
        if self._loss.kind == "cross_entropy" and target.dtype.kind == "f" and [*target.shape[1:]] == [*output[1:]]:
            raise InputError(
                f"target y is {target.dtype} {list(target.shape)}, and loss 'cross_entropy' takes class numbers "
                f"{list(shape)}: for probabilities compile with loss=pock.CustomLoss(F.cross_entropy, y), where F is "
                "torch.nn.functional"
            )
        check_array("target y", target, shape, dtype)
        if self._loss.has_classes:
            self._check_labels(target, int(output[-1] if self._loss.kind == "causal_lm" else output[1]))
        return target

    def _check_labels(self, labels: np.ndarray, classes: int) -> None:
        lowest, highest = bounds(labels)
        if lowest >= 0 and highest < classes:
            return
        wrong = (labels != self._loss.ignore_index) & ((labels < 0) | (labels >= classes))
        if wrong.any():
            raise InputError(
                f"label {int(labels[wrong][0])} is out of range: there are {classes} classes, 0 to {classes - 1}"
            )

    def targets(self, y: Any) -> dict[str, np.ndarray]:
        """The targets of a step, by the names of the program's inputs. Errors: as :meth:`target`."""
        if self._loss.kind != FUNCTION:
            target = self.target(y)
            return {} if target is None else {TARGET: target}
        arrays = self._named_targets(y)
        for spec in self._targets:
            check_array(f"'{spec['name']}'", arrays[spec["name"]], spec["shape"], spec["dtype"])
        return arrays

    def _named_targets(self, y: Any) -> dict[str, np.ndarray]:
        """The targets of a loss function, by the names of the program's inputs, of any shape."""
        names = [spec["name"] for spec in self._targets]
        if y is None:
            raise InputError(f"the loss function needs a target y ({', '.join(names)})")
        if names == [TARGET]:
            return {TARGET: as_array("target y", y)}
        keys = [name.removeprefix(target_name("")) for name in names]
        return dict(zip(names, named_inputs(y, keys, of="the target y").values(), strict=True))

    def of_evaluation(
        self, outputs: np.ndarray | tuple[np.ndarray, ...], y: Any, count: int, table: Sequence[Mapping[str, Any]]
    ) -> Iterator[dict[str, np.ndarray]]:
        """The operands of each call of a loss function, by their names in its ``table``, for ``count`` samples.

        Raises
        ------
        InputError
            A target has another shape or type; or the loss needs a whole batch, and there is a part of one.
        """
        batch = self.batch or 1
        given = outputs if isinstance(outputs, tuple) else (outputs,)
        arrays = {f"output.{spec['name']}": array for spec, array in zip(self._outputs, given, strict=True)}
        arrays |= self._named_targets(y)
        whole = {f"output.{spec['name']}": spec["shape"] for spec in self._outputs}
        whole |= {spec["name"]: spec["shape"] for spec in self._targets}
        read = {tensor["name"].removeprefix(f"{EVALUATE}."): tensor for tensor in table}
        read = {name: tensor for name, tensor in read.items() if name in arrays}
        is_by_sample = any(list(tensor["shape"]) != list(whole[name]) for name, tensor in read.items())
        if not is_by_sample and count % batch:
            raise InputError(
                f"the loss function needs {batch} samples at once: evaluate takes multiples of {batch}, not {count}"
            )
        rows = {}
        for name, tensor in read.items():
            shape = list(whole[name])
            is_cut = shape != list(tensor["shape"]) if is_by_sample else bool(shape) and shape[0] % batch == 0
            if is_cut:
                shape[0] = shape[0] * count // batch
                rows[name] = int(tensor["shape"][0])
            check_array(f"'{name}'", arrays[name], shape, tensor["dtype"])
        calls = max((len(arrays[name]) // each for name, each in rows.items()), default=1)
        for call in range(calls):
            parts = {name: arrays[name][call * each : (call + 1) * each] for name, each in rows.items()}
            yield {f"{EVALUATE}.{name}": parts.get(name, arrays[name]) for name in read}

    def chunks(self, x: Data) -> list[tuple[int, dict[str, np.ndarray]]]:
        """The inputs of a prediction in batches as the program takes them, each with the samples that count.

        A last, smaller batch is filled up with its first sample.

        Raises
        ------
        InputError
            As :meth:`checked`; and where some output has not the samples along its first axis, another number of them.
        """
        arrays, batch, count = self.named(x), self.batch or 1, self.count(x)
        if not count:
            raise InputError("predict takes at least one sample")
        # An array of another length than the samples (a table of positions, say) belongs to all of them.
        samples = [name for name, array in arrays.items() if array.shape[:1] == (count,)]
        mixed = [spec["name"] for spec in self._outputs if list(spec["shape"][:1]) != [batch]]
        if count != batch and mixed:
            raise InputError(
                f"output '{mixed[0]}' does not have the samples along its first axis: predict takes {batch} samples, "
                f"not {count}"
            )
        found = []
        for start in range(0, count, batch):
            cut = {name: _padded(arrays[name][start : start + batch], batch) for name in samples}
            found.append((min(batch, count - start), self.checked(arrays | cut)))
        return found


def _parsed(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A tensor of the manifest with shape and type as arrays have them: each step compares them."""
    return {**spec, "shape": tuple(spec["shape"]), "dtype": np.dtype(spec["dtype"])}


def _padded(array: np.ndarray, batch: int) -> np.ndarray:
    missing = batch - len(array)
    return array if missing <= 0 else np.concatenate([array, np.repeat(array[:1], missing, axis=0)])


def named_inputs(x: Data, names: Sequence[str], *, of: str = "") -> dict[str, np.ndarray]:
    """The arrays by the names of a network's inputs, of any shape. ``of``: what they are of, for messages.

    Raises
    ------
    InputError
        One is missing, or is no input.
    """
    where = f" of {of}" if of else ""
    if isinstance(x, Mapping):
        wrong = [name for name in x if name not in names] or [name for name in names if name not in x]
        if wrong:
            found = "missing" if wrong[0] in names else "not one"
            raise InputError(f"the network's inputs are {', '.join(names)}; '{wrong[0]}'{where} is {found}")
        return {name: as_array(f"input '{name}'{where}", x[name]) for name in names}
    values = list(x) if isinstance(x, tuple | list) else [x]
    if len(values) != len(names):
        given = f"{len(values)}{where} were given"
        inputs = f"{len(names)} input{'s' if len(names) != 1 else ''} ({', '.join(names)})"
        raise InputError(f"the network has {inputs}; {given}: a list or tuple has an item for each")
    return {name: as_array(f"input '{name}'{where}", value) for name, value in zip(names, values, strict=True)}
