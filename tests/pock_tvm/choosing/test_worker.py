"""Runs in a worker."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import pock_tvm as pock
from pock_tvm.choosing.candidates import (
    scheme_of,
)
from pock_tvm.choosing.worker import measure
from pock_tvm.frontend import load_model
from pock_tvm.frontend.structure import structure_of


def test_a_run_is_the_fine_tuning_that_a_user_would_do(task, analysed, tmp_path) -> None:
    candidate = next(run.candidate for run in analysed.runs if run.candidate.weight and run.epochs == 2)
    exported = torch.export.load(task.model)
    scheme = scheme_of(structure_of(load_model(exported, batch=8)), candidate.biases, candidate.ratios)
    program = pock.compile(exported, scheme=scheme, optimizer=pock.SGD(momentum=0.9), batch=8)
    trainer, rng = pock.Trainer(program), np.random.default_rng(1)
    with np.load(task.data) as data:
        x, y = data["x"], data["y"]
    for epoch in range(2):
        order = rng.permutation(64)
        for step in range(8):
            rate = 0.05 * (1 + np.cos(np.pi * (8 * epoch + step) / 16)) / 2
            trainer.step(x[order[8 * step : 8 * step + 8]], y[order[8 * step : 8 * step + 8]], lr=rate)
    with np.load(task.validation) as data:
        logits, labels = trainer.predict(data["x"]), data["y"]
    run = analysed.run_of(candidate, 2, 1)
    assert run.score == pytest.approx(100 * (logits.argmax(1) == labels).mean())
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))
    assert run.loss == pytest.approx(float(loss), rel=1e-5)
    memory = program.memory()
    assert analysed.costs[candidate].memory == memory["arena"] + memory["optimizer_state"]


def test_a_loss_that_is_no_number_is_recorded(task, tmp_path) -> None:
    recipe = replace(task.recipe, lr=1e30)
    structure = structure_of(load_model(task.model, batch=8))
    result = measure(replace(task, recipe=recipe), scheme_of(structure, 7, {}).rules, 1, 0, tmp_path)
    assert result.score is None


def test_data_that_is_not_finite_is_no_run_that_diverges(task, tmp_path) -> None:
    with np.load(task.data) as data:
        x, y = data["x"].copy(), data["y"]
    x[3] = np.nan
    np.savez(tmp_path / "poisoned.npz", x=x, y=y)
    structure = structure_of(load_model(task.model, batch=8))
    poisoned = replace(task, data=str(tmp_path / "poisoned.npz"))
    with pytest.raises(pock.NonFiniteError, match="input 'x' is not finite"):
        measure(poisoned, scheme_of(structure, 7, {}).rules, 1, 0, tmp_path)
