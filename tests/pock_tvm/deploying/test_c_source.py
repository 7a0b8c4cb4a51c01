"""The source form of kernels against their objects, with vector extensions and without."""

from __future__ import annotations

import ctypes
import functools
import io
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import tvm
from torch import nn
from tvm import te, tirx

import pock_tvm as pock
from pock_tvm.compiler.targets import resolve_target
from pock_tvm.deploying.c_source import kernel_sources
from pock_tvm.device.runtime import CORES
from pock_tvm.errors import BuildError
from schedules.cpu import cpu_target
from schedules.cpu.lower import scratch_of
from tests.pock_tvm.networks import small, tokens

COMPILER = shutil.which("gcc") or shutil.which("cc")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
WARNINGS = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-fPIC"]
FORMS = {"extensions": ["-O1", "-march=native"], "loops": ["-O1", "-march=native", "-DPOCK_SCALAR"]}
LAUNCHER = """
#include "pock_kernels.h"
enum { TASKS = 2 };
int pock_launch(pock_task *task, void *data, int tasks)
{
    pock_group group = {0, tasks ? tasks : TASKS};
    for (int each = group.num_task - 1; each >= 0; --each) {
        if (task(each, &group, data)) {
            return -1;
        }
    }
    return 0;
}
int (*const __TVMBackendParallelLaunch)(pock_task *, void *, int) = pock_launch;
"""


class Convolutions(nn.Module):
    """Convolutions of all kinds, norms, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1, groups=16),
            nn.Hardswish(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, stride=2, padding=1, groups=2),
            nn.GroupNorm(4, 32),
            nn.SiLU(),
            nn.ConvTranspose2d(32, 16, 2, stride=2),
            nn.AvgPool2d(2),
            nn.Conv2d(16, 64, 3, padding=1),
            nn.ReLU6(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 5),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class Attention(nn.Module):
    """A transformer's layer over words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 32)
        self.layer = nn.TransformerEncoderLayer(
            32, 4, 64, dropout=0.0, batch_first=True, activation="gelu", norm_first=True
        )
        self.head = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.words(x)).mean(1))


def exported(model: nn.Module, *inputs: torch.Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(model.eval(), inputs)


NETWORKS: dict[str, Callable[[], pock.Program]] = {
    "convolutions": lambda: pock.compile(
        exported(Convolutions(), torch.randn(4, 3, 32, 32)),
        scheme=pock.Scheme.full(),
        optimizer=pock.SGD(momentum=0.9, nesterov=True),
        batch_norm="batch",
    ),
    "attention": lambda: pock.compile(
        exported(Attention(), torch.zeros(4, 16, dtype=torch.long)), scheme=pock.Scheme.full(), optimizer=pock.AdamW()
    ),
    "residual": lambda: pock.compile(small(4), scheme=pock.Scheme.full(), loss="mse", batch_norm="frozen"),
    "tokens": lambda: pock.compile(tokens(), scheme=pock.Scheme.full(), optimizer=pock.Adam()),
    "small vectors": lambda: pock.compile(
        small(4),
        scheme=pock.Scheme({"*": 0.5}),
        batch_norm="frozen",
        loss=pock.Loss("cross_entropy", label_smoothing=0.1),
        target={"kind": "llvm", "mtriple": resolve_target("host").attrs["mtriple"], "num-cores": 2},
    ),
}


@functools.cache
def program(name: str) -> pock.Program:
    torch.manual_seed(0)
    return NETWORKS[name]()


def library(folder: Path, sources: dict[str, str], objects: dict[str, bytes], *flags: str) -> ctypes.CDLL:
    """Sources and objects, compiled and linked."""
    for name, content in (sources | {"launcher.c": LAUNCHER}).items():
        (folder / name).write_text(content)
    for name, code in objects.items():
        (folder / name).write_bytes(code)

    def compiled(name: str) -> Path:
        path = folder / f"{name}.o"
        done = subprocess.run([COMPILER, *WARNINGS, *flags, "-c", folder / name, "-o", path], capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        return path

    names = [name for name in (*sources, "launcher.c") if name.endswith(".c")]
    with ThreadPoolExecutor(CORES) as pool:
        built = [*pool.map(compiled, names), *(folder / name for name in objects)]
    subprocess.run([COMPILER, "-shared", *built, "-lm", "-o", folder / "kernels.so"], check=True)
    return ctypes.CDLL(str(folder / "kernels.so"))


def members(program: pock.Program) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(program.kernels)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def operands(func: tirx.PrimFunc, rng: np.random.Generator, *, extremes: bool) -> Iterator[np.ndarray]:
    """Random operands of a kernel: integers that are indices of anything, floats that may be extreme."""
    for param in func.params:
        shape, dtype = [int(extent) for extent in param.ty.shape], str(param.ty.dtype)
        if dtype == "bool":
            yield np.asarray(rng.integers(0, 2, shape), "uint8")
        elif dtype == "uint8":
            yield np.asarray(rng.integers(0, 256, shape), dtype)
        elif "int" in dtype:
            yield np.asarray(rng.integers(0, 3, shape), dtype)
        else:
            values = np.abs(np.asarray(rng.standard_normal(shape), dtype))  # a variance is not negative
            if extremes:
                values = np.where(rng.random(shape) < 0.2, rng.choice(EXTREMES, shape), values).astype(dtype)
            yield np.asarray(values)


EXTREMES = [np.nan, np.inf, -np.inf, 0.0, -0.0, -1.0, 1e30, -1e30, 90.0, -90.0, 1e-40]


def addresses(arrays: list[np.ndarray]) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(array.ctypes.data) for array in arrays]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_kernels_compute_what_their_objects_do(name: str, form: str, tmp_path: Path) -> None:
    found = program(name)
    files, packed = kernel_sources(found), members(found)
    (tmp_path / "source").mkdir()
    (tmp_path / "object").mkdir()
    source = library(tmp_path / "source", files, {}, *FORMS[form])
    object_ = library(
        tmp_path / "object",
        {"pock_kernels.h": files["pock_kernels.h"]},
        {name: code for name, code in packed.items() if name.endswith(".o")},
    )
    target = cpu_target(resolve_target(found.manifest["target"]["description"]))
    rng = np.random.default_rng(0)
    for kernel in (name.removesuffix(".json") for name in packed if name.endswith(".json")):
        func = tvm.ir.load_json(packed[f"{kernel}.json"].decode())
        scratch = np.zeros(target.scratch_bytes(target.schedule(func)) + 1, "uint8")
        for extremes in (False, True):
            given = list(operands(func, rng, extremes=extremes))
            results = []
            for form_library in (source, object_):
                arrays = [np.array(array) for array in given]
                assert getattr(form_library, kernel)(*addresses([*arrays, scratch])) == 0
                results.append(arrays)
            for ours, theirs in zip(*results, strict=True):
                scale = np.abs(theirs[np.isfinite(theirs)]).max(initial=0) if theirs.dtype.kind == "f" else 0
                with np.errstate(invalid="ignore"):
                    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * min(scale, 1e3), err_msg=kernel)
