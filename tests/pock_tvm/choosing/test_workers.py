"""Pools of workers, and what happens when workers die."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

import pock_tvm as pock
from pock_tvm.choosing.workers import Workers


def test_no_scheduler_answers() -> None:
    pytest.importorskip("distributed")
    with pytest.raises(pock.PockError, match="no Dask scheduler answers"):
        Workers("tcp://127.0.0.1:9")


def dies_once(flag: Path, number: int) -> int:
    if number == 2 and not flag.exists():
        flag.touch()
        os._exit(9)
    time.sleep(0.05)
    return number * number


def always_dies(_number: int) -> None:
    os._exit(9)


def refuses(number: int) -> None:
    raise pock.PockError(f"no {number}")


def test_the_run_of_a_dead_worker_is_repeated(tmp_path) -> None:
    jobs = [(tmp_path / "flag", number) for number in range(6)]
    with Workers(count=2) as pool:
        assert dict(pool.run(dies_once, jobs)) == {n: n * n for n in range(6)}
    assert (tmp_path / "flag").exists()


def test_the_run_of_a_dead_dask_worker_is_repeated(tmp_path) -> None:
    distributed = pytest.importorskip("distributed")
    jobs = [(tmp_path / "flag", number) for number in range(6)]
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Workers(cluster.scheduler_address) as pool,
    ):
        assert dict(pool.run(dies_once, jobs)) == {n: n * n for n in range(6)}
    assert (tmp_path / "flag").exists()


def test_workers_that_always_die_are_given_up() -> None:
    with Workers(count=1) as pool, pytest.raises(pock.PockError, match="all workers died"):
        list(pool.run(always_dies, [(1,)]))


def test_a_fault_of_the_user_is_passed_on() -> None:
    with Workers(count=1) as pool, pytest.raises(pock.PockError, match="no 7"):
        list(pool.run(refuses, [(7,)]))
