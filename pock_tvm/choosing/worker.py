"""The work of a worker process: opens a task, compiles it, fine-tunes and evaluates."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import __version__
from ..compiler.driver import compile as compile_program
from ..compiler.targets import resolve_target
from ..compiler.training_options import FLOAT32
from ..device import optimizers
from ..device.losses import Loss
from ..device.optimizers import Optimizer
from ..device.program import Program
from ..device.trainer import Trainer
from ..errors import InputError, MissingGradient, NonFiniteError, NothingFrozenError, PockWarning
from ..frontend import Model, load_model
from ..frontend.structure import Structure, structure_of
from ..schemes.scheme import Scheme
from ..training.beside import Preprocessing
from ..training.data import (
    ArrayFile,
    Augmentation,
    DataSet,
    ImageFolder,
    check_classes,
    evaluation_batches,
    open_data,
    rows_read,
    shuffled_batches,
)
from ..training.fine_tuning import fine_tune
from ..training.recipe import steps_of
from .costs import Cost, cost_of
from .task import Task


@dataclass(frozen=True)
class RunResult:
    """Result of a run: score and loss as in :class:`pock_tvm.choosing.runs.Run`, and the program's cost."""

    score: float | None
    loss: float | None
    cost: Cost | None
    """None for a scheme that cannot be trained: an operator between it and the loss has no gradient rule, or no layer
    before it can be of the type of frozen layers."""


def open_model(task: Task) -> tuple[Model, Structure]:
    """Load a task's model, and read its structure."""
    shapes = tuple((name, tuple(shape)) for name, shape in task.shapes.items())
    model = _loaded(task.model, _stamp(task.model), task.batch, shapes, task.trust)
    return model, structure_of(model)


def open_task(task: Task) -> tuple[Model, Structure, DataSet, DataSet]:
    """Load a task's model, its structure (with the embedding rows that the data reads), training and validation data.

    Raises
    ------
    DataError
        The data is unreadable or too small, or training and validation classes differ.
    """
    model, structure = open_model(task)
    training, validation = _data(task)
    steps_of(task.recipe, training, model.inputs[0].shape[0])
    check_classes(f"'{task.data}'", training.classes, f"'{task.validation}'", validation.classes)
    return model, structure.reading(rows_read(structure.look_ups, training)), training, validation


def frozen_options(task: Task, frozen: str) -> dict[str, Any]:
    """Return the options of :func:`pock_tvm.compile` for frozen layers of another type, with ranges from the training
    data, which are those of ``pock compile --calibrate`` on it."""
    training, _ = _data(task)
    return {"frozen": frozen, "calibrate_with": shuffled_batches(training, _model(task).inputs[0].shape[0])}


def measure(
    task: Task,
    rules: dict[str, Any],
    epochs: float,
    seed: int,
    folder: Path,
    memory_budget: int | None = None,
    frozen: str = FLOAT32,
) -> RunResult:
    """Fine-tune by a scheme and evaluate; the function that worker processes call."""
    try:
        program = _program(task, rules, folder, memory_budget, frozen)
    except (MissingGradient, NothingFrozenError):
        return RunResult(None, None, None)
    training, validation = _data(task)
    trainer = Trainer(program, threads=1)
    recipe = replace(task.recipe, epochs=epochs)
    cost = cost_of(program)
    try:
        fine_tune(trainer, recipe, training, seed)
    except InputError:  # the data holds NaN or infinity, which no scheme makes good
        raise
    except NonFiniteError:
        return RunResult(None, None, cost)
    batch = program.manifest["inputs"][0]["shape"][0]
    result = trainer.evaluate(evaluation_batches(validation, batch))
    loss = result["loss"]
    if not math.isfinite(loss):
        return RunResult(None, None, cost)
    return RunResult(100 * result["accuracy"] if "accuracy" in result else -loss, loss, cost)


def _program(task: Task, rules: dict[str, Any], folder: Path, memory_budget: int | None, frozen: str) -> Program:
    """Compile the program of a scheme, or load it from the folder: runs differ in seed and length, not in program.

    The file name hashes everything that the program depends on, since the folder may stem from another analysis or
    machine.
    """
    target = resolve_target(None)
    compiled = [task.batch, dict(task.shapes), task.loss, dict(task.optimizer)]
    key = [rules, memory_budget, frozen, compiled, task.model, _stamp(task.model), __version__, str(target)]
    path = folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]}.pock"
    if path.exists():
        program = Program.load(path)
        weights = {name: each for name, each in _model(task).weights.items() if name not in program.in_eight_bits}
        return replace(program, weights=weights)
    options = {"memory_budget": memory_budget} | ({} if frozen == FLOAT32 else frozen_options(task, frozen))
    program = compile_task(task, Scheme(rules), **options)
    folder.mkdir(parents=True, exist_ok=True)
    replace(program, weights={}).save(path)  # hundreds of programs have the same weights
    return program


def planned_cost(task: Task, rules: dict[str, Any], target: Any, frozen: str = FLOAT32) -> Cost | None:
    """Compute the cost of a scheme from its plan, without a build; None if it cannot be trained, or if no layer before
    what is trained can be of the type ``frozen``."""
    try:
        return cost_of(compile_task(task, Scheme(rules), target=target, frozen=frozen, build=False))
    except (MissingGradient, NothingFrozenError):
        return None


def compile_task(task: Task, scheme: Scheme, optimizer: Optimizer | None = None, **options: Any) -> Program:
    """Compile a scheme with the task's loss and optimizer; ``options`` are those of :func:`pock_tvm.compile`."""
    optimizer = optimizer or optimizers.from_json(dict(task.optimizer))
    # Hundreds of programs of one network would repeat the same warnings, from within workers.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PockWarning)
        return compile_program(_model(task), scheme=scheme, loss=task.loss, optimizer=optimizer, **options)


def _model(task: Task) -> Model:
    return open_model(task)[0]


@functools.lru_cache(maxsize=1)
def _loaded(
    model: str,
    _stamp: Stamp,
    batch: int | None,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    trust: bool,  # noqa: FBT001 - for the cache's sake
) -> Model:
    return load_model(model, batch=batch, shapes=dict(shapes), trust=trust)


def _data(task: Task) -> tuple[ImageFolder | ArrayFile, ImageFolder | ArrayFile]:
    inputs = tuple((spec.name, spec.shape) for spec in _model(task).inputs)
    preprocessing = tuple((name, tuple(values)) for name, values in task.preprocessing.items())
    has_target = Loss(task.loss).has_target
    return (
        _opened(task.data, _stamp(task.data), inputs, preprocessing, Augmentation(task.flip, task.crop), has_target),
        _opened(task.validation, _stamp(task.validation), inputs, preprocessing, Augmentation(), has_target),
    )


@functools.lru_cache(maxsize=2)
def _opened(
    path: str,
    _stamp: Stamp,
    inputs: tuple[tuple[str, tuple[int, ...]], ...],
    preprocessing: tuple[tuple[str, tuple[float, ...]], ...],
    augmentation: Augmentation,
    has_target: bool,  # noqa: FBT001 - for the cache's sake
) -> ImageFolder | ArrayFile:
    specs = [{"name": name, "shape": shape} for name, shape in inputs]
    return open_data(path, specs, Preprocessing(**dict(preprocessing)), augmentation, has_target=has_target)


Stamp = tuple[tuple[str, int], ...]
"""File names and modification times: caches of a long-lived worker notice changed files by them."""


def _stamp(path: str) -> Stamp:
    root = Path(path)
    if not root.exists():
        return ()
    parts = [root, *(sorted(root.iterdir()) if root.is_dir() else [])]
    return tuple((part.name, part.stat().st_mtime_ns) for part in parts)
