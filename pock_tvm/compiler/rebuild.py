"""Builds the kernels of a compiled program again, with other decisions, where its model is not at hand."""

from __future__ import annotations

import copy
import io
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import tvm
from tvm import IRModule
from tvm.target import Target

from relay_passes.memory.call_list import CallList, KernelCall, Place, Region, Workspace, read_call_list
from relay_passes.memory.lower_to_executor import executor

from ..device.contract import contract_of
from ..device.program import Program
from ..errors import ProgramError
from .build import build_library
from .kernel_builder import KernelBuilder, LookUp
from .launches import build_launches
from .targets import resolve_target

SCRATCH = "scratch"
"""Name of the regions of the arena that are a kernel's scratch."""


def target_of(program: Program) -> Target:
    """Return the TVM target that a program was compiled for."""
    return resolve_target(program.manifest["target"]["description"])


def definitions_of(program: Program) -> dict[str, str]:
    """Return the definitions of a program's kernels by name, as JSON.

    Raises
    ------
    ProgramError
        The program is slim.
    """
    if not program.kernels:
        raise ProgramError("the program does not hold its kernels' loops: compile it again without --slim")
    with zipfile.ZipFile(io.BytesIO(bytes(program.kernels))) as archive:
        names = [name for name in archive.namelist() if name.endswith(".json")]
        return {name.removesuffix(".json"): archive.read(name).decode() for name in names}


def rebuild(program: Program, look_up: LookUp = lambda _: None) -> Program:
    """Build a program's kernels, scheduled as ``look_up`` says.

    What a kernel needs of scratch may change: it then has a place behind the arena, which all such kernels share. So
    the arena may be larger than that of a program that is compiled with these decisions.
    """
    target = target_of(program)
    builder = KernelBuilder(target, look_up)
    functions = {name: tvm.ir.load_json(text) for name, text in definitions_of(program).items()}
    scratch = builder.scratch(list(functions.values()), {})
    operands = {name: len(func.params) for name, func in functions.items()}
    manifest = copy.deepcopy(program.manifest)
    alignment = builder.kernel_target.traits.alignment
    entries = {
        name: _with_scratch(read_call_list(record), scratch, operands, alignment)
        for name, record in manifest["entries"].items()
    }
    manifest["entries"] = {name: calls.record() for name, calls in entries.items()}
    for name, note in builder.notes(list(functions.values())).items():
        manifest["kernels"][name] = {**_cost(manifest["kernels"][name]), **note}
    module = IRModule(functions)
    if not builder.kernel_target.is_gpu:
        module.update(
            IRModule({name: executor(calls).with_attr("global_symbol", name) for name, calls in entries.items()})
        )
    build = build_launches if builder.kernel_target.is_gpu else build_library
    library = build(module, entries, builder, {}, contract_of(manifest, program.constants))
    return Program(manifest, library.code, program.weights, program.constants, library.kernels)


def _cost(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in ("schedule", "gain")}


def _with_scratch(calls: CallList, scratch: Mapping[str, int], operands: Mapping[str, int], alignment: int) -> CallList:
    """Give each call the scratch that its kernel needs now: where it was if that suffices, else behind the arena."""
    old = {region.first: region for region in calls.workspace.regions if region.name == SCRATCH}
    regions = [region for region in calls.workspace.regions if region.name != SCRATCH]
    end = -(-calls.workspace.arena_bytes // alignment) * alignment
    changed, size = list(calls.calls), calls.workspace.arena_bytes
    for at, call in enumerate(calls.calls):
        if not isinstance(call, KernelCall) or call.kernel not in operands:
            continue
        places, needed = call.operands[: operands[call.kernel]], scratch.get(call.kernel, 0)
        if needed:
            region = old.get(at)
            offset = region.offset if region is not None and region.size >= needed else end
            places = (*places, Place(calls.arena, offset))
            regions.append(Region(SCRATCH, offset, needed, at, at))
            size = max(size, offset + needed)
        changed[at] = replace(call, operands=places)
    bound = min(size, calls.workspace.lower_bound)
    return replace(calls, calls=tuple(changed), workspace=Workspace(size, bound, tuple(regions)))
