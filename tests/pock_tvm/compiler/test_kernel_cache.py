"""Built kernels on disk."""

from __future__ import annotations

import os
import time

import pytest
from tvm import te

from pock_tvm.compiler import kernel_cache
from pock_tvm.compiler.kernel_cache import UNUSED, Kernel, KernelCache
from pock_tvm.compiler.targets import resolve_target

HOST, OTHER = (resolve_target(name) for name in ("host", "raspberry-pi/4b-aarch64"))


def kernel(extent: int = 8, name: str = "exp", operand: str = "x") -> Kernel:
    x = te.placeholder((extent,), "float32", operand)
    func = te.create_prim_func([x, te.compute((extent,), lambda i: te.exp(x[i]), "y")])
    return Kernel(func.with_attr("global_symbol", name))


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("POCK_CACHE", str(tmp_path))
    return tmp_path


def test_kernels_are_kept() -> None:
    KernelCache(HOST).put(b"object\0file", kernel())
    assert KernelCache(HOST).get(kernel()) == b"object\0file"
    assert KernelCache(HOST).get(kernel(name="log")) is None
    assert KernelCache(OTHER).get(kernel()) is None


def test_what_variables_are_called_does_not_count() -> None:
    KernelCache(HOST).put(b"object", kernel())
    assert KernelCache(HOST).get(kernel(operand="z")) == b"object"


def test_two_kernels_of_one_name_are_told_apart() -> None:
    KernelCache(HOST).put(b"object", kernel())
    assert KernelCache(HOST).get(kernel(extent=9)) is None


def test_decisions_are_kept_side_by_side(monkeypatch) -> None:
    cache = KernelCache(HOST)
    cache.put(b"default", kernel())
    for lanes in (4, 8):
        cache.put(bytes([lanes]), kernel(), {"lanes": lanes, "tile": (1, lanes)})
    assert cache.get(kernel()) == b"default"
    assert cache.get(kernel(), {"tile": [1, 4], "lanes": 4}) == b"\4"
    assert cache.get(kernel(), {"lanes": 2}) is None
    monkeypatch.setattr(kernel_cache, "_digest", lambda _text: "clash")
    cache = KernelCache(HOST)
    cache.put(b"object", kernel(), {"lanes": 4})
    assert cache.get(kernel(), {"lanes": 4}) == b"object"
    assert cache.get(kernel(), {"lanes": 2}) is None
    assert KernelCache(OTHER).get(kernel(), {"lanes": 4}) is None


@pytest.mark.parametrize("changed", ["_sources", "__version__"])
def test_another_compiler_builds_again(changed: str, monkeypatch) -> None:
    KernelCache(HOST).put(b"object", kernel())
    monkeypatch.setattr(kernel_cache, changed, (lambda: "other") if changed == "_sources" else "other")
    assert KernelCache(HOST).get(kernel()) is None


def test_a_file_that_was_cut_short_is_built_again(place) -> None:
    KernelCache(HOST).put(b"object" * 100, kernel())
    (path,) = place.glob("kernels/*/*.kernel")
    path.write_bytes(path.read_bytes()[:-5])
    assert KernelCache(HOST).get(kernel()) is None


def test_what_nobody_asked_for_is_removed(place) -> None:
    long_ago = time.time() - 2 * UNUSED
    KernelCache(HOST).put(b"object", kernel())
    for name in ("gone", "used"):
        folder = place / "kernels" / name
        folder.mkdir()
        os.utime(folder, (long_ago, long_ago) if name == "gone" else None)
    KernelCache(OTHER).put(b"other", kernel())
    left = {folder.name for folder in (place / "kernels").iterdir()}
    assert len(left) == 3
    assert "gone" not in left
    assert KernelCache(HOST).get(kernel()) == b"object"


def test_no_cache(place, monkeypatch) -> None:
    (place / "file").touch()
    for where in ("off", str(place / "file" / "below")):
        monkeypatch.setenv("POCK_CACHE", where)
        cache = KernelCache(HOST)
        cache.put(b"object", kernel())
        assert cache.get(kernel()) is None
