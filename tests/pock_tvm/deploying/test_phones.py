"""Packages for phones: their layouts and libraries, and the native methods on this machine's Java."""

import functools
import importlib.util
import plistlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import pock_tvm as pock
from pock_tvm.cli import app
from pock_tvm.deploying import aar, toolchain
from pock_tvm.deploying.bundle import deploy
from pock_tvm.deploying.maker import Network, network_of
from pock_tvm.deploying.phones import phone_of

from .bundles import RATE, batch_of, compiled
from .test_bundle import same_state

CASE, STEPS, SEED = "dropout, noise", 20, 2**40 + 3
TEXTS = Path(__file__).parent / "phones"
SYSROOT = Path("/usr/aarch64-linux-gnu")
needs_zig = pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="ziglang is missing")


def needs(*programs):
    missing = [name for name in programs if shutil.which(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} is missing")


@functools.cache
def program_for(target):
    return compiled("sparse, AdamW" if target == "ios" else CASE, target=target)


def run(*command):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def android(tmp_path_factory):
    program = program_for("android-arm64")
    return program, deploy(program, tmp_path_factory.mktemp("android") / "net")


@pytest.fixture(scope="module")
def ios(tmp_path_factory):
    program = program_for("ios")
    return program, deploy(program, tmp_path_factory.mktemp("ios") / "net")


@needs_zig
@needs("readelf")
def test_android_library(android):
    _, folder = android
    library = folder / "android" / aar.LIBRARY
    assert "AArch64" in run("readelf", "-h", library)
    dynamic = run("readelf", "-dW", library)
    assert re.findall(r"SONAME.*\[(.*)\]", dynamic) == ["libpock.so"] and "TEXTREL" not in dynamic
    assert set(re.findall(r"NEEDED.*\[(.*)\]", dynamic)) <= {"libc.so", "libm.so"}
    loads = [line.split() for line in run("readelf", "-lW", library).splitlines() if " LOAD " in line]
    assert loads and all(int(each[-1], 16) == aar.PAGE_BYTES for each in loads)
    symbols = [line.split() for line in run("readelf", "--dyn-syms", "-W", library).splitlines()]
    symbols = [(each[6], each[7]) for each in symbols if len(each) == 8 and each[0][:-1].isdigit()]
    maths = {f"{name}{suffix}" for name in aar.LIBM for suffix in ("", "f")}
    assert {name for place, name in symbols if place == "UND"} <= {*aar.LIBC, *maths}
    kotlin = (folder / "android/kotlin/pock/Pock.kt").read_text()
    methods = {f"Java_pock_Pock_{name}" for name in re.findall(r"external fun (\w+)", kotlin)}
    exported = {name for place, name in symbols if place != "UND"}
    assert len(methods) == 10 and {name for name in exported if name.startswith("Java_")} == methods
    assert all(name.startswith(("Java_pock_Pock_", "pock_")) for name in exported)


@needs_zig
@needs("llvm-objdump-19")
def test_android_library_leaves_the_platform_register(android):
    _, folder = android
    code = run("llvm-objdump-19", "-d", folder / "android" / aar.LIBRARY)
    assert "x0" in code and not re.search(r"\b[xw]18\b", code)


@needs_zig
@needs("qemu-aarch64")
@pytest.mark.skipif(not (SYSROOT / "lib/libc.so.6").exists(), reason="Debian's libc6-arm64-cross is missing")
@pytest.mark.parametrize("source", [False, True], ids=["objects", "source"])
def test_android_library_trains_under_an_emulator(source, android, tmp_path):
    """The file that phones get, with the C library of another system under the names of Android's."""
    program, folder = android
    if source:
        folder = deploy(program, tmp_path / "net", source=True)
        assert not list(folder.glob("kernels/*.o"))
    library = folder / "android" / aar.LIBRARY
    for name in ("libc.so", "libm.so"):
        (tmp_path / name).symlink_to(SYSROOT / "lib" / f"{name}.6")
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-gnu"]
    run(*zig, "-O1", folder / "main.c", library, "-o", tmp_path / "main")
    rng = np.random.default_rng(0)
    batches = [batch_of(program, rng) for _ in range(STEPS)]
    rows = [[*x, y] for (inputs, target) in batches for x, y in zip(*inputs, target, strict=True)]
    np.savetxt(tmp_path / "data.csv", rows, "%.9g", ",")
    paths = f"{library.parent}:{tmp_path}:{SYSROOT / 'lib'}"
    emulator = ["qemu-aarch64", "-L", SYSROOT, "-E", f"LD_LIBRARY_PATH={paths}"]
    files = [tmp_path / "data.csv", RATE, 1, tmp_path / "state", folder / "weights.bin", SEED]
    said = run(*emulator, tmp_path / "main", *files)
    host = program_for("host")
    trainer = pock.Trainer(host, threads=1, seed=SEED)
    losses = [trainer.step(inputs, target, lr=RATE) for inputs, target in batches]
    assert float(said.split()[-1]) == pytest.approx(np.mean(losses), abs=1e-4)
    found = pock.Trainer(host, threads=1)
    found.restore(tmp_path / "state")
    for name, array in trainer.weights().items():
        np.testing.assert_allclose(found.weights()[name], array, atol=1e-4, err_msg=name)


@needs_zig
def test_android_layout(android):
    _, folder = android
    place = folder / "android"
    manifest = ElementTree.parse(place / "AndroidManifest.xml").getroot()
    assert manifest.tag == "manifest" and manifest.get("package") == "pock"
    assert "native <methods>" in (place / "proguard.txt").read_text()
    assert (place / "assets/weights.bin").read_bytes() == (folder / "weights.bin").read_bytes()
    readme = (place / "README.md").read_text()
    assert "linked here" in readme and "**not compiled**" in readme and "$" not in readme.replace("$NDK", "")


@needs_zig
@needs("llvm-nm-19", "llvm-objdump-19")
def test_ios_framework(ios):
    _, folder = ios
    framework = folder / "ios/CPock.xcframework"
    info = plistlib.loads((framework / "Info.plist").read_bytes())
    (part,) = info["AvailableLibraries"]
    library = framework / part["LibraryIdentifier"] / part["LibraryPath"]
    headers = framework / part["LibraryIdentifier"] / part["HeadersPath"]
    assert (headers / "pock.h").read_bytes() == (folder / "pock.h").read_bytes()
    assert 'header "pock.h"' in (headers / "module.modulemap").read_text()
    objects = run("llvm-objdump-19", "--macho", "--private-headers", library).split("Mach header")[1:]
    assert len(objects) == len(toolchain.SOURCES) + len(list((folder / "kernels").glob("*.o")))
    assert all("ARM64" in each and "platform ios" in each and "minos 14.0" in each for each in objects)
    symbols = [line.split()[-2:] for line in run("llvm-nm-19", library).splitlines() if len(line.split()) > 1]
    defined = {name for kind, name in symbols if kind == "T"}
    swift = (folder / "ios/Sources/Pock/Pock.swift").read_text()
    called = set(re.findall(r"\bpock_\w+(?=\()", swift))
    assert len(called) == 9 and {f"_{name}" for name in called} <= defined
    missing = {name.lstrip("_") for kind, name in symbols if kind == "U"} - {name.lstrip("_") for name in defined}
    assert missing <= {"bzero", *aar.LIBC, *(f"{name}f" for name in aar.LIBM)}
    readme = (folder / "ios/README.md").read_text()
    assert "**Not linked" in readme and "missing" not in readme
    assert (folder / "ios/Sources/Pock/weights.bin").read_bytes() == (folder / "weights.bin").read_bytes()


@needs_zig
@needs("llvm-objdump-19")
def test_ios_framework_of_sources(tmp_path):
    folder = deploy(compiled("momentum, dampening, accumulated", target="ios"), tmp_path / "net", source=True)
    library = next(folder.glob("ios/*.xcframework/*/libpock.a"))
    objects = run("llvm-objdump-19", "--macho", "--private-headers", library).split("Mach header")[1:]
    assert len(objects) == len(toolchain.SOURCES) + len(list((folder / "kernels").glob("*.c")))
    assert all("ARM64" in each and "platform ios" in each for each in objects)


@pytest.fixture(scope="module")
def on_java(tmp_path_factory):
    """A bundle for this machine with Android's package, its library with the native methods, and batches."""
    program, folder = program_for("host"), tmp_path_factory.mktemp("java") / "net"
    deploy(program, folder, build=False)
    aar.package(folder, network_of(program), None)
    warnings = ["-std=c11", "-Wall", "-Wextra", "-Werror"]
    includes = [f"-I{folder / name}" for name in ("", "runtime", "kernels")]
    sources = [*(folder / name for name in toolchain.SOURCES), folder / "android/pock_jni.c"]
    objects = sorted((folder / "kernels").glob("*.o"))
    run("gcc", *warnings, "-fPIC", "-shared", *includes, *sources, *objects, "-lm", "-o", folder / "libpock.so")
    rng = np.random.default_rng(0)
    batches = [batch_of(program, rng) for _ in range(STEPS)]
    for step, (inputs, target) in enumerate(batches):
        inputs[0].tofile(folder / f"input{step}")
        target.tofile(folder / f"target{step}")
    return program, folder, batches


def same_as_trainer(program, folder, batches):
    trainer = pock.Trainer(program, threads=1, seed=SEED)
    losses = [trainer.step(inputs, target, lr=RATE) for inputs, target in batches]
    np.testing.assert_array_equal(np.fromfile(folder / "losses", "float32"), np.array(losses, "float32"))
    output = np.fromfile(folder / "output", "float32").reshape(8, 5)
    np.testing.assert_array_equal(output, trainer.predict(batches[-1][0]))
    same_state(folder / "state", trainer, program)
    for name in ("losses", "output", "state"):
        (folder / name).unlink()


@needs("gcc", "javac")
def test_native_methods(on_java, tmp_path):
    program, folder, batches = on_java
    network = network_of(program)
    sizes = [network.plan.memory.size, 8 * 12 * 4, 8 * 5 * 4, network.form.nbytes]
    run("javac", "-d", tmp_path, TEXTS / "Pock.java")
    java = ["java", "-Xcheck:jni", f"-Djava.library.path={folder}", "-cp", tmp_path]
    said = run(*java, "pock.Pock", folder, *sizes)
    assert said == "the learning rate is a finite number from 0\n"
    same_as_trainer(program, folder, batches)


class OddNames(nn.Module):
    """Names that Kotlin or its wrapper have a use for, and two outputs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, fun, memory, rate):
        return self.layer(fun) + memory * rate, fun.sum(1)


def wrapper_of_odd_names(folder):
    """Its class in Kotlin, in a package of its own."""
    example = (torch.zeros(8, 6), torch.zeros(8, 4), torch.zeros(8, 4))
    exported = torch.export.export(OddNames().eval(), example)
    deploy(pock.compile(exported, target="android-arm64"), folder / "odd", build=False)
    text = (folder / "odd/android/kotlin/pock/Pock.kt").read_text()
    (folder / "Odd.kt").write_text(text.replace("package pock\n", "package odd\n"))
    return folder / "Odd.kt"


@needs("gcc", "java", "kotlinc")
def test_kotlin(on_java, tmp_path):
    program, folder, batches = on_java
    kotlin = [folder / "android/kotlin/pock/Pock.kt", TEXTS / "Main.kt", wrapper_of_odd_names(tmp_path)]
    run("kotlinc", "-Werror", *kotlin, "-include-runtime", "-d", tmp_path / "main.jar")
    java = ["java", "-Xcheck:jni", f"-Djava.library.path={folder}", "-cp", tmp_path / "main.jar"]
    assert run(*java, "pock.MainKt", folder).splitlines() == [
        "WEIGHTS: the weights are cut short",
        "RATE: the learning rate is a finite number from 0",
        "'target' holds 8 numbers, not 7",
        "DAMAGED: the state is damaged, or is none",
        "'input' is a direct buffer of 384 bytes, in native byte order, aligned to its numbers",
        "the network is closed",
    ]
    same_as_trainer(program, folder, batches)


def test_what_is_not_linked_is_said(tmp_path):
    for target, said in (("android-arm64", "not linked, Kotlin is not compiled"), ("ios", "not linked, Swift is not")):
        program_for(target).save(tmp_path / f"{target}.pock")
        command = ["deploy", str(tmp_path / f"{target}.pock"), "-o", str(tmp_path / target), "--no-build"]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0 and said in " ".join(done.stderr.split())
    assert "**not linked**" in (tmp_path / "android-arm64/android/README.md").read_text()
    assert "**missing**" in (tmp_path / "ios/ios/README.md").read_text()
    assert not [*tmp_path.glob("*/*/jni"), *tmp_path.rglob("libpock.*")]


@pytest.mark.parametrize(
    "triple, phone",
    [
        ("aarch64-unknown-linux-android21", "android"),
        ("x86_64-unknown-linux-android21", None),
        ("arm64-apple-ios14.0", "ios"),
        ("arm64-apple-ios14.0-simulator", None),
        ("arm64-apple-macos", None),
    ],
)
def test_phones_are_known_by_their_triple(triple, phone):
    assert phone_of(SimpleNamespace(manifest={"target": {"triple": triple}})) == phone


def test_too_large_for_java(on_java, tmp_path):
    plan = SimpleNamespace(memory=SimpleNamespace(size=2**31), weights=b"")
    with pytest.raises(
        pock.PockError, match="2,147,483,648 bytes of memory.* and a buffer of Java holds 2,147,483,583"
    ):
        aar.package(tmp_path, Network(on_java[0], plan, SimpleNamespace(nbytes=0)), None)
    assert not list(tmp_path.iterdir())


def test_refusals(tmp_path):
    program = program_for("android-arm64")
    with pytest.raises(pock.PockError, match="built by zig"):
        deploy(program, tmp_path / "net", cc="gcc")
    with pytest.raises(pock.PockError, match="threads for android are not built here"):
        deploy(program, tmp_path / "net", threads=2)
    assert not list(tmp_path.iterdir())
