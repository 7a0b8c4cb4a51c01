"""From contributions to a scheme within its budgets."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

import pock_tvm as pock
from pock_tvm.choosing.analysis import planned_costs
from pock_tvm.choosing.candidates import Candidate, candidates, scheme_of
from pock_tvm.choosing.contributions import Contributions
from pock_tvm.choosing.costs import Cost
from pock_tvm.choosing.fingerprint import fingerprint
from pock_tvm.choosing.integer_program import Choices, Option, Weight, best
from pock_tvm.choosing.runs import Run
from pock_tvm.choosing.scheme_search import SearchResult, best_alternative, budgets_of, prepare_search
from pock_tvm.frontend import load_model
from pock_tvm.frontend.structure import structure_of

RECORDS = [
    {"kind": "pock.conv2d", "flops": 1e6, "bytes": 0.0, "ms": 1.0},
    {"kind": "", "flops": 0.0, "bytes": 0.0, "ms": 1.0},
]
"""Of a device of 1 GFLOP/s and a millisecond a call."""


def used(scheme: pock.Scheme, task: pock.Task, **options: object) -> int:
    exported = torch.export.load(task.model)
    program = pock.compile(exported, scheme=scheme, batch=8, optimizer=pock.SGD(momentum=0.9), **options)
    memory = program.memory()
    return memory["arena"] + memory["optimizer_state"] + memory["gradient_sums"]


def test_a_plan_costs_what_the_program_does(found) -> None:
    candidate = Candidate(7, "blocks.1.conv2.weight", 0.5)
    structure = structure_of(load_model(found.task.model, batch=8))
    assert found.costs[candidate].memory == used(scheme_of(structure, 7, candidate.ratios), found.task)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_the_compiled_scheme_holds_its_budget(found, share) -> None:
    budget = share * used(pock.Scheme.full(), found.task)
    chosen = pock.search(found, memory=budget)
    assert used(chosen.scheme, found.task, memory_budget=int(budget)) == chosen.cost.memory <= budget
    smaller = best(chosen.choices, memory=0.7 * budget)  # by the sum of its parts, which a plan comes near to
    assert smaller is None or chosen.choice.gain >= smaller.gain - 1e-9


def test_a_small_budget_is_filled_in_micro_batches(found) -> None:
    # Little more than the head alone takes on the whole batch.
    budget = 1.2 * used(pock.Scheme({"head.*": "full"}), found.task)
    _, sets, _ = prepare_search(found, profiles=[RECORDS])
    assert [choices.micro_batches for choices in sets] == [1, 2, 4, 8]
    whole, choices = sets[0], best_alternative(sets, budgets_of(budget, None))
    assert choices.micro_batches > 1
    assert best(choices, memory=budget).gain > best(whole, memory=budget).gain
    chosen = pock.search(found, memory=budget, profiles=[RECORDS])
    assert used(chosen.scheme, found.task, memory_budget=int(budget)) == chosen.cost.memory <= budget
    assert chosen.choice.gain > best(whole, memory=budget).gain


def test_frozen_layers_in_eight_bits_leave_memory_to_train_more(found) -> None:
    found = replace(found, eight_bits=[Run(Candidate(0), 1, seed, 49.6 + 0.1 * seed) for seed in range(2)])
    _, sets, _ = prepare_search(found, profiles=[RECORDS], frozen="int8")
    assert [(each.micro_batches, each.frozen) for each in sets[::4]] == [(1, "float32"), (1, "int8")]
    head = pock.Scheme({"*": "frozen", "head.*": "full"})
    floats, eight_bits = (each.biases[0].memory for each in sets[::4])
    gains = [[each.biases[number].gain for number in (0, 7)] for each in sets[::4]]
    assert gains[1] == pytest.approx([gain - 0.4 for gain in gains[0]])
    assert eight_bits == used(head, found.task, frozen="int8", build=False) < floats
    smallest = {}
    for kind in ("float32", "int8"):
        with pytest.raises(pock.PockError, match="a memory budget of 100 bytes is too small") as error:
            pock.search(found, memory=100, profiles=[RECORDS], frozen=kind)
        smallest[kind] = error.value.smallest
    assert smallest["int8"] < smallest["float32"]
    chosen = pock.search(found, memory=smallest["int8"], profiles=[RECORDS], frozen="int8")
    assert (chosen.frozen, chosen.cost.memory) == ("int8", smallest["int8"])


class Together(torch.nn.Module):
    """A network that takes its samples' mean away: none can be computed alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = (torch.nn.Linear(8, out) for out in (8, 8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        return self.head(torch.relu(self.second(x - x.mean(0, keepdim=True))))


def test_what_needs_the_whole_batch_is_searched_in_one_piece(tmp_path) -> None:
    torch.manual_seed(0)
    torch.export.save(torch.export.export(Together().eval(), (torch.randn(64, 8),)), tmp_path / "net.pt2")
    task = pock.Task(str(tmp_path / "net.pt2"), "train", "val", pock.Recipe(1), ratios=(1.0,))
    model = load_model(task.model)
    everything = candidates(structure_of(model), task.ratios)
    runs = [Run(each, 1, 0, 50.0 + 5 * each.biases + 3 * bool(each.weight)) for each in everything]
    together = Contributions(task, fingerprint(model), "", runs, planned_costs(task, everything))
    most = max(cost.memory for cost in together.costs.values())
    _, sets, _ = prepare_search(together, profiles=[RECORDS])
    assert [choices.micro_batches for choices in sets] == [1]
    assert pock.search(together, memory=0.9 * most, profiles=[RECORDS]).cost.memory <= 0.9 * most


def test_without_budgets_everything_that_helps_is_trained(found) -> None:
    chosen = pock.search(found)
    assert chosen.choice.biases == 7
    assert set(chosen.choice.weights) == {each.weight for each in found.costs if each.weight}


def test_the_smallest_budget_is_named_and_would_do(found) -> None:
    with pytest.raises(pock.PockError, match="a memory budget of 100 bytes is too small") as error:
        pock.search(found, memory=100)
    smallest = int(re.search(r"takes (\d+) bytes", str(error.value))[1])
    assert pock.search(found, memory=smallest).cost.memory == smallest
    with pytest.raises(pock.PockError, match="too small"):
        pock.search(found, memory=smallest - 1)


def test_a_latency_is_held_by_the_time_model(found) -> None:
    whole = pock.search(found, profiles=[RECORDS])
    chosen = pock.search(found, profiles=[RECORDS], seconds=0.7 * whole.seconds)
    assert chosen.seconds <= 0.7 * whole.seconds
    assert chosen.choice.gain < whole.choice.gain
    with pytest.raises(pock.PockError, match="a latency of 0.001 ms is too short"):
        pock.search(found, profiles=[RECORDS], seconds=1e-6)


def test_both_budgets_are_held(found) -> None:
    whole = pock.search(found, profiles=[RECORDS])
    budgets = {"memory": 0.8 * whole.cost.memory, "seconds": 0.8 * whole.seconds}
    chosen = pock.search(found, profiles=[RECORDS], **budgets)
    assert chosen.cost.memory <= budgets["memory"]
    assert chosen.seconds <= budgets["seconds"]
    assert chosen.choice.gain > 0


def plans(monkeypatch, found, sizes: dict[float, float], budget: float) -> SearchResult:
    """A search among pieces of which a scheme takes what its parts sum up to, or what ``sizes`` gives for that sum."""
    weights = {"a": Weight(0, {1.0: Option(1.0, 50, 0)}), "b": Weight(0, {1.0: Option(2.0, 83, 0)})}
    choices = Choices({0: Option(0.0, 10, 0)}, weights)
    monkeypatch.setattr("pock_tvm.choosing.scheme_search.prepare_search", lambda *_: (None, [choices], None))

    def plan(_task, _structure, choices, choice, *_) -> SearchResult:
        cost = Cost(sizes.get(choice.memory, choice.memory), 0, {"": (1, 0, 0)})
        return SearchResult(pock.Scheme({"*": "frozen"}), choice, cost, 0.0, choices, None, 1)

    monkeypatch.setattr("pock_tvm.choosing.scheme_search._plan", plan)
    return pock.search(found, memory=budget)


def test_what_does_not_hold_gives_way_to_what_does(monkeypatch, found) -> None:
    assert set(plans(monkeypatch, found, {}, 100).choice.weights) == {"b"}
    assert set(plans(monkeypatch, found, {93: 105}, 100).choice.weights) == {"a"}
    assert set(plans(monkeypatch, found, {93: 2000}, 100).choice.weights) == {"a"}
    assert set(plans(monkeypatch, found, {93: 160, 60: 101}, 100).choice.weights) == set()
    assert set(plans(monkeypatch, found, {143: 90}, 100).choice.weights) == {"a", "b"}
    with pytest.raises(pock.PockError, match="the smallest scheme takes 10 bytes"):
        plans(monkeypatch, found, {}, 9)


def test_another_machine_is_planned_for(found) -> None:
    budget = int(0.3 * used(pock.Scheme.full(), found.task))
    chosen = pock.search(found, memory=budget, target="raspberry-pi/4b-aarch64")
    assert "scaled by vector width and cores" in chosen.time_model.origin
    assert chosen.cost.memory <= budget
    assert chosen.choice.gain < pock.search(found, memory=100 * budget).choice.gain


def test_contributions_of_another_model(found, tmp_path) -> None:
    torch.manual_seed(3)
    exported = torch.export.export(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5)).eval(), (torch.randn(8, 3, 8, 8),)
    )
    torch.export.save(exported, tmp_path / "other.pt2")
    other = replace(found, task=replace(found.task, model=str(tmp_path / "other.pt2")))
    with pytest.raises(pock.PockError, match="it had 'stem.weight', which is missing here"):
        pock.search(other)
