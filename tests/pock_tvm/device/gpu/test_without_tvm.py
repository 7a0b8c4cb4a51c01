"""A program for a GPU runs where neither TVM nor PyTorch is."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import pock_tvm as pock

pytest.importorskip("pyopencl")
TRAIN = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tvm", "tvm_ffi", "torch", "relay_passes", "schedules"):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

sys.meta_path.insert(0, Absent())
import numpy as np
import pock_tvm as pock

trainer = pock.Trainer(sys.argv[1])
x, y = (np.load(path) for path in sys.argv[2:4])
for _ in range(3):
    trainer.step(x, y, lr=0.1)
trainer.save(sys.argv[4])
np.savez(sys.argv[5], predicted=trainer.predict(x), **trainer.weights())
"""


def test_a_step_a_prediction_and_a_checkpoint_need_no_tvm(tmp_path) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(36, 3)
    ).eval()
    x, y = np.random.default_rng(0).standard_normal((2, 2, 5, 5)).astype("float32"), np.array([0, 2])
    exported = torch.export.export(net, (torch.from_numpy(x),))
    options = {"optimizer": pock.SGD(momentum=0.9), "check": False}
    try:
        pock.Trainer(pock.compile(exported, target="opencl", **options))
    except pock.errors.DeviceError as error:
        pytest.skip(str(error))
    pock.compile(exported, target="opencl", **options).save(tmp_path / "net.pock", slim=True)
    host = pock.Trainer(pock.compile(exported, **options))
    for _ in range(3):
        host.step(x, y, lr=0.1)
    names = ["net.pock", "x.npy", "y.npy", "net.ckpt", "found.npz"]
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, *(str(tmp_path / name) for name in names)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = dict(np.load(tmp_path / "found.npz"))
    np.testing.assert_allclose(found.pop("predicted"), host.predict(x), atol=1e-5)
    for name, weight in host.weights().items():
        np.testing.assert_allclose(found[name], weight, atol=1e-5, err_msg=name)
    host.restore(tmp_path / "net.ckpt")
    assert host.steps == 3
