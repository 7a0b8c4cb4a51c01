"""Checks a program whose frozen layers compute in eight bits."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from relay_passes.ir import returned

from ...device.losses import Loss
from ...device.program import Program
from ...device.random import RANDOM
from ...device.trainer import Trainer
from ...errors import CheckError
from ...frontend import Model
from ..evaluation import Evaluation
from ..kernel_builder import KernelBuilder
from ..quantization import Calibration
from .agreement import relative_difference
from .batches import synthetic_batches
from .integers import check_integers, in_eight_bits

TOLERANCE = 1e-4
"""Largest relative difference of float results that are computed in another order from equal integers."""


def check_quantized(
    model: Model, program: Program, calibration: Calibration, builder: KernelBuilder, twin: Program | None
) -> dict[str, Any]:
    """Check a program on a batch of its calibration data, or a synthetic one; return the record for the manifest.

    Every value in eight bits has to equal NumPy's, bit by bit; outputs and loss of the program those that follow (the
    loss only where a step draws nothing). How
    far the outputs are from those in float, by ``twin``, is not judged but recorded: ``error`` is relative to their
    norm.

    Raises
    ------
    CheckError
        The program computes something else.
    """
    start = time.perf_counter()
    func, loss = calibration.quantized, Loss(**program.manifest["loss"])
    made = next(synthetic_batches(model, loss, program.index_limits, 0))(0)
    batch = calibration.batches[0] if calibration.batches else made.inputs
    assert func is not None  # noqa: S101 - for mypy: it was compiled
    weights = {name: each.store(model.weights[name]) for name, each in program.parameters.items() if each.is_weight}
    values = in_eight_bits(func)
    results = Evaluation(func, [*values, *returned(func)], builder).run({**batch, **weights})
    compared = check_integers(func, dict(zip(values, results, strict=False)))
    trainer, target = Trainer(program), made.target
    outputs = _outputs(trainer, batch)
    for number, (ours, expected) in enumerate(zip(outputs, results[len(values) :], strict=True)):
        _agree(f"output {number}", ours, expected)
    if program.tensor(RANDOM) is None:  # else a step's outputs are not those of predict
        if model.custom_loss is not None:
            value = model.custom_loss.value(model.source, outputs, target)
        else:
            total, count, _ = loss.measure(outputs[loss.output], np.zeros(0) if target is None else np.asarray(target))
            value = total / count
        _agree("the loss", np.array(trainer.step(batch, target, lr=0.0)), np.array(value))
    record = {"against": "numpy's integers", "values": compared, "seconds": round(time.perf_counter() - start, 2)}
    if twin is not None:
        floats = _outputs(Trainer(twin), batch)
        record["error"] = max(relative_difference(*pair) for pair in zip(outputs, floats, strict=True))
    return record


def _outputs(trainer: Trainer, batch: Any) -> tuple[np.ndarray, ...]:
    found = trainer.predict(batch)
    return found if isinstance(found, tuple) else (found,)


def _agree(what: str, ours: np.ndarray, expected: np.ndarray) -> None:
    if ours.dtype.kind == "f" and relative_difference(ours, expected) > TOLERANCE:
        raise CheckError(
            f"the program does not compute what its layers in eight bits lead to: {what} differs by "
            f"{relative_difference(ours, expected):.1e}. This is a fault of the compiler: please report it"
        )
