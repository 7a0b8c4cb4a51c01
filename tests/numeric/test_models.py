"""Whole networks against PyTorch: the loss and every update of three steps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pock_tvm as pock
from tests.numeric import networks
from tests.numeric.parity import assert_parity
from tests.numeric.schemes import SCHEMES, half_of_the_weights

BERT = {"num_hidden_layers": 3, "hidden_size": 96, "num_attention_heads": 6, "intermediate_size": 160}
SMALL: dict[str, tuple[Callable[[], Any], Any, dict[str, Any]]] = {
    "mobilenet_v2": (
        lambda: networks.mobilenet_v2(64, 2, depth_multiplier=0.5), networks.images((2, 3, 64, 64), 10), {},
    ),
    "resnet": (
        lambda: networks.resnet50(64, 2, hidden_sizes=[64, 96, 128, 160], embedding_size=24, depths=[1, 2, 2, 1]),
        networks.images((2, 3, 64, 64), 10), {},
    ),
    "bert": (lambda: networks.bert(32, 3, vocab_size=1000, **BERT), networks.sentences((3, 32), 3), {}),
    "distilbert": (
        lambda: networks.distilbert(32, 3, vocab_size=1000, n_layers=3, dim=96, n_heads=6, hidden_dim=160),
        networks.sentences((3, 32), 3), {},
    ),
    "vit": (lambda: networks.vit(64, 2, **BERT), networks.images((2, 3, 64, 64), 10), {}),
    "llama": (
        lambda: networks.llama(24, 2, **(BERT | {"num_key_value_heads": 2, "vocab_size": 500})),
        networks.texts((2, 24), 500), {"loss": "causal_lm"},
    ),
}  # fmt: skip
REAL: dict[str, tuple[Callable[[], Any], Any, dict[str, Any]]] = {
    "mobilenet_v2": (lambda: networks.mobilenet_v2(64, 1), networks.images((1, 3, 64, 64), 10, 2), {}),
    "resnet50": (lambda: networks.resnet50(64, 1), networks.images((1, 3, 64, 64), 10, 2), {}),
    "distilbert": (lambda: networks.distilbert(32, 1), networks.sentences((1, 32), 3, steps=2), {}),
    "llama_110m": (lambda: networks.llama(32, 1), networks.texts((1, 32), 32000, 2), {"loss": "causal_lm"}),
}


@functools.cache
def exported_small(name: str) -> torch.export.ExportedProgram:
    return SMALL[name][0]()


@pytest.mark.parametrize(("scheme", "optimizer"), [("full", "sgd"), ("biases", "sgd"), ("sparse", "adamw")])
@pytest.mark.parametrize("name", SMALL)
def test_updates_equal_pytorch(name: str, scheme: str, optimizer: str) -> None:
    exported, (_, batches, options) = exported_small(name), SMALL[name]
    lr = 1e-2 if optimizer == "sgd" else 1e-3
    assert_parity(exported, batches, scheme=SCHEMES[scheme](exported), optimizer=optimizer, lr=lr, **options)


@pytest.mark.parametrize("name", ["resnet", "bert", "llama"])
def test_micro_batches_equal_pytorch(name: str) -> None:
    """Of one sample each: class tokens, positions and masks are the same for all of them."""
    exported, (_, batches, options) = exported_small(name), SMALL[name]
    scheme = half_of_the_weights(exported)
    batch = len(batches(np.random.default_rng(0))[0][0][0])
    whole = pock.compile(exported, scheme=scheme, build=False, **options)
    parts = assert_parity(exported, batches, scheme=scheme, micro_batches=batch, lr=1e-2, **options)
    assert parts.memory()["arena"] < 0.9 * whole.memory()["arena"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "scheme", "optimizer"),
    [
        ("mobilenet_v2", "full", "sgd"),
        ("resnet50", "sparse", "adamw"),
        ("distilbert", "full", "sgd"),
        ("llama_110m", "sparse", "adamw"),
    ],
)
def test_real_sizes_equal_pytorch(name: str, scheme: str, optimizer: str) -> None:
    make, batches, options = REAL[name]
    exported = make()
    lr, check = 1e-2 if optimizer == "sgd" else 1e-3, scheme == "full"  # the self-check, too
    scheme_of = SCHEMES[scheme](exported)
    assert_parity(exported, batches, scheme=scheme_of, optimizer=optimizer, lr=lr, check=check, **options)


PRETRAINED = {
    "mcunet-5fps-flowers12": (128, 12),
    "mbv2-w0.35-flowers12": (128, 12),
    "mobilenetv2-0.35-bn-flowers12": (128, 12),
    "resnet20-cifar10": (32, 10),
    "resnet56-cifar10": (32, 10),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "scheme", "optimizer"),
    [
        ("mcunet-5fps-flowers12", "full", "adamw"),
        ("mcunet-5fps-flowers12", "sparse", "sgd"),
        ("mbv2-w0.35-flowers12", "biases", "sgd"),
        ("mobilenetv2-0.35-bn-flowers12", "sparse", "sgd"),
        ("resnet20-cifar10", "full", "adamw"),
        ("resnet56-cifar10", "biases", "sgd"),
    ],
)
def test_pretrained_networks_equal_pytorch(shared_data, name: str, scheme: str, optimizer: str) -> None:
    size, classes = PRETRAINED[name]
    exported = torch.export.load(shared_data / "models" / f"{name}.pt2")

    def batches(rng: np.random.Generator):
        """Smooth images: on noise a trained network is far from anything that it knows."""
        made = []
        for _ in range(3):
            coarse = torch.from_numpy(rng.standard_normal((2, 3, 4, 4)).astype("float32"))
            image = nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").numpy()
            made.append(([image], rng.integers(0, classes, 2)))
        return made

    lr = 1e-3 if optimizer == "sgd" else 1e-4
    assert_parity(exported, batches, scheme=SCHEMES[scheme](exported), optimizer=optimizer, lr=lr, batch=2)


@pytest.mark.parametrize("scheme", ["full", "sparse"])
def test_the_small_llama_equals_pytorch(shared_data, scheme: str) -> None:
    exported = torch.export.load(shared_data / "models" / "stories260k-b4-s128.pt2")
    make = networks.texts((4, 128), 512)
    assert_parity(exported, make, scheme=SCHEMES[scheme](exported), optimizer="adamw", lr=1e-3, loss="causal_lm")


@pytest.mark.slow
def test_minilm_with_its_real_weights_equals_pytorch() -> None:
    exported = networks.minilm(32, 4)
    make = networks.sentences((4, 32), 6, vocabulary=30000)
    assert_parity(exported, make, scheme=SCHEMES["sparse"](exported), optimizer="adamw", lr=1e-4)
