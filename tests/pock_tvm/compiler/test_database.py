"""The tuning database: whole lines, whatever happens, and only for what they were measured on."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import tvm
from tvm.target import Target

from pock_tvm.compiler import database as module
from pock_tvm.compiler.database import Database, KernelRecord, Trial, Tuned, kernel_key, records_of, target_key
from pock_tvm.compiler.targets import kernel_target, resolve_target
from pock_tvm.device.errors import WriteError
from pock_tvm.errors import DatabaseError, PockWarning
from tests.schedules.test_decisions import kernel_of

HOST, OTHER = resolve_target("host"), resolve_target("pi4")
CPU = kernel_target(HOST)
FUNC = kernel_of("wide product")[0]
KEY = kernel_key(FUNC)
RECORD = KernelRecord("product", "pock.matmul", ((48, 20), (20, 64)), tvm.ir.save_json(FUNC))
TRIAL = Trial({"tile": (4, 16), "pack": False}, 1e-5, 2e-5)
FAILED = Trial({"tile": (2, 16), "pack": True}, None, None, "crashes: SIGSEGV")


def chosen(gain: float = 2.0) -> Tuned:
    """Decisions that are not the default's."""
    options = CPU.options(FUNC)["tile"].options
    return Tuned({"tile": options[-1]}, gain)


def filled(folder: Path) -> Database:
    found = Database(folder, HOST)
    found.add_kernel(KEY, RECORD)
    for trial in (TRIAL, FAILED):
        found.add_trial(KEY, trial)
    found.choose(KEY, chosen(), CPU.schedule(FUNC, chosen().decisions))
    return found


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = filled(tmp_path)
    for found in (written, Database(tmp_path, HOST)):
        assert found.kernels == {KEY: RECORD}
        assert list(found.trials[KEY].values()) == [TRIAL, FAILED]
        assert found.tuned(FUNC, CPU) == chosen() and found.skipped == 0
    assert (TRIAL.speedup, FAILED.speedup) == (2, 0)
    rows = [json.loads(line) for line in written.path.read_text().splitlines()]
    assert [row["record"] for row in rows] == ["kernel", "trial", "trial", "choice"]
    assert rows[1]["seconds"] == 1e-5 and rows[2]["failure"] == "crashes: SIGSEGV"


def test_files_of_two_machines_merge_by_concatenation(tmp_path: Path) -> None:
    one, other = filled(tmp_path / "one"), Database(tmp_path / "other", HOST)
    other.add_trial("0123456789abcdef", TRIAL)
    for order in ((one, other), (other, one)):
        merged = tmp_path / f"merged {order.index(one)}"
        merged.mkdir()
        (merged / one.path.name).write_bytes(b"".join(each.path.read_bytes() for each in order))
        found = Database(merged, HOST)
        assert set(found.trials) == {KEY, "0123456789abcdef"} and found.tuned(FUNC, CPU) == chosen()


def test_the_latest_choice_holds_wherever_it_stands(tmp_path: Path) -> None:
    found = filled(tmp_path)
    time.sleep(0.002)
    found.choose(KEY, Tuned({}, 1.0), CPU.schedule(FUNC))
    assert found.tuned(FUNC, CPU) is None
    lines = found.path.read_bytes().splitlines(keepends=True)
    found.path.write_bytes(b"".join(reversed(lines)))
    assert Database(tmp_path, HOST).tuned(FUNC, CPU) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line[: len(line) // 2],
        lambda line: line.replace(b"1e-05", b"2e-05"),
        lambda line: b"\xff\x00" * 20,
        lambda line: b"[" * 100_000,
        lambda line: b"{}",
        lambda line: line.replace(b'"trial"', b'"other"'),
    ],
    ids=["torn", "altered", "binary", "nested", "empty", "unknown"],
)
def test_a_damaged_line_costs_itself(tmp_path: Path, damage) -> None:
    path = filled(tmp_path).path
    lines = path.read_bytes().splitlines()
    lines[1] = damage(lines[1])
    path.write_bytes(b"\n".join(lines))
    content = path.read_bytes()
    found = Database(tmp_path, HOST)
    assert found.skipped == 1 and list(found.trials[KEY].values()) == [FAILED]
    with pytest.warns(PockWarning, match="1 damaged record is left out, and kept in the file"):
        assert records_of(tmp_path, HOST).tuned(FUNC, CPU) == chosen()
    # The next record starts a line of its own.
    found.add_trial(KEY, TRIAL)
    assert path.read_bytes().startswith(content)
    assert list(Database(tmp_path, HOST).trials[KEY].values()) == [FAILED, TRIAL]


def test_a_kernel_whose_definition_cannot_be_read_costs_itself(tmp_path: Path) -> None:
    found = filled(tmp_path)
    found._append("kernel", KEY, {"name": "k", "rule": "", "shapes": [], "definition": "AAAA"})
    again = Database(tmp_path, HOST)
    assert again.skipped == 1 and again.kernels == found.kernels and again.trials == found.trials


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    found = filled(tmp_path)
    size = found.path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal = __import__("signal")
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, hard))  # room for a part of a line
    try:
        with pytest.raises(WriteError, match=r"x.*\.jsonl' cannot be written.* the same command goes on$"):
            found.add_trial(KEY, Trial({"tile": (8, 16)}, 1.0, 1.0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert found.path.stat().st_size == size
    assert list(Database(tmp_path, HOST).trials[KEY].values()) == [TRIAL, FAILED]


def test_another_version_of_tvm_is_refused(tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tvm, "__version__", "0.26.0")
        filled(tmp_path)
    with pytest.raises(DatabaseError, match=rf"was measured with TVM 0\.26\.0, and this is {tvm.__version__}"):
        Database(tmp_path, HOST)


def test_another_target_is_refused(tmp_path: Path) -> None:
    path = filled(tmp_path).path
    with pytest.raises(
        DatabaseError, match=f"has no records for aarch64-cortex-a72-4cores: it has some for {path.stem}"
    ):
        records_of(tmp_path, OTHER)
    path.rename(tmp_path / f"{target_key(OTHER)}.jsonl")
    with pytest.raises(DatabaseError, match=f"holds records for {path.stem}: rename it to '{path.name}'$"):
        Database(tmp_path, OTHER)
    with pytest.raises(DatabaseError, match="it has none at all"):
        records_of(tmp_path / "nowhere", HOST)


def test_the_key_is_what_matters() -> None:
    def key(**attrs: object) -> str:
        return target_key(Target({"kind": "llvm", "mcpu": "znver4", "num-cores": 2, **attrs}))

    triples = ("x86_64-conda-linux-gnu", "x86_64-pc-windows-gnu", "x86_64-unknown-linux-gnu")
    assert {key(mtriple=triple) for triple in triples} == {"x86_64-znver4-2cores"}
    assert key(mtriple=triples[0], **{"num-cores": 4}) == "x86_64-znver4-4cores"
    assert key(mtriple=triples[0], mattr=["+avx2"]) not in (
        "x86_64-znver4-2cores",
        key(mtriple=triples[0], mattr=["+fma"]),
    )
    assert key(mtriple=triples[0], mattr=["+fma", "+avx2"]) == key(mtriple=triples[0], mattr=["+avx2", "+fma"])


def test_records_of_older_schedules(tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "sources", lambda: "older")
        filled(tmp_path)
    found = Database(tmp_path, HOST)
    # The decisions still make the same kernel: that is how it was measured.
    assert found.tuned(FUNC, CPU) == chosen()
    # What was measured of the others is no more than a hint.
    assert found.trials == {} and found.older == {KEY: [TRIAL, FAILED]}


@pytest.mark.parametrize("fault", ["another kernel", "no such option"])
def test_what_does_not_replay_is_not_used(tmp_path: Path, monkeypatch, fault: str) -> None:
    tuned = chosen() if fault == "another kernel" else Tuned({"tile": (999, 999)}, 2.0)
    with monkeypatch.context() as patch:
        patch.setattr(module, "sources", lambda: "older")
        Database(tmp_path, HOST).choose(KEY, tuned, CPU.schedule(FUNC))
    assert Database(tmp_path, HOST).tuned(FUNC, CPU) is None


def test_a_kernel_has_one_key_whatever_its_name() -> None:
    assert kernel_key(FUNC.with_attr("global_symbol", "another")) == KEY != kernel_key(kernel_of("product")[0])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(WriteError):
        Database(tmp_path, HOST).add_trial(KEY, TRIAL)
