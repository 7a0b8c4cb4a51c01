"""Appends a loss to a network."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import IRModule, relax
from tvm.relax import op as R

from ..canonical.split_batch import CUT
from ..errors import PassError
from ..ir import (
    Expr,
    dtype_of,
    inline,
    is_float,
    results_of,
    rewrite,
    scalar,
    shape_of,
    update_function,
    without_functions,
)
from ..operators.training import cross_entropy

LOSSES = ("cross_entropy", "causal_lm", "mse", "bce_with_logits", "output", "function")
LOSS = "loss"
"""Name of the function that computes a loss."""


@tvm.transform.module_pass(opt_level=0, name="AppendLoss")
@dataclass(frozen=True)
class AppendLoss:
    """Turn a function that returns a network's outputs into one that returns its scalar loss.

    In: a dataflow function with TVM's attribute ``num_input``, the number of parameters that are inputs. Out: the
    function with a further input ``target`` after these. It returns the loss, then the results that ``state_updates``
    names. With ``kind="output"`` an output is the loss, and there is no target. With ``kind="function"`` the module's
    function ``loss`` is the loss, and leaves the module: a dataflow function of the outputs, then the targets, whose
    attribute ``num_target`` counts these. For a micro-batch it is one of :class:`SplitLoss`.

    ============== ================================================ ===============================================
    kind           output                                           target
    ============== ================================================ ===============================================
    cross_entropy  float [N, C] or [N, C, d1, …]                    int64 [N] or [N, d1, …], classes
    causal_lm      float [B, T, C]                                  int64 [B, T], tokens: position t predicts t + 1
    mse            float, any shape                                 the same shape
    bce_with_logits  float, any shape                               the same shape, 0 … 1
    output         float [], the loss                               none
    function       any                                              any
    ============== ================================================ ===============================================

    All but the last two are means, as PyTorch's losses of those names. Labels equal to ``ignore_index`` do not count.

    For one of ``parts`` micro-batches (:class:`SplitBatch`) the loss is that part's contribution to the batch's mean;
    the contributions add up to it. The number of labels that count in the whole batch is then a further input after the
    target: ``counted``, float [].
    """

    kind: str
    output: int = 0
    """Index of the output that the loss reads."""
    ignore_index: int = -100
    label_smoothing: float = 0.0
    parts: int = 1
    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        if self.kind not in LOSSES:
            raise PassError(f"there is no loss '{self.kind}'; there are {', '.join(LOSSES)}")
        func = mod[self.function]
        results = func.ret_ty.fields if isinstance(func.ret_ty, relax.TupleType) else [func.ret_ty]
        updates = len(func.attrs.get("state_updates", []))
        if self.output >= len(results) - updates:
            raise PassError(f"the network has {len(results) - updates} outputs; there is no number {self.output}")
        own = mod[LOSS] if self.kind == "function" else None
        inputs = int(func.attrs["num_input"])
        params = list(func.params)
        count = 0 if own is None else int(own.attrs["num_target"])
        added = self._targets(results[self.output]) if own is None else list(own.params)[-count:]
        if self.parts > 1 and self.kind in ("cross_entropy", "causal_lm"):
            added.append(relax.Var("counted", relax.TensorType((), str(results[self.output].dtype.dtype))))
        params[inputs:inputs] = added

        def with_loss(builder: relax.BlockBuilder, body: Expr) -> Expr:
            fields = results_of(builder, body)
            if own is not None:
                outputs = fields[: len(own.params) - len(added)]
                loss = inline(builder, own, [*outputs, *added])
            else:
                loss = self._loss(builder, fields[self.output], *added)
            return relax.Tuple([loss, *fields[len(fields) - updates :]]) if updates else loss

        func = rewrite(func, params=params, result=with_loss)
        if self.parts > 1:
            cut = ["target"] if own is None else own.attrs[CUT]
            func = func.with_attr(CUT, [*func.attrs[CUT], *cut])
        mod = update_function(mod, self.function, func.with_attr("num_input", inputs + len(added)))
        return mod if own is None else without_functions(mod, [LOSS])

    def _targets(self, output: relax.TensorType) -> list[relax.Var]:
        shape = tuple(int(extent) for extent in output.shape)
        if self.kind == "output":
            if shape != ():
                raise PassError(
                    f"loss 'output' takes an output that is a single number; output {self.output} has the shape {shape}"
                )
            return []
        if self.kind in ("mse", "bce_with_logits"):
            return [relax.Var("target", relax.TensorType(shape, str(output.dtype.dtype)))]
        if self.kind == "causal_lm" and len(shape) != 3:
            raise PassError(
                f"loss 'causal_lm' takes logits [batch, tokens, vocabulary]; output {self.output} has the shape {shape}"
            )
        if self.kind == "cross_entropy" and len(shape) < 2:
            raise PassError(
                f"loss 'cross_entropy' takes logits [batch, classes, …]; output {self.output} has the shape {shape}"
            )
        labels = shape[:2] if self.kind == "causal_lm" else shape[:1] + shape[2:]
        return [relax.Var("target", relax.TensorType(labels, "int64"))]

    def _loss(
        self,
        builder: relax.BlockBuilder,
        output: Expr,
        target: relax.Var | None = None,
        counted: relax.Var | None = None,
    ) -> Expr:
        if not is_float(output):
            raise PassError(f"output {self.output} holds {dtype_of(output)} numbers; a loss needs floating-point ones")
        if target is None:
            return output
        emit = builder.emit
        if self.kind == "mse":
            return self._mean(builder, emit(R.square(emit(output - target))))
        if self.kind == "bce_with_logits":  # x (1 - t) + log(1 + e^-x): right at 0, and never overflows
            linear = emit(output * emit(scalar(1, output) - target))
            return self._mean(builder, emit(linear + emit(R.nn.softplus(emit(R.negative(output))))))
        if self.kind == "causal_lm":
            target = self._shifted(builder, target)
        shape = shape_of(output)
        if self.kind == "cross_entropy" and len(shape) > 2:
            output = emit(R.permute_dims(output, [0, *range(2, len(shape)), 1]))
        if len(shape) > 2:
            output, target = emit(R.reshape(output, (-1, shape_of(output)[-1]))), emit(R.reshape(target, (-1,)))
        options = {"ignore_index": self.ignore_index, "label_smoothing": self.label_smoothing}
        rows = emit(cross_entropy(output, target, **options))
        if counted is None:
            is_counted = emit(R.not_equal(target, relax.const(self.ignore_index, "int64")))
            counted = emit(R.sum(emit(R.astype(is_counted, dtype_of(output)))))
        return emit(R.divide(emit(R.sum(rows)), counted))

    def _mean(self, builder: relax.BlockBuilder, losses: Expr) -> Expr:
        """Divide the mean of a part by the number of parts: its contribution to the batch's mean."""
        mean = builder.emit(R.mean(losses))
        return mean if self.parts == 1 else builder.emit(mean * builder.emit(scalar(1 / self.parts, mean)))

    def _shifted(self, builder: relax.BlockBuilder, labels: relax.Var) -> relax.Var:
        """Shift the labels so that each position predicts the next token. Slicing the logits would copy them."""
        batch, tokens = shape_of(labels)
        following = builder.emit(R.strided_slice(labels, [1], [1], [tokens]))
        end = builder.emit(R.full(relax.ShapeExpr((batch, 1)), relax.const(self.ignore_index, "int64"), "int64"))
        return builder.emit(R.concat([following, end], axis=1))
