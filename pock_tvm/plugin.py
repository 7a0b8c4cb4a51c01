"""Makes this package a plug-in of TVM: ``import tvm`` finds it through the entry-point group ``tvm.backends``."""

from __future__ import annotations

from typing import Any

PIPELINE = "pock_train"


def autoload() -> None:
    """Register the pipeline ``pock_train`` with Relax. Runs at every ``import tvm``: it must be quick, and never fail.

    With TVM's runtime alone there is no Relax, and nothing to register.
    """
    from tvm.base import _RUNTIME_ONLY

    if _RUNTIME_ONLY:
        return
    from tvm.relax.pipeline import PIPELINE_MAP, register_pipeline

    if PIPELINE not in PIPELINE_MAP:
        register_pipeline(PIPELINE)(_pipeline)


def _pipeline(*args: Any, **kwargs: Any) -> Any:
    """See :func:`pock_tvm.compiler.pipeline.training_pipeline`."""
    from .compiler.pipeline import training_pipeline

    return training_pipeline(*args, **kwargs)
