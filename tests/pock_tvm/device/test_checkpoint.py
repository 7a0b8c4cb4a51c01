"""Checkpoints: what a file holds, what damages it, and which of several is taken."""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pock_tvm as pock
from pock_tvm.errors import CheckpointError, WriteError


@pytest.fixture(scope="module")
def program() -> pock.Program:
    torch.manual_seed(0)
    exported = torch.export.export(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), (torch.zeros(4, 6),))
    scheme = pock.Scheme({"0.bias": "frozen", "0.weight": [0, 2, 5], "2.*": "full"})
    return pock.compile(exported, scheme=scheme, optimizer=pock.AdamW(), accumulate=2, check=False)


def trained(program: pock.Program, steps: int) -> pock.Trainer:
    rng, trainer = np.random.default_rng(0), pock.Trainer(program, threads=1)
    for _ in range(steps):
        trainer.step(rng.standard_normal((4, 6)).astype("float32"), np.arange(4), lr=0.05)
    return trainer


def state(trainer: pock.Trainer) -> dict[str, bytes]:
    """Everything that a step goes on from."""
    arrays = {name: trainer._arrays[name].tobytes() for name in [*trainer._live, *trainer._states]}
    return arrays | {"steps": trainer.steps, "updates": trainer._updates(), "notes": json.dumps(trainer.notes)}


def test_a_reader_of_a_few_lines_can_check_a_file(program, tmp_path) -> None:
    """With nothing but JSON and CRC-32."""
    trained(program, 3).save(tmp_path / "a.ckpt")
    data = (tmp_path / "a.ckpt").read_bytes()
    length = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:length])
    metadata = header.pop("__metadata__")
    assert metadata["format"] == "pock-checkpoint/2"
    assert (metadata["steps"], metadata["updates"], metadata["pending"]) == ("3", "1", "1")
    for name, tensor in header.items():
        begin, end = tensor["data_offsets"]
        assert int(metadata[f"crc32.{name}"], 16) == zlib.crc32(data[length + begin : length + end])
    blank = data[:length].replace(metadata["header_crc32"].encode(), b"00000000", 1)
    assert int(metadata["header_crc32"], 16) == zlib.crc32(blank)
    assert header["state.exp_avg.0.weight"]["shape"] == [8, 3]  # PyTorch's layout, trained channels alone
    assert set(json.loads(metadata["frozen"])) == {"0.bias"}


def test_every_flipped_bit_and_every_cut_is_noticed(program, tmp_path) -> None:
    trained(program, 3).save(tmp_path / "a.ckpt")
    data, trainer = (tmp_path / "a.ckpt").read_bytes(), pock.Trainer(program)
    before, rng = state(trainer), np.random.default_rng(0)
    places = [*range(8), *rng.integers(8, len(data), 250).tolist()]
    wrong = [(*data[:place], data[place] ^ 1 << int(rng.integers(8)), *data[place + 1 :]) for place in places]
    wrong += [data[:length] for length in (0, 5, 8, 100, len(data) // 2, len(data) - 1)] + [data + b"\0", data * 2]
    for bad in wrong:
        (tmp_path / "b.ckpt").write_bytes(bytes(bad))
        with pytest.raises(CheckpointError) as error:
            trainer.restore(tmp_path / "b.ckpt")
        assert "\n" not in str(error.value)
        assert state(trainer) == before


def rewritten(data: bytes, **metadata: str | None) -> bytes:
    """A file whose metadata says something else, under the right checksum."""
    length = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:length])
    merged = header["__metadata__"] | metadata | {"header_crc32": "00000000"}
    header["__metadata__"] = {name: value for name, value in merged.items() if value is not None}
    text = json.dumps(header, separators=(",", ":")).encode()
    text = len(text).to_bytes(8, "little") + text
    crc = f"{zlib.crc32(text):08x}".encode()
    return text.replace(b'"header_crc32":"00000000"', b'"header_crc32":"' + crc + b'"') + data[length:]


@pytest.mark.parametrize(
    "metadata",
    [
        {"steps": "abc"}, {"steps": None}, {"steps": "-1"}, {"pending": "2"}, {"accumulate": "0"},
        {"trained": "{}"}, {"trained": "[]"}, {"trained": '{"0.weight": "half", "2.weight": "full", "2.bias": "full"}'},
        {"trained": '{"0.weight": {"axis": 1, "indices": [0, 2, 99]}, "2.weight": "full", "2.bias": "full"}'},
        {"trained": '{"0.weight": {"axis": 7, "indices": [0, 2, 5]}, "2.weight": "full", "2.bias": "full"}'},
        {"trained": '{"0.weight": {"axis": 1, "indices": [0, 2, 2]}, "2.weight": "full", "2.bias": "full"}'},
        {"states": "{}"}, {"states": "["}, {"states": '{"weight.2.bias": 3}'}, {"frozen": '{"0.bias": "00000000"}'},
        {"frozen": "7"}, {"notes": "null"}, {"optimizer": None}, {"format": "pock-checkpoint/9"}, {"format": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_record_that_says_nonsense_changes_nothing(program, tmp_path, metadata: dict) -> None:
    trained(program, 3).save(tmp_path / "a.ckpt")
    data = (tmp_path / "a.ckpt").read_bytes()
    trainer = trained(program, 1)
    (tmp_path / "b.ckpt").write_bytes(rewritten(data))
    pock.Trainer(program).restore(tmp_path / "b.ckpt")
    before = state(trainer)
    (tmp_path / "b.ckpt").write_bytes(rewritten(data, **metadata))
    with pytest.raises(CheckpointError) as error:
        trainer.restore(tmp_path / "b.ckpt")
    assert "\n" not in str(error.value)
    assert state(trainer) == before


def test_an_optimizer_of_two_betas_is_the_same_before_and_after_a_file(program, tmp_path) -> None:
    """The tuple of a program in memory and the list of one in a file are one optimizer."""
    trainer = trained(program, 3)
    trainer.save(tmp_path / "a.ckpt")
    program.save(tmp_path / "p.pock")
    again = pock.Trainer(tmp_path / "p.pock", threads=1)
    restored = again.restore(tmp_path / "a.ckpt")
    assert not restored.added and not restored.dropped and not restored.warnings
    assert state(again) == state(trainer)


def test_notes_go_with_the_state(program, tmp_path) -> None:
    trainer = trained(program, 1)
    trainer.notes["classes"] = ["cat", "dög"]
    trainer.save(tmp_path / "a.ckpt")
    again = pock.Trainer(program)
    again.restore(tmp_path / "a.ckpt")
    assert again.notes == {"classes": ["cat", "dög"]}


def test_the_last_few_are_kept(program, tmp_path) -> None:
    for steps in range(1, 6):
        trained(program, steps).save(tmp_path / "a.ckpt", keep=3)
    kept = {}
    for each in tmp_path.iterdir():
        trainer = pock.Trainer(program)
        kept[each.name] = trainer.restore(each).steps
    assert kept == {"a.ckpt": 5, "a.ckpt.1": 4, "a.ckpt.2": 3}
    trained(program, 6).save(tmp_path / "a.ckpt")
    assert [each.name for each in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.fixture
def series(program, tmp_path) -> Path:
    for steps in (1, 2, 3):
        trained(program, steps).save(tmp_path / "a.ckpt", keep=3)
    return tmp_path


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize(("damaged", "steps"), [([], 3), (["a.ckpt"], 2), (["a.ckpt", "a.ckpt.1"], 1)])
def test_the_newest_whole_one_is_taken_and_the_others_are_named(program, series, folder, damaged, steps) -> None:
    for name in damaged:
        (series / name).write_bytes((series / name).read_bytes()[:-7])
    trainer = pock.Trainer(program)
    with warnings.catch_warnings(record=True, action="always") as caught:
        restored = trainer.restore(series if folder else series / "a.ckpt")
    said = [str(each.message) for each in caught]
    assert trainer.steps == steps
    for name, text in zip(damaged, said, strict=True):
        assert f"{name}' is no checkpoint, or is damaged" in text
    assert list(restored.warnings) == said


def test_the_newest_is_there_even_where_a_kill_took_its_name(program, series) -> None:
    (series / "a.ckpt").unlink()
    trainer = pock.Trainer(program)
    with pytest.warns(pock.PockWarning, match=r"there is no checkpoint '.*a\.ckpt': passed over"):
        assert trainer.restore(series / "a.ckpt").steps == 2


def test_what_is_not_there_is_said(program, series) -> None:
    trainer = pock.Trainer(program)
    with pytest.raises(CheckpointError, match="there is no checkpoint '.*b.ckpt'"):
        trainer.restore(series / "b.ckpt")
    (series / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no file of it ends in .ckpt"):
        trainer.restore(series / "empty")
    for each in series.glob("a.*"):
        each.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"a\.ckpt' is no checkpoint.*\(2 older ones neither\)"):
        trainer.restore(series / "a.ckpt")


@pytest.mark.parametrize("call", ["fsync", "link", "replace"])
def test_a_full_disk_costs_no_checkpoint(program, series, monkeypatch, call: str) -> None:
    """Nor does trying again and again."""

    def full(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    trainer = trained(program, 4)
    for _ in range(4):
        with monkeypatch.context() as patched:
            patched.setattr(Path if call == "replace" else os, call, full)
            if call == "link":  # and no room for a copy either
                patched.setattr(shutil, "copyfileobj", full)
            with pytest.raises(WriteError, match=r"a\.ckpt(\.1)?' cannot be written: No space left on device"):
                trainer.save(series / "a.ckpt", keep=3)
        again = pock.Trainer(program)
        assert again.restore(series / "a.ckpt").steps == 3
    assert all(".tmp" not in each.name for each in series.iterdir())


def test_a_file_system_without_links(program, series, monkeypatch) -> None:
    monkeypatch.setattr(os, "link", lambda *_args: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    trained(program, 4).save(series / "a.ckpt", keep=3)
    trainer = pock.Trainer(program)
    found = [trainer.restore(series / name).steps for name in ("a.ckpt", "a.ckpt.1", "a.ckpt.2")]
    assert found == [4, 3, 2]


def test_what_is_no_file_or_too_large_is_not_read(program, tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.ckpt")
    with (tmp_path / "large.ckpt").open("wb") as file:
        file.truncate(2**36)
    for name, complaint in (("pipe", "it is no regular file"), ("large", "it is larger than")):
        with pytest.raises(CheckpointError, match=f"{name}.ckpt' cannot be read: {complaint}"):
            pock.Trainer(program).restore(tmp_path / f"{name}.ckpt")
    trained(program, 1).save(tmp_path / "whole.ckpt")
    (tmp_path / "large.ckpt").unlink()
    trainer = pock.Trainer(program)
    trainer.restore(tmp_path)
    assert trainer.steps == 1


def test_a_missing_folder(program, tmp_path) -> None:
    with pytest.raises(WriteError, match="cannot be written: there is no folder '.*none'"):
        trained(program, 1).save(tmp_path / "none" / "a.ckpt", keep=2)
