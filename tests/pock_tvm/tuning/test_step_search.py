"""Choices above kernels: what is offered, tried and taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pock_tvm as pock
from pock_tvm.compiler.database import Database
from pock_tvm.compiler.rebuild import target_of
from pock_tvm.compiler.step_choices import decided, kernels_key
from pock_tvm.device.measuring.steps import Steps
from pock_tvm.errors import CheckError, OptionError
from pock_tvm.tuning import step_search, verdicts
from pock_tvm.tuning.step_search import StepSearch
from tests.pock_tvm.networks import small
from tests.pock_tvm.tuning.test_tune import Table

OPTIONS = {"optimizer": pock.SGD(momentum=0.9), "batch_norm": "frozen", "check": False}
X = np.random.default_rng(0).standard_normal((4, 3, 24, 24)).astype("float32")
Y = np.array([0, 1, 2, 3])
FUSED = {"fused": 2}


def network() -> torch.export.ExportedProgram:
    """Two convolutions, the second of which Winograd's transforms suit."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5)).eval()
    return torch.export.export(model, (torch.randn(4, 3, 24, 24),))


@pytest.fixture(scope="module")
def exported() -> torch.export.ExportedProgram:
    return network()


@pytest.fixture(scope="module")
def program(exported) -> pock.Program:
    return pock.compile(exported, scheme=pock.Scheme.bias_only(exported), **OPTIONS)


def losses(program: pock.Program) -> list[float]:
    trainer = pock.Trainer(program)
    return [trainer.step(X, Y, lr=0.1) for _ in range(4)]


def choices(program: pock.Program) -> dict[str, dict]:
    return program.manifest["step"]["choices"]


@pytest.fixture
def decree(monkeypatch):
    """Lets steps take as many seconds as a function of their decisions says."""

    def set_seconds(seconds) -> list[dict]:
        compared = []

        def compare(default, tuned, _):
            compared.append(decided(choices(tuned)))
            return seconds(decided(choices(default))), seconds(decided(choices(tuned)))

        monkeypatch.setattr(step_search, "compare_steps", compare)
        return compared

    return set_seconds


@pytest.fixture
def only_fusion(monkeypatch):
    """Leaves one choice to try: each takes a compilation."""
    variants = StepSearch._variants

    def fewer(search):
        return (each for each in variants(search) if each[0] == FUSED)

    monkeypatch.setattr(StepSearch, "_variants", fewer)


def searched(model, program: pock.Program, folder: Path, **options) -> tuple[StepSearch, list]:
    search, seen = StepSearch(model, program, Database(folder, target_of(program)), Steps, **options), []
    search.run(None, seen.append)
    return search, seen


def test_what_a_step_offers(exported, program: pock.Program) -> None:
    names = {"copies", "winograd_24x24x32x64", "packing", "slices", "fused", "recomputed"}
    assert set(choices(program)) == names
    assert choices(program)["slices"]["options"] == [0, 1, 2, 4]
    assert not decided(choices(program)) and program.manifest["step"]["gain"] is None
    whole = pock.compile(exported, **OPTIONS, build=False)
    assert whole.manifest["step"]["key"] != program.manifest["step"]["key"]


def test_the_fastest_is_taken_and_compiled_again(
    exported, program: pock.Program, tmp_path: Path, decree, only_fusion
) -> None:
    decree(lambda decisions: 4.0 - 1.0 * (decisions == FUSED))
    search, seen = searched(exported, program, tmp_path)
    assert search.decisions == FUSED and search.gain == pytest.approx(4 / 3)
    assert search.best.manifest["check"]["against"].startswith("pytorch")
    assert choices(search.best)["fused"]["decided"] == 2 and max(each.gain for each in seen) == search.gain
    again = pock.compile(exported, scheme=pock.Scheme.bias_only(exported), **OPTIONS, database=tmp_path)
    assert kernels_key(again.manifest["entries"]) == kernels_key(search.best.manifest["entries"])
    assert kernels_key(again.manifest["entries"]) != kernels_key(program.manifest["entries"])
    assert again.manifest["step"]["gain"] == pytest.approx(4 / 3)
    np.testing.assert_allclose(losses(again), losses(program), rtol=1e-5)
    # A checkpoint of the default step goes on in the tuned one.
    trainer, other = pock.Trainer(program), pock.Trainer(again)
    trainer.step(X, Y, lr=0.1)
    trainer.save(tmp_path / "net.ckpt")
    other.restore(tmp_path / "net.ckpt")
    assert other.step(X, Y, lr=0.1) == pytest.approx(trainer.step(X, Y, lr=0.1), rel=1e-5)
    # Another network, or another scheme, has its own choices.
    whole = pock.compile(exported, **OPTIONS, build=False, database=tmp_path)
    assert not decided(choices(whole))
    # A budget that they do not fit comes first.
    arena = program.memory()["arena"]
    tight = pock.compile(
        exported, scheme=pock.Scheme.bias_only(exported), **OPTIONS, database=tmp_path, build=False,
        memory_budget=arena // 2 + program.memory()["optimizer_state"],
    )  # fmt: skip
    assert tight.memory()["arena"] <= arena // 2


def test_trials_are_not_repeated(exported, program: pock.Program, tmp_path: Path, decree) -> None:
    compared = decree(lambda _: 1.0)
    search, seen = searched(exported, program, tmp_path)
    assert search.best is search.default and len(seen) > 5 and compared
    compared.clear()
    again, seen = searched(exported, program, tmp_path)
    assert again.best is again.default and not seen and not compared


def test_memory_is_kept_or_granted(exported, program: pock.Program, tmp_path: Path, decree, only_fusion) -> None:
    decree(lambda decisions: 4.0 - 1.0 * (decisions == FUSED))
    needed = step_search._bytes_of(program)
    search, _ = searched(exported, program, tmp_path / "kept", memory=needed - 1)
    assert not search.decisions
    search, _ = searched(exported, program, tmp_path / "granted", memory=needed)
    assert search.decisions == FUSED


def test_a_wrong_step_is_not_taken(
    exported, program: pock.Program, tmp_path: Path, decree, only_fusion, monkeypatch
) -> None:
    decree(lambda decisions: 4.0 - len(decisions))
    compile_program = step_search.compile_program

    def failing(*args, check, **options):
        if check is None:
            raise CheckError("the gradient of '2.bias' differs")
        return compile_program(*args, check=check, **options)

    monkeypatch.setattr(step_search, "compile_program", failing)
    search, _ = searched(exported, program, tmp_path)
    assert not search.decisions
    trials = Database(tmp_path, target_of(program)).trials[search.key].values()
    assert any(trial.failure == "wrong: the gradient of '2.bias' differs" for trial in trials)


@pytest.mark.parametrize("is_faster", [True, False])
def test_a_program_is_tuned_with_its_model(
    exported, program: pock.Program, tmp_path: Path, decree, only_fusion, monkeypatch, is_faster: bool
) -> None:
    """By decree its choice is faster alone, and with its kernels, or not."""
    decree(lambda decisions: 4.0 - 1.0 * (decisions == FUSED))
    monkeypatch.setattr(verdicts, "compare_steps", lambda *_: (4.0, 3.0 if is_faster else 5.0))
    result = pock.tune(program, tmp_path, trials=2, strategy="random", measure=Table(), model=exported)
    expected = FUSED if is_faster else {}
    assert result.choices == expected and result.gain == (4 / 3 if is_faster else 1)
    assert decided(choices(result.program)) == expected
    assert result.program.manifest["step"]["gain"] == (result.choices_gain if is_faster else None)
    found = Database(tmp_path, target_of(program)).tuned_step(program.manifest["step"]["key"])
    assert (found.decisions if found else {}) == expected


def test_another_model_is_refused(program: pock.Program, tmp_path: Path) -> None:
    with pytest.raises(pock.PockError):
        StepSearch(small(4), program, Database(tmp_path, target_of(program)), Steps)
    other = network()
    other_program = pock.compile(other, **OPTIONS, build=False)
    other_program.manifest["step"]["key"] = "0"
    with pytest.raises(OptionError, match="the program was not compiled from this model"):
        StepSearch(other, other_program, Database(tmp_path, target_of(program)), Steps)


def test_a_step_of_frozen_layers_in_eight_bits_is_refused_and_leaves_no_folder(program, exported, tmp_path) -> None:
    manifest = program.manifest | {"options": program.manifest["options"] | {"frozen": "int8"}}
    with pytest.raises(OptionError, match="takes the data that it was calibrated with"):
        pock.tune(replace(program, manifest=manifest), tmp_path / "db", trials=1, model=exported)
    assert not (tmp_path / "db").exists()
