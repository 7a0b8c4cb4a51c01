"""Passes over Relax that turn a forward function into a training step. Each works alone in any TVM pipeline.

The package keeps the name that the project's brief gave it; TVM has replaced Relay by Relax, and everything here is
Relax.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .accumulate_gradients import AccumulateGradients
    from .append_loss import AppendLoss
    from .append_update import AppendUpdate
    from .backward import Backward
    from .channels_last import ChannelsLast
    from .choose_kernels import ChooseKernels
    from .expand_normalization import ExpandNormalization
    from .fold_batch_norm import FoldBatchNorm
    from .fold_padding import FoldPadding
    from .lift_frozen import LiftFrozen
    from .lower_to_executor import LowerToExecutor
    from .name_kernels import NameKernels
    from .order_updates import OrderUpdates
    from .pack_masks import PackMasks
    from .pack_weights import PackWeights
    from .plan_arena import PlanArena
    from .recompute import Recompute
    from .recover_operators import RecoverOperators
    from .save_small import SaveSmall
    from .scale_results import ScaleResults
    from .select_early import SelectEarly
    from .simplify_masks import SimplifyMasks
    from .simplify_movement import SimplifyMovement
    from .slice_forward import SliceForward
    from .split_batch import SplitBatch
    from .split_gradients import SplitGradients
    from .store_permuted import StorePermuted
    from .straighten_products import StraightenProducts
    from .unify_products import UnifyProducts
    from .winograd import Winograd

_HOME = {
    "AccumulateGradients": "accumulate_gradients",
    "AppendLoss": "append_loss",
    "AppendUpdate": "append_update",
    "Backward": "backward",
    "ChannelsLast": "channels_last",
    "ChooseKernels": "choose_kernels",
    "ExpandNormalization": "expand_normalization",
    "FoldBatchNorm": "fold_batch_norm",
    "FoldPadding": "fold_padding",
    "LiftFrozen": "lift_frozen",
    "LowerToExecutor": "lower_to_executor",
    "NameKernels": "name_kernels",
    "OrderUpdates": "order_updates",
    "PackMasks": "pack_masks",
    "PackWeights": "pack_weights",
    "PlanArena": "plan_arena",
    "Recompute": "recompute",
    "RecoverOperators": "recover_operators",
    "SaveSmall": "save_small",
    "ScaleResults": "scale_results",
    "SelectEarly": "select_early",
    "SimplifyMasks": "simplify_masks",
    "SimplifyMovement": "simplify_movement",
    "SliceForward": "slice_forward",
    "SplitBatch": "split_batch",
    "SplitGradients": "split_gradients",
    "StorePermuted": "store_permuted",
    "StraightenProducts": "straighten_products",
    "UnifyProducts": "unify_products",
    "Winograd": "winograd",
}
__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> object:
    """Import a pass when it is first asked for: the device side uses the errors alone, without TVM's compiler."""
    if name not in _HOME:
        raise AttributeError(f"module 'relay_passes' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
