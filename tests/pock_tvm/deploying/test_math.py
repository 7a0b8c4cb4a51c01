"""``runtime/pock_math.c`` against NumPy, and what kernels need of it."""

import ctypes
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import pock_tvm as pock
import pock_tvm.deploying
from pock_tvm.compiler.footprint.objects import undefined
from pock_tvm.deploying.bundle import deploy
from pock_tvm.deploying.symbols import ALWAYS, MATH, runtime_for
from pock_tvm.device.parameters import PREPARED

from .bundles import CASES

RUNTIME = Path(pock_tvm.deploying.__file__).parent / "runtime"
NAMES = re.findall(r"float (\w+)\(", (RUNTIME / "pock_math.h").read_text())
SPECIAL = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    -0.5,
    1.5,
    2.5,
    -2.5,
    np.inf,
    -np.inf,
    np.nan,
    1e-45,
    -1e-45,
    3.4e38,
    -3.4e38,
    8388609.0,
]
EXACT = {
    "roundf": lambda x: np.copysign(np.where(abs(x) < 2**23, np.trunc(abs(x) + 0.5), abs(x)), x),
    "roundevenf": np.rint, "rintf": np.rint, "nearbyintf": np.rint,
    "truncf": np.trunc, "floorf": np.floor, "ceilf": np.ceil,
}  # fmt: skip
CLOSE = {"expf": np.exp, "logf": np.log, "tanhf": np.tanh, "sinf": np.sin, "cosf": np.cos, "tanf": np.tan}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if shutil.which("gcc") is None:
        pytest.skip("gcc is missing")
    path = tmp_path_factory.mktemp("math") / "math.so"
    flags = ["-std=c11", "-O2", "-ffreestanding", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    renamed = [f"-D{name}=ours_{name}" for name in NAMES]
    subprocess.run(["gcc", *flags, *renamed, str(RUNTIME / "pock_math.c"), "-o", str(path)], check=True)
    return ctypes.CDLL(str(path))


def ours(library, name, *arrays):
    function = getattr(library, f"ours_{name}")
    function.restype, function.argtypes = ctypes.c_float, [ctypes.c_float] * len(arrays)
    return np.array([function(*map(float, each)) for each in zip(*arrays, strict=True)], "float32")


def numbers(count=3000):
    rng = np.random.default_rng(0)
    spread = rng.standard_normal(count) * 10.0 ** rng.uniform(-30, 30, count)
    return np.concatenate([SPECIAL, rng.uniform(-110, 110, count), rng.uniform(-2, 2, count), spread]).astype("float32")


def wanted(function, *arrays):
    with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
        return function(*(each.astype("float64") for each in arrays)).astype("float32")


@pytest.mark.parametrize("name", CLOSE)
def test_within_an_ulp(library, name):
    found, right = ours(library, name, numbers()), wanted(CLOSE[name], numbers())
    np.testing.assert_array_max_ulp(found, right, 1)


@pytest.mark.parametrize("name", EXACT)
def test_whole_numbers(library, name):
    found, right = ours(library, name, numbers()), wanted(EXACT[name], numbers())
    np.testing.assert_array_equal(found, right)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(right))


def test_powers(library):
    rng = np.random.default_rng(0)
    pairs = np.array([(x, y) for x in SPECIAL for y in SPECIAL], "float32")
    pairs = np.concatenate([pairs, np.exp(rng.uniform(-9, 9, (3000, 2))).astype("float32")])
    pairs = np.concatenate([pairs, np.stack([rng.uniform(-9, 9, 500), rng.integers(-9, 9, 500)], 1).astype("float32")])
    found, right = ours(library, "powf", *pairs.T), wanted(np.power, *pairs.T)
    np.testing.assert_array_max_ulp(found, right, 1)
    np.testing.assert_array_equal(np.signbit(found[found == 0]), np.signbit(right[found == 0]))


@pytest.fixture(scope="module")
def bare():
    """A program for a microcontroller."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pock_tvm.compiler.build.linker_for", lambda target: None)
        make, example, options = CASES["Adam, clipped, class weights"]
        exported = torch.export.export(make().eval(), (example,))
        return pock.compile(exported, check=False, target="cortex-m7", **options)


def test_a_bundle_without_a_c_library_brings_its_functions(bare, tmp_path, monkeypatch):
    monkeypatch.setattr("pock_tvm.deploying.maker.prepared_weights", lambda program: zeros(program))
    folder = deploy(bare, tmp_path / "net", build=False)
    names = set().union(*(undefined(path.read_bytes()) for path in folder.glob("kernels/*.o")))
    assert "logf" in names
    clang = [sys.executable, "-m", "ziglang", "cc", "-target", "thumb-freestanding-eabihf", "-mcpu=cortex_m7"]
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-O2", "-c", str(folder / "runtime" / MATH)]
    subprocess.run([*clang, *flags, "-o", str(tmp_path / "math.o")], check=True)
    assert all(ALWAYS.fullmatch(name) for name in undefined((tmp_path / "math.o").read_bytes()))


def zeros(program):
    parameters = program.parameters.items()
    return {name: np.zeros(each.shape, each.dtype) for name, each in parameters if each.origin == PREPARED}


def test_a_function_that_no_bundle_has_is_named(library):
    code = Path(library._name).with_name("one.o")
    subprocess.run(
        ["gcc", "-c", "-x", "c", "-", "-o", str(code)],
        input=b"float f(float); float one(float x) { return f(x); }",
        check=True,
    )
    with pytest.raises(pock.PockError, match="the kernel 'one' calls 'f', which a device without a C library lacks"):
        runtime_for({"one": code.read_bytes()})
