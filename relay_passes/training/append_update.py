"""Appends the optimizer's step: each trained parameter is updated in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import tvm
from tvm import IRModule, relax, tirx
from tvm.relax import op as R

from schedules.extents import divisors
from schedules.kernels import update

from ..errors import PassError
from ..ir import Expr, bytes_of, dtype_of, op_name, scalar, shape_of
from ..ir.append import GRADIENT_SUM, InPlaceWriter
from ..ir.trained_part import Trained, TrainedPart, plain_parts

# For each kind of optimizer: its hyperparameters with their defaults, the names of its states, the number of rates that
# a step reads, and its kernel.
DEFAULTS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.0, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0},
    "adam": {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.0, "decoupled": False},
}
STATES: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "sgd": lambda options: ["momentum_buffer"] if options["momentum"] else [],
    "adam": lambda _options: ["exp_avg", "exp_avg_sq"],
}
RATES: dict[str, Callable[[Mapping[str, Any]], int]] = {
    "sgd": lambda options: 2 if options["momentum"] and options["dampening"] else 1,
    "adam": lambda _options: 3,
}
KERNELS: dict[str, Callable[..., tirx.PrimFunc]] = {"sgd": update.sgd, "adam": update.adam}

LARGE_GRADIENT = 32 * 2**20
"""Bytes of a gradient above which it is computed and applied in parts."""
FEWEST_ROWS = 64
"""Rows of the smallest part: each part reads the whole second operand of the product again."""


@tvm.transform.module_pass(opt_level=0, name="AppendUpdate")
@dataclass(frozen=True)
class AppendUpdate:
    """Turn a function that returns loss and gradients into one that updates its parameters and returns the loss.

    In: the result of :class:`Backward`. Out: the function with further parameters at the end: ``rates``, a float vector
    of the learning rate and other numbers that change from step to step, and the states of each trained parameter,
    named ``<state>.<parameter>``. Parameters, states and the running statistics that ``state_updates`` names are
    written in place by ``call_tir_inplace``. The function returns the loss, then the written values.

    With ``accumulated`` the gradients of earlier steps are added first: see :class:`AccumulateGradients`.
    """

    optimizer: Mapping[str, Any]
    """``kind`` (sgd or adam), and the hyperparameters that differ from ``DEFAULTS``."""
    trained: Trained
    """The trained parameters, as in :class:`Backward`."""
    clip_norm: float | None = None
    """Largest norm of all gradients together; they are scaled down to it (``torch.nn.utils.clip_grad_norm_``)."""
    accumulated: bool = False
    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        kind = self.optimizer.get("kind")
        if kind not in KERNELS:
            raise PassError(f"there is no optimizer '{kind}'; there are {', '.join(KERNELS)}")
        unknown = [name for name in self.optimizer if name != "kind" and name not in DEFAULTS[kind]]
        if unknown:
            raise PassError(f"optimizer '{kind}' has no option '{unknown[0]}'; it has {', '.join(DEFAULTS[kind])}")
        return InPlaceWriter(mod, self.function).append(self._updates)

    def _updates(self, writer: InPlaceWriter, grads: dict[str, Expr]) -> None:
        kind, trained = self.optimizer["kind"], plain_parts(self.trained)
        options = DEFAULTS[kind] | {name: value for name, value in self.optimizer.items() if name != "kind"}
        sums = {}
        if self.accumulated:
            sums = {name: writer.state(GRADIENT_SUM, name, grad.ty) for name, grad in grads.items()}
            if self.clip_norm is None:
                # In place: a gradient that turns out not to be finite then comes before the first update.
                for name, grad in grads.items():
                    writer.assign(sums[name], grad, accumulate=True)
                grads = dict(sums)
            else:  # the norm reads the totals, and nothing but updates may read what was written in place
                grads = {name: writer.emit(sums[name] + grad) for name, grad in grads.items()}
        dtypes = {dtype_of(grad) for grad in grads.values()} or {"float32"}
        rates = writer.parameter("rates", relax.TensorType((RATES[kind](options),), dtypes.pop()))
        vectors: dict[str, Expr] = {"rates": rates}
        if self.clip_norm is not None:
            vectors["clip"] = self._clip(writer, grads, self.clip_norm)
        for name, grad in grads.items():
            states = [writer.state(state, name, grad.ty) for state in STATES[kind](options)]
            grad, scale = self._unscaled(writer, grad, trained[name])
            read_vectors = vectors | scale
            lengths = {vector: shape_of(value)[0] for vector, value in read_vectors.items()}
            layout = writer.layout(name, trained[name])
            for part, rows in self._parts(writer, grad, trained[name]):
                kernel = KERNELS[kind](replace(layout, part=part), **options, vectors=lengths)
                operands = [rows, *states, *read_vectors.values()]
                writer.write(kind, kernel, name, operands, trained[name], also=range(2, 2 + len(states)))
        for total in sums.values():
            writer.clear(total)

    def _parts(
        self, writer: InPlaceWriter, grad: Expr, piece: TrainedPart | None
    ) -> list[tuple[tuple[int, int] | None, Expr]]:
        """Split the gradient of a large matrix product into row ranges of at most ``LARGE_GRADIENT`` bytes, each with
        an update of its own: one part exists at a time (:class:`SplitGradients`). Other gradients have one range,
        None."""
        shape, size = shape_of(grad), bytes_of(grad)
        is_product = op_name(writer.made(grad)) == "pock.matmul" and len(shape) == 2
        if size <= LARGE_GRADIENT or not is_product or piece is not None or self.clip_norm is not None:
            return [(None, grad)]
        rows = max(n for n in divisors(shape[0]) if n == 1 or n * size <= LARGE_GRADIENT * shape[0])
        if rows < FEWEST_ROWS:
            return [(None, grad)]
        bounds = [(first, first + rows) for first in range(0, shape[0], rows)]
        return [(bound, writer.emit(R.strided_slice(grad, [0], [bound[0]], [bound[1]]))) for bound in bounds]

    def _unscaled(self, writer: InPlaceWriter, grad: Expr, piece: TrainedPart | None) -> tuple[Expr, dict[str, Expr]]:
        """Split off the scale by channel that folded batch norm multiplies a gradient with. The update multiplies
        instead, so that the product is never materialised."""
        product = writer.made(grad)
        if piece is not None or self.accumulated or op_name(product) != "relax.multiply":
            return grad, {}
        factor, scale = product.args
        is_scaled = shape_of(factor) == shape_of(grad) and len(shape_of(grad)) > 1
        if not is_scaled or shape_of(scale) != shape_of(grad)[-1:] or math.prod(shape_of(grad)[:-1]) == 1:
            return grad, {}
        return factor, {"scale": scale}

    def _clip(self, writer: InPlaceWriter, grads: dict[str, Expr], max_norm: float) -> Expr:
        """``min(1, max_norm / (norm + 1e-6))`` over all gradients, float [1]."""
        squares = [writer.emit(R.sum(writer.emit(R.square(grad)))) for grad in grads.values()]
        total = squares[0]
        for square in squares[1:]:
            total = writer.emit(total + square)
        norm = writer.emit(writer.emit(R.sqrt(total)) + scalar(1e-6, total))
        coefficient = writer.emit(R.minimum(writer.emit(scalar(max_norm, norm) / norm), scalar(1, norm)))
        return writer.emit(R.reshape(coefficient, (1,)))
