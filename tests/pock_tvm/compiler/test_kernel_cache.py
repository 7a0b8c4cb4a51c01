"""Built kernels on disk."""

from __future__ import annotations

import os
import random
import threading
import time
import warnings

import pytest
from tvm import te

import pock_tvm as pock
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


@pytest.mark.parametrize("changed", ["sources", "__version__"])
def test_another_compiler_builds_again(changed: str, monkeypatch) -> None:
    KernelCache(HOST).put(b"object", kernel())
    monkeypatch.setattr(kernel_cache, changed, (lambda: "other") if changed == "sources" else "other")
    assert KernelCache(HOST).get(kernel()) is None


def test_a_file_that_was_cut_short_is_built_again(place) -> None:
    KernelCache(HOST).put(b"object" * 100, kernel())
    (path,) = place.glob("kernels/*/*.kernel")
    path.write_bytes(path.read_bytes()[:-5])
    assert KernelCache(HOST).get(kernel()) is None


def test_no_flipped_bit_goes_unnoticed_and_what_is_damaged_is_built_again(place) -> None:
    KernelCache(HOST).put(b"object" * 100, kernel())
    (path,) = place.glob("kernels/*/*.kernel")
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        assert KernelCache(HOST).get(kernel()) is None
    for content in (b"", b"\0", whole[:20], whole + b"\0"):
        path.write_bytes(content)
        assert KernelCache(HOST).get(kernel()) is None
    KernelCache(HOST).put(b"object" * 100, kernel())
    assert path.read_bytes() == whole


def test_two_writers_leave_whole_files(place) -> None:
    objects = [bytes([number]) * 200_000 for number in range(2)]
    caches = [KernelCache(HOST) for _ in objects]
    seen: set[bytes | None] = set()

    def write(cache: KernelCache, data: bytes) -> None:
        for _ in range(30):
            cache.put(data, kernel())
            seen.add(cache.get(kernel()))

    threads = [threading.Thread(target=write, args=pair) for pair in zip(caches, objects, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen <= set(objects)
    assert [cache.fault for cache in caches] == ["", ""]
    assert len(list(place.glob("kernels/*/*"))) == 1


def test_a_cache_that_cannot_be_written_is_said_once(place, monkeypatch) -> None:
    (place / "file").touch()
    monkeypatch.setenv("POCK_CACHE", str(place / "file" / "below"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(3):
            cache = KernelCache(HOST)
            cache.put(b"object", kernel())
            cache.put(b"object", kernel(9))
            cache.warn()
    assert [(each.category, "Not a directory" in str(each.message)) for each in said] == [(pock.PockWarning, True)]


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
