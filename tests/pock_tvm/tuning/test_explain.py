"""Summaries of a search; and the example of a strategy outside of the repository."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import tvm

import pock_tvm as pock
from pock_tvm.compiler.database import Database, Trial, kernel_key
from pock_tvm.compiler.rebuild import definitions_of, target_of
from pock_tvm.compiler.targets import kernel_target
from pock_tvm.tuning.cost_model import NoModel
from pock_tvm.tuning.explain import explain, rank_correlation
from pock_tvm.tuning.space import Space
from tests.pock_tvm.commands import run_command

ANNEALING = Path(__file__).resolve().parents[3] / "examples" / "strategy" / "annealing.py"


@pytest.fixture(scope="module")
def program() -> pock.Program:
    exported = torch.export.export(torch.nn.Linear(17, 33), (torch.randn(7, 17),))
    return pock.compile(exported, loss="mse", check=False)


def space_of(program: pock.Program, beginning: str) -> tuple[str, Space]:
    name = next(name for name in definitions_of(program) if name.startswith(beginning))
    target = kernel_target(target_of(program))
    return name, Space(target, tvm.ir.load_json(definitions_of(program)[name]))


class Knows(NoModel):
    """Scores the points of a space by their number, as if it had learnt."""

    def __init__(self, points: list) -> None:
        self._points = points

    def scores(self, space: Space, points) -> np.ndarray:
        return np.array([float(self._points.index(point)) for point in points])


def test_a_search_is_told(program, tmp_path) -> None:
    name, space = space_of(program, "fused_matmul")
    points = list(space.points())
    database = Database(tmp_path, target_of(program))
    trials = [Trial(point, 1e-6 / (1 + number), 1e-6) for number, point in enumerate(points[:20])]
    trials.insert(3, Trial(points[20], None, None, "crashes"))
    for trial in trials:
        database.add_trial(kernel_key(space.func), trial)
    found = explain(program, Database(tmp_path, target_of(program)), name[:-1], Knows(points))
    assert (found.name, found.points, found.is_whole) == (name, len(points), True)
    assert found.best == trials[-1] and len(found.curve) == 21 and found.curve[-1] == pytest.approx(20)
    assert found.curve == sorted(found.curve) and found.curve[3] == found.curve[2]
    assert found.model_correlation == pytest.approx(1.0)
    assert found.code == space.target.schedule(space.func, points[19]).script()
    code, text = run_command(
        "tune", _saved(program, tmp_path), "--database", tmp_path, "--explain", name, "--plot", tmp_path / "curve.png"
    )
    assert code == 0, text
    assert "20.00x the default" in text and "1 failed" in text and "rank correlation" in text
    assert max(found.code.splitlines(), key=len) in text, "no line is cut at the width of a terminal"
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_kernel_of_which_nothing_was_tried_has_no_plot(program, tmp_path, monkeypatch) -> None:
    name, space = space_of(program, "fused_matmul")
    with monkeypatch.context() as patch:
        patch.setattr("pock_tvm.compiler.database.sources", lambda: "before")
        database = Database(tmp_path, target_of(program))
        database.add_trial(kernel_key(space.func), Trial(next(iter(space.points())), 1e-6, 1e-6))
    plot = tmp_path / "curve.png"
    saved = _saved(program, tmp_path)
    code, text = run_command("tune", saved, "--database", tmp_path, "--explain", name, "--plot", plot)
    assert code == 0 and "0 of them tried" in text and "1 more by other versions" in text, text
    assert "is not written" in text and not plot.exists()


def _saved(program: pock.Program, folder: Path) -> Path:
    program.save(folder / "net.pock")
    return folder / "net.pock"


def test_names_that_say_too_little_are_refused(program, tmp_path) -> None:
    database = Database(tmp_path, target_of(program))
    for name in ("", "nothing"):
        with pytest.raises(pock.PockError, match="kernel"):
            explain(program, database, name, NoModel())


def test_no_correlation_without_trials_or_knowledge(program) -> None:
    _, space = space_of(program, "fused_matmul")
    trials = [Trial(point, 1e-6, 1e-6) for point in list(space.points())[:16]]
    assert rank_correlation(space, trials[:15], Knows(list(space.points()))) is None
    assert rank_correlation(space, trials, NoModel()) is None


def test_the_example_of_a_strategy_finds_the_fastest(program) -> None:
    """On a made-up machine, where a schedule is the faster the wider its tile is."""
    spec = importlib.util.spec_from_file_location("annealing", ANNEALING)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    _, space = space_of(program, "fused_matmul")
    widths = {json.dumps(point["tile"]): point["tile"][-1] for point in space.points()}
    strategy = module.Annealing(space, [], NoModel(), np.random.default_rng(0))
    for _ in range(20):
        points = strategy.propose(8)
        assert points and all(json.dumps(point["tile"]) in widths for point in points)
        strategy.observe([Trial(point, 1e-6, 1e-6 * point["tile"][-1]) for point in points])
    assert strategy.at["tile"][-1] == max(widths.values())
