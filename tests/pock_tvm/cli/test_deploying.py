"""``pock deploy``, as a user types it."""

import importlib.util
import shutil

import numpy as np
import pytest

from .test_cli import pock, small

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is missing")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    import torch

    import pock_tvm

    path = tmp_path_factory.mktemp("deploying") / "net.pock"
    torch.manual_seed(0)
    compiled = pock_tvm.compile(
        small(4), scheme=pock_tvm.Scheme({"*": "frozen", "head.*": "full"}), batch_norm="frozen", check=False
    )
    compiled.save(path)
    compiled.save(path.with_name("slim.pock"), slim=True)
    return path


def loss_of(folder):
    """The loss of one step, through the bundle's wrapper."""
    spec = importlib.util.spec_from_file_location(f"net_{folder.name}", folder / "net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net = module.Net()
    net.set_rate(0.01)
    x, target = (np.ones(shape, dtype) for _, shape, dtype in (*module.INPUTS, module.TARGET))
    loss = net.train_step(x, target)
    net.close()
    return loss


def test_forms_of_a_bundle(program, tmp_path):
    losses = []
    for name, options in {"object": ["--threads", 2], "source": ["--source", "--embed-weights"]}.items():
        done = pock("deploy", program, "-o", tmp_path / name, "--cc", "gcc", *options)
        assert done.returncode == 0 and "see its README.md" in done.stderr, done.stderr
        losses.append(loss_of(tmp_path / name))
    np.testing.assert_allclose(*losses, rtol=1e-5)
    done = pock("deploy", program, "-o", tmp_path / "text", "--no-build")
    assert done.returncode == 0 and not (tmp_path / "text" / "libpock.so").exists()


def test_refusals(program, tmp_path):
    (tmp_path / "notes").write_text("mine")
    for arguments, message in (
        ([program, "-o", tmp_path, "--no-build"], "holds other files than a bundle's"),
        ([program, "-o", tmp_path / "net", "--cc", "nocc"], "there is no C compiler 'nocc'"),
        ([program.with_name("slim.pock"), "-o", tmp_path / "net"], "this program is slim"),
    ):
        done = pock("deploy", *arguments)
        assert done.returncode == 2 and message in done.stderr.replace("\n", " "), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]
