"""GPUs that are not there, are too small, or fail in the middle of training."""

from __future__ import annotations

import collections
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pock_tvm as pock
from pock_tvm.device.gpu import opencl
from pock_tvm.device.gpu.devices import open_device
from pock_tvm.device.trainer import MOST_QUEUED
from pock_tvm.errors import DeviceError, PockWarning
from schedules.gpu.schedule import RULES
from schedules.loops import split_by_kind
from tests.pock_tvm.networks import small
from tests.schedules.kernels import first_device

BATCH = 4
Step = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def programs() -> dict[str, pock.Program]:
    """The same training for both dialects, once compiled."""
    return {}


@pytest.fixture(params=["opencl", "webgpu"])
def program(request: pytest.FixtureRequest, programs: dict[str, pock.Program]) -> pock.Program:
    dialect = request.param
    first_device(dialect)
    if dialect not in programs:
        with warnings.catch_warnings(action="ignore", category=PockWarning):
            programs[dialect] = pock.compile(
                small(BATCH), target=dialect, optimizer=pock.AdamW(), guard="update", check=False
            )
    return programs[dialect]


@pytest.fixture
def steps() -> list[Step]:
    rng = np.random.default_rng(0)
    return [(rng.standard_normal((BATCH, 3, 8, 8), dtype="float32"), rng.integers(0, 5, BATCH)) for _ in range(4)]


def fails_after(launches: int, backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lose a device, where its driver lets us in the middle of a step."""
    if not isinstance(backend, opencl.OpenClBackend):
        backend._device.destroy()
        return
    import pyopencl as cl

    started: list[None] = []
    plain = cl.enqueue_nd_range_kernel

    def start(*arguments: Any) -> Any:
        started.append(None)
        if len(started) > launches:
            raise cl.RuntimeError("clEnqueueNDRangeKernel failed: OUT_OF_RESOURCES")
        return plain(*arguments)

    monkeypatch.setattr(cl, "enqueue_nd_range_kernel", start)


def test_a_lost_device_is_said_and_the_checkpoint_goes_on(
    program: pock.Program, steps: list[Step], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = pock.Trainer(program)
    for each in steps[:2]:
        trainer.step(*each, lr=0.01)
    file = tmp_path / "state.ckpt"
    trainer.save(file)
    saved, read = file.read_bytes(), trainer.weights()
    with monkeypatch.context() as lost:
        fails_after(5, trainer._library._backend, lost)
        with pytest.raises(DeviceError, match=r"stops: .*(OUT_OF_RESOURCES|lost).* restore the last checkpoint"):
            trainer.step(*steps[2], lr=0.01)
    assert trainer.steps == 2
    for call in (
        trainer.weights, trainer.losses, lambda: trainer.predict(steps[0][0]), lambda: trainer.save(file),
        lambda: trainer.step(*steps[2], lr=0.01), lambda: trainer.queue(*steps[2], lr=0.01),
    ):  # fmt: skip
        with pytest.raises(DeviceError, match=r"stopped within a step, and goes on after restore"):
            call()
    assert file.read_bytes() == saved
    new = pock.Trainer(program)
    new.restore(file)
    assert new.steps == 2
    assert all(new.weights()[name].tobytes() == array.tobytes() for name, array in read.items())
    expected = new.step(*steps[2], lr=0.01)
    if program.manifest["target"]["triple"] == "opencl":  # whose driver is itself again
        trainer.restore(file)
        assert trainer.step(*steps[2], lr=0.01) == expected
    else:
        with pytest.raises(DeviceError, match="lost"):
            trainer.restore(file)


def test_a_device_that_fails_at_queued_steps_counts_those_that_were_read(
    program: pock.Program, steps: list[Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = pock.Trainer(program)
    trainer.step(*steps[0], lr=0.01)
    for each in steps[1:3]:
        trainer.queue(*each, lr=0.01)
    assert trainer.steps == 3
    fails_after(0, trainer._library._backend, monkeypatch)
    with pytest.raises(DeviceError, match="steps since are lost"):
        trainer.queue(*steps[3], lr=0.01)
    assert trainer.steps == 1
    with pytest.raises(DeviceError, match="steps since are lost"):
        trainer.losses()


@pytest.mark.parametrize("program", ["opencl"], indirect=True)
def test_an_interrupted_wait_loses_no_step(
    program: pock.Program, steps: list[Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pock.Trainer(program), pock.Trainer(program)
    expected = [one.step(*each, lr=0.01) for each in steps]
    for each in steps:
        other.queue(*each, lr=0.01)
    backend, reads = other._library._backend, []
    plain = backend.read

    def read(region: Any) -> np.ndarray:
        reads.append(region)
        if len(reads) == 3:
            raise KeyboardInterrupt
        return plain(region)

    monkeypatch.setattr(backend, "read", read)
    with pytest.raises(KeyboardInterrupt):
        other.losses()
    assert other.steps == len(steps)
    assert other.losses() == expected
    assert all(other.weights()[name].tobytes() == array.tobytes() for name, array in one.weights().items())


@pytest.mark.parametrize("program", ["opencl"], indirect=True)
def test_a_long_queue_takes_no_more_memory_than_a_short_one(program: pock.Program, steps: list[Step]) -> None:
    trainer = pock.Trainer(program)
    before = len(trainer._memory._arrays)
    most = 0
    for _ in range(3 * MOST_QUEUED):
        trainer.queue(*steps[0], lr=1e-4)
        most = max(most, len(trainer._memory._arrays) - before)
    assert most <= 2 * MOST_QUEUED + 3, "a result and a flag for each step that waits"
    assert len(trainer.losses()) == 3 * MOST_QUEUED


# ---- devices that are not there, or too small ------------------------------------------------------------------------


def test_no_driver_of_opencl(monkeypatch: pytest.MonkeyPatch) -> None:
    cl = pytest.importorskip("pyopencl")

    def none() -> list[Any]:
        raise cl.LogicError("clGetPlatformIDs failed: PLATFORM_NOT_FOUND_KHR")

    for platforms in (none, list):
        monkeypatch.setattr(cl, "get_platforms", platforms)
        with pytest.raises(DeviceError, match="no device opencl:0: no driver is installed .Debian: pocl-opencl-icd"):
            open_device("opencl", "opencl")


def test_no_driver_of_webgpu(monkeypatch: pytest.MonkeyPatch) -> None:
    wgpu = pytest.importorskip("wgpu")
    monkeypatch.setattr(type(wgpu.gpu), "enumerate_adapters_sync", lambda _self: [])
    with pytest.raises(DeviceError, match="no device webgpu:0: no driver is installed .Debian: mesa-vulkan-drivers"):
        open_device("webgpu", "webgpu")


def test_more_than_a_device_of_opencl_has(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = first_device("opencl")
    with pytest.raises(DeviceError, match=r"needs 1073741824.0 MiB of memory, and .* has at most \d+\.\d free"):
        open_device("opencl", "opencl", needed=2**50)
    with pytest.raises(DeviceError, match=r"buffers of at most \d+\.\d MiB, and the program needs one of 1073741824.0"):
        backend.allocate(2**50)
    import pyopencl as cl

    def full(*_: Any) -> None:
        raise cl.MemoryError("create_buffer failed: MEM_OBJECT_ALLOCATION_FAILURE")

    monkeypatch.setattr(cl, "Buffer", full)
    with pytest.raises(DeviceError, match=r"too little memory: 4.0 MiB more are needed, and it has \d+\.\d MiB in all"):
        backend.allocate(4 * 2**20)


def test_more_than_a_device_of_webgpu_has(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = first_device("webgpu")
    with pytest.raises(DeviceError, match=r"buffers of at most \d+\.\d MiB, and the program needs one of 1073741824.0"):
        backend.allocate(2**50)

    def full(**_: Any) -> None:
        raise backend._wgpu.GPUOutOfMemoryError("Not enough memory left.")

    monkeypatch.setattr(backend._device, "create_buffer", full)
    with pytest.raises(DeviceError, match=r"too little memory: 4.0 MiB more are needed"):
        backend.allocate(4 * 2**20)


def test_a_layer_whose_kernel_takes_the_fallback_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def wasteful(sch: Any, block: Any, _traits: Any, _choices: Any) -> None:
        spatial, reduced = split_by_kind(sch, block)
        sch.reorder(*spatial, *reduced)
        blocks, threads = sch.split(sch.fuse(*spatial), [None, 4096])
        sch.bind(blocks, "blockIdx.x")
        sch.bind(threads, "threadIdx.x")

    x, y = np.random.default_rng(0).standard_normal((BATCH, 7), dtype="float32"), np.arange(BATCH)
    model = torch.nn.Sequential(collections.OrderedDict(head=torch.nn.Linear(7, 5)))
    exported = torch.export.export(model, (torch.from_numpy(x),))
    monkeypatch.setenv("POCK_CACHE", "off")
    monkeypatch.setitem(RULES, "pock.matmul", wasteful)
    with pytest.warns(PockWarning) as told:
        program = pock.compile(exported, target="opencl", check=False)
    (said,) = [str(each.message) for each in told if "schedule" in str(each.message)]
    assert "operator 'linear'" in said and "in layer 'head'" in said and "4096 threads a block, of 256" in said
    first_device("opencl")
    here = pock.Trainer(pock.compile(exported, check=False))
    np.testing.assert_allclose(pock.Trainer(program).step(x, y, lr=0.1), here.step(x, y, lr=0.1), rtol=1e-5)
