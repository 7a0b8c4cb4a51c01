"""A run that is stopped anywhere, and resumed, ends as one that never stopped."""

from __future__ import annotations

import dataclasses
import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import pock_tvm as pock
from pock_tvm.device import guards
from pock_tvm.errors import CheckpointError, DataError, NonFiniteError, OptionError, WriteError
from pock_tvm.training.beside import Preprocessing
from pock_tvm.training.data import ArrayFile, Augmentation, ImageFolder
from pock_tvm.training.fine_tuning import Checkpoints, fine_tune
from pock_tvm.training.recipe import TrainingSteps

RECIPE = pock.Recipe(3, 0.05)
PLAIN, AS_IT_IS = Preprocessing(), Augmentation()


@pytest.fixture(scope="module")
def program() -> pock.Program:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, 8), nn.ReLU(), nn.Linear(8, 3))
    exported = torch.export.export(model, (torch.zeros(4, 3, 4, 4),))
    return pock.compile(exported, optimizer=pock.AdamW(), accumulate=2, check=False)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Images of three classes that are larger than the network's input: cropped and flipped at random."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 4)):
        for level, label in ((40, "cat"), (120, "dog"), (200, "eel")):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(rng.normal(level, 60, (6, 7, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{number}.png")
    return root


class Run:
    """A run in a folder, and what came of it."""

    def __init__(self, program: pock.Program, photos: Path, folder: Path) -> None:
        self.program, self.path, self.lines = program, folder / "net.ckpt", list[str]()
        self.data = self.folder(photos / "train", Augmentation(True, True))
        self.validation = self.folder(photos / "val")

    @staticmethod
    def folder(path: Path, augmentation: Augmentation = AS_IT_IS, **options: Any) -> ImageFolder:
        return ImageFolder(path, "input", (4, 3, 4, 4), PLAIN, augmentation, **options)

    def go(
        self,
        *,
        resume: bool = False,
        every: int | None = 3,
        recipe: pock.Recipe = RECIPE,
        keep: int = 2,
        overwrite: bool = False,
        **options: Any,
    ) -> Any:
        trainer = pock.Trainer(self.program, threads=1)
        if resume:
            trainer.restore(self.path)
        made = {"data": self.data, "validation": self.validation, "say": self.lines.append, "seed": 7} | options
        checkpoints = Checkpoints(self.path, every, keep, overwrite)
        return fine_tune(trainer, recipe, checkpoints=checkpoints, resume=resume, **made)

    def state(self, path: Path | None = None) -> dict[str, Any]:
        trainer = pock.Trainer(self.program)
        trainer.restore(path or self.path)
        arrays = {name: trainer._arrays[name].tobytes() for name in [*trainer._live, *trainer._states]}
        return arrays | {"steps": trainer.steps, "notes": trainer.notes}


@pytest.fixture
def run(program, photos, tmp_path) -> Run:
    return Run(program, photos, tmp_path)


@pytest.fixture(scope="module")
def straight(program, photos, tmp_path_factory) -> Run:
    """A run that nothing stopped: 3 epochs of 7 steps."""
    made = Run(program, photos, tmp_path_factory.mktemp("straight"))
    assert made.go().finished
    return made


class Killed(BaseException):
    """The end of the process, at a moment of the test's choice."""


def killing_at(number: int) -> Callable[..., None]:
    """A function that dies when it is called for the n-th time."""
    calls = iter(range(number))

    def count(*_args: object, **_options: object) -> None:
        if next(calls, None) is None:
            raise Killed

    return count


@pytest.mark.parametrize("number", [0, 1, 2, 3, 6, 7, 8, 13, 19, 20])
def test_killed_between_two_steps(run, straight, number: int) -> None:
    with pytest.raises(Killed):
        run.go(progress=killing_at(number))
    before = list(run.lines)
    assert run.go(resume=True).finished
    assert run.state() == straight.state()
    assert run.state(Checkpoints(run.path).best) == straight.state(Checkpoints(straight.path).best)
    assert list(dict.fromkeys([*before, *run.lines])) == straight.lines


@pytest.mark.parametrize("call", ["fsync", "link", "replace"])
def test_killed_again_and_again_while_writing(run, straight, monkeypatch, call: str) -> None:
    """At any call that writes; each resumed run is killed once more."""
    rng, owner = random.Random(call), Path if call == "replace" else os
    real = getattr(owner, call)
    for _ in range(6):
        dies = killing_at(rng.randrange(12))

        def patched(*args: Any, dies: Callable[..., None] = dies, **options: Any) -> Any:
            dies()
            return real(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(owner, call, patched)
            try:
                run.go(resume=run.path.exists() or bool(list(run.path.parent.glob("net.ckpt.*"))))
            except Killed:
                continue
            break
    if not run.path.exists() and not list(run.path.parent.glob("net.ckpt.*")):
        run.go(overwrite=True)
    run.go(resume=True)
    assert run.state() == straight.state()


def test_a_stop_is_written_at_once_and_finished_is_finished(run, straight) -> None:
    asked = iter([False] * 9 + [True] * 99)  # three of them by the validation before the first step
    outcome = run.go(every=None, stop=lambda: next(asked))
    assert (outcome.finished, outcome.steps, outcome.total) == (False, 5, 21)
    assert run.state()["steps"] == 5
    assert run.go(resume=True).finished
    assert run.state() == straight.state()
    content, lines = run.path.read_bytes(), len(run.lines)
    assert run.go(resume=True).finished
    assert run.lines[lines:] == ["finished already, after 21 steps"]
    assert run.path.read_bytes() == content


def test_a_stop_within_the_validation(run, straight) -> None:
    """The epoch's line comes when the run goes on."""
    asked = iter([False] * 13 + [True] * 99)
    assert run.go(stop=lambda: next(asked)).steps == 7
    assert not any(line.startswith("epoch") for line in run.lines)
    run.go(resume=True)
    assert run.lines == straight.lines
    assert run.state() == straight.state()


def test_a_program_of_another_batch_goes_on_in_the_same_epoch(run, program, photos) -> None:
    with pytest.raises(Killed):
        run.go(progress=killing_at(10))  # in the second epoch, with a checkpoint after its step 2
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, 8), nn.ReLU(), nn.Linear(8, 3))
    exported = torch.export.export(model, (torch.zeros(8, 3, 4, 4),))
    run.program = pock.compile(exported, optimizer=pock.AdamW(), accumulate=2, check=False)
    seen: list[tuple[int, int, int]] = []
    outcome = run.go(resume=True, progress=lambda *place: seen.append(place))
    assert outcome.finished and outcome.total == 9
    assert seen == [(2, 2, 3), (2, 3, 3), (3, 1, 3), (3, 2, 3), (3, 3, 3)]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"recipe": pock.Recipe(4, 0.05)}, "had epochs 3, and this one has 4"),
        ({"recipe": pock.Recipe(3, 0.1)}, "had lr 0.05, and this one has 0.1"),
        ({"recipe": pock.Recipe(3, 0.05, "linear")}, "had lr schedule cosine, and this one has linear"),
        ({"seed": 8}, "had seed 7, and this one has 8"),
    ],
)
def test_another_run_is_not_resumed(run, change: dict, complaint: str) -> None:
    with pytest.raises(Killed):
        run.go(progress=killing_at(4))
    content = run.path.read_bytes()
    with pytest.raises(CheckpointError, match=f"{complaint}: resume it with the same, or start a new run from it"):
        run.go(resume=True, **change)
    assert run.path.read_bytes() == content


def test_data_that_changed_is_another_run(run, photos, tmp_path) -> None:
    with pytest.raises(Killed):
        run.go(progress=killing_at(4))
    plain = run.folder(photos / "train")
    with pytest.raises(CheckpointError, match="had flip True, and this one has False"):
        run.go(resume=True, data=plain)
    other = run.folder(photos / "val", Augmentation(True, True))
    with pytest.raises(CheckpointError, match="had samples 30, and this one has 12"):
        run.go(resume=True, data=other)


def test_a_checkpoint_of_no_run_can_only_start_one(run, program) -> None:
    trainer = pock.Trainer(program)
    trainer.save(run.path)
    with pytest.raises(CheckpointError, match="is not from within a run: it can start one"):
        run.go(resume=True)
    trainer.restore(run.path)
    assert fine_tune(trainer, RECIPE, run.data, checkpoints=Checkpoints(run.path)).finished
    x, y = run.data.read(np.arange(4), None)
    trainer.step(x, y, lr=0.1)  # by hand: no run's state any more
    trainer.save(run.path)
    with pytest.raises(CheckpointError, match="is not from within a run"):
        run.go(resume=True)


@pytest.mark.parametrize("name", ["net.ckpt", "net.ckpt.1", "net.best.ckpt"])
def test_nothing_is_overwritten_that_the_run_did_not_start_from(run, name: str) -> None:
    other = run.path.with_name(name)
    other.write_bytes(b"somebody's")
    with pytest.raises(CheckpointError, match=f"'.*{name}' is there already.*overwrite=True"):
        run.go()
    assert [each.name for each in run.path.parent.iterdir()] == [name]
    run.go(overwrite=True, recipe=pock.Recipe(0.2), validation=None)
    assert run.state()["steps"] == 1
    assert name == "net.ckpt" or not other.exists() or name == "net.ckpt.1"


@pytest.mark.parametrize(("accuracies", "best"), [([0.9, 0.5, 0.7], 0), ([0.5, 0.9, 0.9], 7), ([0.5, 0.5, 0.6], 14)])
def test_the_best_state_is_kept_beside_the_last(run, monkeypatch, accuracies: list[float], best: int) -> None:
    """That before the first step, too, where a run makes it worse."""
    monkeypatch.setattr(
        pock.Trainer, "evaluate", lambda self, _data: {"loss": 1.0, "accuracy": accuracies[self.steps // 7]}
    )
    outcome = run.go(recipe=pock.Recipe(2), every=None)
    assert outcome.best.epoch * 7 == best
    assert run.state(Checkpoints(run.path).best)["steps"] == best
    assert run.state()["steps"] == 14


def test_classes_are_compared(run, photos, tmp_path) -> None:
    assert run.go(recipe=pock.Recipe(1)).finished
    trainer = pock.Trainer(run.program)
    trainer.restore(run.path)
    assert trainer.notes["classes"] == ["cat", "dog", "eel"]
    assert trainer.notes["preprocessing"] == PLAIN.to_json()
    for label in ("cat", "dog", "fox"):
        (tmp_path / "other" / label).mkdir(parents=True)
        for name in "ab":
            Image.new("RGB", (4, 4)).save(tmp_path / "other" / label / f"{name}.png")
    other = run.folder(tmp_path / "other")
    with pytest.raises(DataError, match="the validation data has no class 'eel', which the training data has"):
        run.go(validation=other, overwrite=True)
    with pytest.raises(DataError, match="the training data has no class 'eel', which the checkpoint has"):
        fine_tune(trainer, RECIPE, other)
    with pytest.raises(DataError, match=r"other' has no class 'eel', which the program has \(1 missing\)"):
        run.folder(tmp_path / "other", classes=["eel", "cat", "dog"])
    (tmp_path / "other" / "eel").mkdir()
    with pytest.raises(DataError, match="has a class 'fox', which the program does not have"):
        run.folder(tmp_path / "other", classes=["eel", "cat", "dog"])
    shutil.rmtree(tmp_path / "other" / "fox")
    known = run.folder(tmp_path / "other", classes=["eel", "cat", "dog"])  # the folder of eels is empty
    assert known.labels.tolist() == [1, 1, 2, 2]


@pytest.fixture
def poisoned(tmp_path) -> ArrayFile:
    """Data with one sample that is not a number."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((30, 3, 4, 4)).astype("float32"), rng.integers(0, 3, 30)
    x[11, 0, 0, 0] = np.nan
    np.savez(tmp_path / "data.npz", input=x, y=y)
    return ArrayFile(tmp_path / "data.npz", ["input"])


@pytest.fixture
def bad(poisoned) -> list[int]:
    """The steps of the run, from 0, that read the sample."""
    steps = TrainingSteps(RECIPE, poisoned, 4, 7)
    return [number for number, ((x, _), _) in enumerate(steps) if np.isnan(x["input"]).any()]


def test_a_value_that_is_not_finite_ends_the_run_with_the_last_good_state(run, poisoned, bad) -> None:
    with pytest.raises(NonFiniteError, match=r"Stopped: the last good state, of step \d+, is in '.*net\.ckpt'"):
        run.go(data=poisoned, validation=None)
    trainer = pock.Trainer(run.program)
    trainer.restore(run.path)
    trainer.check_finite()
    assert 0 <= bad[0] - trainer.steps < 3


@pytest.mark.parametrize("number", [None, 2, 5, 9, 15])
def test_a_step_that_is_tolerated_is_left_out(run, poisoned, bad, tmp_path, number: int | None) -> None:
    """Resumed or not: some of 21 steps read the sample, and each is left out once."""
    options = {"data": poisoned, "validation": None, "tolerate": len(bad)}
    if number is not None:
        with pytest.raises(Killed):
            run.go(progress=killing_at(number), **options)
    assert run.go(resume=number is not None, **options).finished
    state = run.state()
    assert bad and state["steps"] == 21 - len(bad)
    whole = Run.__new__(Run)
    whole.__dict__ = run.__dict__ | {"path": tmp_path / "whole.ckpt", "lines": []}
    whole.go(**options)
    assert state == whole.state()
    whole.path = tmp_path / "fewer.ckpt"
    with pytest.raises(NonFiniteError):
        whole.go(**options | {"tolerate": len(bad) - 1})


def test_without_guards_the_loss_is_looked_at(run, poisoned, bad) -> None:
    exported = torch.export.export(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), (torch.zeros(4, 3, 4, 4),))
    run.program = pock.compile(exported, guard="off", check=False)
    with pytest.raises(NonFiniteError, match=r"the loss of step \d+ is nan\. Stopped: the last good state"):
        run.go(data=poisoned, validation=None)
    assert run.go(data=poisoned, validation=None, tolerate=len(bad), overwrite=True).finished


@pytest.mark.parametrize("tolerate", [0, 1])
def test_a_step_that_stops_behind_some_of_its_updates_costs_that_step_alone(run, monkeypatch, tolerate: int) -> None:
    step, stopped = pock.Trainer.step, []

    def stops(trainer: pock.Trainer, *args: Any, **options: Any) -> float:
        if trainer.steps == 5 and not stopped:
            stopped.append(trainer.steps)
            trainer._arrays["1.bias"][2] = np.nan
            raise trainer._left_at(guards.Found(guards.GRADIENT, "1.weight", guards.STATE))
        return step(trainer, *args, **options)

    monkeypatch.setattr(pock.Trainer, "step", stops)
    if tolerate:
        assert run.go(validation=None, tolerate=1).finished
        assert run.state()["steps"] == 20
        assert run.lines[0] == (
            "the gradient of '1.weight' is not finite: it holds NaN or infinity: that step is left out, from the state "
            "of step 3 on"
        )
    else:
        with pytest.raises(NonFiniteError) as error:
            run.go(validation=None)
        assert "infinity. Stopped: the last good state, of step 3, is in" in str(error.value)
        assert "restore a checkpoint" not in str(error.value)
        assert run.state()["steps"] == 3


@pytest.mark.parametrize(
    "notes",
    [
        {"progress": "far"}, {"progress": {}}, {"classes": [1, "cat"]}, {"preprocessing": {"mean": 1}},
        {"position": {"epoch": -1}}, {"position": {"epoch": 0, "samples": 0, "order": {}, "random": {}}},
        {"skipped": 3}, {"best": {"loss": 1, "epoch": 0, "colour": 3}}, {"run": {"lr": "\n" * 99}}, {"losses": "low"},
    ],
)  # fmt: skip
def test_notes_of_a_strangers_checkpoint_are_refused_in_one_line(run, straight, notes: dict[str, Any]) -> None:
    trainer = pock.Trainer(run.program)
    trainer.restore(straight.path)
    if not notes.keys() & {"progress", "classes", "preprocessing"}:
        notes = {"progress": trainer.notes["progress"] | notes}
    trainer.notes |= notes
    trainer.save(run.path)
    with pytest.raises(CheckpointError) as error:
        run.go(resume=True)
    assert "\n" not in str(error.value)


def test_a_state_that_is_not_finite_is_never_written(run, monkeypatch) -> None:
    """A weight may overflow in the last step before a checkpoint, whose loss was finite."""
    step = pock.Trainer.step

    def overflows(trainer: pock.Trainer, *args: Any, **options: Any) -> float:
        loss = step(trainer, *args, **options)
        if trainer.steps == 6:
            trainer._arrays["1.bias"][2] = np.inf
        return loss

    monkeypatch.setattr(pock.Trainer, "step", overflows)
    with pytest.raises(
        NonFiniteError, match=r"'1\.bias' is not finite after step 6\. Stopped: the last good state, of step 3"
    ):
        run.go(validation=None)
    assert run.state()["steps"] == 3


def test_without_a_checkpoint(run) -> None:
    trainer = pock.Trainer(run.program)
    with pytest.raises(OptionError, match="tolerate needs a checkpoint"):
        fine_tune(trainer, RECIPE, run.data, tolerate=1)
    assert fine_tune(trainer, dataclasses.replace(RECIPE, epochs=1), run.data).finished
    assert trainer.steps == 7


def test_a_loss_that_explodes_is_said_once(run) -> None:
    outcome = run.go(recipe=pock.Recipe(6, 300.0, "constant"), validation=None)
    said = [line for line in run.lines if "the loss explodes" in line]
    assert outcome.finished and len(said) == 1
    assert "A smaller learning rate may help" in said[0]


def test_a_full_disk_ends_the_run_and_costs_no_state(run, straight, monkeypatch) -> None:
    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def fills(_epoch: int, _done: int, _steps: int) -> None:
        if len(run.lines) > 1:  # in the second epoch
            monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(WriteError, match="net.ckpt' cannot be written: No space left on device"):
        run.go(progress=fills)
    monkeypatch.undo()
    assert run.go(resume=True).finished
    assert run.state() == straight.state()


def test_a_place_that_takes_no_file_is_known_before_the_first_step(run, tmp_path) -> None:
    run.path = tmp_path / "none" / "net.ckpt"
    with pytest.raises(pock.PockError, match="there is no folder"):
        run.go(progress=killing_at(0))
