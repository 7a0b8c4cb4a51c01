"""Maps Relax values to the PyTorch modules and operators that they come from.

A front end names a value after the module and operator that compute it (:func:`value_name`). Passes keep these names,
and name a replacement after the value that it replaces. Values of TVM's own are anonymous (``lv7``). Values of a
gradient rule are named ``d_`` and the name of the forward result.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tvm import IRModule, relax

from . import CALLS, bindings_of, op_name, used_vars

NAMELESS = re.compile(r"(d_)*(lv|gv)?\d*")
NAMED = re.compile(r"(?P<gradient>(d_)*)(?P<layer>[^:]*):(?P<operator>[^:]*):\d*")


def value_name(layer: str, operator: str) -> str:
    """Build the name of a value that ``operator`` computes in the module at path ``layer``.

    TVM appends numbers to a name that is taken, hence the last colon, and replaces dots by ``_``, hence the slashes.
    """
    return f"{layer.replace('.', '/')}:{operator}:"


@dataclass(frozen=True)
class Place:
    """An operator of the network."""

    layer: str
    """The path of its PyTorch module; empty for the outermost one, and where it is not known."""
    operator: str
    """Its name in PyTorch where that is known, else in Relax."""
    described: str
    """Both, for a message."""
    of_gradient: bool = False
    """Whether the value belongs to the operator's gradient."""


def place_of(operator: str, name: str) -> Place:
    """Parse the place of a value from its name and the Relax operator that computes it."""
    short = operator.removeprefix("relax.").removeprefix("nn.")
    parsed = NAMED.fullmatch(name)
    if parsed is None:
        return Place("", short, f"operator '{operator}' at '{name}'" if operator else f"'{name}'")
    layer, torch_operator = parsed["layer"].replace("/", "."), parsed["operator"]
    what = f"operator '{torch_operator}'" + ("" if short in ("", torch_operator) else f" ({operator})")
    where = f"in layer '{layer}'" if layer else "in the outermost module"
    of_gradient = bool(parsed["gradient"])
    return Place(layer, torch_operator, f"{'the gradient of ' * of_gradient}{what} {where}", of_gradient)


def places_of(func: relax.Function) -> dict[relax.Var, Place]:
    """Find the place of every value of a function. An anonymous value has the place of its first reader."""
    names = _names(bindings_of(func))
    return {
        binding.var: place_of(op_name(binding.value), names.get(binding.var, binding.var.name))
        for binding in bindings_of(func)
    }


def _names(bindings: Sequence[relax.VarBinding]) -> dict[relax.Var, str]:
    names: dict[relax.Var, str] = {}
    for binding in reversed(bindings):
        if not NAMELESS.fullmatch(binding.var.name):
            names[binding.var] = binding.var.name
        if binding.var in names:
            names |= {var: names[binding.var] for var in used_vars(binding.value) if NAMELESS.fullmatch(var.name)}
    return names


def grouped_names(before: IRModule, grouped: IRModule, functions: Sequence[str]) -> dict[tuple[str, str], list[str]]:
    """Map each call of a fused group, as (function, variable), to the names of the values that the group computes.

    ``before`` and ``grouped`` are the module before and after ``FuseOps``. That gives a group's result a new name, so
    the result is identified by its kernel and operands.
    """
    results = {
        (kernel, var.name): binding.var.name
        for name in functions
        for kernel, binding in _calls(before[name])
        for var in used_vars(binding.value)
    }
    groups: dict[str, list[str]] = {}
    for group, func in grouped.functions.items():
        if isinstance(func, relax.Function) and group.name_hint not in functions:
            names = [binding.var.name for _, binding in _calls(func)]
            kernel, last = _calls(func)[-1]
            read = [(kernel, var.name) for var in used_vars(last.value) if (kernel, var.name) in results]
            groups[group.name_hint] = names + [results[key] for key in read[:1]]
    return {
        (name, binding.var.name): groups[op_name(binding.value)]
        for name in functions
        for binding in bindings_of(grouped[name])
        if op_name(binding.value) in groups
    }


def _calls(func: relax.Function) -> list[tuple[str, relax.VarBinding]]:
    """The kernel calls of a function, each with the kernel's name."""
    calls = [binding for binding in bindings_of(func) if op_name(binding.value) in CALLS]
    return [(call.value.args[0].name_hint, call) for call in calls]


def kernel_places(mod: IRModule, names: Mapping[tuple[str, str], Sequence[str]]) -> dict[str, str]:
    """Describe for messages what each kernel computes, by its first call. ``names`` is from :func:`grouped_names`."""
    described: dict[str, str] = {}
    for var, func in mod.functions.items():
        if not isinstance(func, relax.Function):
            continue
        for kernel, binding in _calls(func):
            own = names.get((var.name_hint, binding.var.name), [binding.var.name])
            known = [place_of("", name).described for name in own if not NAMELESS.fullmatch(name)]
            described.setdefault(kernel, ", ".join(dict.fromkeys(known)) or f"'{kernel}'")
    return described
