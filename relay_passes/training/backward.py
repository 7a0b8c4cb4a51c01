"""Builds the backward graph that a set of trained parameters needs, and nothing else."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import tvm
from tvm import IRModule, relax

from .. import gradients
from ..errors import MissingGradient, Obstacle, PassError
from ..gradients import Use
from ..ir import (
    Expr,
    NamingBuilder,
    assemble,
    bindings_of,
    dtype_of,
    eliminate_dead,
    first_line,
    is_float,
    name_of,
    op_name,
    operands,
    scalar,
    shape_of,
    update_function,
    used_vars,
)
from ..ir.places import Place, places_of
from ..ir.trained_part import Trained, TrainedPart, plain_parts

EXPANDED_BY = {
    "relax.nn.batch_norm": "FoldBatchNorm",
    **dict.fromkeys(
        ("relax.nn.layer_norm", "relax.nn.rms_norm", "relax.nn.group_norm", "relax.nn.instance_norm"),
        "ExpandNormalization",
    ),
    **dict.fromkeys(("relax.nn.attention", "relax.nn.attention_bias"), "ExpandAttention"),
    "relax.nn.conv1d": "UnifyProducts",
    "relax.nn.conv2d_transpose": "ChannelsLast",
    "relax.nn.adaptive_avg_pool2d": "ChannelsLast",
}
"""The pass that replaces an operator which has no gradient rule, by operator."""


@tvm.transform.module_pass(opt_level=0, name="Backward")
@dataclass(frozen=True)
class Backward:
    """Turn a function that returns a scalar loss into one that returns loss and gradients of the trained parameters.

    In: a dataflow function whose first result is a float scalar. Out: the same function returning ``(loss, gradient, …,
    further results, …)``, with the attribute ``gradients``: the names of the parameters that have a gradient, in the
    order of the gradients. A trained parameter that the loss does not depend on has none.

    Forward values that the backward graph reads become outputs of the dataflow block. A training step has to save
    these.

    First, every value that depends on a trained parameter is marked. Then the graph is walked from the loss backwards,
    calling the rules of marked operands alone. A frozen prefix gets no backward node, needs no rule, and saves nothing.

    Raises
    ------
    MissingGradient
        A marked operand has no rule, or its rule does not cover this case; :func:`obstacles` lists all of them.
    """

    trained: Trained
    """The trained parameters by name: None for a whole one, else ``(axis, indices)``, the part of it to train."""
    function: str = "main"
    """The function to differentiate."""
    scale: float = 1.0
    """The gradient of the loss itself: 1 / n where n steps are accumulated."""

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        walk = _Walk(mod[self.function], self.trained)
        func = walk.build(self.scale)
        if walk.obstacles:
            first, *others = walk.obstacles
            more = f" (There are {len(others)} more like it: 'pock check' lists all.)" if others else ""
            raise MissingGradient(f"{first}{more}")
        return update_function(mod, self.function, func)


def obstacles(func: relax.Function, trained: Trained) -> list[Obstacle]:
    """List all reasons for which :class:`Backward` refuses a function: operators on a trained path that have no
    gradient, and parameters that cannot be trained in part."""
    walk = _Walk(func, trained)
    walk.build(1.0)
    return walk.obstacles


@dataclass
class _Walk:
    func: relax.Function
    selection: Trained
    contributions: dict[relax.Var, dict[int | None, list[Expr]]] = field(default_factory=dict)
    obstacles: list[Obstacle] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.trained = plain_parts(self.selection)
        self.bindings = bindings_of(self.func)
        by_name = {param.name: param for param in self.func.params}
        unknown = [name for name in self.trained if name not in by_name]
        if unknown:
            raise PassError(f"no parameter is called '{unknown[0]}'")
        self.parameters = {by_name[name]: piece for name, piece in self.trained.items()}
        for param in self.parameters:
            if not is_float(param):
                raise PassError(f"'{param.name}' holds {dtype_of(param)} numbers and cannot be trained")
        self.sources = self._mark()

    def _mark(self) -> dict[relax.Var, relax.Var]:
        """Map every value that depends on a trained parameter to the first operand through which it does."""
        sources: dict[relax.Var, relax.Var] = {param: param for param in self.parameters}
        for binding in self.bindings:
            if gradients.is_flat(op_name(binding.value)) or not _has_gradient(binding.var):
                continue
            source = next(
                (arg for _, _, arg in operands(binding.value) if isinstance(arg, relax.Var) and arg in sources), None
            )
            if source is not None:
                sources[binding.var] = source
        return sources

    def build(self, scale: float) -> relax.Function:
        results = self.func.body.body
        results = self._resolve(results)
        loss, *further = results.fields if isinstance(results, relax.Tuple) else [results]
        if not isinstance(loss.ty, relax.TensorType) or shape_of(loss) != () or not is_float(loss):
            raise PassError(
                f"the loss, '{name_of(loss)}', must be a single floating-point number; its type is {loss.ty}"
            )

        builder = NamingBuilder()
        builder.begin_scope(self.func.params)
        builder._begin_dataflow_block()
        try:
            self._add(loss, None, scalar(scale, loss))
            for binding in reversed(self.bindings):
                if binding.var in self.contributions:
                    builder.name = f"d_{binding.var.name}"
                    self._step_back(builder, binding)
            grads = {
                param.name: self._total(builder, param) for param in self.parameters if param in self.contributions
            }
            body = builder.normalize(relax.Tuple([loss, *grads.values(), *further]))
        finally:  # TVM prints a warning for a block left open, beside our error
            backward = list(builder._end_block().bindings)
            builder.end_scope()
        forward = {binding.var for binding in self.bindings}
        saved = {var for binding in backward for var in used_vars(binding.value) if var in forward}
        func = assemble(self.func.params, [*self.bindings, *backward], body, self.func.attrs, saved)
        return eliminate_dead(func).with_attr("gradients", list(grads))

    def _resolve(self, expr: Expr) -> Expr:
        """Resolve a variable to the tuple that it is bound to."""
        bound = {binding.var: binding.value for binding in self.bindings}
        while isinstance(expr, relax.Var) and isinstance(bound.get(expr), relax.Var | relax.Tuple):
            expr = bound[expr]
        return expr

    def _step_back(self, builder: relax.BlockBuilder, binding: relax.VarBinding) -> None:
        """Propagate the gradient of a binding to its marked operands."""
        value, result = binding.value, binding.var
        if not isinstance(value, relax.Call):
            self._pass_on(builder, value, result)
            return
        grad = self._total(builder, result)
        for operand, position, arg in operands(value):
            if not isinstance(arg, relax.Var) or arg not in self.sources:
                continue
            try:
                contribution = self._contribution(builder, binding, grad, operand, position, arg)
            except PassError as error:
                self._note(binding, operand, arg, str(error))
                contribution = builder.emit(relax.op.zeros(_grad_shape(arg, self.parameters.get(arg)), dtype_of(arg)))
            self._add(arg, None, contribution)

    def _contribution(
        self,
        builder: relax.BlockBuilder,
        binding: relax.VarBinding,
        grad: Expr | list[Expr | None],
        operand: int,
        position: int | None,
        arg: relax.Var,
    ) -> relax.Var:
        """Emit the contribution of one use of ``arg`` to its gradient."""
        value, piece = binding.value, self.parameters.get(arg)
        rule = gradients.rule_for(op_name(value), operand)
        if rule is None:
            raise PassError("it has no gradient rule" + (f" for operand {operand}" if operand else ""))
        if piece is not None and not gradients.takes_pieces(op_name(value), operand):
            raise PassError(
                f"'{arg.name}' cannot be trained in part: only weights of convolutions and matrix products have input "
                "channels, only embeddings rows"
            )
        try:
            contribution = rule(Use(value, binding.var, grad, position, piece))
        except PassError:
            raise
        except Exception as error:  # TVM's message says what is not supported, but not where
            raise PassError(f"its gradient rule fails: {first_line(error)}") from error
        if not isinstance(contribution, relax.Var):
            contribution = builder.emit(contribution, f"d_{arg.name}" if arg in self.parameters else "")
        if shape_of(contribution) != _grad_shape(arg, piece):
            raise PassError(
                f"its gradient rule gave {shape_of(contribution)} for '{arg.name}', not {_grad_shape(arg, piece)}"
            )
        return contribution

    def _pass_on(self, builder: relax.BlockBuilder, value: Expr, result: relax.Var) -> None:
        """Propagate a gradient through a binding that is no call: an alias, a tuple, or a field of one."""
        if isinstance(value, relax.TupleGetItem):
            if value.tuple_value in self.sources:
                self._add(value.tuple_value, value.index, self._total(builder, result))
        elif isinstance(value, relax.Tuple):
            fields = self._fields(builder, result)
            for grad, part in zip(fields, value.fields, strict=True):
                if grad is not None and isinstance(part, relax.Var) and part in self.sources:
                    self._add(part, None, grad)
        elif isinstance(value, relax.Var) and value in self.sources:
            for index, parts in self.contributions[result].items():
                for part in parts:
                    self._add(value, index, part)

    def _add(self, value: relax.Var, index: int | None, grad: Expr) -> None:
        self.contributions.setdefault(value, {}).setdefault(index, []).append(grad)

    def _total(self, builder: relax.BlockBuilder, value: relax.Var) -> Expr | list[Expr | None]:
        """The gradient of a value: the sum of its uses' contributions, for a tuple one sum a field."""
        if isinstance(value.ty, relax.TupleType):
            return self._fields(builder, value)
        return _sum(builder, self.contributions[value][None], value.name)

    def _fields(self, builder: relax.BlockBuilder, value: relax.Var) -> list[Expr | None]:
        parts = self.contributions[value]
        return [
            _sum(builder, parts[index], value.name) if index in parts else None for index in range(len(value.ty.fields))
        ]

    def _note(self, binding: relax.VarBinding, operand: int, arg: relax.Var, why: str) -> None:
        """Record why an operator passes no gradient to ``arg``, and a trained parameter that ``arg`` depends on."""
        parameter = arg
        while parameter not in self.parameters:
            parameter = self.sources[parameter]
        operator, place, name = op_name(binding.value), self._places[binding.var], parameter.name
        reason = f"{place.described} stands between the trained parameter '{name}' and the loss, and {why}"
        way_out = (
            f"Freeze '{name}' and whatever else comes before this operator, or write the model with operators that "
            "have a gradient (README, 'What is supported' and 'How to add an operator')"
        )
        if gradients.rule_for(operator, operand) is not None and self.parameters.get(arg) is not None:
            way_out = f"Train all of '{name}', or none of it"
        elif operator in EXPANDED_BY:
            way_out += f". In a TVM pipeline of your own, run {EXPANDED_BY[operator]} first"
        self.obstacles.append(Obstacle(place.layer, place.operator, name, reason, way_out))

    @functools.cached_property
    def _places(self) -> dict[relax.Var, Place]:
        return places_of(self.func)


def _has_gradient(var: relax.Var) -> bool:
    if isinstance(var.ty, relax.TupleType):
        return any(
            isinstance(part, relax.TensorType) and str(part.dtype.dtype).startswith(("float", "bfloat"))
            for part in var.ty.fields
        )
    return is_float(var)


def _sum(builder: relax.BlockBuilder, parts: list[Expr], name: str) -> Expr:
    total = parts[0]
    for part in parts[1:]:
        total = builder.emit(relax.op.add(total, part), f"d_{name}")
    return total


def _grad_shape(operand: relax.Var, piece: TrainedPart | None) -> tuple[int, ...]:
    """The shape of the gradient of an operand, or of its trained part."""
    shape = list(shape_of(operand))
    if piece is not None:
        shape[piece.axis] = len(piece.indices)
    return tuple(shape)
