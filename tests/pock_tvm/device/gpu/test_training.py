"""Training on a GPU, by the back end for OpenCL: what a trainer does on a CPU, it does there."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest

import pock_tvm as pock
from pock_tvm.device.profile import profile
from pock_tvm.device.program import kernel_calls
from pock_tvm.errors import DeviceError, InputError, NonFiniteError, ProgramError
from tests.pock_tvm.networks import small, tokens
from tests.schedules.kernels import first_device

pytestmark = pytest.mark.usefixtures("device")
BATCH = 4
NOISE = 1e-8  # a bias before a batch norm has no gradient but rounding
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum, clipping": {"optimizer": pock.SGD(momentum=0.9), "clip_norm": 0.5},
    "AdamW, accumulation": {"optimizer": pock.AdamW(), "accumulate": 2},
    "micro-batches of unaligned size": {"micro_batches": 2},
    "batch statistics": {"batch_norm": "batch"},
    "channels of a weight": {"scheme": pock.Scheme({"blocks.1.conv2.weight": 0.5, "head.*": "full"})},
    "biases, two copies": {"scheme": pock.Scheme({"*.bias": "full"}), "copies": 2},
    "step by step": {"guard": "step"},
    "unguarded": {"guard": "off"},
}


@pytest.fixture(scope="module")
def device() -> str:
    """The device's name, if there is one."""
    return first_device("opencl").name


def compiled(model: Any = None, target: str = "opencl", **options: Any) -> pock.Program:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pock.PockWarning)
        return pock.compile(model or small(BATCH), target=target, check=False, **options)


def batches(count: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal((BATCH, 3, 8, 8), dtype="float32"), rng.integers(0, 5, BATCH)) for _ in range(count)]


def assert_same_update(found: pock.Trainer, expected: pock.Trainer, tolerance: float = 1e-4) -> None:
    start, one, other = expected.program.weights, found.weights(), expected.weights()
    for name in expected.program.trained:
        update = other[name] - start[name]
        np.testing.assert_allclose(
            one[name] - start[name], update, rtol=tolerance, atol=tolerance * np.abs(update).max() + NOISE, err_msg=name
        )


@pytest.mark.parametrize("name", OPTIONS)
def test_steps_are_those_of_a_cpu(name: str) -> None:
    options = OPTIONS[name]
    here, there = (pock.Trainer(compiled(target=target, **options)) for target in ("host", "opencl"))
    for x, y in batches(4):
        np.testing.assert_allclose(there.step(x, y, lr=0.05), here.step(x, y, lr=0.05), rtol=1e-5)
    assert_same_update(there, here)
    x, _ = batches(1, seed=7)[0]
    np.testing.assert_allclose(there.predict(x), here.predict(x), rtol=1e-4, atol=1e-5)


def test_words_are_looked_up_and_learnt() -> None:
    here, there = (pock.Trainer(compiled(tokens(BATCH), target)) for target in ("host", "opencl"))
    rng = np.random.default_rng(1)
    for _ in range(3):
        x, y = rng.integers(0, 40, (BATCH, 6)), rng.integers(0, 3, BATCH)
        np.testing.assert_allclose(there.step(x, y, lr=0.5), here.step(x, y, lr=0.5), rtol=1e-5)
    assert_same_update(there, here)


@pytest.fixture(scope="module")
def program(device: str) -> pock.Program:
    return compiled(optimizer=pock.SGD(momentum=0.9))


def test_two_runs_are_equal_bit_for_bit(program: pock.Program) -> None:
    runs = []
    for _ in range(2):
        trainer = pock.Trainer(program)
        losses = [trainer.step(x, y, lr=0.1) for x, y in batches(3)]
        runs.append((losses, {name: array.tobytes() for name, array in trainer.weights().items()}))
    assert runs[0] == runs[1]


def test_steps_queue(program: pock.Program) -> None:
    one, other = pock.Trainer(program), pock.Trainer(program)
    expected = [one.step(x, y, lr=0.1) for x, y in batches(70)]
    for x, y in batches(70):
        other.queue(x, y, lr=0.1)
    assert other.steps == 70
    assert other.losses() == expected
    assert other.losses() == []
    assert_same_update(other, one, 0)


def test_a_bad_step_in_the_queue_changes_nothing_nor_do_those_behind_it(program: pock.Program) -> None:
    good, bad = pock.Trainer(program), pock.Trainer(program)
    steps = batches(5)
    steps[2][0][1, 0, 3, 3] = np.nan
    for x, y in steps:
        bad.queue(x, y, lr=0.1)
    with pytest.raises(NonFiniteError, match="is not finite"):
        bad.losses()
    for x, y in steps[:2]:
        good.step(x, y, lr=0.1)
    assert bad.steps == good.steps == 2
    assert_same_update(bad, good, 0)
    for trainer in (good, bad):
        trainer.step(*steps[3], lr=0.1)
    assert_same_update(bad, good, 0)


@pytest.mark.parametrize("what", ["input", "loss"])
def test_a_step_that_is_not_finite_changes_nothing(what: str, program: pock.Program) -> None:
    trainer = pock.Trainer(program)
    ((x, y),) = batches(1)
    trainer.step(x, y, lr=0.1)
    before = trainer.weights()
    bad = x * (np.nan if what == "input" else 3e38)
    with pytest.raises(NonFiniteError, match="Nothing has changed"):
        trainer.step(bad, y, lr=0.1)
    after = trainer.weights()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    assert trainer.steps == 1


def test_a_state_goes_from_a_gpu_to_a_cpu_and_back(program: pock.Program, tmp_path) -> None:
    there, here = pock.Trainer(program), pock.Trainer(compiled(target="host", optimizer=pock.SGD(momentum=0.9)))
    first, second = batches(2)
    there.step(*first, lr=0.1)
    there.save(tmp_path / "state.ckpt")
    here.restore(tmp_path / "state.ckpt")
    again = pock.Trainer(program)
    again.restore(tmp_path / "state.ckpt")
    losses = [trainer.step(*second, lr=0.1) for trainer in (there, again, here)]
    assert losses[0] == losses[1]
    np.testing.assert_allclose(losses[0], losses[2], rtol=1e-5)
    assert_same_update(there, here)


def test_a_copy_goes_on_by_itself(program: pock.Program) -> None:
    one = pock.Trainer(program)
    first, second = batches(2)
    one.step(*first, lr=0.1)
    twin = copy.deepcopy(one)
    assert one.step(*second, lr=0.1) == twin.step(*second, lr=0.1)


def test_a_program_file_runs(program: pock.Program, tmp_path) -> None:
    program.save(tmp_path / "net.pock")
    ((x, y),) = batches(1)
    assert pock.Trainer(tmp_path / "net.pock").step(x, y, lr=0.1) == pock.Trainer(program).step(x, y, lr=0.1)


def test_kernels_are_timed_and_the_state_stays(program: pock.Program) -> None:
    trainer = pock.Trainer(program)
    ((x, y),) = batches(1)
    before = trainer.weights()
    rows = profile(trainer, x, y, repeat=2)
    assert len(rows) == len(kernel_calls(program.manifest["entries"]["train_step"]))
    assert all(row["ms"] > 0 for row in rows)
    after = trainer.weights()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("opencl:99", DeviceError, "there is no device opencl:99"),
        ("gpu", InputError, "'gpu' is no device: give one of"),
        ("opencl:x", InputError, "'opencl:x' is no device"),
    ],
)
def test_wrong_devices(name: str, error: type[Exception], said: str, program: pock.Program) -> None:
    with pytest.raises(error, match=said):
        pock.Trainer(program, device=name)


def test_a_program_for_a_gpu_has_no_bundle(program: pock.Program, tmp_path) -> None:
    with pytest.raises(ProgramError, match=r"compiled for a GPU \(opencl\), and programs in a bundle run on CPUs"):
        pock.deploy(program, tmp_path / "net")
    assert not list(tmp_path.iterdir())


def test_a_program_for_a_cpu_runs_on_no_gpu() -> None:
    with pytest.raises(ProgramError, match="compiled for CPUs"):
        pock.Trainer(compiled(target="host"), device="opencl:0")
