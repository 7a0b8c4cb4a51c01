"""Passes over Relax that turn a forward function into a training step. Each works alone in any TVM pipeline.

The package keeps the name that the project's brief gave it; TVM has replaced Relay by Relax, and everything here is
Relax.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .canonical.channels_last import ChannelsLast
    from .canonical.copy_function import CopyFunction
    from .canonical.draw_numbers import DrawNumbers
    from .canonical.drop_functions import DropFunctions
    from .canonical.drop_marks import DropMarks
    from .canonical.expand_attention import ExpandAttention
    from .canonical.expand_normalization import ExpandNormalization
    from .canonical.fold_batch_norm import FoldBatchNorm
    from .canonical.fold_padding import FoldPadding
    from .canonical.mark_scales import MarkScales
    from .canonical.quantize_frozen import QuantizeFrozen
    from .canonical.recover_attention import RecoverAttention
    from .canonical.recover_operators import RecoverOperators
    from .canonical.select_early import SelectEarly
    from .canonical.simplify_masks import SimplifyMasks
    from .canonical.simplify_movement import SimplifyMovement
    from .canonical.split_batch import SplitBatch
    from .canonical.store_permuted import StorePermuted
    from .canonical.unify_products import UnifyProducts
    from .kernels.choose_kernels import ChooseKernels
    from .kernels.dequantize_at_use import DequantizeAtUse
    from .kernels.fuse_groups import FuseGroups
    from .kernels.fuse_updates import FuseUpdates
    from .kernels.join_attention import JoinAttention
    from .kernels.lift_frozen import LiftFrozen
    from .kernels.mixed_precision import MixedPrecision
    from .kernels.name_kernels import NameKernels
    from .kernels.pack_weights import PackWeights
    from .kernels.pad_frozen import PadFrozen
    from .kernels.scale_results import ScaleResults
    from .kernels.schedule_kernels import ScheduleKernels
    from .kernels.share_frozen import ShareFrozen
    from .kernels.slice_forward import SliceForward
    from .kernels.slice_kernels import SliceKernels
    from .kernels.straighten_products import StraightenProducts
    from .kernels.update_and_sum import UpdateAndSum
    from .kernels.winograd import Winograd
    from .memory.guard_writes import GuardWrites
    from .memory.hold_inputs import HoldInputs
    from .memory.list_calls import ListCalls
    from .memory.lower_to_executor import LowerToExecutor
    from .memory.order_updates import OrderUpdates
    from .memory.plan_arena import PlanArena
    from .memory.recompute import Recompute
    from .memory.recompute_cheap import RecomputeCheap
    from .memory.reserve_scratch import ReserveScratch
    from .training.accumulate_gradients import AccumulateGradients
    from .training.append_loss import AppendLoss
    from .training.append_update import AppendUpdate
    from .training.backward import Backward
    from .training.evaluate_loss import EvaluateLoss
    from .training.pack_masks import PackMasks
    from .training.save_small import SaveSmall
    from .training.scale_loss import ScaleLoss
    from .training.split_gradients import SplitGradients
    from .training.split_loss import SplitLoss
    from .training.unscale_gradients import UnscaleGradients

_HOME = {
    "AccumulateGradients": "training.accumulate_gradients",
    "AppendLoss": "training.append_loss",
    "AppendUpdate": "training.append_update",
    "Backward": "training.backward",
    "ChannelsLast": "canonical.channels_last",
    "ChooseKernels": "kernels.choose_kernels",
    "CopyFunction": "canonical.copy_function",
    "DequantizeAtUse": "kernels.dequantize_at_use",
    "DrawNumbers": "canonical.draw_numbers",
    "DropFunctions": "canonical.drop_functions",
    "DropMarks": "canonical.drop_marks",
    "EvaluateLoss": "training.evaluate_loss",
    "ExpandAttention": "canonical.expand_attention",
    "ExpandNormalization": "canonical.expand_normalization",
    "FoldBatchNorm": "canonical.fold_batch_norm",
    "FoldPadding": "canonical.fold_padding",
    "FuseGroups": "kernels.fuse_groups",
    "FuseUpdates": "kernels.fuse_updates",
    "GuardWrites": "memory.guard_writes",
    "HoldInputs": "memory.hold_inputs",
    "JoinAttention": "kernels.join_attention",
    "LiftFrozen": "kernels.lift_frozen",
    "ListCalls": "memory.list_calls",
    "LowerToExecutor": "memory.lower_to_executor",
    "MarkScales": "canonical.mark_scales",
    "MixedPrecision": "kernels.mixed_precision",
    "NameKernels": "kernels.name_kernels",
    "OrderUpdates": "memory.order_updates",
    "PackMasks": "training.pack_masks",
    "PackWeights": "kernels.pack_weights",
    "PadFrozen": "kernels.pad_frozen",
    "PlanArena": "memory.plan_arena",
    "QuantizeFrozen": "canonical.quantize_frozen",
    "Recompute": "memory.recompute",
    "RecomputeCheap": "memory.recompute_cheap",
    "ReserveScratch": "memory.reserve_scratch",
    "RecoverAttention": "canonical.recover_attention",
    "RecoverOperators": "canonical.recover_operators",
    "SaveSmall": "training.save_small",
    "ScaleLoss": "training.scale_loss",
    "ScaleResults": "kernels.scale_results",
    "ScheduleKernels": "kernels.schedule_kernels",
    "ShareFrozen": "kernels.share_frozen",
    "SelectEarly": "canonical.select_early",
    "SimplifyMasks": "canonical.simplify_masks",
    "SimplifyMovement": "canonical.simplify_movement",
    "SliceForward": "kernels.slice_forward",
    "SliceKernels": "kernels.slice_kernels",
    "SplitBatch": "canonical.split_batch",
    "SplitGradients": "training.split_gradients",
    "SplitLoss": "training.split_loss",
    "StorePermuted": "canonical.store_permuted",
    "StraightenProducts": "kernels.straighten_products",
    "UnifyProducts": "canonical.unify_products",
    "UnscaleGradients": "training.unscale_gradients",
    "UpdateAndSum": "kernels.update_and_sum",
    "Winograd": "kernels.winograd",
}
__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> object:
    """Import a pass when it is first asked for: the device side uses the errors alone, without TVM's compiler."""
    if name not in _HOME:
        raise AttributeError(f"module 'relay_passes' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
