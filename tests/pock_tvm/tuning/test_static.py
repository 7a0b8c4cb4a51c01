"""Static estimates: how often loops run, cycles that grow with the work, and tuning without a device."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest
import torch
import tvm
from torch import nn

import pock_tvm as pock
from pock_tvm.compiler.database import Database, Tuned, kernel_key
from pock_tvm.compiler.targets import kernel_target, resolve_target
from pock_tvm.errors import OptionError
from pock_tvm.tuning.measurer import MeasuringError
from pock_tvm.tuning.static import mca
from pock_tvm.tuning.static.cycles import kernel_cycles
from pock_tvm.tuning.static.loops import Loop, functions_of, loops_of
from pock_tvm.tuning.static.measure import StaticMeasure
from pock_tvm.tuning.static.trips import Values, first_iteration, trips
from relay_passes.analysis.fixed_point import packed
from schedules.gpu.text import cubin
from schedules.kernels.matmul import matmul
from tests.schedules import hexagon
from tests.schedules.kernels import defined, noise
from tests.schedules.test_decisions import PLAIN
from tests.schedules.test_quantized import convolution, random_layer
from tests.schedules.test_word_planes import layer

PI4 = resolve_target("pi4")
needs_mca = pytest.mark.skipif(not any(map(shutil.which, mca.TOOLS)), reason="llvm-mca is not installed")
TEXT = """define i32 @kernel(ptr %0) {
entry:
  br label %outer
outer:
  %i = phi i64 [ 0, %entry ], [ %i.next, %latch ]
  br label %inner
inner:
  %j = phi i64 [ 3, %outer ], [ %j.next, %inner ]
  %j.next = add nuw nsw i64 %j, 2
  %done = icmp eq i64 %j.next, 17
  br i1 %done, label %latch, label %inner
latch:
  %i.next = add nuw nsw i64 %i, 1
  %end = icmp eq i64 %i.next, COUNT
  br i1 %end, label %out, label %outer
out:
  ret i32 0
}
"""


def loops(**replaced: str) -> tuple[Values, Loop, Loop]:
    """Return the values, and the outer and the inner loop of the text."""
    text = TEXT
    for old, new in replaced.items():
        text = text.replace(old, new)
    (function,) = functions_of(text)
    (outer,) = loops_of(function.graph)
    (inner,) = outer.inner
    return Values(function, {}), outer, inner


def test_loops_and_how_often_they_run() -> None:
    values, outer, inner = loops(COUNT="33")
    assert (outer.header, inner.header) == ("outer", "inner") and outer.own == {"outer", "latch"}
    assert trips(outer, values) == 33 and trips(inner, values) == 7
    values, outer, _ = loops(COUNT="%n")
    assert trips(outer, values) is None


@pytest.mark.parametrize(
    ("compare", "count"),
    [("eq i64 %j.next, 17", 7), ("ugt i64 %j, 12", 6), ("sge i64 %j.next, 13", 5), ("ult i64 %j, 2", None)]
    + [("slt i64 %i, %j", 1), ("samesign ult i64 100, %j", 50)],
)
def test_how_often_a_loop_runs_by_its_comparison(compare: str, count: int | None) -> None:
    values, outer, inner = loops(**{"eq i64 %j.next, 17": compare, "COUNT": "33"})
    assert trips(inner, first_iteration(outer, values)) == count


def test_loops_that_leave_in_the_middle_or_by_a_switch() -> None:
    halves = """inner:
  %j = phi i64 [ 3, %outer ], [ %j.next, %second ]
  switch i64 %j, label %first [
    i64 2, label %second
    i64 9, label %second
  ]
first:
  %middle = icmp eq i64 %j, 13
  br i1 %middle, label %latch, label %second
second:
  %j.next = add nuw nsw i64 %j, 2
  br label %inner
latch:"""
    start, end = TEXT.index("inner:"), TEXT.index("latch:") + len("latch:")
    values, _, inner = loops(**{TEXT[start:end]: halves, "COUNT": "2"})
    assert inner.blocks == {"inner", "first", "second"} and trips(inner, values) == 6


def kernel(rows: int) -> tvm.tirx.PrimFunc:
    x, weight = noise("static", (rows, 64), (64, 64))
    return defined(matmul, x, weight, **PLAIN).with_attr("global_symbol", "kernel")


@needs_mca
@pytest.mark.parametrize("name", ["pi4", "pi5", "m1"])
def test_cycles_grow_with_the_work_and_respect_the_ports(name: str) -> None:
    target = resolve_target(name)
    machine = kernel_target(target)
    cycles = [
        kernel_cycles(machine.lower(machine.schedule(kernel(rows))), target, machine.traits.cores) for rows in (96, 192)
    ]
    assert 1.7 < cycles[1] / cycles[0] < 2.3
    # No core starts more than four multiply-adds of four numbers in a cycle.
    assert cycles[1] > 192 * 64 * 64 / (4 * 4 * machine.traits.cores)


@needs_mca
def test_of_a_parallel_kernel_the_longest_share_counts() -> None:
    machine = kernel_target(PI4)
    lowered = machine.lower(machine.schedule(kernel(192)))
    assert any("parallel" in str(func) for func in lowered.functions.values())
    one, four = (kernel_cycles(lowered, PI4, cores) for cores in (1, 4))
    assert 3.5 < one / four < 4.5


@needs_mca
def test_a_measure_without_a_device() -> None:
    func, machine = kernel(96), kernel_target(PI4)
    default = {name: choice.decided for name, choice in machine.options(func).items()}
    measure = StaticMeasure(PI4)
    good, bad = measure.measure(tvm.ir.save_json(func), str(PI4), [default, {"no such choice": 1}])
    assert good.speedup == 1 and good.failure is None
    assert bad.seconds is None and bad.failure is not None and bad.failure.startswith("cannot be built: ")
    with pytest.raises(MeasuringError, match="there is no estimate of it: "):
        list(measure.measure(tvm.ir.save_json(func), '{"kind": "llvm", "mcpu": "no-such-core"}', [default]))


def test_what_has_no_model_is_said(monkeypatch) -> None:
    with pytest.raises(pock.PockError, match="no static model of the core 'cortex-a53'"):
        mca.model_of(tvm.target.Target({"kind": "llvm", "mcpu": "cortex-a53"}))
    with pytest.raises(pock.PockError, match="estimates are made for CPUs and for CUDA"):
        StaticMeasure(resolve_target("opencl"))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(pock.PockError, match="made by llvm-mca, which is missing: apt-get install llvm"):
        StaticMeasure(PI4)


@pytest.mark.parametrize(
    "target",
    [
        pytest.param("pi4", marks=needs_mca),
        "hexagon-v73",
        pytest.param("jetson-orin", marks=pytest.mark.skipif(cubin.nvrtc() is None, reason="needs NVRTC")),
    ],
)
def test_a_program_for_another_machine_is_tuned_by_estimates(target: str, tmp_path: Path) -> None:
    layers = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4)).eval()
    exported = torch.export.export(layers, (torch.randn(8, 32),))
    with warnings.catch_warnings(action="ignore"):
        program = pock.compile(exported, target=target, check=False)
        result = pock.tune(program, tmp_path, trials=24, strategy="random", measure="static")
        again = pock.compile(exported, target=target, check=False, database=tmp_path)
    assert result.estimated and result.trials == 24 and result.before == 1 and 0 < result.after <= 1
    chosen = {kernel.name: kernel.gain for kernel in result.kernels if kernel.decisions}
    assert all(gain >= (1.02 if target.startswith("hexagon") else 1.1) for gain in chosen.values())
    for built in (result.program, again):
        schedules = {name: record["schedule"] for name, record in built.manifest["kernels"].items()}
        assert {name for name, schedule in schedules.items() if schedule == "estimated"} == set(chosen)
        assert "tuned" not in schedules.values()
    with pytest.raises(OptionError, match="leave devices and model out"):
        pock.tune(program, tmp_path, measure="static", model=exported)
    with pytest.raises(OptionError, match="space='metaschedule' may be wrong: leave space out"):
        pock.tune(program, tmp_path, measure="static", space="metaschedule")


def test_measurements_outrank_estimates(tmp_path: Path) -> None:
    func, machine = kernel(96), kernel_target(PI4)
    (name, option), *_ = [
        (name, option)
        for name, choice in machine.options(func).items()
        for option in choice.options
        if option != choice.default
    ]
    scheduled = machine.schedule(func, {name: option})
    Database(tmp_path, PI4, estimated=True).choose(
        kernel_key(func), Tuned({name: option}, 1.5, estimated=True), scheduled
    )
    assert Database(tmp_path, PI4, must_exist=True).tuned(func, machine) == Tuned({name: option}, 1.5, estimated=True)
    Database(tmp_path, PI4).choose(kernel_key(func), Tuned({}, 1.0), machine.schedule(func))
    assert Database(tmp_path, PI4).tuned(func, machine) is None  # its default was measured, and kept


def test_packets_of_hexagon_are_those_that_run(tmp_path: Path) -> None:
    """Products in eight bits, with their rescaling, under an emulator that traces packets: over bytes, and over planes
    that a window of taps reads, whose assembly has other loops than LLVM's IR. Stalls are in neither."""
    hexagon.emulator()
    machine = hexagon.hexagon("v73")
    x, weight, *vectors = random_layer(48, 64, 1, False, 8)
    arrays = [x, packed(weight), *vectors]
    func = defined(convolution, *arrays, strides=(1, 1), padding=(0,) * 4, dilation=(1, 1), zero=0)
    kernel, of_planes, options, _ = layer(8, 8, 3, 2, False, 10)
    for number, (each, operands) in enumerate([(func, arrays), (defined(kernel, *of_planes, **options), of_planes)]):
        (folder := tmp_path / str(number)).mkdir()
        hexagon.run(each, operands, folder, "v73")
        run, _ = hexagon.packets_run(folder / "program", "v73")
        lowered = machine.lower(machine.schedule(each.with_attr("global_symbol", "kernel")))
        assert kernel_cycles(lowered, machine.llvm, machine.traits.cores) == pytest.approx(run, rel=0.1)
    narrow = machine.lower(machine.schedule(func.with_attr("global_symbol", "kernel"), {"tile": (1, 1, 1, 32)}))
    default = machine.lower(machine.schedule(func.with_attr("global_symbol", "kernel")))
    cycles = [kernel_cycles(each, machine.llvm, machine.traits.cores) for each in (narrow, default)]
    assert cycles[0] > 1.2 * cycles[1]
