"""Gains of kinds of weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import pock_tvm as pock
from pock_tvm.choosing.candidates import (
    Candidate,
    WeightSet,
    candidates,
    weights_by_kind,
)
from pock_tvm.choosing.contributions import Contributions
from pock_tvm.choosing.costs import Cost
from pock_tvm.choosing.expected_gains import expected_gains, kind_gains
from pock_tvm.choosing.runs import Run
from pock_tvm.frontend import load_model
from pock_tvm.frontend.structure import structure_of
from pock_tvm.reports.page import write_report
from tests.pock_tvm.choosing.measurements import HEAD


def test_weights_share_by_size_what_their_kind_brought(task, tmp_path) -> None:
    task = replace(task, recipe=replace(task.recipe, epochs=10))
    found = pock.analyze_kinds(task, tmp_path / "c.json")
    assert Contributions.load(tmp_path / "c.json").kinds == found.kinds
    assert found.finished
    assert not found.runs
    structure = structure_of(load_model(task.model, batch=8))
    kinds = list(weights_by_kind(structure, candidates(structure, task.ratios)).values())
    assert {(run.candidate, run.epochs, run.seed) for run in found.kinds} == set(
        itertools.product([WeightSet(0, ()), WeightSet(7, ()), *kinds], [10], [0, 1])
    )
    gains, expected = kind_gains(found), expected_gains(found)
    assert set(expected) == set(candidates(structure, task.ratios))
    assert not found.scores
    assert expected[HEAD] == 0
    biases = gains[WeightSet(7, ())].mean
    assert expected[Candidate(7)] == pytest.approx(biases)
    assert expected[Candidate(3)] == pytest.approx(biases * (3 / 7) ** 0.5)
    for kind in kinds:
        own = {each: gain for each, gain in expected.items() if each.weight in kind.ratios}
        brought = sum(own[Candidate(7, weight, ratio)] for weight, ratio in kind.weights)
        assert brought == pytest.approx(max(0.0, gains[kind].mean - biases))
        shares = [
            gain / (np.prod(found.fingerprint[each.weight]["shape"]) * each.ratio**0.5) for each, gain in own.items()
        ]
        assert shares == pytest.approx([shares[0]] * len(shares))
    assert pock.search(found).choice.gain > 0
    write_report(found, tmp_path / "r.html")
    # What was interrupted goes on, and comes to the same.
    replace(found, kinds=found.kinds[:5], finished=False).save(tmp_path / "d.json")
    again = pock.analyze_kinds(task, tmp_path / "d.json")
    assert len(again.kinds) == len(found.kinds)
    assert expected_gains(again) == expected


def small_task(folder: Path, net: torch.nn.Module) -> pock.Task:
    """Of which of the first three of six numbers is the largest."""
    torch.export.save(torch.export.export(net.eval(), (torch.randn(4, 6),)), folder / "n.pt2")
    x = np.random.default_rng(0).standard_normal((24, 6)).astype("float32")
    for part, some in (("train", x[:16]), ("val", x[16:])):
        np.savez(folder / f"{part}.npz", x=some, y=some[:, :3].argmax(1))
    paths = (str(folder / "n.pt2"), str(folder / "train.npz"), str(folder / "val.npz"))
    return pock.Task(*paths, pock.Recipe(4, 0.1), ratios=(1.0,), seeds=1)


class Wrapped(torch.nn.Module):
    """Three layers; ``behind`` comes after the first."""

    def __init__(self, behind: Callable[[torch.Tensor], torch.Tensor], *, bias: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(6, 6, bias=bias)
        self.second = torch.nn.Linear(6, 8, bias=bias)
        self.head = torch.nn.Linear(8, 3, bias=bias)
        self.behind = behind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.second(self.behind(self.first(x)))))


def test_of_a_network_without_biases_the_head_is_trained_once(tmp_path) -> None:
    found = pock.analyze_kinds(small_task(tmp_path, Wrapped(torch.relu, bias=False)), tmp_path / "c.json")
    linear = WeightSet(0, (("first.weight", 1.0), ("second.weight", 1.0)))
    assert {run.candidate for run in found.kinds} == {WeightSet(0, ()), linear}
    assert len(found.kinds) == 2
    assert set(expected_gains(found)) == {HEAD, Candidate(0, "first.weight"), Candidate(0, "second.weight")}


def test_kinds_leave_out_what_no_gradient_reaches(tmp_path, without_gradients) -> None:
    without_gradients("relax.cumprod")
    task = small_task(tmp_path, Wrapped(lambda x: torch.cumprod(x, 1), bias=True))
    found = pock.analyze_kinds(task, tmp_path / "c.json")
    assert {run.candidate for run in found.kinds} == {
        WeightSet(0, ()), WeightSet(1, ()), WeightSet(1, (("second.weight", 1.0),))
    }  # fmt: skip
    assert set(expected_gains(found)) == {HEAD, Candidate(1), Candidate(1, "second.weight")}
    assert "first.bias" not in pock.search(found, memory=1e6).scheme.rules


def test_a_kind_that_failed_is_never_chosen(task) -> None:
    head, biases, good, bad = (
        WeightSet(0, ()),
        WeightSet(7, ()),
        WeightSet(7, (("a", 1.0),)),
        WeightSet(7, (("b", 1.0),)),
    )
    runs = [Run(each, 1, 0, score) for each, score in ((head, 50.0), (biases, 60.0), (good, 64.0), (bad, None))]
    pieces = [HEAD, Candidate(7), Candidate(7, "a", 0.25), Candidate(7, "a"), Candidate(7, "b")]
    weights = {"a": {"shape": [6, 4]}, "b": {"shape": [2]}}
    found = Contributions(task, weights, "", costs=dict.fromkeys(pieces, Cost(1)), kinds=runs)
    assert expected_gains(found) == {HEAD: 0, Candidate(7): 10, Candidate(7, "a", 0.25): 2, Candidate(7, "a"): 4}
    found.kinds = [replace(run, score=None) if run.candidate == biases else run for run in runs]
    assert expected_gains(found) == {HEAD: 0}
    # Of an analysis that was interrupted, or of a head that failed, only what is known can be chosen.
    found.kinds = runs[:1]
    assert expected_gains(found) == {HEAD: 0}
    found.kinds = [replace(run, score=None) if run.candidate == head else run for run in runs]
    assert expected_gains(found) == {}
    # What biases spoil is no gain of the weights that are trained with them.
    found.kinds = [replace(run, score=10.0) if run.candidate == biases else run for run in runs]
    assert expected_gains(found)[Candidate(7)] == -40
