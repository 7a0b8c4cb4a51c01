"""``pock tune``, as a user types it."""

from __future__ import annotations

from pathlib import Path

import pytest
import tvm

import pock_tvm as pock
from pock_tvm.compiler.database import Database, KernelRecord, Trial
from pock_tvm.compiler.rebuild import definitions_of, target_of
from pock_tvm.compiler.targets import kernel_target
from pock_tvm.tuning import tune as module
from pock_tvm.tuning.space import own_space
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


def test_trials_that_are_exported_without_features_are_counted(program: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    loaded = pock.Program.load(program)
    records, path = Database(tmp_path, target_of(loaded)), tmp_path / "trials.parquet"
    name, definition = next(iter(definitions_of(loaded).items()))
    func = tvm.ir.load_json(definition)
    records.add_kernel(name, KernelRecord(name, "", (), definition))
    whole = own_space(kernel_target(records.target), func).default
    for decisions, said in ((whole, "1 trials"), ({"no such choice": 1}, "2 trials, 1 without features: they")):
        records.add_trial(name, Trial(decisions, 1e-6, 2e-6))
        code, text = run_command("tune", program, "--database", tmp_path, "--export", path)
        assert code == 0 and f"trials.parquet: {said}" in text.replace("\n", "")
        assert ("without features" in text) == ("without" in said)


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
