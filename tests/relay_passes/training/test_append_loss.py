"""Losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from tvm import relax
from tvm.relax import op as R

from relay_passes import (
    AppendLoss,
)
from relay_passes.errors import PassError
from tests.relay_passes.modules import function, run


@pytest.mark.parametrize("kind", ["cross_entropy", "mse", "bce_with_logits", "causal_lm"])
def test_losses_equal_pytorch(kind: str) -> None:
    rng = np.random.default_rng(0)
    shape = (2, 5, 7) if kind == "causal_lm" else (6, 7)
    output = (10 * rng.standard_normal(shape)).astype("float32")
    mod = AppendLoss(kind)(function({"x": shape}, lambda emit, x: emit(x + relax.const(0.0, "float32"))))
    functional = nn.functional
    if kind == "cross_entropy":
        target = np.array([0, 6, -100, 3, 3, -100])
        expected = functional.cross_entropy(torch.from_numpy(output), torch.from_numpy(target))
    elif kind == "causal_lm":
        target = rng.integers(0, 7, shape[:2])
        logits = torch.from_numpy(output)[:, :-1].flatten(0, 1)
        expected = functional.cross_entropy(logits, torch.from_numpy(target)[:, 1:].flatten())
    else:
        target = rng.random(shape).astype("float32")
        loss = functional.mse_loss if kind == "mse" else functional.binary_cross_entropy_with_logits
        expected = loss(torch.from_numpy(output), torch.from_numpy(target))
    np.testing.assert_allclose(run(mod, output, target), float(expected), rtol=1e-5)


def test_losses_are_refused_where_they_do_not_fit() -> None:
    vector = function({"x": (6,)}, lambda emit, x: emit(R.exp(x)))
    for kind, complaint in (
        ("cross_entropy", "logits"),
        ("causal_lm", "logits"),
        ("output", "single number"),
        ("huber", "no loss"),
    ):
        with pytest.raises(PassError, match=complaint):
            AppendLoss(kind)(vector)
    with pytest.raises(PassError, match="no number 1"):
        AppendLoss("mse", output=1)(vector)
