"""What holds on a device: no torch, no compiler, no growing memory, an import that is quick and never in the way."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import psutil
import pytest

import pock_tvm as pock
from tests.pock_tvm.networks import small


def saved(path):
    pock.compile(small(), batch=4, scheme=pock.Scheme({"blocks.1.*": "full", "head.*": "full"})).save(path)
    return path


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("device") / "net.pock")


@pytest.mark.parametrize("linked", [True, False])
def test_a_trainer_needs_neither_torch_nor_the_compiler(linked, program, tmp_path, monkeypatch) -> None:
    if not linked:
        with monkeypatch.context() as context:
            context.setenv("PATH", os.devnull)  # no C compiler: a program of objects
            program = saved(tmp_path / "net.pock")
    code = f"""
import sys
for name in ("torch", "onnx", "transformers", "sklearn", "typer", "rich", "PIL", "relay_passes", "schedules", "pock_tvm.compiler"):
    sys.modules[name] = None  # importing it fails
import numpy as np, pock_tvm as pock
trainer = pock.Trainer({str(program)!r})
x, y = np.ones((4, 3, 8, 8), "float32"), np.arange(4)
first, *_, last = [trainer.step(x, y, lr=0.1) for _ in range(20)]
assert last < first
assert isinstance(trainer.state_dict()["head.weight"], np.ndarray)
import tvm
assert tvm._RUNTIME_ONLY
assert ("tvm_ffi_orcjit" in sys.modules) == trainer.program.library.startswith(b"PK")
print(trainer.predict(x).shape)
"""
    env = os.environ | {"TVM_USE_RUNTIME_LIB": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(4, 5)"


def test_training_does_not_grow(program) -> None:
    trainer = pock.Trainer(program)
    x, y = np.ones((4, 3, 8, 8), "float32"), np.arange(4)
    for _ in range(20):
        trainer.step(x, y, lr=0.01)
        trainer.predict(x)
    before = psutil.Process().memory_info().rss
    for _ in range(500):
        trainer.step(x, y, lr=0.01)
        trainer.predict(x)
    assert psutil.Process().memory_info().rss - before < 4 << 20


def test_steps_are_the_same_from_run_to_run(program) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((4, 3, 8, 8)).astype("float32"), rng.integers(0, 5, 4)
    trainers = [pock.Trainer(program) for _ in range(2)]
    for _ in range(5):
        assert len({trainer.step(x, y, lr=0.1) for trainer in trainers}) == 1
    for name, array in trainers[0].weights().items():
        np.testing.assert_array_equal(array, trainers[1].weights()[name])


def test_the_plug_in_is_quick() -> None:
    code = "import time, tvm; from pock_tvm.plugin import autoload; t = time.perf_counter(); autoload(); print(time.perf_counter() - t)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.05
    code = "import sys, tvm; print('pock_tvm.compiler.pipeline' in sys.modules, 'pock_train' in tvm.relax.pipeline.PIPELINE_MAP)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
