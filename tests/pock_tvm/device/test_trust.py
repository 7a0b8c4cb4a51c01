"""Program files of unknown origin: nothing of them runs, and nothing is written, before they are found in order."""

from __future__ import annotations

import copy
import io
import json
import os
import shutil
import struct
import subprocess
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

import pock_tvm as pock
from pock_tvm.compiler.targets import is_this_machine, resolve_target, runs_here
from pock_tvm.device import instructions, reading
from pock_tvm.device.container import read_container, sign_container, write_container
from pock_tvm.device.errors import ProgramError
from tests.pock_tvm.networks import small

OLD = Path(__file__).parents[2] / "data" / "format-1.pock"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("trust")


@pytest.fixture(scope="module")
def honest(folder) -> Path:
    scheme = pock.Scheme({"*.bias": "full", "blocks.1.conv2.weight": 0.5})
    pock.compile(small(4), scheme=scheme, check=False, batch_norm="frozen").save(folder / "p.pock")
    return folder / "p.pock"


def rewritten(path: Path, folder: Path, change=None, **parts: bytes) -> Path:
    """Write a program anew, with checksums that fit what was changed."""
    manifest, before = read_container(path)
    manifest = copy.deepcopy(manifest)
    if change is not None:
        change(manifest)
    named = {name.replace("_", "."): data for name, data in parts.items()}
    write_container(folder / "changed.pock", manifest, before | named)
    return folder / "changed.pock"


# ---- the manifest ----------------------------------------------------------------------------------------------------


def step(manifest) -> dict:
    return manifest["entries"]["train_step"]


def shrunk(manifest) -> None:
    for entry in manifest["entries"].values():
        entry["arena_bytes"] = 64


CHANGES = {
    "a smaller arena": shrunk,
    "a larger arena": lambda manifest: step(manifest).update(arena_bytes=2**39),
    "a shorter array": lambda manifest: step(manifest)["table"][0]["shape"].__setitem__(0, 1),
    "another offset": lambda manifest: step(manifest)["calls"][0][1][0].__setitem__(1, 2**30),
    "another place": lambda manifest: next(call for call in step(manifest)["calls"] if len(call[1]) > 1)[1].reverse(),
    "other labels": lambda manifest: manifest["outputs"][0].update(shape=[4, 500]),
    "labels ignored": lambda manifest: manifest["loss"].update(ignore_index=10**6),
    "another input": lambda manifest: manifest["inputs"][0].update(shape=[1]),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("newest", [True, False])
def test_a_changed_number_is_refused_though_its_checksum_fits(change: str, newest: bool, honest, tmp_path) -> None:
    """A file of format 1 has no word of its library: there what contradicts itself is refused."""
    path = rewritten(honest if newest else OLD, tmp_path, CHANGES[change])
    if not newest and change in ("a larger arena", "another place", "labels ignored", "other labels"):
        pytest.skip("such a file does not contradict itself")
    with pytest.raises(ProgramError, match="was changed|cannot be run"):
        pock.Trainer(path)


def test_a_smaller_arena_is_refused_before_anything_is_written(honest, tmp_path) -> None:
    """As before: it trained, wrote outside, and said nothing."""
    with pytest.raises(ProgramError, match="built for other shapes, sizes, ranges"):
        pock.Trainer(rewritten(honest, tmp_path, shrunk))
    with pytest.raises(ProgramError, match="lies outside the arena"):
        pock.Trainer(rewritten(OLD, tmp_path, shrunk))


@pytest.mark.parametrize("part", ["weights", "constants"])
def test_other_arrays_are_refused_though_their_checksum_fits(part: str, honest, tmp_path) -> None:
    _, parts = read_container(honest)
    arrays = safetensors.numpy.load(bytes(parts[f"{part}.safetensors"]))
    assert arrays
    for name, array in arrays.items():
        for other in (array.reshape(-1)[:1].copy(), array.astype("float16" if array.dtype.kind == "f" else "int8")):
            data = safetensors.numpy.save(arrays | {name: other})
            if array.nbytes == other.nbytes:
                continue
            try:
                pock.Trainer(rewritten(honest, tmp_path, **{f"{part}_safetensors": data}))
            except pock.PockError:
                continue
            assert other.size == array.size or part == "weights", name  # converted, or broadcast as NumPy does


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.pop("entries"),
        lambda manifest: manifest.update(entries=[]),
        lambda manifest: manifest["entries"].pop("predict"),
        lambda manifest: manifest.update(inputs=[]),
        lambda manifest: manifest["inputs"][0].update(shape=[-1]),
        lambda manifest: manifest["inputs"][0].update(shape=[2**40, 2**40]),
        lambda manifest: manifest["inputs"][0].update(shape="4"),
        lambda manifest: manifest["inputs"][0].update(dtype="object"),
        lambda manifest: manifest["loss"].update(kind="hinge"),
        lambda manifest: manifest["loss"].update(secret=1),
        lambda manifest: manifest["optimizer"].update(kind="lion"),
        lambda manifest: manifest["options"].update(accumulate=0),
        lambda manifest: manifest["options"].update(accumulate=float("nan")),
        lambda manifest: manifest["target"].pop("triple"),
        lambda manifest: manifest["target"].update(triple=None),
        lambda manifest: manifest.update(parameters={"x": None}),
        lambda manifest: manifest["parameters"]["head.bias"].update(stored={"shape": [3], "axes": [7]}),
        lambda manifest: step(manifest)["calls"].append(["copy", 3]),
        lambda manifest: step(manifest)["calls"].append(None),
        lambda manifest: manifest.update(format=["pock-program/2"] * 1000),
    ],
)
def test_a_manifest_of_another_form_is_refused_in_one_line(change, honest, tmp_path) -> None:
    with pytest.raises(pock.PockError) as caught:
        pock.Trainer(rewritten(honest, tmp_path, change))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_the_manifest_is_under_a_checksum(honest, tmp_path) -> None:
    with zipfile.ZipFile(honest) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    text = members["manifest.json"].replace(b'"arena_bytes": ', b'"arena_bytes":  ')
    for changed in (members | {"manifest.json": text}, {n: d for n, d in members.items() if n != "manifest.sha256"}):
        with zipfile.ZipFile(tmp_path / "p.pock", "w") as archive:
            for name, data in changed.items():
                archive.writestr(name, data)
        with pytest.raises(ProgramError, match="checksum of manifest.json is wrong"):
            pock.Program.load(tmp_path / "p.pock")


# ---- limits ----------------------------------------------------------------------------------------------------------


def zipped(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_a_small_file_takes_little_memory_and_one_line(honest, tmp_path) -> None:
    with zipfile.ZipFile(honest) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    nested = json.dumps(json.loads(members["manifest.json"]) | {"x": None}).replace(
        "null", "[" * 90_000 + "]" * 90_000, 1
    )
    one = io.BytesIO()
    with zipfile.ZipFile(one, "w") as archive:
        archive.writestr("manifest.json", b"{}")
    start = one.getvalue().index(b"PK\1\2")
    entry, head, end = one.getvalue()[start:-22], one.getvalue()[:start], one.getvalue()[-22:]
    entries = entry * 90_000
    many = head + entries + end[:12] + struct.pack("<L", len(entries)) + end[16:]
    hostile = {
        "bomb": zipped(tmp_path / "bomb", members | {"program.so": bytes(2**26)}),
        "lzma": zipped(tmp_path / "lzma", members, zipfile.ZIP_LZMA),
        "nested": zipped(tmp_path / "nested", members | {"manifest.json": nested.encode()}, zipfile.ZIP_STORED),
        "values": zipped(
            tmp_path / "values", members | {"manifest.json": b"[" + b"{}," * 2**21 + b"{}]"}, zipfile.ZIP_STORED
        ),
        "members": tmp_path / "members",
    }
    hostile["members"].write_bytes(many)
    for name, path in hostile.items():
        size = path.stat().st_size
        tracemalloc.start()
        with pytest.raises(ProgramError) as caught:
            pock.Program.load(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert "\n" not in str(caught.value)
        assert peak < 2**24 + 4 * size, name


def test_what_is_no_regular_file_is_not_opened(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, match in (
        (tmp_path / "pipe", "no regular file"),
        ("/dev/zero", "no regular file"),
        (tmp_path, "a folder"),
    ):
        with pytest.raises(ProgramError, match=match):
            pock.Program.load(path)
        with pytest.raises(pock.PockError, match=match):
            pock.Scheme.load(path)
        with pytest.raises(pock.PockError, match=match):
            pock.Contributions.load(path)


def test_json_is_bounded() -> None:
    assert reading.parse_json(b'{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}
    for text, options in (
        ("[" * 70 + "]" * 70, {}),
        ("[1,2,3]", {"values": 2}),
        (b"\xff", {}),
        ("[" * 10**6, {}),
        ("{", {}),
    ):
        with pytest.raises(ValueError):
            reading.parse_json(text, **options)


# ---- signatures ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def key(folder) -> Path:
    private = Ed25519PrivateKey.generate()
    (folder / "key").write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    (folder / "key.pub").write_bytes(private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    pem = PublicFormat.SubjectPublicKeyInfo
    (folder / "key.pem").write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / "pub.pem").write_bytes(private.public_key().public_bytes(Encoding.PEM, pem))
    other = Ed25519PrivateKey.generate()
    (folder / "other.pub").write_bytes(other.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    locked = BestAvailableEncryption(b"word")
    (folder / "locked").write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))
    return folder / "key"


def test_a_signed_program_is_loaded_where_a_signature_is_asked_for(honest, key, tmp_path) -> None:
    path = shutil.copy(honest, tmp_path / "p.pock")
    with pytest.raises(ProgramError, match="is not signed: sign it by 'pock sign"):
        pock.Program.load(path, signature=key.with_suffix(".pub"))
    for private, public in (("key", "key.pub"), ("key.pem", "pub.pem")):
        sign_container(path, key.with_name(private))
        program = pock.Program.load(path, signature=key.with_name(public))
        assert pock.Trainer(program).steps == 0
    assert pock.Program.load(path).library == program.library
    with pytest.raises(ProgramError, match="is not signed by the key"):
        pock.Program.load(path, signature=key.with_name("other.pub"))
    for name, match in (
        ("none", "there is no key"),
        ("p.pock", "cannot be read as a private key"),
        ("locked", "without a passphrase"),
    ):
        with pytest.raises(ProgramError, match=match):
            sign_container(path, key.with_name(name))


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
def test_a_replaced_library_does_not_run_where_a_signature_is_asked_for(honest, key, tmp_path) -> None:
    marker, source = tmp_path / "ran", tmp_path / "evil.c"
    source.write_text(
        "#include <fcntl.h>\n__attribute__((constructor)) static void run(void)"
        f'{{ open("{marker}", O_CREAT | O_WRONLY, 0600); }}\n'
    )
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "evil.so", source], check=True)
    library = (tmp_path / "evil.so").read_bytes()
    signed = shutil.copy(honest, tmp_path / "p.pock")
    sign_container(signed, key)
    with zipfile.ZipFile(signed) as archive:
        signature = archive.read("manifest.ed25519")
    path = rewritten(signed, tmp_path, program_so=library)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("manifest.ed25519", signature)
    with pytest.raises(ProgramError, match="is not signed by the key.* nothing of it was run"):
        pock.Program.load(path, signature=key.with_suffix(".pub"))
    with zipfile.ZipFile(honest) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with pytest.raises(ProgramError, match="checksum of program.so is wrong"):
        pock.Trainer(zipped(tmp_path / "q.pock", members | {"program.so": library}, zipfile.ZIP_STORED))
    assert not marker.exists()


# ---- the machine -----------------------------------------------------------------------------------------------------


def test_a_program_for_a_newer_cpu_is_refused_before_it_runs(honest, tmp_path) -> None:
    manifest, _ = read_container(honest)
    assert manifest["target"]["instructions"]
    path = rewritten(honest, tmp_path, lambda manifest: manifest["target"]["instructions"].append("avx99"))
    with pytest.raises(ProgramError, match="CPU has not: avx99. Compile it for target 'host'"):
        pock.Trainer(path)


def test_this_machine_has_what_its_own_programs_need() -> None:
    """The system's list and LLVM's agree."""
    host = resolve_target("host")
    assert is_this_machine(host) and runs_here(host)
    here = instructions.machine_sets()
    from pock_tvm.compiler.targets import instructions_of

    assert here is not None and set(instructions_of(host)) <= here


def test_where_the_system_does_not_tell_nothing_is_refused(monkeypatch, tmp_path) -> None:
    here = resolve_target("host").attrs["mtriple"]
    instructions.machine_sets.cache_clear()
    monkeypatch.setattr(instructions, "CPUINFO", tmp_path / "none")
    assert instructions.obstacle_here({"triple": here, "instructions": ["avx99"]}) is None
    instructions.machine_sets.cache_clear()


def test_under_an_emulator_the_list_of_the_machine_below_tells_nothing(monkeypatch, tmp_path) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags : fpu sse avx2\n")
    instructions.machine_sets.cache_clear()
    monkeypatch.setattr(instructions, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(instructions.platform, "machine", lambda: "aarch64")
    here = "aarch64-unknown-linux-gnu"
    assert instructions.obstacle_here({"triple": here, "instructions": ["neon"]}) is None
    instructions.machine_sets.cache_clear()


def test_a_folder_for_temporary_files_without_room_is_one_line(honest, monkeypatch) -> None:
    program = pock.Program.load(honest)
    monkeypatch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ProgramError, match="cannot be loaded .No space left on device.*TMPDIR"):
        pock.Trainer(program)


def test_a_library_that_is_none_is_one_line(honest, tmp_path) -> None:
    for library in (b"", b"\x7fELF nothing", b"PK nothing"):
        with pytest.raises(ProgramError) as caught:
            pock.Trainer(rewritten(honest, tmp_path, program_so=library))
        assert "\n" not in str(caught.value)


def test_an_old_program_still_trains() -> None:
    trainer = pock.Trainer(OLD)
    assert np.isfinite(trainer.step(np.zeros((4, 3, 6, 6), "float32"), np.arange(4), lr=0.1))
