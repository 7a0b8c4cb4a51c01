"""The networks whose training steps `train_step.py` measures, and their data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

MCUNET = Path(__file__).resolve().parents[2] / "shared" / "data" / "models" / "mcunet-5fps-flowers12.pt2"
SEED = 0
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Network:
    """A network and the shape of its data: images of ``size`` pixels, or ``size`` tokens."""

    title: str
    build: Callable[[], torch.nn.Module]
    size: int
    classes: int
    reads: str = "images"
    """``images``, ``sentences`` (with a mask) or ``text`` (its own target)."""

    @property
    def loss(self) -> str:
        """The loss by the name that ``pock.compile`` takes."""
        return "causal_lm" if self.reads == "text" else "cross_entropy"

    def data(self, batch: int) -> tuple[Arrays, np.ndarray]:
        """The inputs by name, and the target, of one batch."""
        rng = np.random.default_rng(SEED)
        labels = rng.integers(0, self.classes, batch)
        if self.reads == "images":
            return {"pixel_values": rng.standard_normal((batch, 3, self.size, self.size)).astype("float32")}, labels
        tokens = rng.integers(1, 1000, (batch, self.size))
        if self.reads == "text":
            return {"input_ids": tokens}, tokens
        return {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}, labels


def arguments(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a model's call: by name for a network of ``transformers``, by position for any other."""
    return ((), inputs) if hasattr(model, "config") else (tuple(inputs.values()), {})


def exported(name: str, batch: int) -> torch.export.ExportedProgram:
    """Export a network for the compiler."""
    import torch

    if name == "mcunet":
        return torch.export.load(MCUNET)
    model = NETWORKS[name].build()
    tensors = {key: torch.from_numpy(array) for key, array in NETWORKS[name].data(batch)[0].items()}
    return torch.export.export(model, *arguments(model, tensors), strict=False)


def fold_batch_norm(model: torch.nn.Module, trained: set[str]) -> set[str]:
    """Fold each BatchNorm into the convolution before it, in place; return the trained parameters as renamed."""
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    trained = set(trained)
    for path, parent in list(model.named_modules()):
        for (name, conv), (bn_name, bn) in pairwise(list(parent.named_children())):
            if not (isinstance(conv, torch.nn.Conv2d) and isinstance(bn, torch.nn.BatchNorm2d)):
                continue
            setattr(parent, name, fuse_conv_bn_eval(conv, bn))
            setattr(parent, bn_name, torch.nn.Identity())
            for leaf in ("weight", "bias"):
                old = {f"{path}.{bn_name}.{leaf}", f"{path}.{name}.{leaf}"}
                if old & trained:
                    trained = trained - old | {f"{path}.{name}.{leaf}"}
    return trained


def _mcunet() -> torch.nn.Module:
    import torch

    return torch.export.load(MCUNET).module(check_guards=False)  # its BatchNorms were folded before the export


def _transformer(kind: str, **options: Any) -> Callable[[], torch.nn.Module]:
    """Make a builder of a ``transformers`` network with random weights, such as ``BertForSequenceClassification``."""

    def build() -> torch.nn.Module:
        import torch
        import transformers

        torch.manual_seed(SEED)
        architecture = kind.partition("For")[0]
        model = getattr(transformers, kind)(getattr(transformers, f"{architecture}Config")(**options)).eval()
        if hasattr(model.config, "use_cache"):
            model.config.use_cache = False
        for part in model.modules():
            if isinstance(part, torch.nn.BatchNorm2d):  # in a trained network they are neither 0 nor 1
                torch.nn.init.normal_(part.running_mean, std=0.1)
                torch.nn.init.uniform_(part.running_var, 0.5, 1.5)
        return model

    return build


LLAMA_110M = {  # llama2.c's largest
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 32000,
}
NETWORKS = {
    "mcunet": Network("MCUNet-5fps", _mcunet, 128, 12),
    "mobilenetv2": Network("MobileNetV2", _transformer("MobileNetV2ForImageClassification", num_labels=10), 224, 10),
    "resnet50": Network("ResNet-50", _transformer("ResNetForImageClassification", num_labels=10), 224, 10),
    "distilbert": Network(
        "DistilBERT", _transformer("DistilBertForSequenceClassification", num_labels=3), 128, 3, "sentences"
    ),
    "bert": Network("BERT-base", _transformer("BertForSequenceClassification", num_labels=3), 128, 3, "sentences"),
    "vit": Network("ViT-base", _transformer("ViTForImageClassification", num_labels=10), 224, 10),
    "llama": Network("Llama-110M", _transformer("LlamaForCausalLM", **LLAMA_110M), 256, 32000, "text"),
}
