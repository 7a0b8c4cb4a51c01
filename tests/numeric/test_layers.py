"""Single layers through the whole compiler against PyTorch: shapes that hurt, and channel-sparse weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pock_tvm as pock
from tests.numeric.parity import TARGET, assert_parity


@dataclass(frozen=True)
class Row:
    """A layer, the shape of its input, and what of its weight is trained."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    scheme: dict[str, Any] = field(default_factory=lambda: {"*": "full"})


class TokenTable(nn.Module):
    """Looks tokens up and maps them with the same table: tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.embed((x.abs() * 5).long().clamp(max=10))))


class Tokens(nn.Module):
    """Looks up two tables, one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places, self.head = nn.Embedding(11, 7), nn.Embedding(9, 7), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = (x.abs() * 5).long().clamp(max=10)
        places = self.places(torch.arange(x.shape[1]))
        return self.head(torch.tanh(self.embed(tokens) * places) + self.embed(10 - tokens))


class Attention(nn.Module):
    """Scaled dot-product attention in one of its forms."""

    def __init__(self, heads: int, shared: int, mask: str | None) -> None:
        super().__init__()
        self.heads, self.shared, self.mask = heads, shared, mask
        self.query, self.key, self.value = (
            nn.Linear(12, heads * 4),
            nn.Linear(12, shared * 4),
            nn.Linear(12, shared * 4),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        query, key, value = (
            layer(x).view(batch, tokens, -1, 4).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mask = None
        if self.mask == "bool":
            mask = torch.ones(tokens, tokens, dtype=torch.bool).tril(1)
            mask[0] = False
        elif self.mask == "float":
            mask = torch.linspace(-1, 1, tokens * tokens).view(tokens, tokens)
        attended = nn.functional.scaled_dot_product_attention(
            query, key, value, mask, is_causal=self.mask == "causal", enable_gqa=self.heads != self.shared, scale=0.3
        )
        return attended.transpose(1, 2).reshape(batch, tokens, -1)


class Shifted(nn.Module):
    """The operators that move elements, between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(nn.functional.pad(x, (1, 0, 0, 2)))
        left, right = x.chunk(2, dim=1)
        x = torch.cat([right, left, x[:, :, :, :].flip(1)], dim=1)
        x = x.reshape(x.shape[0], 2, 4, x.shape[2], x.shape[3]).transpose(1, 2).flatten(1, 2)
        return self.second(x)[:, :, ::2].mean((2, 3), keepdim=True).squeeze(-1)


class Resized(nn.Module):
    """Pads what a layer gave, and cuts it, at the end and at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 32), nn.Linear(32, 16), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.first(x))
        behind, before = nn.functional.pad(y, (0, 0, 0, 3)), nn.functional.pad(y, (0, 0, 2, 0))
        wide = nn.functional.pad(self.second(behind), (0, 5))[..., :16]
        return wide[:, :4] * self.third(before)[:, -4:] + self.third(y[:, 1:]) * y[:, :4, :16]


class FirstToken(nn.Module):
    """A block of a transformer and a head that reads one token of it, from the front or from the end."""

    def __init__(self, token: int) -> None:
        super().__init__()
        self.attention, self.token = Attention(3, 3, "causal"), token
        self.norm, self.up, self.down, self.head = (
            nn.LayerNorm(12),
            nn.Linear(12, 33),
            nn.Linear(33, 12),
            nn.Linear(12, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(x)
        x = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        return self.head(self.norm(x)[:, self.token])


class Chunks(nn.Module):
    """Queries, keys and values out of one layer, products written out, and one position of each sample, from the
    end."""

    def __init__(self) -> None:
        super().__init__()
        self.all, self.head = nn.Linear(12, 36), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.all(x).chunk(3, dim=-1)
        y = torch.softmax(query @ key.transpose(1, 2) / 4, dim=-1) @ value
        last = torch.full((len(x),), -1, device=x.device)
        return self.head(y + torch.softmax(value * query, dim=1))[torch.arange(len(x)), last]


class Mixed(nn.Module):
    """Layers over tokens and over channels in turns."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tokens, self.channels = nn.Linear(6, 7), nn.Linear(5, 8), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.channels(torch.tanh(self.tokens(self.first(x).transpose(1, 2))).transpose(1, 2))


def conv(*args: int, **options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Conv2d(*args, **options))


def normalized(layer: Callable[[], nn.Module], norm: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A layer, its normalisation, and a layer behind it that needs the gradient."""

    def make() -> nn.Module:
        model = nn.Sequential(layer(), norm(), nn.SiLU())
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
        return model

    return make


def two(first: Callable[[], nn.Module], second: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Two layers, so that the second one's data gradient is needed."""
    return lambda: nn.Sequential(first(), nn.GELU(), second())


HALF = {"*.bias": "full", "*.weight": 0.5}
ROWS = [
    Row("chunks", Chunks, (3, 5, 12)),
    Row("conv, padding by name", conv(3, 7, (3, 4), padding="same", dilation=2), (2, 3, 9, 7)),
    Row("conv, 1 channel", two(conv(1, 1, 1), conv(1, 3, 3)), (1, 1, 5, 5)),
    Row("conv, 3 to 7 to 17", two(conv(3, 7, 3, padding=1), conv(7, 17, 3)), (2, 3, 9, 7)),
    Row("conv, 33 channels, stride 2, odd", two(conv(3, 33, 3, stride=2, padding=1), conv(33, 7, 1, stride=2)), (1, 3, 17, 15)),
    Row("conv, dilation", two(conv(3, 8, 3, dilation=2), conv(8, 3, 3, padding=2, dilation=2)), (2, 3, 13, 12)),
    Row("conv, groups", two(conv(6, 9, 3, groups=3), conv(9, 6, 3, groups=3, stride=2, padding=1)), (2, 6, 9, 9)),
    Row("conv, depthwise", two(conv(3, 17, 1), conv(17, 17, 5, groups=17, stride=2, padding=2)), (1, 3, 11, 13)),
    Row("conv, depthwise, multiplier 2", two(conv(3, 5, 1), conv(5, 10, 3, groups=5, padding=1)), (1, 3, 7, 7)),
    Row("conv, padding by reflection is frozen", lambda: nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(3, 4, 3)), (1, 3, 6, 6)),
    Row("conv, half of 33 channels", two(conv(3, 33, 1), conv(33, 8, 3, padding=1)), (2, 3, 8, 8), HALF),
    Row("conv, chosen channels", two(conv(7, 7, 1), conv(7, 3, 1)), (2, 7, 4, 4), {"2.0.weight": [0, 3, 6]}),
    Row("conv, half of each group", two(conv(8, 8, 1), conv(8, 12, 3, groups=2)), (1, 8, 6, 6), HALF),
    Row("conv, half of a depthwise", two(conv(3, 9, 1), conv(9, 9, 3, groups=9)), (2, 3, 7, 7), HALF),
    Row("conv, third of a depthwise with multiplier", two(conv(3, 6, 1), conv(6, 12, 3, groups=6)), (1, 3, 7, 7), {"2.0.weight": 0.34}),
    Row("conv transposed", two(conv(3, 6, 1), lambda: nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1)), (2, 3, 5, 6)),
    Row("conv1d", two(lambda: nn.Conv1d(3, 8, 5, stride=2), lambda: nn.Conv1d(8, 5, 3, padding=1, groups=1)), (2, 3, 19)),
    Row("conv1d, half", two(lambda: nn.Conv1d(3, 8, 5), lambda: nn.Conv1d(8, 5, 3)), (2, 3, 19), HALF),
    Row("linear", two(lambda: nn.Linear(17, 33), lambda: nn.Linear(33, 7)), (3, 17)),
    Row("linear on tokens", two(lambda: nn.Linear(7, 24), lambda: nn.Linear(24, 3, bias=False)), (2, 5, 7)),
    Row("linear, half", two(lambda: nn.Linear(17, 33), lambda: nn.Linear(33, 7)), (3, 17), HALF),
    Row("linear on tokens, half", two(lambda: nn.Linear(7, 24), lambda: nn.Linear(24, 3)), (2, 5, 7), HALF),
    Row("linear on transposed tokens, half", Mixed, (2, 5, 6), HALF),
    Row("linear on transposed tokens, chosen", Mixed, (2, 5, 6), {"tokens.weight": [0, 4], "*.bias": "full"}),
    Row("batch norm behind a conv", normalized(conv(3, 7, 3), lambda: nn.BatchNorm2d(7)), (2, 3, 8, 8)),
    Row("batch norm alone trained", normalized(conv(3, 7, 3), lambda: nn.BatchNorm2d(7)), (2, 3, 8, 8), {"1.*": "full"}),
    Row("batch norm frozen, conv trained", normalized(conv(3, 7, 3), lambda: nn.BatchNorm2d(7)), (2, 3, 8, 8), {"0.*": "full"}),
    Row("batch norm, half a conv", normalized(conv(6, 7, 3), lambda: nn.BatchNorm2d(7)), (2, 6, 8, 8), {"1.*": "full", "0.0.weight": 0.5}),
    Row("batch norm first", normalized(lambda: nn.BatchNorm2d(5), conv(5, 4, 1)), (2, 5, 6, 6)),
    Row("batch norm behind a linear layer", normalized(lambda: nn.Linear(6, 7), lambda: nn.BatchNorm1d(7)), (4, 6)),
    Row("layer norm", two(lambda: nn.Linear(6, 17), lambda: nn.LayerNorm(17)), (2, 3, 6)),
    Row("layer norm over two axes", two(lambda: nn.Linear(6, 7), lambda: nn.LayerNorm((3, 7))), (2, 3, 6)),
    Row("RMS norm", two(lambda: nn.Linear(6, 17), lambda: nn.RMSNorm(17)), (2, 3, 6)),
    Row("group norm", two(conv(3, 6, 3), lambda: nn.GroupNorm(3, 6)), (2, 3, 7, 7)),
    Row("instance norm", two(conv(3, 6, 3), lambda: nn.InstanceNorm2d(6, affine=True)), (2, 3, 7, 7)),
    Row("pooling", two(conv(3, 6, 3, padding=1), lambda: nn.MaxPool2d(3, 2, 1)), (2, 3, 9, 7)),
    Row("average pooling", two(conv(3, 6, 3, padding=1), lambda: nn.AvgPool2d(3, 2, 1)), (2, 3, 9, 7)),
    Row("adaptive pooling", two(conv(3, 6, 3, padding=1), lambda: nn.AdaptiveAvgPool2d((3, 2))), (2, 3, 9, 8)),
    Row("global pooling", two(conv(3, 6, 3, padding=1), lambda: nn.AdaptiveAvgPool2d(1)), (2, 3, 9, 7)),
    Row("activations", lambda: nn.Sequential(nn.Linear(6, 7), nn.Hardswish(), nn.Linear(7, 7), nn.ELU(), nn.Linear(7, 7), nn.PReLU(7), nn.Linear(7, 5), nn.Hardsigmoid(), nn.Linear(5, 5), nn.Softplus(), nn.Linear(5, 3), nn.Mish()), (3, 6)),
    Row("more activations", lambda: nn.Sequential(nn.Linear(6, 7), nn.ReLU6(), nn.Linear(7, 7), nn.LeakyReLU(), nn.Linear(7, 7), nn.Tanh(), nn.Linear(7, 5), nn.GELU("tanh"), nn.Linear(5, 5), nn.Softmax(-1), nn.Linear(5, 3), nn.LogSoftmax(-1)), (3, 6)),
    Row("movement", Shifted, (2, 3, 6, 5)),
    Row("padded and cut", Resized, (2, 5, 6)),
    Row("first token", lambda: FirstToken(0), (2, 5, 12)),
    Row("last token, half", lambda: FirstToken(-1), (2, 5, 12), {"*.bias": "full", "up.weight": 0.5, "attention.*.weight": 0.5}),
    Row("last token of one", lambda: FirstToken(-1), (3, 1, 12)),
    Row("tied weights", TokenTable, (2, 5)),
    Row("embeddings", Tokens, (3, 5)),
    Row("embeddings, half of the rows", Tokens, (3, 5), {"embed.weight": 0.5, "places.weight": 0.5}),
    Row("embeddings, one row", Tokens, (3, 5), {"embed.weight": [10]}),
    Row("embeddings, chosen rows", Tokens, (3, 5), {"*": "full", "embed.weight": [0, 3, 4, 9], "places.weight": [1, 7]}),
    Row("attention", lambda: Attention(3, 3, None), (2, 5, 12)),
    Row("attention, causal", lambda: Attention(3, 3, "causal"), (2, 5, 12)),
    Row("attention, a row masked completely", lambda: Attention(3, 3, "bool"), (2, 5, 12)),
    Row("attention, float mask", lambda: Attention(3, 3, "float"), (2, 5, 12)),
    Row("attention, shared heads", lambda: Attention(6, 2, "causal"), (2, 5, 12)),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_updates_equal_pytorch(row: Row) -> None:
    torch.manual_seed(0)
    model = row.make().eval()
    example = torch.randn(row.shape)
    exported = torch.export.export(model, (example,))
    output_shape = tuple(model(example).shape)

    def batches(rng: np.random.Generator) -> list[tuple[list[np.ndarray], np.ndarray]]:
        return [
            ([rng.standard_normal(row.shape).astype("float32")], rng.standard_normal(output_shape).astype("float32"))
            for _ in range(3)
        ]

    scheme = pock.Scheme({"*": "frozen"} | row.scheme)
    assert_parity(exported, batches, scheme=scheme, loss="mse", lr=0.05)


@pytest.mark.parametrize("options", [{"micro_batches": 3}, {"accumulate": 2}, {"clip_norm": 0.1}], ids=str)
def test_rows_of_embeddings_equal_pytorch(options: dict[str, Any]) -> None:
    """Of a table those rows are updated that are trained, in parts of a batch, over several, and clipped."""
    torch.manual_seed(0)
    model = Tokens().eval()
    exported = torch.export.export(model, (torch.randn(3, 5),))
    scheme = pock.Scheme({"embed.weight": [0, 2, 3, 4, 5, 8], "places.weight": 0.3, "head.*": "full"})
    frozen = {"embed.weight": [1, 6, 7, 9, 10], "places.weight": [3, 4, 5, 6, 7, 8]}
    options = {"optimizer": pock.AdamW(eps=1e-6), "target": TARGET} | options
    program = pock.compile(exported, scheme=scheme, loss="mse", **options)
    trainer, parameters = pock.Trainer(program), dict(model.named_parameters())
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.05, eps=1e-6)
    rng, steps = np.random.default_rng(0), options.get("accumulate", 1)
    for _ in range(2):
        optimizer.zero_grad()
        for _ in range(steps):
            x, y = (rng.standard_normal(shape).astype("float32") for shape in ((3, 5), (3, 5, 3)))
            trainer.step(x, y, lr=0.05)
            (torch.nn.functional.mse_loss(model(torch.from_numpy(x)), torch.from_numpy(y)) / steps).backward()
        for name, rows in frozen.items():
            parameters[name].grad[rows] = 0
        if "clip_norm" in options:
            torch.nn.utils.clip_grad_norm_(parameters.values(), options["clip_norm"])
        optimizer.step()
        with torch.no_grad():
            for name, rows in frozen.items():
                parameters[name][rows] = start[name][rows]
    ours = trainer.weights()
    for name, parameter in parameters.items():
        update, wanted = ours[name] - start[name].numpy(), (parameter.detach() - start[name]).numpy()
        np.testing.assert_allclose(update, wanted, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize(
    "scheme, calls",
    [({"*": "full"}, 1), ({"*": "full"}, 2), ({"*.bias": "full"}, 1)]
    + [({"0.*": 0.5, "*.bias": "full", "1.weight": "full"}, 1)],
)
def test_batch_statistics_equal_training_mode(scheme: dict[str, Any], calls: int) -> None:
    """``batch_norm="batch"``: the loss, the updates and the running statistics of PyTorch in training mode; of a layer
    that is called twice, too."""
    torch.manual_seed(0)
    norm = [nn.BatchNorm2d(7), nn.SiLU()] * calls
    model = nn.Sequential(nn.Conv2d(4, 7, 3), *norm, nn.Flatten(), nn.Linear(7 * 9, 5))
    exported = torch.export.export(model.eval(), (torch.randn(6, 4, 5, 5),))
    options = {"optimizer": pock.SGD(momentum=0.9), "batch_norm": "batch", "target": TARGET}
    program = pock.compile(exported, scheme=pock.Scheme(scheme), **options)
    trainer = pock.Trainer(program)
    model = model.train().double()
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in program.trained)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    what = program.trained.get("0.weight")
    rng = np.random.default_rng(0)
    for _ in range(3):
        x, y = rng.standard_normal((6, 4, 5, 5)).astype("float32"), rng.integers(0, 5, 6)
        loss = nn.functional.cross_entropy(model(torch.from_numpy(x).double()), torch.from_numpy(y))
        optimizer.zero_grad()
        loss.backward()
        if isinstance(what, dict):
            model[0].weight.grad[:, [c for c in range(4) if c not in what["indices"]]] = 0
        optimizer.step()
        np.testing.assert_allclose(trainer.step(x, y, lr=0.05), float(loss), rtol=1e-5)
    for name, array in trainer.weights().items():
        if name != "1.num_batches_tracked":
            update, wanted = array - start[name].numpy(), (model.state_dict()[name] - start[name]).numpy()
            assert np.linalg.norm(update - wanted) <= 1e-4 * np.linalg.norm(wanted) + 1e-6, name
    x = rng.standard_normal((6, 4, 5, 5)).astype("float32")
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(trainer.predict(x), expected, atol=1e-5)
