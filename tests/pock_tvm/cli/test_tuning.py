"""``pock tune``, as a user types it."""

from __future__ import annotations

from pathlib import Path

import pytest

import pock_tvm as pock
from pock_tvm.tuning import tune as module
from tests.pock_tvm.commands import run_command
from tests.pock_tvm.networks import small


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tune") / "net.pock"
    pock.compile(small(4), scheme=pock.Scheme({"head.*": "full"}), batch_norm="frozen", check=False).save(path)
    return path


def test_a_program_is_tuned_and_shown(program: Path, tmp_path: Path) -> None:
    tuned, records = tmp_path / "tuned.pock", tmp_path / "records"
    options = ["--database", records, "--trials", 6, "--strategy", "random"]
    code, text = run_command("tune", program, *options, "-o", tuned)
    assert code == 0, text
    assert "a step takes" in text and "6 trials in" in text and f"{tuned}: arena" in text.replace("\n", "")
    assert len(list(records.glob("*.jsonl"))) == 1
    code, text = run_command("inspect", tuned)
    assert code == 0 and "schedules of kernels" in text and "default" in text


def test_ctrl_c_says_how_to_go_on(program: Path, tmp_path: Path, monkeypatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.Search, "run", interrupted)
    code, text = run_command("tune", program, "--database", tmp_path, "--strategy", "random")
    assert code == 130 and "the same command goes on from there" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--time", "soon"], "'soon' is no time"),
        (["--strategy", "guess"], "--strategy 'guess': there is no such search strategy"),
        (["--trials", "0"], "--trials"),
    ],
)
def test_mistakes(program: Path, tmp_path: Path, options: list[str], message: str) -> None:
    code, text = run_command("tune", program, "--database", tmp_path, *options)
    assert code == 2 and message in text
