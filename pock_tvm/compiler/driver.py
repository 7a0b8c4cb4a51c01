"""``pock.compile``: compiles a model and a scheme into a program."""

from __future__ import annotations

import functools
import os
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import tirx

from relay_passes.memory.call_list import CallList
from relay_passes.memory.fit import Fit, TooLarge
from relay_passes.memory.order_updates import OFF, STEP, UPDATE
from schedules.decisions import DecisionError

from .. import __version__
from ..device import optimizers
from ..device.checksums import weight_checksums
from ..device.contract import contract_of
from ..device.files import make_folder
from ..device.losses import FUNCTION, Loss, as_loss
from ..device.optimizers import SGD, Optimizer
from ..device.program import FORMAT, Program
from ..errors import MemoryBudgetError, ModelError, OptionError, PockWarning
from ..frontend import Model
from ..frontend.custom_loss import CustomLoss, custom_loss, with_custom_loss
from ..frontend.observations import observations
from ..frontend.structure import structure_of
from ..quantities import parse_bytes
from ..schemes.scheme import Scheme
from . import lowering, pipeline
from .build import Library
from .database import ANY, Records, TunedStep, records_of
from .faults import for_users
from .footprint.needs import is_freestanding, limits_of, needs_of
from .index_limits import index_limits
from .kernel_builder import KernelBuilder
from .layers import layer_report
from .lowered import Lowered
from .options import check_options
from .quantization import Calibration, calibration_for
from .self_check import SelfCheck, reference_of
from .self_check.quantized import check_quantized
from .step_choices import kernels_key, record_of, step_key
from .targets import instructions_of, resolve_target, runs_here, triple_of
from .training_options import FLOAT16, FLOAT32, Training

TRAINS_NOTHING = "the scheme trains nothing: every parameter is frozen"


@for_users
def compile(  # noqa: A001 - the name that users expect
    model: Any,
    *,
    scheme: Scheme | None = None,
    loss: str | Loss | CustomLoss | Callable[[Any, Any], Any] = "cross_entropy",
    optimizer: Optimizer | None = None,
    batch: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    target: Any = None,
    batch_norm: str | None = None,
    dropout: bool | None = None,
    accumulate: int = 1,
    micro_batches: int | None = None,
    clip_norm: float | None = None,
    guard: str = UPDATE,
    precision: str = FLOAT32,
    frozen: str = FLOAT32,
    calibrate_with: Any = None,
    max_drop: float | None = None,
    memory_budget: str | int | None = None,
    copies: int = 1,
    dump: str | os.PathLike[str] | None = None,
    build: bool = True,
    check: bool | None = None,
    check_with: tuple[Any, Any] | None = None,
    trust: bool = False,
    flash: str | int | None = None,
    ram: str | int | None = None,
    database: str | os.PathLike[str] | Records | None = None,
) -> Program:
    """Compile a model into a training program.

    Parameters
    ----------
    model : torch.export.ExportedProgram, ONNX model, or the path of a ``.pt2`` or ``.onnx`` file
    scheme : Scheme, optional
        What to train; everything by default.
    loss : str, Loss, CustomLoss or callable
        ``cross_entropy``, ``causal_lm``, ``mse``, ``bce_with_logits``, ``output``, or a Loss with its options. Or a
        Python function or ``nn.Module`` of (outputs, target), which is compiled with the network: the example of a
        target in a CustomLoss, or in ``check_with``, says what the target of a step looks like. In micro-batches such a
        loss is a linear function of means and sums over the samples, whose factors may depend on the whole target.
    optimizer : SGD, Adam or AdamW, optional
        SGD without momentum by default. The learning rate is given to each step.
    batch : int, optional
        Binds a dynamic batch.
    shapes : mapping of input name to shape, optional
        Binds further dynamic dimensions.
    target : optional
        ``"host"`` (the default), a short name such as ``pi4``, one of TVM's tags, or a TVM target.
    batch_norm : str, optional
        ``"frozen"`` (the default): normalise with the running statistics, as fine-tuning usually does. Unless given, a
        warning says so. ``"batch"``: normalise with each batch's statistics and update the running ones, as PyTorch
        does in training mode.
    dropout : bool, optional
        Whether training drops values (``nn.Dropout`` and the like). By default where the model does, exported in
        training mode. True turns on all dropout of a program that was exported in eval mode, with its rates (an ONNX
        file of eval mode has none left). Masks, and noise such as ``randn_like``, depend on the seed of the
        :class:`Trainer`, the step and the layer alone, on every target. ``predict`` drops nothing.
    accumulate : int
        Number of steps that share one update, which uses their mean gradient.
    micro_batches : int, optional
        Number of equal parts of the batch that a step runs one after the other, summing their gradients: the same
        update in less memory and a little more time. By default one, or as many as ``memory_budget`` needs.
    clip_norm : float, optional
        Largest global norm of the gradients. Larger gradients are scaled down to it.
    guard : str
        How a step is guarded against numbers that are not finite, in float inputs and target, loss and gradients; a
        step that meets one raises :class:`NonFiniteError`. ``"update"`` (the default): nothing is applied that is not
        finite. A bad input or loss changes nothing, nor does a bad gradient where gradients are clipped or summed over
        steps or micro-batches. Elsewhere the updates before it in the step stay, and the trainer goes on only from a
        checkpoint. ``"step"``: the first update waits for the last gradient, so that a step is applied as a whole or
        not at all; all gradients are in memory at once. ``"off"``: no checks.
    precision : str
        ``"float32"`` (the default), or on GPUs ``"bfloat16"`` or ``"float16"``: values between kernels and frozen
        weights are stored in 16 bits, and products multiply numbers of 16 bits. Their sums, norms, softmax, losses and
        updates stay in float32, and so do trained weights and gradients of weights. With float16 a step scales its
        loss: if a gradient overflows, it is taken again with a smaller scale. So ``guard`` is then ``"step"``.
    frozen : str
        Type that layers before the first trained parameter compute in, where no gradient passes: ``"float32"`` (the
        default), or on CPUs ``"int8"``. Their weights and activations then have eight bits, with ranges from
        ``calibrate_with``, and sums are exact. The manifest lists these layers under ``quantized``, and says why others
        stay float. The program does not hold their float weights, nor does its state.
    calibrate_with : array, mapping of arrays, or sequence of batches (x, y), optional
        Samples for ``frozen="int8"``, some hundred, like those of training. A quantised model needs none,
        nor does a program that is not built: its costs do not depend on them.
    max_drop : float, optional
        Largest difference of the outputs from those in float that ``frozen="int8"`` may make on these samples, relative
        to their norm: 0.05 is 5 %. Layers that lose most in eight bits stay float until it holds; the manifest names
        them.
    memory_budget : str or int, optional
        Largest memory for training besides the weights (arena, optimizer state, gradient sums): ``"64MB"``, or bytes.
        On a microcontroller: all memory of the program's bundle, in which trained weights, inputs and results lie, too.
        To fit it, the batch is split into micro-batches, values are rematerialised, and, as a last resort, Winograd's
        transforms, which trade memory for time, are left out.
    copies : int
        Number of copies of a frozen weight that a trainer may keep. With 1, products of the backward graph read the
        weight that those of the forward graph do, and turn it in cache. With 2 they may have one of their own: a
        little faster, for up to twice the memory.
    dump : path, optional
        Folder to which the module is written after each phase.
    build : bool
        False leaves the kernels unbuilt: the program reports its costs, but cannot run.
    check : bool, optional
        Whether to compare one step of the program with the framework that the model comes from: outputs, loss, the
        update of every trained part, and every statistic. By default, if that framework is installed. If this machine
        lacks instructions of the target or has no such GPU, or if ``precision`` is of 16 bits, a build in float32 for
        this machine's CPU is checked instead.
    check_with : pair of x and y, optional
        Batch to check with, as ``Trainer.step`` takes it; a synthetic one by default.
    trust : bool
        Read a ``.pt2`` file as it is, though PyTorch then runs code that may lie in it. Only files of pickled weights
        or objects need it.
    flash, ram : str or int, optional
        What a microcontroller has: ``"512KB"``, or bytes. By default what its target's record says (``pock targets``).
        RAM less the stack is a ``memory_budget``. A program that needs more flash is refused.
    database : path, optional
        Folder of a tuning database (:func:`pock_tvm.tune`), whose schedules kernels take where it has any, as the step
        does its choices above kernels, unless they do not fit ``memory_budget``. Or the records themselves.

    Raises
    ------
    CheckError
        The program computes something else than the model. The message names the layer or the parameter.
    PockError
        The model, the scheme or an option is at fault. The message says which, and what to do.

    Warns
    -----
    PockWarning
        An input is never read, a parameter gets no gradient, or running statistics stay unchanged.
    """
    check_options(
        scheme=scheme, loss=loss, optimizer=optimizer, batch_norm=batch_norm, dropout=dropout, accumulate=accumulate,
        micro_batches=micro_batches, clip_norm=clip_norm, guard=guard, precision=precision, frozen=frozen,
        max_drop=max_drop, memory_budget=memory_budget, copies=copies, dump=dump, build=build, flash=flash, ram=ram,
        database=database,
    )  # fmt: skip
    if check is False and check_with is not None and not callable(loss):
        raise OptionError("check_with is a batch to check with, and check=False checks nothing: leave one of them out")
    own = custom_loss(loss, check_with)
    loss = as_loss(loss) if own is None else Loss(FUNCTION)
    optimizer, target = optimizer or SGD(), resolve_target(target)
    triple = triple_of(target)
    of_target = {"triple": triple, "description": str(target), "instructions": instructions_of(target)}
    limits = limits_of(of_target, flash, ram)
    if dump is not None:
        make_folder(dump)
    accumulate, micro_batches = int(accumulate), micro_batches and int(micro_batches)
    # Phase 1.
    imported = pipeline.import_model(model, batch=batch, shapes=shapes, dropout=dropout, trust=trust)
    if own is not None:
        imported = with_custom_loss(imported, own)
    scheme = scheme or Scheme.full()
    selection = scheme.resolve(imported)
    if not selection:
        raise OptionError(TRAINS_NOTHING)
    # Phases 2 to 9.
    budget = None if memory_budget is None else parse_bytes(memory_budget)
    if limits is not None:
        budget = limits.memory if budget is None else min(budget, limits.memory)
    statistics = batch_norm or "frozen"
    builder, records = KernelBuilder(target), None
    if database is not None:
        records = database if isinstance(database, Records) else records_of(database, target)
        builder = KernelBuilder(target, functools.partial(records.tuned, target=builder.kernel_target))
    if precision != FLOAT32 and not builder.kernel_target.is_gpu:
        raise OptionError(
            f"precision={precision!r} is for GPUs, and this target is a CPU: leave it out, or compile for a GPU"
        )
    if precision == FLOAT16:
        if guard == OFF:
            raise OptionError("precision='float16' finds its loss scale by the checks that guard='off' leaves out")
        guard = STEP
    training = Training(
        selection, vars(loss), optimizer.kernel, statistics, accumulate, clip_norm=clip_norm, guard=guard,
        copies=copies, precision=precision,
    )  # fmt: skip
    in_bundle = is_freestanding(triple)
    calibration = calibration_for(
        frozen, calibrate_with, max_drop, imported, build=build, is_gpu=builder.kernel_target.is_gpu,
        precision=precision, batch_norm=statistics,
    )  # fmt: skip
    lower = functools.partial(
        lowering.lower, imported, training, builder,
        micro_batches=micro_batches, budget=budget, in_bundle=in_bundle, dump=Path(dump) if dump else None,
        calibration=calibration,
    )  # fmt: skip
    key = step_key(imported.module, training)
    tuned = None if records is None else records.tuned_step(key)
    fit = None if tuned is None else _as_tuned(tuned, lower)
    tuned, found = (None, lower()) if fit is None else (tuned, fit)
    if isinstance(found, TooLarge):
        if limits is not None and budget == limits.memory:
            raise MemoryBudgetError(limits.too_small(found.smallest), found.smallest)
        fixed = "trained weights, states, inputs and results" if in_bundle else "optimizer state and gradient sums"
        raise MemoryBudgetError(
            f"memory_budget={memory_budget!r} is too small: the smallest that would do is {found.smallest} bytes "
            f"({found.state} of them {fixed}). Train less, or a smaller batch",
            found.smallest,
        )
    lowered = found.value
    for each in observations(imported, selection, lowered.step.attrs["gradients"], batch_norm, frozen):
        if each.blocking:
            raise ModelError(str(each), [each])
        warnings.warn(str(each), PockWarning, stacklevel=3)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "versions": {"pock_tvm": __version__, "tvm": tvm.__version__, "python": platform.python_version()},
        "target": of_target,
        "scheme": scheme.rules,
        "loss": vars(loss),
        "optimizer": optimizers.to_json(optimizer),
        "options": {
            "batch_norm": statistics,
            "dropout": dropout,
            "accumulate": accumulate,
            "micro_batches": lowered.micro_batches,
            "memory_budget": None if memory_budget is None else parse_bytes(memory_budget),
            "clip_norm": clip_norm and float(clip_norm),
            "copies": copies,
            "guard": guard,
            "precision": precision,
            "frozen": frozen,
            "max_drop": max_drop and float(max_drop),
        },
        "quantized": calibration and calibration.report(),
        "inputs": [vars(spec) for spec in imported.inputs],
        "outputs": [vars(spec) for spec in imported.outputs],
        "targets": [] if own is None else [vars(spec) for spec in own.specs],
        "index_limits": index_limits(imported),
        "parameters": {name: record.to_json() for name, record in lowered.parameters.items()},
        "weight_crc32": weight_checksums(imported.weights),
        "aliases": imported.aliases,
        "entries": {name: calls.record() for name, calls in lowered.entries.items()},
        "layers": _layers(layer_report(structure_of(imported), selection, lowered.step), calibration),
        "step": {"key": key, "choices": record_of(lowered.choices), "gain": None if tuned is None else tuned.gain},
        "kernels": lowered.kernels,
        "check": None,
    }
    # Phase 10.
    constants = _constants(lowered.entries)
    library = Library(b"", b"")
    if build:
        library = pipeline.build(lowered, builder, contract_of(manifest, constants))
        functions = (func for func in lowered.module.functions.values() if isinstance(func, tirx.PrimFunc))
        notes = builder.notes([func for func in functions if func.attrs["global_symbol"] in lowered.kernels])
        for name, note in notes.items():
            lowered.kernels[name] |= note
    weights = {name: array for name, array in imported.weights.items() if name in lowered.parameters}
    program = Program(manifest, library.code, weights, constants, library.kernels)
    if build and limits is not None:
        needs_of(program).check(limits)
    if not build or check is False:
        return program
    # Check: compare one step of the program with the framework.
    again = functools.partial(
        compile,
        scheme=scheme,
        loss=own or loss,
        optimizer=optimizer,
        batch_norm=statistics,
        accumulate=accumulate,
        micro_batches=lowered.micro_batches,
        clip_norm=clip_norm,
        copies=copies,
        guard=guard,
    )
    if precision == FLOAT32 and calibration is None and runs_here(target):
        itself = functools.partial(again, target=target)
        manifest["check"] = _checked(imported, program, list(selection), loss, optimizer, check, check_with, itself)
        return program
    # Of 16 and of eight bits, and of other machines, a build in float32 for this machine is compared.
    here = functools.partial(again, imported, check=check, check_with=check_with)
    with warnings.catch_warnings(action="ignore", category=PockWarning):
        try:
            checked = here(memory_budget=budget)
        except MemoryBudgetError:  # this machine's kernels, or floats, need more
            checked = here()
    what = "of the host" if calibration is None else "in float32"
    manifest["check"] = checked.manifest["check"] and checked.manifest["check"] | {"build": what}
    if calibration is not None and runs_here(target):
        manifest["quantized"]["check"] = check_quantized(imported, program, calibration, builder, checked)
    return program


def _layers(rows: list[dict[str, Any]], calibration: Calibration | None) -> list[dict[str, Any]]:
    """Say of layers in eight bits that they are."""
    names = {layer.name for layer in calibration.prefix.layers.values()} if calibration else set()
    return [row | {"weight": "int8"} if row["name"] in names else row for row in rows]


def _as_tuned(tuned: TunedStep, lower: Callable[..., Fit[Lowered] | TooLarge]) -> Fit[Lowered] | None:
    """Lower a step as it was found faster; None if it no longer can be made of the same kernels, or does not fit."""
    try:
        found = lower(decisions=tuned.decisions)
    except DecisionError:
        return None
    if isinstance(found, TooLarge):
        return None
    entries = {name: calls.record() for name, calls in found.value.entries.items()}
    return found if tuned.kernels in (ANY, kernels_key(entries)) else None


def _checked(
    imported: Model,
    program: Program,
    trained: list[str],
    loss: Loss,
    optimizer: Optimizer,
    wanted: bool | None,
    given: tuple[Any, Any] | None,
    again: Callable[..., Program],
) -> dict[str, Any] | None:
    """Check a program on this machine. Return the manifest's record of it, or None if there is no reference."""
    manifest = program.manifest
    flops = sum(layer["forward_flops"] for layer in manifest["layers"])
    reference = reference_of(imported, trained, loss, manifest["options"]["batch_norm"], flops)
    if reference is not None:
        return SelfCheck(
            imported, program, reference, optimizer, functools.partial(again, check=False, guard=OFF), given
        ).run()
    if wanted or given is not None:
        raise OptionError(
            "there is nothing to check this program against: its model was not imported from PyTorch or ONNX here. "
            "Leave check and check_with out"
        )
    return None


def _constants(entries: Mapping[str, CallList]) -> dict[str, np.ndarray]:
    return {
        name: np.ascontiguousarray(value.numpy())
        for calls in entries.values()
        for name, value in calls.constants.items()
    }
