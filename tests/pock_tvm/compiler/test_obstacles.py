"""``pock.check``: all obstacles at once, and what deserves a warning; a clean model compiles silently."""

from __future__ import annotations

import dataclasses
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from tvm import tirx

import pock_tvm as pock
from pock_tvm.errors import MissingGradient, Obstacle, PassError
from pock_tvm.frontend import load_model
from pock_tvm.frontend.observations import observations
from pock_tvm.reports.tables import obstacle_table
from relay_passes.operators.record import open_record
from schedules.cpu import CpuTarget
from tests.pock_tvm.networks import small


@pytest.fixture(autouse=True)
def gaps(without_gradients, monkeypatch) -> None:
    without_gradients("relax.cumprod", "relax.atan2")
    monkeypatch.setattr(open_record("relax.tan"), "kernel", lambda _target: lambda _builder, call: call)


class Odd(nn.Module):
    """Two layers with operators that have no gradient (here), and one that has no kernel (here)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle = nn.Sequential(nn.Linear(8, 8), Curve(partial(torch.cumprod, dim=1))), nn.Linear(8, 8)
        self.curve, self.tan, self.head = (
            Curve(lambda x: torch.atan2(x, torch.ones(8))),
            Curve(torch.tan),
            nn.Linear(8, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.tan(self.curve(self.middle(self.first(x)))))


class Curve(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def exported(model: nn.Module, *inputs: torch.Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(model.eval(), inputs)


def odd() -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    return exported(Odd(), torch.randn(4, 8))


def test_all_obstacles_at_once() -> None:
    found = [(each.layer, each.operator, each.parameter) for each in pock.check(odd()) if each.blocking]
    assert ("first.1", "cumprod", "first.0.weight") in found
    assert ("curve", "atan2", "middle.weight") in found or ("curve", "atan2", "first.0.weight") in found
    assert ("tan", "tan", "") in found
    behind = pock.check(odd(), scheme=pock.Scheme({"head.*": "full"}))
    assert [(each.layer, each.operator) for each in behind] == [("tan", "tan")]


def test_compile_names_the_first_and_counts_the_others() -> None:
    with pytest.raises(MissingGradient, match=r"in layer '(curve|first.1)' stands between .* 1 more like it"):
        pock.compile(odd())
    with pytest.raises(PassError, match="operator 'tan' .*in layer 'tan' has no kernel"):
        pock.compile(odd(), scheme=pock.Scheme({"head.*": "full"}))


def test_a_kernel_that_cannot_be_built_is_named(monkeypatch) -> None:
    def fails(target: CpuTarget, func: tirx.PrimFunc) -> None:
        if "asinh" in func.attrs["global_symbol"]:
            raise ValueError("Check failed: (it != end)\nStack trace")
        return real(target, func)

    real = CpuTarget.lower
    monkeypatch.setenv("POCK_CACHE", "off")
    monkeypatch.setattr(CpuTarget, "lower", fails)
    model = nn.Sequential(nn.Linear(8, 8), Curve(torch.asinh), nn.Linear(8, 3))
    with pytest.raises(
        pock.PockError, match=r"operator 'asinh' in layer '1' cannot be built: Check failed: \(it"
    ) as error:
        pock.compile(exported(model, torch.randn(4, 8)), scheme=pock.Scheme({"2.*": "full"}))
    assert "Stack trace" not in str(error.value)


def test_mistakes_of_a_scheme_are_listed_too() -> None:
    scheme = pock.Scheme({"head.*": "full", "nothing": "full", "hea": "full", "first.0.bias": 0.5})
    reasons = [each.reason for each in pock.check(odd(), scheme=scheme)]
    assert sum("names no parameter" in reason for reason in reasons) == 2
    assert sum("'first.0.bias' cannot be trained in part" in reason for reason in reasons) == 1
    assert any("tan" in reason for reason in reasons)


def test_what_only_planning_shows_is_an_obstacle() -> None:
    assert [each.reason for each in pock.check(exported(Curve(lambda x: x.sum()), torch.randn(4, 8)))]
    (found,) = pock.check(small(4), loss="output", batch_norm="frozen")
    assert found.blocking


class Inputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.unused = nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.head(x * mask)


class Blind(Inputs):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.head(x)


def test_a_hook_on_a_gradient_is_warned_of() -> None:
    model = nn.Linear(4, 3)
    model.weight.register_hook(lambda gradient: gradient * 0.5)
    exported = torch.export.export(model, (torch.zeros(2, 4),))
    (found,) = pock.check(exported, loss="mse")
    assert found.parameter == "weight" and not found.blocking and "register_hook" in found.reason
    assert not pock.check(exported, loss="mse", scheme=pock.Scheme({"bias": "full"}))


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(_context, x: torch.Tensor) -> torch.Tensor:
        return x * 1.0

    @staticmethod
    def backward(_context, grad: torch.Tensor) -> torch.Tensor:
        return -grad


class Lean(torch.autograd.Function):
    """Saves its input alone; its backward pass is the derivative."""

    @staticmethod
    def forward(context, x: torch.Tensor, _inplace: bool) -> torch.Tensor:
        context.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(context, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (x,) = context.saved_tensors
        sigmoid = torch.sigmoid(x)
        return grad * (sigmoid * (1 + x * (1 - sigmoid))), None


class Leaner(Lean):
    @staticmethod
    def forward(context, x: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(context, grad: torch.Tensor) -> torch.Tensor:
        return Lean.backward(context, grad)[0]


class Reversed(nn.Linear):
    def __init__(self) -> None:
        super().__init__(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Reverse.apply(super().forward(x))


class Behind(Inputs):
    """Reverses the gradient of its input, to which no parameter leads."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.head(Reverse.apply(x) * mask)


class Saving(Inputs):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return Leaner.apply(self.head(x * mask))


class Unsure(Inputs):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return Lean.apply(self.head(x * mask), False)


SAME = torch.randn(4, 8)
HEAD = pock.Scheme({"head.*": "full"})
WARNINGS = [
    (lambda: exported(Inputs(), SAME, torch.randn(4, 8)), HEAD, []),
    (lambda: small(4), None, ["the running statistics of 'blocks.0.bn', 'blocks.1.bn' stay as they are"]),
    (lambda: exported(Inputs(), SAME, SAME), HEAD, ["of one tensor given twice torch.export makes one input"]),
    (lambda: exported(Blind(), SAME, torch.zeros(4, 1)), HEAD, ["nothing reads the input 'mask'"]),
    (lambda: exported(Behind(), SAME, torch.randn(4, 8)), HEAD, []),
    (lambda: exported(Saving(), SAME, torch.randn(4, 8)), HEAD, []),
    (
        lambda: exported(Unsure(), SAME, torch.randn(4, 8)),
        HEAD,
        ["torch.export left out the backward pass of 'Lean'"],
    ),
    (lambda: exported(Inputs(), SAME, torch.randn(4, 8)), None, ["no gradient reaches 'unused.weight', 'unused.bias'"]),
]


@pytest.mark.parametrize(("model", "scheme", "expected"), WARNINGS)
def test_warnings_name_what_they_are_about(model, scheme, expected: list[str]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pock.compile(model(), scheme=scheme, build=False)
    texts = [str(each.message) for each in caught if issubclass(each.category, pock.PockWarning)]
    assert len(texts) == len(expected)
    assert all(want in text for want, text in zip(expected, texts, strict=True))
    assert all(each.filename == __file__ for each in caught), "a warning points at the caller"
    assert texts == [str(each) for each in pock.check(model(), scheme=scheme)]


def test_a_backward_pass_that_is_no_derivative_is_refused() -> None:
    model = exported(nn.Sequential(nn.Linear(8, 8), Reversed()), SAME)
    (found,) = pock.check(model)
    assert (found.layer, found.operator, found.parameter, found.blocking) == ("1", "Reverse", "0.bias", True)
    with pytest.raises(pock.PockError, match="'Reverse'.* is not the derivative of its forward pass"):
        pock.compile(model, build=False)


def test_one_who_has_chosen_is_not_warned() -> None:
    assert pock.check(small(4), batch_norm="frozen") == []
    assert pock.check(small(4), batch_norm="batch") == []


def test_buffers_that_a_forward_pass_writes_are_named() -> None:
    model = dataclasses.replace(load_model(exported(Inputs(), SAME, torch.randn(4, 8))), mutated=("steps", "mean"))
    (found,) = observations(model, ["head.weight"], ["head.weight"], None)
    assert "the model writes 'steps', 'mean' in its forward pass" in str(found)


def test_the_table_has_a_row_an_obstacle() -> None:
    rows = [Obstacle("a.b", "tan", "w", "reason", "way [out]"), Obstacle("", "", "x", "a warning", blocking=False)]
    table = obstacle_table(rows)
    assert [column.header for column in table.columns] == ["", "layer", "operator", "parameter", "what, and what to do"]
    assert table.row_count == 2


def test_the_target_is_that_of_compile(monkeypatch) -> None:
    """Its kernels and its plan are asked, not those of this machine."""
    target = {"kind": "llvm", "mtriple": "riscv64-unknown-elf", "num-cores": 3}
    asked = []
    real = CpuTarget.layouts.fget
    monkeypatch.setattr(CpuTarget, "layouts", property(lambda each: asked.append(each.traits.cores) or real(each)))
    found = [each for each in pock.check(small(4), target=target, batch_norm="frozen") if each.blocking]
    assert set(asked) == {3}
    assert not found
    with pytest.raises(pock.PockError, match="'abacus' is no target"):
        pock.check(small(4), target="abacus")
