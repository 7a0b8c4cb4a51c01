"""Checks a module after a phase: what Relax asks of it, and the rules of ours that hold from that phase on.

A check shares no code with the pass whose work it looks at. It takes a module and says, a sentence each, what breaks
its rule.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from tvm import IRModule, relax, tirx

from ..ir import CALLS, bindings_of, first_line, is_float, op_name, returned, shape_of, used_vars
from ..ir.append import states_of
from ..ir.trained_part import TrainedPart
from ..operators.record import record_of

Check = Callable[[IRModule], Iterable[str]]


class VerifyError(Exception):
    """A phase left a module that breaks a rule: a fault of the compiler."""


def verify(mod: IRModule, where: str, checks: Iterable[Check]) -> None:
    """Check a module.

    Raises
    ------
    VerifyError
        It is not well formed, or one of ``checks`` finds a rule broken; ``where`` says in the message after what.
    """
    try:
        relax.analysis.well_formed(mod)
    except Exception as error:  # each kind of fault has a kind of its own
        raise VerifyError(f"after {where}: the module is not well formed: {first_line(error)}") from error
    for check in checks:
        for broken in check(mod):
            raise VerifyError(f"after {where}: {broken}")


def functions_of(mod: IRModule) -> Iterator[tuple[str, relax.Function]]:
    """The Relax functions of a module by name."""
    for var, func in mod.functions.items():
        if isinstance(func, relax.Function):
            yield var.name_hint, func


def parameters_are_told_apart(mod: IRModule) -> Iterator[str]:
    """Phase 1: each parameter has a name of its own, and inputs are parameters."""
    for name, func in functions_of(mod):
        names = [param.name for param in func.params]
        yield from (f"'{name}' has two parameters '{twice}'" for twice in set(names) if names.count(twice) > 1)
        if not 0 <= int(func.attrs["num_input"]) <= len(names):
            yield f"'{name}' has {len(names)} parameters, of which {func.attrs['num_input']} are inputs"


def batch_norms_are_folded(mod: IRModule) -> Iterator[str]:
    """Phase 2: no batch norm is left."""
    for name, func in functions_of(mod):
        for binding in bindings_of(func):
            if op_name(binding.value) == "relax.nn.batch_norm":
                yield f"'{binding.var.name}' of '{name}' is a batch norm"


def returns_loss(function: str) -> Check:
    """Phase 3: the first result of a function is one floating-point number."""

    def check(mod: IRModule) -> Iterator[str]:
        loss = returned(mod[function])[0]
        if not is_float(loss) or shape_of(loss) != ():
            yield f"the first result of '{function}' is no loss but of type {loss.ty}"

    return check


def only_trained_gradients(function: str, trained: Mapping[str, TrainedPart | None]) -> Check:
    """Phase 4: a function returns gradients of trained parts, and no others."""

    def check(mod: IRModule) -> Iterator[str]:
        func = mod[function]
        shapes = {param.name: shape_of(param) for param in func.params}
        for name, grad in zip(map(str, func.attrs["gradients"]), returned(func)[1:], strict=False):
            part = trained.get(name)
            shape = list(shapes[name])
            if part is not None:
                axis, indices = part
                shape[axis] = len(indices)
            if name not in trained:
                yield f"'{function}' returns a gradient of '{name}', which is frozen"
            elif shape_of(grad) != tuple(shape):
                yield f"the gradient of '{name}' has the shape {shape_of(grad)}, and what is trained of it {shape}"

    return check


def everything_is_needed(function: str) -> Check:
    """Phase 4: a result needs each value. Where only trained parts have gradients, none is then of a frozen prefix.

    (Behind the elimination of common subexpressions this no longer holds: what it leaves dead stays until phase 7.)
    """

    def check(mod: IRModule) -> Iterator[str]:
        func = mod[function]
        live = set(used_vars(func.body.body))
        for binding in reversed(bindings_of(func)):
            if binding.var in live:
                live.update(used_vars(binding.value))
            else:
                yield f"no result of '{function}' needs '{binding.var.name}'"

    return check


def only_trained_written(functions: Collection[str], trained: Collection[str]) -> Check:
    """Phase 5: what is written in place are trained parameters, their states, and statistics."""

    def check(mod: IRModule) -> Iterator[str]:
        for name in functions:
            func = mod[name]
            states = {state for state, (_, of) in states_of(func).items() if of in trained}
            allowed = {*trained, *states, *map(str, func.attrs.get("state_updates", []))}
            for binding in bindings_of(func):
                for var in written_by(binding.value):
                    if var not in set(func.params) or var.name not in allowed:
                        yield f"'{name}' writes '{var.name}', which is neither trained nor a state"

    return check


def written_by(value: relax.Expr) -> list[relax.Var]:
    """The variables that a call writes in place."""
    if op_name(value) != "relax.call_tir_inplace":
        return []
    fields = value.args[1].fields
    return [fields[int(index)] for index in value.attrs.inplace_indices if int(index) >= 0]


def only_kernels(mod: IRModule) -> Iterator[str]:
    """Phases 6 and 7: functions call kernels of the module, and no operator of Relax but views."""
    for name, func in functions_of(mod):
        for binding in bindings_of(func):
            operator = op_name(binding.value)
            if operator in CALLS:
                kernel = binding.value.args[0]
                if not isinstance(mod.functions.get(kernel), tirx.PrimFunc):
                    yield f"'{name}' calls '{kernel.name_hint}', which is no kernel"
            elif operator and not record_of(operator).is_alias:
                yield f"'{binding.var.name}' of '{name}' is the operator '{operator}'"


def updates_follow_reads(mod: IRModule) -> Iterator[str]:
    """Phase 8: behind an in-place write nothing but further writes reads what was written, or a view of it."""
    for name, func in functions_of(mod):
        behind: dict[relax.Var, frozenset[relax.Var]] = {param: frozenset([param]) for param in func.params}
        written: set[relax.Var] = set()
        for binding in bindings_of(func):
            read = frozenset[relax.Var]().union(*(behind.get(var, frozenset()) for var in used_vars(binding.value)))
            operator = op_name(binding.value)
            if operator == "relax.call_tir_inplace":
                written.update(written_by(binding.value))
            elif operator in CALLS:
                for var in read & written:
                    yield f"'{binding.var.name}' of '{name}' reads '{var.name}' behind its update"
            else:  # a view, a tuple or a field of one
                behind[binding.var] = read


def only_executors(mod: IRModule) -> Iterator[str]:
    """The end of phase 9: everything is a kernel or an executor."""
    yield from (f"'{name}' is no executor yet" for name, _ in functions_of(mod))
