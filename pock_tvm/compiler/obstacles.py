"""``pock.check``: lists what prevents compiling a model, and what deserves a warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from tvm import relax

from relay_passes.canonical.store_permuted import stored_parts
from relay_passes.kernels.choose_kernels import without_kernel
from relay_passes.training import backward
from schedules.target import Target as KernelTarget

from ..device.arguments import Kind, require
from ..device.losses import FUNCTION, Loss, as_loss
from ..device.optimizers import SGD
from ..errors import CompilerError, MissingGradient, ModelError, Obstacle, PockError, PockWarning
from ..frontend import Model
from ..frontend.custom_loss import CustomLoss, custom_loss, with_custom_loss
from ..frontend.observations import observations
from ..schemes.scheme import Scheme
from .driver import TRAINS_NOTHING
from .driver import compile as compile_program
from .faults import own_faults
from .phases import Phases
from .pipeline import import_model, training_graph
from .targets import kernel_target, resolve_target
from .training_options import TRAIN, Training

SCHEME = Kind(
    """a pock.Scheme, such as Scheme({"*.bias": "full"}), or a function that makes one""",
    lambda value: value is None or isinstance(value, Scheme) or callable(value),
)


def check(
    model: Any,
    *,
    scheme: Scheme | Callable[[Model], Scheme] | None = None,
    loss: str | Loss | CustomLoss = "cross_entropy",
    batch: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    target: Any = None,
    batch_norm: str | None = None,
    trust: bool = False,
) -> list[Obstacle]:
    """List all obstacles to compiling a model, then all warnings.

    The options are those of :func:`pock_tvm.compile`. ``scheme`` may also be a function that makes one from the
    imported model. Without a blocking obstacle, every phase except building kernels has run.

    Raises
    ------
    PockError
        The loss or the target is invalid, or the scheme is neither a Scheme nor a function.
    """
    require("scheme", scheme, SCHEME)
    own, target = custom_loss(loss, None), resolve_target(target)
    loss = as_loss(loss) if own is None else Loss(FUNCTION)
    try:
        with own_faults():
            imported = import_model(model, batch=batch, shapes=shapes, trust=trust)
            imported = imported if own is None else with_custom_loss(imported, own)
    except ModelError as error:
        return list(error.obstacles) or [_refusal(error)]
    except CompilerError as error:
        return [_refusal(error)]
    try:
        scheme = scheme or Scheme.full()
        chosen = scheme if isinstance(scheme, Scheme) else scheme(imported)
        selection, faults = chosen.resolved(imported)
    except PockError as error:
        return [_refusal(error)]
    obstacles = [_refusal(fault) for fault in faults]
    if not selection:
        return obstacles or [Obstacle("", "", "", TRAINS_NOTHING)]
    training = Training(selection, vars(loss), SGD().kernel, batch_norm or "frozen")
    graph, gradients = _of_graph(imported, training, kernel_target(target))
    seen = observations(imported, selection, gradients, batch_norm)
    obstacles += graph + [each for each in seen if each.blocking]
    if not obstacles:
        obstacles += _of_plan(imported, scheme=chosen, loss=own or loss, target=target, batch_norm=batch_norm)
    return obstacles + [each for each in seen if not each.blocking]


def _refusal(error: PockError) -> Obstacle:
    return Obstacle("", "", "", str(error))


def _of_graph(model: Model, training: Training, target: KernelTarget) -> tuple[list[Obstacle], Collection[str]]:
    """Return the obstacles to the training graph and its kernels, and the parameters that a gradient reaches."""
    obstacles: list[Obstacle] = []
    phases = Phases(model.module)
    gradients: Collection[str] = training.trained
    try:
        with own_faults():
            training_graph(phases, training)
            gradients = [str(name) for name in phases.after["backward"][TRAIN].attrs["gradients"]]
    except MissingGradient:
        func = phases.after["loss"][TRAIN]
        shapes = {name: record.shape for name, record in model.parameters.items()}
        obstacles += backward.obstacles(func, stored_parts(func, training.trained, shapes))
    except PockError as error:
        obstacles.append(_refusal(error))
    functions = [func for func in phases.mod.functions.values() if isinstance(func, relax.Function)]
    return obstacles + without_kernel(functions, target), gradients


def _of_plan(model: Model, **options: Any) -> list[Obstacle]:
    """Return the obstacle to kernels and their memory plan, if any."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PockWarning)
            compile_program(model, **options, build=False)
    except PockError as error:
        return [_refusal(error)]
    return []
