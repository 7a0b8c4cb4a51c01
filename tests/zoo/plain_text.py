"""Rows in plain PyTorch, as people write them: text and sound."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from tests.numeric.draws import below, lengths, normal

from .row import Row

WORDS = 50


class TextCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, 16, padding_idx=0)
        self.windows = nn.ModuleList([nn.Conv1d(16, 8, size) for size in (2, 3, 4)])
        self.head = nn.Linear(24, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids).transpose(1, 2)
        return self.head(torch.cat([F.relu(window(x)).max(2)[0] for window in self.windows], 1))


class Recurrent(nn.Module):
    """A recurrent network of a kind, in both directions, with attention over what it gives."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, 12)
        self.layers = kind(12, 8, num_layers=2, bidirectional=True, batch_first=True)
        self.score, self.head = nn.Linear(16, 1), nn.Linear(16, 3)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        y, _ = self.layers(self.table(ids))
        shares = self.score(torch.tanh(y)).squeeze(-1).masked_fill(~mask, float("-inf")).softmax(1)
        return self.head(torch.bmm(shares.unsqueeze(1), y).squeeze(1))


class Translator(nn.Module):
    """Sequence to sequence by cells, step by step, with attention."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(WORDS, 8), nn.Embedding(WORDS, 8)
        self.encoder, self.cell = nn.GRU(8, 12, batch_first=True), nn.GRUCell(20, 12)
        self.query, self.head = nn.Linear(12, 12, bias=False), nn.Linear(24, WORDS)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        memory, state = self.encoder(self.source(source))
        state, context, results = state[0], torch.zeros(source.shape[0], 12), []
        for step in range(target.shape[1]):
            state = self.cell(torch.cat([self.target(target[:, step]), context], -1), state)
            shares = torch.softmax(torch.einsum("bd,btd->bt", self.query(state), memory), -1)
            context = torch.einsum("bt,btd->bd", shares, memory)
            results.append(self.head(torch.cat([state, context], -1)))
        return torch.stack(results, 1)


class Transformer(nn.Module):
    """PyTorch's own Transformer with all its masks."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(WORDS, 16), nn.Linear(16, WORDS)
        self.transformer = nn.Transformer(16, 2, 1, 1, 24, batch_first=True)

    def forward(self, source: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        x, y = (self.table(ids) * 4.0 for ids in (source, target))
        padding = {"src_key_padding_mask": ~mask, "memory_key_padding_mask": ~mask}
        return self.head(self.transformer(x, y, tgt_mask=causal, tgt_is_causal=True, **padding))


class NanoGPT(nn.Module):
    """A decoder with tied weights, and its loss inside."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(WORDS, 16), nn.Embedding(12, 16)
        self.norms = nn.ModuleList([nn.LayerNorm(16, bias=False) for _ in range(3)])
        self.qkv, self.out = nn.Linear(16, 48, bias=False), nn.Linear(16, 16, bias=False)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, WORDS, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.table(ids) + self.places(torch.arange(ids.shape[1]))
        q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.qkv(self.norms[0](x)).split(16, 2))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.norms[1](x)), approximate="tanh"))
        logits = self.head(self.norms[2](x))
        return F.cross_entropy(logits.view(-1, WORDS), targets.view(-1), ignore_index=-1)


class Experts(nn.Module):
    """A mixture of experts: the two best of each token, and a loss that balances them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.head = nn.Linear(12, 4, bias=False), nn.Linear(12, 3)
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(12, 16), nn.SiLU(), nn.Linear(16, 12)) for _ in range(4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shares = self.gate(x).softmax(-1)
        best, which = torch.topk(shares, 2, dim=-1)
        gates = torch.zeros_like(shares).scatter(-1, which, best / best.sum(-1, keepdim=True))
        y = sum(gates[..., [index]] * expert(x) for index, expert in enumerate(self.experts))
        chosen = F.one_hot(which, 4).sum(-2).float().mean((0, 1))
        return self.head(x + y).mean(1) + (chosen * shares.mean((0, 1))).sum()


class Capacity(nn.Module):
    """Experts with a capacity: tokens are dispatched by one-hot products."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(12, 4)
        self.up, self.down = nn.Parameter(torch.randn(4, 12, 16) * 0.2), nn.Parameter(torch.randn(4, 16, 12) * 0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(0, 1)
        best, which = self.gate(tokens).softmax(-1).max(-1)
        chosen = F.one_hot(which, 4)
        place = (chosen.cumsum(0) - 1) * chosen
        fits = chosen * (place < 5)
        dispatch = fits.unsqueeze(-1) * F.one_hot(place.clamp(max=4), 5)  # [tokens, experts, places]
        given = torch.einsum("tec,td->ecd", dispatch.float(), tokens)
        made = torch.bmm(F.relu(torch.bmm(given, self.up)), self.down)
        return x + (torch.einsum("tec,ecd->td", dispatch.float(), made) * best[:, None]).view_as(x)


class Linear(nn.Module):
    """Linear attention, causal: a cumulative sum of outer products."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(12, 24), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        sums = torch.cumsum(k[..., :, None] * v[..., None, :], 1)
        y = torch.einsum("btd,btde->bte", q, sums) / (torch.einsum("btd,btd->bt", q, k.cumsum(1)) + 1e-6)[..., None]
        return self.head(y)


class WaveNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(1, 8, 1), nn.Conv1d(8, 4, 1)
        self.gates = nn.ModuleList([parametrizations.weight_norm(nn.Conv1d(8, 16, 2, dilation=2**n)) for n in range(3)])
        self.mixes = nn.ModuleList([nn.Conv1d(8, 8, 1) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, skip = self.first(x), 0.0
        for level, (gate, mix) in enumerate(zip(self.gates, self.mixes, strict=True)):
            a, b = gate(F.pad(x, (2**level, 0))).chunk(2, 1)
            y = mix(torch.tanh(a) * torch.sigmoid(b))
            x, skip = x + y, skip + y
        return self.last(F.relu(skip))


class Conformer(nn.Module):
    """A convolution between attentions: gated, depthwise, with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.norms = nn.ModuleList([nn.LayerNorm(16) for _ in range(3)])
        self.point, self.depth, self.back = (
            nn.Conv1d(16, 32, 1),
            nn.Conv1d(16, 16, 5, padding=2, groups=16),
            nn.Conv1d(16, 16, 1),
        )
        self.batch_norm, self.head = nn.BatchNorm1d(16), nn.Linear(16, 6)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = x + 0.5 * self.second(F.silu(self.first(self.norms[0](x))))
        y = self.norms[1](x)
        x = x + self.attention(y, y, y, key_padding_mask=~mask)[0]
        y = F.glu(self.point(self.norms[2](x).transpose(1, 2)), 1)
        x = x + self.back(F.silu(self.batch_norm(self.depth(y)))).transpose(1, 2)
        return self.head(x).log_softmax(-1)


class CRNN(nn.Module):
    """Reads a line of text: convolutions, then an LSTM along the width."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d((2, 1)), nn.Conv2d(12, 12, (4, 1)))  # fmt: skip
        self.lstm, self.head = nn.LSTM(12, 8, bidirectional=True), nn.Linear(16, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.convs(x).squeeze(2).permute(2, 0, 1)
        return self.head(self.lstm(y)[0]).log_softmax(2)


class ConvLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gates, self.head = nn.Conv2d(1 + 4, 16, 3, padding=1), nn.Conv2d(4, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, steps, _, height, width = x.shape
        h = c = x.new_zeros(batch, 4, height, width)
        for step in range(steps):
            i, f, o, g = self.gates(torch.cat([x[:, step], h], 1)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.head(h)


MASK = lengths(2, 7)
ROWS = [
    Row("plain/TextCNN", TextCNN, {"ids": below(WORDS, 2, 9)}),
    Row("plain/LSTM with attention", lambda: Recurrent(nn.LSTM), {"ids": below(WORDS, 2, 7), "mask": MASK}),
    Row("plain/GRU with attention", lambda: Recurrent(nn.GRU), {"ids": below(WORDS, 2, 7), "mask": MASK}),
    Row("plain/GRU translator", Translator, {"source": below(WORDS, 2, 6), "target": below(WORDS, 2, 4)}),
    Row("plain/Transformer", Transformer, {"source": below(WORDS, 2, 7), "target": below(WORDS, 2, 5), "mask": MASK}),
    Row("plain/nanoGPT", NanoGPT, {"ids": below(WORDS, 2, 8), "targets": below(WORDS, 2, 8)}, loss="output"),
    Row("plain/mixture of experts", Experts, {"x": normal(2, 5, 12)}),
    Row("plain/experts with a capacity", Capacity, {"x": normal(2, 5, 12)}),
    Row("plain/linear attention", Linear, {"x": normal(2, 5, 12)}),
    Row("plain/WaveNet", WaveNet, {"x": normal(2, 1, 20)}),
    Row("plain/Conformer", Conformer, {"x": normal(2, 7, 16), "mask": MASK}),
    Row("plain/CRNN", CRNN, {"x": normal(2, 1, 16, 12)}),
    Row("plain/ConvLSTM", ConvLSTM, {"x": normal(2, 3, 1, 8, 8)}),
]  # fmt: skip
