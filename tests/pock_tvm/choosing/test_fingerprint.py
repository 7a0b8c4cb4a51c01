"""Fingerprints of models."""

from __future__ import annotations

import pytest
import torch

import pock_tvm as pock
from pock_tvm.frontend import load_model
from tests.pock_tvm.networks import Small


def test_contributions_of_another_model_are_refused(task, analysed) -> None:
    torch.manual_seed(1)
    exported = torch.export.export(Small().eval(), (torch.randn(8, 3, 8, 8),))
    with pytest.raises(pock.PockError, match="of another model: 'stem.weight' had other values"):
        analysed.check_model(load_model(exported))
    torch.manual_seed(0)  # the same weights up to the head
    exported = torch.export.export(Small(7).eval(), (torch.randn(8, 3, 8, 8),))
    with pytest.raises(pock.PockError, match=r"'head.weight' had the shape \(5, 8\), and has \(7, 8\) here"):
        analysed.check_model(load_model(exported))


def test_another_graph_of_the_same_weights_is_another_model(analysed) -> None:
    class Other(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).tanh()

    torch.manual_seed(0)
    dynamic = ({0: torch.export.Dim("batch", min=1, max=64)},)
    exported = torch.export.export(Other().eval(), (torch.randn(4, 3, 8, 8),), dynamic_shapes=dynamic)
    with pytest.raises(pock.PockError, match="its operators were others"):
        analysed.check_model(load_model(exported, batch=8))
