"""Programs for Cortex-M boards, run under an emulator: they train as those for this machine do."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import pock_tvm as pock
from pock_tvm.cli import app
from pock_tvm.compiler.footprint.needs import STACK_BYTES, limited_bytes, needs_of
from pock_tvm.compiler.machines import MACHINES
from pock_tvm.deploying.boards import BOARDS
from pock_tvm.deploying.bundle import deploy
from pock_tvm.deploying.preparation import prepared_weights
from pock_tvm.errors import MemoryBudgetError

from ..networks import Small
from .boards import STEPS, Spotter, assert_trains_alike, noise

GCC, EMULATOR, ZIG = "arm-none-eabi-gcc", "qemu-system-arm", "zig"
SECONDS = 300
needs_emulator = pytest.mark.skipif(
    not (shutil.which(GCC) and shutil.which(EMULATOR)),
    reason="needs Debian's gcc-arm-none-eabi, libnewlib-arm-none-eabi and qemu-system-arm",
)


class Coarse(nn.Module):
    """A frozen first layer, whose inputs are larger than all that follows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 8, 3, padding=1)
        self.wide, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.wide(torch.relu(self.deep(torch.relu(self.stem(x)))))).mean((2, 3)))


NETWORKS = {
    "keyword spotter": (Spotter, (2, 1, 49, 10), 10, {"optimizer": pock.SGD(momentum=0.9)}),
    "image network": (
        Small, (4, 3, 8, 8), 5,
        {"scheme": pock.Scheme({"*": "frozen", "blocks.1.conv*.weight": 0.5, "*.bias": "full"}), "clip_norm": 1.0,
         "optimizer": pock.AdamW(), "accumulate": 2},
    ),
    "large inputs": (
        Coarse, (4, 3, 32, 32), 4,
        {"scheme": pock.Scheme({"*": "frozen", "wide.*": "full", "head.*": "full"}), "memory_budget": 90_000},
    ),
}  # fmt: skip


def exported(name: str) -> torch.export.ExportedProgram:
    make, shape, _, _ = NETWORKS[name]
    torch.manual_seed(0)
    return torch.export.export(make().eval(), (torch.zeros(shape),))


@functools.cache
def program_of(name: str, target: str) -> pock.Program:
    return compiled(name, target)


def compiled(name: str, target: object, **options: object) -> pock.Program:
    given = {"batch_norm": "frozen", "check": False} | NETWORKS[name][3] | options
    return pock.compile(exported(name), target=target, **given)


def emulate(folder: Path, machine: str, code: int = 0) -> str:
    """Run a bundle's program, which ends with an exit code, and return what it prints."""
    board = next(board.name for board in BOARDS if board.cpu == machine)
    done = subprocess.run(
        [EMULATOR, "-M", board, "-nographic", "-monitor", "none", "-serial", "none", "-semihosting-config",
         "enable=on,target=native", "-kernel", "network.elf"],
        cwd=folder, capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    return said


@needs_emulator
@pytest.mark.parametrize(
    ("name", "machine", "cc", "source"),
    [
        ("keyword spotter", "cortex-m7", GCC, False),
        ("keyword spotter", "cortex-m33", ZIG, True),
        ("image network", "cortex-m33", GCC, True),
        ("image network", "cortex-m7", ZIG, False),
        ("image network", "cortex-m7", ZIG, True),
        ("large inputs", "cortex-m7", GCC, False),
    ],
)
def test_networks_train_on_boards(name: str, machine: str, cc: str, source: bool, tmp_path: Path) -> None:
    if cc == ZIG:
        pytest.importorskip("ziglang", reason="needs ziglang (the extra deploy)")
    _, shape, classes, _ = NETWORKS[name]
    program, samples = program_of(name, machine), noise(shape, classes, batches=3)
    folder = deploy(program, tmp_path / "net", cc=cc, source=source, samples=samples)
    host = program_of(name, "host")
    assert assert_trains_alike(emulate(folder, machine), folder, host, samples) < STACK_BYTES
    # A second run goes on from the first one's state. One that is damaged is refused, and left alone.
    emulate(folder, machine)
    trainer = pock.Trainer(host, threads=1)
    trainer.restore(folder / "state.ckpt")
    assert trainer.steps == 2 * STEPS
    damaged = (folder / "state.ckpt").read_bytes()[:-1]
    (folder / "state.ckpt").write_bytes(damaged)
    assert "damaged" in emulate(folder, machine, code=1)
    assert (folder / "state.ckpt").read_bytes() == damaged
    # What was said before it was built is about what was built.
    needs, sizes = needs_of(program), section_sizes(folder / "network.elf")
    in_flash, given = sizes["text"] + sizes["data"], 4 * samples["x"].size + 8 * samples["y"].size
    assert (0.4 if source else 0.6) * needs.flash < in_flash - given <= needs.flash
    assert sizes["data"] + sizes["bss"] <= needs.ram
    assert needs.memory + STACK_BYTES <= needs.ram


def section_sizes(path: Path) -> dict[str, int]:
    names, numbers = subprocess.run(
        ["arm-none-eabi-size", str(path)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return dict(zip(names.split()[:3], map(int, numbers.split()[:3]), strict=True))


@needs_emulator
def test_mcunet_trains_in_256_kib(shared_data: Path, tmp_path: Path) -> None:
    """Head, all biases and a 1x1 weight of MCUNet at 64 px, batch 1, in 256 KiB with its stack: the whole RAM of the
    board, in which it trains, writes its state, and goes on from it."""
    path = shared_data / "models" / "mcunet-5fps-flowers12.pt2"
    if not path.exists():
        pytest.skip(f"{path.name} is missing")
    module = torch.export.load(path).module(check_guards=False)
    module._forward_pre_hooks.clear()  # they hold it to 128 px
    shape = (1, 3, 64, 64)
    model = torch.export.export(module, (torch.zeros(shape),))
    rules = {"*": "frozen", "classifier.*": "full", "*.bias": "full", "blocks.4.layers.0.conv.weight": "full"}
    options = {"scheme": pock.Scheme(rules), "batch_norm": "frozen", "check": False}
    device = {"flash": "4MB", "ram": "256KiB"}
    program = pock.compile(model, target="cortex-m7", **device, **options)
    samples = noise(shape, 12, batches=4)
    folder = deploy(program, tmp_path / "net", cc=GCC, samples=samples, **device)
    host = pock.compile(model, **options)
    stack = assert_trains_alike(emulate(folder, "cortex-m7"), folder, host, samples)
    assert stack < STACK_BYTES
    emulate(folder, "cortex-m7")
    trainer = pock.Trainer(host, threads=1)
    trainer.restore(folder / "state.ckpt")
    assert trainer.steps == 2 * STEPS


@pytest.mark.parametrize(
    "target", ["cortex-m7", {"kind": "llvm", "mtriple": "aarch64-unknown-none-elf", "mcpu": "cortex-a53"}], ids=str
)
def test_weights_are_prepared_for_other_machines(target: object) -> None:
    """The same values as on this machine, whatever layout the target's kernels read them in."""
    host = prepared_weights(program_of("image network", "host"))
    found = prepared_weights(compiled("image network", target))
    assert found.keys() == host.keys() and found
    for name, array in found.items():
        np.testing.assert_array_equal(np.sort(array[array != 0]), np.sort(host[name][host[name] != 0]), err_msg=name)


def test_more_than_the_device_has_is_refused(tmp_path: Path) -> None:
    program = program_of("keyword spotter", "cortex-m7")
    needs = needs_of(program)
    with pytest.raises(pock.PockError, match=r"cortex-m7 has 32\.0 KB of flash, and this program needs [\d.]+ KB more"):
        deploy(program, tmp_path / "net", flash="32KB", build=False)
    with pytest.raises(pock.PockError, match=r"of RAM, and this program needs 0\.1 KB more") as caught:
        deploy(program, tmp_path / "net", ram=needs.ram - 100, build=False)
    with pytest.raises(pock.PockError, match=r"KB are trained weights, .* which no program avoids: train less"):
        deploy(program, tmp_path / "net", ram=needs.unavoidable + STACK_BYTES - 1, build=False)
    assert not (tmp_path / "net").exists()
    # What it says to change does help.
    ram = int(re.search(r"Compile it with ram=(\d+)", str(caught.value))[1])
    assert ram == needs.ram - 100
    deploy(compiled("keyword spotter", "cortex-m7", ram=ram), tmp_path / "net", ram=ram, build=False)
    with pytest.raises(pock.PockError, match=r"cortex-m7 has 32\.0 KB of flash"):
        compiled("keyword spotter", "cortex-m7", flash="32KB")


@pytest.mark.parametrize(
    ("name", "fits"), [("keyword spotter", True), ("image network", False), ("large inputs", True)]
)
def test_programs_are_made_to_fit_the_ram(name: str, fits: bool) -> None:
    """A program fits, or what is said to be needed is more, and does."""

    def planned(**options: object) -> pock.Program:
        return compiled(name, "cortex-m7", **({"memory_budget": None, "build": False} | options))

    budget = int(0.7 * limited_bytes(planned())[0])
    if fits:
        program = planned(ram=budget + STACK_BYTES)
    else:
        with pytest.raises(MemoryBudgetError, match="the smallest program needs") as caught:
            planned(ram=budget + STACK_BYTES)
        assert caught.value.smallest > budget
        budget = caught.value.smallest
        program = planned(memory_budget=budget)
    assert limited_bytes(program)[0] <= budget


def test_refusals(tmp_path: Path) -> None:
    program = program_of("image network", "cortex-m33")
    with pytest.raises(pock.PockError, match="leave threads=2 out"):
        deploy(program, tmp_path / "net", threads=2, build=False)
    with pytest.raises(pock.PockError, match="there is no C compiler 'nocc'"):
        deploy(program, tmp_path / "net", cc="nocc")
    with pytest.raises(pock.PockError, match="no amount of memory"):
        deploy(program, tmp_path / "net", ram="little", build=False)
    program.save(tmp_path / "slim.pock", slim=True)
    with pytest.raises(pock.PockError, match="left out"):
        needs_of(pock.Program.load(tmp_path / "slim.pock"))
    assert not (tmp_path / "net").exists()


def test_limits_are_for_microcontrollers(tmp_path: Path) -> None:
    with pytest.raises(pock.PockError, match="is no microcontroller: leave flash= and ram= out"):
        compiled("image network", "host", ram="1MB")
    core = MACHINES["cortex-m7"].target() | {"mcpu": "cortex-m4"}
    with pytest.raises(pock.PockError, match="cortex-m4 core has is not known: give flash= and ram="):
        compiled("image network", core, ram="1MB")
    with pytest.raises(pock.PockError, match="cortex-m4 has 9.0 KB of flash"):
        compiled("image network", core, flash="9KB", ram="1MB")
    program = compiled("image network", core)
    with pytest.raises(pock.PockError, match="cortex-m4 core has is not known: give flash= and ram="):
        deploy(program, tmp_path / "net", build=False)
    with pytest.raises(pock.PockError, match="there is no board with a cortex-m4 core"):
        deploy(program, tmp_path / "net", build=False, flash="1MB", ram="1MB")


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ({"x": np.zeros((4, 3, 8, 8), "float32")}, "the samples lack 'y': they hold x"),
        ({"x": np.zeros((3, 3, 8, 8), "float32"), "y": np.zeros(4, int)}, "'x' have the shape"),
        ({"x": np.zeros((4, 3, 9, 8), "float32"), "y": np.zeros(4, int)}, "'x' have the shape"),
        ({"x": np.zeros((8, 3, 8, 8), "float32"), "y": np.zeros(4, int)}, "give as many of each"),
        ({"x": np.zeros((4, 3, 8, 8), "float32"), "y": np.zeros(4)}, "'y' are float64"),
    ],
)
def test_samples_that_do_not_fit(samples: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    with pytest.raises(pock.PockError, match=message):
        deploy(program_of("image network", "cortex-m33"), tmp_path / "net", samples=samples, build=False)
    assert not (tmp_path / "net").exists()


def test_command_line(tmp_path: Path) -> None:
    def run(*arguments: object) -> tuple[int, str]:
        done = CliRunner(env={"COLUMNS": "400"}).invoke(app, [str(each) for each in arguments])
        return done.exit_code, done.output + str(done.exception or "")

    model, program, folder = tmp_path / "net.pt2", tmp_path / "net.pock", tmp_path / "net"
    torch.export.save(exported("keyword spotter"), model)
    command = ["compile", model, "-o", program, "--target", "cortex-m7", "--no-check"]
    code, said = run(*command, "--ram", "64KB")
    assert code and "more" in said and "ram= says how much there is" in said and not program.exists()
    code, said = run(*command)
    assert code == 0 and "needs flash" in said
    np.savez(tmp_path / "data.npz", **noise((2, 1, 49, 10), 10, batches=2))
    code, said = run("deploy", program, "-o", folder, "--no-build", "--samples", tmp_path / "data.npz")
    assert code == 0 and "needs flash" in said
    assert "BATCHES 2" in (folder / "samples.h").read_text() and (folder / "weights.c").exists()
    code, said = run("deploy", program, "-o", folder, "--no-build", "--samples", model)
    assert code and "holds no array 'x'" in said
