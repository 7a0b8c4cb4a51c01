"""Rows in plain PyTorch, as people write them: models that compute with spectra, in complex numbers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.numeric.draws import normal

from .row import Row


class FourierOperator(nn.Module):
    """FNO: the lowest frequencies times learned complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.local, self.project = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 1, 1)
        self.weight = nn.Parameter(torch.randn(2, 4, 4, 3, 3, 2) / 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.lift(x)
        spectrum = torch.fft.rfft2(x)
        low, high = torch.view_as_complex(self.weight)
        mixed = torch.zeros(x.shape[0], 4, 9, 6, dtype=torch.cfloat)
        mixed[:, :, :3, :3] = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, :3, :3], low)
        mixed[:, :, -3:, :3] = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, -3:, :3], high)
        return self.project(F.gelu(torch.fft.irfft2(mixed, s=x.shape[-2:]) + self.local(x)))


class StateSpace(nn.Module):
    """S4D: a diagonal state space as a long convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.outward, self.log_step = nn.Parameter(torch.randn(3, 4, 2)), nn.Parameter(torch.randn(3) / 8 - 1)
        self.log_decay = nn.Parameter(torch.log(torch.full((3, 4), 0.5)))
        self.turning, self.skip = nn.Parameter(math.pi * torch.arange(4.0).repeat(3, 1)), nn.Parameter(torch.randn(3))
        self.mix = nn.Conv1d(3, 3, 1)

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        length, poles = u.shape[-1], -self.log_decay.exp() + 1j * self.turning
        steps = poles * self.log_step.exp()[:, None]
        outward = torch.view_as_complex(self.outward) * (steps.exp() - 1.0) / poles
        kernel = 2 * torch.einsum("hn,hnl->hl", outward, (steps[..., None] * torch.arange(length)).exp()).real
        spectrum = torch.fft.rfft(u, n=2 * length) * torch.fft.rfft(kernel, n=2 * length)
        return self.mix(F.gelu(torch.fft.irfft(spectrum, n=2 * length)[..., :length] + u * self.skip[:, None]))


class Enhancer(nn.Module):
    """Speech enhancement: a mask on the spectrogram, and back to a signal."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(16))
        self.body = nn.Sequential(nn.Conv1d(9, 12, 3, padding=1), nn.ReLU(), nn.Conv1d(12, 9, 1), nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spectrum = torch.stft(x, 16, 4, window=self.window, return_complex=True)
        mask = self.body((spectrum.abs() + 1e-5).log())
        return torch.istft(spectrum * mask, 16, 4, window=self.window, length=x.shape[-1])


class Rotary(nn.Module):
    """Attention with rotary positions as Llama's first code has them: complex factors in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        angles = torch.outer(torch.arange(6.0), 1e4 ** (torch.arange(0, 4, 2) / -4))
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key = (self._turned(layer(x).view(-1, 6, 2, 4)) for layer in (self.query, self.key))
        value = self.value(x).view(-1, 6, 2, 4)
        heads = (each.transpose(1, 2) for each in (query, key, value))
        return F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2)

    def _turned(self, x: torch.Tensor) -> torch.Tensor:
        numbers = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(numbers * self.turns[:, None]).flatten(-2).type_as(x)


class AutoCorrelation(nn.Module):
    """Autoformer: values at the delays whose autocorrelation is largest."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key = (torch.fft.rfft(layer(x).transpose(1, 2)) for layer in (self.query, self.key))
        weights, delays = torch.topk(torch.fft.irfft(query * key.conj()).mean(1), 3)
        values, places = x.transpose(1, 2).repeat(1, 1, 2), torch.arange(x.shape[1]) + delays[..., None]
        rolled = torch.stack([values.gather(-1, at[:, None].expand(-1, 4, -1)) for at in places.unbind(1)])
        return (rolled * weights.softmax(-1).T[..., None, None]).sum(0)


ROWS = [
    Row("plain/Fourier neural operator", FourierOperator, {"x": normal(2, 1, 9, 10)}),
    Row("plain/S4D", StateSpace, {"u": normal(2, 3, 20)}),
    Row("plain/mask on a spectrogram", Enhancer, {"x": normal(2, 64)}),
    Row("plain/complex rotary positions", Rotary, {"x": normal(2, 6, 8)}),
    Row("plain/Autoformer", AutoCorrelation, {"x": normal(2, 24, 4)}),
]
