"""The phases of a compile: each is written down under its number, none runs twice for the same thing."""

from __future__ import annotations

import collections
from pathlib import Path

import pytest
import torch
from torch import nn

import pock_tvm as pock
from pock_tvm.compiler import pipeline
from pock_tvm.compiler.fitting import fewest_parts
from relay_passes.memory.fit import Fit, TooLarge


@pytest.fixture(scope="module")
def exported() -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.SiLU()) for _ in range(4)]
    model = nn.Sequential(nn.Conv2d(3, 8, 1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    return torch.export.export(model.eval(), (torch.zeros(4, 3, 16, 16),))


STEPS = [
    "01-imported", "02-canonical", "02b-stored", "02c-copied", "02d-folded", "02e-simple", "02f-attention",
    "03-loss", "04-backward", "04b-saved", "05-update", "06-products", "06b-kernels", "07-grouped", "07b-fused",
    "07c-updates", "08-ordered", "08b-cheap", "08c-scratch",
    "09-planned", "09b-calls", "09c-executors",
]  # fmt: skip


def test_each_phase_is_written_under_its_number(exported, tmp_path: Path) -> None:
    pock.compile(exported, dump=tmp_path, build=False)
    assert [path.stem for path in sorted(tmp_path.iterdir())] == STEPS


def test_the_dump_is_of_the_attempt_that_was_taken(exported, tmp_path: Path) -> None:
    program = pock.compile(exported, dump=tmp_path, build=False)
    (tmp_path / "mine.py").write_text("")
    small = pock.compile(exported, dump=tmp_path, build=False, memory_budget=int(0.6 * program.memory()["arena"]))
    assert small.manifest["options"]["micro_batches"] == 2
    found = {path.stem for path in tmp_path.iterdir()}
    steps = {*STEPS, "02f-split", "02g-attention", "08d-recomputed"} - {"02f-attention"}
    assert found == {*steps, "mine"}
    assert "accumulate_step" in (tmp_path / "05-update.py").read_text()


def test_a_failed_attempt_runs_no_phase_again(exported, monkeypatch) -> None:
    runs: collections.Counter[tuple] = collections.Counter()

    def counted(name: str, key) -> None:
        whole = getattr(pipeline, name)

        def run(phases, *args, **options):
            runs[name, *key(args, options)] += 1
            return whole(phases, *args, **options)

        monkeypatch.setattr(pipeline, name, run)

    counted("canonicalise_forward", lambda _args, _options: ())
    counted("differentiate", lambda args, _options: (args[0].micro_batches,))
    counted("order_kernels", lambda args, options: (args[0].micro_batches, options["winograd"]))
    with pytest.raises(pock.PockError, match="the smallest that would do"):
        pock.compile(exported, build=False, memory_budget=1000)
    assert ("differentiate", 4) in runs and set(runs.values()) == {1}


def test_micro_batches_come_before_much_recomputation() -> None:
    tried = []

    def attempt(count: int, max_slowdown: float) -> Fit[str] | TooLarge:
        tried.append((count, max_slowdown < 1))
        return TooLarge(100 // count + 10, 10) if max_slowdown < 1 or count == 1 else Fit(f"{count} parts")

    assert fewest_parts(attempt, [1, 2, 4, 8], 20, lambda: True) == Fit("8 parts")
    assert tried == [(1, True), (1, False), (8, False)], "in two or four parts it would not fit: 8 would not either"
    tried.clear()
    assert fewest_parts(attempt, [1, 2, 4], 60, lambda: False) == TooLarge(110, 10)
    assert tried == [(1, True), (1, False)], "a network that needs its whole batch is not cut"
