"""Pipeline of the compiler: ten numbered phases from a model to a library.

- 1 import: :func:`import_model`
- 2 canonicalise: :func:`canonicalise_forward`
- 3 loss, 4 backward, 5 update: :func:`differentiate`
- 6 choose kernels, 7 fuse, 8 order: :func:`order_kernels`, and for a budget :func:`fit_arena`
- 9 plan: :func:`plan`
- 10 schedule and build: :func:`build`

:func:`pock_tvm.compiler.lowering.lower` runs phases 2 to 9, as often as a budget needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import tvm
from tvm import IRModule, relax, tirx
from tvm.ir.transform import Pass

from relay_passes import (
    AccumulateGradients,
    AppendLoss,
    AppendUpdate,
    Backward,
    ChooseKernels,
    CopyFunction,
    DequantizeAtUse,
    DrawNumbers,
    DropFunctions,
    EvaluateLoss,
    FoldBatchNorm,
    FuseGroups,
    FuseUpdates,
    GuardWrites,
    HoldInputs,
    JoinAttention,
    LiftFrozen,
    ListCalls,
    LowerToExecutor,
    MixedPrecision,
    NameKernels,
    OrderUpdates,
    PackMasks,
    PackWeights,
    PadFrozen,
    PlanArena,
    RecomputeCheap,
    RecoverAttention,
    ReserveScratch,
    SaveSmall,
    ScaleLoss,
    ScaleResults,
    SelectEarly,
    ShareFrozen,
    SimplifyMovement,
    SliceForward,
    SliceKernels,
    SplitBatch,
    SplitGradients,
    SplitLoss,
    StorePermuted,
    StraightenProducts,
    UnifyProducts,
    UnscaleGradients,
    UpdateAndSum,
    Winograd,
)
from relay_passes.analysis.kernel_costs import kernel_costs
from relay_passes.analysis.verify import (
    batch_norms_are_folded,
    everything_is_needed,
    only_executors,
    only_kernels,
    only_trained_gradients,
    only_trained_written,
    returns_loss,
    updates_follow_reads,
)
from relay_passes.canonical.canonicalise import move_channels_last, unify_operators
from relay_passes.canonical.store_permuted import stored_parts
from relay_passes.ir import bindings_of, shape_of
from relay_passes.ir.places import grouped_names, kernel_places
from relay_passes.kernels.lift_frozen import PREPARE
from relay_passes.kernels.share_frozen import tables_of
from relay_passes.kernels.winograd import suited_convolutions
from relay_passes.memory.budget import within_budget
from relay_passes.memory.call_list import call_list_of
from relay_passes.memory.fit import Fit, TooLarge
from relay_passes.memory.order_updates import OFF, STEP
from relay_passes.memory.verify import operands_are_inside, ranges_are_apart
from relay_passes.operators.attention import uses_attention
from relay_passes.training.append_loss import LOSS
from relay_passes.training.evaluate_loss import EVALUATE
from schedules.target import Layouts
from schedules.target import Target as KernelTarget

from ..frontend import Model, load_model
from .build import Library, build_library
from .kernel_builder import KernelBuilder
from .launches import build_launches
from .lowered import Lowered
from .parameters import with_layouts, with_prepared, with_states
from .phases import Phases
from .training_options import ACCUMULATE, FLOAT16, FLOAT32, FORWARD, PREDICT, TRAIN, Training

ENTRIES = (PREPARE, TRAIN, ACCUMULATE, PREDICT, EVALUATE)


def import_model(
    model: Any,
    *,
    batch: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    dropout: bool | None = None,
    trust: bool = False,
) -> Model:
    """Phase 1: forward module and parameter records of a user's model, every dimension bound."""
    return load_model(model, batch=batch, shapes=shapes, dropout=dropout, trust=trust)


def canonicalise_forward(phases: Phases, training: Training) -> Training:
    """Phase 2: canonical operators, channels last, trained weights stored in the layout in which they are read.

    Out: the functions ``train_step`` and ``predict``, equal except for batch norm. Returns ``training`` with trained
    parts along the axes of the stored parameters.
    """
    names = list(training.trained)
    shapes = {param.name: shape_of(param) for param in phases.mod[FORWARD].params}
    phases.run(2, "canonical", [*unify_operators(), *move_channels_last(), SelectEarly(names)])
    if LOSS in phases.mod:
        own = [*unify_operators(LOSS), *move_channels_last(LOSS), FoldBatchNorm({}, "frozen", LOSS)]
        phases.run(2, "own_loss", [*own, EvaluateLoss()])
    phases.run(2, "stored", [StorePermuted(names if training.store_permuted else []), UnifyProducts(live=names)])
    training = replace(training, trained=stored_parts(phases.mod[FORWARD], training.trained, shapes))
    phases.parameters = with_layouts(phases.parameters, phases.mod[FORWARD])
    copied = [CopyFunction([TRAIN, PREDICT], FORWARD), DropFunctions([FORWARD])]
    phases.run(2, "copied", [*copied, DrawNumbers(True, TRAIN), DrawNumbers(False, PREDICT)])
    statistics = {TRAIN: training.batch_norm, PREDICT: "frozen"}
    folded = [FoldBatchNorm(training.trained, kind, name) for name, kind in statistics.items()]
    phases.run(2, "folded", folded, batch_norms_are_folded)
    phases.run(2, "simple", [SimplifyMovement(name) for name in statistics])
    return training


def differentiate(phases: Phases, training: Training, layouts: Layouts | None = None) -> IRModule:
    """Phases 3 to 5: loss, backward graph and update of one micro-batch.

    ``layouts`` are those of the target, which may differentiate attention as one operator.
    """
    trained, count = training.trained, training.micro_batches
    if count > 1:
        own_loss = [SplitLoss(count)] if LOSS in phases.mod else []
        phases.run(2, "split", [*(SplitBatch(count, name) for name in (TRAIN, PREDICT)), *own_loss])
    if layouts is not None:
        apart = phases.mod
        attention = [RecoverAttention(layouts, trained, TRAIN), RecoverAttention(layouts, function=PREDICT)]
        recovered = phases.run(2, "attention", attention)
        if any(uses_attention(recovered[name]) for name in (TRAIN, PREDICT)) and not phases.choices.attention():
            phases.enter(2, "attention", apart)
    # 3. Loss.
    phases.run(3, "loss", [AppendLoss(**training.loss, parts=count, function=TRAIN)], returns_loss(TRAIN))
    # 4. Backward: mark first, then build.
    backward = Backward(trained, TRAIN, 1 / training.accumulate)
    only_trained = only_trained_gradients(TRAIN, trained)
    if training.precision == FLOAT16:
        phases.run(3, "scaled", [ScaleLoss(TRAIN)], returns_loss(TRAIN))
    phases.run(4, "backward", [backward], only_trained, everything_is_needed(TRAIN))
    if training.precision == FLOAT16:
        phases.run(4, "unscaled", [UnscaleGradients(TRAIN)], only_trained)
    small = [relax.transform.EliminateCommonSubexpr(), SaveSmall(TRAIN), PackMasks(TRAIN)]
    phases.run(4, "saved", small, only_trained)
    # 5. Update, in place. Runs that share an update only accumulate gradients.
    updates: list[Pass] = [
        AppendUpdate(training.optimizer, trained, training.clip_norm, training.is_shared, TRAIN),
        SplitGradients(TRAIN),
    ]
    if training.is_shared:
        updates = [CopyFunction([ACCUMULATE], TRAIN), *updates, AccumulateGradients(ACCUMULATE)]
    mod = phases.run(5, "update", updates, only_trained_written(training.steps, trained))
    phases.parameters = with_states(phases.parameters, mod[TRAIN])
    return mod


def order_kernels(
    phases: Phases,
    training: Training,
    builder: KernelBuilder,
    *,
    winograd: bool = True,
    held: Sequence[str] = (),
    has_budget: bool = False,
) -> None:
    """Phases 6 to 8: kernels in execution order.

    Computations on frozen parameters alone are hoisted into the function ``prepare``. ``held``: inputs that lie in the
    arena. ``has_budget``: :func:`fit_arena` follows, which rematerialises no value that is written slice by slice.
    """
    constant = [name for name, record in phases.parameters.items() if record.is_frozen]
    integers = [name for name in constant if not phases.parameters[name].dtype.startswith("float")]
    frozen = [name for name in constant if name not in integers]  # whose layouts are chosen here
    functions = [PREDICT, *training.steps, *training.evaluation]
    # 6. Choose kernels.
    target, choices = builder.kernel_target, phases.choices
    copies = choices.copies(training.copies) if frozen else training.copies
    tables = tables_of(phases.mod[PREDICT], frozen) if copies == 1 else set()
    moved = [name for name in frozen if name not in tables]
    padded = [PadFrozen(moved, functions, target)] if copies == 1 else []
    straight = [] if target.layouts.reads_across else [StraightenProducts(moved, name) for name in functions]
    scaled = [ScaleResults(list(training.trained), name) for name in functions]
    winograd = winograd and training.precision == FLOAT32  # its transforms lose what 16 bits have
    transformed = []
    if winograd:
        suited = [suited_convolutions(phases.mod[name], frozen).values() for name in functions]
        left = choices.without_winograd(set().union(*suited))
        transformed = [Winograd(frozen, name, left=left) for name in functions]
    unpacked = {"unpacked": choices.unpacked()} if moved else {}
    packed = [PackWeights(moved, target, name, **unpacked) for name in functions]
    batch = shape_of(phases.mod[TRAIN].params[0])[:1]
    early = [OrderUpdates(name, training.guard) for name in functions]  # slices pay by what is in memory at once
    sliced = SliceForward(training.steps, functions, constant, choices.slices(*batch) if batch else None)
    at_use = [DequantizeAtUse(integers, constant, name) for name in functions] if integers else []
    joins = target.layouts.joins_attention and uses_attention(phases.mod[TRAIN]) and choices.joined_attention()
    joined = [JoinAttention(name) for name in training.steps] if joins else []
    shared = [ShareFrozen(frozen, functions)] if copies == 1 and not target.layouts.reads_across else []
    phases.run(
        6, "products", [*scaled, *padded, *straight, *transformed, *joined, *early, sliced, *at_use, *packed, *shared]
    )
    chosen = ChooseKernels(functions, target)
    views = relax.transform.RewriteDataflowReshape()
    phases.run(6, "kernels", [chosen, views, LiftFrozen(frozen, functions)], only_kernels)
    phases.parameters = with_prepared(phases.parameters, phases.mod)
    # 7. Fuse epilogues and element-wise chains.
    before = phases.mod
    groups = FuseGroups(target.traits.arguments, choices.longest_group())
    phases.run(7, "grouped", [relax.transform.AnnotateTIROpPattern(), groups])
    names = grouped_names(before, phases.mod, training.functions)
    clean = [relax.transform.DeadCodeElimination(training.functions), relax.transform.RewriteDataflowReshape()]
    phases.run(7, "fused", [relax.transform.FuseTIR(), *clean], only_kernels)
    if training.precision != FLOAT32:
        phases.run(7, "narrowed", [MixedPrecision(functions, frozen, training.precision)], only_kernels)
        phases.parameters = with_prepared(phases.parameters, phases.mod)
    if target.layouts.fuses_updates and training.guard != STEP:
        joint = [fuse(name) for name in training.steps for fuse in (UpdateAndSum, FuseUpdates)]
        phases.run(7, "updates", [*joint, clean[0]], only_kernels)
    # 8. Order: updates as early as possible; cheap, long-lived values are rematerialised.
    ordered = [OrderUpdates(name, training.guard) for name in training.functions]
    holding = [HoldInputs(functions, held, training.micro_batches, TRAIN)] if held else []
    guarded = [GuardWrites(training.steps)] if target.is_gpu and training.guard != OFF else []
    phases.run(8, "ordered", [*guarded, NameKernels(training.functions), *ordered, *holding], updates_follow_reads)
    phases.places, phases.kernels = kernel_places(phases.mod, names), kernel_costs(phases.mod, training.functions)
    if choices.recomputed():
        phases.run(8, "cheap", [RecomputeCheap(training.steps, phases.seconds)], updates_follow_reads)
    if not (target.is_gpu or has_budget):
        slice_chains(phases, training, target, [clean[0], NameKernels(training.functions), *ordered], names)
    # Kernels are scheduled here: how much scratch they need decides the plan.
    kernels = [func for func in phases.mod.functions.values() if isinstance(func, tirx.PrimFunc)]
    scratch = builder.scratch(kernels, phases.places)
    phases.run(8, "scratch", [ReserveScratch(training.functions, scratch, target.traits.alignment)])


def slice_chains(
    phases: Phases,
    training: Training,
    target: KernelTarget,
    after: Sequence[Pass],
    names: Mapping[tuple[str, str], Sequence[str]],
) -> None:
    """End of phase 8: kernels that pass large values to each other run slice by slice. ``after``: passes that name and
    order kernels again; ``names`` is from :func:`grouped_names`."""
    traits = target.traits
    chains = [SliceKernels(traits.cached_bytes, traits.cores, name) for name in training.functions]
    sliced = tvm.transform.Sequential(chains)(phases.mod)
    has_chains = any(len(bindings_of(sliced[n])) > len(bindings_of(phases.mod[n])) for n in training.functions)
    if has_chains and phases.choices.sliced_chains():
        phases.enter(8, "sliced", sliced)
        phases.run(8, "chains", after, updates_follow_reads)
        phases.places, phases.kernels = kernel_places(phases.mod, names), kernel_costs(phases.mod, training.functions)


def fit_arena(phases: Phases, training: Training, budget: int, max_slowdown: float) -> Fit[Phases] | TooLarge:
    """End of phase 8: rematerialise more values if the budget requires it.

    ``budget`` is the largest arena in bytes, ``max_slowdown`` the largest share of a step's time spent on
    recomputation.
    """
    found = within_budget(phases.mod, training.steps, training.functions, phases.seconds, budget, max_slowdown)
    if isinstance(found, TooLarge):
        return found
    phases = phases.fork()
    phases.enter(8, "recomputed", found.value, updates_follow_reads)
    return Fit(phases)


def plan(phases: Phases, training: Training, *, is_gpu: bool = False) -> Lowered:
    """Phase 9: place every temporary at a fixed offset of one arena, and lower call lists to executors: on a GPU
    they are lists of launches."""
    phases.run(9, "planned", [PlanArena(name) for name in training.functions], ranges_are_apart)
    # A step begins with micro-batches that only accumulate. They are entry points only if ``accumulate`` needs them.
    others, steps = training.micro_batches - 1, training.steps[: training.accumulate]
    listed = [ListCalls(name, 1, [ACCUMULATE] * others, checked=training.guard != OFF) for name in steps]
    listed += [ListCalls(PREDICT, None, [PREDICT] * others), *map(ListCalls, [*training.evaluation, PREPARE])]
    unlisted = DropFunctions([name for name in training.steps if name not in steps])
    phases.run(9, "calls", [*listed, unlisted], operands_are_inside)
    names = [name for name in ENTRIES if name in phases.mod]
    module = phases.mod
    if not is_gpu:
        executors = [LowerToExecutor(name) for name in names]
        module = phases.run(9, "executors", executors, only_executors, operands_are_inside)
    phases.settle()
    return Lowered(
        module,
        {name: call_list_of(module[name]) for name in names},
        phases.parameters,
        training.micro_batches,
        phases.after["saved"][TRAIN],
        phases.places,
        phases.kernels,
        phases.choices.offered,
    )


def build(lowered: Lowered, builder: KernelBuilder, contract: Sequence[int]) -> Library:
    """Phase 10: build the kernels, and link them with the executors into one library; for a GPU, with their launches.

    ``contract`` is the digest of the manifest and the constants that the library goes with.
    """
    link = build_launches if builder.kernel_target.is_gpu else build_library
    return link(lowered.module, lowered.entries, builder, lowered.places, contract)


def training_graph(phases: Phases, training: Training) -> IRModule:
    """Phases 2 to 5: from a forward module to Relax functions that train and predict with the same parameters.

    In: a module whose ``main`` takes its inputs (attribute ``num_input``) and its parameters. Out, for one micro-batch:
    the functions ``train_step``, ``predict`` and, if several runs share an update, ``accumulate_step``.
    """
    return differentiate(phases, canonicalise_forward(phases, training))
