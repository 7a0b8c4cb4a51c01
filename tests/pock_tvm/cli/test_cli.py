"""The command line, as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image

from pock_tvm.cli.common import as_options
from tests.pock_tvm.networks import Small, small


def pock(*args: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    command = [str(Path(sys.executable).with_name("pock")), *map(str, args)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={"COLUMNS": "120", "PATH": "/usr/bin:/bin", "HOME": "/tmp", "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A network, its preprocessing, photos of two classes, and a compiled program."""
    root = tmp_path_factory.mktemp("cli")
    torch.export.save(small(classes=2), root / "net.pt2")
    (root / "net.json").write_text(json.dumps({"mean": [0.5] * 3, "std": [0.25] * 3}))
    rng = np.random.default_rng(0)
    (root / "broken.pt2").write_bytes((root / "net.pt2").read_bytes()[:500])
    for split in ("train", "val"):
        for label, level in (("dark", 60), ("bright", 180)):
            (root / split / label).mkdir(parents=True)
            for number in range(8):
                pixels = np.clip(rng.normal(level, 20, (9, 11, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{number}.png")
    done = pock("compile", root / "net.pt2", "-o", root / "net.pock", "--scheme", "last:2", "--batch", 4)
    assert done.returncode == 0, done.stderr
    return root


def test_a_whole_job(place) -> None:
    files = {"data": place / "train", "val": place / "val", "checkpoint": place / "net.ckpt"}
    options = [part for name, path in files.items() for part in (f"--{name}", path)]
    done = pock("train", place / "net.pock", *options, "--epochs", 8, "--lr", 0.05, "--flip", "--lr-schedule", "linear")
    assert done.returncode == 0, done.stderr
    assert "epoch 8" in done.stdout
    done = pock("eval", place / "net.pock", "--data", place / "val", "--checkpoint", place / "net.ckpt")
    assert float(done.stdout.split("accuracy ")[1].split()[0]) >= 90
    done = pock("export", place / "net.pock", "--checkpoint", place / "net.ckpt", "--weights", place / "w.safetensors")
    assert done.returncode == 0, done.stderr
    weights = safetensors.numpy.load_file(place / "w.safetensors")
    model = Small(2)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    start = small(classes=2).state_dict
    changed = {name for name, array in weights.items() if not np.array_equal(array, start[name].detach().numpy())}
    assert changed == {"blocks.1.conv2.weight", "blocks.1.conv2.bias", "head.weight", "head.bias"}


def test_inspect_shows_layers_and_memory(place) -> None:
    done = pock("inspect", place / "net.pock")
    assert done.returncode == 0, done.stderr
    for text in ("blocks.1.conv2", "full", "frozen", "total", "arena", "sgd (momentum 0.9)", "x (4, 3, 8, 8) float32"):
        assert text in done.stdout


def test_schemes_lists_and_writes(place) -> None:
    done = pock("schemes", place / "net.pt2")
    assert all(name in done.stdout for name in ("full", "head", "bias:7", "last:3", "pockengine"))
    assert pock("schemes", place / "net.pt2", "--save", "head", "-o", place / "head.json").returncode == 0
    assert json.loads((place / "head.json").read_text()) == {"*": "frozen", "head.weight": "full", "head.bias": "full"}
    options = ["--scheme", place / "head.json", "--batch", 2, "--no-dropout"]
    done = pock("compile", place / "net.pt2", "-o", place / "head.pock", *options)
    assert "2 parameters trained" in done.stderr
    with zipfile.ZipFile(place / "head.pock") as archive:
        assert json.loads(archive.read("manifest.json"))["options"]["dropout"] is False


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["compile", "missing.pt2", "-o", "x.pock"], "there is no model file 'missing.pt2'"),
        (["compile", "{place}/net.pt2", "-o", "x.pock"], "is dynamic (s77): bind it with --batch"),
        (["compile", "{place}/net.pt2", "-o", "x.pock", "--batch", "4", "--scheme", "bias:99"], "there are 7 biases"),
        (["compile", "{place}/broken.pt2", "-o", "x.pock"], "or is damaged (File is not a zip file)"),
        (["compile", "{place}/net.pt2", "-o", "{place}/no/x.pock", "--batch", "4"], "there is no folder"),
        (
            ["compile", "{place}/net.pt2", "-o", "x.pock", "--batch", "4", "--scheme", "everything"],
            "no scheme 'everything'",
        ),
        (["compile", "{place}/net.pt2", "-o", "x.pock", "--batch", "4", "--loss", "hinge"], "no loss 'hinge'"),
        (["compile", "{place}/net.pt2", "-o", "x.pock", "--batch", "4", "--optimizer", "lion"], "no optimizer 'lion'"),
        (
            ["compile", "{place}/net.pt2", "-o", "x.pock", "--batch", "4", "--optimizer", "sgd:beta=1"],
            "SGD has no option 'beta'; its options are momentum",
        ),
        (["compile", "{place}/net.pt2", "-o", "x.pock", "--batch", "4", "--target", "toaster"], "is no target"),
        (["compile", "{place}/net.pt2", "-o", "x.pock", "--shape", "x"], "is no shape"),
        (["train", "{place}/net.pt2", "--data", "{place}/train"], "is no program"),
        (["train", "{place}/net.pock", "--data", "{place}"], "input"),
        (["train", "{place}/net.pock", "--data", "{place}/nothing"], "there is no folder"),
        (["train", "{place}/net.pock"], "--data"),
        (["eval", "{place}/net.pock", "--data", "{place}/val", "--checkpoint", "{place}/net.json"], "is no checkpoint"),
        (["eval", "{place}/net.pock", "--data", "{place}/val", "--mean", "a,b"], "takes numbers"),
        (["levitate"], "No such command"),
    ],
)
def test_a_fault_is_one_line_and_exit_code_2(place, args: list[str], complaint: str) -> None:
    done = pock(*(arg.format(place=place) for arg in args))
    if complaint == "input":  # the folder above is one of classes without images
        complaint = "no images"
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.startswith("pock: ")
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("message", "option"),
    [
        ("bind it with batch=", "bind it with --batch"),
        ("bind it with shapes={'ids': (…)}", "bind it with --shape ids=…"),
        ("compile with batch=4, or", "compile with --batch 4, or"),
        ("or take zig (cc='zig')", "or take zig (--cc 'zig')"),
        ("or compile with check=False", "or compile with --no-check"),
        ("Save it again without slim=True", "Save it again without --slim"),
        ("memory_budget='10B' is too small", "--memory-budget '10B' is too small"),
        ("dim=1 of subbatch=2 stays", "dim=1 of subbatch=2 stays"),
    ],
)
def test_messages_speak_of_options(message: str, option: str) -> None:
    assert as_options(message) == option


def test_pock_alone_helps() -> None:
    done = pock()
    assert done.returncode == 0
    assert not done.stderr
    assert all(command in done.stdout for command in ("Usage", "compile", "check", "train", "inspect"))


def test_check_lists_obstacles_before_compiling(place) -> None:
    done = pock("check", place / "net.pt2", "--batch", 4, "--scheme", "head")
    assert done.returncode == 0, done.stderr
    for text in (
        "warning",
        "running statistics of 'blocks.0.bn', 'blocks.1.bn'",
        "--batch-norm 'frozen'",
        "nothing stands",
    ):
        assert text in " ".join(done.stdout.split()), text
    done = pock("check", place / "net.pt2", "--batch", 4, "--scheme", "head", "--target", "abacus")
    assert done.returncode != 0
    assert "'abacus' is no target" in done.stderr
    (place / "odd.json").write_text(json.dumps({"head.*": "full", "tail.*": "full", "hat": 0.5}))
    done = pock("check", place / "net.pt2", "--batch", 4, "--scheme", place / "odd.json", "--batch-norm", "frozen")
    assert done.returncode == 2
    assert done.stdout.count("obstacle ") == 2
    assert all(text in done.stdout for text in ("'tail.*' names no parameter", "'hat' names no parameter"))
    assert not done.stderr


def test_pictures_whose_mean_nobody_gave(place) -> None:
    (place / "plain.pt2").write_bytes((place / "net.pt2").read_bytes())
    options = ["--batch", 4, "--scheme", "head", "--batch-norm", "frozen"]
    done = pock("compile", place / "plain.pt2", "-o", place / "plain.pock", *options)
    assert "warning" not in done.stderr
    for command, data in (("eval", place / "val"), ("train", place / "train")):
        done = pock(command, place / "plain.pock", "--data", data)
        assert done.returncode == 0, done.stderr
        line, *others = done.stderr.splitlines()
        kept = "pock: warning: nothing of this run will be kept: that takes --checkpoint"
        assert others == ([kept] if command == "train" else [])
        assert line.startswith("pock: warning: nobody said how the network wants its pictures: a mean of 0 and a")
        assert "give --mean and --std" in line
    done = pock("eval", place / "plain.pock", "--data", place / "val", "--mean", "0.5,0.5,0.5")
    assert "a standard deviation of 1 is taken" in done.stderr
    done = pock("eval", place / "net.pock", "--data", place / "val")
    assert not done.stderr


def test_from_contributions_to_a_scheme(place) -> None:
    net, measured, scheme = place / "net.pt2", place / "c.json", place / "scheme.json"
    data = ["--data", place / "train", "--val", place / "val", "--batch", 4, "--depths", 2, "--ratios", "0.5,1"]
    task = [*data, "--epochs", 2, "--seeds", 1, "--lr", 0.05]
    done = pock("analyze", net, *task, "--quick", "-o", measured)
    assert done.returncode == 0, done.stderr
    assert "first-order scores" in done.stdout
    done = pock("analyze", net, *task, "-o", measured, "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "blocks.1.conv2.weight" in done.stdout
    done = pock("search", net, measured, "--memory", "20KB", "--latency", "1s", "-o", scheme)
    assert done.returncode == 0, done.stderr
    assert "together" in done.stdout
    assert "warning" not in done.stderr
    interrupted = place / "half.json"
    interrupted.write_text(json.dumps(json.loads(measured.read_text()) | {"finished": False}))
    done = pock("search", net, interrupted, "--memory", "20KB", "-o", place / "half-scheme.json")
    assert "half.json' is not finished: 'pock analyze' goes on where it was interrupted" in done.stderr
    done = pock("report", measured, "--scheme", scheme, "--memory", "20KB", "-o", place / "report.html")
    assert done.returncode == 0, done.stderr
    assert (place / "report.html").read_text().count("<img") == 3
    done = pock("compile", net, "-o", place / "found.pock", "--scheme", scheme, "--batch", 4, "--memory-budget", "20KB")
    assert done.returncode == 0, done.stderr
    before = scheme.read_bytes()
    done = pock("search", net, measured, "--memory", "10B", "-o", scheme)
    assert done.returncode == 2
    assert "a memory budget of 10 bytes is too small: the smallest scheme takes" in done.stderr
    assert scheme.read_bytes() == before
    done = pock("analyze", net, *task[:-1], 0.1, "-o", measured)
    assert done.returncode == 2
    assert "was measured with recipe" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "net.pt2", "none.json", "-o", "s.json"], "'pock analyze' makes one"),
        (["search", "net.pt2", "none.json", "-o", "s.json", "--latency", "soon"], "'soon' is no time"),
        (
            ["analyze", "net.pt2", "--data", "train", "--val", "val", "-o", "c2.json", "--ratios", "0,1"],
            "a share of channels",
        ),
        (["analyze", "net.pt2", "--data", "train", "--val", "empty", "-o", "c2.json", "--batch", 4], "holds no images"),
    ],
)
def test_faults_of_an_analysis_are_one_line(place, arguments, message) -> None:
    (place / "empty" / "dark").mkdir(parents=True, exist_ok=True)
    paths = [
        place / text if text in ("net.pt2", "none.json", "train", "val", "empty", "s.json", "c2.json") else text
        for text in arguments
    ]
    done = pock(*paths)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("pock: ")
    assert "Traceback" not in done.stderr


def test_frozen_layers_compute_in_eight_bits(place) -> None:
    command = ("compile", place / "net.pt2", "-o", place / "net8.pock", "--scheme", "head", "--batch", 4, "--no-check")
    done = pock(*command, "--frozen", "int8")
    assert done.returncode != 0
    assert "--frozen 'int8' needs data to take ranges from" in " ".join(done.stderr.split())
    done = pock(*command, "--frozen", "int8", "--calibrate", place / "train")
    assert done.returncode == 0, done.stderr
    assert "6 frozen layers in eight bits" in done.stderr
    assert "int8" in pock("inspect", place / "net8.pock").stdout
