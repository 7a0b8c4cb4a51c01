"""Verifies a module after a phase: Relax's well-formedness, and our invariants from that phase on.

A check shares no code with the pass that it checks. It takes a module and yields one sentence for each violation.
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
    """Violation of an invariant after a phase: a fault of the compiler."""


def verify(mod: IRModule, where: str, checks: Iterable[Check]) -> None:
    """Check a module.

    Raises
    ------
    VerifyError
        The module is malformed, or one of ``checks`` finds a violation. ``where`` names the phase in the message.
    """
    try:
        relax.analysis.well_formed(mod)
    except Exception as error:  # TVM raises a different class for each fault
        raise VerifyError(f"after {where}: the module is not well formed: {first_line(error)}") from error
    for check in checks:
        for broken in check(mod):
            raise VerifyError(f"after {where}: {broken}")


def functions_of(mod: IRModule) -> Iterator[tuple[str, relax.Function]]:
    """Yield the Relax functions of a module, with their names."""
    for var, func in mod.functions.items():
        if isinstance(func, relax.Function):
            yield var.name_hint, func


def parameters_are_told_apart(mod: IRModule) -> Iterator[str]:
    """Phase 1: parameters have unique names, and inputs are parameters."""
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
    """Phase 3: the first result of a function is a floating-point scalar."""

    def check(mod: IRModule) -> Iterator[str]:
        loss = returned(mod[function])[0]
        if not is_float(loss) or shape_of(loss) != ():
            yield f"the first result of '{function}' is no loss but of type {loss.ty}"

    return check


def only_trained_gradients(function: str, trained: Mapping[str, TrainedPart | None]) -> Check:
    """Phase 4: a function returns gradients of trained parts only."""

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
    """Phase 4: every value reaches a result. So no gradient of a frozen prefix is computed.

    (This no longer holds after common-subexpression elimination, whose dead values stay until phase 7.)
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
    """Phase 5: in-place writes go only to trained parameters, their optimizer state, and running statistics."""

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
    """Return the variables that a call writes in place."""
    if op_name(value) != "relax.call_tir_inplace":
        return []
    fields = value.args[1].fields
    return [fields[int(index)] for index in value.attrs.inplace_indices if int(index) >= 0]


def only_kernels(mod: IRModule) -> Iterator[str]:
    """Phases 6 and 7: functions call kernels of the module, and no Relax operators except views."""
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
    """Phase 8: after an in-place write, only further writes read the memory written, directly or by a view."""
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
            else:  # a view, a tuple or a tuple field
                behind[binding.var] = read


def only_executors(mod: IRModule) -> Iterator[str]:
    """End of phase 9: every function is a kernel or an executor."""
    yield from (f"'{name}' is no executor yet" for name, _ in functions_of(mod))
