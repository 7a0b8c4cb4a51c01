"""First-order scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pock_tvm.choosing.candidates import (
    Candidate,
    candidates,
)
from pock_tvm.choosing.first_order import first_order_scores, score
from pock_tvm.frontend import load_model
from pock_tvm.frontend.structure import structure_of
from tests.pock_tvm.choosing.measurements import HEAD, by_run
from tests.pock_tvm.networks import Small


def test_scores_know_the_rows_that_are_read(sentences, tmp_path) -> None:
    found = score(sentences, tmp_path / "c.json")
    some, every = (found.scores[Candidate(1, "words.weight", ratio)] for ratio in (0.25, 1.0))
    assert 0 < some < every
    assert score(sentences, tmp_path / "c.json").scores == found.scores


@pytest.mark.parametrize("optimizer", [{"kind": "sgd", "momentum": 0.9}, {"kind": "adam"}])
def test_scores_are_those_of_pytorchs_gradients(task, optimizer) -> None:
    task = replace(task, optimizer=optimizer)
    found = first_order_scores(task)
    torch.manual_seed(0)
    model = Small().eval()
    model.load_state_dict(torch.export.load(task.model).state_dict)
    with np.load(task.data) as data:
        x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    order = np.random.default_rng(0).permutation(64)
    squares = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for step in range(8):
        chosen = order[8 * step : 8 * step + 8]
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
        for name, parameter in model.named_parameters():
            squares[name] += parameter.grad**2 / 8
    rates = {name: square.sqrt() if optimizer["kind"] == "adam" else square for name, square in squares.items()}
    weight = "blocks.1.conv2.weight"
    channels = model.get_parameter(weight).detach().abs().sum((0, 2, 3)).topk(2).indices
    assert found[Candidate(7, weight, 0.25)] == pytest.approx(float(rates[weight][:, channels].sum() ** 0.5), rel=1e-3)
    assert found[Candidate(7, weight)] == pytest.approx(float(rates[weight].sum() ** 0.5), rel=1e-3)
    assert found[Candidate(1)] == pytest.approx(float(rates["blocks.1.conv2.bias"].sum() ** 0.5), rel=1e-3)
    assert found[HEAD] == 0


def test_scores_stand_beside_what_was_measured(task, analysed, tmp_path) -> None:
    analysed.save(tmp_path / "c.json")
    found = score(task, tmp_path / "c.json")
    assert by_run(found) == by_run(analysed)
    assert set(found.scores) == set(candidates(structure_of(load_model(task.model, batch=8)), task.ratios))


def test_validation_samples_among_the_training_samples_are_told(task, tmp_path) -> None:
    with np.load(task.data) as data:
        np.savez(tmp_path / "val.npz", x=data["x"][:10], y=data["y"][:10])
    said: list[str] = []
    score(replace(task, validation=str(tmp_path / "val.npz")), tmp_path / "c.json", warn=said.append)
    assert "10 of 10 validation samples are training samples too" in said[0]
