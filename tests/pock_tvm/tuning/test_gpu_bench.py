"""Schedules of a GPU's kernels are built, checked and timed on the device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pock_tvm as pock
from pock_tvm.compiler.targets import resolve_target
from pock_tvm.device.measuring.gpu_bench import DeviceOperands, GpuBench
from pock_tvm.tuning.builder import Builder
from pock_tvm.tuning.space import Space
from schedules.kernels.matmul import matmul
from tests.schedules.kernels import defined, first_device, noise

OPENCL = resolve_target("opencl")
OPTIONS = {"target": "opencl", "loss": "mse", "check": False}


@pytest.fixture(autouse=True, scope="module")
def _device() -> None:
    first_device("opencl")


def bench() -> tuple[GpuBench, Builder]:
    func = defined(matmul, *noise("product", (33, 17), (17, 20)), transpose_a=False, transpose_b=False)
    builder = Builder(func.with_attr("global_symbol", "matmul"), OPENCL, is_here=True)
    return GpuBench(builder.kernel()), builder


def test_a_schedule_is_measured_against_the_default() -> None:
    made, builder = bench()
    point = next(each for each in Space(builder.kernel_target, builder.func).points() if each != {})
    timing = made.measure(builder.build(point))
    assert timing.failure is None and timing.seconds > 0 and timing.reference > 0


def test_wrong_results_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    made, builder = bench()
    right = made.results
    monkeypatch.setattr(made, "results", lambda *given: [each + 1 for each in right(*given)])
    assert made.measure(builder.build({})).failure.startswith("wrong: ")


def test_what_is_written_between_operands_is_told() -> None:
    made, _ = bench()
    operands = DeviceOperands(made, ())
    operands.fill(made.inputs[0])
    assert len(operands.read()) == 3
    end = made.memory.region(operands.addresses[0] + made.operands[0].nbytes, 4)
    made.backend.write(end, np.zeros(4, "uint8"))
    with pytest.raises(RuntimeError, match="outside its operands"):
        operands.read()


def test_a_program_is_tuned_on_its_device(tmp_path: Path) -> None:
    """The tuned program trains as before, and a compilation with the database has its schedules."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 33), nn.ReLU(), nn.Linear(33, 5))
    exported = torch.export.export(net, (torch.zeros(9, 12),))
    program = pock.compile(exported, **OPTIONS)
    result = pock.tune(program, tmp_path, trials=6, strategy="random")
    again = pock.compile(exported, database=tmp_path, **OPTIONS)
    x, y = (np.random.default_rng(0).standard_normal(shape).astype("float32") for shape in ((9, 12), (9, 5)))
    losses = [pock.Trainer(each).step(x, y, lr=0.1) for each in (program, result.program, again)]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-6)
    assert result.trials == 6 and result.failures == 0 and result.after <= result.before
