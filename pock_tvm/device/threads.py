"""The thread that calls kernels: TVM's runtime keeps a pool of workers for each thread that does, for ever."""

from __future__ import annotations

import atexit
import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any, Concatenate, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")
_caller: _Caller | None = None
_lock = threading.Lock()
_is_child = False


def in_one_thread(work: Callable[[], T]) -> T:
    """Do work that calls kernels in the main thread if that asks for it, else in one thread for all others.

    So a process has two pools at most, however many threads come and go. A child of ``fork`` has the memory of its
    parent's pool but not the threads: there all work is done in a thread that starts a pool anew.
    """
    if not _is_child and threading.current_thread() is threading.main_thread():
        return work()
    future = _started().submit(work)
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


class _Caller:
    """A thread that does work in the order in which it comes.

    It ends after all threads that Python waits for: those of ``concurrent.futures`` take no more work once the main
    thread has ended, and a training thread may go on then.
    """

    def __init__(self) -> None:
        self._waiting: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="pock-kernels", daemon=True)
        self._is_open = True
        self._thread.start()
        atexit.register(self.close)

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Queue work; raises RuntimeError when the process ends."""
        if not self._is_open:
            raise RuntimeError("the process ends")
        future: Future[T] = Future()

        def do() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        self._waiting.put(do)
        return future

    def close(self) -> None:
        """Wait for what has begun: a kernel must not run while libraries are unloaded."""
        self._is_open = False
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (do := self._waiting.get()) is not None:
            do()
            del do  # it holds a trainer


def _started() -> _Caller:
    global _caller
    with _lock:
        if _caller is None:
            _caller = _Caller()
        return _caller


def _forget() -> None:
    """Begin anew in a child: none of its parent's threads are there."""
    global _caller, _lock, _is_child
    _caller, _lock, _is_child = None, threading.Lock(), True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
