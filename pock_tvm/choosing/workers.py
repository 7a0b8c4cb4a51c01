"""Workers for independent runs: processes of this machine, or an existing Dask cluster."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from types import TracebackType
from typing import Any

from ..errors import PockError

MAX_DEATHS = 3
"""Deaths of workers in a row, without a completed job between them, that end a run with an error."""


class Workers:
    """A pool of processes of this machine, one a core by default, or of workers of the Dask scheduler at ``tcp://…``.

    A context manager: processes end with it. Local processes are spawned, so jobs must be importable, and a script
    needs ``if __name__ == "__main__":``.

    Raises
    ------
    PockError
        The package ``distributed`` is missing, or no scheduler answers.
    """

    def __init__(self, scheduler: str | None = None, count: int | None = None) -> None:
        self._count = count or os.cpu_count() or 1
        self._client = None if scheduler is None else _client(scheduler)
        self._executor: Executor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        if kind is not None:  # an error or an interrupt: nobody waits for results
            for process in getattr(self._executor, "_processes", None) or {}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGTERM)
        self._close()
        if self._client is not None:
            self._client.close()

    def run(self, function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Run ``function(*job)`` for each job, and yield ``(number of the job, result)`` as they complete.

        A job whose worker died is repeated.

        Raises
        ------
        PockError
            Workers died ``MAX_DEATHS`` times without a completed job.
        """
        waiting, deaths = dict(enumerate(jobs)), 0
        while waiting:
            futures: dict[Future[Any], int] = {}
            try:
                executor = self._open()
                futures |= {executor.submit(function, *job): number for number, job in waiting.items()}
                for future in _completed(futures):
                    result = future.result()
                    deaths = 0
                    del waiting[futures[future]]
                    yield futures[future], result
            except Exception as error:
                if not _is_death(error):
                    raise
                deaths += 1
                self._close()
            finally:
                if self._client is not None:  # local futures end with their processes
                    for future in futures:
                        future.cancel()
            if deaths == MAX_DEATHS:
                raise PockError(
                    f"{MAX_DEATHS} times all workers died before a run was done: they may be short of memory (take "
                    "fewer: --workers), or the script that started them lacks 'if __name__ == \"__main__\":'"
                )

    def _open(self) -> Executor:
        if self._executor is None:
            if self._client is not None:
                self._executor = self._client.get_executor(pure=False)
            else:
                context = multiprocessing.get_context("spawn")  # a fork after TVM's thread pool has started hangs
                self._executor = ProcessPoolExecutor(
                    self._count, mp_context=context, initializer=_begin, initargs=(os.getpid(),)
                )
        return self._executor

    def _close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=False)
            self._executor = None


def _begin(parent: int) -> None:
    """End this worker when its parent is gone, however that died, without leaks."""
    with contextlib.suppress(ImportError):  # PyTorch imports tqdm, whose lock between processes outlives a killed one
        from tqdm import tqdm

        tqdm.set_lock(threading.RLock())

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _client(scheduler: str) -> Any:
    try:
        from distributed import Client
    except ImportError as error:
        raise PockError("--scheduler needs Dask: pip install 'pock-tvm[dask]'") from error
    try:
        return Client(scheduler, timeout="10s", set_as_default=False)
    except (OSError, ValueError) as error:
        raise PockError(f"no Dask scheduler answers at '{scheduler}': {error}") from error


def _is_death(error: Exception) -> bool:
    """Tell a worker's death from an error of its job; Dask raises ``KilledWorker``, or cancels."""
    return isinstance(error, BrokenExecutor | CancelledError) or type(error).__name__ == "KilledWorker"


def _completed(futures: dict[Future[Any], int]) -> Iterator[Future[Any]]:
    left = set(futures)
    while left:
        done, left = wait(left, return_when=FIRST_COMPLETED)
        yield from sorted(done, key=futures.__getitem__)
