"""Runs phases 2 to 9 of the pipeline. To fit a budget it splits the batch, rematerialises values, and as a last resort
leaves out Winograd's transforms.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path

from relay_passes.analysis.verify import functions_of, parameters_are_told_apart
from relay_passes.canonical.split_batch import why_whole
from relay_passes.kernels.winograd import uses_winograd
from relay_passes.memory.fit import Fit, TooLarge
from relay_passes.training.append_loss import LOSS
from relay_passes.training.split_loss import why_loss_whole
from schedules.decisions import DEFAULTS, Decisions

from ..frontend import Model
from ..schemes.scheme import with_trained
from . import pipeline
from .fitting import batch_parts, fewest_parts
from .footprint.plan import TARGET, bundled, memory_of
from .kernel_builder import KernelBuilder
from .lowered import Lowered
from .parameters import Parameters
from .phases import Phases
from .quantization import Calibration
from .step_choices import StepChoices
from .training_options import PREDICT, TRAIN, Training


def lower(
    model: Model,
    training: Training,
    builder: KernelBuilder,
    *,
    micro_batches: int | None = None,
    budget: int | None = None,
    in_bundle: bool = False,
    dump: Path | None = None,
    decisions: Decisions = DEFAULTS,
    calibration: Calibration | None = None,
) -> Fit[Lowered] | TooLarge:
    """Run phases 2 to 9: lower a model to kernels, and executors that call them on fixed addresses.

    ``micro_batches``: by default one, or as many as the budget needs. ``budget`` limits arena, optimizer state and
    gradient sums together, in bytes; with ``in_bundle`` all memory of the program's bundle. ``decisions`` are those of
    choices above kernels (:class:`StepChoices`). With ``calibration``, the frozen prefix computes in eight bits.

    Raises
    ------
    DecisionError
        The step offers no such choice or option.
    """
    # 1. Import, by the front end. What the scheme trains is filled into the records.
    phases = Phases(
        model.module, dump, with_trained(model.parameters, training.trained), choices=StepChoices(decisions)
    )
    phases.enter(1, "imported", model.module, parameters_are_told_apart)
    targets = [TARGET] if model.custom_loss is None else list(model.custom_loss.targets)
    held = [*(each.name for each in model.inputs), *targets] if in_bundle else []
    # 2. Canonicalise, for any number of micro-batches.
    if calibration is not None:
        calibration.mark(phases)
    training = pipeline.canonicalise_forward(phases, training)
    if calibration is not None:
        calibration.quantize(phases, list(training.trained), builder.kernel_target.layouts.word_planes)

    @functools.cache
    def graph(count: int) -> Phases:
        """Run phases 3 to 5."""
        own = phases.fork()
        pipeline.differentiate(own, replace(training, micro_batches=count), builder.kernel_target.layouts)
        return own

    @functools.cache
    def kernels(count: int, winograd: bool) -> Phases:
        """Run phases 6 to 8: kernels, fusion, order."""
        own = graph(count).fork()
        pipeline.order_kernels(
            own, replace(training, micro_batches=count), builder,
            winograd=winograd, held=held, has_budget=budget is not None,
        )  # fmt: skip
        return own

    def planned(own: Phases, count: int) -> Lowered:
        """Run phase 9, the plan."""
        return pipeline.plan(own.fork(), replace(training, micro_batches=count), is_gpu=builder.kernel_target.is_gpu)

    def within(arena: int, count: int, max_slowdown: float) -> Fit[Phases] | TooLarge:
        """Run the end of phase 8, rematerialisation for an arena of at most so many bytes."""
        own = replace(training, micro_batches=count)
        found = pipeline.fit_arena(kernels(count, True), own, arena, max_slowdown)
        if isinstance(found, Fit) or math.isfinite(max_slowdown) or not has_winograd(kernels(count, True)):
            return found
        # Winograd's transforms enlarge their operands but save time: dropped last.
        without = pipeline.fit_arena(kernels(count, False), own, arena, max_slowdown)
        return without if isinstance(without, Fit) else TooLarge(min(found.smallest, without.smallest))

    @functools.cache
    def beside_arena(count: int) -> int:
        """Bytes that the budget has to hold beside the arena."""
        if not in_bundle:
            return state_bytes(graph(count).parameters)
        lowered = planned(kernels(count, True), count)
        entries = {name: calls.record() for name, calls in bundled(lowered.entries).items()}
        return memory_of(entries, lowered.parameters, held).arena

    def attempt(count: int, max_slowdown: float) -> Fit[Lowered] | TooLarge:
        if budget is None:
            return Fit(planned(kernels(count, True), count))
        beside = beside_arena(count)
        found = within(budget - beside, count, max_slowdown)
        return found.beside(beside) if isinstance(found, TooLarge) else Fit(planned(found.value, count))

    def can_split() -> bool:
        if LOSS in phases.mod and why_loss_whole(phases.mod[LOSS]):
            return False
        return not any(why_whole(phases.mod[name]) for name in (TRAIN, PREDICT))

    # Micro-batches cost less than recomputation. Batch statistics need the whole batch at once.
    is_fixed = micro_batches is not None or budget is None or training.batch_norm == "batch"
    counts = [micro_batches or 1] if is_fixed else batch_parts(model)
    found = fewest_parts(attempt, counts, math.inf if budget is None else budget, can_split)
    phases.choices.close()
    return found


def state_bytes(parameters: Parameters) -> int:
    """Return the bytes of optimizer state and gradient sums."""
    return sum(record.nbytes for record in parameters.values() if record.is_state)


def has_winograd(phases: Phases) -> bool:
    """Return whether any product uses Winograd's transforms."""
    return any(uses_winograd(func) for _, func in functions_of(phases.after["products"]))
