"""The trainer: steps, predictions, states, checkpoints, and what it refuses."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import pock_tvm as pock
from pock_tvm.errors import CheckpointError, InputError, ProgramError
from tests.pock_tvm.networks import Small, small

BATCH = 4


@pytest.fixture(scope="module")
def program() -> pock.Program:
    scheme = pock.Scheme({"*": "frozen", "*.bias": "full", "blocks.1.conv1.weight": 0.5, "head.*": "full"})
    return pock.compile(small(), batch=BATCH, scheme=scheme, optimizer=pock.AdamW())


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((BATCH, 3, 8, 8)).astype("float32"), rng.integers(0, 5, BATCH)


def test_training_lowers_the_loss(program, data) -> None:
    trainer = pock.Trainer(program)
    losses = [trainer.step(*data, lr=0.01) for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]
    assert trainer.steps == 20


def test_predict_uses_the_trained_state_and_takes_any_number(program, data) -> None:
    trainer = pock.Trainer(program)
    before = trainer.predict(data[0])
    trainer.step(*data, lr=0.01)
    after = trainer.predict(data[0])
    assert not np.allclose(before, after)
    model = Small().eval()
    model.load_state_dict(trainer.state_dict())
    for count in (1, 3, 4, 9):
        x = np.random.default_rng(1).standard_normal((count, 3, 8, 8)).astype("float32")
        with torch.no_grad():
            np.testing.assert_allclose(trainer.predict(x), model(torch.from_numpy(x)).numpy(), atol=1e-5)


class Masked(nn.Module):
    """An input that all samples share."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(7, 5)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.head(x * mask)


def test_predict_gives_all_samples_what_they_share() -> None:
    torch.manual_seed(0)
    model, mask = Masked().eval(), torch.rand(3, 7)
    x = torch.randn(9, 3, 7)
    exported = torch.export.export(model, (x[:4], mask))
    trainer = pock.Trainer(pock.compile(exported, loss=pock.Loss("mse")))
    np.testing.assert_allclose(trainer.predict([x, mask]), model(x, mask).detach().numpy(), atol=1e-5)


def test_inputs_by_name_and_as_torch_tensors(program, data) -> None:
    trainers = [pock.Trainer(program) for _ in range(4)]
    x, y = data
    forms = [x, [x], {"x": x}, torch.from_numpy(x)]
    losses = {trainer.step(form, torch.from_numpy(y), lr=0.01) for trainer, form in zip(trainers, forms, strict=True)}
    assert len(losses) == 1


def test_evaluate(program, data) -> None:
    trainer = pock.Trainer(program)
    x, y = (np.concatenate([part, part[:2]]) for part in data)
    result = trainer.evaluate([(x, y)])
    logits = torch.from_numpy(trainer.predict(x))
    assert result["loss"] == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(y))), rel=1e-5
    )
    assert result["accuracy"] == pytest.approx(float((logits.argmax(1).numpy() == y).mean()))


@pytest.mark.parametrize(
    ("count", "labels", "complaint"),
    [
        (3, [0, 5, 1], "label 5 is out of range: there are 5 classes, 0 to 4"),
        (3, [0, -1, 1], "label -1 is out of range"),
        (3, [0, 1], r"target y has the shape \(2,\)"),
        (3, [0.0, 1.0, 2.0], "target y is of type float64"),
        (
            3,
            np.full((3, 5), 0.2, "float32"),
            r"takes class numbers \[3\]: for probabilities compile with loss=pock.Cust",
        ),
        (3, None, "needs a target y"),
        (0, [], "predict takes at least one sample"),
        (3, [-100, -100, -100], "evaluate was given no data"),
    ],
)
def test_evaluate_checks_labels_as_a_step_does(program, data, count: int, labels: object, complaint: str) -> None:
    trainer = pock.Trainer(program)
    with pytest.raises(InputError, match=complaint):
        trainer.evaluate([(data[0][:count], labels)])
    if not count:
        with pytest.raises(InputError, match=complaint):
            trainer.predict(data[0][:0])


def test_the_state_fits_pytorch_both_ways(program, data) -> None:
    trainer = pock.Trainer(program)
    trainer.step(*data, lr=0.01)
    torch.manual_seed(7)
    other = Small().eval()
    trainer.load_state_dict(other.state_dict())
    assert set(trainer.state_dict()) == set(other.state_dict())
    for name, tensor in other.state_dict().items():
        assert torch.equal(trainer.state_dict()[name], tensor), name
    with torch.no_grad():  # frozen weights too were taken over, and prepared again
        np.testing.assert_allclose(trainer.predict(data[0]), other(torch.from_numpy(data[0])).numpy(), atol=1e-5)


def test_a_restored_trainer_goes_on_as_if_nothing_had_happened(program, data, tmp_path) -> None:
    straight, first = pock.Trainer(program), pock.Trainer(program)
    for _ in range(3):
        straight.step(*data, lr=0.01)
        first.step(*data, lr=0.01)
    first.save(tmp_path / "state.ckpt")
    second = pock.Trainer(program)
    second.restore(tmp_path / "state.ckpt")
    assert second.steps == 3
    for _ in range(3):
        assert straight.step(*data, lr=0.01) == second.step(*data, lr=0.01)


def test_a_checkpoint_holds_replaced_frozen_weights(program, data, tmp_path) -> None:
    trainer = pock.Trainer(program)
    torch.manual_seed(7)
    trainer.load_state_dict(Small().state_dict())
    trainer.save(tmp_path / "state.ckpt")
    other = pock.Trainer(program)
    other.restore(tmp_path / "state.ckpt")
    np.testing.assert_array_equal(other.predict(data[0]), trainer.predict(data[0]))


@pytest.mark.parametrize(
    "options", [{"accumulate": 2}, {"clip_norm": 0.1}, {"accumulate": 3, "clip_norm": 0.1}], ids=str
)
def test_micro_batches_change_no_update(options, tmp_path) -> None:
    """Nor does saving and going on between two steps."""
    make = {"scheme": pock.Scheme({"*": "full"}), "optimizer": pock.Adam(), "batch": 8} | options
    whole, parts = (pock.Trainer(pock.compile(small(), micro_batches=count, **make)) for count in (1, 4))
    rng = np.random.default_rng(0)
    for _ in range(7):
        x, y = rng.standard_normal((8, 3, 8, 8)).astype("float32"), rng.integers(0, 5, 8)
        assert parts.step(x, y, lr=0.01) == pytest.approx(whole.step(x, y, lr=0.01), rel=1e-4)
        parts.save(tmp_path / "state")
        parts = pock.Trainer(parts.program)
        parts.restore(tmp_path / "state")
    for name, array in whole.weights().items():
        np.testing.assert_allclose(parts.weights()[name], array, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(parts.predict(x[:5]), whole.predict(x[:5]), atol=1e-3)


def test_accumulated_steps_equal_one_large_batch() -> None:
    scheme, optimizer = pock.Scheme({"*": "full"}), pock.SGD(momentum=0.9, nesterov=True)
    whole = pock.Trainer(pock.compile(small(), batch=8, scheme=scheme, optimizer=optimizer))
    parts = pock.Trainer(pock.compile(small(), batch=4, scheme=scheme, optimizer=optimizer, accumulate=2))
    rng = np.random.default_rng(0)
    for _ in range(3):
        x, y = rng.standard_normal((8, 3, 8, 8)).astype("float32"), rng.integers(0, 5, 8)
        loss = whole.step(x, y, lr=0.1)
        halves = [parts.step(x[i : i + 4], y[i : i + 4], lr=0.1) for i in (0, 4)]
        assert loss == pytest.approx(np.mean(halves), rel=1e-5)
    for name, array in whole.weights().items():
        np.testing.assert_allclose(parts.weights()[name], array, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("clip_norm", [0.05, 1e3])
def test_clipping_equals_pytorch(clip_norm: float, data) -> None:
    trainer = pock.Trainer(pock.compile(small(), batch=BATCH, clip_norm=clip_norm))
    model = Small().eval()
    model.load_state_dict(trainer.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(2):
        trainer.step(*data, lr=0.5)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.from_numpy(data[0])), torch.from_numpy(data[1])).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
    for name, tensor in model.state_dict().items():
        np.testing.assert_allclose(trainer.weights()[name], tensor.numpy(), atol=1e-5, err_msg=name)


def refusals() -> list[tuple[str, object, object, dict]]:
    x, y = np.zeros((BATCH, 3, 8, 8), "float32"), np.zeros(BATCH, "int64")
    return [
        ("input 'x' has the shape (3, 3, 8, 8)", x[:3], y, {}),
        ("input 'x' has the shape (4, 8, 8, 3)", x.transpose(0, 2, 3, 1), y, {}),
        ("input 'x' is of type float64", x.astype("float64"), y, {}),
        ("input 'x' is of type uint8", x.astype("uint8"), y, {}),
        ("label 5 is out of range", x, y + 5, {}),
        ("label -1 is out of range", x, y - 1, {}),
        ("target y has the shape (3,)", x, y[:3], {}),
        ("target y is of type float32", x, y.astype("float32"), {}),
        ("needs a target", x, None, {}),
        ("2 were given", [x, x], y, {}),
        ("'z' is not one", {"z": x}, y, {}),
        ("a learning rate: a finite number from 0, not nan", x, y, {"lr": float("nan")}),
    ]


@pytest.mark.parametrize(
    ("complaint", "x", "y", "options"), refusals(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_refused_step_changes_nothing(program, data, complaint: str, x, y, options: dict) -> None:
    trainer = pock.Trainer(program)
    trainer.step(*data, lr=0.01)
    before = {name: array.copy() for name, array in trainer._arrays.items()}
    with pytest.raises(InputError) as error:
        trainer.step(x, y, **({"lr": 0.01} | options))
    assert complaint in str(error.value)
    assert trainer.steps == 1
    for name, array in trainer._arrays.items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


@pytest.mark.parametrize(
    "read",
    [
        lambda x, places: x[:, places],
        lambda x, places: x.gather(1, places.expand(3, -1)),
        lambda x, places: x.index_select(1, places),
        lambda x, places: torch.take(x[0], places),
    ],
)
def test_an_index_that_points_outside_is_refused(read) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 5)

        def forward(self, x, places):
            return read(self.linear(x), places)

    exported = torch.export.export(Reader(), (torch.ones(3, 2), torch.tensor([0, 4])))
    trainer = pock.Trainer(pock.compile(exported, loss="mse"))
    x, target = np.ones((3, 2), "float32"), np.zeros(tuple(trainer.program.manifest["outputs"][0]["shape"]), "float32")
    before = trainer.weights()["linear.weight"].copy()
    for outside in (5, -6):
        with pytest.raises(InputError, match="'places'"):
            trainer.step([x, np.array([0, outside])], target, lr=0.1)
    np.testing.assert_array_equal(trainer.weights()["linear.weight"], before)


def test_ignored_labels_are_no_fault(program, data) -> None:
    labels = np.array([1, -100, 2, -100])
    loss = pock.Trainer(program).step(data[0], labels, lr=0.0)
    logits = torch.from_numpy(pock.Trainer(program).predict(data[0]))
    assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))), rel=1e-5)


def test_a_state_that_does_not_fit_is_refused(program) -> None:
    trainer = pock.Trainer(program)
    state = trainer.state_dict()
    before = trainer.weights()
    wrong = [
        ({name: tensor for name, tensor in state.items() if name != "stem.weight"}, "'stem.weight' is missing"),
        (state | {"extra": state["stem.weight"]}, "'extra' is no weight of the program"),
        (state | {"head.weight": torch.zeros(3, 8)}, r"'head.weight' has the shape \(5, 8\)"),
    ]
    for bad, complaint in wrong:
        with pytest.raises(CheckpointError, match=complaint):
            trainer.load_state_dict(bad)
        for name, array in trainer.weights().items():
            np.testing.assert_array_equal(array, before[name])


def test_a_damaged_or_foreign_checkpoint_is_refused(program, data, tmp_path) -> None:
    trainer = pock.Trainer(program)
    trainer.step(*data, lr=0.01)
    good = tmp_path / "good.ckpt"
    trainer.save(good)
    content = good.read_bytes()
    before = trainer.weights()
    altered = bytearray(content)
    altered[-5] ^= 1
    for name, bad in (("truncated", content[:-100]), ("altered", bytes(altered)), ("empty", b""), ("text", b"hello")):
        (tmp_path / name).write_bytes(bad)
        with pytest.raises(CheckpointError):
            trainer.restore(tmp_path / name)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        trainer.restore(tmp_path / "missing")
    torch.manual_seed(1)
    foreign = torch.export.export(Small().eval(), (torch.zeros(BATCH, 3, 8, 8),))
    scheme = pock.Scheme({"*": "frozen", "head.*": "full"})
    other = pock.Trainer(pock.compile(foreign, scheme=scheme, batch_norm="frozen", check=False))
    other.save(tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match=r"beside other frozen weights than the program's: 'stem\.weight'"):
        trainer.restore(tmp_path / "other.ckpt")
    for name, array in trainer.weights().items():
        np.testing.assert_array_equal(array, before[name])


def test_a_program_for_another_machine_is_refused(program) -> None:
    manifest = program.manifest | {"target": {"triple": "riscv64-linux-gnu", "description": ""}}
    with pytest.raises(ProgramError, match="compiled for riscv64-linux-gnu"):
        pock.Trainer(pock.Program(manifest, program.library, program.weights, program.constants))


def test_a_copy_of_a_trainer_goes_on_by_itself(program, data) -> None:
    trainer = pock.Trainer(program)
    trainer.step(*data, lr=0.05)
    twin, before = copy.deepcopy(trainer), trainer.weights()
    losses = [twin.step(*data, lr=0.05) for _ in range(2)]
    for name, array in trainer.weights().items():
        np.testing.assert_array_equal(array, before[name])
    assert [trainer.step(*data, lr=0.05) for _ in range(2)] == losses
