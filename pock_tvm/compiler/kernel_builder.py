"""Kernels of one target: each is scheduled, lowered and built once, and kept in the cache on disk."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

import tvm_ffi
from tvm import tirx
from tvm.target import Target

from relay_passes.ir import first_line
from schedules.decisions import DEFAULTS, Decisions
from schedules.gpu.cubin import NoCudaCompilerError

from ..device.machine import CORES
from ..errors import BuildError, PockError
from .kernel_cache import Kernel, KernelCache
from .targets import kernel_target

HEAD = 8
"""Bytes before an object in the cache: the kernel's scratch, in bytes, as a little-endian integer."""
T = TypeVar("T")


@dataclass
class _Known:
    """Progress of a kernel: its scratch, and its schedule or its code."""

    kernel: Kernel
    scratch: int
    scheduled: tirx.PrimFunc | None = None
    code: bytes | None = None


class KernelBuilder:
    """Builder of kernels for one target. ``decisions`` are those of their schedules, by kernel name."""

    def __init__(self, target: Target, decisions: Mapping[str, Decisions] = MappingProxyType({})) -> None:
        self.target = target
        self.kernel_target = kernel_target(target)
        """The target as passes and schedules know it."""
        self._decisions = decisions
        self._cache = KernelCache(target)
        self._known: dict[str, _Known] = {}

    def scratch(self, functions: Sequence[tirx.PrimFunc], places: Mapping[str, str]) -> dict[str, int]:
        """Return the bytes of scratch of each kernel that needs any, by name. Errors: as :meth:`codes`."""
        found = self._each(functions, places, self._find)
        return {name: known.scratch for name, known in found.items() if known.scratch}

    def codes(self, functions: Sequence[tirx.PrimFunc], places: Mapping[str, str]) -> dict[str, bytes]:
        """Return the code of each kernel by name: an object file, or text with its launches. Kernels are built in
        parallel.

        ``places`` says, for messages, what of the network each kernel computes.

        Raises
        ------
        BuildError
            A kernel cannot be built.
        """
        found = self._each(functions, places, lambda kernel: self._code(self._find(kernel)))
        self._cache.warn()
        return found

    def definition_of(self, func: tirx.PrimFunc) -> str:
        """Return the definition of a kernel, which the cache has compared already, as JSON."""
        return self._find(Kernel(func)).kernel.definition

    def _each(
        self, functions: Sequence[tirx.PrimFunc], places: Mapping[str, str], work: Callable[[Kernel], T]
    ) -> dict[str, T]:
        """Work on kernels in parallel, and return the results by name."""

        def named(func: tirx.PrimFunc) -> tuple[str, T]:
            kernel = Kernel(func)
            with _named(places.get(kernel.name, kernel.name)):
                return kernel.name, work(kernel)

        with ThreadPoolExecutor(CORES) as pool:
            return dict(pool.map(named, functions))

    def _find(self, kernel: Kernel) -> _Known:
        """Return what is known of a kernel: from before, from the cache, or by scheduling it."""
        known = self._known.get(kernel.name)
        # Names contain a hash. Kernels of two modules may share it.
        if known is None or not tvm_ffi.structural_equal(known.kernel.func, kernel.func, map_free_vars=True):
            decisions = self._decisions.get(kernel.name, DEFAULTS)
            stored = self._cache.get(kernel, decisions)
            if stored is not None:
                known = _Known(kernel, int.from_bytes(stored[:HEAD], "little"), code=stored[HEAD:])
            else:
                scheduled = self.kernel_target.schedule(kernel.func, decisions)
                known = _Known(kernel, self.kernel_target.scratch_bytes(scheduled), scheduled)
            self._known[kernel.name] = known
        return known

    def _code(self, known: _Known) -> bytes:
        """Return the code of a kernel; generated once, and kept."""
        if known.code is None:
            known.code = self.kernel_target.code(known.scheduled)
            known.scheduled = None
            head = known.scratch.to_bytes(HEAD, "little")
            self._cache.put(head + known.code, known.kernel, self._decisions.get(known.kernel.name, DEFAULTS))
        return known.code


@contextlib.contextmanager
def _named(place: str) -> Iterator[None]:
    """Name the layer of a kernel that cannot be built: TVM and LLVM do not."""
    try:
        yield
    except NoCudaCompilerError as error:
        raise PockError(str(error)) from error
    except Exception as error:
        raise BuildError(
            f"the kernel for {place} cannot be built: {first_line(error)}. Write the model without this operator, and "
            "report the fault"
        ) from error
