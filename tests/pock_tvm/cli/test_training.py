"""``pock train``, as a user types it: what it keeps, goes on from, and refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import pock_tvm as pock
from tests.pock_tvm.commands import run_command

RUN = ["--epochs", "3", "--lr", "0.05"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A program, photos of three classes, and the checkpoint of a run."""
    root = tmp_path_factory.mktemp("train")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 3))
    exported = torch.export.export(model, (torch.zeros(4, 3, 4, 4),))
    program = pock.compile(exported, optimizer=pock.SGD(momentum=0.9), check=False)
    program.manifest["preprocessing"] = {"mean": [0.5] * 3, "std": [0.25] * 3}
    program.save(root / "net.pock", slim=True)
    scheme = pock.Scheme({"*": "frozen", "3.*": "full"})
    pock.compile(exported, scheme=scheme, optimizer=pock.SGD(momentum=0.9), check=False).save(root / "head.pock")
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 4)):
        for level, label in ((40, "cat"), (120, "dog"), (200, "eel")):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(rng.normal(level, 60, (4, 4, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{number}.png")
    every = ["--checkpoint-every", 3, "--val", root / "val", "--checkpoint", root / "net.ckpt"]
    assert command(root, *RUN, *every)[0] == 0
    return root


def command(place: Path, *args: object, name: str = "train", program: str = "net.pock") -> tuple[int, str]:
    """Run a command in this process; return its exit code and all that it prints."""
    data = [] if name == "export" or "--data" in args else ["--data", place / "train"]
    words = [name, place / program, *data, *args, *(["--threads", "1"] if name != "export" else [])]
    return run_command(*words)


REFUSED = [
    (["--checkpoint", "{place}/net.ckpt"], "'{place}/net.ckpt' is there already, and this run did not start from it: go on from it, choose another name, or allow it with --overwrite"),
    (["--checkpoint", "{place}/net.cpkt", "--resume"], "there is no checkpoint '{place}/net.cpkt'"),
    (["--checkpoint", "{place}/net.ckpt", "--resume", "--lr", "0.1"], "had lr 0.05, and this one has 0.1"),
    (["--checkpoint", "{place}/none/net.ckpt"], "there is no folder '{place}/none'"),
    (["--resume"], "--resume needs --checkpoint"),
    (["--tolerate", "1"], "--tolerate needs --checkpoint"),
    (["--checkpoint-every", "5"], "--checkpoint-every needs --checkpoint"),
    (["--resume", "--checkpoint", "{place}/net.ckpt", "--start", "{place}/net.ckpt"], "leave one of them out"),
    (["--lr", "-1"], "lr is a learning rate: a positive finite number, not -1"),
    (["--lr", "1e39"], "lr is a learning rate: a positive finite number"),
    (["--start", "{place}/net.pock"], "is no checkpoint, or is damaged"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "complaint"), REFUSED, ids=[complaint for _, complaint in REFUSED])
def test_what_train_refuses_is_one_line_and_costs_nothing(place, args: list[str], complaint: str) -> None:
    before = {each.name: each.read_bytes() for each in place.iterdir() if each.is_file()}
    code, text = command(place, *RUN, *(arg.format(place=place) for arg in args))
    assert (code, len(text.splitlines())) == (2, 1)
    assert complaint.format(place=place) in text
    assert {each.name: each.read_bytes() for each in place.iterdir() if each.is_file()} == before


def test_finished_is_finished(place) -> None:
    code, text = command(place, *RUN, "--checkpoint", place / "net.ckpt", "--resume")
    assert (code, text) == (0, "finished already, after 21 steps\n")


def test_a_new_run_starts_from_a_checkpoint_and_keeps_the_last(place, tmp_path) -> None:
    args = ["--start", place / "net.ckpt", "--checkpoint", tmp_path / "next.ckpt", "--keep", 3]
    code, text = command(place, "--epochs", 2, *args)
    assert code == 0, text
    assert sorted(each.name for each in tmp_path.iterdir()) == ["next.ckpt", "next.ckpt.1", "next.ckpt.2"]
    code, text = command(
        place, "--epochs", 1, "--start", tmp_path / "next.ckpt", "--checkpoint", tmp_path / "next.ckpt"
    )
    assert code == 0, text  # it started from this one
    trainer = pock.Trainer(place / "net.pock")
    trainer.restore(tmp_path / "next.ckpt")
    assert trainer.steps == 21 + 14 + 7


def test_a_program_of_another_scheme(place, tmp_path) -> None:
    args = ["--start", place / "net.ckpt", "--checkpoint", tmp_path / "head.ckpt"]
    options = ["--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25"]
    code, text = command(place, *args, *options, program="head.pock")
    assert code == 2
    assert "would be lost: momentum_buffer of '1.weight'" in text and "or go on without: --allow-drop" in text
    code, text = command(place, *args, *options, "--allow-drop", program="head.pock")
    assert code == 0
    assert text.startswith(f"restored 21 steps from '{place}/net.ckpt': ")
    assert "; dropped: momentum_buffer of '1.weight', momentum_buffer of '1.bias'" in text
    whole = ["--checkpoint", place / "net.ckpt"]
    code, text = command(place, *whole, "--allow-drop", "--data", place / "val", name="eval", program="head.pock")
    assert text.splitlines()[-1] == command(place, *whole, "--data", place / "val", name="eval")[1].strip()
    code, text = command(place, *whole, "--weights", tmp_path / "w.safetensors", name="export", program="head.pock")
    assert code == 2 and not (tmp_path / "w.safetensors").exists()


def test_folders_and_classes_that_differ(place, tmp_path) -> None:
    for label in ("dog", "eel"):
        (tmp_path / "val" / label).mkdir(parents=True)
        (tmp_path / "val" / label / "a.png").write_bytes((place / "val" / label / "0.png").read_bytes())
    checkpoint = ["--checkpoint", place / "net.ckpt"]
    for args, name in (
        (["--data", tmp_path / "val", *checkpoint], "eval"),
        (["--val", tmp_path / "val"], "train"),
        (["--data", tmp_path / "val", "--start", place / "net.ckpt"], "train"),
    ):
        code, text = command(place, *args, name=name)
        assert code == 2 and "has no class 'cat', which the program has (1 missing)" in text
    code, text = command(place, "--data", tmp_path / "val", name="eval")
    assert code == 2 and "the network tells 3 classes apart, and" in text and "has 2 folders (dog, eel)" in text
    (tmp_path / "val" / "cat").mkdir()
    code, text = command(place, "--data", tmp_path / "val", *checkpoint, name="eval")
    assert code == 0, text


def test_values_that_are_not_finite_end_with_exit_code_3(place, tmp_path) -> None:
    args = [*RUN, "--checkpoint", tmp_path / "a.ckpt", "--lr", "1e30", "--tolerate", "1"]
    code, text = command(place, *args)
    assert code == 3
    assert [("left out" in line, "Stopped: the last good state" in line) for line in text.splitlines()] == [
        (True, False),
        (False, True),
    ]
    code, text = command(place, "--checkpoint", tmp_path / "a.ckpt", "--data", place / "val", name="eval")
    assert code == 0 and "nan" not in text


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_step_and_says_how_to_go_on(place, tmp_path, number: int, code: int) -> None:
    words = ["train", place / "net.pock", "--data", place / "train", "--checkpoint", tmp_path / "a.ckpt"]
    run = [*map(str, words), "--epochs", "100000", "--threads", "1"]
    script = "import sys; from pock_tvm.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", script, *run], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "a.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    (line,) = errors.splitlines()
    assert line.startswith("pock: stopped after ") and line.endswith("go on with the same command and --resume")
    trainer = pock.Trainer(place / "net.pock")
    assert trainer.restore(tmp_path / "a.ckpt").steps == int(line.split()[3])
