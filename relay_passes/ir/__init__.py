"""Helpers that every pass shares, to read and rebuild Relax functions.

All passes work on *dataflow functions*: straight-line functions whose body is a list of bindings, as importers build
them. Shapes are static.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import tvm
import tvm_ffi
from tvm import DataType, IRModule, relax

from ..errors import BatchError, MissingGradient, PassError

for error in (PassError, BatchError, MissingGradient):
    tvm_ffi.register_error(error.__name__, error)  # passes run behind TVM's C++, which re-raises registered types alone

Expr: TypeAlias = relax.Expr
Constant: Any = tvm.ir.GenericConst


def shape_of(expr: Expr) -> tuple[int, ...]:
    """The static shape of a tensor expression."""
    ty = expr.ty
    if not isinstance(ty, relax.TensorType) or ty.shape is None:
        raise PassError(
            f"'{name_of(expr)}' has no known tensor shape (its type is {ty}); bind every symbolic dimension first"
        )
    try:
        return tuple(int(extent) for extent in ty.shape)
    except TypeError as error:
        raise PassError(
            f"'{name_of(expr)}' has the symbolic shape {ty.shape}; bind every symbolic dimension first"
        ) from error


def is_static(expr: Expr) -> bool:
    """Whether the shape of every tensor that an expression holds is known, and has no symbolic dimension."""
    types = list(expr.ty.fields) if isinstance(expr.ty, relax.TupleType) else [expr.ty]
    tensors = [ty for ty in types if isinstance(ty, relax.TensorType)]
    return all(ty.shape is not None and all(isinstance(n, tvm.tirx.IntImm) for n in ty.shape) for ty in tensors)


def dtype_of(expr: Expr) -> str:
    """The element type of a tensor expression, as NumPy spells it."""
    return str(expr.ty.dtype.dtype)


def stored_as(dtype: str) -> str:
    """The type under which a device holds numbers of ``dtype``: NumPy has no bfloat16."""
    return "uint16" if dtype == "bfloat16" else dtype


def is_float(expr: Expr) -> bool:
    """Whether ``expr`` is a tensor of floating-point numbers: only such values have gradients."""
    return isinstance(expr.ty, relax.TensorType) and dtype_of(expr).startswith(("float", "bfloat"))


def bytes_of(expr: Expr) -> int:
    """The size in bytes of a tensor, or of all tensors of a tuple."""
    if isinstance(expr.ty, relax.TensorType):
        return type_bytes(expr.ty)
    return sum(type_bytes(field) for field in expr.ty.fields)


def type_bytes(ty: relax.TensorType) -> int:
    """The size in bytes of a tensor of this static type; a bool takes one byte."""
    return math.prod(int(extent) for extent in ty.shape) * DataType(str(ty.dtype.dtype)).itemsize


def name_of(expr: Expr) -> str:
    """The name of a value in messages: a variable's or an operator's name, else its kind of node."""
    if isinstance(expr, relax.Var):
        return expr.name
    if isinstance(expr, relax.Call):
        return op_name(expr)
    return type(expr).__name__.lower()


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without the traces that TVM appends."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


CALLS = frozenset({"relax.call_tir", "relax.call_tir_inplace"})
"""The operators that call a kernel."""


def op_name(expr: Expr) -> str:
    """``relax.add`` for a call of that operator, the function's name for a call of a function, else an empty string."""
    if not isinstance(expr, relax.Call):
        return ""
    return str(getattr(expr.op, "name", None) or getattr(expr.op, "name_hint", ""))


def scalar(value: float, like: Expr) -> Expr:
    """A constant of the element type of ``like``."""
    return relax.const(value, dtype_of(like))


def constant_value(expr: Expr) -> np.ndarray | None:
    """The array behind a constant, None for everything else."""
    return expr.value.numpy() if isinstance(expr, Constant) else None


def slice_bounds(args: Sequence[Expr]) -> tuple[list[int], list[int], list[int], list[int]]:
    """The axes, begins, ends and strides of a ``relax.strided_slice`` with these arguments."""
    axes, begins, ends, *strides = (_integers(arg) for arg in args[1:])
    return axes, begins, ends, strides[0] if strides else [1] * len(axes)


def _integers(expr: Expr) -> list[int]:
    values = constant_value(expr)
    if values is not None:
        return [int(value) for value in values.reshape(-1)]
    if isinstance(expr, relax.ShapeExpr):
        return [int(value) for value in expr.values]
    return [int(field) for field in expr.fields]


def made_by(made: Mapping[relax.Var, Any], expr: Expr) -> Any:
    """Look up the definition of ``expr`` among those that a pass recorded; None for parameters and constants."""
    return made.get(expr) if isinstance(expr, relax.Var) else None


def normalized_axes(axes: Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """Axes counted from the front, ascending; ``None`` means all."""
    if axes is None:
        return tuple(range(rank))
    return tuple(sorted(int(axis) % rank for axis in axes))


def bindings_of(func: relax.Function) -> list[relax.VarBinding]:
    """All bindings of a straight-line function, in order."""
    bindings: list[relax.VarBinding] = []
    for block in func.body.blocks:
        for binding in block.bindings:
            if not isinstance(binding, relax.VarBinding):
                raise PassError(
                    f"'{binding.var.name}' is a cast of a symbolic shape; bind every symbolic dimension first"
                )
            if isinstance(binding.value, relax.If | relax.Function):
                raise PassError(
                    f"'{binding.var.name}' is control flow; a training program is a straight line of operators"
                )
            bindings.append(binding)
    return bindings


def operands(value: Expr) -> Iterator[tuple[int, int | None, Expr]]:
    """The tensor-valued operands of a bound value as (operand, field, expression).

    ``field`` is the position in a tuple operand (as in ``concat``) and None for a plain one.
    """
    if isinstance(value, relax.Tuple):
        for field, part in enumerate(value.fields):
            yield 0, field, part
    elif isinstance(value, relax.TupleGetItem):
        yield 0, None, value.tuple_value
    elif isinstance(value, relax.Call):
        for operand, arg in enumerate(value.args):
            if isinstance(arg, relax.Tuple):
                for field, part in enumerate(arg.fields):
                    yield operand, field, part
            else:
                yield operand, None, arg
    else:
        yield 0, None, value


def used_vars(value: Expr) -> list[relax.Var]:
    """The variables that a bound value reads, with repetitions."""
    variables: list[relax.Var] = []
    for _, _, expr in operands(value):
        if isinstance(expr, relax.Tuple):
            variables += used_vars(expr)
        elif isinstance(expr, relax.Var):
            variables.append(expr)
    return variables


def substitute(value: Expr, env: Mapping[relax.Var, Expr]) -> Expr:
    """Replace the variables of ``value`` that ``env`` maps; return ``value`` itself where there are none."""
    if isinstance(value, relax.Var):
        return env.get(value, value)
    if not any(var in env for var in used_vars(value)):
        return value
    if isinstance(value, relax.Tuple):
        return _typed(relax.Tuple([substitute(field, env) for field in value.fields]))
    if isinstance(value, relax.TupleGetItem):
        source = substitute(value.tuple_value, env)
        return (
            source.fields[value.index]
            if isinstance(source, relax.Tuple)
            else _typed(relax.TupleGetItem(source, value.index))
        )
    args = [substitute(arg, env) for arg in value.args]
    same_types = all(tvm_ffi.structural_equal(new.ty, old.ty) for new, old in zip(args, value.args, strict=True))
    return relax.Call(value.op, args, value.attrs, value.ty_args, ret_ty=value.ty if same_types else None)


def _typed(expr: Expr) -> Expr:
    return relax.BlockBuilder().normalize(expr)


class NamingBuilder(relax.BlockBuilder):
    """A builder that names anonymous bindings after the value being rewritten, so that messages about a missing kernel
    or gradient name the model's operator."""

    name = ""

    def emit(self, expr: Expr, name_hint: str = "") -> relax.Var:
        """Bind an expression to a new variable."""
        return super().emit(expr, name_hint or self.name)


Visit = Callable[[relax.BlockBuilder, relax.Var, Expr], Expr]


def unchanged(_builder: relax.BlockBuilder, _var: relax.Var, value: Expr) -> Expr:
    """A visit that keeps every binding."""
    return value


def rewrite(
    func: relax.Function,
    visit: Visit = unchanged,
    *,
    params: Sequence[relax.Var] | None = None,
    env: Mapping[relax.Var, Expr] | None = None,
    result: Callable[[relax.BlockBuilder, Expr], Expr] | None = None,
    made: dict[relax.Var, relax.Call] | None = None,
) -> relax.Function:
    """Rebuild a dataflow function binding by binding, as one dataflow block.

    ``visit(builder, var, value)`` gets each bound value with its operands already rewritten. It returns the
    replacement: an expression to bind, or a variable or constant to use directly. ``params`` replaces the parameters,
    and ``env`` maps the old ones to expressions. ``result(builder, body)`` replaces the returned value. ``made`` is
    filled with the call that each new variable is bound to, for :func:`made_by`.
    """
    env = dict(env or {})
    new_params = list(func.params if params is None else params)
    kept: list[relax.Var] = []
    builder = NamingBuilder()
    builder.begin_scope(new_params)
    builder._begin_dataflow_block()
    for binding in bindings_of(func):
        builder.name = binding.var.name
        value = visit(builder, binding.var, substitute(binding.value, env))
        is_leaf = isinstance(value, relax.Var | Constant | relax.Tuple)
        env[binding.var] = new = value if is_leaf else builder.emit(value, binding.var.name)
        if made is not None and isinstance(value, relax.Call):
            made[new] = value
        if is_kept(binding.var) and isinstance(new, relax.Var):
            kept.append(new)
    body, builder.name = substitute(func.body.body, env), ""
    body = builder.normalize(result(builder, body) if result else body)
    bindings = list(builder._end_block().bindings)
    builder.end_scope()
    return assemble(new_params, bindings, body, func.attrs, kept)


def inline(builder: relax.BlockBuilder, func: relax.Function, args: Sequence[Expr]) -> Expr:
    """Emit the bindings of a dataflow function with some arguments; return what it returns."""
    env = dict(zip(func.params, args, strict=True))
    for binding in bindings_of(func):
        value = substitute(binding.value, env)
        is_leaf = isinstance(value, relax.Var | Constant | relax.Tuple)
        env[binding.var] = value if is_leaf else builder.emit(value, binding.var.name)
    return substitute(func.body.body, env)


def is_kept(var: relax.Var) -> bool:
    """Whether a variable is an output of its dataflow block.

    These are the results, and the forward values that the backward graph reads. No pass of TVM fuses the definition of
    such a value into its use.
    """
    return not isinstance(var, relax.DataflowVar)


def assemble(
    params: Sequence[relax.Var],
    bindings: Sequence[relax.VarBinding],
    body: Expr,
    attrs: Mapping[str, object] | None = None,
    kept: Iterable[relax.Var] = (),
) -> relax.Function:
    """Build a function of one dataflow block, whose outputs are ``kept`` and the variables that ``body`` reads."""
    if isinstance(body, relax.Tuple):
        returned = relax.Var("results", body.ty)
        bindings, body = [*bindings, relax.VarBinding(returned, body)], returned
    outputs = {*used_vars(body), *kept}
    env: dict[relax.Var, Expr] = {}
    rebuilt = []
    for binding in bindings:
        var = binding.var
        if is_kept(var) != (var in outputs):
            env[var] = (relax.Var if var in outputs else relax.DataflowVar)(var.name, var.ty)
        rebuilt.append(relax.VarBinding(env.get(var, var), substitute(binding.value, env)))
    body = substitute(body, env)
    func = relax.BlockBuilder().normalize(
        relax.Function(list(params), relax.SeqExpr([relax.DataflowBlock(rebuilt)], body), body.ty)
    )
    return func.with_attrs(dict(attrs.items())) if attrs else func


def results_of(builder: relax.BlockBuilder, body: Expr) -> list[Expr]:
    """List the results of a function that returns one value, a tuple, or a variable that holds a tuple."""
    if isinstance(body, relax.Tuple):
        return list(body.fields)
    if not isinstance(body.ty, relax.TupleType):
        return [body]
    return [builder.emit(relax.TupleGetItem(body, index)) for index in range(len(body.ty.fields))]


def returned(func: relax.Function) -> list[Expr]:
    """List the results of a function as they are bound in it. Emits nothing, unlike :func:`results_of`."""
    values = {binding.var: binding.value for binding in bindings_of(func)}
    body = func.body.body
    while isinstance(body, relax.Var) and isinstance(values.get(body), relax.Var | relax.Tuple):
        body = values[body]
    return list(body.fields) if isinstance(body, relax.Tuple) else [body]


def constant_vars(func: relax.Function, frozen: Collection[str]) -> set[relax.Var]:
    """The ``frozen`` parameters of a function, and every value computed from these and constants alone."""
    constant = {param for param in func.params if param.name in frozen}
    for binding in bindings_of(func):
        if all(var in constant for var in used_vars(binding.value)):
            constant.add(binding.var)
    return constant


def update_function(mod: IRModule, name: str, func: relax.Function) -> IRModule:
    """A copy of the module with one function replaced or added."""
    functions = {var.name_hint: old for var, old in mod.functions.items()}
    copy = mod.clone() if hasattr(mod, "clone") else mod.shallow_copy()
    if name in functions:
        copy.update_func(mod.get_global_var(name), func)
    else:
        copy[name] = func
    return copy


def without_functions(mod: IRModule, names: Collection[str]) -> IRModule:
    """A copy of the module without some functions."""
    return IRModule({var: func for var, func in mod.functions.items() if var.name_hint not in names}, attrs=mod.attrs)


def eliminate_dead(func: relax.Function) -> relax.Function:
    """Drop bindings that nothing reads. In-place calls stay, for their side effect."""
    used = set(used_vars(func.body.body))
    needed = []
    for binding in reversed(bindings_of(func)):
        if binding.var in used or op_name(binding.value) == "relax.call_tir_inplace":
            needed.append(binding)
            used.update(used_vars(binding.value))
    kept = [binding.var for binding in needed if is_kept(binding.var)]
    return assemble(func.params, needed[::-1], func.body.body, func.attrs, kept)
