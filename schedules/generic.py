"""MetaSchedule's generic space as a schedule of ours: its rules make sketches, and each number that it would draw is a
choice. It suits any kernel, and knows nothing of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.target import Target

from .decisions import Choices, Option
from .extents import divisors
from .loops import Unsuited, extent_of

METASCHEDULE = "metaschedule"
SEED = 1
"""Sketches do not depend on it: only the numbers that are drawn, and decided otherwise, do."""
TILE, OPTION, PLACE = "SamplePerfectTile", "SampleCategorical", "SampleComputeLocation"
RULE = "schedule_rule"
"""Annotation of a block that names the rule that schedules it."""
NAMES = {TILE: "tile", OPTION: "option", PLACE: "place"}
"""Instructions of a trace that draw numbers, and how their decisions are called."""
MOST_PLACES = 8
"""Loops of a consumer that a block may be computed at. TVM takes the nearest place that is possible."""
DEFAULT_UNROLLING = 1
"""Index of the default among options that are told apart by number alone: 16 steps, for unrolling."""


def generic(sch: s_tir.Schedule, choices: Choices, traits: Any) -> tirx.PrimFunc:
    """Schedule a kernel as MetaSchedule does for a CPU with as many cores.

    Decisions: ``sketch``, and by the place of an instruction among those that draw ``tile.<n>`` (factors of a loop),
    ``option.<n>`` (an index) or ``place.<n>`` (a loop of a consumer, -1 for the root, -2 to inline).

    What TVM's primitives make of decisions may compute something else: ``compute_at`` is wrong for some windows of
    strided convolutions. A schedule is to be checked before it is chosen.

    Raises
    ------
    Unsuited
        The kernel is for a GPU, or there is no such schedule.
    """
    if not hasattr(traits, "lanes"):
        raise Unsuited("MetaSchedule's space is that of CPUs")
    mod, space, _ = generator(sch.mod["main"], traits.cores, SEED)
    sketches = space.generate_design_space(mod)
    trace = sketches[choices.choose("sketch", range(len(sketches)), 0)].trace.simplified(remove_postproc=True)
    found = s_tir.Schedule(mod)
    count = itertools.count()
    faults: list[Exception] = []

    def decide(instruction: Any, inputs: Any, attrs: Any, decision: Any) -> Any:
        kind = instruction.kind.name
        try:
            return _decided(found, choices, next(count), kind, inputs, attrs) if kind in NAMES else decision
        except Exception as error:
            faults.append(error)  # on its way through TVM it would become another
            raise

    try:
        trace.apply_to_schedule(found, remove_postproc=True, decision_provider=decide)
    except Exception:
        if faults:
            raise faults[0] from None
        raise
    if not all(step.apply(found) for step in space.postprocs):
        raise Unsuited("MetaSchedule refuses its own schedule")
    return found.mod["main"]


def generator(func: tirx.PrimFunc, cores: int, seed: int) -> tuple[tvm.IRModule, Any, Any]:
    """Return a module with a kernel, MetaSchedule's generator of its sketches, and the context that it was made in."""
    from tvm.s_tir import meta_schedule as ms

    mod = tvm.IRModule({"main": _without_rules(func).with_attr("global_symbol", "main")})
    rules = [rule for rule in ms.ScheduleRule.create("llvm") if not isinstance(rule, ms.schedule_rule.ApplyCustomRule)]
    space = ms.space_generator.PostOrderApply(sch_rules=rules, postprocs="llvm", mutator_probs="llvm")
    context = tune_context(mod, Target({"kind": "llvm", "num-cores": cores}), space, seed)
    space._initialize_with_tune_context(context)
    return mod, space, context


def _without_rules(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Return a kernel whose blocks name no schedule rule: MetaSchedule tiles no block that names one."""
    sch = s_tir.Schedule(tvm.IRModule({"main": func}))
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        if RULE in sch.get(block).annotations:
            sch.unannotate(block, RULE)
    return sch.mod["main"]


def tune_context(mod: tvm.IRModule, target: Target, space: Any, seed: int, threads: int = 1) -> Any:
    """Return MetaSchedule's context for the function ``main`` of a module.

    The constructor in Python imports TVM's tensor intrinsics first, which takes most of a minute.
    """
    return tvm.get_global_func("s_tir.meta_schedule.TuneContext")(mod, target, space, None, "main", threads, seed, None)


def decisions_of(trace: s_tir.Trace, sketches: Sequence[s_tir.Trace]) -> dict[str, Option]:
    """Return the decisions that make the schedule of a trace, which comes from one of these sketches."""
    trace, kinds = trace.simplified(remove_postproc=True), [_kinds(sketch) for sketch in sketches]
    instructions = [each for each in trace.insts if each.kind.name in NAMES]
    found: dict[str, Option] = {"sketch": kinds.index(_kinds(trace))}
    for number, each in enumerate(instructions):
        value, name = trace.decisions[each], each.kind.name
        found[f"{NAMES[name]}.{number}"] = tuple(map(int, value)) if name == TILE else int(value)
    return found


def _kinds(trace: s_tir.Trace) -> list[tuple[str, str]]:
    """Return what tells sketches apart: instructions and their attributes, those without use left out."""
    return [(each.kind.name, str(each.attrs)) for each in trace.simplified(remove_postproc=True).insts]


def _decided(sch: s_tir.Schedule, choices: Choices, number: int, kind: str, inputs: Any, attrs: Any) -> Any:
    if kind == TILE:
        extent = extent_of(sch, inputs[0])
        parts, innermost = (int(each) for each in attrs)
        options = [each for each in _factorizations(extent, parts) if each[-1] <= innermost]
        return list(choices.choose(f"tile.{number}", options, options[0]))
    if kind == OPTION:
        return choices.choose(f"option.{number}", range(len(attrs[0])), min(DEFAULT_UNROLLING, len(attrs[0]) - 1))
    return choices.choose(f"place.{number}", range(-2, MOST_PLACES), -1)


def _factorizations(extent: int, parts: int) -> list[tuple[int, ...]]:
    """Return all ways to write an extent as a product of so many numbers."""
    if parts == 1:
        return [(extent,)]
    return [(first, *rest) for first in divisors(extent) for rest in _factorizations(extent // first, parts - 1)]
