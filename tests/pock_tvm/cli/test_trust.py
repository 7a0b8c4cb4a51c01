"""What the command line does with files of unknown origin, and with places where nothing can be written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import pock_tvm as pock
from pock_tvm.cli import main
from tests.pock_tvm.networks import small

OLD = Path(__file__).parents[2] / "data" / "format-1.pock"


@pytest.fixture
def pock_command(monkeypatch, capsys):
    """Runs the command in this process; returns its exit code and what it said on standard error."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["pock", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def data(tmp_path) -> Path:
    np.savez(tmp_path / "data.npz", input=np.zeros((8, 3, 6, 6), "float32"), y=np.arange(8) % 4)
    return tmp_path / "data.npz"


def test_every_command_that_writes_says_first_that_it_cannot(pock_command, tmp_path) -> None:
    """No model, program or data is there: what is said first was found first."""
    nowhere, no = tmp_path / "no" / "x.json", tmp_path / "none"
    for arguments in (
        ("compile", no.with_suffix(".pt2"), "-o", nowhere),
        ("schemes", no.with_suffix(".pt2"), "--save", "head", "-o", nowhere),
        ("analyze", no.with_suffix(".pt2"), "--data", no, "--val", no, "-o", nowhere),
        ("search", no.with_suffix(".pt2"), no, "-o", nowhere),
        ("report", no, "-o", nowhere),
        ("inspect", no, "--json", nowhere),
        ("inspect", no, "--plot", nowhere),
        ("export", no, "--weights", nowhere),
    ):
        code, said = pock_command(*arguments)
        assert code == 2, arguments
        lines = [line for line in said.splitlines() if "warning" not in line]
        assert len(lines) == 1 and "there is no folder" in lines[0], said


def test_a_dump_that_cannot_be_written_is_said_before_the_model_is_read(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(pock.PockError, match="cannot be written: Not a directory"):
        pock.compile(tmp_path / "none.pt2", dump=tmp_path / "file" / "dump")


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs OpenSSH")
def test_signing_as_the_readme_says(pock_command, data, tmp_path) -> None:
    program = shutil.copy(OLD, tmp_path / "p.pock")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    options = ("--data", data, "--mean", "0", "--std", "1", "--require-signature", tmp_path / "key.pub")
    code, said = pock_command("eval", program, *options)
    assert code == 2 and "is not signed" in said
    assert pock_command("sign", program, "--key", tmp_path / "key")[0] == 0
    code, said = pock_command("eval", program, *options)
    assert code == 0, said
    for command in (
        ("export", program, "--weights", tmp_path / "w.safetensors"),
        ("inspect", OLD),
        ("train", OLD, *options[:2]),
    ):
        code, said = pock_command(*command, "--require-signature", tmp_path / "key.pub")
        assert code == (0 if program in command else 2), said


def test_a_network_that_needs_trust_is_refused_unless_it_is_given(pock_command, tmp_path) -> None:
    path = tmp_path / "net.pt2"
    torch.export.save(small(2), path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (members | {"net/data/weights/model.pt": b"no pickle"}).items():
            archive.writestr(name, content)
    code, said = pock_command("schemes", path)
    assert code == 2 and "is pickled" in said and "take --trust, or export it again" in said
    code, said = pock_command("schemes", path, "--trust")
    assert code == 2 and "cannot be read as a .pt2 model" in said, "PyTorch was asked"


def test_trust_is_of_a_task_and_of_no_file(tmp_path) -> None:
    task = pock.Task("net.pt2", "a", "b", trust=True)
    found = pock.Contributions(task, {}, "")
    found.save(tmp_path / "c.json")
    assert "trust" not in (tmp_path / "c.json").read_text()
    written = json.loads((tmp_path / "c.json").read_text())
    written["task"]["trust"] = True
    (tmp_path / "c.json").write_text(json.dumps(written))
    assert not pock.Contributions.load(tmp_path / "c.json").task.trust
