"""States of bundles that are written and read in pieces, by functions of the caller's."""

import ctypes
import shutil

import numpy as np
import pytest

import pock_tvm as pock
from pock_tvm.deploying.bundle import deploy

from .bundles import RATE, batch_of, compiled, loaded

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is missing")
WRITER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
READER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t)
PIECE = 256


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A bundle's network within an accumulation, and its state."""
    program = compiled("momentum, dampening, accumulated")
    net = loaded(deploy(program, tmp_path_factory.mktemp("states") / "net", cc="gcc")).Net()
    net.set_rate(RATE)
    step(program, net)
    return program, net, net.save_state()


def step(program, net):
    inputs, target = batch_of(program, np.random.default_rng(0))
    net.train_step(*inputs, target)


def written(net, failing=-1):
    """The pieces of a network's state, of which one cannot be written."""
    pieces = []

    def write(_to, data, size):
        pieces.append(ctypes.string_at(data, size))
        return len(pieces) - 1 == failing

    net._call("pock_write_state", WRITER(write), None)
    return pieces


def read(net, state, failing=-1, change=b""):
    """Load a state of which a piece cannot be read, or holds something else, at a call; return where pieces began."""
    places = []

    def give(_from, offset, data, size):
        piece = state[offset : offset + size]
        assert len(piece) == size
        places.append(offset)
        if len(places) - 1 == failing and not change:
            return -1
        ctypes.memmove(data, change[:1] + piece[1:] if len(places) - 1 == failing else piece, size)
        return 0

    net._call("pock_read_state", READER(give), None, ctypes.c_size_t(len(state)))
    return places


def code_of(call, *arguments):
    try:
        call(*arguments)
    except Exception as fault:
        return fault.code
    return "OK"


def test_a_state_holds_the_seed(tmp_path):
    program = compiled("dropout, noise")
    module, trainer = (
        loaded(deploy(program, tmp_path / "net", cc="gcc")),
        pock.Trainer(program, threads=1, seed=2**40 + 3),
    )
    inputs, target = batch_of(program, np.random.default_rng(0))
    net, other, resumed = module.Net(), module.Net(), pock.Trainer(program, threads=1)
    for each in (net, other):
        each.set_rate(RATE)
    net.set_seed(2**40 + 3)
    first = net.train_step(*inputs, target)
    assert first == trainer.step(inputs, target, lr=RATE) != other.train_step(*inputs, target)
    (tmp_path / "net.ckpt").write_bytes(net.save_state())
    resumed.restore(tmp_path / "net.ckpt")
    other.load_state(net.save_state())
    losses = [net.train_step(*inputs, target), other.train_step(*inputs, target)]
    losses += [each.step(inputs, target, lr=RATE) for each in (trainer, resumed)]
    assert len(set(losses)) == 1 and losses[0] != first


def test_pieces_are_the_state(trained):
    program, net, state = trained
    pieces = written(net)
    assert b"".join(pieces) == state
    assert {len(piece) for piece in pieces[:-1]} == {PIECE} and 0 < len(pieces[-1]) <= PIECE
    step(program, net)
    assert net.save_state() != state
    places = read(net, state)
    assert not any(place % PIECE for place in places)
    assert net.save_state() == state


def test_the_trainer_reads_pieces(trained, tmp_path):
    program, net, _ = trained
    (tmp_path / "device.ckpt").write_bytes(b"".join(written(net)))
    trainer = pock.Trainer(program, threads=1)
    assert trainer.restore(tmp_path / "device.ckpt").steps == 1


def test_what_cannot_be_written(trained):
    _, net, state = trained
    for failing in (0, 3, len(written(net)) - 1):
        assert code_of(written, net, failing) == "IO"
    assert net.save_state() == state


@pytest.mark.parametrize("change", [b"", b"#"], ids=["unreadable", "changed"])
def test_a_state_is_lost_only_when_it_is_said(trained, change):
    """At first nothing changes. Once values are taken over, a fault spoils the network, until a state is loaded."""
    program, net, state = trained
    step(program, net)
    before, calls = net.save_state(), len(read(net, state))
    net.load_state(before)
    codes = []
    for failing in range(calls):
        codes.append(code_of(read, net, state, failing, change))
        if codes[-1] == "SPOILED":
            assert code_of(net.save_state) == code_of(step, program, net) == "SPOILED"
            net.load_state(before)
        elif codes[-1] == "OK":  # a changed byte that nothing depends on, such as one of the notes
            assert change and net.save_state() == state
            net.load_state(before)
        assert net.save_state() == before
    spoiling = codes.index("SPOILED")
    assert calls // 4 < spoiling < calls - 4
    assert set(codes[:spoiling]) <= ({"DAMAGED", "OTHER_NETWORK", "OK"} if change else {"IO"})
    assert set(codes[spoiling:]) <= ({"SPOILED", "OK"} if change else {"SPOILED"})
    net.load_state(state)


def test_pointers_that_are_missing(trained):
    _, net, state = trained
    assert code_of(net._call, "pock_write_state", None, None) == "INPUT"
    assert code_of(net._call, "pock_read_state", None, None, ctypes.c_size_t(9)) == "INPUT"
    assert code_of(net._call, "pock_load_state", None, ctypes.c_size_t(9)) == "INPUT"
    assert net.save_state() == state
