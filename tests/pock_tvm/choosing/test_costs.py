"""Costs: the work of a step, and its memory in micro-batches."""

from __future__ import annotations

import pytest
import torch

import pock_tvm as pock
from pock_tvm.choosing.candidates import scheme_of
from pock_tvm.choosing.costs import Cost, cost_of
from pock_tvm.choosing.time_model import TimeModel
from pock_tvm.choosing.worker import compile_task
from pock_tvm.device.profile import example, profile
from pock_tvm.frontend import load_model
from pock_tvm.frontend.structure import structure_of


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("weights", [(), ("blocks.0.conv1.weight", "blocks.1.conv2.weight")])
def test_a_step_in_micro_batches_takes_about_what_a_cost_says(found, parts, weights) -> None:
    structure = structure_of(load_model(found.task.model, batch=8))
    scheme = scheme_of(structure, 7, dict.fromkeys(weights, 0.5))
    whole, cut = (cost_of(compile_task(found.task, scheme, build=False, micro_batches=n)) for n in (1, parts))
    said = whole.in_micro_batches(parts)
    assert (said.state, said.gradients) == (cut.state, cut.gradients)
    assert said.kept == pytest.approx(cut.kept, abs=0.1 * whole.memory)
    assert said.memory == pytest.approx(cut.memory, abs=0.15 * whole.memory)
    assert whole.in_micro_batches(1) == whole


def test_a_profile_holds_the_work_that_a_program_costs(found) -> None:
    """How well the model meets a step is no matter for a test: the machine may be busy."""
    program = pock.compile(torch.export.load(found.task.model), batch=8, optimizer=pock.SGD(momentum=0.9))
    records = profile(pock.Trainer(program), *example(program), repeat=2)
    cost = cost_of(program)
    assert cost.flops == sum(each["flops"] for each in records)
    assert cost.bytes == sum(each["bytes"] for each in records)
    model = TimeModel.fit([records], [records], "here")
    assert model.seconds(cost) > 0
    alone = [model.seconds(Cost(0, 0, {each["kind"]: (1, each["flops"], each["bytes"])})) for each in records]
    assert model.seconds(cost) == pytest.approx(sum(alone))
