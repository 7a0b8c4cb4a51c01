"""Transformers on a CPU: no matrix of scores is in memory."""

from __future__ import annotations

import warnings

import pytest

import pock_tvm as pock
from schedules.cpu.target import CpuLayouts
from tests.pock_tvm.device.gpu.test_attention import NETWORKS, compiled, largest


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_of_the_size_of_scores_is_in_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = 256
    fused = compiled(NETWORKS[name], "host", tokens, build=False)
    scores = 2 * 3 * tokens**2 * 4  # two texts, three heads
    assert largest(fused) < scores / 2
    monkeypatch.setattr(CpuLayouts, "fuses_attention", lambda *_: False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pock.PockWarning)
        parts = compiled(NETWORKS[name], "host", tokens, build=False)
    assert largest(parts) >= scores
    assert parts.memory()["arena"] > 2 * fused.memory()["arena"]
