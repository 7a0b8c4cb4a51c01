"""Tuning on devices over RPC: servers of this machine stand in for them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from tvm import te, tirx

import pock_tvm as pock
from pock_tvm.cli import tuning
from pock_tvm.compiler.database import Database
from pock_tvm.compiler.rebuild import target_of
from pock_tvm.compiler.targets import resolve_target
from pock_tvm.deploying.connection import Address, connected, devices
from pock_tvm.deploying.endpoint import Endpoint, all_of
from pock_tvm.errors import DeviceError, PockWarning
from pock_tvm.tuning import remote as module
from pock_tvm.tuning import verdicts
from pock_tvm.tuning.builder import Builder
from pock_tvm.tuning.remote import RefusedError, RemoteBench, RemoteDevice
from pock_tvm.tuning.search import Progress
from pock_tvm.tuning.step_search import StepSearch
from tests.pock_tvm.commands import run_command
from tests.pock_tvm.deploying.servers import PATIENCE_S, Server, free_port
from tests.pock_tvm.networks import small
from tests.schedules.kernels import first_device

SERVE = Path(__file__).parents[3] / "examples" / "remote" / "serve.py"
SLEEPING = Path(__file__).with_name("sleeping_server.py")
HOST = resolve_target("host")
OPTIONS = {"scheme": pock.Scheme({"head.*": "full"}), "batch_norm": "frozen", "check": False}
X = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype("float32")
Y = np.array([0, 1, 2, 3])
TRIALS = 16
"""Trials of each device that a rate is taken from."""


@pytest.fixture(scope="module")
def program() -> pock.Program:
    return pock.compile(small(4), **OPTIONS)


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Server]]:
    """A tracker, and two devices of the key 'shelf'. Only the last test may kill one."""
    tracker = Server("rpc_tracker")
    named = ["--measure", "--tracker", tracker.address, "--key", "shelf"]
    started = [tracker, Server(SERVE, *named), Server(SERVE, *named)]
    connected(lambda: both(tracker.address), 2 * PATIENCE_S)
    yield started
    for each in started:
        each.kill()


def both(tracker: Address) -> list[Endpoint]:
    found = all_of(tracker, "shelf", timeout=PATIENCE_S)
    if len(found) < 2:
        raise DeviceError("they are not there yet")
    return found


@pytest.fixture
def shelf(servers: list[Server]) -> Endpoint:
    return Endpoint(servers[0].address, "shelf", is_tracker=True, timeout=PATIENCE_S)


def losses(program: pock.Program) -> list[float]:
    trainer = pock.Trainer(program)
    return [trainer.step(X, Y, lr=0.1) for _ in range(3)]


def facts(builder: Builder) -> dict[str, object]:
    return dict(builder.kernel().target)


def builder(*, calls: str | None = None, adds: float = 1.0) -> Builder:
    """Builds a kernel of 8 numbers, which may call a function of the C library."""
    x = te.placeholder((8,), "float32", "x")
    more = tirx.call_extern("int32", calls).astype("float32") if calls else adds
    func = te.create_prim_func([x, te.compute((8,), lambda i: x[i] + more)])
    return Builder(func.with_attr("global_symbol", "add"), HOST, is_here=False)


def test_a_program_and_its_choices_above_kernels_are_tuned_on_devices(
    program: pock.Program, servers: list[Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = {"fused": 2}
    monkeypatch.setattr(StepSearch, "_variants", lambda _: iter([(fused, "fused = 2")]))  # each takes a compilation
    default, model, tuned = (tmp_path / name for name in ("net.pock", "net.pt2", "tuned.pock"))
    program.save(default)
    torch.export.save(small(4), model)
    named = ["--tracker", servers[0].address, "--key", "shelf", "--timeout", PATIENCE_S]
    options = ["--database", tmp_path, "--trials", 8, "--strategy", "random", "-o", tuned, *named]
    code, text = run_command("tune", default, *options, "--model", model)
    assert code == 0 and "choices above kernels: " in text and "8 trials in" in text, text
    found = Database(tmp_path, target_of(program))
    (trial,) = found.trials.pop(program.manifest["step"]["key"]).values()
    assert trial.decisions == fused and trial.failure is None and trial.speedup > 0
    assert [each.failure for trials in found.trials.values() for each in trials.values()] == [None] * 8
    for each in (pock.Program.load(tuned), pock.compile(small(4), database=tmp_path, **OPTIONS)):
        assert losses(each) == pytest.approx(losses(program), rel=1e-5)


def test_an_interrupted_search_frees_its_devices(
    program: pock.Program, servers: list[Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, path = servers[0].address, tmp_path / "net.pock"
    program.save(path)
    named = ["--tracker", tracker, "--key", "shelf", "--timeout", PATIENCE_S]
    command = ["tune", path, "--database", tmp_path, "--trials", 12, "--strategy", "random", *named]

    def interrupt(state: Progress) -> None:
        if state.trials >= 3:  # some come together
            raise KeyboardInterrupt

    @contextmanager
    def interrupted(*_, **__):
        yield interrupt

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "_shown", interrupted)
        code, text = run_command(*command)
    assert code == 130, text
    assert f"the trials are kept in '{tmp_path}', and the same command goes on from there" in text
    kept = Database(tmp_path, target_of(program))
    assert not kept.skipped and 3 <= sum(map(len, kept.trials.values())) < 12
    connected(lambda: both_free(tracker), PATIENCE_S)


def both_free(tracker: Address) -> None:
    if devices(tracker)[1]["shelf"] < 2:
        raise DeviceError("a session has not ended yet")


def test_a_program_is_tuned_on_the_gpus_of_all_devices(servers: list[Server], tmp_path: Path) -> None:
    first_device("opencl")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 33), nn.ReLU(), nn.Linear(33, 5))
    program = pock.compile(torch.export.export(net, (torch.zeros(9, 12),)), target="opencl", loss="mse", check=False)
    default, tuned = tmp_path / "net.pock", tmp_path / "tuned.pock"
    program.save(default)
    named = ["--tracker", servers[0].address, "--key", "shelf", "--timeout", PATIENCE_S]
    options = ["--database", tmp_path, "--trials", 4, "--strategy", "random", "-o", tuned, *named]
    code, text = run_command("tune", default, *options)
    assert code == 0 and "4 trials in" in text, text
    found = [each for trials in Database(tmp_path, target_of(program)).trials.values() for each in trials.values()]
    assert len(found) == 4 and {each.failure for each in found} == {None}
    x, y = (np.random.default_rng(0).standard_normal(shape).astype("float32") for shape in ((9, 12), (9, 5)))
    steps = [pock.Trainer(each).step(x, y, lr=0.1) for each in (default, tuned)]
    assert steps[1] == pytest.approx(steps[0], rel=1e-6)


def test_schedules_that_misbehave_cost_themselves(shelf: Endpoint) -> None:
    default = builder()
    with closing(RemoteDevice(shelf.connect(), facts(default))) as device:
        bench = RemoteBench(device, default.kernel())
        assert bench.measure(default.build({})).failure is None
        assert bench.measure(builder(adds=2.0).build({})).failure.startswith("wrong: operand 1: differs by")
        assert bench.measure(builder(calls="abort").build({})).failure == "crashes: SIGABRT"
        assert bench.measure(default.build({})).failure is None  # of a new process
        hanging = builder(calls="pause").build({})
        answer = device.ask("measure", hanging.code, scratch=hanging.scratch, limit=2)
        assert answer == [None, None, "hangs: nothing for 2 s"]
        assert bench.measure(default.build({})).failure is None


def test_a_kernel_whose_default_fails_is_refused(shelf: Endpoint) -> None:
    crashing = builder(calls="abort")
    with closing(RemoteDevice(shelf.connect(), facts(crashing))) as device:
        with pytest.raises(RefusedError, match="refuses: crashes: SIGABRT"):
            RemoteBench(device, crashing.kernel())
        assert RemoteBench(device, builder().kernel()).measure(builder().build({})).failure is None


def test_other_targets_and_versions_are_refused(shelf: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        RefusedError, match="refuses: this program was compiled for aarch64-linux-gnu, and this machine"
    ):
        RemoteDevice(shelf.connect(), {"triple": "aarch64-linux-gnu"})
    with monkeypatch.context() as patch:
        patch.setattr(module, "NAME", "another function")
        with pytest.raises(RefusedError, match="does not measure: start examples/remote/serve.py with --measure"):
            RemoteDevice(shelf.connect(), {"triple": "x86_64-linux-gnu"})
    monkeypatch.setattr(module, "VERSION", 2)
    with pytest.raises(RefusedError, match="refuses: it speaks version 1, and this is version 2"):
        RemoteDevice(shelf.connect(), {"triple": "x86_64-linux-gnu"})


def test_a_program_of_another_target_is_refused_before_the_search(shelf: Endpoint, tmp_path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):
        other = pock.compile(small(4), target="pi4", build=False, **OPTIONS)
    with pytest.raises(RefusedError, match="was compiled for aarch64"):
        pock.tune(other, tmp_path, strategy="random", devices=[shelf])


def test_devices_that_are_not_there_are_waited_for(
    program: pock.Program, servers: list[Server], tmp_path: Path
) -> None:
    path = tmp_path / "net.pock"
    program.save(path)
    options = ["--database", tmp_path / "records", "--strategy", "random", "--timeout", 1]
    code, text = run_command("tune", path, *options, "--rpc", f"127.0.0.1:{free_port()}")
    assert code == 2 and "nothing accepts connections there): waiting for a device for 1 s" in text
    tracker = servers[0].address
    code, text = run_command("tune", path, *options, "--tracker", tracker, "--key", "attic")
    assert code == 2 and "knows no device 'attic': it knows 'shelf': waiting for a device for 1 s" in text
    code, text = run_command("tune", path, *options, "--tracker", tracker)
    assert code == 2 and "--tracker needs --key" in text


def test_two_devices_measure_nearly_twice_as_many_schedules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels have large spaces, so that batches are whole. Two devices bring 2.0 on a quiet machine (RESULTS.md); here
    other work takes the cores that build."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 96))
    program = pock.compile(torch.export.export(net, (torch.zeros(33, 64),)), loss="mse", check=False)
    monkeypatch.setattr(verdicts, "compare_steps", lambda *_: (1.0, 1.0))
    sleeping = [Server(SLEEPING), Server(SLEEPING)]
    try:
        for each in sleeping:
            each.connect().close()
        devices = [Endpoint(each.address, timeout=PATIENCE_S) for each in sleeping]
        rates = [rate(program, tmp_path / str(count), devices[:count]) for count in (1, 2)]
    finally:
        for each in sleeping:
            each.kill()
    print(f"{60 * rates[0]:.0f} trials a minute by one, {60 * rates[1]:.0f} by two: {rates[1] / rates[0]:.2f}")
    assert rates[1] > 1.2 * rates[0]


def rate(program: pock.Program, folder: Path, devices: list[Endpoint]) -> float:
    """Trials a second, when all devices have begun, and before the first one is done."""
    times: list[float] = []
    pock.tune(
        program,
        folder,
        trials=TRIALS * len(devices),
        strategy="random",
        devices=devices,
        progress=lambda _: times.append(time.monotonic()),
    )
    times = times[TRIALS // 4 * len(devices) : 3 * TRIALS // 4 * len(devices)]
    return (len(times) - 1) / (times[-1] - times[0])


def test_the_search_goes_on_without_a_device_that_drops_out(
    program: pock.Program, servers: list[Server], tmp_path: Path
) -> None:
    def drop(state) -> None:
        if state.trials == 8:
            servers[2].kill()

    devices = both(servers[0].address)
    with pytest.warns(PockWarning, match="the device at .* does not answer.*the others go on"):
        result = pock.tune(program, tmp_path, trials=40, strategy="random", devices=devices, progress=drop)
    assert result.trials == 40 and result.failures == 0
