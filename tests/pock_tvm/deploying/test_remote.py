"""Training on devices over TVM's RPC: equal to this machine, and what becomes of a run whose device disappears."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import pock_tvm as pock
from pock_tvm.deploying.connection import Address, Connection, connected, devices
from pock_tvm.deploying.remote import RemoteTrainer
from pock_tvm.device.profile import example, profile
from pock_tvm.device.program import kernel_calls
from pock_tvm.errors import DeviceError, OptionError, ProgramError
from tests.pock_tvm.commands import run_command
from tests.pock_tvm.deploying.servers import PATIENCE_S, Server, batches, build, free_port

STEPS = 12


@pytest.fixture(scope="module")
def program() -> pock.Program:
    return build()


@pytest.fixture(scope="module")
def place(program, tmp_path_factory) -> Path:
    """A program, data, and the checkpoint of a run on this machine."""
    root = tmp_path_factory.mktemp("run")
    program.save(root / "net.pock")
    xs, ys = batches(STEPS)
    np.savez(root / "data.npz", x=np.concatenate(xs), y=np.concatenate(ys))
    done = run_command(
        "train", root / "net.pock", "--data", root / "data.npz", "--checkpoint", root / "here.ckpt", "--threads", 1
    )
    assert done[0] == 0
    return root


def run(place: Path, checkpoint: Path, server: Server, *options: object) -> tuple[int, str]:
    there = ["--checkpoint", checkpoint, "--rpc", server.address]
    return run_command("run", place / "net.pock", "--data", place / "data.npz", *there, *options)


def same_state(program: pock.Program, one: Path, other: Path) -> bool:
    trainers = [pock.Trainer(program, threads=1) for _ in range(2)]
    for trainer, path in zip(trainers, (one, other), strict=True):
        trainer.restore(path)
    first, second = (trainer.weights() | trainer.optimizer_state("momentum_buffer") for trainer in trainers)
    return trainers[0].steps == trainers[1].steps and all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"optimizer": pock.Adam(), "clip_norm": 1.0}], ids=str)
def test_a_device_trains_as_this_machine_does(options, server, tmp_path) -> None:
    program = build(**options)
    there, here = RemoteTrainer(program, server.connect()), pock.Trainer(program, threads=1)
    with contextlib.closing(there):
        for x, y in zip(*batches(20), strict=True):
            assert there.step(x, y, lr=0.05) == here.step(x, y, lr=0.05)
        np.testing.assert_array_equal(there.predict(x), here.predict(x))
        there.save(tmp_path / "net.ckpt")
        weights = there.weights()
        assert all(np.array_equal(weights[name], array) for name, array in here.weights().items())
        again = pock.Trainer(program, threads=1)
        again.restore(tmp_path / "net.ckpt")
        there.restore(tmp_path / "net.ckpt")
        assert again.step(x, y, lr=0.05) == there.step(x, y, lr=0.05) == here.step(x, y, lr=0.05)


def test_frozen_weights_are_prepared_on_the_device(server) -> None:
    program = build(scheme=pock.Scheme({"*.bias": "full"}))
    assert "prepare" in program.manifest["entries"]
    x, _ = batches(1)
    with contextlib.closing(RemoteTrainer(program, server.connect())) as there:
        np.testing.assert_array_equal(there.predict(x[0]), pock.Trainer(program, threads=1).predict(x[0]))


def test_programs_of_one_connection_are_kept_apart(program, server) -> None:
    """The library of the second must not be written over that of the first, which is loaded."""
    other = build(scheme=pock.Scheme.full(), optimizer=pock.Adam())
    (x, *_), (y, *_) = batches(1)
    expected = [pock.Trainer(each, threads=1).step(x, y, lr=0.1) for each in (program, other)]
    with contextlib.closing(server.connect()) as connection:
        trainers = [RemoteTrainer(each, connection) for each in (program, other)]
        assert [trainer.step(x, y, lr=0.1) for trainer in trainers] == expected


def test_a_step_is_profiled_on_the_device(place, program, server, tmp_path) -> None:
    inputs, target = example(program)
    kernels = len(kernel_calls(program.manifest["entries"]["train_step"]))
    with contextlib.closing(RemoteTrainer(program, server.connect())) as there:
        before = there.weights()
        records = profile(there, inputs, target, repeat=2)
        assert len(records) == kernels and all(record["ms"] > 0 for record in records)
        assert there.steps == 0 and all(np.array_equal(array, before[name]) for name, array in there.weights().items())
        assert there.step(inputs, target, lr=0.1) == pock.Trainer(program, threads=1).step(inputs, target, lr=0.1)
    code, said = run_command("inspect", place / "net.pock", "--rpc", server.address, "--json", tmp_path / "there.json")
    assert code == 0, said
    assert len(json.loads((tmp_path / "there.json").read_text())) == kernels
    code, said = run_command("inspect", place / "net.pock", "--rpc", server.address)
    assert code == 2 and "--profile" in said


def test_a_refused_step_changes_nothing(program, server) -> None:
    (x, *_), (y, *_) = batches(1)
    with contextlib.closing(RemoteTrainer(program, server.connect())) as there:
        before = there.weights()
        with pytest.raises(pock.NonFiniteError, match="input 'x' is not finite"):
            there.step(x * np.nan, y, lr=0.1)
        assert there.steps == 0 and all(np.array_equal(array, before[name]) for name, array in there.weights().items())
        with pytest.raises(pock.PockError, match="is not copied"):
            copy.deepcopy(there)


def test_a_tracker_lists_devices_and_lends_them(place, program, server, tracker, tmp_path) -> None:
    connected(lambda: Connection.through(tracker.address, "shelf"), PATIENCE_S).close()
    found, _ = devices(tracker.address)
    assert [device.key for device in found] == ["shelf"]
    code, said = run_command("devices", "--tracker", tracker.address)
    assert code == 0 and said.startswith("shelf") and "of 1 free" in said
    named = ["--data", place / "data.npz", "--checkpoint", tmp_path / "net.ckpt", "--tracker", tracker.address]
    code, said = run_command("run", place / "net.pock", *named, "--key", "shelf", "--checkpoint-every", 5)
    assert code == 0, said
    assert same_state(program, tmp_path / "net.ckpt", place / "here.ckpt")
    code, said = run_command("run", place / "net.pock", *named, "--key", "attic")
    assert code == 2 and "knows no device 'attic': it knows 'shelf'" in said


def test_wrong_addresses_are_one_line_each(place, server, tracker, tmp_path) -> None:
    for text in ("", "pi", "pi:", ":9090", "pi:port", "pi:0", "pi:70000"):
        with pytest.raises(OptionError, match="is no address: write HOST:PORT"):
            Address.parse(text)
    server.connect().close()
    connected(lambda: devices(tracker.address), PATIENCE_S)  # both are there now
    closed = Address("127.0.0.1", free_port())
    with pytest.raises(DeviceError, match=f"{closed} cannot be reached"):
        Connection(closed)
    with pytest.raises(DeviceError, match="cannot be reached"):
        Connection(Address("nowhere.invalid", 9090))
    with pytest.raises(DeviceError, match="is no RPC server"):
        Connection(tracker.address, timeout=3)
    with pytest.raises(DeviceError, match="is no RPC server .it closed the connection"):
        Connection(tracker.address, timeout=30)
    with pytest.raises(DeviceError, match=f"{closed} .*nothing accepts connections there"):
        Connection(closed)
    with pytest.raises(DeviceError, match="was started with another key than 'attic': key= names it"):
        Connection(server.address, key="attic")
    with pytest.raises(DeviceError, match="no tracker|cannot be reached, or is none|no answer"):
        devices(server.address, timeout=3)
    with pytest.raises(DeviceError, match="tracker .* cannot be reached"):
        devices(closed)
    for wrong in ([], ["--rpc", "a:1", "--tracker", "a:2"], ["--tracker", "a:2"]):
        named = ["--data", place / "data.npz", "--checkpoint", tmp_path / "net.ckpt", *wrong]
        assert run_command("run", place / "net.pock", *named)[0] == 2
    assert not list(tmp_path.iterdir())


def test_a_program_for_another_machine_is_refused_before_it_is_sent(program, server, monkeypatch) -> None:
    manifest = program.manifest | {"target": program.manifest["target"] | {"triple": "aarch64-linux-gnu"}}
    monkeypatch.setattr(Connection, "load", lambda *_: pytest.fail("it was sent"))
    connection = server.connect()
    with pytest.raises(ProgramError, match=r"compiled for aarch64-linux-gnu, and the device at \S+ is a x86_64-linux"):
        RemoteTrainer(dataclasses.replace(program, manifest=manifest), connection)
    connection.close()


def test_a_library_that_the_device_cannot_load_is_refused(program, server) -> None:
    connection = server.connect()
    with pytest.raises(ProgramError, match="cannot load this program"):
        RemoteTrainer(dataclasses.replace(program, library=b"\x7fELF of something else"), connection)
    with pytest.raises(ProgramError, match="holds objects"):
        RemoteTrainer(dataclasses.replace(program, library=b"PK"), connection)
    connection.close()


def test_a_device_that_hangs_ends_the_step_in_time(program, doomed) -> None:
    (x, *_), (y, *_) = batches(1)
    doomed[0].connect().close()  # wait until it is there
    there = RemoteTrainer(program, doomed[0].connect(timeout=5))
    there.step(x, y, lr=0.1)
    doomed[0].freeze()
    with pytest.raises(DeviceError, match="does not answer any more .no answer within 5 s"):
        there.step(x, y, lr=0.1)
    for call in (lambda: there.step(x, y, lr=0.1), there.weights, lambda: there.save("net.ckpt")):
        with pytest.raises(DeviceError, match="does not answer any more"):
            call()
    assert there.steps == 1 and not Path("net.ckpt").exists()


def at_step(monkeypatch, number: int, happens) -> None:
    """Let something happen as a trainer is about to take a step of its own, counted from 0."""
    step = RemoteTrainer.step

    def stepped(self, *args, **named) -> float:
        if self.steps == number:
            happens()
        return step(self, *args, **named)

    monkeypatch.setattr(RemoteTrainer, "step", stepped)


def test_a_device_that_disappears_keeps_the_last_completed_step(place, program, doomed, tmp_path, monkeypatch) -> None:
    doomed[0].connect().close()
    checkpoint = tmp_path / "net.ckpt"
    with monkeypatch.context() as patch:
        at_step(patch, 5, doomed[0].kill)
        code, said = run(place, checkpoint, doomed[0], "--wait", 0)
    assert code == 2
    assert f"'{checkpoint}' has the state: go on with the same command and --resume" in said.splitlines()[-1]
    kept = pock.Trainer(program)
    kept.restore(checkpoint)
    assert kept.steps == 5
    code, said = run(place, checkpoint, doomed[0], "--resume")
    assert code == 2 and "cannot be reached" in said
    doomed.append(Server("rpc_server", port=doomed[0].address.port))
    doomed[1].connect().close()
    code, said = run(place, checkpoint, doomed[1], "--resume")
    assert code == 0, said
    assert same_state(program, checkpoint, place / "here.ckpt")


def test_a_device_that_comes_back_goes_on_by_itself(place, program, doomed, tmp_path, monkeypatch) -> None:
    doomed[0].connect().close()

    def restart() -> None:
        if len(doomed) == 1:
            doomed[0].kill()
            doomed.append(Server("rpc_server", port=doomed[0].address.port))

    at_step(monkeypatch, 7, restart)
    code, said = run(place, tmp_path / "net.ckpt", doomed[0], "--wait", PATIENCE_S, "--checkpoint-every", 3)
    assert code == 0, said
    assert "looking for it" in said and len(doomed) == 2
    assert same_state(program, tmp_path / "net.ckpt", place / "here.ckpt")


@pytest.mark.parametrize("every", [1, 3])
def test_a_device_that_is_lost_at_the_same_step_again_ends_the_run(every, place, server, tmp_path, monkeypatch) -> None:
    def lose() -> None:
        raise DeviceError("the device is gone")

    server.connect().close()
    at_step(monkeypatch, 4, lose)
    code, said = run(place, tmp_path / "net.ckpt", server, "--wait", PATIENCE_S, "--checkpoint-every", every)
    assert code == 2 and said.count("looking for it") == 1 and "--resume" in said.splitlines()[-1]
