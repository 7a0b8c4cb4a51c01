"""A mistake of any kind gets one line of ours, that says what is wanted."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import pock_tvm as pock
from tests.pock_tvm.networks import Small, small


@pytest.fixture(scope="module")
def program() -> pock.Program:
    return pock.compile(small(4), scheme=pock.Scheme({"head.*": "full"}), batch_norm="frozen")


@pytest.fixture(scope="module")
def trainer(program) -> pock.Trainer:
    return pock.Trainer(program)


def refused(call) -> str:
    """What a mistake is told: one line of a PockError."""
    with pytest.raises(pock.PockError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (Small(), "not an nn.Module: take torch.export.export(model.eval(), (example_input,))"),
        (torch.jit.script(nn.ReLU()), "not an nn.Module: take torch.export.export"),
        (Small, "not the class Small"),
        (Small().state_dict(), "not a collections.OrderedDict"),
        (torch.zeros(3), "not a torch.Tensor"),
        (lambda x: x, "not the function <lambda>"),
        (None, "not None"),
        (3, "not 3"),
        ("weights.pt", "there is no model file"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_model(model: object, complaint: str) -> None:
    assert complaint in refused(lambda: pock.compile(model))
    assert complaint in refused(lambda: pock.Scheme.head_only(model))
    assert complaint in [each.reason for each in pock.check(model)][0]


ARGUMENTS = [
    ({"batch": "8"}, "batch is a number of samples, at least 1, not '8'"),
    ({"batch": 4.0}, "batch is a number of samples"),
    ({"batch": 0}, "batch is a number of samples"),
    ({"batch": True}, "batch is a number of samples"),
    ({"shapes": [(4, 3)]}, "shapes is a mapping of input names to shapes"),
    ({"shapes": {"x": "4,3"}}, "shapes is a mapping"),
    ({"shapes": {"x": 4}}, "shapes is a mapping"),
    ({"shapes": {"x": (4, -1)}}, "shapes is a mapping"),
    ({"scheme": {"*": "full"}}, "scheme is a pock.Scheme, such as Scheme.full()"),
    ({"scheme": "full"}, "not 'full'"),
    ({"scheme": pock.Scheme}, "not the class Scheme"),
    ({"scheme": pock.Scheme.full}, "not the function full"),
    ({"loss": None}, "loss is a pock.Loss, one of the names cross_entropy"),
    ({"loss": nn.functional.cross_entropy}, "give an example, loss=pock.CustomLoss(function, target)"),
    ({"loss": nn.CrossEntropyLoss}, "not the class CrossEntropyLoss: call it"),
    ({"loss": "hinge"}, "there is no loss 'hinge'"),
    ({"optimizer": "sgd"}, "optimizer is pock.SGD(…), pock.Adam(…) or pock.AdamW(…), not 'sgd'"),
    ({"optimizer": {"kind": "sgd"}}, "not a dict"),
    ({"optimizer": pock.SGD}, "not the class SGD: call it"),
    ({"optimizer": torch.optim.SGD(Small().parameters(), 0.1)}, "not a torch.SGD"),
    ({"target": 5}, "'5' is no target"),
    ({"target": ["llvm"]}, "is no target"),
    ({"target": "toaster"}, "is no target"),
    ({"batch_norm": True}, "batch_norm is 'frozen' or 'batch', not True"),
    ({"accumulate": True}, "accumulate is a number of steps, at least 1, not True"),
    ({"accumulate": 1.5}, "accumulate is a number of steps"),
    ({"micro_batches": "2"}, "micro_batches is a number of parts"),
    ({"clip_norm": "a"}, "clip_norm is a positive number, not 'a'"),
    ({"clip_norm": math.inf}, "clip_norm is a positive number, not inf"),
    ({"clip_norm": [1]}, "clip_norm is a positive number, not a list"),
    ({"memory_budget": []}, "memory_budget is an amount of memory"),
    ({"memory_budget": -1}, "is no amount of memory"),
    ({"memory_budget": "a lot"}, "is no amount of memory"),
    ({"dump": 3}, "dump is a path, not 3"),
    ({"build": "no"}, "build is True or False, not 'no'"),
    ({"lr": 0.1}, "compile has no option 'lr'; its options are model, scheme, loss"),
]


@pytest.mark.parametrize(
    ("arguments", "complaint"), ARGUMENTS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_arguments_of_compile(arguments: dict, complaint: str) -> None:
    assert complaint in refused(lambda: pock.compile(small(4), **arguments))


OPTIONS = [
    (lambda: pock.SGD(lr=0.1), "SGD has no option 'lr'; its options are momentum, dampening, weight_decay, nesterov. The learning rate is given to each step"),
    (lambda: pock.Adam(params=[], lr=0.1), "scheme's to say"),
    (lambda: pock.SGD(Small().parameters()), "SGD: momentum is a finite number from 0, not a generator"),
    (lambda: pock.SGD(0.9, 0, 0, False, 1), "takes 4 options, not 5"),
    (lambda: pock.SGD(momentum=-1), "not -1"),
    (lambda: pock.SGD(momentum=math.nan), "not nan"),
    (lambda: pock.SGD(nesterov=1), "nesterov is True or False"),
    (lambda: pock.SGD(nesterov=True), "nesterov needs a momentum"),
    (lambda: pock.Adam(betas=0.9), "Adam: betas is a pair of numbers in [0, 1), not 0.9"),
    (lambda: pock.AdamW(betas=(0.9, 1.0)), "AdamW: betas is a pair of numbers in [0, 1)"),
    (lambda: pock.Adam(eps="small"), "Adam: eps is a finite number from 0, not 'small'"),
    (lambda: pock.Loss(weight=torch.ones(5)), "Loss has no option 'weight'; its options are kind, output"),
    (lambda: pock.Loss(kind=None), "Loss: kind is a name: cross_entropy"),
    (lambda: pock.Loss(output=-1), "Loss: output is the position of an output"),
    (lambda: pock.Loss(label_smoothing=2), "Loss: label_smoothing is a number between 0 and 1, not 2"),
    (lambda: pock.Recipe(epochs="3"), "Recipe: epochs is a number from 0, not '3'"),
    (lambda: pock.Recipe(lr=-1), "Recipe: lr is a learning rate"),
    (lambda: pock.Task(model=Small(), data="a", validation="b"), "Task: model is a path, not a tests.Small"),
    (lambda: pock.Task("net.pt2", "a", "b", optimizer=pock.SGD()), "Task: optimizer is a mapping such as {'kind': 'sgd'"),
    (lambda: pock.Task("net.pt2", "a", "b", ratios=[0.5, 2]), "Task: ratios is a sequence of shares in (0, 1], not a list"),
    (lambda: pock.analyze("net.pt2", "c.json"), "what is analysed is a pock.Task, not 'net.pt2'"),
    (lambda: pock.search("c.json"), "what is searched is pock.Contributions, such as Contributions.load(path), not 'c.json'"),
    (lambda: pock.check(small(4), scheme={"*": "full"}), "or a function that makes one, not a dict"),
    (lambda: pock.Scheme(5), "a scheme is a mapping of patterns"),
    (lambda: pock.Scheme("full"), "a scheme is a mapping of patterns"),
    (lambda: pock.Scheme({1: "full"}), "a scheme is a mapping of patterns"),
    (lambda: pock.Scheme({"*": 2}), "the channel ratio 2 is outside (0, 1]"),
    (lambda: pock.Scheme({"*": math.nan}), "outside (0, 1]"),
    (lambda: pock.Scheme({"*": True}), "True is neither"),
    (lambda: pock.Scheme({"*": [None]}), "channels are given as a list of different indices"),
    (lambda: pock.Scheme({"*": ["a"]}), "channels are given as a list"),
    (lambda: pock.Scheme({"*": [math.nan]}), "channels are given as a list"),
    (lambda: pock.Scheme.load(5), "the path of a scheme is a path, not 5"),
    (lambda: pock.Scheme.bias_only(small(4), last=99), "there are 7 biases in this network"),
    (lambda: pock.Scheme.last_layers(small(4), 99), "there are 6 layers in this network"),
    (lambda: pock.Scheme.last_layers(small(4), "3"), "count is a number of layers, not '3'"),
    (lambda: pock.Trainer(5), "a trainer's program is what pock.compile returned"),
    (lambda: pock.Trainer(small(4)), "not a torch.ExportedProgram"),
    (lambda: pock.Program.load(None), "the path of a program is a path, not None"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "complaint"), OPTIONS, ids=[complaint for _, complaint in OPTIONS])
def test_options(call, complaint: str) -> None:
    assert complaint in refused(call)


@pytest.mark.parametrize("lr", [{"head": 0.1}, None, "a", [0.1], math.nan, math.inf, 1e39, -1, True], ids=repr)
def test_learning_rates(trainer, lr: object) -> None:
    message = refused(lambda: trainer.step(np.zeros((4, 3, 8, 8), "float32"), np.zeros(4, "int64"), lr=lr))
    assert "lr is a learning rate: a finite number from 0, not" in message
    assert trainer.steps == 0


X, Y = np.zeros((4, 3, 8, 8), "float32"), np.zeros(4, "int64")
CALLS = [
    (lambda t: t.step(None, Y, lr=0.1), "input 'x' is an array of numbers, not None"),
    (lambda t: t.step("x", Y, lr=0.1), "input 'x' is an array of numbers, not 'x'"),
    (lambda t: t.step([[[1, 2], [3]]], Y, lr=0.1), "input 'x' cannot be read as an array"),
    (lambda t: t.step(X.tolist(), Y, lr=0.1), "has 1 input (x); 4 were given: a list or tuple has an item for each"),
    (
        lambda t: t.step(X.astype("float64"), Y, lr=0.1),
        "input 'x' is of type float64; the program takes float32: convert it, by .astype('float32') or .to(torch.float32)",
    ),
    (lambda t: t.step(X, ["a"] * 4, lr=0.1), "target y is an array of numbers, not a list"),
    (lambda t: t.predict({"image": X}), "'image' is not one"),
    (lambda t: t.evaluate(5), "data to evaluate is a sequence of batches (x, y), not 5"),
    (lambda t: t.evaluate([X]), "one of them is a numpy.ndarray"),
    (lambda t: t.load_state_dict(5), "the state is a mapping of names to arrays"),
    (lambda t: t.save(5), "the path of a checkpoint is a path, not 5"),
    (lambda t: t.restore(None), "the path of a checkpoint is a path, not None"),
]


@pytest.mark.parametrize(("call", "complaint"), CALLS, ids=[complaint for _, complaint in CALLS])
def test_calls_of_a_trainer(trainer, call, complaint: str) -> None:
    assert complaint in refused(lambda: call(trainer))


def test_tensors_that_require_a_gradient_are_data_like_any_other(program) -> None:
    x, y = torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)
    plain, tracked = pock.Trainer(program), pock.Trainer(program)
    assert plain.step(x, y, lr=0.1) == tracked.step(x.requires_grad_(), y, lr=np.float32(0.1))
    state = nn.Module.state_dict(Small(), keep_vars=True)
    tracked.load_state_dict(state)
    np.testing.assert_array_equal(tracked.weights()["head.bias"], state["head.bias"].detach().numpy())


def test_numbers_of_numpy_are_numbers(tmp_path) -> None:
    options = {"accumulate": np.int64(2), "clip_norm": np.float32(1), "optimizer": pock.SGD(momentum=np.float32(0.5))}
    made = pock.compile(small(), batch=np.int64(4), batch_norm="frozen", build=False, **options)
    made.save(tmp_path / "net.pock")
    assert pock.Program.load(tmp_path / "net.pock").manifest["optimizer"]["momentum"] == 0.5


def test_a_fault_of_the_compiler_is_one_line_too(monkeypatch) -> None:
    def fails(*_args: object) -> None:
        raise ValueError("an index\nof TVM's")

    monkeypatch.setattr("pock_tvm.compiler.pipeline.differentiate", fails)
    message = refused(lambda: pock.compile(small(4)))
    assert "its fault and not yours: ValueError: an index. Please report" in message
