"""Gradients of a bundle's step that are not finite: what it says, and how it goes on, against the trainer."""

import shutil

import pytest

import pock_tvm as pock
from pock_tvm.deploying.bundle import deploy

from ..device.test_guards import OPTIONS, batch, gated, spoiled
from .bundles import RATE, loaded

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is missing")


def flat(batch):
    inputs, target = batch
    return (*inputs.values(), target)


def begun(program, folder):
    module, trainer = loaded(deploy(program, folder, cc="gcc")), pock.Trainer(program, threads=1)
    net = module.Net()
    net.set_rate(RATE)
    return module.PockFault, net, trainer


def test_a_spoiled_instance_waits_for_a_state(tmp_path):
    fault, net, trainer = begun(gated(**OPTIONS["SGD"]), tmp_path / "net")
    state = net.save_state()
    with pytest.raises(fault, match="NOT_FINITE: the gradient of 'gate' .* Updates made before it in that step stay"):
        net.train_step(*flat(spoiled("gradient")))
    for call in (
        lambda: net.train_step(*flat(batch(0))),
        lambda: net.predict(*flat(batch(0))[:-1]),
        net.save_state,
    ):
        with pytest.raises(fault, match="SPOILED: an earlier step stopped between its updates: load a state"):
            call()
    with pytest.raises(fault, match="DAMAGED"):
        net.load_state(state[:-1])
    with pytest.raises(fault, match="SPOILED"):
        net.save_state()
    net.load_state(state)
    assert net.train_step(*flat(batch(0))) == trainer.step(*batch(0), lr=RATE)


def test_the_first_step_of_an_update_drops_nothing(tmp_path):
    fault, net, trainer = begun(gated(**OPTIONS["accumulated"]), tmp_path / "net")
    state = net.save_state()
    with pytest.raises(fault, match="the gradient of 'gate' is not finite: .* Nothing has changed"):
        net.train_step(*flat(spoiled("gradient")))
    assert net.save_state() == state
    assert net.train_step(*flat(batch(0))) == trainer.step(*batch(0), lr=RATE)
    with pytest.raises(fault, match="Earlier steps of the same update are dropped; nothing else has changed"):
        net.train_step(*flat(spoiled("gradient")))
    with pytest.raises(pock.NonFiniteError, match="are dropped"):
        trainer.step(*spoiled("gradient"), lr=RATE)
    for seed in range(1, 4):
        assert net.train_step(*flat(batch(seed))) == trainer.step(*batch(seed), lr=RATE)
