"""The passes of phase 2 in their order."""

from __future__ import annotations

from tvm import relax
from tvm.ir.transform import Pass

from .channels_last import ChannelsLast
from .expand_normalization import ExpandNormalization
from .fold_padding import FoldPadding
from .recover_operators import RecoverOperators
from .simplify_masks import SimplifyMasks
from .simplify_movement import SimplifyMovement
from .unify_products import UnifyProducts


def canonicalise() -> list[Pass]:
    """List the passes that leave one operator for each concept, channels last."""
    recover = [relax.transform.EliminateCommonSubexpr(), RecoverOperators(), ExpandNormalization(), SimplifyMasks()]
    return [*recover, UnifyProducts(), ChannelsLast(), FoldPadding(), SimplifyMovement()]
