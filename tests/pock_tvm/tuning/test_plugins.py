"""Parts of the tuner from outside: each kind works, is named when it fails, and is replaced if that is wanted."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pock_tvm as pock
from pock_tvm.compiler.database import Database, Trial
from pock_tvm.compiler.rebuild import target_of
from pock_tvm.errors import DatabaseError, OptionError, PockWarning
from pock_tvm.tuning import plugins
from pock_tvm.tuning import verdicts as module
from pock_tvm.tuning.cost_model import COST_MODELS, NoModel
from pock_tvm.tuning.measurer import MeasuringError
from pock_tvm.tuning.measures import MEASURES
from pock_tvm.tuning.plugins import Kind, PluginError
from pock_tvm.tuning.space import SPACES
from pock_tvm.tuning.strategies import STRATEGIES
from schedules import spaces
from tests.pock_tvm.tuning.test_tune import Table

KINDS = {kind.option: kind for kind in (STRATEGIES, COST_MODELS, SPACES, MEASURES)}


class Strategy:
    """Proposes the default and random points."""

    def __init__(self, space, seeds, model, rng) -> None:
        self.space, self.rng = space, rng

    def propose(self, count: int):
        drawn = [self.space.default, *(self.space.sample(self.rng) for _ in range(count - 1))]
        return [point for point in drawn if point is not None]

    def observe(self, trials) -> None:
        pass


class FailingStrategy(Strategy):
    def propose(self, count: int):
        raise ZeroDivisionError("no idea")


class CostModel(NoModel):
    def __init__(self, target) -> None:
        self.asked = 0


class FailingCostModel(CostModel):
    def scores(self, space, points):
        raise ZeroDivisionError("no idea")


def schedule(sch, choices, traits) -> None:
    """A schedule of any kernel: its outer loop in parallel or not."""
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        loops = sch.get_loops(block)
        if choices.choose(f"{sch.get(block).name_hint}.parallel", (False, True), False) and loops:
            sch.parallel(loops[0])


def failing_schedule(sch, choices, traits) -> None:
    raise ZeroDivisionError("no idea")


class Measure(Table):
    def __init__(self, target) -> None:
        super().__init__()


class FailingMeasure:
    def __init__(self, target) -> None:
        self.target = target

    def measure(self, definition, target, points):
        yield Trial(points[0], 1.0, 1.0)
        raise ZeroDivisionError("no idea")


TRIALS = 40
PARTS = {"strategy": "Strategy", "cost_model": "CostModel", "space": "schedule", "measure": "Measure"}
FAILING = {
    "strategy": "FailingStrategy",
    "cost_model": "FailingCostModel",
    "space": "failing_schedule",
    "measure": "FailingMeasure",
}


@pytest.fixture
def install(monkeypatch):
    """Installs a part under the name ``mine``."""

    def installed(kind: Kind, value: str) -> None:
        found = [EntryPoint("mine", f"{__name__}:{value}", kind.group)]
        for place in (plugins, spaces):
            monkeypatch.setattr(place, "entry_points", lambda group: found if group == kind.group else [])
        spaces.rule_of.cache_clear()

    yield installed
    spaces.rule_of.cache_clear()


@pytest.fixture
def faster(monkeypatch):
    """Kernels and steps take times by decree: which kernels come first, and what is drawn, depends on no clock."""
    monkeypatch.setattr(module, "kernel_seconds", lambda a, _: dict.fromkeys(a.manifest["kernels"], 1.0))
    monkeypatch.setattr(module, "compare_kernels", lambda a, b, _: dict.fromkeys(b.manifest["kernels"], (4.0, 3.0)))
    monkeypatch.setattr(module, "compare_steps", lambda a, b, _: (4.0, 4.0 if a is b else 3.0))


def network() -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    return torch.export.export(layers.eval(), (torch.randn(8, 16),))


@pytest.fixture(scope="module")
def program() -> pock.Program:
    return pock.compile(network(), check=False)


def tuned(program: pock.Program, folder: Path, **options):
    return pock.tune(program, folder, trials=TRIALS, **{"strategy": "random", "measure": Table(), **options})


@pytest.mark.parametrize("option", KINDS)
def test_a_part_from_outside(program, tmp_path: Path, install, faster, option: str) -> None:
    install(KINDS[option], PARTS[option])
    result = tuned(program, tmp_path, **{option: "mine"})
    assert result.trials == TRIALS and result.gain == pytest.approx(4 / 3)


@pytest.mark.parametrize("option", KINDS)
def test_a_part_that_fails(program, tmp_path: Path, install, faster, option: str) -> None:
    install(KINDS[option], FAILING[option])
    options = {option: "mine"} | ({"strategy": "evolutionary"} if option == "cost_model" else {})
    message = f"the {KINDS[option].noun} 'mine' failed: ZeroDivisionError: no idea"
    with pytest.raises(PluginError, match=f"^{message}$"):
        tuned(program, tmp_path, **options)
    if option == "measure":
        return  # ours would measure
    pytest.importorskip("xgboost")
    with pytest.warns(PockWarning, match=f"^{message}. Ours takes its place$"):
        result = tuned(program, tmp_path, keep_going=True, **options)
    assert result.trials == TRIALS


def test_a_measure_that_fails_is_replaced_in_its_batch(install) -> None:
    install(MEASURES, "FailingMeasure")
    measure = MEASURES.maker("mine")(None, instead=lambda: Table())
    with pytest.warns(PockWarning, match="the measure 'mine' failed"):
        found = list(measure.measure("", "", [{"a": 1}, {"a": 2}]))
    assert [trial.decisions for trial in found] == [{"a": 1}, {"a": 1}, {"a": 2}]


class ListingMeasure(FailingMeasure):
    def measure(self, definition, target, points):
        return [(point, 1.0) for point in points]


class ShortCostModel(CostModel):
    def scores(self, space, points):
        return np.zeros(1)


def test_a_part_that_returns_something_else(install) -> None:
    install(MEASURES, "ListingMeasure")
    with pytest.raises(PluginError, match=r"^the measure 'mine' failed: TypeError: it yields .*, which is no Trial$"):
        list(MEASURES.maker("mine")(None).measure("", "", [{"a": 1}]))
    install(COST_MODELS, "ShortCostModel")
    with pytest.raises(PluginError, match=r"^the cost model 'mine' failed: .* 2 points have the shape \(1,\)$"):
        COST_MODELS.maker("mine")(None).scores(None, [{"a": 1}, {"a": 2}])


def test_a_measure_may_refuse_a_kernel(install) -> None:
    class Refusing:
        def measure(self, definition, target, points):
            raise MeasuringError("the default schedule fails")

    refusing = plugins.Outside("it", Refusing, (MeasuringError,), None)
    with pytest.raises(MeasuringError, match="^the default schedule fails$"):
        refusing.measure("", "", [])


@pytest.mark.parametrize("value", ["NoSuchClass", ""])
@pytest.mark.parametrize("option", KINDS)
def test_a_part_that_cannot_be_imported(monkeypatch, install, option: str, value: str) -> None:
    install(KINDS[option], value or "no:such:name")
    message = f"^the {KINDS[option].noun} 'mine' failed: "
    with pytest.raises(PluginError, match=message):
        KINDS[option].maker("mine")()
    with pytest.warns(PockWarning, match=message + ".*. Ours takes its place$"):
        KINDS[option].maker("mine")(instead=Table)


@pytest.mark.parametrize("option", KINDS)
def test_an_unknown_part(install, option: str) -> None:
    install(KINDS[option], PARTS[option])
    with pytest.raises(OptionError, match=f"^{option}='x': there is no such {KINDS[option].noun}; there are .*, mine$"):
        KINDS[option].maker("x")


def test_a_schedule_from_outside_is_replayed_while_it_is_there_and_the_same(
    program, tmp_path: Path, install, faster, monkeypatch
) -> None:
    install(SPACES, "schedule")
    result = tuned(program, tmp_path, space="mine")
    chosen = {kernel.name: kernel.decisions for kernel in result.kernels if kernel.decisions}
    assert chosen and all(decisions["space:mine"] is True for decisions in chosen.values())
    again = pock.compile(network(), database=tmp_path, check=False)
    assert {name for name, record in again.manifest["kernels"].items() if record["schedule"] == "tuned"} >= set(chosen)
    losses = []
    for each in (program, again, result.program):
        trainer = pock.Trainer(each)
        x = np.random.default_rng(0).standard_normal((8, 16)).astype("float32")
        losses.append([trainer.step(x, np.arange(8) % 4, lr=0.1) for _ in range(3)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    np.testing.assert_allclose(losses[2], losses[0], rtol=1e-5)
    install(SPACES, "other_schedule")  # the package has changed
    changed = pock.compile(network(), database=tmp_path, check=False)
    assert "tuned" not in {record["schedule"] for record in changed.manifest["kernels"].values()}
    monkeypatch.setattr(spaces, "entry_points", lambda group: [])
    spaces.rule_of.cache_clear()
    with pytest.raises(DatabaseError, match="the schedule 'mine' is of a package that is not installed: install it"):
        pock.compile(network(), database=tmp_path, check=False)
    assert Database(tmp_path, target_of(program)).trials


def other_schedule(sch, choices, traits) -> None:
    """As :func:`schedule`, and of every kernel it makes another one."""
    schedule(sch, choices, traits)
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        sch.annotate(block, "changed", 1)
