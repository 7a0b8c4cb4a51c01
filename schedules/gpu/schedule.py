"""Schedule selection: the rule of a kernel's main block, or the fallback."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.schedule import SBlockRV

from ..decisions import DEFAULTS, Choice, Choices, Decide, Decisions
from ..kernels import comes_scheduled
from ..loops import Unsuited
from ..primitives import Schedule
from ..spaces import in_space, space_of
from ..target import GENERIC
from .fallback import fallback
from .products import attention, depthwise
from .products.product import product
from .rows import rows
from .tasks import bind_tasks
from .text.limits import OverLimit
from .traits import GpuTraits
from .update import update
from .windows import windows

Rule = Callable[[s_tir.Schedule, SBlockRV, GpuTraits, Choices], tirx.PrimFunc | None]
"""Schedules a kernel by its main block, or returns it written anew where TVM's schedule primitives do not suffice."""
RULES: dict[str, Rule] = {
    "pock.attention": attention.forward,
    "pock.attention_query_gradient": attention.query_gradient,
    "pock.attention_key_gradient": attention.key_gradient,
    "pock.attention_value_gradient": attention.value_gradient,
    "pock.matmul": product,
    "pock.conv2d": product,
    "pock.conv2d_data_gradient": product,
    "pock.conv2d_weight_gradient": product,
    "pock.depthwise_conv2d": depthwise.depthwise,
    "pock.depthwise_conv2d_data_gradient": depthwise.depthwise,
    "pock.depthwise_conv2d_weight_gradient": depthwise.weight_gradient,
    "pock.update": update,
}
"""Rules by the ``schedule_rule`` attribute of main blocks in ``schedules/kernels``."""

FALLBACK = "pock.fallback"
"""Attribute of a scheduled kernel whose rule made one that a device may refuse: why."""
Check = Callable[[tirx.PrimFunc], object]
"""Raises :class:`schedules.gpu.text.limits.OverLimit` for a scheduled kernel that a device may refuse."""


def schedule(func: tirx.PrimFunc, traits: GpuTraits, check: Check, decisions: Decisions = DEFAULTS) -> tirx.PrimFunc:
    """Schedule one kernel: every loop nest is bound to blocks and threads.

    A rule whose kernel does not pass ``check`` is left out, and the kernel says so (``FALLBACK``).

    Raises
    ------
    DecisionError
        A decision names a choice or an option that the schedule does not offer.
    """
    return walk(func, traits, check, decisions)[0]


def walk(
    func: tirx.PrimFunc, traits: GpuTraits, check: Check, decisions: Decisions | Decide, space: str | None = None
) -> tuple[tirx.PrimFunc, dict[str, Choice]]:
    """Schedule one kernel (:func:`schedule`); return it, and the choices that its schedule offers under ``decisions``,
    by name, in the order they are made."""
    if comes_scheduled(func):
        Choices(decisions).close()
        return bind_tasks(func), {}
    mod, attrs = tvm.IRModule({"main": func}), dict(func.attrs)
    for rule in _rules(Schedule(mod), traits, space or space_of(decisions)):
        sch, choices = Schedule(mod), Choices(decisions)
        with contextlib.suppress(Unsuited, s_tir.ScheduleError):
            scheduled = rule(sch, choices=choices) or sch.mod["main"]
            choices.close()
            scheduled = scheduled.with_attrs(attrs)
            try:
                check(scheduled)
            except OverLimit as error:
                attrs.setdefault(FALLBACK, str(error))
                continue
            return scheduled, choices.offered
    sch, choices = Schedule(mod), Choices(decisions)
    fallback(sch, traits, choices)
    choices.close()
    return sch.mod["main"].with_attrs(attrs | {GENERIC: True}), choices.offered


def _rules(sch: s_tir.Schedule, traits: GpuTraits, space: str | None) -> Iterator[Callable[..., tirx.PrimFunc | None]]:
    """Yield the rules that may suit a kernel, best first."""
    if space is not None:
        yield functools.partial(in_space(space), traits=traits)
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        stmt = sch.get(block)
        rule = RULES.get(stmt.annotations.get("schedule_rule"))
        if rule is not None:
            yield functools.partial(_by_name, rule=rule, name=stmt.name_hint, traits=traits)
    yield functools.partial(rows, traits=traits)
    yield functools.partial(windows, traits=traits)


def _by_name(sch: s_tir.Schedule, choices: Choices, rule: Rule, name: str, traits: GpuTraits) -> tirx.PrimFunc | None:
    return rule(sch, sch.get_sblock(name), traits, choices)
