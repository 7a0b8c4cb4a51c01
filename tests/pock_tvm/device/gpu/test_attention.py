"""Training steps of transformers on a GPU: no matrix of scores is in memory, and steps are those of a CPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

import pock_tvm as pock
from schedules.gpu.target import GpuLayouts
from tests.numeric import networks
from tests.schedules.kernels import first_device

TOKENS = 33
NOISE = 1e-8  # a bias of keys has no gradient but rounding
SMALL = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 3}


@dataclass(frozen=True)
class Network:
    """A transformer, a batch of its data, and the loss that it is trained with."""

    export: Callable[[int], torch.export.ExportedProgram]
    """Exports it for a number of tokens."""
    batch: Callable[[np.random.Generator], tuple[Any, np.ndarray]]
    loss: str = "cross_entropy"


def texts(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    tokens = rng.integers(0, 32, (2, TOKENS))
    return tokens, tokens


def padded(rng: np.random.Generator) -> tuple[dict[str, np.ndarray], np.ndarray]:
    mask = (np.arange(TOKENS) < np.array([[TOKENS], [7]])).astype("int64")
    return {"input_ids": rng.integers(1, 64, (2, TOKENS)) * mask, "attention_mask": mask}, rng.integers(0, 3, 2)


# BERT's last layer has one query: only its first token is classified.
NETWORKS = {
    "Llama": Network(
        lambda tokens: networks.llama(tokens, 2, vocab_size=32, num_key_value_heads=1, **SMALL),
        texts,
        "causal_lm",
    ),
    "BERT": Network(lambda tokens: networks.bert(tokens, 2, vocab_size=64, **SMALL | {"num_hidden_layers": 2}), padded),
}


def compiled(network: Network, target: str, tokens: int = TOKENS, **options: Any) -> pock.Program:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pock.PockWarning)
        return pock.compile(network.export(tokens), target=target, loss=network.loss, check=False, **options)


@pytest.mark.parametrize("name", NETWORKS)
def test_steps_are_those_of_a_cpu(name: str) -> None:
    first_device("opencl")
    network, rng = NETWORKS[name], np.random.default_rng(0)
    here, there = (pock.Trainer(compiled(network, target)) for target in ("host", "opencl"))
    for _ in range(2):
        x, y = network.batch(rng)
        np.testing.assert_allclose(there.step(x, y, lr=0.05), here.step(x, y, lr=0.05), rtol=1e-5)
    start, one, other = here.program.weights, there.weights(), here.weights()
    for key in here.program.trained:
        update = other[key] - start[key]
        tolerance = 1e-4 * np.abs(update).max() + NOISE
        np.testing.assert_allclose(one[key] - start[key], update, rtol=0, atol=tolerance, err_msg=key)


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_of_the_size_of_scores_is_in_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = 256
    program = compiled(NETWORKS[name], "opencl", tokens, build=False)
    masks = 2 * tokens**2  # booleans of two texts: scores take four bytes and as many heads more
    assert largest(program) < masks
    monkeypatch.setattr(GpuLayouts, "fuses_attention", lambda *_: False)
    parts = compiled(NETWORKS[name], "opencl", tokens, build=False)
    assert largest(parts) >= 3 * 4 * masks
    assert parts.memory()["arena"] > 3 * program.memory()["arena"]


def largest(program: pock.Program) -> int:
    """Bytes of the largest temporary of a step."""
    return max(size for _, _, size, *_ in program.manifest["entries"]["train_step"]["arena_map"])
