"""Folds batch norm with frozen statistics into the preceding product; with batch statistics, expands it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import tvm
from tvm import IRModule, relax
from tvm.relax import op as R

from ..errors import PassError
from ..ir import Expr, bindings_of, made_by, op_name, rewrite, scalar, shape_of, update_function, used_vars
from ..ir.trained_part import Trained
from ..operators.training import normalize
from .expand_normalization import along_axis


@tvm.transform.module_pass(opt_level=0, name="FoldBatchNorm")
@dataclass(frozen=True)
class FoldBatchNorm:
    """Rewrite ``nn.batch_norm`` as operators that have gradient rules.

    In: a dataflow function, channels last (a batch norm over another axis is expanded but not folded). Out: no batch
    norm.

    With ``statistics="frozen"`` the running mean and variance are constants and y = s * (conv(x, W) - mean) + beta with
    s = gamma / sqrt(var + eps). The rewrite depends on what is trained:

    - nothing, or all of W: y = conv(x, W * s) + (beta - mean * s). A trained W gets its gradient through the product
      W * s, so the convolution's result is not kept, and no scaling is left on activations.
    - gamma but not W: y = conv(x, W / sigma) … * gamma + beta, so that gamma's gradient costs one reduction.
    - a part of W: the convolution reads W itself, and its result is scaled.

    With ``statistics="batch"`` each batch is normalised by its own mean and variance. The updated running statistics
    become further results, named by the attribute ``state_updates``; a batch norm that is called twice updates them
    twice.
    """

    trained: Trained = field(default_factory=dict)
    """The trained parameters, as in :class:`Backward`."""
    statistics: str = "frozen"
    function: str = "main"

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        if self.statistics not in ("frozen", "batch"):
            raise PassError(f"statistics is 'frozen' or 'batch', not '{self.statistics}'")
        return update_function(mod, self.function, _Folding(mod[self.function], self.trained, self.statistics).run())


@dataclass
class _Folding:
    func: relax.Function
    trained: Trained
    statistics: str

    def run(self) -> relax.Function:
        bindings = bindings_of(self.func)
        self.made: dict[relax.Var, Expr] = {}
        self.uses: dict[relax.Var, int] = {}
        for binding in bindings:
            for var in used_vars(binding.value):
                self.uses[var] = self.uses.get(var, 0) + 1

        self.results: dict[relax.Var, Expr] = {}
        self.updates: dict[str, Expr] = {}
        func = rewrite(self.func, self._visit, result=self._with_updates if self.statistics == "batch" else None)
        return func.with_attr("state_updates", list(self.updates)) if self.updates else func

    def _visit(self, builder: relax.BlockBuilder, var: relax.Var, value: Expr) -> Expr:
        if isinstance(value, relax.TupleGetItem) and value.tuple_value in self.results:
            if value.index:
                raise PassError(f"'{var.name}' reads the statistics that a batch norm returns, which training replaces")
            return self.results[value.tuple_value]
        if op_name(value) != "relax.nn.batch_norm":
            new = value if isinstance(value, relax.Var | relax.Tuple) else builder.emit(value, var.name)
            if isinstance(new, relax.Var):
                self.made[new] = value
                self.uses[new] = self.uses.get(new, 0) + self.uses.get(var, 0)
            return new
        y = self._frozen(builder, value) if self.statistics == "frozen" else self._batch(builder, value)
        marker = builder.emit(relax.Tuple([y]), var.name)
        self.results[marker] = y
        return marker

    # ---- frozen statistics -------------------------------------------------------------------------------------------

    def _frozen(self, builder: relax.BlockBuilder, call: relax.Call) -> Expr:
        x, gamma, beta, mean, variance = call.args
        emit = builder.emit
        inverse = emit(R.rsqrt(emit(variance + scalar(float(call.attrs.epsilon), variance))))
        gamma_trained = self._is_trained(gamma) and bool(call.attrs.scale)
        scale = emit(gamma * inverse) if call.attrs.scale else inverse
        product, bias = self._foldable_product(x, call)
        if bias is not None and len(shape_of(bias)) > 1:
            bias = emit(R.reshape(bias, shape_of(mean)))
        offset = mean if bias is None else emit(mean - bias)

        if product is not None:
            weight = product.args[1]
            whole_weight_trained = self._is_trained(weight) and not self._is_trained_in_part(weight)
            if whole_weight_trained or not (gamma_trained or self._is_trained(weight)):
                shifted = (
                    emit(beta - emit(offset * scale)) if call.attrs.center else emit(R.negative(emit(offset * scale)))
                )
                return emit(emit(_with_weight(product, emit(weight * scale))) + shifted)
            if not self._is_trained(weight):
                normalized = emit(emit(_with_weight(product, emit(weight * inverse))) - emit(offset * inverse))
                scaled = emit(normalized * gamma)
                return emit(scaled + beta) if call.attrs.center else scaled

        axis, rank = int(call.attrs.axis) % len(shape_of(x)), len(shape_of(x))
        x = emit(product) if product is not None else x
        if gamma_trained:
            normalized = emit(
                emit(x * self._along(builder, inverse, axis, rank))
                - self._along(builder, emit(offset * inverse), axis, rank)
            )
            y = emit(normalized * self._along(builder, gamma, axis, rank))
        else:
            y = emit(
                emit(x * self._along(builder, scale, axis, rank))
                - self._along(builder, emit(offset * scale), axis, rank)
            )
        return emit(y + self._along(builder, beta, axis, rank)) if call.attrs.center else y

    def _foldable_product(self, x: Expr, call: relax.Call) -> tuple[relax.Call | None, Expr | None]:
        """The convolution or matrix product whose only reader is the batch norm of x, and the bias added to it."""
        bias: Expr | None = None
        value = made_by(self.made, x)
        if op_name(value) == "relax.add" and self.uses.get(x, 0) == 1 and _is_vector(value.args[1]):
            x, bias = value.args
            value = made_by(self.made, x)
        is_last_axis = int(call.attrs.axis) % len(shape_of(x)) == len(shape_of(x)) - 1
        if not is_last_axis or self.uses.get(x, 0) != 1:
            return None, None
        is_conv = op_name(value) == "relax.nn.conv2d" and value.attrs.kernel_layout == "HWIO"
        is_matmul = (
            op_name(value) == "pock.matmul" and not value.attrs["transpose_b"] and len(shape_of(value.args[1])) == 2
        )
        return (value, bias) if is_conv or is_matmul else (None, None)

    @staticmethod
    def _along(builder: relax.BlockBuilder, vector: Expr, axis: int, rank: int) -> Expr:
        return along_axis(builder, vector, axis, rank)

    def _is_trained(self, expr: Expr) -> bool:
        return bool(self._names_behind(expr) & set(self.trained))

    def _is_trained_in_part(self, expr: Expr) -> bool:
        return any(self.trained.get(name) is not None for name in self._names_behind(expr))

    def _names_behind(self, expr: Expr) -> frozenset[str]:
        """The names of the parameters that an expression depends on."""
        pending = [expr] if isinstance(expr, relax.Var) else []
        seen = set(pending)
        while pending:
            value = made_by(self.made, pending.pop())
            read = {var for var in used_vars(value) if var not in seen} if value is not None else set()
            pending += read
            seen |= read
        return frozenset(param.name for param in self.func.params if param in seen)

    # ---- batch statistics --------------------------------------------------------------------------------------------

    def _batch(self, builder: relax.BlockBuilder, call: relax.Call) -> Expr:
        x, gamma, beta, mean, variance = call.args
        emit = builder.emit
        rank = len(shape_of(x))
        axis = int(call.attrs.axis) % rank
        axes = [other for other in range(rank) if other != axis]
        count = math.prod(shape_of(x)[other] for other in axes)
        if count < 2:
            raise PassError(
                "batch norm with the statistics of each batch needs more than one value per channel: use a larger batch"
            )
        if not {mean, variance} <= set(self.func.params):
            raise PassError(
                "the running statistics of a batch norm are no buffers of the model, so no step can update them: "
                "register them as buffers, or compile with batch_norm='frozen'"
            )
        momentum = float(call.attrs.momentum)
        for running, current in (
            (mean, R.mean(x, axis=axes)),
            (variance, emit(R.variance(x, axis=axes)) * scalar(count / (count - 1), x)),
        ):
            latest = self.updates.get(running.name, running)
            decayed = emit(latest * scalar(1 - momentum, running))
            self.updates[running.name] = emit(decayed + emit(emit(current) * scalar(momentum, running)))
        y = emit(normalize(x, axes=axes, epsilon=float(call.attrs.epsilon), center=True))
        if call.attrs.scale:
            y = emit(y * self._along(builder, gamma, axis, rank))
        return emit(y + self._along(builder, beta, axis, rank)) if call.attrs.center else y

    def _with_updates(self, _builder: relax.BlockBuilder, body: Expr) -> Expr:
        results = list(body.fields) if isinstance(body, relax.Tuple) else [body]
        return relax.Tuple([*results, *self.updates.values()])


def _is_vector(expr: Expr) -> bool:
    """Whether all extents but the last are 1."""
    shape = shape_of(expr)
    return len(shape) > 0 and math.prod(shape[:-1]) == 1


def _with_weight(product: relax.Call, weight: Expr) -> relax.Call:
    return relax.Call(product.op, [product.args[0], weight], product.attrs, product.ty_args)
