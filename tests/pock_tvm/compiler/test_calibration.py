"""Calibrations of a machine are kept, and asked for by a target's name."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

import pock_tvm as pock
from pock_tvm.calibrating.measure import _ring, cache_sizes
from pock_tvm.compiler.calibration import Calibration, save_calibration
from pock_tvm.compiler.kernel_cache import KernelCache
from pock_tvm.compiler.targets import kernel_target, resolve_target
from tests.pock_tvm.commands import run_command

HOST = resolve_target("host")
FOUND = Calibration(
    gigahertz=3.0,
    fma_rate=2.96,
    fma_latency=4.1,
    load_rate=1.7,
    broadcast_rate=1.7,
    gflops=(96.0, 190.0),
    first_cache=48 * 1024,
    second_cache=3 * 2**19,
    last_cache=2**24,
    second_cache_cores=1,
    second_cache_rate=45.0,
    line=64,
    copy_rate=(10.0, 17.0),
    region=1.5,
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POCK_CACHE", str(tmp_path))
    return tmp_path


def test_a_calibration_enters_through_the_target_alone() -> None:
    before = kernel_target(HOST).traits
    save_calibration(HOST, FOUND)
    assert kernel_target(resolve_target("host")).traits == before
    target = resolve_target("calibrated")
    traits = kernel_target(target).traits
    assert (traits.fma_ports, traits.fma_latency, traits.load_ports, traits.cache_bytes) == (3, 4, 1.5, 3 * 2**19)
    assert dataclasses.replace(traits, **{name: getattr(before, name) for name in FOUND.traits}) == before
    assert kernel_target(resolve_target(str(target))).traits == traits, "what a program's manifest says"
    assert KernelCache(target).folder != KernelCache(HOST).folder


def test_a_program_says_what_it_was_scheduled_by(tmp_path) -> None:
    import torch

    save_calibration(HOST, FOUND)
    exported = torch.export.export(torch.nn.Linear(7, 3), (torch.randn(5, 7),))
    program = pock.compile(exported, target="calibrated")
    assert "pock.fma_ports=3" in program.manifest["target"]["description"]
    loss = pock.Trainer(program).step(np.ones((5, 7), "float32"), np.arange(5) % 3, lr=0.1)
    assert np.isfinite(loss)


def test_a_machine_that_was_not_calibrated(cache) -> None:
    with pytest.raises(pock.PockError, match="pock calibrate"):
        resolve_target("calibrated")
    path = save_calibration(HOST, FOUND)
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"target": "another"}))
    with pytest.raises(pock.PockError, match="was not calibrated"):
        resolve_target("calibrated")
    for text in ("{", json.dumps(record | {"measured": {"gigahertz": 1}}), json.dumps({"format": 1})):
        path.write_text(text)
        with pytest.raises(pock.PockError, match="cannot be read"):
            resolve_target("calibrated")


@pytest.mark.parametrize("key", ["pock.fma_ports", "pock.wings=2", "pock.fma_ports=two", "pock.cache_bytes=0"])
def test_a_key_that_is_no_trait_is_refused_by_name(key: str) -> None:
    with pytest.raises(pock.PockError, match=key):
        resolve_target({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "keys": ["cpu", key]})


def test_nothing_is_kept_where_nothing_is_to_be(monkeypatch) -> None:
    monkeypatch.setenv("POCK_CACHE", "off")
    with pytest.raises(pock.PockError, match="POCK_CACHE=off keeps no calibration"):
        save_calibration(HOST, FOUND)


def test_sizes_of_caches_from_latencies() -> None:
    sizes = [2**n for n in range(13, 24)]
    latencies = {size: 1.0 if size <= 2**15 else 3.5 if size <= 2**20 else 20.0 for size in sizes}
    assert cache_sizes(latencies) == (2**15, 2**20)
    noisy = {size: seconds * (1 + 0.3 * (n % 2)) for n, (size, seconds) in enumerate(latencies.items())}
    assert cache_sizes(noisy) == (2**15, 2**20)
    for disturbed in list(latencies)[:2]:
        assert cache_sizes(latencies | {disturbed: 1.0}) == (2**15, 2**20)
    assert cache_sizes({8192: 1.0, 16384: 1.0}) == (16384, 16384)


def test_a_chase_reads_every_line_once() -> None:
    ring, seen, at = _ring(8192), [], 0
    for _ in range(8192 // 64):
        seen.append(at)
        at = int(ring[at])
    assert at == 0 and sorted(seen) == list(range(0, 2048, 16))


@pytest.mark.slow
def test_this_machine(cache) -> None:
    """Bounds that hold on any machine."""
    code, text = run_command("calibrate", "--json", cache / "found.json")
    if code == 2 and "something else was at work" in text:
        pytest.skip("this machine is busy")
    assert code == 0, text
    found = json.loads((cache / "found.json").read_text())
    assert found["traits"] == resolve_traits(found["traits"])
    assert 0.5 < found["gigahertz"] < 8
    assert 0.3 < found["fma_rate"] < 5 and 1.5 < found["fma_latency"] < 30
    assert 8 * 1024 <= found["first_cache"] < found["second_cache"] <= 2**23
    assert found["gflops"][0] > 2 * kernel_target(HOST).traits.lanes * 0.3 * found["gigahertz"]
    assert all(0.2 < rate < 2000 for rate in found["copy_rate"])


def resolve_traits(names) -> dict:
    traits = kernel_target(resolve_target("calibrated")).traits
    return {name: getattr(traits, name) for name in names}
