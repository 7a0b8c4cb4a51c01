"""Bundles whose kernels are C against the trainer: losses and weights within rounding."""

import shutil
import subprocess

import numpy as np
import pytest

import pock_tvm as pock
from pock_tvm.deploying import toolchain
from pock_tvm.deploying.bundle import deploy

from .bundles import RATE, batch_of, compiled, loaded

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is missing")
FORMS = {"extensions": ("-march=native", "-O1"), "loops": ("-DPOCK_SCALAR", "-O0")}


@pytest.mark.parametrize(
    "name, form",
    [
        ("momentum, dampening, accumulated", "extensions"),
        ("indices", "extensions"),
        ("sparse, AdamW", "extensions"),
        ("sparse, AdamW", "loops"),
        ("eight bits", "loops"),
    ],
)
def test_twenty_steps(name, form, tmp_path, monkeypatch):
    monkeypatch.setattr(toolchain, "KERNEL_FLAGS", (*toolchain.KERNEL_FLAGS, *FORMS[form]))
    program, rng = compiled(name), np.random.default_rng(0)
    folder = deploy(program, tmp_path / "net", cc="gcc", source=True)
    assert not list(folder.glob("kernels/*.o"))
    net, trainer = loaded(folder).Net(), pock.Trainer(program, threads=1)
    net.set_rate(RATE)
    for _ in range(20):
        inputs, target = batch_of(program, rng)
        np.testing.assert_allclose(net.train_step(*inputs, target), trainer.step(inputs, target, lr=RATE), rtol=1e-5)
    np.testing.assert_allclose(net.predict(*inputs)[0], trainer.predict(inputs), rtol=1e-5, atol=1e-5)
    (tmp_path / "device.ckpt").write_bytes(net.save_state())
    other = pock.Trainer(program, threads=1)
    other.restore(tmp_path / "device.ckpt")
    for name, array in trainer.weights().items():
        np.testing.assert_allclose(other.weights()[name], array, rtol=1e-5, atol=1e-5, err_msg=name)


def test_zig(tmp_path):
    program = compiled("mse")
    net, trainer = loaded(deploy(program, tmp_path / "net", source=True)).Net(), pock.Trainer(program, threads=1)
    net.set_rate(RATE)
    inputs, target = batch_of(program, np.random.default_rng(0))
    np.testing.assert_allclose(net.train_step(*inputs, target), trainer.step(inputs, target, lr=RATE), rtol=1e-5)


@pytest.mark.parametrize("threads, sanitizers", [(1, "address,undefined"), (2, "thread")])
def test_main_under_sanitizers(threads, sanitizers, tmp_path):
    """Kernels are C, and instrumented: every read and write of theirs is watched, on one thread and on two."""
    program = compiled("batch statistics")
    folder = deploy(program, tmp_path / "net", source=True, build=False)
    row = ",".join(["0.5"] * 192)
    (tmp_path / "data.csv").write_text("".join(f"{row},{number % 5}\n" for number in range(16)))
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-fno-math-errno", f"-fsanitize={sanitizers}"]
    sources = [*folder.glob("*.c"), *folder.glob("runtime/*.c"), *folder.glob("kernels/*.c")]
    main = tmp_path / "main"
    subprocess.run(
        ["gcc", *flags, "-fno-sanitize-recover=all", f"-DPOCK_THREADS={threads}", "-pthread", f"-I{folder}/runtime",
         f"-I{folder}/kernels", *map(str, sources), "-lm", "-o", str(main)],
        check=True,
    )  # fmt: skip
    assert any("pock_launch" in path.read_text() for path in folder.glob("kernels/*.c"))
    run = [str(main), str(tmp_path / "data.csv"), "0.01", "2", str(tmp_path / "state"), str(folder / "weights.bin")]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert pock.Trainer(program, threads=1).restore(tmp_path / "state").steps == 4
