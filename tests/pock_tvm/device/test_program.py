"""Programs as files: complete, checked, and never half written."""

from __future__ import annotations

import copy
import io
import json
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import tvm

import pock_tvm as pock
from pock_tvm.device.form import check_form
from pock_tvm.errors import ProgramError
from tests.pock_tvm.networks import small


@pytest.fixture(scope="module")
def program() -> pock.Program:
    return pock.compile(small(), batch=4, scheme=pock.Scheme({"*.bias": "full", "blocks.1.conv2.weight": 0.5}))


def test_a_saved_program_trains_as_the_one_in_memory(program, tmp_path) -> None:
    program.save(tmp_path / "p.pock")
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((4, 3, 8, 8)).astype("float32"), rng.integers(0, 5, 4)
    memory, file = pock.Trainer(program), pock.Trainer(tmp_path / "p.pock")
    assert [memory.step(x, y, lr=0.1) for _ in range(3)] == [file.step(x, y, lr=0.1) for _ in range(3)]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda program: pickle.loads(pickle.dumps(program))])
def test_a_loaded_program_can_be_copied(program, tmp_path, copied) -> None:
    program.save(tmp_path / "p.pock")
    twin = copied(pock.Program.load(tmp_path / "p.pock"))
    twin.save(tmp_path / "twin.pock")
    assert (tmp_path / "twin.pock").read_bytes() == (tmp_path / "p.pock").read_bytes()


def test_the_manifest_says_what_is_in_the_file(program, tmp_path) -> None:
    program.save(tmp_path / "p.pock")
    with zipfile.ZipFile(tmp_path / "p.pock") as archive:
        parts = {"program.so", "weights.safetensors", "constants.safetensors", "kernels.zip"}
        assert set(archive.namelist()) == {"manifest.json", "manifest.sha256", *parts}
        manifest = json.loads(archive.read("manifest.json"))
    assert manifest["versions"]["pock_tvm"] == pock.__version__
    assert set(manifest["checksums"]) == parts
    assert manifest["scheme"] == {"*.bias": "full", "blocks.1.conv2.weight": 0.5}
    assert manifest["inputs"] == [{"name": "x", "shape": [4, 3, 8, 8], "dtype": "float32"}]
    assert manifest["parameters"]["stem.weight"]["trained"] == "frozen"
    assert len(program.trained["blocks.1.conv2.weight"]["indices"]) == 4


def test_layers_are_reported(program) -> None:
    layers = {layer["name"]: layer for layer in program.manifest["layers"]}
    assert list(layers) == ["stem", "blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2", "head"]
    assert layers["stem"]["forward_flops"] == 2 * 4 * 4 * 4 * 8 * 27
    assert layers["stem"]["backward_flops"] == 0  # nothing before it is trained, and its weight is frozen
    conv = layers["blocks.1.conv2"]
    assert conv["weight"] == "4/8"
    assert conv["backward_flops"] == conv["forward_flops"] * 1.5
    assert layers["blocks.0.conv1"]["backward_flops"] == layers["blocks.0.conv1"]["forward_flops"]


def test_memory_is_what_the_trainer_holds(program) -> None:
    trainer, memory = pock.Trainer(program), program.memory()
    assert memory["arena"] == max(entry["arena_bytes"] for entry in program.manifest["entries"].values())
    assert memory["lower_bound"] <= memory["arena"] <= len(trainer._arena)
    held = {
        name: array.nbytes
        for name, array in trainer._arrays.items()
        if name in program.weights or name.startswith("prepared.")
    }
    assert memory["parameters"] == sum(held.values())


def test_a_damaged_file_is_refused(program, tmp_path) -> None:
    path = tmp_path / "p.pock"
    program.save(path)
    content = path.read_bytes()
    middle = bytearray(content)
    middle[len(content) // 2] ^= 0xFF
    for name, bad in (
        ("truncated", content[: len(content) // 2]),
        ("altered", bytes(middle)),
        ("empty", b""),
        ("text", b"no program"),
    ):
        (tmp_path / name).write_bytes(bad)
        with pytest.raises(ProgramError, match=name):
            pock.Program.load(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "net.pt2", "w") as archive:
        archive.writestr("archive_format", "pt2")
    with pytest.raises(ProgramError, match="is no program.*holds no manifest.json, as a model that is not compiled"):
        pock.Program.load(tmp_path / "net.pt2")
    with pytest.raises(ProgramError, match="there is no program"):
        pock.Program.load(tmp_path / "missing")


def test_another_format_is_refused(program, tmp_path) -> None:
    other = pock.Program(
        program.manifest | {"format": "pock-program/99"}, program.library, program.weights, program.constants
    )
    other.save(tmp_path / "p.pock")
    with pytest.raises(ProgramError, match="pock-program/99"):
        pock.Program.load(tmp_path / "p.pock")


def test_a_failed_save_leaves_the_old_file(program, tmp_path, monkeypatch) -> None:
    path = tmp_path / "p.pock"
    program.save(path)
    before = path.read_bytes()
    monkeypatch.setattr(zipfile.ZipFile, "writestr", lambda *_args: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        program.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["p.pock"]


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-gcc") is None, reason="needs Debian's gcc-aarch64-linux-gnu")
def test_a_program_for_a_raspberry_pi_is_for_it_alone(tmp_path) -> None:
    program = pock.compile(small(4), target="raspberry-pi/4b-aarch64")
    assert program.library[:4] == b"\x7fELF" and program.library[18] == 183, "183: AArch64"
    with pytest.raises(pock.PockError, match="aarch64.*compile it for target 'host'"):
        pock.Trainer(program)


def test_a_program_holds_objects_and_definitions_of_its_kernels_unless_it_is_slim(program, tmp_path) -> None:
    program.save(tmp_path / "p.pock")
    program.save(tmp_path / "slim.pock", slim=True)
    whole, slim = (pock.Program.load(tmp_path / name) for name in ("p.pock", "slim.pock"))
    assert whole.kernels == program.kernels
    assert slim.kernels == b""
    assert slim.library == whole.library
    with zipfile.ZipFile(io.BytesIO(whole.kernels)) as archive:
        names = program.manifest["kernels"]
        assert set(archive.namelist()) == {f"{name}.{kind}" for name in names for kind in ("o", "json")}
        for name in names:
            definition = tvm.ir.load_json(archive.read(f"{name}.json").decode())
            assert definition.attrs["global_symbol"] == name
            assert archive.read(f"{name}.o")


def test_programs_and_trainers_show_themselves_in_a_line(program) -> None:
    assert repr(program).startswith("Program(x 4x3x8x8; 9 of 22 weights trained; ")
    assert repr(pock.Trainer(program)).startswith("Trainer(0 steps, 9 of 22 weights trained, Program(")
    assert "\n" not in repr(program)
    assert len(repr(program)) < 120


@pytest.mark.parametrize("value", [True, 256, "host", None])
def test_an_entry_of_a_program_may_have_any_type(value: object) -> None:
    check_form({"default": value}, {"default": object}, "its manifest")
