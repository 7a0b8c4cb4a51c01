"""``pock.tune`` on a small network: it goes on where it was, and is never slower than the default."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pock_tvm as pock
from pock_tvm.compiler.database import Database, Trial
from pock_tvm.compiler.rebuild import rebuild, target_of
from pock_tvm.errors import OptionError, PockWarning, ProgramError
from pock_tvm.tuning import verdicts as module
from pock_tvm.tuning.measurer import MeasuringError
from tests.pock_tvm.networks import small

X = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype("float32")
Y = np.array([0, 1, 2, 3])
OPTIONS = {"optimizer": pock.SGD(momentum=0.9), "batch_norm": "frozen", "check": False}


@pytest.fixture(scope="module")
def program() -> pock.Program:
    return pock.compile(small(4), **OPTIONS)


def losses(program: pock.Program) -> list[float]:
    trainer = pock.Trainer(program)
    return [trainer.step(X, Y, lr=0.1) for _ in range(5)]


class Table:
    """Measures nothing: the last decision that is not the default's is the fastest."""

    def __init__(self, fault: str | None = None) -> None:
        self.fault, self.points = fault, []

    def measure(self, definition, target, points):
        if self.fault == "refused":
            raise MeasuringError("the default schedule fails: no")
        for number, point in enumerate(points):
            self.points.append((definition, point))  # kernels may have the same points
            yield Trial(point, 1.0 / (1 + number), 1.0, None)
            if self.fault == "killed" and len(self.points) == 10:
                raise KeyboardInterrupt


@pytest.fixture
def faster(monkeypatch):
    """Steps of a tuned program take three quarters of the time, by decree."""
    monkeypatch.setattr(module, "kernel_seconds", lambda a, _: dict.fromkeys(a.manifest["kernels"], 1.0))
    monkeypatch.setattr(module, "compare_kernels", lambda a, b, _: dict.fromkeys(b.manifest["kernels"], (4.0, 3.0)))
    monkeypatch.setattr(module, "compare_steps", lambda a, b, _: (4.0, 4.0 if a is b else 3.0))


@pytest.fixture
def slower(monkeypatch):
    monkeypatch.setattr(module, "compare_kernels", lambda a, b, _: dict.fromkeys(b.manifest["kernels"], (4.0, 3.0)))
    monkeypatch.setattr(module, "compare_steps", lambda *_: (4.0, 4.1))


def test_a_whole_search(program: pock.Program, tmp_path: Path) -> None:
    """Nothing is made up here but the budget."""
    pytest.importorskip("xgboost")
    seen = []
    result = pock.tune(program, tmp_path, trials=24, progress=seen.append)
    assert result.trials == 24 and result.after <= result.before
    assert [each.trials for each in seen] == list(range(1, 25)) and all(each.gain >= 1 for each in seen)
    np.testing.assert_allclose(losses(result.program), losses(program), rtol=1e-5)
    again = pock.compile(small(4), database=tmp_path, **OPTIONS)
    np.testing.assert_allclose(losses(again), losses(program), rtol=1e-5)
    kernels = [each.manifest["kernels"] for each in (again, result.program)]
    assert {name for name in kernels[0] if kernels[0][name]["schedule"] == "tuned"} == {
        name for name in kernels[1] if kernels[1][name]["schedule"] == "tuned"
    }
    assert abs(sum(kernel.share for kernel in result.kernels) - 1) < 0.2


def test_what_is_chosen_is_replayed(program: pock.Program, tmp_path: Path, faster) -> None:
    result = pock.tune(program, tmp_path, trials=120, strategy="random", measure=Table())
    assert result.gain == pytest.approx(4 / 3)
    chosen = {kernel.name: kernel for kernel in result.kernels if kernel.decisions}
    assert len(chosen) > 5 and {kernel.gain for kernel in chosen.values()} == {4 / 3}
    again = pock.compile(small(4), database=tmp_path, **OPTIONS)
    for built in (result.program, again):
        records = built.manifest["kernels"]
        assert {records[name]["schedule"] for name in chosen} == {"tuned"}
        assert {records[name]["gain"] for name in chosen} == {4 / 3}
        np.testing.assert_allclose(losses(built), losses(program), rtol=1e-5)
    found = Database(tmp_path, target_of(program))
    assert found.kernels and all(record.definition for record in found.kernels.values())
    # Tuning a tuned program compares with the default, and not with itself.
    assert rebuild(again).manifest["kernels"] == program.manifest["kernels"]


def test_what_makes_a_step_slower_is_not_chosen(program: pock.Program, tmp_path: Path, slower) -> None:
    result = pock.tune(program, tmp_path, trials=40, strategy="random", measure=Table())
    assert result.program is program and result.gain == 1
    assert all(kernel.gain == 1 and not kernel.decisions for kernel in result.kernels)
    again = pock.compile(small(4), database=tmp_path, **OPTIONS)
    assert "tuned" not in {record["schedule"] for record in again.manifest["kernels"].values()}


def test_a_killed_search_goes_on(program: pock.Program, tmp_path: Path, faster) -> None:
    killed, second, third = Table("killed"), Table(), Table()
    with pytest.raises(KeyboardInterrupt):
        pock.tune(program, tmp_path, trials=30, strategy="random", measure=killed)
    result = pock.tune(program, tmp_path, trials=30, strategy="random", measure=second)
    assert result.trials == 30
    measured = [point for point in second.points if point not in killed.points]
    assert len(measured) >= 20
    # All trials are there: only the finalists are measured again.
    result = pock.tune(program, tmp_path, trials=30, strategy="random", measure=third)
    assert result.trials == 30 and all(point in killed.points + second.points for point in third.points)


def test_a_kernel_that_cannot_be_measured_keeps_its_default(program: pock.Program, tmp_path: Path) -> None:
    with pytest.warns(PockWarning, match="keeps its default schedule: the default schedule fails: no"):
        result = pock.tune(program, tmp_path, trials=10, strategy="random", measure=Table("refused"))
    assert result.trials == 0 and result.program is program


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "trials is a number of trials, at least 1, not 0"),
        ({"seconds": -1}, "seconds is a number of seconds above 0, not -1"),
        ({"strategy": "guess"}, "there is no such search strategy; there are evolutionary, random"),
        ({"cost_model": "guess"}, "there is no such cost model; there are xgboost, none"),
        ({"space": "all"}, "there is no such space; there are own, metaschedule"),
        ({"measure": "guess"}, "there is no such measure; there are device"),
        ({"seed": 0.5}, "seed is a whole number from 0, not 0.5"),
        ({"database": 3}, "database is a path, not 3"),
    ],
)
def test_options_of_the_wrong_kind(program: pock.Program, tmp_path: Path, options, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        pock.tune(program, **{"database": tmp_path, **options})


def test_programs_that_cannot_be_tuned_here(program: pock.Program, tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="compile it again without --slim"):
        pock.tune(replace(program, kernels=b""), tmp_path, strategy="random")
    with warnings.catch_warnings(action="ignore"):
        other = pock.compile(small(4), target="pi4", build=False, **OPTIONS)
    with pytest.raises(pock.PockError, match="kernels are tuned on the machine that they are for"):
        pock.tune(other, tmp_path)


def test_damaged_records_are_told(program: pock.Program, tmp_path: Path, faster) -> None:
    Database(tmp_path, target_of(program)).path.write_bytes(b"nothing\n")
    with pytest.warns(PockWarning, match="1 damaged record is left out"):
        pock.tune(program, tmp_path, trials=5, strategy="random", measure=Table())
    assert Database(tmp_path, target_of(program)).skipped == 1
