"""Fourier transforms of PyTorch's operators ``_fft_*``, as products with constant matrices.

Complex numbers are pairs of real tensors. Functions are traced: what depends on no input is folded later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

DIRECT = 512
"""Longest transform by one matrix; a longer one whose length is no prime is made of two shorter ones."""
LONGEST_PRIME = 4096
"""Largest prime factor of a length: its matrix has the square of that."""


class Pair(NamedTuple):
    """The real and the imaginary parts of complex numbers."""

    real: Tensor
    imag: Tensor

    def each(self, function: Callable[[Tensor], Tensor]) -> Pair:
        """Apply a function to both parts."""
        return Pair(function(self.real), function(self.imag))

    def transpose(self, dim: int) -> Pair:
        """Exchange an axis with the last one."""
        return self.each(lambda part: part.transpose(dim, -1))


def to_complex(x: Pair, dims: Sequence[int], normalization: int, forward: bool) -> Pair:
    """``aten._fft_c2c``: transform along ``dims``, and scale."""
    for dim in dims:
        x = _transform(x.transpose(dim), forward=forward).transpose(dim)
    factor = _factor([x.real.shape[dim] for dim in dims], normalization)
    return x if factor == 1 else x.each(lambda part: part * factor)


def from_real(x: Tensor, dims: Sequence[int], normalization: int, onesided: bool) -> Pair:
    """``aten._fft_r2c``: transform real numbers; one-sided, up to the middle frequency of the last of ``dims``."""
    *others, last = dims
    lengths = [x.shape[dim] for dim in dims]
    length = lengths[-1]
    kept = length // 2 + 1 if onesided else length
    rows = x.transpose(last, -1)
    if length > DIRECT:
        y = _transform(Pair(rows, torch.zeros_like(rows)), forward=True).each(lambda part: part[..., :kept])
    else:
        cos, sin = _waves(length, length, kept, x)
        y = Pair(rows @ cos, -(rows @ sin))
    factor = _factor(lengths, normalization)
    y = to_complex(y.transpose(last), others, 0, forward=True)
    return y if factor == 1 else y.each(lambda part: part * factor)


def to_real(x: Pair, dims: Sequence[int], normalization: int, length: int) -> Tensor:
    """``aten._fft_c2r``: transform the frequencies up to the middle one back to ``length`` real numbers."""
    *others, last = dims
    lengths = [*(x.real.shape[dim] for dim in others), length]
    half = to_complex(x, others, 0, forward=False).transpose(last)
    ends = length - (length // 2 + 1)  # frequencies beyond the middle are conjugates of those before it
    if length > DIRECT:
        rest = half.each(lambda part: part[..., 1 : ends + 1].flip(-1))
        full = Pair(torch.cat([half.real, rest.real], -1), torch.cat([half.imag, -rest.imag], -1))
        y = _transform(full, forward=False).real
    else:
        count = length // 2 + 1
        cos, sin = _waves(length, count, length, x.real)
        places = torch.arange(count)
        twice = 1 + ((places > 0) & (places <= ends)).to(cos.dtype).unsqueeze(-1)
        y = half.real @ (cos * twice) - half.imag @ (sin * twice)
    return y.transpose(last, -1) * _factor(lengths, normalization)


def _transform(x: Pair, *, forward: bool) -> Pair:
    """Transform along the last axis."""
    length = x.real.shape[-1]
    rows = next((rows for rows in range(math.isqrt(length), 1, -1) if length % rows == 0), 1)
    if length > LONGEST_PRIME and rows == 1:
        raise ValueError(
            f"a Fourier transform of {length} numbers, a prime, takes too large a matrix: pad to another length"
        )
    if length <= DIRECT or rows == 1:
        cos, sin = _waves(length, length, length, x.real)
        return _turned(x, lambda part: part @ cos, lambda part: part @ sin, forward)
    # Cooley and Tukey: over positions a whole number of columns apart, then over columns.
    columns = length // rows
    x = _transform(x.each(lambda part: part.unflatten(-1, (rows, columns))).transpose(-2), forward=forward)
    cos, sin = _waves(length, columns, rows, x.real)
    x = _turned(x, lambda part: part * cos, lambda part: part * sin, forward)
    return _transform(x.transpose(-2), forward=forward).transpose(-2).each(lambda part: part.flatten(-2))


def _turned(x: Pair, by_cos: Callable[[Tensor], Tensor], by_sin: Callable[[Tensor], Tensor], forward: bool) -> Pair:
    """Multiply by cos - i sin, or by cos + i sin."""
    cos, sin = x.each(by_cos), x.each(by_sin)
    if forward:
        return Pair(cos.real + sin.imag, cos.imag - sin.real)
    return Pair(cos.real - sin.imag, cos.imag + sin.real)


def _waves(length: int, rows: int, columns: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine [rows, columns] of the product of row and column, in parts ``length`` of a turn."""
    turns = torch.arange(rows).unsqueeze(-1) * torch.arange(columns) % length
    angles = turns.to(torch.float64) * (2 * math.pi / length)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def _factor(lengths: Sequence[int], normalization: int) -> float:
    """PyTorch's ``fft_norm_mode``: nothing, by the square root of the number of elements, or by the number."""
    return math.prod(lengths) ** (0, -0.5, -1)[normalization]
