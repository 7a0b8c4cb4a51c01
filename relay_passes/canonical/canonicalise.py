"""The passes of phase 2 that depend on the forward function alone, in their order."""

from __future__ import annotations

from tvm import relax
from tvm.ir.transform import Pass

from .channels_last import ChannelsLast
from .expand_attention import ExpandAttention
from .expand_normalization import ExpandNormalization
from .fold_padding import FoldPadding
from .recover_operators import RecoverOperators
from .simplify_masks import SimplifyMasks
from .simplify_movement import SimplifyMovement
from .unify_products import UnifyProducts


def unify_operators(function: str = "main") -> list[Pass]:
    """List the passes that leave one operator for each concept: what exporters took apart is recovered."""
    common = relax.transform.EliminateCommonSubexpr()
    passes = (RecoverOperators, ExpandNormalization, ExpandAttention, SimplifyMasks)
    return [common, *(each(function=function) for each in passes), UnifyProducts(function=function)]


def move_channels_last(function: str = "main") -> list[Pass]:
    """List the passes that move the channels last, and then fold padding and data movement. They follow
    :func:`unify_operators`."""
    return [each(function=function) for each in (ChannelsLast, FoldPadding, SimplifyMovement)]
