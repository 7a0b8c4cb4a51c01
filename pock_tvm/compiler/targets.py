"""Resolves targets: a user's target to TVM's and to the kernels', and its linker."""

from __future__ import annotations

import difflib
import json
import shutil

from tvm.target import Target, list_tags
from tvm.target import codegen as llvm

from relay_passes.ir import first_line
from schedules.cpu import cpu_target
from schedules.gpu import gpu_target
from schedules.gpu.traits import DIALECTS
from schedules.target import Target as KernelTarget

from ..device.gpu.devices import open_device
from ..device.instructions import instruction_sets, machine_sets
from ..device.machine import BEST, machine_triple
from ..errors import PockError
from .calibration import calibrated, load_calibration
from .machines import HEXAGON, MACHINES

HOST = "host"
CALIBRATED = "calibrated"
TUNING = ("allow-", "false-deps-", "fast", "no-bypass-", "prefer-", "slow-", "tuning-")
"""Prefixes of LLVM features that only tune for a CPU and add no instructions."""


def resolve_target(target: str | dict[str, object] | Target | None) -> Target:
    """Return the TVM target of a program.

    ``"host"`` (the default) is this machine with all its vector instructions, and the cores that this process may use;
    ``"calibrated"`` is the same with what ``pock calibrate`` measured of it. Otherwise give a short name (``pi4``; see
    :mod:`pock_tvm.compiler.machines`), one of TVM's tags (``raspberry-pi/4b-aarch64``), a TVM target as JSON or dict,
    or a Target.

    Raises
    ------
    PockError
        The target is invalid, or neither a CPU nor a GPU; or this machine was not calibrated.
    """
    if isinstance(target, Target):
        found = target
    elif target is None or target == HOST:
        found = _host()
    elif target == CALIBRATED:
        host = resolve_target(HOST)
        found = calibrated(host, load_calibration(host))
    elif isinstance(target, str) and target in MACHINES:
        found = Target(MACHINES[target].target())
    else:
        try:
            found = Target(
                json.loads(target) if isinstance(target, str) and target.lstrip().startswith("{") else target
            )
        except Exception as error:
            raise PockError(_unknown(target, first_line(error))) from error
    if found.kind.name not in ("llvm", *DIALECTS):
        raise PockError(
            f"programs are built for CPUs (kind llvm) and GPUs ({', '.join(DIALECTS)}); '{target}' is of kind "
            f"{found.kind.name}"
        )
    if found.kind.name == "llvm":
        try:
            cpu_target(found)
        except ValueError as error:
            raise PockError(str(error)) from error
    return found


def _host() -> Target:
    """Return this machine's target, with the cores that kernels best run on, and without instructions that its core
    has, but which a virtual machine hides."""
    found = {
        "kind": "llvm",
        "mtriple": llvm.llvm_get_system_triple(),
        "mcpu": llvm.llvm_get_system_cpu(),
        "num-cores": BEST,
    }
    here, target = machine_sets(), Target(found)
    hidden = [] if here is None else sorted(set(instructions_of(target)) - here)
    return Target(found | {"mattr": [f"-{each}" for each in hidden]}) if hidden else target


def _unknown(target: object, reason: str) -> str:
    """Word the error of a target that neither we nor TVM know."""
    if str(target).lower().startswith(HEXAGON):
        versions = ", ".join(name for name in MACHINES if name.startswith(HEXAGON))
        return f"'{target}' is no Hexagon target that is known here: give one of {versions}"
    kinds = ("llvm", *DIALECTS)
    known = [HOST, CALIBRATED, *MACHINES, *(str(tag) for tag, found in list_tags().items() if found.kind.name in kinds)]
    near = difflib.get_close_matches(str(target).lower(), known, cutoff=0.5)
    if near:
        return f"'{target}' is no target: did you mean {' or '.join(near)}? `pock targets` lists short names"
    names = ", ".join((HOST, CALIBRATED, *MACHINES))
    return f"'{target}' is no target: give {names}, a tag of TVM's, or a TVM target as JSON ({reason})"


def kernel_target(target: Target) -> KernelTarget:
    """Return the target of the passes and schedules for a TVM target."""
    return gpu_target(target) if is_gpu(target) else cpu_target(target)


def is_gpu(target: Target) -> bool:
    """Return whether a target is a GPU."""
    return target.kind.name in DIALECTS


def triple_of(target: Target) -> str:
    """Return the target's LLVM triple, or this machine's if it has none; the dialect of a GPU."""
    if is_gpu(target):
        return str(target.kind.name)
    return str(target.attrs.get("mtriple") or llvm.llvm_get_system_triple())


def is_this_machine(target: Target) -> bool:
    """Return whether a target has this machine's architecture and system."""
    return machine_triple(triple_of(target)) == machine_triple()


def runs_here(target: Target) -> bool:
    """Return whether this machine can run a program for the target: it has every instruction that LLVM may use, or a
    GPU that takes the kernels."""
    if is_gpu(target):
        return _has_device(target)
    if not is_this_machine(target):
        return False
    missing = set(llvm.llvm_get_cpu_features(target)) - set(llvm.llvm_get_cpu_features(resolve_target(HOST)))
    return all(feature.startswith(TUNING) for feature in missing)


def _has_device(target: Target) -> bool:
    dialect = triple_of(target)
    try:
        open_device(dialect, dialect, instructions_of(target))
    except PockError:
        return False
    return True


def instructions_of(target: Target) -> list[str]:
    """Return the instruction sets that kernels for the target may use: of a GPU for CUDA its architecture."""
    if is_gpu(target):
        architecture = gpu_target(target).traits.architecture
        return [architecture] if architecture else []
    return instruction_sets(map(str, llvm.llvm_get_cpu_features(target)))


def linker_for(target: Target) -> str | None:
    """Return the C compiler that links for the target; None without one: objects can be loaded instead."""
    triple = triple_of(target)
    candidates = ["cc", "gcc", "clang"] if is_this_machine(target) else [f"{triple}-gcc", f"{_toolchain(triple)}-gcc"]
    return next(filter(shutil.which, candidates), None)


def _toolchain(triple: str) -> str:
    """Return the triple in Debian's spelling, the prefix of its cross compilers: ``arm-linux-gnueabihf``."""
    architecture, *_, system = triple.split("-")
    if architecture.startswith("armv"):
        architecture = "arm"
    architecture = {"arm64": "aarch64", "amd64": "x86_64"}.get(architecture, architecture)
    return f"{architecture}-linux-{system}" if "-linux-" in triple else triple
