"""Says where in a network a value is made, in PyTorch's words.

A front end calls values after the module and the operator that made them (:func:`value_name`). Passes keep these names,
and call what they add after what it stands for; what TVM adds is called ``lv7``. What the gradient rule of an operator
makes is called ``d_`` and the name of the operator's result.
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
    """The name of a value that an operator makes in the module at a path.

    TVM puts numbers behind a name that is taken, and ``_`` for a dot.
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
    """Whether it is the operator's gradient that makes the value."""


def place_of(operator: str, name: str) -> Place:
    """The place of a value that a Relax operator makes, from its name."""
    short = operator.removeprefix("relax.").removeprefix("nn.")
    found = NAMED.fullmatch(name)
    if found is None:
        return Place("", short, f"operator '{operator}' at '{name}'" if operator else f"'{name}'")
    layer, torch_operator = found["layer"].replace("/", "."), found["operator"]
    what = f"operator '{torch_operator}'" + ("" if short in ("", torch_operator) else f" ({operator})")
    where = f"in layer '{layer}'" if layer else "in the outermost module"
    of_gradient = bool(found["gradient"])
    return Place(layer, torch_operator, f"{'the gradient of ' * of_gradient}{what} {where}", of_gradient)


def places_of(func: relax.Function) -> dict[relax.Var, Place]:
    """The place of every value of a function; what has no name of its own belongs to the first that reads it."""
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
    """What is fused behind each variable of some functions: the names of the values that a group makes.

    ``before`` and ``grouped`` are the module before and after ``FuseOps``, which gives a group's result a new name: it
    is known by its kernel and by what it reads.
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
    """The calls of kernels of a function, each with the kernel's name."""
    calls = [binding for binding in bindings_of(func) if op_name(binding.value) in CALLS]
    return [(call.value.args[0].name_hint, call) for call in calls]


def kernel_places(mod: IRModule, names: Mapping[tuple[str, str], Sequence[str]]) -> dict[str, str]:
    """What each kernel computes, for a message; of equal kernels, the first. ``names`` is of :func:`grouped_names`."""
    described: dict[str, str] = {}
    for var, func in mod.functions.items():
        if not isinstance(func, relax.Function):
            continue
        for kernel, binding in _calls(func):
            own = names.get((var.name_hint, binding.var.name), [binding.var.name])
            known = [place_of("", name).described for name in own if not NAMELESS.fullmatch(name)]
            described.setdefault(kernel, ", ".join(dict.fromkeys(known)) or f"'{kernel}'")
    return described
