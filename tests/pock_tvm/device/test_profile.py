"""The profile of a step, its picture, and threads."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest

import pock_tvm as pock
from pock_tvm.choosing.costs import cost_of
from pock_tvm.device.profile import example, profile
from pock_tvm.device.program import kernel_calls
from pock_tvm.reports.program_plots import draw_memory
from tests.pock_tvm.networks import small


@pytest.fixture(scope="module")
def program() -> pock.Program:
    return pock.compile(small(4), optimizer=pock.SGD(momentum=0.9))


def test_a_profile_covers_every_kernel_and_changes_nothing(program) -> None:
    trainer = pock.Trainer(program)
    before = {name: array.copy() for name, array in trainer._arrays.items() if name != "x"}
    records = profile(trainer, *example(program), repeat=2)
    assert len(records) == len(kernel_calls(program.manifest["entries"]["train_step"]))
    assert all(record["ms"] > 0 for record in records) and sum(record["share"] for record in records) == pytest.approx(
        1
    )
    assert trainer.steps == 0
    for name, array in before.items():
        np.testing.assert_array_equal(trainer._arrays[name], array, name)


def test_a_profile_leaves_copies_out(program) -> None:
    """Programs of earlier versions have no records of copies; of newer ones they are no kernels."""
    manifest = copy.deepcopy(program.manifest)
    step = manifest["entries"]["train_step"]
    kernels = kernel_calls(step)
    step["calls"].append(["copy", [[len(step["table"]) - 1, 0], [0, 0]], 4])
    assert kernel_calls(step) == kernels
    copying = dataclasses.replace(program, manifest=manifest)
    trainer = pock.Trainer(program)
    trainer.program = copying  # a trainer of its own would refuse what its library was not built for
    assert len(profile(trainer, *example(copying), repeat=1)) == len(kernels)
    assert cost_of(copying) == cost_of(program)


def test_flops_of_kernels_are_those_of_layers(program) -> None:
    """A step multiplies what its layers' forward and backward passes do, up to the channel sums that are no products."""
    kernels, calls = program.manifest["kernels"], kernel_calls(program.manifest["entries"]["train_step"])
    flops = sum(kernels[kernel]["flops"] for kernel, _ in calls if "sum" not in kernel)
    layers = sum(layer["forward_flops"] + layer["backward_flops"] for layer in program.manifest["layers"])
    assert flops == pytest.approx(layers, rel=0.05)


def test_the_picture_of_the_arena_is_drawn(program, tmp_path) -> None:
    draw_memory(program, tmp_path / "memory.png")
    assert (tmp_path / "memory.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(pock.PockError, match="no.such"):
        draw_memory(program, tmp_path / "memory.no.such")


def test_threads_change_no_bit(program) -> None:
    x, y = example(program)
    one, all_of_them = (pock.Trainer(program, threads=threads) for threads in (1, None))
    for _ in range(3):
        assert one.step(x, y, lr=0.1) == all_of_them.step(x, y, lr=0.1)
    for name, array in one.weights().items():
        np.testing.assert_array_equal(array, all_of_them.weights()[name], name)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True])
def test_wrong_numbers_of_threads_are_refused(program, threads) -> None:
    with pytest.raises(pock.PockError, match="threads is a number of cores"):
        pock.Trainer(program, threads=threads)
