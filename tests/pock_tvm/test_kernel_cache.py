"""Built kernels on disk."""

from __future__ import annotations

import os
import time

from pock_tvm.compiler.kernel_cache import UNUSED, KernelCache
from pock_tvm.compiler.targets import resolve_target


def test_kernels_are_kept(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("POCK_CACHE", str(tmp_path))
    host, other = (resolve_target(name) for name in ("host", "raspberry-pi/4b-aarch64"))
    KernelCache(host).put("exp", b"object")
    assert KernelCache(host).get("exp") == b"object"
    assert KernelCache(host).get("log") is None
    assert KernelCache(other).get("exp") is None


def test_what_nobody_asked_for_is_removed(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("POCK_CACHE", str(tmp_path))
    long_ago = time.time() - 2 * UNUSED
    KernelCache(resolve_target("host")).put("exp", b"object")
    for name in ("gone", "used"):
        folder = tmp_path / "kernels" / name
        folder.mkdir()
        os.utime(folder, (long_ago, long_ago) if name == "gone" else None)
    KernelCache(resolve_target("raspberry-pi/4b-aarch64")).put("exp", b"other")
    left = {folder.name for folder in (tmp_path / "kernels").iterdir()}
    assert len(left) == 3
    assert "gone" not in left
    assert KernelCache(resolve_target("host")).get("exp") == b"object"


def test_no_cache(tmp_path, monkeypatch) -> None:
    for place in ("off", str(tmp_path / "file" / "below")):
        (tmp_path / "file").touch()
        monkeypatch.setenv("POCK_CACHE", place)
        cache = KernelCache(resolve_target("host"))
        cache.put("exp", b"object")
        assert cache.get("exp") is None
