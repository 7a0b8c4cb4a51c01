"""Search strategies, ours and others'."""

from __future__ import annotations

import pickle
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from pock_tvm.compiler.database import Trial, text_of
from pock_tvm.compiler.targets import resolve_target
from pock_tvm.tuning import plugins as module
from pock_tvm.tuning.cost_model import NoModel, XGBoostModel
from pock_tvm.tuning.plugins import PluginError
from pock_tvm.tuning.space import Space, new_points
from pock_tvm.tuning.strategies import STRATEGIES
from tests.schedules.test_decisions import TARGETS, kernel_of

SPACE = Space(TARGETS["cpu"], kernel_of("wide product")[0])
POINTS = list(SPACE.points())


def trial(point, seconds: float | None = None) -> Trial:
    """A trial in a world where tall tiles are fast."""
    if seconds is None:
        seconds = 1.0 / point["tile"][0] + 0.1 * point.get("unroll_reduced", 0)
    return Trial(point, seconds, 1.0)


def started(name: str, model=None, seeds=(), seed: int = 0):
    return STRATEGIES.own[name](SPACE, list(seeds), model or NoModel(), np.random.default_rng(seed))


@pytest.mark.parametrize("name", STRATEGIES.own)
def test_proposals_are_new_points(name: str) -> None:
    strategy, known = started(name), set()
    for _ in range(4):
        proposed = strategy.propose(8)
        texts = {text_of(point) for point in proposed}
        assert len(texts) == len(proposed) and not texts & known
        assert all(SPACE.repaired(point) == point for point in proposed)
        known |= texts
        strategy.observe([trial(point) for point in proposed])


@pytest.mark.parametrize("name", STRATEGIES.own)
def test_what_was_measured_before_is_not_proposed(name: str) -> None:
    strategy = started(name)
    strategy.observe([trial(point) for point in POINTS[:-1]])
    for _ in range(20):
        for point in strategy.propose(4):
            assert text_of(point) == text_of(POINTS[-1])


@pytest.mark.parametrize("name", STRATEGIES.own)
def test_equal_seeds_propose_the_same(name: str) -> None:
    assert started(name, seed=3).propose(8) == started(name, seed=3).propose(8)


def test_evolution_starts_with_the_default_and_what_was_good_elsewhere() -> None:
    assert started("evolutionary", seeds=[POINTS[7], POINTS[3]]).propose(8)[:3] == [SPACE.default, POINTS[7], POINTS[3]]


@pytest.mark.parametrize("model", [NoModel, lambda: XGBoostModel(resolve_target("host"))], ids=["no model", "XGBoost"])
def test_evolution_finds_more_than_chance(model) -> None:
    pytest.importorskip("xgboost")
    seconds = {}
    for name in STRATEGIES.own:
        late = []
        for seed in range(4):
            strategy = started(name, model(), seed=seed)
            for batch in range(5):
                proposed = [trial(point) for point in strategy.propose(6)]
                strategy.observe(proposed)
                late += [each.seconds for each in proposed] if batch > 1 else []
        seconds[name] = np.mean(late)
    assert seconds["evolutionary"] < 0.9 * seconds["random"]


def test_the_model_learns_which_schedules_are_fast() -> None:
    pytest.importorskip("xgboost")
    model = XGBoostModel(resolve_target("host"))
    assert (model.scores(SPACE, POINTS[:3]) == 0).all()
    order = np.random.default_rng(0).permutation(len(POINTS))
    known, unknown = ([POINTS[at] for at in part] for part in (order[:60], order[60:120]))
    model.update(SPACE, [*map(trial, known), Trial(POINTS[order[0]], None, None, "crashes")])
    seconds = [trial(point).seconds for point in unknown]
    assert np.corrcoef(model.scores(SPACE, unknown), seconds)[0, 1] < -0.5


def test_what_was_drawn_is_not_scheduled_again(monkeypatch) -> None:
    pytest.importorskip("xgboost")
    model, rng = XGBoostModel(resolve_target("host")), np.random.default_rng(0)
    model.update(SPACE, [trial(point) for point in POINTS[:32]])
    points = new_points(lambda: SPACE.sample(rng), set(), 8)
    monkeypatch.setattr(type(SPACE.target), "schedule", None)
    assert len(set(model.scores(SPACE, points))) > 1
    model.update(SPACE, pickle.loads(pickle.dumps([trial(point) for point in points])))  # as a process returns them


class Chosen:
    """A strategy from outside: the points that it was told."""

    def __init__(self, space, seeds, model, rng) -> None:
        self.left = [{"tile": POINTS[9]["tile"]}, POINTS[3]]

    def propose(self, count: int):
        return [self.left.pop(0) for _ in self.left[:count]]

    def observe(self, trials) -> None:
        if any(trial.failure for trial in trials):
            raise ZeroDivisionError("no idea")


def test_a_strategy_from_outside(monkeypatch) -> None:
    entry = EntryPoint("chosen", f"{__name__}:Chosen", STRATEGIES.group)
    monkeypatch.setattr(module, "entry_points", lambda group: [entry] if group == entry.group else [])
    strategy = STRATEGIES.maker("chosen")(SPACE, [], NoModel(), np.random.default_rng(0))
    first, second = strategy.propose(2)
    assert set(first) == set(SPACE.repaired({"tile": POINTS[9]["tile"]}) or {}) and second == POINTS[3]
    strategy.observe([trial(first)])
    with pytest.raises(PluginError, match=r"^the search strategy 'chosen' failed: ZeroDivisionError: no idea$"):
        strategy.observe([Trial(first, None, None, "crashes")])


def test_trials_that_are_told_twice_count_once() -> None:
    class Counts(NoModel):
        told = 0

        def update(self, space, trials) -> None:
            self.told += len(trials)

    model = Counts()
    strategy = started("evolutionary", model)
    strategy.observe([trial(POINTS[0]), trial(POINTS[1])])
    strategy.observe([trial(POINTS[1]), trial(POINTS[2])])
    assert model.told == 3
