"""The compiler's table of contents: from a forward module to kernels and executors, in numbered phases."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tvm
from tvm import IRModule, relax
from tvm.ir.transform import Pass
from tvm.relax.utils import copy_with_new_vars

from relay_passes import (
    AccumulateGradients,
    AppendLoss,
    AppendUpdate,
    Backward,
    ChooseKernels,
    FoldBatchNorm,
    LiftFrozen,
    ListCalls,
    LowerToExecutor,
    NameKernels,
    OrderUpdates,
    PackMasks,
    PackWeights,
    PlanArena,
    SaveSmall,
    ScaleResults,
    SelectEarly,
    SimplifyMovement,
    SliceForward,
    SplitBatch,
    SplitGradients,
    StorePermuted,
    StraightenProducts,
    UnifyProducts,
    Winograd,
)
from relay_passes.canonical.canonicalise import canonicalise
from relay_passes.canonical.store_permuted import stored_of
from relay_passes.ir import bindings_of, op_name, shape_of
from relay_passes.ir.places import grouped_names, kernel_places
from relay_passes.ir.trained_part import TrainedPart
from relay_passes.memory.budget import BudgetError, kernel_seconds, within_budget, worthwhile
from schedules.cpu import Traits

from ..errors import of_passes

FORWARD, TRAIN, ACCUMULATE, PREDICT, PREPARE = "main", "train_step", "accumulate_step", "predict", "prepare"
ENTRIES = (PREPARE, TRAIN, ACCUMULATE, PREDICT)

Piece = TrainedPart | None
"""The trained part of a parameter; None for all of it."""


@dataclass
class Phases:
    """Runs phases over a module, and writes the module down after each where a folder is given."""

    mod: IRModule
    dump: Path | None = None
    after: dict[str, IRModule] = field(default_factory=dict)
    """The module as each phase left it."""
    places: dict[str, str] = field(default_factory=dict)
    """What of the network each kernel computes, for a message."""

    def run(self, name: str, passes: Iterable[Pass]) -> IRModule:
        """Apply the passes of one phase."""
        with of_passes():
            self.mod = self.after[name] = tvm.transform.Sequential(list(passes))(self.mod)
        if self.dump is not None:
            self.dump.mkdir(parents=True, exist_ok=True)
            (self.dump / f"{len(self.after):02d}-{name}.py").write_text(self.mod.script())
        return self.mod


@dataclass(frozen=True)
class Training:
    """What is trained and how, in plain values: everything the phases need to know."""

    trained: Mapping[str, Piece]
    """The trained parameters by name, pieces along axes of the parameter as the forward module declares it."""
    loss: Mapping[str, Any] = field(default_factory=lambda: {"kind": "cross_entropy"})
    """The fields of :class:`relay_passes.AppendLoss`."""
    optimizer: Mapping[str, Any] = field(default_factory=lambda: {"kind": "sgd", "momentum": 0.0})
    """The fields of :class:`relay_passes.AppendUpdate`'s ``optimizer``."""
    batch_norm: str = "frozen"
    """``frozen`` or ``batch``: the statistics that training normalises with."""
    accumulate: int = 1
    """How many steps share one update."""
    micro_batches: int = 1
    """In how many parts of the batch a step runs, one after the other; gradients are summed over them."""
    clip_norm: float | None = None
    store_permuted: bool = True
    """Store trained weights in the layout in which they are read; a weight that is trained in part has to be."""


def training_graph(phases: Phases, training: Training) -> IRModule:
    """Phases 2 to 5: from a forward module to Relax functions that train and predict on the same parameters.

    In: a module whose ``main`` takes its inputs (attribute ``num_input``) and its parameters. Out: the functions
    ``train_step``, ``predict`` and, where several steps share an update or a step runs in several micro-batches,
    ``accumulate_step``: of one micro-batch.
    """
    names, parts = list(training.trained), training.micro_batches
    shared = training.accumulate * parts > 1
    steps = [TRAIN, ACCUMULATE] if shared else [TRAIN]
    # 2. Canonicalise: one operator for each thing, channels last, trained weights stored as they are read.
    shapes = {param.name: shape_of(param) for param in phases.mod[FORWARD].params}
    phases.run("canonical", [*canonicalise(), SelectEarly(names)])
    phases.run("stored", [StorePermuted(names if training.store_permuted else []), UnifyProducts(live=names)])
    trained = stored_pieces(phases.mod[FORWARD], training.trained, shapes)
    phases.mod = _copies(phases.mod, [*steps, PREDICT])
    statistics = {PREDICT: "frozen"} | dict.fromkeys(steps, training.batch_norm)
    phases.run("folded", [FoldBatchNorm(trained, statistics[name], name) for name in statistics])
    split = [SplitBatch(parts, name) for name in statistics] if parts > 1 else []
    phases.run("simple", [*(SimplifyMovement(name) for name in statistics), *split])
    # 3. Loss.
    phases.run("loss", [AppendLoss(**training.loss, parts=parts, function=name) for name in steps])
    # 4. Backward: mark first, then build.
    phases.run("backward", [Backward(trained, name, 1 / training.accumulate) for name in steps])
    small = [kind(name) for name in steps for kind in (SaveSmall, PackMasks)]
    phases.run("saved", [relax.transform.EliminateCommonSubexpr(), *small])
    # 5. Update, in place.
    updates: list[Pass] = [
        AppendUpdate(training.optimizer, trained, training.clip_norm, shared, TRAIN),
        SplitGradients(TRAIN),
    ]
    updates += [AccumulateGradients(ACCUMULATE)] if shared else []
    return phases.run("update", updates)


def training_pipeline(
    train: Sequence[str] | Mapping[str, Piece],
    loss: str | Mapping[str, Any] = "cross_entropy",
    optimizer: Mapping[str, Any] | None = None,
    **options: Any,
) -> Pass:
    """TVM's pipeline ``pock_train``: phases 2 to 5 as one pass, for a plain TVM build.

    ``train`` names the parameters of ``main`` that are trained, or maps them to what of them is (None, or indices along
    an axis); ``options`` are further fields of :class:`Training`. Parameters keep their layout unless one is trained in
    part: then the attribute ``stored`` of ``train_step`` says how to reshape and permute each.
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


def executors(
    phases: Phases,
    frozen: Sequence[str],
    training: Training,
    traits: Traits,
    budget: int | None = None,
    most: float = math.inf,
) -> IRModule:
    """Phases 6 to 9: from Relax functions to kernels and executors that call them on fixed addresses.

    ``frozen`` names the parameters that never change. ``budget`` is the largest arena that will do, in bytes, and
    ``most`` what of a step's time recomputation may take to meet it. Where that is without bounds, what takes too much
    with Winograd's transforms, which are larger than what they transform, is tried without them.

    Raises
    ------
    BudgetError
        Nothing brings the arena down to the budget.
    """
    before = phases.mod
    try:
        return _executors(phases, frozen, training, traits, budget, most, winograd=True)
    except BudgetError as error:
        if not math.isinf(most) or not _is_transformed(phases.after["products"]):
            raise
        phases.mod = before
        try:
            return _executors(phases, frozen, training, traits, budget, most, winograd=False)
        except BudgetError as other:
            raise BudgetError(min(error.smallest, other.smallest)) from None


def _executors(
    phases: Phases,
    frozen: Sequence[str],
    training: Training,
    traits: Traits,
    budget: int | None,
    most: float,
    *,
    winograd: bool,
) -> IRModule:
    functions = [var.name_hint for var, func in phases.mod.functions.items() if isinstance(func, relax.Function)]
    steps = [name for name in (TRAIN, ACCUMULATE) if name in functions]
    # 6. Choose kernels; what depends on frozen parameters alone is computed once, by ``prepare``.
    views = relax.transform.RewriteDataflowReshape()
    straight = [StraightenProducts(frozen, name) for name in functions]
    scaled = [ScaleResults(list(training.trained), name) for name in functions]
    transformed = [Winograd(frozen, name) for name in functions] if winograd else []
    packed = [PackWeights(frozen, traits, name) for name in functions]
    sliced = SliceForward(steps, functions, frozen)
    phases.run("products", [*scaled, *straight, *transformed, sliced, *packed])
    phases.run("kernels", [ChooseKernels(functions, traits), views, LiftFrozen(frozen, functions)])
    everything = [*functions, PREPARE]
    # 7. Fuse epilogues and element-wise chains.
    before = phases.mod
    phases.run("grouped", [relax.transform.AnnotateTIROpPattern(), relax.transform.FuseOps()])
    names = grouped_names(before, phases.mod, everything)
    clean = [relax.transform.DeadCodeElimination(everything), relax.transform.RewriteDataflowReshape()]
    phases.run("fused", [relax.transform.FuseTIR(), *clean])
    # 8. Order, and compute again what is not worth keeping.
    phases.run("ordered", [NameKernels(everything), *(OrderUpdates(name) for name in everything)])
    phases.places = kernel_places(phases.mod, names)
    costs = kernel_seconds(phases.mod, everything)
    phases.mod = worthwhile(phases.mod, steps, costs)
    if budget is not None:
        phases.mod = within_budget(phases.mod, steps, everything, costs, budget, most)
    # 9. Plan.
    phases.run("planned", [PlanArena(name) for name in everything])
    parts = training.micro_batches - 1
    entries = [*steps[: training.accumulate], PREDICT, PREPARE]
    listed: list[Pass] = [ListCalls(name, 1, [ACCUMULATE] * parts) for name in steps[: training.accumulate]]
    phases.run("calls", [*listed, ListCalls(PREDICT, None, [PREDICT] * parts), ListCalls(PREPARE)])
    phases.run("executors", [LowerToExecutor(name) for name in entries])
    if training.accumulate == 1:  # what every micro-batch but the last runs is a part of the step
        phases.mod = IRModule({var: func for var, func in phases.mod.functions.items() if var.name_hint != ACCUMULATE})
    return phases.mod


def _is_transformed(mod: IRModule) -> bool:
    """Whether Winograd's transforms compute any product of a module."""
    functions = [func for func in mod.functions.values() if isinstance(func, relax.Function)]
    return any(
        op_name(binding.value).startswith("pock.winograd") for func in functions for binding in bindings_of(func)
    )


def _copies(mod: IRModule, names: Sequence[str]) -> IRModule:
    """The module with its forward function under several names instead of its own."""
    functions = {var: func for var, func in mod.functions.items() if var.name_hint != FORWARD}
    forward = mod[FORWARD]
    copies = {name: copy_with_new_vars(forward).with_attr("global_symbol", name) for name in names}
    return IRModule(functions | copies, attrs=mod.attrs)


def stored_pieces(
    func: relax.Function, trained: Mapping[str, Piece], shapes: Mapping[str, Sequence[int]]
) -> dict[str, Piece]:
    """Pieces along the axes of the parameters as they are stored now."""
    stored = stored_of(func)
    return {
        name: TrainedPart(stored[name].position(piece[0], shapes[name]), piece[1])
        if piece is not None and name in stored
        else piece
        for name, piece in trained.items()
    }
