"""The back end for WebGPU, on Mesa's Vulkan driver for CPUs."""

import json
import time

import numpy as np
import pytest
import torch
import tvm
from tvm import te, tirx

import pock_tvm as pock
from pock_tvm.device.errors import DeviceError, InputError, ProgramError
from pock_tvm.device.gpu.backend import CopyBytes, Launch, Region
from pock_tvm.device.gpu.devices import open_device
from pock_tvm.device.gpu.memory import DeviceMemory
from pock_tvm.errors import BuildError
from schedules.gpu import gpu_target
from schedules.gpu.lower import FLAG
from schedules.gpu.target import GpuLayouts, GpuTarget
from schedules.kernels import GUARDED, functions
from tests.pock_tvm.device.gpu.networks import NETWORKS
from tests.schedules.kernels import TARGETS, call

wgpu = pytest.importorskip("wgpu", reason="pip install wgpu")
if not wgpu.gpu.enumerate_adapters_sync():
    pytest.skip("no driver for WebGPU: apt install mesa-vulkan-drivers", allow_module_level=True)


@pytest.fixture(scope="module")
def backend():
    return open_device("webgpu", "webgpu")


def trained(network, x, target, **options):
    """Losses, weights and predictions after three steps."""
    program = pock.compile(torch.export.export(network, (x,)), target=target, check=False, **options)
    trainer = pock.Trainer(program)
    losses = [trainer.step(x.numpy(), np.arange(len(x)), lr=0.1) for _ in range(3)]
    return losses, trainer.weights(), trainer.predict(x.numpy())


@pytest.mark.parametrize("network, batch", NETWORKS)
def test_steps_are_those_of_the_cpu(network, batch):
    torch.manual_seed(0)
    model, x = network().eval(), batch()
    before = {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}
    options = {"optimizer": pock.SGD(momentum=0.9, weight_decay=0.01), "batch_norm": "frozen"}
    expected = trained(model, x, "host", **options)
    losses, weights, outputs = trained(model, x, "webgpu", **options)
    np.testing.assert_allclose(losses, expected[0], rtol=1e-4)
    np.testing.assert_allclose(outputs, expected[2], rtol=1e-4, atol=1e-5)
    for name, start in before.items():
        update, wanted = weights[name] - start, expected[1][name] - start
        np.testing.assert_allclose(update, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max() + 1e-7, err_msg=name)


class Parts(torch.nn.Module):
    """More tensors are joined than a kernel binds."""

    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(3, 30), torch.nn.Linear(30, 5)

    def forward(self, x):
        parts = self.first(x).split(1, dim=1)
        return self.last(torch.cat([part * (at + 1) for at, part in enumerate(parts)], dim=1))


def test_many_tensors_are_joined_in_groups():
    torch.manual_seed(0)
    model, x = Parts(), torch.randn(2, 3)
    expected, found = (trained(model, x, target) for target in ("host", "webgpu"))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4)
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-4, atol=1e-5)


def test_a_kernel_that_does_not_fit_names_its_layer(monkeypatch):
    monkeypatch.setattr(GpuTarget, "layouts", property(lambda _self: GpuLayouts(arguments=31)))
    exported = torch.export.export(Parts(), (torch.randn(2, 3),))
    with pytest.raises(BuildError, match="the kernel for operator 'cat'.* binds 31 buffers, of 8 that a device has"):
        pock.compile(exported, target="webgpu", check=False)


def ran(backend, function, *operands, failed=None):
    """What a kernel leaves in its last operand, whose value on the way in is given too; ``failed``: the flag of one
    that is guarded."""
    inputs = [te.placeholder(each.shape, str(each.dtype), f"x{at}") for at, each in enumerate(operands[:-1])]
    output = te.compute(operands[-1].shape, function(*inputs), name="y")
    func = te.create_prim_func([*inputs, output]).with_attr("global_symbol", f"kernel_{next(NUMBERS)}")
    if failed is not None:
        func = func.with_attr(GUARDED, True)
    target = gpu_target(tvm.target.Target("webgpu"))
    code = json.loads(target.code(target.schedule(func)))
    backend.load("kernel", code["text"].encode())
    regions = [Region(backend.allocate(each.nbytes), 0, each.nbytes) for each in operands]
    for region, each in zip(regions, operands, strict=True):
        backend.write(region, each.reshape(-1).view("uint8"))
    flag = Region(backend.allocate(4), 0, 4)
    backend.write(flag, np.array([failed or 0], "int32").view("uint8"))
    places = {FLAG: flag, **dict(enumerate(regions))}
    commands = [
        Launch("kernel", symbol, tuple(grid), tuple(block), tuple(places[operand] for operand, _ in arguments))
        for symbol, grid, block, arguments in code["launches"]
    ]
    backend.submit(backend.record(commands))
    return backend.read(regions[-1]).view(operands[-1].dtype).reshape(operands[-1].shape)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_vectors_are_cast_and_stored(dtype) -> None:
    x = te.placeholder((1024,), "float32", "x")
    y = te.compute(x.shape, lambda i: functions.exp(x(i)).astype(dtype), name="y")
    sch = tvm.s_tir.Schedule(te.create_prim_func([x, y], index_dtype_override="int64"))
    block, thread, lane = sch.split(sch.get_loops(sch.get_sblock("y"))[0], [4, 64, 4])
    for loop, name in ((block, "blockIdx.x"), (thread, "threadIdx.x")):
        sch.bind(loop, name)
    sch.vectorize(lane)
    values = np.linspace(-20, 10, 1024, dtype="float32")
    found = call(sch.mod["main"].with_attr("global_symbol", f"vectors_{dtype}"), values, target=TARGETS["webgpu"])
    rounding = 1e-6 if dtype == "float32" else 2.0**-8
    np.testing.assert_allclose(found.astype("float32"), np.exp(values), rtol=rounding, atol=1e-7)


NUMBERS = iter(range(1000))
INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32"]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_wrap_around_as_their_type_does(backend, dtype):
    limits = np.iinfo(dtype)
    x = np.random.default_rng(0).integers(limits.min, limits.max, 1001, dtype, endpoint=True)
    y = np.roll(x, 1)
    found = ran(backend, lambda a, b: lambda i: a[i] * tirx.const(3, dtype) + b[i], x, y, np.zeros_like(x))
    np.testing.assert_array_equal(found, (x * np.array(3, dtype) + y).astype(dtype))


@pytest.mark.parametrize("source", [*INTEGERS, "int64", "float32", "bool"])
@pytest.mark.parametrize("to", [*INTEGERS, "int64", "float32", "bool"])
def test_casts(backend, source, to):
    x = np.array([0, 1, 5, 100, 127, 0, 1, 0], source)
    if source in ("int64", "int32", "int8", "int16", "float32") and to[0] != "u":
        x = np.concatenate([x, -x])
    found = ran(backend, lambda a: lambda i: a[i].astype(to), x, np.ones(x.shape, to))
    np.testing.assert_array_equal(found, x.astype(to))


def test_threads_that_write_parts_of_a_word_keep_the_others(backend):
    x = np.random.default_rng(0).integers(0, 2, (77, 13)).astype(bool)
    found = ran(backend, lambda a: lambda i, j: tirx.Not(a[i, 12 - j]), x, np.ones_like(x))
    np.testing.assert_array_equal(found, ~x[:, ::-1])


def test_infinity_and_nan(backend):
    x = np.array([1, np.inf, -np.inf, np.nan, -np.nan, 3e38], "float32")
    for isnan in (tirx.isnan, functions.isnan):
        found = ran(backend, lambda a, isnan=isnan: lambda i: isnan(a(i)), x, np.zeros(6, bool))
        np.testing.assert_array_equal(found, np.isnan(x))
    found = ran(
        backend, lambda a: lambda i: tirx.Select(a[i] > 2.0, tirx.const(-np.inf, "float32"), a[i]), x, np.zeros_like(x)
    )
    np.testing.assert_array_equal(found, np.where(x > 2, -np.inf, x))


def test_negative_integers_are_whole(backend):
    x = np.array([-1, 2**31 - 1, -(2**31), 7], "int64")
    found = ran(backend, lambda a: lambda i: a[i], x, np.full(4, 99, "int64"))
    np.testing.assert_array_equal(found, x)
    found = ran(
        backend,
        lambda a: lambda i: tirx.Select(a[i] < 0, tirx.min_value("int32"), a[i].astype("int32")),
        x,
        np.zeros(4, "int32"),
    )
    np.testing.assert_array_equal(found, [-(2**31), 2**31 - 1, -(2**31), 7])


def test_integers_beyond_32_bits_are_refused(backend):
    memory = DeviceMemory(backend)
    array = memory.allocate((3,), "int64")
    memory.write(array, np.array([1, -(2**31), 2**31 - 1]))
    for wide in (2**31, -(2**31) - 1):
        with pytest.raises(InputError, match=f"integers of 32 bits, and {wide} is beyond them"):
            memory.write(array, np.array([0, wide, 0]))
    np.testing.assert_array_equal(memory.read(array), [1, -(2**31), 2**31 - 1])


@pytest.mark.parametrize("failed", [0, 1])
def test_threads_that_wait_for_each_other_read_the_flag_together(backend, failed):
    x, y = np.ones((3, 1000), "float32"), np.full(3, 7, "float32")
    k = te.reduce_axis((0, 1000), "k")
    found = ran(backend, lambda a: lambda i: te.sum(a[i, k], axis=k), x, y, failed=failed)
    np.testing.assert_array_equal(found, y if failed else [1000] * 3)


def test_more_blocks_than_an_axis_has(backend):
    x = np.arange(65536 * 256 + 3, dtype="uint8")
    y = np.zeros((65536 * 256 + 3,), "float32")
    found = ran(backend, lambda a: lambda i: a[i].astype("float32"), x, y)
    np.testing.assert_array_equal(found, x)


def test_copies(backend):
    buffer, other = backend.allocate(1024), backend.allocate(512)
    backend.write(Region(buffer, 0, 512), np.arange(512, dtype="uint16").view("uint8")[:512])
    commands = [
        CopyBytes(Region(buffer, 512, 256), Region(buffer, 0, 256)),  # within one buffer
        CopyBytes(Region(other, 256, 10), Region(buffer, 512, 10)),
    ]
    recorded = backend.record(commands)
    backend.submit(recorded)
    backend.submit(recorded)
    backend.finish()
    np.testing.assert_array_equal(backend.read(Region(buffer, 512, 256)), backend.read(Region(buffer, 0, 256)))
    np.testing.assert_array_equal(backend.read(Region(other, 256, 10)), backend.read(Region(buffer, 0, 10)))
    with pytest.raises(DeviceError, match="from the middle of one"):
        backend.record([CopyBytes(Region(other, 0, 4), Region(buffer, 2, 4))])


TURNS = b"""//---
// Function: turns
//---
@group(0) @binding(0) var<storage, read_write> x : array<f32>;
@compute @workgroup_size(1) fn turns() {
  var y = 1.0;
  for (var i = 0u; i < 3000000u; i++) { y = fract(y * 1.7 + x[0]); }
  x[0] = y;
}"""


def test_the_device_times_what_it_runs(backend):
    """In seconds: a processor that does thirty turns a nanosecond is not made yet, and the host waits no less."""
    if backend._timer is None:
        pytest.skip("the adapter has no timestamps")
    region = Region(backend.allocate(4), 0, 4)
    backend.load("turns", TURNS)
    recorded = backend.record([Launch("turns", "turns", (1, 1, 1), (1, 1, 1), (region,))])
    start = time.perf_counter()
    seconds = backend.seconds(recorded)
    assert 1e-4 < seconds < time.perf_counter() - start


def test_without_timestamps_the_host_times(backend, monkeypatch):
    assert backend.clock == "the device's clock"
    monkeypatch.setattr(backend, "_timer", None)
    region = Region(backend.allocate(4), 0, 4)
    assert backend.seconds(backend.record([CopyBytes(region, Region(backend.allocate(4), 0, 4))])) > 0
    monkeypatch.setattr(wgpu.GPUDevice, "features", property(lambda _: set()))
    assert "the host's clock" in open_device("webgpu", "webgpu").clock


def test_bad_devices():
    with pytest.raises(DeviceError, match="no device webgpu:99: there are webgpu:0"):
        open_device("webgpu:99", "webgpu")
    with pytest.raises(ProgramError, match="compiled for opencl"):
        open_device("webgpu", "opencl")
    with pytest.raises(InputError, match="is no device"):
        open_device("webgpu:first", "webgpu")


def test_a_kernel_over_the_limits_of_a_device_is_named(backend):
    most = backend._limits["max-storage-buffers-per-shader-stage"]
    regions = [Region(backend.allocate(4), 0, 4)] * (most + 1)
    with pytest.raises(DeviceError, match=f"kernel wide takes {most + 1} buffers, and .* has {most}"):
        backend.record([Launch("wide", "wide", (1, 1, 1), (1, 1, 1), tuple(regions))])
    with pytest.raises(DeviceError, match="buffers of at most .* MiB, and the program needs one of"):
        backend.allocate(2**40)


def test_a_text_that_the_driver_refuses_is_an_error_of_the_device(backend):
    backend.load("broken", b"//---\n// Function: broken\n//---\nfn broken( { }")
    with pytest.raises(DeviceError, match="broken"):
        backend.record([Launch("broken", "broken", (1, 1, 1), (1, 1, 1), ())])


def test_a_lost_device(backend):
    lost = open_device("webgpu", "webgpu")
    buffer = lost.allocate(16)
    lost._device.destroy()
    with pytest.raises(DeviceError, match="Parent device is lost"):
        lost.read(Region(buffer, 0, 16))
    with pytest.raises(DeviceError):
        lost.allocate(16)
