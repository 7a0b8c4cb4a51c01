"""Complex numbers as pairs: transforms equal PyTorch's, and what no program can do is refused by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import pock_tvm as pock
from pock_tvm.frontend import fourier
from pock_tvm.frontend.fourier import Pair

LENGTHS = (1, 2, 3, 7, 16, 17, 33, 512, 521, 600, 1024, 1536)  # prime and not, at the longest by one matrix and beyond
NORMS = ("backward", "ortho", "forward")


def near(pair: Pair, expected: torch.Tensor) -> None:
    found = torch.complex(*pair)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 2e-6 * expected.abs().max()


@pytest.mark.parametrize("length", LENGTHS)
def test_transforms_of_any_length_equal_pytorchs(length: int) -> None:
    x = torch.randn(2, length, 3, dtype=torch.cfloat, generator=torch.Generator().manual_seed(length))
    pair = Pair(x.real, x.imag)
    near(fourier.to_complex(pair, [1], 0, forward=True), torch.fft.fft(x, dim=1))
    near(fourier.to_complex(pair, [1], 2, forward=False), torch.fft.ifft(x, dim=1))
    half = torch.fft.rfft(x.real, dim=1)
    near(fourier.from_real(x.real, [1], 0, onesided=True), half)
    near(fourier.from_real(x.real, [1], 0, onesided=False), torch.fft.fft(x.real, dim=1))
    wrong_ends = half + 1j  # the imaginary parts of the first and of the middle frequency do not count
    found = fourier.to_real(Pair(wrong_ends.real, wrong_ends.imag), [1], 2, length)
    expected = torch.fft.irfft(wrong_ends, n=length, dim=1)
    assert (found - expected).abs().max() <= 2e-6 * (1 + expected.abs().max())


@pytest.mark.parametrize("norm", NORMS)
def test_transforms_of_several_axes_and_scales(norm: str) -> None:
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    code = ("backward", "ortho", "forward").index(norm)
    spectrum = torch.fft.rfftn(x, dim=(0, 2), norm=norm)
    near(fourier.from_real(x, [0, 2], code, onesided=True), spectrum)
    inverse = ("forward", "ortho", "backward").index(norm)  # each names the direction that is scaled
    back = fourier.to_real(Pair(spectrum.real, spectrum.imag), [0, 2], inverse, 5)
    assert torch.allclose(back, x, atol=1e-5)


class Net(nn.Module):
    def __init__(self, function: Callable[..., torch.Tensor], **tensors: torch.Tensor) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(4, 4), function
        for name, tensor in tensors.items():
            setattr(self, name, nn.Parameter(tensor))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


REFUSED: dict[str, tuple[Callable[..., torch.Tensor], dict[str, torch.Tensor], torch.dtype]] = {
    "parameter 'turn' is complex.*view_as_real": (
        lambda m, x: (m.linear(x) * m.turn).abs(), {"turn": torch.ones(4, dtype=torch.cfloat)}, torch.float32
    ),
    "input 'x' is complex.*view_as_complex": (lambda m, x: m.linear(x.abs()), {}, torch.cfloat),
    "returns complex numbers.*view_as_real": (lambda m, x: torch.fft.fft(m.linear(x)), {}, torch.float32),
    "'aten.acosh'.*complex": (lambda m, x: torch.fft.fft(m.linear(x)).acosh().real, {}, torch.float32),
    "10007 numbers, a prime": (
        lambda m, x: torch.fft.rfft(m.linear(x), n=10007).abs(), {}, torch.float32
    ),
    "'aten.linalg_eig'.*no rule": (
        lambda m, x: torch.linalg.eigvals(m.linear(x).mT @ m.linear(x)).abs(), {}, torch.float32
    ),
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_what_programs_cannot_do_is_refused_by_name(reason: str) -> None:
    function, tensors, dtype = REFUSED[reason]
    exported = torch.export.export(Net(function, **tensors).eval(), (torch.ones(2, 4, dtype=dtype),))
    with pytest.raises(pock.PockError, match=reason):
        pock.compile(exported, scheme=pock.Scheme.full(), loss="mse", optimizer=pock.SGD())


def test_a_complex_buffer_stays_in_files_and_states(tmp_path: pytest.TempPathFactory) -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.register_buffer("turns", torch.tensor([1j, -1, 0.6 + 0.8j, 1]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.view_as_real(torch.fft.fft(self.linear(x)) * self.turns)

    model, x = Turned().eval(), torch.randn(2, 4)
    exported = torch.export.export(model, (x,))
    program = pock.compile(exported, scheme=pock.Scheme.full(), loss="mse", optimizer=pock.SGD())
    program.save(tmp_path / "net.pock")
    trainer = pock.Trainer(tmp_path / "net.pock")
    trainer.step(x.numpy(), np.zeros((2, 4, 2), "float32"), lr=0.1)
    trainer.save(tmp_path / "net.ckpt")
    other = pock.Trainer(program)
    other.restore(tmp_path / "net.ckpt")
    assert model.load_state_dict(other.state_dict()).missing_keys == []
    assert torch.equal(model.turns, torch.tensor([1j, -1, 0.6 + 0.8j, 1]))
    np.testing.assert_allclose(other.predict(x.numpy()), model(x).detach().numpy(), rtol=1e-5, atol=1e-6)
