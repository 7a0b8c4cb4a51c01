"""Sampled volumes by operators that have converters, as PyTorch takes its sampling of images apart."""

from __future__ import annotations

import itertools

import torch

LINEAR = 0  # else the nearest
ZEROS, REFLECTION = 0, 2  # else the border


def sampled_volumes(
    volumes: torch.Tensor, grid: torch.Tensor, interpolation_mode: int, padding_mode: int, align_corners: bool
) -> torch.Tensor:
    """Read volumes [N, C, D, H, W] at places [N, D', H', W', 3], (x, y, z) from -1 to 1: [N, C, D', H', W'].

    Stands for ``aten.grid_sampler_3d``; see ``torch.nn.functional.grid_sample``.
    """
    count, channels, *extents = volumes.shape
    places = [_places(grid[..., 2 - axis], extent, padding_mode, align_corners) for axis, extent in enumerate(extents)]
    corners = itertools.product((0, 1), repeat=3) if interpolation_mode == LINEAR else [(0, 0, 0)]
    flat, total = volumes.flatten(2), torch.zeros(())
    for corner in corners:
        index, weight = torch.zeros((), dtype=torch.int64), torch.ones(())
        is_inside = torch.ones((), dtype=torch.bool)
        for place, extent, step in zip(places, extents, corner, strict=True):
            first = place.floor() if interpolation_mode == LINEAR else place.round()
            at = first + step
            is_inside = is_inside & (at >= 0) & (at < extent)
            index = index * extent + torch.where((at >= 0) & (at < extent), at, 0).long()
            if interpolation_mode == LINEAR:
                weight = weight * (place - first if step else first + 1 - place)
        read = flat.gather(2, index.flatten(1)[:, None].expand(-1, channels, -1))
        read = read.view(count, channels, *index.shape[1:])
        total = total + read * torch.where(is_inside, weight, 0)[:, None]
    return total


def _places(places: torch.Tensor, extent: int, padding_mode: int, align_corners: bool) -> torch.Tensor:
    """Places along an axis, counted in elements from the first one's middle, as the padding moves them."""
    places = places * ((extent - align_corners) / 2) + (extent - 1) / 2
    if padding_mode == REFLECTION:
        low, span = (0, extent - 1) if align_corners else (-0.5, extent)
        if not span:
            return torch.zeros_like(places)
        away = (places - low).abs()
        rest = torch.fmod(away, span)
        places = torch.where((away / span).floor() % 2 == 0, low + rest, low + span - rest)
    if padding_mode == ZEROS:
        return places
    last = extent - 1  # at the border there is no gradient, as in PyTorch; a clamp has one
    return torch.where(places <= 0, 0, torch.where(places >= last, last, places))
