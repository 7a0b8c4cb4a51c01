"""Targets: from what a user writes to what TVM builds for, and the linker that goes with it."""

from __future__ import annotations

import json
import os
import shutil

from tvm.target import Target
from tvm.target import codegen as llvm

from relay_passes.ir import first_line

from .errors import PockError
from .runtime import machine_triple

HOST = "host"


def resolve_target(target: str | dict[str, object] | Target | None) -> Target:
    """The target of a program.

    ``"host"`` (the default) is this machine with all its vector instructions; otherwise one of TVM's tags
    (``raspberry-pi/4b-aarch64``), a TVM target as JSON or dict, or a Target.
    """
    if isinstance(target, Target):
        found = target
    elif target is None or target == HOST:
        found = Target(
            {
                "kind": "llvm",
                "mtriple": llvm.llvm_get_system_triple(),
                "mcpu": llvm.llvm_get_system_cpu(),
                "num-cores": os.cpu_count() or 1,
            }
        )
    else:
        try:
            found = Target(
                json.loads(target) if isinstance(target, str) and target.lstrip().startswith("{") else target
            )
        except Exception as error:
            raise PockError(
                f"'{target}' is no target: give 'host', a tag such as raspberry-pi/4b-aarch64, or a TVM target as "
                f"JSON ({first_line(error)})"
            ) from error
    if found.kind.name != "llvm":
        raise PockError(f"programs are built for CPUs (kind llvm) so far; '{target}' is of kind {found.kind.name}")
    return found


def triple_of(target: Target) -> str:
    """The target's LLVM triple; this machine's where it names none."""
    return str(target.attrs.get("mtriple") or llvm.llvm_get_system_triple())


def linker_for(target: Target) -> str:
    """The C compiler that links a shared library for the target."""
    triple = triple_of(target)
    candidates = ["cc", "gcc", "clang"] if machine_triple(triple) == machine_triple() else _cross_linkers(triple)
    for candidate in candidates:
        if shutil.which(candidate):
            return candidate
    architecture = machine_triple(triple).split("-")[0]
    package = f" (Debian: gcc-{architecture.replace('_', '-')}-linux-gnu)" if "linux" in triple else ""
    raise PockError(f"linking for {triple} needs one of {', '.join(candidates)}{package}")


def _cross_linkers(triple: str) -> list[str]:
    return [f"{triple}-gcc", f"{machine_triple(triple).split('-')[0]}-linux-gnu-gcc"]
