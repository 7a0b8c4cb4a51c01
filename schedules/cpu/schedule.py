"""Schedule selection: the rule of a kernel's main block, or the fallback."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.schedule import SBlockRV

from ..decisions import DEFAULTS, Choice, Choices, Decisions
from ..kernels import comes_scheduled
from ..loops import Unsuited
from . import depthwise, product, reduction
from .fallback import fallback
from .traits import CpuTraits
from .transpose import transpose
from .update import update

Rule = Callable[[s_tir.Schedule, SBlockRV, CpuTraits, Choices], tirx.PrimFunc | None]
"""Schedules a kernel by its main block, or returns it written anew where TVM's schedule primitives do not suffice."""
RULES: dict[str, Rule] = {
    "pock.matmul": product.product,
    "pock.conv2d": product.product,
    "pock.conv2d_data_gradient": product.product,
    "pock.conv2d_weight_gradient": product.weight_gradient,
    "pock.depthwise_conv2d": depthwise.depthwise,
    "pock.depthwise_conv2d_data_gradient": depthwise.data_gradient,
    "pock.depthwise_conv2d_weight_gradient": depthwise.weight_gradient,
    "pock.channel_sum": reduction.channel_sum,
    "pock.transpose": transpose,
    "pock.update": update,
}
"""Rules by the ``schedule_rule`` attribute of main blocks in ``schedules/kernels``."""


def schedule(func: tirx.PrimFunc, traits: CpuTraits, decisions: Decisions = DEFAULTS) -> tirx.PrimFunc:
    """Schedule one kernel. One that comes scheduled, or that no rule suits, is returned unchanged.

    Raises
    ------
    DecisionError
        A decision names a choice or an option that the schedule does not offer.
    """
    return _scheduled(func, traits, decisions)[0]


def options(func: tirx.PrimFunc, traits: CpuTraits, decisions: Decisions = DEFAULTS) -> dict[str, Choice]:
    """Return the choices that a kernel's schedule offers under ``decisions``, by name, in the order they are made."""
    return _scheduled(func, traits, decisions)[1]


def _scheduled(func: tirx.PrimFunc, traits: CpuTraits, decisions: Decisions) -> tuple[tirx.PrimFunc, dict[str, Choice]]:
    found, choices = func, Choices(decisions)
    if not comes_scheduled(func):
        mod = tvm.IRModule({"main": func})
        for rule in _rules(s_tir.Schedule(mod), traits):
            sch, tried = s_tir.Schedule(mod), Choices(decisions)
            with contextlib.suppress(Unsuited, s_tir.ScheduleError):
                found = (rule(sch, tried) or sch.mod["main"]).with_attrs(func.attrs)
                choices = tried
                break
    choices.close()
    return found, choices.offered


def _rules(
    sch: s_tir.Schedule, traits: CpuTraits
) -> Iterator[Callable[[s_tir.Schedule, Choices], tirx.PrimFunc | None]]:
    """Yield the rules to try, best first."""
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        stmt = sch.get(block)
        rule = RULES.get(stmt.annotations.get("schedule_rule"))
        if rule is not None:
            yield functools.partial(_by_name, rule=rule, name=stmt.name_hint, traits=traits)
    yield functools.partial(reduction.row_wise, traits=traits)
    yield functools.partial(fallback, traits=traits)


def _by_name(sch: s_tir.Schedule, choices: Choices, rule: Rule, name: str, traits: CpuTraits) -> tirx.PrimFunc | None:
    return rule(sch, sch.get_sblock(name), traits, choices)
