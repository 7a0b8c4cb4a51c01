"""Bundles as CMake builds them."""

import shutil
import subprocess

import pytest

import pock_tvm as pock
from pock_tvm.deploying.bundle import deploy

from .bundles import compiled

CMAKE = shutil.which("cmake")


@pytest.mark.skipif(CMAKE is None or shutil.which("make") is None, reason="cmake or make is missing")
@pytest.mark.parametrize(
    "options, flags", [({}, ["-DPOCK_THREADS=2"]), ({"source": True, "embed_weights": True}, ["-DPOCK_NATIVE=OFF"])]
)
def test_main_trains(options, flags, tmp_path):
    program = compiled("momentum, dampening, accumulated")
    folder = deploy(program, tmp_path / "net", build=False, **options)
    for arguments in (["-S", str(folder), "-B", str(tmp_path / "build"), *flags], ["--build", str(tmp_path / "build")]):
        done = subprocess.run([CMAKE, *arguments], capture_output=True, text=True)
        assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
    (tmp_path / "data.csv").write_text("".join(f"{','.join(['0.5'] * 12)},{row % 5}\n" for row in range(24)))
    run = [str(tmp_path / "build" / "main"), str(tmp_path / "data.csv"), "0.01", "2", str(tmp_path / "state")]
    done = subprocess.run([*run, *([] if options else [str(folder / "weights.bin")])], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("epoch") == 2, done.stderr
    assert pock.Trainer(program, threads=1).restore(tmp_path / "state").steps == 6
