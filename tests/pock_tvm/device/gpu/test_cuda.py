"""The back end for CUDA: what it asks of the driver, on one that is played (no GPU)."""

from __future__ import annotations

import ctypes
import sys
import types

import numpy as np
import pytest

from pock_tvm.device.errors import DeviceError, InputError, ProgramError
from pock_tvm.device.gpu import devices
from pock_tvm.device.gpu.backend import CopyBytes, Launch, Region
from pock_tvm.device.gpu.cuda import GRAPH_COMMANDS, SMALL_BYTES, STAGE_BYTES, STAGES, CudaBackend, runs

from .cuda_driver import Driver, Status


def add_one(target: int, source: int) -> None:
    """Of two arrays of 8 bytes."""
    ctypes.memmove(target, (np.frombuffer(ctypes.string_at(source, 8), "uint8") + 1).tobytes(), 8)


@pytest.fixture
def play(monkeypatch):
    def driver(**options) -> Driver:
        played = Driver(functions={b"add_one": (add_one, 2)}, **options)
        monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
        monkeypatch.setitem(sys.modules, "cuda.bindings", types.SimpleNamespace(driver=played))
        return played

    return driver


LONG = GRAPH_COMMANDS
"""What a list of this many times adds to ``c``."""


def steps(a, b, c) -> list:
    """c = a + 1 + LONG, by way of b at an offset."""
    middle = Region(b, 16, 8)
    return [
        Launch("k", "add_one", (3, 1, 1), (64, 2, 1), (middle, Region(a, 0, 8))),
        CopyBytes(Region(c, 0, 8), middle),
        *[Launch("k", "add_one", (3, 1, 1), (64, 2, 1), (Region(c, 0, 8), Region(c, 0, 8)))] * LONG,
    ]


def test_a_list_runs_in_order_as_often_as_it_is_submitted(play) -> None:
    driver = play()
    backend = CudaBackend(0)
    backend.load("k", b"\x7fELF")
    a, b, c = (backend.allocate(size) for size in (8, 32, 8))
    recorded = backend.record(steps(a, b, c))
    assert backend.read(Region(c, 0, 8)).tolist() == [0] * 8, "memory begins as zeros, and recording runs nothing"
    function, sizes, addresses = driver.launches[0]
    assert sizes == (3, 1, 1, 64, 2, 1) and addresses == [b.address + 16, a.address]
    for first in (5, 40):
        backend.write(Region(a, 0, 8), np.arange(first, first + 8, dtype="uint8"))
        backend.submit(recorded)
        assert backend.read(Region(c, 0, 8)).tolist() == list(range(first + 1 + LONG, first + 9 + LONG))
    assert len(driver.launches) == 1 + LONG, "the driver is given each launch once, and then the graph"


def test_a_list_is_timed_by_the_device(play) -> None:
    play()
    backend = CudaBackend(0)
    backend.load("k", b"\x7fELF")
    a, b, c = (backend.allocate(size) for size in (8, 32, 8))
    assert backend.seconds(backend.record(steps(a, b, c)[:2])) == pytest.approx(3e-3)  # both, and the first event


def test_a_few_commands_run_without_a_graph(play) -> None:
    driver = play()
    backend = CudaBackend(0)
    backend.load("k", b"\x7fELF")
    a, b, c = (backend.allocate(size) for size in (8, 32, 8))
    recorded = backend.record(steps(a, b, c)[:1])
    assert not driver.launches
    backend.submit(recorded)
    backend.submit(recorded)
    assert len(driver.launches) == 2, "each time"
    assert backend.read(Region(b, 16, 8)).tolist() == [1] * 8


def test_memory_that_is_sent_is_not_written_again_before_it_is_sent(play) -> None:
    play()
    backend = CudaBackend(0)
    size = (2 * STAGES + 1) * STAGE_BYTES + 3
    buffer = backend.allocate(size + 5)
    values = np.random.default_rng(0).integers(0, 256, size, "uint8")
    backend.write(Region(buffer, 5, size), values)
    values_before = values.copy()
    values[:] = 0  # the caller may go on at once
    assert np.array_equal(backend.read(Region(buffer, 5, size)), values_before)


def test_memory_is_given_back_when_it_is_dropped_and_not_while_a_list_uses_it(play) -> None:
    driver = play()
    backend = CudaBackend(0)
    backend.load("k", b"\x7fELF")
    a, b, c = (backend.allocate(SMALL_BYTES + size) for size in (8, 32, 8))
    recorded = backend.record(steps(a, b, c))
    del a, b, c
    assert len(driver.memory) == 3
    del recorded
    assert not driver.memory


def test_small_buffers_serve_again_and_begin_as_zeros(play) -> None:
    driver = play()
    backend = CudaBackend(0)
    for value in range(1, 4):
        buffer = backend.allocate(8)
        assert backend.read(Region(buffer, 0, 8)).tolist() == [0] * 8
        backend.write(Region(buffer, 0, 8), np.full(8, value, "uint8"))
        del buffer
    assert len(driver.memory) == 1
    two = [backend.allocate(8) for _ in range(2)]
    assert two[0].address != two[1].address


def test_too_little_memory_is_told_with_what_is_needed_and_what_is_there(play) -> None:
    play(free=3 * 2**20)
    backend = CudaBackend(0)
    with pytest.raises(DeviceError, match=r"cuda:0 \(Some GPU\) .* 4.0 MiB more are needed, and 3.0 of its 2048.0 MiB"):
        backend.allocate(4 * 2**20)
    with pytest.raises(DeviceError, match=r"needs 5.0 MiB of memory, and cuda:0 \(Some GPU\) has at most 3.0 free"):
        devices.open_device("cuda", "cuda", ["sm_87"], 5 * 2**20)


def test_an_error_of_the_driver_names_device_and_status(play) -> None:
    driver = play()
    backend = CudaBackend(0)
    buffer = backend.allocate(8)
    driver.broken = True
    for call in (lambda: backend.read(Region(buffer, 0, 8)), backend.finish):
        with pytest.raises(DeviceError, match=r"cuda:0 \(Some GPU\) stops: CUDA_ERROR_ILLEGAL_ADDRESS.*checkpoint"):
            call()


def test_a_capture_that_fails_ends(play, monkeypatch) -> None:
    driver = play()
    backend = CudaBackend(0)
    backend.load("k", b"\x7fELF")
    a, b, c = (backend.allocate(size) for size in (8, 32, 8))
    monkeypatch.setattr(driver, "cuLaunchKernel", lambda *_: (Status.CUDA_ERROR_ILLEGAL_ADDRESS,))
    with pytest.raises(DeviceError, match="ILLEGAL_ADDRESS"):
        backend.record(steps(a, b, c))
    assert driver.capturing is None
    assert not driver.contexts, "other libraries find the thread as they left it"


@pytest.mark.parametrize(
    ("built", "here", "is_ptx", "expected"),
    [
        ((8, 7), (8, 7), False, True),
        ((9, 0), (9, 0), False, True),
        ((8, 0), (8, 9), False, True),
        ((8, 9), (8, 0), False, False),  # newer than the GPU
        ((8, 0), (9, 0), False, False),  # of another generation
        ((8, 6), (8, 7), False, False),  # a Jetson runs its own alone
        ((8, 7), (8, 9), False, False),
        ((7, 5), (12, 0), True, True),
        ((7, 5), (7, 2), True, False),
    ],
)
def test_which_gpus_run_which_code(built, here, is_ptx, expected) -> None:
    assert runs(built, here, is_ptx=is_ptx) is expected


@pytest.mark.parametrize(
    ("capability", "instructions", "said"),
    [
        ((9, 0), ["sm_87"], r'it needs compute capability 8.7, and has 9.0: .*"arch": "sm_90"'),
        ((12, 0), ["sm_90a"], r'it needs compute capability 9.0, and has 12.0: .*"arch": "sm_120"'),
        ((7, 2), ["compute_75"], "it needs compute capability 7.5, and has 7.2"),
    ],
)
def test_a_program_for_another_gpu_is_refused_by_name(play, capability, instructions, said) -> None:
    play(capability=capability)
    with pytest.raises(ProgramError, match=rf"does not run on cuda:0 \(Some GPU\): {said}"):
        devices.open_device("cuda:0", "cuda", instructions)


def test_a_device_that_is_not_there_is_named(play, monkeypatch) -> None:
    driver = play()
    with pytest.raises(DeviceError, match="no device cuda:3: there are 1"):
        devices.open_device("cuda:3", "cuda")
    with pytest.raises(InputError, match="'gpu' is no device: give one of .*cuda:0"):
        devices.open_device("gpu", "cuda")
    with pytest.raises(ProgramError, match="compiled for opencl, not for 'cuda:0'"):
        devices.open_device("cuda:0", "opencl")
    monkeypatch.setattr(driver, "cuInit", lambda _: (Status.CUDA_ERROR_ILLEGAL_ADDRESS,))
    with pytest.raises(DeviceError, match="no device cuda:0: NVIDIA's driver is missing"):
        devices.open_device("cuda:0", "cuda")
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(DeviceError, match=r"pip install 'pock-tvm\[cuda\]'"):
        devices.open_device("cuda:0", "cuda")
