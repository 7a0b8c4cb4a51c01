"""TVM's pipelines ``pock_train`` and ``pock_schedule``: parts of the compiler for a plain TVM build."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import tvm
from tvm import IRModule, relax, tirx
from tvm.ir.transform import Pass
from tvm.s_tir.pipeline import default_s_tir_pipeline
from tvm.target import Target

from relay_passes import ChannelsLast, FuseGroups, ScheduleKernels, SimplifyMovement, StraightenProducts, UnifyProducts
from relay_passes.errors import PassError
from relay_passes.ir import bindings_of, is_static, op_name
from relay_passes.ir.trained_part import Trained
from relay_passes.kernels import choose_kernels  # noqa: F401 - registers the legalisations
from relay_passes.kernels.legalization import legalize_known
from relay_passes.kernels.schedule_kernels import SCHEDULED, DecisionsOf, by_default
from schedules.decisions import Decisions

from .database import records_of
from .phases import Phases
from .pipeline import training_graph
from .targets import kernel_target, resolve_target
from .training_options import Training


def training_pipeline(
    train: Sequence[str] | Trained,
    loss: str | Mapping[str, Any] = "cross_entropy",
    optimizer: Mapping[str, Any] | None = None,
    **options: Any,
) -> Pass:
    """Return TVM's pipeline ``pock_train``: phases 2 to 5 as one pass, for a plain TVM build.

    ``train`` names the trained parameters of ``main``, or maps them to their trained parts (None, or indices along an
    axis). ``options`` are further fields of :class:`Training`. Parameters keep their layout unless one is trained in
    part: then the attribute ``stored`` of ``train_step`` gives the reshape and permutation of each.
    """
    trained = dict(train) if isinstance(train, Mapping) else dict.fromkeys(train)
    training = Training(
        trained,
        {"kind": loss} if isinstance(loss, str) else loss,
        optimizer or {"kind": "sgd"},
        **({"store_permuted": any(piece is not None for piece in trained.values())} | options),
    )

    @tvm.transform.module_pass(opt_level=0, name="pock_train")
    def run(mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        return training_graph(Phases(mod), training)

    return run


def scheduling_pipeline(
    target: str | dict[str, object] | Target,
    database: str | os.PathLike[str] | None = None,
    *,
    decisions_of: DecisionsOf = by_default,
) -> Pass:
    """Return TVM's pipeline ``pock_schedule``: kernels with our schedules, for a plain TVM build.

    In: any module, of ``pock_train`` or of another front end. Out: its operators of known shape are calls of fused
    kernels, and each kernel that ``target`` has a schedule for is scheduled. Signatures and layouts of parameters stay.
    Whatever has symbolic shapes, control flow, or no schedule, is left to TVM. Build the result for the same target, by
    ``tvm.compile(mod, target, tir_pipeline="pock_schedule")``: TVM's default lowering would keep register tiles in
    heap memory.

    Parameters
    ----------
    target : str, dict or tvm.target.Target
        Target, as :func:`pock_tvm.compile` takes it.
    database : path, optional
        Tuning database (``pock tune``): kernels with a record get the schedule that it says.
    decisions_of : callable
        Returns the decisions for the schedule of a kernel without a record; by default none, which gives the default
        schedule.

    Raises
    ------
    DatabaseError
        The database has no records for the target, or is of another version of TVM.
    """
    resolved = resolve_target(target)
    machine = kernel_target(resolved)
    records = None if database is None else records_of(database, resolved)

    def decide(func: tirx.PrimFunc) -> Decisions:
        tuned = None if records is None else records.tuned(func, machine)
        return decisions_of(func) if tuned is None else tuned.decisions

    @tvm.transform.module_pass(opt_level=0, name="pock_schedule")
    def run(mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        entries = [var.name_hint for var in mod.functions]
        straight = [var.name_hint for var, func in mod.functions.items() if _is_straight(func)]
        passes: list[Pass] = []
        for name in straight:
            parameters = [param.name for param in mod[name].params]
            passes += [UnifyProducts(parameters, name)]
            passes += [ChannelsLast(name), SimplifyMovement(name)] if _has_channels_first(mod[name]) else []
            passes += [] if machine.layouts.reads_across else [StraightenProducts([], name)]
        views = relax.transform.RewriteDataflowReshape()
        passes += [
            legalize_known(machine),
            views,
            relax.transform.AnnotateTIROpPattern(),
            FuseGroups(machine.traits.arguments),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(entries),
            views,
            ScheduleKernels(machine, decide),
        ]
        with resolved:
            return tvm.transform.Sequential(passes)(mod)

    return run


def _is_straight(func: tvm.ir.BaseFunc) -> bool:
    """Return whether a function is a straight line of operators on tensors of known shapes."""
    if not isinstance(func, relax.Function):
        return False
    try:
        values = [binding.var for binding in bindings_of(func)]
    except PassError:
        return False
    return all(map(is_static, (*func.params, *values)))


def _has_channels_first(func: relax.Function) -> bool:
    """Return whether a function has a convolution as front ends make it, which no schedule of ours suits."""
    calls = [binding.value for binding in bindings_of(func) if op_name(binding.value) == "relax.nn.conv2d"]
    return any(call.attrs.data_layout == "NCHW" for call in calls)


def lowering_pipeline() -> tuple[Pass, Any, Any]:
    """Return TVM's lowering ``pock_schedule`` (``tir_pipeline``), and the passes that finish host and device functions.

    Kernels of :func:`scheduling_pipeline` are lowered as in a program of ours, all others as TVM does by default.
    """
    rest, finish_host, finish_device = default_s_tir_pipeline()
    packed = [
        tirx.transform.MakePackedAPI(),
        tirx.transform.FP8StorageLegalize(),
        tirx.transform.BF16StorageLegalize(),
    ]

    @tvm.transform.module_pass(opt_level=0, name="pock_schedule")
    def run(mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        ours = {var: func for var, func in mod.functions.items() if SCHEDULED in func.attrs}
        others = {var: func for var, func in mod.functions.items() if var not in ours}
        lowered = rest(IRModule(others, attrs=mod.attrs))
        for func in ours.values():
            found = kernel_target(func.attrs["target"]).loops(func)
            lowered.update(tvm.transform.Sequential(packed)(found))
        return lowered

    return run, finish_host, finish_device
