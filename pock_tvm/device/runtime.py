"""Loads a library with TVM's runtime and calls its entry points."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .contract import WORDS
from .errors import PockError, ProgramError
from .library import CONTRACT, CheckFailed, Library
from .machine import CPUS, IS_BOUND, THREADS  # sets the variable that TVM's pool reads when it starts
from .reading import reading
from .threads import in_one_thread
from .waiting import keep_cores

# isort: split
import tvm
import tvm_ffi

keep_cores()

NOT_FINITE = "a number is not finite"
"""Error of an entry point at a check (``relay_passes.memory.lower_to_executor``). The position in the call list,
counted from 1, is then the last element of the entry point's vector."""


class HostLibrary(Library):
    """A shared library of this machine: each entry point takes one vector of addresses."""

    def __init__(self, module: Any, threads: int = THREADS) -> None:
        self._module = module
        self._threads = threads
        self._functions: dict[str, Any] = {}

    def table(self, addresses: Sequence[int]) -> Any:
        """Addresses as an entry point takes them; behind them a number, if its call list holds checks."""
        return tvm.runtime.tensor(np.array(addresses, dtype="int64"))

    def numbers(self, table: Any) -> list[int]:
        """The numbers in a vector that :meth:`table` made."""
        return table.numpy().tolist()

    def run(self, entry: str, table: Any) -> None:
        """Call an entry point. Calls of several threads are made one after the other.

        Raises
        ------
        CheckFailed
            It stopped at a number that is not finite.
        PockError
            It stopped at a kernel that failed: what it had written by then stays written.
        """
        if entry not in self._functions:
            try:
                self._functions[entry] = self._find(entry)
            except AttributeError as error:
                raise ProgramError(f"this program has no '{entry}': compile it again with this version") from error
        with self._failing(entry, table):
            self._call(self._functions[entry], table)

    @contextlib.contextmanager
    def _failing(self, entry: str, table: Any) -> Iterator[None]:
        """Turn what an entry point raises into the errors of :meth:`run`."""
        try:
            yield
        except RuntimeError as error:
            if NOT_FINITE in str(error):
                raise CheckFailed(self.numbers(table)[-1] - 1) from error
            said = " ".join(str(error).split())
            raise PockError(
                f"'{entry}' stopped: {said}. Free memory, restore a checkpoint and go on from there"
            ) from error

    def seconds(self, entry: str, table: Any) -> float:
        """Call an entry point, as :meth:`run` does, and return how long it took."""
        start = time.perf_counter()
        self.run(entry, table)
        return time.perf_counter() - start

    def contract(self) -> list[int] | None:
        """The digest of the layouts and sizes that it was built for; None in one of an older version."""
        table = self.table([0] * WORDS)
        try:
            function = self._find(CONTRACT)
        except AttributeError:
            return None
        self._call(function, table)
        return self.numbers(table)

    def _find(self, entry: str) -> Any:
        """An entry point; AttributeError if there is none."""
        return self._module[entry]

    def _call(self, function: Any, table: Any) -> None:
        def call() -> None:
            use_threads(self._threads)
            function(table)

        in_one_thread(call)


_pool = threading.local()


def use_threads(count: int) -> None:
    """Set the number of threads for the kernels that this thread calls from now on."""
    if getattr(_pool, "threads", None) != count:
        configure = tvm.get_global_func("runtime.config_threadpool")
        if IS_BOUND:
            # TVM would bind threads to the first CPUs of the machine, even if this process may use others only.
            allowed = os.sched_getaffinity(0)
            configure(ONE_CPU_EACH, count, list(map(str, CPUS[:count])))
            os.sched_setaffinity(0, allowed)  # it binds the calling thread, too, and so processes that it starts
        else:
            configure(FASTEST_CORES, count)
        _pool.threads = count


FASTEST_CORES, ONE_CPU_EACH = 1, -2  # modes of TVM's pool (src/runtime/threading_backend.cc)


def pack_objects(objects: Mapping[str, bytes]) -> bytes:
    """Pack object files into a zip file, which stands in for the shared library that a linker would make."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in objects.items():
            archive.writestr(zipfile.ZipInfo(name), data)  # without a date: the same objects give the same bytes
    return packed.getvalue()


def load_library(data: bytes, threads: int = THREADS) -> HostLibrary:
    """Load a shared library, or objects that :func:`pack_objects` packed, from memory. It is unloaded with its last
    use. Kernels run on so many threads.

    Raises
    ------
    ProgramError
        It cannot be loaded; objects need ``apache-tvm-ffi-orcjit``.
    """
    if data.startswith(b"PK"):
        with reading(ProgramError, "the program's library cannot be loaded ({}): compile it again"):
            return HostLibrary(_load_objects(data), threads)
    hint = "the folder for temporary files needs room and has to let programs run (TMPDIR names another)"
    with (
        reading(ProgramError, f"the program's library cannot be loaded ({{}}): {hint}"),
        tempfile.TemporaryDirectory() as directory,
    ):
        path = Path(directory) / "program.so"
        path.write_bytes(data)
        return HostLibrary(tvm_ffi.load_module(path, keep_module_alive=False), threads)


def _load_objects(data: bytes) -> Any:
    try:
        import tvm_ffi_orcjit
    except ImportError as error:
        raise ProgramError(
            "this program was compiled where no C compiler is, and needs apache-tvm-ffi-orcjit to be loaded: install "
            "that, or compile it where a C compiler is (Debian: gcc)"
        ) from error
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        objects = [archive.read(name) for name in archive.namelist()]
    # It would ask a C++ compiler where the C++ library is, which kernels do not use: there is none to ask.
    return tvm_ffi_orcjit.default_session().load_module(objects, cxx=os.devnull)
