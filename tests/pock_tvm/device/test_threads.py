"""Threads, forks and dropped trainers: each leaves nothing behind, and computes what it would alone."""

from __future__ import annotations

import copy
import ctypes
import gc
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import pock_tvm as pock
from pock_tvm.device.profile import example
from pock_tvm.device.waiting import INSTEAD, address_of, keep_cores, places
from tests.pock_tvm.networks import small

linux = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's account of a process")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("threads") / "net.pock"
    pock.compile(small(4), optimizer=pock.SGD(momentum=0.9), batch_norm="frozen", check=False).save(path, slim=True)
    return path


def held() -> dict[str, int]:
    """Mappings, files and threads of this process."""
    gc.collect()
    return {
        "mappings": len(Path("/proc/self/maps").read_text().splitlines()),
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "threads": len(list(Path("/proc/self/task").iterdir())),
    }


def use(path: Path) -> None:
    trainer = pock.Trainer(path)
    x, y = example(trainer.program)
    trainer.step(x, y, lr=0.1)
    trainer.predict(x)


@linux
def test_dropped_trainers_leave_nothing(saved: Path) -> None:
    for _ in range(5):
        use(saved)
    before = held()
    for _ in range(30):
        use(saved)
    after = held()
    assert after["threads"] == before["threads"] and after["files"] == before["files"]
    assert after["mappings"] <= before["mappings"] + 5  # five each, once


@linux
def test_threads_that_end_leave_nothing(saved: Path) -> None:
    trainer = pock.Trainer(saved)
    x, _ = example(trainer.program)
    expected, found = trainer.predict(x), []

    def predict() -> None:
        found.append(trainer.predict(x))

    def run(count: int) -> None:
        for _ in range(count):
            thread = threading.Thread(target=predict)
            thread.start()
            thread.join()

    run(2)
    before = held()
    run(20)
    assert held()["threads"] == before["threads"]
    assert all(np.array_equal(each, expected) for each in found)


def test_trainers_in_threads_learn_what_they_learn_alone(saved: Path) -> None:
    def losses(seed: int) -> list[float]:
        trainer = pock.Trainer(saved)
        rng = np.random.default_rng(seed)
        x, y = example(trainer.program)
        return [
            trainer.step({name: rng.normal(size=array.shape).astype("float32") for name, array in x.items()}, y, lr=0.1)
            for _ in range(20)
        ]

    alone = [losses(seed) for seed in range(4)]
    together: dict[int, list[float]] = {}
    threads = [threading.Thread(target=lambda seed=seed: together.update({seed: losses(seed)})) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[seed] for seed in range(4)] == alone


def test_a_trainer_that_threads_share_answers_each(saved: Path) -> None:
    """As before: some answers were those to another thread's question."""
    trainer = pock.Trainer(saved)
    (name,), rng = example(trainer.program)[0], np.random.default_rng(0)
    shape = trainer.program.manifest["inputs"][0]["shape"]
    questions = [rng.normal(size=shape).astype("float32") for _ in range(4)]
    expected = [trainer.predict({name: x}) for x in questions]
    wrong: list[int] = []

    def ask(number: int) -> None:
        for _ in range(100):
            if not np.array_equal(trainer.predict({name: questions[number]}), expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    ask(0)
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("copied", [copy.copy, pickle.dumps])
def test_a_trainer_is_no_value_to_send(saved: Path, copied: Callable) -> None:
    with pytest.raises(pock.PockError, match="save a checkpoint and restore it in another trainer"):
        copied(pock.Trainer(saved))


def test_what_a_thread_raises_reaches_its_caller(saved: Path) -> None:
    trainer = pock.Trainer(saved)
    x, y = example(trainer.program)
    raised: list[BaseException] = []

    def step() -> None:
        try:
            trainer.step({name: array * np.nan for name, array in x.items()}, y, lr=0.1)
        except pock.PockError as error:
            raised.append(error)

    thread = threading.Thread(target=step)
    thread.start()
    thread.join()
    assert len(raised) == 1 and "is not finite" in str(raised[0])


OUTLIVED = """
import sys, threading, time
import pock_tvm as pock
from pock_tvm.device.profile import example
from pock_tvm.device.waiting import INSTEAD, address_of, keep_cores, places

def train():
    threading.main_thread().join()
    for _ in range(2):
        print(trainer.step(x, y, lr=0.1))

trainer = pock.Trainer(sys.argv[1])
x, y = example(trainer.program)
threading.Thread(target=train).start()
"""


def test_a_thread_trains_on_after_the_main_thread(saved: Path) -> None:
    trainer = pock.Trainer(saved)
    x, y = example(trainer.program)
    expected = [trainer.step(x, y, lr=0.1) for _ in range(2)]
    ended = subprocess.run(
        [sys.executable, "-c", OUTLIVED, saved], capture_output=True, text=True, check=False, timeout=120
    )
    assert list(map(float, ended.stdout.split())) == expected, ended.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_trains_as_its_parent(saved: Path) -> None:
    """As before: a child of a process that had trained waited for ever."""
    trainer = pock.Trainer(saved, threads=2)
    x, y = example(trainer.program)
    trainer.step(x, y, lr=0.1)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, np.float64(trainer.step(x, y, lr=0.1)).tobytes())
        os._exit(0)
    for _ in range(600):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.1)
    else:
        os.kill(child, 9)
        pytest.fail("the child hangs")
    assert status == 0
    assert np.frombuffer(os.read(read, 8))[0] == trainer.step(x, y, lr=0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere TVM's pool waits as it does")
def test_threads_that_wait_keep_their_cores() -> None:
    """TVM's library calls another function instead of sched_yield, with which a step beside busy processes takes a
    hundred times as long."""
    assert keep_cores()
    (place,) = places()
    assert ctypes.c_size_t.from_address(place).value == address_of(INSTEAD) != address_of("sched_yield")
