"""Rows in plain PyTorch, as people write them: generators, and stacks of layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from tests.numeric.draws import normal, uniform

from .row import Row


class Variational(nn.Module):
    """A VAE whose noise is an input; the loss inside."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 8))
        self.decoder = nn.Sequential(
            nn.Linear(4, 8 * 64), nn.ReLU(), nn.Unflatten(1, (8, 8, 8)), nn.ConvTranspose2d(8, 1, 4, 2, 1)
        )

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        mean, log_variance = self.encoder(x).chunk(2, 1)
        decoded = self.decoder(mean + noise * (0.5 * log_variance).exp())
        divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1).mean()
        return F.binary_cross_entropy_with_logits(decoded, x) + 0.1 * divergence


class StyleGenerator(nn.Module):
    """Modulated convolutions: a weight scaled by the style of each sample, and demodulated."""

    def __init__(self) -> None:
        super().__init__()
        self.mapping = nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(0.2), nn.Linear(16, 8))
        self.start, self.weight = nn.Parameter(torch.randn(1, 8, 4, 4)), nn.Parameter(torch.randn(8, 8, 3, 3))
        self.image = nn.Conv2d(8, 3, 1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        style = self.mapping(z * torch.rsqrt((z * z).mean(1, keepdim=True) + 1e-8)) + 1
        weight = self.weight[None] * style[:, None, :, None, None]
        weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        batch = z.shape[0]
        x = F.interpolate(self.start.expand(batch, -1, -1, -1), scale_factor=2, mode="bilinear")
        x = F.conv2d(x.reshape(1, batch * 8, 8, 8), weight.reshape(batch * 8, 8, 3, 3), padding=1, groups=batch)
        return self.image(F.leaky_relu(x.view(batch, 8, 8, 8), 0.2)).tanh()


def _residual_generator() -> nn.Sequential:
    """CycleGAN's generator: reflection, instance norms, transposed convolutions."""
    return nn.Sequential(
        nn.ReflectionPad2d(3), nn.Conv2d(3, 8, 7), nn.InstanceNorm2d(8), nn.ReLU(True), nn.Conv2d(8, 16, 3, 2, 1),
        nn.InstanceNorm2d(16, affine=True), nn.ReLU(True), nn.ConvTranspose2d(16, 8, 3, 2, 1, output_padding=1),
        nn.InstanceNorm2d(8), nn.ReLU(True), nn.ReflectionPad2d(3), nn.Conv2d(8, 3, 7), nn.Tanh(),
    )  # fmt: skip


def _discriminator() -> nn.Sequential:
    norm = parametrizations.spectral_norm
    return nn.Sequential(
        norm(nn.Conv2d(3, 8, 4, 2, 1)), nn.LeakyReLU(0.2, True), norm(nn.Conv2d(8, 16, 4, 2, 1)), nn.BatchNorm2d(16),
        nn.LeakyReLU(0.2, True), nn.Conv2d(16, 1, 4, 1, 0), nn.Flatten(),
    )  # fmt: skip


def _super_resolution() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, padding=2), nn.PReLU(16), nn.Conv2d(16, 16, 3, padding=1), nn.PReLU(), nn.Conv2d(16, 12, 3, padding=1),
        nn.PixelShuffle(2), nn.PixelUnshuffle(2), nn.Conv2d(12, 27, 3, padding=1), nn.PixelShuffle(3),
    )  # fmt: skip


def _volume() -> nn.Sequential:
    """A network of volumes."""
    return nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(8, 12, 3, groups=2),
        nn.GroupNorm(3, 12), nn.GELU(), nn.AvgPool3d(2), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip


def _volume_segmented() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1), nn.InstanceNorm3d(8, affine=True), nn.LeakyReLU(), nn.Conv3d(8, 12, 3, 2, 1), nn.ReLU(),
        nn.ConvTranspose3d(12, 8, 2, 2), nn.Upsample(scale_factor=(1, 2, 2), mode="trilinear"), nn.Conv3d(8, 3, 1),
    )  # fmt: skip


def _lenet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(16 * 4, 24), nn.Tanh(), nn.Linear(24, 5),
    )  # fmt: skip


ROWS = [
    Row("plain/LeNet", _lenet, {"input": normal(2, 1, 16, 16)}),
    Row("plain/VAE", Variational, {"x": uniform(2, 1, 16, 16), "noise": normal(2, 4)}, loss="output"),
    Row("plain/StyleGAN", StyleGenerator, {"z": normal(2, 8)}),
    Row("plain/CycleGAN's generator", _residual_generator, {"input": normal(2, 3, 16, 16)}),
    Row("plain/SN-GAN's discriminator", _discriminator, {"input": normal(2, 3, 16, 16)}),
    Row("plain/ESPCN", _super_resolution, {"input": normal(2, 3, 8, 8)}),
    Row("plain/3-D CNN", _volume, {"input": normal(2, 1, 8, 10, 10)}),
    Row("plain/3-D U-Net", _volume_segmented, {"input": normal(1, 1, 4, 8, 8)}),
]  # fmt: skip
