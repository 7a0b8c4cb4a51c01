"""Programs whose kernels are built again, without their model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tvm

import pock_tvm as pock
from pock_tvm.compiler.database import Tuned, kernel_key
from pock_tvm.compiler.rebuild import definitions_of, rebuild, target_of
from pock_tvm.compiler.targets import kernel_target
from pock_tvm.device.contract import check_contract
from pock_tvm.errors import ProgramError
from tests.pock_tvm.networks import small

X = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype("float32")
Y = np.array([0, 1, 2, 3])


@pytest.fixture(scope="module")
def program() -> pock.Program:
    return pock.compile(small(4), optimizer=pock.SGD(momentum=0.9), batch_norm="frozen", check=False)


def losses(program: pock.Program) -> list[float]:
    trainer = pock.Trainer(program)
    return [trainer.step(X, Y, lr=0.1) for _ in range(5)]


def changed(program: pock.Program, share: int) -> dict[str, Tuned]:
    """Other decisions for every ``share``-th kernel: the last option of each first choice."""
    target, found = kernel_target(target_of(program)), {}
    for text in list(definitions_of(program).values())[::share]:
        func = tvm.ir.load_json(text)
        for name, choice in list(target.options(func).items())[:1]:
            if choice.options[-1] != choice.default:
                found[kernel_key(func)] = Tuned({name: choice.options[-1]}, 1.25)
    assert found
    return found


def test_without_decisions_it_is_the_same(program: pock.Program) -> None:
    again = rebuild(program)
    assert again.manifest == program.manifest and again.constants is program.constants
    assert losses(again) == losses(program)


@pytest.mark.parametrize("share", [1, 3])
def test_other_schedules_compute_the_same(program: pock.Program, share: int) -> None:
    decisions = changed(program, share)
    again = rebuild(program, lambda func: decisions.get(kernel_key(func)))
    np.testing.assert_allclose(losses(again), losses(program), rtol=1e-5)
    schedules = [record["schedule"] for record in again.manifest["kernels"].values()]
    assert schedules.count("tuned") >= len(decisions)
    # And back: a tuned program becomes the default one.
    assert rebuild(again).manifest["kernels"] == program.manifest["kernels"]


def test_scratch_moves_behind_the_arena(program: pock.Program, monkeypatch) -> None:
    """Every kernel is said to need more scratch than it has."""
    from pock_tvm.compiler.kernel_builder import KernelBuilder

    plain = rebuild(program)
    scratch = KernelBuilder.scratch
    needed = {name: size + 5000 for name, size in _scratch_of(program).items()}
    monkeypatch.setattr(KernelBuilder, "scratch", lambda *given: scratch(*given) | needed)
    again = rebuild(program)
    for name, entry in again.manifest["entries"].items():
        before = plain.manifest["entries"][name]
        regions = [region for region in entry["arena_map"] if region[0] == "scratch"]
        assert len(regions) == len([region for region in before["arena_map"] if region[0] == "scratch"])
        for _, offset, size, first, last in regions:
            assert offset >= before["arena_bytes"] and offset + size <= entry["arena_bytes"] and first == last
    check_contract(again.manifest, again.constants, pock.Trainer(again)._library.contract())
    assert losses(again) == losses(program)


def _scratch_of(program: pock.Program) -> dict[str, int]:
    found = {}
    for entry in program.manifest["entries"].values():
        for name, _, size, first, _ in entry["arena_map"]:
            if name == "scratch":
                found[entry["calls"][first][0]] = size
    assert found
    return found


def test_a_slim_program_cannot_be_rebuilt(program: pock.Program) -> None:
    with pytest.raises(ProgramError, match="compile it again without --slim"):
        rebuild(replace(program, kernels=b""))
