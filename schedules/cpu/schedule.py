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
from . import attention, depthwise, planes, product, reduction
from .fallback import fallback
from .hexagon import for_kernel
from .pixels import pixels
from .rows import row_wise
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
    "pock.quantized_depthwise": depthwise.quantized,
    "pock.channel_sum": reduction.channel_sum,
    "pock.transpose": transpose,
    "pock.attention": attention.forward,
    "pock.attention_query_gradient": attention.query_gradient,
    "pock.attention_key_gradient": attention.key_gradient,
    "pock.attention_value_gradient": attention.value_gradient,
    "pock.attention_gradients": attention.gradients,
    "pock.update": update,
    "pock.quantize_words": pixels,
    "pock.planes_conv2d": planes.convolution,
    "pock.planes_depthwise": planes.depthwise,
}
"""Rules by the ``schedule_rule`` attribute of main blocks in ``schedules/kernels``."""


def schedule(func: tirx.PrimFunc, traits: CpuTraits, decisions: Decisions = DEFAULTS) -> tirx.PrimFunc:
    """Schedule one kernel. One that comes scheduled, or that no rule suits, is returned unchanged.

    Raises
    ------
    DecisionError
        A decision names a choice or an option that the schedule does not offer.
    """
    return walk(func, traits, decisions)[0]


def walk(
    func: tirx.PrimFunc, traits: CpuTraits, decisions: Decisions | Decide, space: str | None = None
) -> tuple[tirx.PrimFunc, dict[str, Choice]]:
    """Schedule one kernel; return it, and the choices that its schedule offers under ``decisions``, by name, in the
    order they are made."""
    found, choices, traits = func, Choices(decisions), for_kernel(func, traits)
    if not comes_scheduled(func):
        mod = tvm.IRModule({"main": func})
        for rule in _rules(Schedule(mod), traits, space or space_of(decisions)):
            sch, tried = Schedule(mod), Choices(decisions)
            with contextlib.suppress(Unsuited, s_tir.ScheduleError):
                found = (rule(sch, tried) or sch.mod["main"]).with_attrs(func.attrs)
                choices = tried
                break
    choices.close()
    return found, choices.offered


def _rules(
    sch: s_tir.Schedule, traits: CpuTraits, space: str | None
) -> Iterator[Callable[[s_tir.Schedule, Choices], tirx.PrimFunc | None]]:
    """Yield the rules to try, best first."""
    if space is not None:
        yield functools.partial(in_space(space), traits=traits)
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        stmt = sch.get(block)
        rule = RULES.get(stmt.annotations.get("schedule_rule"))
        if rule is not None:
            yield functools.partial(_by_name, rule=rule, name=stmt.name_hint, traits=traits)
    yield functools.partial(row_wise, traits=traits)
    yield functools.partial(_generic, traits=traits)


def _generic(sch: s_tir.Schedule, choices: Choices, traits: CpuTraits) -> tirx.PrimFunc:
    fallback(sch, choices, traits)
    return sch.mod["main"].with_attr(GENERIC, True)


def _by_name(sch: s_tir.Schedule, choices: Choices, rule: Rule, name: str, traits: CpuTraits) -> tirx.PrimFunc | None:
    return rule(sch, sch.get_sblock(name), traits, choices)
