"""Makes this package a plug-in of TVM: ``import tvm`` finds it through the entry-point group ``tvm.backends``."""

from __future__ import annotations

from typing import Any

TRAIN, SCHEDULE = "pock_train", "pock_schedule"


def autoload() -> None:
    """Register our pipelines with TVM. Runs at every ``import tvm``: it must be quick, and never fail.

    With TVM's runtime alone there is no Relax, and nothing to register.
    """
    from tvm.base import _RUNTIME_ONLY

    if _RUNTIME_ONLY:
        return
    from tvm.relax.pipeline import PIPELINE_MAP, register_pipeline
    from tvm.tirx.compilation_pipeline import register_tir_pipeline

    for name, pipeline in ((TRAIN, _train), (SCHEDULE, _schedule)):
        if name not in PIPELINE_MAP:
            register_pipeline(name)(pipeline)
    register_tir_pipeline(SCHEDULE, _lower)


def _train(*args: Any, **kwargs: Any) -> Any:
    """See :func:`pock_tvm.compiler.plain_pipeline.training_pipeline`."""
    from .compiler.plain_pipeline import training_pipeline

    return training_pipeline(*args, **kwargs)


def _schedule(*args: Any, **kwargs: Any) -> Any:
    """See :func:`pock_tvm.compiler.plain_pipeline.scheduling_pipeline`."""
    from .compiler.plain_pipeline import scheduling_pipeline

    return scheduling_pipeline(*args, **kwargs)


def _lower() -> Any:
    """See :func:`pock_tvm.compiler.plain_pipeline.lowering_pipeline`."""
    from .compiler.plain_pipeline import lowering_pipeline

    return lowering_pipeline()
