"""Products in eight bits on ARM cores with and without dot products: an emulator computes NumPy's integers."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm.target import Target

from pock_tvm.deploying.toolchain import run_compiler, toolchain_for
from relay_passes.analysis.fixed_point import packed, taps_packed
from schedules.cpu import cpu_target
from schedules.cpu.lower import object_of, scratch_of
from schedules.kernels import quantized
from tests.schedules.kernels import defined
from tests.schedules.test_quantized import (
    ZERO,
    convolution,
    depthwise,
    is_equal,
    random_layer,
    rescaled,
    sums_of,
    with_residual,
)

TRIPLE = "aarch64-linux-gnu"
CORES = {"cortex-a72": "sadalp", "cortex-a76": "sdot", "neoverse-v1": "usdot"}
"""Cores with plain NEON, with dot products, and with i8mm, and what adds products of bytes there."""
QEMU = ["qemu-aarch64", "-cpu", "max", "-L", f"/usr/{TRIPLE}"]
ALIGNMENT = 64
GEOMETRY = {"strides": (1, 1), "zero": 7}


def cases() -> dict[str, tuple]:
    """Kernels by name: definition, operands, options, and NumPy's result."""
    dense = random_layer(16, 24, 1, False)
    x, weight, *vectors = random_layer(16, 16, 3, True, 10)
    other = np.random.default_rng(1).integers(0, 256, (2, 9, 9, 24)).astype("uint8")
    sums, plain = sums_of(*dense[:2], 1, 0, 7), GEOMETRY | {"padding": (0,) * 4, "dilation": (1, 1)}
    residual = {"other_factor": 3000, "constant": -900, "bits": 4}
    summed = rescaled(sums, *dense[2:]) + ((128 * other.astype("int64") * 3000 + 2**14) >> 15) - 900
    words = taps_packed(weight, *quantized.taps_in_words(3, 1, 10), 1)
    dense = (dense[0], packed(dense[1]), *dense[2:])
    return {
        "sum": (quantized.quantized_sum, (x,), {"keepdims": True}, x.sum((1, 2), dtype="int32").view("uint8")),
        "dense": (convolution, dense, plain, rescaled(sums, *dense[2:]) + ZERO),
        "summed": (with_residual, (*dense, other), plain | {"residual": residual}, summed >> 4),
        "depthwise": (
            depthwise,
            (x, words, *vectors),
            GEOMETRY | {"padding": (1,) * 4, "taps": 3},
            rescaled(sums_of(x, weight, 1, 1, 7), *vectors) + ZERO,
        ),
    }


@pytest.fixture(scope="module")
def lowered() -> dict[tuple[str, str], tvm.IRModule]:
    """Kernels by core and name."""
    found = {}
    for core in CORES:
        target = cpu_target(Target({"kind": "llvm", "mtriple": TRIPLE, "mcpu": core, "num-cores": 1}))
        for name, (kernel, operands, options, _) in cases().items():
            func = target.schedule(defined(kernel, *operands, **options))
            symbol = f"{name}_{core.replace('-', '_')}"
            found[core, name] = target.lower(func.with_attr("global_symbol", symbol)), target.llvm
    return found


@pytest.mark.parametrize("core", CORES)
def test_cores_use_their_dot_products(core: str, lowered) -> None:
    for name in cases().keys() - {"sum"}:
        mod, llvm = lowered[core, name]
        text = tvm.get_global_func("target.build.llvm")(mod, llvm).inspect_source("asm")
        assert re.search(rf"\b{CORES[core]}\b", text), name
        assert re.search(r"\bsqrdmulh\b", text), name
        assert re.search(r"\bsqxtn2?\b", text), name
        assert re.search(r"\bsq(xt|sh)r?un2?\b", text), name
        others = {"sdot", "usdot"} - {CORES[core]}
        assert not any(re.search(rf"\b{other}\b", text) for other in others), name


@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="ziglang is missing (extra deploy)")
@pytest.mark.skipif(
    shutil.which(QEMU[0]) is None or not Path(QEMU[-1]).is_dir(),
    reason="qemu-aarch64 is missing: scripts/install-emulators installs it",
)
def test_integers_are_numpys_on_every_core(lowered, tmp_path) -> None:
    declarations, calls, operands, end = [], [], [], 0
    results = []
    for (core, name), (mod, llvm) in lowered.items():
        symbol = f"{name}_{core.replace('-', '_')}"
        (tmp_path / f"{symbol}.o").write_bytes(object_of(mod, llvm))
        _, arrays, _, expected = cases()[name]
        places = []
        for array in (*arrays, np.zeros(expected.shape, "uint8"), np.zeros(scratch_of(mod), "uint8")):
            if array.size:
                end = -(-end // ALIGNMENT) * ALIGNMENT
                places.append(end)
                operands.append((end, array))
                end += array.nbytes
        results.append((places[len(arrays)], expected, f"{name} on {core}"))
        declarations.append(f"int {symbol}({', '.join(['void *'] * len(places))});")
        calls.append(f"{symbol}({', '.join(f'memory + {place}' for place in places)})")
    memory = np.zeros(end, "uint8")
    for start, array in operands:
        memory[start : start + array.nbytes] = np.ascontiguousarray(array).view("uint8").reshape(-1)
    source = "\n".join(
        [
            "#include <stdio.h>",
            *declarations,
            f"static _Alignas({ALIGNMENT}) unsigned char memory[{end}];",
            "int main(void) {",
            f"  if (fread(memory, 1, {end}, stdin) != {end}) return 1;",
            *(f"  if ({call} != 0) return 2;" for call in calls),
            f"  return fwrite(memory, 1, {end}, stdout) != {end};",
            "}",
        ]
    )
    (tmp_path / "main.c").write_text(source)
    made = [str(each) for each in sorted(tmp_path.glob("*.o"))]
    command = toolchain_for(TRIPLE, "zig").command
    run_compiler([*command, str(tmp_path / "main.c"), *made, "-o", str(tmp_path / "main")])
    done = subprocess.run([*QEMU, tmp_path / "main"], input=memory.tobytes(), capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = np.frombuffer(done.stdout, "uint8")
    for start, expected, what in results:
        print(what)
        is_equal(found[start : start + expected.size].reshape(expected.shape), expected)
