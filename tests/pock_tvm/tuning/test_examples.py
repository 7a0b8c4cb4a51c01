"""The examples of parts of the tuner do what they say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tvm

from pock_tvm.compiler.database import Trial, text_of
from pock_tvm.compiler.targets import kernel_target, resolve_target
from pock_tvm.tuning.cost_model import NoModel
from pock_tvm.tuning.space import Space
from schedules import spaces
from tests.schedules.kernels import assert_close, call
from tests.schedules.test_decisions import KERNELS, TARGETS, kernel_of

CPU = TARGETS["cpu"]
SPACE = Space(CPU, kernel_of("wide product")[0])
POINTS = list(SPACE.points())


def example(path: str) -> ModuleType:
    file = Path(__file__).parents[3] / "examples" / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trial(point) -> Trial:
    """A trial in a world where tall tiles are fast."""
    return Trial(point, 1.0 / point["tile"][0] + 0.1 * point.get("unroll_reduced", 0), 1.0)


def test_the_cost_model_ranks_what_it_has_not_seen() -> None:
    model = example("cost_model/least_squares.py").LeastSquares(resolve_target("host"))
    assert (model.scores(SPACE, POINTS[:3]) == 0).all()
    order = np.random.default_rng(0).permutation(len(POINTS))
    known, unknown = ([POINTS[at] for at in part] for part in (order[:40], order[40:80]))
    model.update(SPACE, [*map(trial, known), Trial(POINTS[order[0]], None, None, "crashes")])
    seconds = [trial(point).seconds for point in unknown]
    assert np.corrcoef(model.scores(SPACE, unknown), seconds)[0, 1] < -0.5


@pytest.mark.parametrize("name", KERNELS)
def test_the_space_computes_the_same(monkeypatch, name: str) -> None:
    rule = example("space/outer_parallel.py").schedule
    monkeypatch.setattr(spaces, "rule_of", lambda _: rule)
    (func, arrays), rng = kernel_of(name), np.random.default_rng(0)
    space = Space(CPU, func, ("outer_parallel",))
    expected = call(CPU.schedule(func), *arrays, target=CPU)
    for point in [space.default, space.sample(rng)]:
        assert point is not None
        assert_close(call(CPU.schedule(func, point), *arrays, target=CPU), expected)


def test_the_measure_prefers_short_code() -> None:
    measure = example("measure/instructions.py").Instructions(None)
    func, target = SPACE.func.with_attr("global_symbol", "kernel"), resolve_target("host")
    *_, last = points = list(Space(kernel_target(target), func).points())
    found = list(measure.measure(tvm.ir.save_json(func), str(target), [points[0], last]))
    assert [each.decisions for each in found] == [points[0], last]
    assert found[0].speedup == 1 and all(each.seconds and each.seconds > 10 for each in found)


def test_the_bayesian_strategy_finds_more_than_chance() -> None:
    pytest.importorskip("optuna")
    strategy = example("tpe/tpe.py").Tpe(SPACE, [POINTS[3]], NoModel(), np.random.default_rng(0))
    first = strategy.propose(8)
    assert first[:2] == [SPACE.default, POINTS[3]] and len({text_of(point) for point in first}) == 8
    late = []
    for _ in range(5):
        strategy.observe([trial(point) for point in first])
        first = strategy.propose(8)
        late += [trial(point).seconds for point in first]
    assert np.mean(late) < np.mean([trial(point).seconds for point in POINTS])
