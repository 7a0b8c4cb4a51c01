"""Bundles for other machines, which emulators run: losses and states are the trainer's here."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pock_tvm as pock
from pock_tvm.deploying.bundle import deploy
from pock_tvm.deploying.toolchain import toolchain_for
from pock_tvm.training.data import ImageFolder, Preprocessing
from tests.numeric import networks
from tests.numeric.parity import worst_difference

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="ziglang is missing (extra deploy)")
STEPS, TOLERANCE = 20, 1e-4
EMULATORS = {
    "linux-x64": [],
    "pi5": ["qemu-aarch64", "-cpu", "cortex-a76", "-L", "/usr/aarch64-linux-gnu"],
    "pi4": ["qemu-aarch64", "-cpu", "cortex-a72", "-L", "/usr/aarch64-linux-gnu"],
    "pi-zero2": ["qemu-aarch64", "-cpu", "cortex-a53", "-L", "/usr/aarch64-linux-gnu"],
    "pi3-32": ["qemu-arm", "-cpu", "cortex-a7", "-L", "/usr/arm-linux-gnueabihf"],
    "riscv64": ["qemu-riscv64", "-cpu", "rv64,v=false", "-L", "/usr/riscv64-linux-gnu"],
    "riscv64-v": ["qemu-riscv64", "-cpu", "rv64,v=true,vlen=128", "-L", "/usr/riscv64-linux-gnu"],
    "win-x64": ["wine"],
}
"""Commands that run a program of each target, on its core where QEMU has it: it knows no other instructions."""

DIFFERENT = ("pi5", "pi3-32", "riscv64", "win-x64")
"""Targets that differ in more than their tiles."""


@pytest.fixture(scope="session")
def wine(tmp_path_factory) -> dict[str, str]:
    """The environment of Wine, with a folder of its own."""
    return {"WINEDEBUG": "-all", "WINEPREFIX": str(tmp_path_factory.mktemp("wine")), "DISPLAY": ""}


@pytest.fixture
def emulator(request: pytest.FixtureRequest) -> list[str]:
    """The command of a target; the test is skipped where it is missing."""
    command = EMULATORS[request.getfixturevalue("target")]
    for needed in (command[:1], command[-1:] if "-L" in command else []):
        if any(shutil.which(each) is None and not Path(each).is_dir() for each in needed):
            pytest.skip(f"{needed[0]} is missing: scripts/install-emulators installs it")
    return command


class Pictures(nn.Module):
    """Convolutions of every kind of schedule, and a frozen weight that kernels read packed or transformed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.wide = nn.Conv2d(16, 32, 3, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 3, stride=2, padding=1, groups=32)
        self.narrow, self.head = nn.Conv2d(32, 12, 1), nn.Linear(12 * 36, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.wide(torch.relu(self.stem(x))))
        return self.head(nn.functional.gelu(self.narrow(nn.functional.relu6(self.depthwise(x)))).flatten(1))


def pictures() -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    return torch.export.export(Pictures().eval(), (torch.zeros(4, 3, 12, 12),))


SCHEMES = {"full": pock.Scheme.full(), "sparse": pock.Scheme({"*": "frozen", "*.bias": "full", "narrow.weight": 0.5})}


@dataclass(frozen=True)
class Lesson:
    """A network, its program for this machine, and a batch: bundles for all targets are compared with that."""

    exported: torch.export.ExportedProgram
    options: dict[str, Any]
    inputs: dict[str, np.ndarray]
    labels: np.ndarray
    rate: float
    program: pock.Program

    @classmethod
    def of(
        cls, exported: torch.export.ExportedProgram, inputs: dict[str, np.ndarray], labels: np.ndarray, rate: float,
        **options: Any,
    ) -> Lesson:  # fmt: skip
        options |= {"optimizer": pock.SGD(momentum=0.9), "check": False}
        return cls(exported, options, inputs, labels, rate, pock.compile(exported, **options))


@functools.cache
def pictures_lesson(scheme: str) -> Lesson:
    x = np.random.default_rng(0).standard_normal((4, 3, 12, 12)).astype("float32")
    return Lesson.of(pictures(), {"x": x}, np.arange(4), 0.01, scheme=SCHEMES[scheme])


@functools.cache
def mcunet_lesson(data: Path) -> Lesson:
    """Frozen weights come prepared; the last 22 biases and the head train, on two flowers."""
    exported = torch.export.load(data / "models" / "mcunet-5fps-flowers12.pt2")
    names = list(exported.state_dict)
    trained = [*(name for name in names[-44:] if name.endswith("bias")), *names[-2:]]
    scheme = pock.Scheme({"*": "frozen", **dict.fromkeys(trained, "full")})
    flowers = ImageFolder(data / "flowers12" / "train", "x", (2, 3, 128, 128), Preprocessing((0.5,) * 3, (0.5,) * 3))
    inputs, labels = flowers.read(np.random.default_rng(0).choice(len(flowers), 2, replace=False), None)
    return Lesson.of(exported, inputs, labels, 1e-4, scheme=scheme, batch=2)


@functools.cache
def minilm_lesson() -> Lesson:
    """Real weights; the head, the biases of the last three blocks, and half of a weight train, on a padded sentence.
    Biases of keys stay: softmax takes no notice of them, and their gradients are rounding errors."""
    shape, blocks = (1, 8), "encoder.encoder.layer.[345]"
    ((inputs, labels),) = networks.sentences(shape, 6, vocabulary=30000, steps=1)(np.random.default_rng(1))
    assert not inputs[1].all(), "the sentence is padded"
    rules = {"*": "frozen", "head.*": "full", f"{blocks}.*.bias": "full", f"{blocks}.*.key.bias": "frozen"}
    scheme = pock.Scheme(rules | {"encoder.encoder.layer.4.intermediate.dense.weight": 0.5})
    named = dict(zip(("input_ids", "attention_mask"), inputs, strict=True))
    return Lesson.of(networks.minilm(*reversed(shape)), named, labels, 1e-3, scheme=scheme)


@pytest.mark.parametrize(
    ("target", "scheme"),
    [*((target, "full") for target in EMULATORS), *((target, "sparse") for target in DIFFERENT)],
)
def test_a_small_network_trains_the_same(target: str, scheme: str, emulator, wine, tmp_path) -> None:
    check_training(pictures_lesson(scheme), target, emulator, wine, tmp_path)


@functools.cache
def eight_bits_lesson() -> Lesson:
    """The first three convolutions compute in eight bits, one of them depthwise; what is behind them trains."""
    x = np.random.default_rng(0).standard_normal((4, 3, 12, 12)).astype("float32")
    scheme = pock.Scheme({"*": "frozen", "narrow.*": "full", "head.*": "full"})
    options = {"scheme": scheme, "frozen": "int8", "calibrate_with": x}
    lesson = Lesson.of(pictures(), {"x": x}, np.arange(4), 0.01, **options)
    assert len(lesson.program.manifest["quantized"]["layers"]) == 3
    return lesson


@pytest.mark.parametrize("target", ["pi5", "riscv64"])
def test_frozen_layers_in_eight_bits_are_the_same(target: str, emulator, wine, tmp_path) -> None:
    check_training(eight_bits_lesson(), target, emulator, wine, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["pi3-32", "win-x64"])
def test_mcunet_trains_the_same(target: str, emulator, wine, tmp_path, shared_data) -> None:
    check_training(mcunet_lesson(shared_data), target, emulator, wine, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["pi5", "riscv64"])
def test_minilm_trains_the_same(target: str, emulator, wine, tmp_path) -> None:
    check_training(minilm_lesson(), target, emulator, wine, tmp_path)


def check_training(lesson: Lesson, target: str, emulator: list[str], wine: dict[str, str], folder: Path) -> None:
    """Train on one batch, here and there: every loss and all of the state are equal."""
    bundle = deploy(pock.compile(lesson.exported, target=target, **lesson.options), folder / "net")
    main = bundle / ("main.exe" if target == "win-x64" else "main")
    columns = np.hstack([each.reshape(len(each), -1) for each in lesson.inputs.values()])
    rows = [
        ",".join([*(f"{number:.9g}" for number in row), str(label)])
        for row, label in zip(columns, lesson.labels, strict=True)
    ]
    (bundle / "data.csv").write_text("\n".join(rows) + "\n")
    done = subprocess.run(
        [*emulator, main, "data.csv", str(lesson.rate), str(STEPS), "state"],
        cwd=bundle, env=os.environ | wine, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    here, there = pock.Trainer(lesson.program), pock.Trainer(lesson.program)
    expected = [here.step(lesson.inputs, lesson.labels, lr=lesson.rate) for _ in range(STEPS)]
    losses = [float(each) for each in re.findall(r"loss (\S+)", done.stdout)]
    np.testing.assert_allclose(losses, expected, rtol=TOLERANCE)
    there.restore(bundle / "state")
    assert there.steps == STEPS
    worst, name = difference(there, here)
    print(
        f"{target}: losses within {np.max(np.abs(np.divide(losses, expected) - 1)):.1e}, the state within {worst:.1e}"
    )
    assert worst <= TOLERANCE, f"{name}: {worst:.1e}"


def difference(there: pock.Trainer, here: pock.Trainer) -> tuple[float, str]:
    """The largest difference of an update or a momentum, relative to its norm, and its parameter."""
    momenta, expected = there.optimizer_state("momentum_buffer"), here.optimizer_state("momentum_buffer")
    assert all(np.isfinite(array).all() for array in (*momenta.values(), *there.weights().values()))
    norms = [(np.linalg.norm(momenta[name] - each) / np.linalg.norm(each), name) for name, each in expected.items()]
    return max(worst_difference(here.program, there.weights(), here.weights()), *norms)


def test_a_library_for_macos_has_its_load_commands_and_symbols(tmp_path) -> None:
    objdump = shutil.which("llvm-objdump-19")
    if objdump is None:
        pytest.skip("llvm-objdump-19 is missing: scripts/install-emulators installs it")
    bundle = deploy(pock.compile(pictures(), target="m1", check=False), tmp_path / "net")

    def shown(option: str, name: str) -> str:
        command = [objdump, "--macho", option, bundle / name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    for name, kind in (("libpock.dylib", "DYLIB"), ("main", "EXECUTE")):
        headers = shown("--private-headers", name)
        assert re.search(rf"MH_MAGIC_64\s+ARM64\s.*\s{kind}\s", headers)
        assert re.findall(r"platform (\S+)", headers) == ["macos"]
        assert "LC_CODE_SIGNATURE" in headers, "an M1 runs nothing that is not signed, if only ad hoc"
        named = set(re.findall(r"name (\S+) \(offset", headers)) - {"/usr/lib/dyld"}
        assert named == {"/usr/lib/libSystem.B.dylib", *(["@rpath/libpock.dylib"] if kind == "DYLIB" else [])}
    exported = set(re.findall(r"_(pock_\w+)", shown("--exports-trie", "libpock.dylib")))
    functions = "init set_rate train_step predict save_state load_state free reason"
    assert {f"pock_{name}" for name in functions.split()} <= exported


def test_a_system_whose_c_library_zig_lacks_is_named() -> None:
    with pytest.raises(pock.PockError, match="zig has no C library for riscv64-unknown-elf.*build=False"):
        toolchain_for("riscv64-unknown-elf", "zig")


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is missing")
def test_a_compiler_for_another_machine_is_refused() -> None:
    with pytest.raises(pock.PockError, match="compiled for s390x-unknown-linux-gnu, and 'gcc' builds for "):
        toolchain_for("s390x-unknown-linux-gnu", "gcc")
