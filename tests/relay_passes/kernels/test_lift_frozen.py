"""Frozen work that is lifted out of the step."""

from __future__ import annotations

import numpy as np
from tvm.relax import op as R

from relay_passes import LiftFrozen
from tests.relay_passes.modules import function, operators, run, trained_phases


def test_frozen_work_is_done_once() -> None:
    def body(emit, x, w, b):
        return emit(emit(R.matmul(x, emit(R.permute_dims(emit(R.exp(w)), [1, 0])))) + b)

    mod = function({"x": (4, 3), "w": (2, 3), "b": (2,)}, body)
    lifted = LiftFrozen(["w", "b"], ["main"])(mod)
    assert operators(lifted, "prepare") == ["relax.exp", "relax.permute_dims"]
    assert operators(lifted) == ["relax.matmul", "relax.add"]
    assert [param.name for param in lifted["main"].params] == ["x", "prepared.0", "b"]
    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(shape).astype("float32") for shape in ((4, 3), (2, 3), (2,)))
    prepared = run(lifted, w, b, name="prepare")
    np.testing.assert_allclose(run(lifted, x, prepared[0], b), run(mod, x, w, b), rtol=1e-6)


def test_two_functions_share_what_they_prepare() -> None:
    phases = trained_phases({"blocks.1.conv2.weight": None, "head.bias": None})
    kernels = phases.after["kernels"]
    read = {
        name: {p.name for p in kernels[name].params if p.name.startswith("prepared.")}
        for name in ("train_step", "predict")
    }
    assert read["predict"]
    assert read["predict"] <= read["train_step"] | read["predict"]
    assert read["predict"] & read["train_step"]
