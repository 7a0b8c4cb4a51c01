"""Updates: written in place, and refused."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

from relay_passes import AppendUpdate, Backward
from relay_passes.errors import PassError
from tests.relay_passes.modules import regression


def test_updates_are_written_in_place() -> None:
    trained = {"w": None, "b": None}
    mod = AppendUpdate({"kind": "sgd", "momentum": 0.5}, trained)(Backward(trained)(regression()))
    assert [param.name for param in mod["main"].params] == [
        "x",
        "w",
        "b",
        "rates",
        "momentum_buffer.w",
        "momentum_buffer.b",
    ]
    import tvm

    machine = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype("float32") for shape in ((4, 3), (3, 2), (2,))]
    tensors = [
        tvm.runtime.tensor(a)
        for a in [*arrays, np.array([0.1], "float32"), np.zeros((3, 2), "float32"), np.zeros(2, "float32")]
    ]
    x, w, b = (array.astype("float64") for array in arrays)
    momentum, b_momentum = np.zeros_like(w), np.zeros_like(b)
    for _ in range(3):
        machine["main"](*tensors)
        error = x @ w + b - 1
        momentum = 0.5 * momentum + x.T @ error * (2 / error.size)
        b_momentum = 0.5 * b_momentum + error.sum(0) * (2 / error.size)
        w, b = w - 0.1 * momentum, b - 0.1 * b_momentum
    np.testing.assert_allclose(tensors[1].numpy(), w, rtol=1e-5)
    np.testing.assert_allclose(tensors[2].numpy(), b, rtol=1e-5)


@pytest.mark.parametrize("optimizer", [{"kind": "lion"}, {"kind": "sgd", "betas": 1}])
def test_unknown_optimizers_are_refused(optimizer: dict) -> None:
    with pytest.raises(PassError, match="no opti"):
        AppendUpdate(optimizer, {"w": None})(Backward({"w": None})(regression()))


def test_an_update_needs_gradients() -> None:
    with pytest.raises(PassError, match="Backward first"):
        AppendUpdate({"kind": "sgd"}, {"w": None})(regression())
