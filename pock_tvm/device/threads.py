"""The thread that calls kernels: TVM's runtime keeps a pool of workers for each thread that does, for ever."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, Concatenate, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")
_caller: ThreadPoolExecutor | None = None
_lock = threading.Lock()
_is_child = False


def in_one_thread(work: Callable[[], T]) -> T:
    """Do work that calls kernels in the main thread if that asks for it, else in one thread for all others.

    So a process has two pools at most, however many threads come and go. A child of ``fork`` has the memory of its
    parent's pool but not the threads: there all work is done in a thread that starts a pool anew.
    """
    if not _is_child and threading.current_thread() is threading.main_thread():
        return work()
    future = _executor().submit(work)
    try:
        return future.result()
    except KeyboardInterrupt:
        wait([future])  # what has begun ends first: it writes the caller's arrays
        raise


def one_at_a_time(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """Let a method of an object with a ``_lock`` wait until no other thread is in such a method of it."""

    @functools.wraps(method)
    def waiting(self: Any, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._lock:
            return method(self, *args, **kwargs)

    return waiting


def _executor() -> ThreadPoolExecutor:
    global _caller
    with _lock:
        if _caller is None:
            _caller = ThreadPoolExecutor(1, thread_name_prefix="pock-kernels")
        return _caller


def _forget() -> None:
    """Begin anew in a child: none of its parent's threads are there."""
    global _caller, _lock, _is_child
    _caller, _lock, _is_child = None, threading.Lock(), True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
