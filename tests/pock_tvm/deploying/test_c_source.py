"""The source form of kernels against their objects, with vector extensions and without."""

from __future__ import annotations

import ctypes
import io
import itertools
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import tvm
from torch import nn
from tvm import te, tirx

import pock_tvm as pock
from pock_tvm.compiler.targets import resolve_target
from pock_tvm.deploying.c_source import kernel_sources, sources
from pock_tvm.device.machine import CORES
from pock_tvm.device.memory import aligned
from pock_tvm.errors import BuildError
from schedules.cpu.lower import scratch_of
from schedules.kernels import functions
from schedules.target import Target
from tests.pock_tvm.networks import small, tokens
from tests.schedules.kernels import CPUS, HOST, defined, object_of

COMPILER = shutil.which("gcc") or shutil.which("cc")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
WARNINGS = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-fPIC"]
FORMS = {"extensions": ["-O1", "-march=native"], "loops": ["-O0", "-march=native", "-DPOCK_SCALAR"]}
"""Compilers' flags. They take long to optimise the loops that stand for vectors."""
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
        exported(Convolutions(), torch.randn(2, 3, 16, 16)),
        scheme=pock.Scheme.full(),
        optimizer=pock.SGD(momentum=0.9, nesterov=True),
        batch_norm="batch",
        check=False,
    ),
    "attention": lambda: pock.compile(
        exported(Attention(), torch.zeros(2, 16, dtype=torch.long)),
        scheme=pock.Scheme.full(),
        optimizer=pock.AdamW(),
        check=False,
    ),
    "tokens": lambda: pock.compile(tokens(), scheme=pock.Scheme.full(), optimizer=pock.Adam(), loss="mse", check=False),
    "short vectors": lambda: pock.compile(
        small(4),
        scheme=pock.Scheme({"*": "full", "blocks.*.conv2.weight": 0.5}),
        batch_norm="frozen",
        loss=pock.Loss("cross_entropy", label_smoothing=0.1),
        target={"kind": "llvm", "mtriple": str(resolve_target("host").attrs["mtriple"]), "num-cores": 2},
        check=False,
    ),
}


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


def operands(func: tirx.PrimFunc, rng: np.random.Generator, *, extremes: bool) -> Iterator[np.ndarray]:
    """Random operands of a kernel: integers that are indices of anything, floats that may be extreme."""
    for param in func.params:
        shape, dtype = [int(extent) for extent in param.ty.shape], str(param.ty.dtype)
        if dtype == "bool":
            yield np.asarray(rng.integers(0, 2, shape), "uint8")
        elif dtype in ("uint8", "uint16"):
            yield np.asarray(rng.integers(0, np.iinfo(dtype).max, shape, endpoint=True), dtype)
        elif "int" in dtype:
            yield np.asarray(rng.integers(0, 3, shape), dtype)
        else:
            values = np.abs(np.asarray(rng.standard_normal(shape), dtype))  # a variance is not negative
            if extremes:
                values = np.where(rng.random(shape) < 0.2, rng.choice(EXTREMES, shape), values).astype(dtype)
            yield np.asarray(values)


EXTREMES = [
    np.nan,
    np.inf,
    -np.inf,
    0.0,
    -0.0,
    -1.0,
    90.0,
    -90.0,
]  # products of larger ones overflow, or do not: if fused


@dataclass(frozen=True)
class Compared:
    """Kernels as C, and the library of their objects. Both forms of the C are compared with one library."""

    kernels: dict[str, tirx.PrimFunc]
    sources: dict[str, str]
    scratch: dict[str, int]
    objects: ctypes.CDLL

    @classmethod
    def of(cls, kernels: dict[str, tirx.PrimFunc], target: Target, folder: Path) -> Compared:
        """Print the kernels, and build their objects in a folder."""
        files = sources(kernels, target, {})
        lowered = {name: target.lower(target.schedule(func)) for name, func in kernels.items()}
        build = tvm.get_global_func("target.build.llvm")
        objects = {f"{name}.o": object_of(build(mod, target.llvm)) for name, mod in lowered.items()}
        built = library(folder, {"pock_kernels.h": files["pock_kernels.h"]}, objects)
        return cls(kernels, files, {name: scratch_of(mod) for name, mod in lowered.items()}, built)

    def assert_equal(self, form: str, folder: Path) -> None:
        """Kernels compute in C what LLVM's objects do, on random operands."""
        source = library(folder, self.sources, {}, *FORMS[form])
        rng = np.random.default_rng(0)
        for kernel, func in self.kernels.items():
            scratch = aligned([self.scratch[kernel] + 1], "uint8")
            for extremes in (False, True):
                given = list(operands(func, rng, extremes=extremes))
                results = []
                for form_library in (source, self.objects):
                    arrays = [np.array(array) for array in given]
                    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (*arrays, scratch)]
                    assert getattr(form_library, kernel)(*pointers) == 0
                    results.append(arrays)
                for ours, theirs in zip(*results, strict=True):
                    scale = np.abs(theirs[np.isfinite(theirs)]).max(initial=0) if theirs.dtype.kind == "f" else 0
                    with np.errstate(invalid="ignore"):
                        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * min(scale, 1e3), err_msg=kernel)


def kernels_of(name: str) -> dict[str, tirx.PrimFunc]:
    torch.manual_seed(0)
    with zipfile.ZipFile(io.BytesIO(NETWORKS[name]().kernels)) as archive:
        names = [each for each in archive.namelist() if each.endswith(".json")]
        return {each.removesuffix(".json"): tvm.ir.load_json(archive.read(each).decode()) for each in names}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    target = CPUS["neon"] if request.param == "short vectors" else HOST
    return Compared.of(kernels_of(request.param), target, tmp_path_factory.mktemp("objects"))


@pytest.mark.parametrize("form", FORMS)
def test_kernels_of_networks(network: Compared, form: str, tmp_path: Path) -> None:
    network.assert_equal(form, tmp_path)


def elementwise(
    name: str, function: Callable[[tirx.Expr], tirx.Expr], dtype: str, length: int
) -> dict[str, tirx.PrimFunc]:
    func = defined(lambda x: te.compute(x.shape, lambda *i: function(x(*i)), "result"), np.zeros((3, length), dtype))
    symbol = f"{name.replace(' ', '_')}_{dtype}_{length}"
    return {symbol: func.with_attr("global_symbol", symbol)}


FLOATS: dict[str, Callable[[tirx.Expr], tirx.Expr]] = {
    name: getattr(functions, name)
    for name in ("exp", "expm1", "log1p", "tanh", "erf", "sigmoid", "silu", "gelu", "gelu_tanh")
}
FLOATS |= {name: getattr(tirx, name) for name in ("sin", "cos", "log", "floor", "ceil", "trunc", "round", "abs", "tan")}
FLOATS |= {
    "sqrt": lambda x: tirx.sqrt(tirx.max(x, tirx.const(0, x.ty.dtype))),
    "power": lambda x: tirx.power(x, tirx.const(2.5, x.ty.dtype)),
    "isnan": lambda x: functions.isnan(x),
    "whole": lambda x: tirx.Cast("int32", tirx.max(tirx.min(x, tirx.const(9, x.ty.dtype)), tirx.const(0, x.ty.dtype))),
}
INTEGERS: dict[str, Callable[[tirx.Expr], tirx.Expr]] = {
    "arithmetic": lambda x: (x * x + x) * tirx.const(3, x.ty.dtype) - x,
    "division": lambda x: tirx.truncmod(x, tirx.const(3, x.ty.dtype)) + tirx.indexdiv(x, tirx.const(2, x.ty.dtype)),
    "bits": lambda x: tirx.bitwise_or(
        tirx.bitwise_and(x, tirx.const(5, x.ty.dtype)), tirx.shift_right(x, tirx.const(1, x.ty.dtype))
    ),
    "order": lambda x: tirx.max(tirx.min(x, tirx.const(2, x.ty.dtype)), tirx.const(1, x.ty.dtype)),
    "as float": lambda x: tirx.Cast("float32", x) * tirx.const(0.5, "float32"),
    "as double": lambda x: tirx.Cast("float64", x) * tirx.const(0.5, "float64"),
    "is positive": lambda x: tirx.all(x > tirx.const(0, x.ty.dtype), x != tirx.const(2, x.ty.dtype)),
}


WHOLE = [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]


@pytest.fixture(scope="module")
def functions_and_dtypes(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    kernels: dict[str, tirx.PrimFunc] = {}
    for named, dtypes, lengths in (
        (FLOATS, ("float32", "float64"), (16, 3, 1)),
        (INTEGERS, ("int32",), (3,)),
        (INTEGERS, WHOLE, (16, 1)),
    ):
        for (name, function), dtype, length in itertools.product(named.items(), dtypes, lengths):
            kernels |= elementwise(name, function, dtype, length)
    return Compared.of(kernels, HOST, tmp_path_factory.mktemp("objects"))


@pytest.mark.parametrize("form", FORMS)
def test_functions_and_dtypes(functions_and_dtypes: Compared, form: str, tmp_path: Path) -> None:
    functions_and_dtypes.assert_equal(form, tmp_path)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_has_no_form_in_c_is_an_error(dtype: str) -> None:
    with pytest.raises(BuildError, match=f"the kernel half_{dtype}_8 cannot be written as C: '{dtype}' is unknown"):
        sources(elementwise("half", lambda x: x + x, dtype, 8), HOST, {})


def test_a_comment_names_what_a_kernel_works_on() -> None:
    torch.manual_seed(0)
    files = kernel_sources(pock.compile(small(4), scheme=pock.Scheme.full(), batch_norm="frozen", check=False))
    assert any(text.startswith("/* fused conv2d") and "stem.weight, stem.bias */" in text for text in files.values())
