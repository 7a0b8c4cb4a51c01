"""Trials of a database as a table, each with the features of its schedule: a data set for cost models."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tvm
from tvm import s_tir

from schedules.decisions import DecisionError

from ..compiler.database import Database, Trial
from ..compiler.targets import kernel_target
from ..device.files import replacing
from ..errors import PockError
from .cost_model import features
from .space import Space, own_space

CHUNK = 64
"""Trials whose features are taken together."""


def trial_rows(database: Database) -> Iterable[dict[str, Any]]:
    """Yield a row for each trial of a database, in the order of each kernel's trials.

    Columns: ``kernel`` (its structural hash), ``name``, ``rule``, ``shapes`` (JSON), ``target``, ``number``, and those
    of :func:`rows_of`. ``name`` and ``rule`` are null, and features empty, if the kernel's definition is missing.
    """
    target = kernel_target(database.target)
    for key, trials in database.trials.items():
        record = database.kernels.get(key)
        name, rule, shapes = (None, None, None) if record is None else (record.name, record.rule, record.shapes)
        head = {"kernel": key, "name": name, "rule": rule, "target": database.key, "shapes": json.dumps(shapes)}
        if record is None:
            rows: Iterable[dict[str, Any]] = (_row(trial, []) for trial in trials.values())
        else:
            space = own_space(target, tvm.ir.load_json(record.definition))
            rows = rows_of(database.target, space, list(trials.values()))
        for number, row in enumerate(rows):
            yield head | {"number": number} | row


def rows_of(target: tvm.target.Target, space: Space, trials: Sequence[Trial]) -> Iterable[dict[str, Any]]:
    """Yield the columns of trials of one kernel.

    They are ``decisions`` (JSON), ``seconds`` and ``reference`` of the default (null if it failed), ``failure``, and
    ``features``: a list of numbers for each store; empty for a point that has no schedule now.
    """
    for start in range(0, len(trials), CHUNK):
        chunk = trials[start : start + CHUNK]
        found = [_has_schedule(space, trial) for trial in chunk]
        points = [trial.decisions for trial, is_point in zip(chunk, found, strict=True) if is_point]
        matrices = iter(features(target, space, points))
        for trial, is_point in zip(chunk, found, strict=True):
            yield _row(trial, next(matrices).tolist() if is_point else [])


def _row(trial: Trial, stores: list[list[float]]) -> dict[str, Any]:
    measured = {"seconds": trial.seconds, "reference": trial.reference, "failure": trial.failure}
    return {"decisions": json.dumps(dict(trial.decisions)), **measured, "features": stores}


def _has_schedule(space: Space, trial: Trial) -> bool:
    try:
        return space.completed(trial.decisions) == trial.decisions
    except (DecisionError, s_tir.ScheduleError):
        return False


def write_table(rows: Iterable[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Write rows as a Parquet file; one that is there is replaced at the end.

    Raises
    ------
    PockError
        The package ``pyarrow`` is missing.
    WriteError
        The file cannot be written.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise PockError("Parquet files are written by PyArrow: pip install 'pock-tvm[research]'") from error
    types = {"seconds": pyarrow.float64(), "reference": pyarrow.float64()}
    types |= dict.fromkeys(("name", "rule", "failure"), pyarrow.string())
    types["features"] = pyarrow.list_(pyarrow.list_(pyarrow.float32()))
    table = pyarrow.Table.from_pylist([dict(row) for row in rows])
    for name, kind in types.items():
        if name in table.column_names:
            at = table.column_names.index(name)
            table = table.set_column(at, name, table.column(name).cast(kind))
    with replacing(path) as file:
        pyarrow.parquet.write_table(table, file, compression="zstd")
