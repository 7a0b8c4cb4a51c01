"""Trials as a table with features."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tvm

from pock_tvm.compiler.database import Database, KernelRecord, Trial, kernel_key
from pock_tvm.compiler.targets import kernel_target, resolve_target
from pock_tvm.tuning.space import own_space
from pock_tvm.tuning.trial_table import trial_rows, write_table
from tests.schedules.test_decisions import kernel_of

TARGET = resolve_target("host")


@pytest.fixture
def database(tmp_path: Path) -> Database:
    found, func = Database(tmp_path, TARGET), kernel_of("wide product")[0]
    space = own_space(kernel_target(TARGET), func)
    found.add_kernel(kernel_key(func), KernelRecord("matmul", "pock.matmul", ((48, 20),), tvm.ir.save_json(func)))
    found.add_trial(kernel_key(func), Trial(space.default, 2e-6, 4e-6))
    found.add_trial(kernel_key(func), Trial({"no such choice": 1}, None, None, "cannot be built"))
    return found


def test_each_trial_is_a_row(database: Database) -> None:
    first, second = trial_rows(database)
    assert first["name"] == "matmul" and first["rule"] == "pock.matmul" and first["target"] == database.key
    assert (first["number"], first["seconds"], first["reference"], first["failure"]) == (0, 2e-6, 4e-6, None)
    assert np.array(first["features"]).shape[1] == 164 and json.loads(first["decisions"])
    assert (second["number"], second["seconds"], second["failure"]) == (1, None, "cannot be built")
    assert second["features"] == []


def test_trials_of_a_kernel_that_is_not_defined_have_no_features(database: Database) -> None:
    database.add_trial("unknown", Trial({"tile": 1}, 2e-6, 4e-6))
    *_, last = trial_rows(database)
    assert (last["kernel"], last["name"], last["features"], last["seconds"]) == ("unknown", None, [], 2e-6)


def test_a_parquet_file_holds_them(database: Database, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "trials.parquet"
    write_table(trial_rows(database), path)
    table = parquet.read_table(path)
    assert table.column("seconds").to_pylist() == [2e-6, None]
    assert [len(each) > 0 for each in table.column("features").to_pylist()] == [True, False]
