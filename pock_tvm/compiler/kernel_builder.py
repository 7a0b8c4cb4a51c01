"""Kernels of one target: each is scheduled, lowered and built once, and kept in the cache on disk."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import tvm_ffi
from tvm import tirx
from tvm.target import Target

from relay_passes.ir import first_line
from schedules.decisions import DEFAULTS
from schedules.gpu.text.cubin import NoCudaCompilerError
from schedules.spaces import space_of
from schedules.target import GENERIC

from ..device.machine import CORES
from ..errors import BuildError, DatabaseError, PockError
from .database import Tuned
from .kernel_cache import Kernel, KernelCache
from .targets import kernel_target

SCRATCH, HEAD = 8, 9
"""Bytes before an object in the cache: the kernel's scratch, in bytes, as a little-endian integer; then the head's last
byte, which is 1 for a kernel that no rule suits."""
LookUp = Callable[[tirx.PrimFunc], Tuned | None]
"""Returns how a kernel is to be scheduled; None for its default schedule."""
T = TypeVar("T")


@dataclass
class _Known:
    """Progress of a kernel: its scratch, and its schedule or its code."""

    kernel: Kernel
    tuned: Tuned | None
    scratch: int
    is_generic: bool
    scheduled: tirx.PrimFunc | None = None
    code: bytes | None = None


class KernelBuilder:
    """Builder of kernels for one target, scheduled as ``look_up`` says."""

    def __init__(self, target: Target, look_up: LookUp = lambda _: None) -> None:
        self.target = target
        self.kernel_target = kernel_target(target)
        """The target as passes and schedules know it."""
        self._look_up = look_up
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

    def notes(self, functions: Sequence[tirx.PrimFunc]) -> dict[str, dict[str, Any]]:
        """Return how each kernel is scheduled, by name, for the manifest: ``schedule`` is ``"tuned"`` or
        ``"estimated"`` (with its ``gain``), ``"default"``, or ``"fallback"`` for a kernel that no rule suits."""
        notes: dict[str, dict[str, Any]] = {}
        for known in map(self._find, map(Kernel, functions)):
            schedule = "fallback" if known.is_generic else "default"
            if known.tuned:
                schedule = "estimated" if known.tuned.estimated else "tuned"
            notes[known.kernel.name] = {"schedule": schedule} | ({"gain": known.tuned.gain} if known.tuned else {})
        return notes

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
            tuned = self._look_up(kernel.func)
            decisions = tuned.decisions if tuned else DEFAULTS
            # The source of a schedule from outside is not among those that the cache goes by.
            stored = self._cache.get(kernel, decisions) if space_of(decisions) is None else None
            if stored is not None:
                scratch = int.from_bytes(stored[:SCRATCH], "little")
                known = _Known(kernel, tuned, scratch, bool(stored[SCRATCH]), code=stored[HEAD:])
            else:
                scheduled = self.kernel_target.schedule(kernel.func, decisions)
                scratch = self.kernel_target.scratch_bytes(scheduled)
                known = _Known(kernel, tuned, scratch, GENERIC in scheduled.attrs, scheduled)
            self._known[kernel.name] = known
        return known

    def _code(self, known: _Known) -> bytes:
        """Return the code of a kernel; generated once, and kept."""
        if known.code is None:
            known.code = self.kernel_target.code(known.scheduled)
            known.scheduled = None
            head = known.scratch.to_bytes(SCRATCH, "little") + bytes([known.is_generic])
            decisions = known.tuned.decisions if known.tuned else DEFAULTS
            if space_of(decisions) is None:
                self._cache.put(head + known.code, known.kernel, decisions)
        return known.code


@contextlib.contextmanager
def _named(place: str) -> Iterator[None]:
    """Name the layer of a kernel that cannot be built: TVM and LLVM do not."""
    try:
        yield
    except NoCudaCompilerError as error:
        raise PockError(str(error)) from error
    except DatabaseError:
        raise  # the model is not at fault
    except Exception as error:
        raise BuildError(
            f"the kernel for {place} cannot be built: {first_line(error)}. Write the model without this operator, and "
            "report the fault"
        ) from error
