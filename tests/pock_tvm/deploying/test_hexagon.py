"""Programs for Hexagon DSPs, run under qemu-hexagon: they train as those for this machine do."""

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

import pock_tvm as pock
from pock_tvm.compiler.targets import resolve_target
from pock_tvm.deploying.bundle import deploy
from pock_tvm.deploying.hexagon import CLANG, check_alignment
from pock_tvm.deploying.maker import network_of
from tests.schedules import hexagon

from .boards import RATE, Spotter, assert_trains_alike, noise

SECONDS = 300


class Block(nn.Module):
    """Transformer block with two heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.behind = nn.LayerNorm(width), nn.LayerNorm(width)
        self.joined, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.joined(self.before(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        return x + self.narrow(nn.functional.gelu(self.wide(self.behind(x))))


class Transformer(nn.Module):
    """Two blocks on frames of features."""

    def __init__(self, features: int = 8, width: int = 32, classes: int = 4) -> None:
        super().__init__()
        self.words, self.blocks = nn.Linear(features, width), nn.ModuleList(Block(width) for _ in range(2))
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.words(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


SPARSE = pock.Scheme({"*": "frozen", "wide.2.*": "full", "deep.2.bias": "full", "head.*": "full"})
LATE = pock.Scheme({"*": "frozen", "blocks.1.*": "full", "head.*": "full"})
NETWORKS = {
    "keyword spotter": (Spotter, (2, 1, 49, 10), 10, {"optimizer": pock.AdamW()}),
    "keyword spotter in eight bits": (Spotter, (2, 1, 49, 10), 10, {"scheme": SPARSE, "frozen": "int8"}),
    "transformer": (Transformer, (2, 6, 8), 4, {"optimizer": pock.SGD(momentum=0.9), "scheme": LATE}),
    "transformer in eight bits": (Transformer, (2, 6, 8), 4, {"scheme": LATE, "frozen": "int8"}),
}
"""Networks, shapes of their inputs, classes, options."""


@functools.cache
def compiled(name: str, target: str) -> pock.Program:
    make, shape, classes, options = NETWORKS[name]
    torch.manual_seed(0)
    exported = torch.export.export(make().eval(), (torch.zeros(shape),))
    if "frozen" in options:
        options = options | {"calibrate_with": noise(shape, classes, 2)["x"]}
    return pock.compile(exported, target=target, check=False, **options)


def emulate(folder: Path, code: int = 0) -> str:
    done = subprocess.run(
        [hexagon.emulator(), "network.elf"], cwd=folder, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("keyword spotter", "v66"),
        ("keyword spotter in eight bits", "v73"),
        ("transformer", "v66"),
        ("transformer in eight bits", "v73"),
    ],
)
def test_networks_train_the_same(name: str, version: str, tmp_path: Path) -> None:
    hexagon.emulator()
    _, shape, classes, _ = NETWORKS[name]
    samples = noise(shape, classes, batches=3)
    program, host = compiled(name, f"hexagon-{version}"), compiled(name, "host")
    folder = deploy(program, tmp_path / "net", samples=samples)
    assert_trains_alike(emulate(folder), folder, host, samples)
    damaged = (folder / "state.ckpt").read_bytes()[:-1]
    (folder / "state.ckpt").write_bytes(damaged)
    assert "damaged" in emulate(folder, code=1)


@pytest.mark.slow
@pytest.mark.parametrize(("version", "frozen"), [("v66", "float32"), ("v73", "int8")])
def test_mcunet_trains_the_same(version: str, frozen: str, shared_data: Path, tmp_path: Path) -> None:
    """Head and the last biases of MCUNet at 64 px; what is before them in floats or in eight bits."""
    hexagon.emulator()
    samples = noise((1, 3, 64, 64), 12, batches=4)
    program, host = (mcunet(shared_data, target, frozen, samples["x"]) for target in (f"hexagon-{version}", "host"))
    folder = deploy(program, tmp_path / "net", samples=samples)
    assert_trains_alike(emulate(folder), folder, host, samples)


def mcunet(shared_data: Path, target: str, frozen: str, data: np.ndarray) -> pock.Program:
    module = torch.export.load(shared_data / "models" / "mcunet-5fps-flowers12.pt2").module(check_guards=False)
    module._forward_pre_hooks.clear()  # they hold it to 128 px
    exported = torch.export.export(module, (torch.zeros(1, 3, 64, 64),))
    names = [name for name in exported.state_dict if name.endswith("bias")][-12:]
    scheme = pock.Scheme({"*": "frozen", "classifier.*": "full", **dict.fromkeys(names, "full")})
    options = {"frozen": frozen, "calibrate_with": data} if frozen == "int8" else {}
    return pock.compile(exported, scheme=scheme, target=target, batch_norm="frozen", check=False, **options)


SHARED_MAIN = """
#include "board.h"
#include "dsp/pock_shared.h"
#include "pock.h"
#include "samples.h"
#include <string.h>
static pock_shared shared;
static unsigned char state[POCK_STATE_BYTES];
int main(void) {
  if (pock_shared_begin(&shared)) return 1;
  shared.rate = 0.01f;
  for (unsigned step = 0; step < 2; step++) {
    memcpy(shared.batch.x, sample_x[step], sizeof shared.batch.x);
    memcpy(shared.batch.target, sample_target[step], sizeof shared.batch.target);
    if (pock_shared_step(&shared)) return 2;
  }
  if (pock_shared_save(&shared, state, sizeof state)) return 3;
  if (pock_shared_load(&shared, state, sizeof state - 1) != POCK_DAMAGED || !shared.reason[0]) return 4;
  if (pock_shared_load(&shared, state, sizeof state)) return 5;
  shared.batch.target[0] = 99;
  if (pock_shared_step(&shared) != POCK_INPUT || shared.code != POCK_INPUT) return 6;
  board_print(shared.reason);
  if (pock_shared_predict(&shared) || shared.reason[0]) return 7;
  board_file file;
  size_t bytes = offsetof(pock_shared, memory);
  return board_open(&file, "shared.bin", 1) != BOARD_OPEN || board_write(&file, &shared, bytes);
}
"""


def test_a_host_shares_the_memory(tmp_path: Path) -> None:
    """A step is one call on memory whose layout is the same on a host."""
    hexagon.emulator()
    _, shape, classes, _ = NETWORKS["transformer"]
    samples = noise(shape, classes, batches=2)
    program, host = compiled("transformer", "hexagon-v66"), compiled("transformer", "host")
    folder = deploy(program, tmp_path / "net", samples=samples, build=False)
    (folder / "main.c").write_text(SHARED_MAIN)
    subprocess.run(["make", "-s", "-C", folder], check=True, timeout=SECONDS)
    assert "the target holds the label 99, which is out of range" in emulate(folder)
    memory = (folder / "shared.bin").read_bytes()
    trainer = pock.Trainer(host, threads=1)
    batches = [(samples["x"][at : at + 2], samples["y"][at : at + 2]) for at in (0, 2)]
    losses = [trainer.step(x, y, lr=RATE) for x, y in batches]
    assert np.frombuffer(memory, "float32", 1, 8)[0] == pytest.approx(losses[1], rel=1e-4)
    header = (folder / "dsp" / "pock_shared.h").read_text()
    ((name, place),) = re.findall(r"offsetof\(pock_shared, results\.(\w+)\) == (\d+)", header)
    found = np.frombuffer(memory, "float32", 2 * classes, int(place)).reshape(2, classes)
    np.testing.assert_allclose(found, trainer.predict(batches[1][0]), rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is missing")
def test_a_hosts_compiler_agrees_on_the_layout(tmp_path: Path) -> None:
    """Assertions in the header compare each offset, here for 64 bits."""
    folder = deploy(compiled("transformer", "hexagon-v66"), tmp_path / "net", build=False)
    command = ["gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-DPOCK_WITHOUT_SDK", "-Idsp"]
    subprocess.run([*command, "dsp/host.c"], cwd=folder, check=True)
    spoiled = re.sub(r"(offsetof\(pock_shared, memory\) == )", r"\g<1>1", (folder / "dsp/pock_shared.h").read_text())
    (folder / "dsp/pock_shared.h").write_text(spoiled)
    assert subprocess.run([*command, "dsp/host.c"], cwd=folder, capture_output=True).returncode


ARITHMETIC = """
#include "board.h"
enum { COUNT = 2000 };
static _Alignas(8) struct { double d[2]; float f[2]; int32_t i[2]; int64_t l[2]; } in[COUNT];
static _Alignas(8) struct { double product, quotient; float ratio, root; int32_t i[2]; int64_t l[2]; } out[COUNT];
float __hexagon_sqrtf(float);
int main(void) {
  board_file file;
  if (board_open(&file, "in.bin", 0) != BOARD_OPEN || board_read(&file, 0, in, sizeof in)) return 1;
  for (int n = 0; n < COUNT; n++) {
    out[n].product = in[n].d[0] * in[n].d[1];
    out[n].quotient = in[n].d[0] / in[n].d[1];
    out[n].ratio = in[n].f[0] / in[n].f[1];
    out[n].root = __hexagon_sqrtf(in[n].f[0]);
    out[n].i[0] = in[n].i[0] / in[n].i[1], out[n].i[1] = in[n].i[0] % in[n].i[1];
    out[n].l[0] = in[n].l[0] / in[n].l[1], out[n].l[1] = in[n].l[0] % in[n].l[1];
  }
  return board_open(&file, "out.bin", 1) != BOARD_OPEN || board_write(&file, out, sizeof out);
}
"""
SPECIAL = [0.0, -0.0, 1.0, -3.0, np.inf, -np.inf, np.nan, 5e-324, 2.2e-308, 1e-310, 1.7e308, 1e-45, 1.2e-38, 3e38]


@pytest.mark.parametrize("version", ["v66", "v73"])
def test_arithmetic_without_instructions_is_rounded_to_the_nearest(version: str, tmp_path: Path) -> None:
    hexagon.emulator()
    rng, count = np.random.default_rng(0), 2000
    numbers = rng.integers(0, 2**64, (count, 2), "uint64").view("float64")
    numbers[: len(SPECIAL) ** 2] = [(a, b) for a in SPECIAL for b in SPECIAL]
    numbers[1000:] = rng.standard_normal((1000, 2))
    given = np.zeros(count, [("d", "f8", 2), ("f", "f4", 2), ("i", "i4", 2), ("l", "i8", 2)])
    with np.errstate(all="ignore"):
        given["d"], given["f"] = numbers, numbers.astype("float32")
        given["f"][500:1000] = rng.integers(0, 2**32, (500, 2), "uint64").astype("uint32").view("float32")
        given["i"], given["l"] = (
            rng.integers(-(2**31), 2**31, (count, 2)),
            rng.integers(-(2**63), 2**63 - 1, (count, 2)),
        )
        given["i"][::2, 1] >>= rng.integers(8, 29, count // 2, "int32")
        given["l"][::2, 1] >>= rng.integers(8, 60, count // 2)
        given["i"][given["i"] == 0], given["l"][given["l"] == 0] = 7, 7
        given.tofile(tmp_path / "in.bin")
        program = hexagon.linked(tmp_path, {"main.c": ARITHMETIC}, version)
        subprocess.run([hexagon.emulator(), program], cwd=tmp_path, check=True, timeout=SECONDS)
        found = np.fromfile(
            tmp_path / "out.bin",
            [("product", "f8"), ("quotient", "f8"), ("ratio", "f4"), ("root", "f4"), ("i", "i4", 2), ("l", "i8", 2)],
        )
        (a, b), (x, y) = given["d"].T, given["f"].T
        expected = {"product": a * b, "quotient": a / b, "ratio": x / y, "root": np.sqrt(x)}
    for name, values in expected.items():
        kinds = f"u{values.itemsize}"
        wrong = (found[name].view(kinds) != values.view(kinds)) & ~(np.isnan(found[name]) & np.isnan(values))
        assert not wrong.any(), f"{name}: {np.flatnonzero(wrong)[:5]}, {found[name][wrong][:5]}, {values[wrong][:5]}"
    for name in "il":
        n, d = given[name].T
        quotient = np.array([abs(int(p)) // abs(int(q)) * (-1 if (p < 0) != (q < 0) else 1) for p, q in given[name]])
        np.testing.assert_array_equal(found[name][:, 0], quotient)
        np.testing.assert_array_equal(found[name][:, 1], n - quotient * d)


def test_vectors_that_begin_elsewhere_are_refused() -> None:
    network = network_of(compiled("keyword spotter in eight bits", "hexagon-v73"))
    check_alignment(network)
    network.plan.memory.arena += 4
    with pytest.raises(pock.PockError, match="begins at byte .* are read at multiples of"):
        check_alignment(network)


def test_what_hexagon_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(pock.PockError, match="'hexagon-v99' is no Hexagon target.*hexagon-v66, hexagon-v68"):
        resolve_target("hexagon-v99")
    without = {"kind": "llvm", "mtriple": "hexagon-unknown-linux-musl", "mcpu": "hexagonv66"}
    with pytest.raises(pock.PockError, match="needs HVX with vectors of 128 bytes"):
        resolve_target(without)
    program = compiled("transformer", "hexagon-v66")
    for options, message in (
        ({"threads": 2}, "a step is one call of the DSP, on one thread: leave threads=2 out"),
        ({"ram": "1MB"}, "is no microcontroller"),
        ({"cc": "nowhere"}, "there is no nowhere, which bundles for Hexagon are built by"),
    ):
        with pytest.raises(pock.PockError, match=message):
            deploy(program, tmp_path / "net", **options)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(pock.PockError, match=f"there is no {CLANG} and no .*build=False"):
        deploy(program, tmp_path / "net")
    assert not (tmp_path / "net").exists()
